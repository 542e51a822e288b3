"""No renaming changes a number; see `numbers`."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest

from tests.former import numbers
from tests.former.environment import key

STORED: dict[str, Any] = json.loads(numbers.FILE.read_text())
SAME = STORED["key"] == key()  # bits can be expected
STORED_TABLES = STORED["tables"]


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
            assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
        else:
            assert str(one) == str(other)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["samplers", "grids"])
def test_the_tables_are_the_same_as_they_were(what):
    now, then = tables()[what], STORED_TABLES[what]
    assert now.keys() == then.keys()
    if SAME:
        assert [name for name in then if now[name][0] != then[name][0]] == []
    for name in then:
        assert_near(now[name][1], then[name][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", numbers.TRAINED)
def test_the_first_losses_are_the_same_as_they_were(name):
    now, then = numbers.losses_of(name), STORED["losses"][name]
    if SAME:
        assert now == then
    assert [float.fromhex(loss) for loss in now] == pytest.approx([float.fromhex(loss) for loss in then], rel=1e-4)


@pytest.mark.parametrize("name", numbers.SAMPLED)
def test_a_bundled_model_draws_what_it_drew(name):
    now, then = samples()[name], STORED["samples"][name]
    if SAME:
        assert now == then
    assert now["shape"] == then["shape"]
    assert [float.fromhex(number) for number in now["numbers"]] == pytest.approx(
        [float.fromhex(number) for number in then["numbers"]], rel=1e-3, abs=1e-3
    )


def test_the_bundled_captioner_writes_what_it_wrote():
    assert not SAME or samples()["captions"] == STORED["samples"]["captions"]
