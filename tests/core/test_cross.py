"""Every process with every prediction, sampler and schedule: what can work is exact, what cannot says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.core import cross
from tests.core.cross import CASES, PREDICTED, SIZE, UNFIT, cell, distance, plan_of, schedule_cell, schedule_refusal
from tests.core.mixture import MEANS, SPREADS, WEIGHTS, draw
from unveil.core import schedules
from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError

# Each sampler once, walking through processes and predictions so that all of them meet.
DIAGONAL = [
    (list(CASES)[i % len(CASES)], list(PREDICTED)[(i + i // len(CASES)) % len(PREDICTED)], sampler)
    for i, sampler in enumerate(sampler_specs())
]


def check(case: str, prediction: str, sampler: str, planned=None) -> None:
    """One cell: exact, or refused by name."""
    entry = sampler_specs()[sampler]
    refusal = cross.refusal(CASES[case], prediction, entry)
    if refusal is not None:
        with pytest.raises(RecipeError, match=refusal):
            cell(CASES[case], prediction, entry, planned)
        return
    found = cell(CASES[case], prediction, entry, planned)
    if (case, sampler) in cross.LED_ON:
        return  # the worst of the predictions is beyond, see below
    assert found < (cross.threshold() if cross.held(entry) else float("inf"))


# ---------------------------------------------------------------------- the ruler


def test_the_distance_is_that_of_the_definition():
    few = draw(60)
    many = draw(6000, 1)
    apart = (few[:, None] - many).abs().mean() * 2 - (few[:, None] - few).abs().mean()
    apart -= (many[:, None] - many).abs().mean()
    assert distance(few) == pytest.approx(apart.item(), abs=3e-3)
    wide = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    known = (WEIGHTS * torch.special.ndtr((wide[:, None] - MEANS) / SPREADS)).sum(1)
    ours = (few[:, None] <= wide).double().mean(0)
    assert distance(few) == pytest.approx(2 * torch.trapezoid((ours - known) ** 2, wide).item(), rel=1e-3)


def test_the_stored_null_is_that_of_exact_draws():
    stored = json.loads(cross.NULL.read_text())
    assert stored["samples"] == SIZE
    assert stored["draws"] >= 100_000  # ten or more exceed what is exceeded once in 10,000
    some = torch.tensor([distance(draw(SIZE, k)) for k in range(300)])
    assert some.median().item() == pytest.approx(stored["exceeded once in"]["2"], rel=0.15)
    assert float((some > stored["exceeded once in"]["100"]).double().mean()) < 0.03
    assert some.max().item() < cross.threshold()


def test_the_ruler_sees_what_is_wrong():
    exact = draw(SIZE, 1)
    for wrong in (exact * 1.1, exact + 0.08, torch.cat([exact, exact[exact > 0][:800]])):
        assert distance(wrong) > cross.threshold()
    ancestral, case = sampler_specs()["ancestral"], CASES["linear VP"]
    schedule, plan = plan_of(case, ancestral)
    quiet = type(plan)([row._replace(noise=0.8 * row.noise) for row in plan.rows])  # type: ignore[attr-defined]
    assert cell(case, "v", ancestral, (schedule, quiet)) > cross.threshold()


# ---------------------------------------------------------------------- cells


def test_the_diagonal_meets_everything():
    assert {case for case, _, _ in DIAGONAL} == set(CASES)
    assert {prediction for _, prediction, _ in DIAGONAL} == set(PREDICTED)
    refused = [cross.refusal(CASES[case], prediction, sampler_specs()[name]) for case, prediction, name in DIAGONAL]
    assert None in refused
    assert len(set(refused)) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("case", "prediction", "sampler"), DIAGONAL)
def test_a_diagonal_of_the_table(case: str, prediction: str, sampler: str):
    check(case, prediction, sampler)


@pytest.mark.release
@pytest.mark.parametrize("sampler", sampler_specs())
@pytest.mark.parametrize("case", CASES)
def test_the_whole_table(case: str, sampler: str):
    blind = CASES[case].is_blind and sampler_specs()[sampler].start == "finite"
    planned = None if blind else plan_of(CASES[case], sampler_specs()[sampler])
    for prediction in PREDICTED:
        check(case, prediction, sampler, planned)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "sampler"), cross.LED_ON)
def test_what_is_called_inexact_is(case: str, sampler: str):
    found = max(cell(CASES[case], prediction, sampler_specs()[sampler]) for prediction in PREDICTED)
    assert found > cross.threshold()


# ---------------------------------------------------------------------- schedules

PAIRS = [(case, name) for case in CASES for name in schedules.SCHEDULES if (case, name) not in UNFIT]


@pytest.mark.parametrize(("case", "name"), [pair for pair in PAIRS if schedule_refusal(CASES[pair[0]], pair[1])])
def test_a_schedule_that_a_process_cannot_have_says_why(case: str, name: str):
    refusal = schedule_refusal(CASES[case], name)
    assert refusal is not None
    with pytest.raises(RecipeError, match=re.escape(refusal)):
        schedule_cell(CASES[case], name)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), [pair for pair in PAIRS if not schedule_refusal(CASES[pair[0]], pair[1])])
def test_every_other_schedule_leads_to_the_mixture(case: str, name: str):
    assert schedule_cell(CASES[case], name) < cross.threshold()


# ---------------------------------------------------------------------- the page


def test_the_page_is_of_the_samplers_and_schedules_that_there_are():
    text = (Path(__file__).parents[2] / "docs/cross.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert rows == [*sampler_specs(), *schedules.SCHEDULES], "run python -m tests.core.cross table"
    exact = "\n".join(line for line in text.splitlines() if "` *" not in line)  # no fine schedule makes the others so
    shares = [float(number) for number in re.findall(r"\| (\d+\.\d\d)(?= )", exact)]
    assert len(shares) > 400
    assert max(shares) < 1
