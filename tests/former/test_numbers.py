"""No renaming changes a number; see `numbers`."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest

from tests.former import numbers, records

FIRST, HERE = records.first(), records.here()
# Plans that choose their own steps are run, not only tabulated: their last digits pass through many steps
TABLE_TOLERANCE = 1e-11
# Adam divides a gradient by its own size: where it is near zero, what two processors round apart becomes a whole step.
# Three processors (one without bf16) differ by 7e-5 in the first ten losses and by 6e-4 in fifty, at the most.
EARLY, EARLY_TOLERANCE, LOSS_TOLERANCE = 10, 3e-4, 3e-3


@cache
def tables() -> dict[str, Any]:
    return json.loads(json.dumps(numbers.tables()))


@cache
def samples() -> dict[str, Any]:
    return json.loads(json.dumps(numbers.samples()))


def assert_near(now: list[float], then: list[float]) -> None:
    assert len(now) == len(then)
    for one, other in zip(now, then, strict=True):
        if math.isfinite(other):
            assert one == pytest.approx(other, rel=TABLE_TOLERANCE, abs=1e-12)
        else:
            assert str(one) == str(other)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["samplers", "grids"])
def test_the_tables_are_the_same_as_they_were(what):
    now, then = tables()[what], FIRST["tables"][what]
    assert now.keys() == then.keys()
    if HERE is not None:
        recorded = HERE["tables"][what]
        assert [name for name in recorded if now[name][0] != recorded[name][0]] == []
    for name in then:
        assert_near(now[name][1], then[name][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", numbers.TRAINED)
def test_the_first_losses_are_the_same_as_they_were(name):
    now = numbers.losses_of(name)
    assert HERE is None or now == HERE["losses"][name]
    losses, former = ([float.fromhex(loss) for loss in each] for each in (now, FIRST["losses"][name]))
    assert losses[:EARLY] == pytest.approx(former[:EARLY], rel=EARLY_TOLERANCE)
    assert losses == pytest.approx(former, rel=LOSS_TOLERANCE)


@pytest.mark.parametrize("name", numbers.SAMPLED)
def test_a_bundled_model_draws_what_it_drew(name):
    now, then = samples()[name], FIRST["samples"][name]
    assert HERE is None or now == HERE["samples"][name]
    assert now["shape"] == then["shape"]
    assert [float.fromhex(number) for number in now["numbers"]] == pytest.approx(
        [float.fromhex(number) for number in then["numbers"]], rel=1e-4, abs=1e-4
    )


def test_the_bundled_captioner_writes_what_it_wrote():
    assert HERE is None or samples()["captions"] == HERE["samples"]["captions"]
