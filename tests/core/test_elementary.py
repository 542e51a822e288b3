"""The numbers of one level are those of Python's math, alone or in a table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unveil.core import elementary, schedules
from unveil.core.elementary import level_by_level, scalar
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process, betas, partly
from unveil.core.samplers import ddim, euler_ancestral
from unveil.core.schedules import Schedule
from unveil.core.sde import SubVP
from unveil.core.ve import VE, EDMProcess
from unveil.types import like

NUMBERS = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1e-3
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "exp": (elementary.exp, math.exp),
    "expm1": (elementary.expm1, math.expm1),
    "log": (elementary.log, math.log),
    "sqrt": (elementary.sqrt, math.sqrt),
    "cos": (elementary.cos, math.cos),
    "sin": (elementary.sin, math.sin),
    "atan": (elementary.atan, math.atan),
    "asinh": (elementary.asinh, math.asinh),
    "square": (elementary.square, lambda number: number**2),
    "power": (lambda values: elementary.power(values, 0.7), lambda number: number**0.7),
    "divide": (lambda values: elementary.divide(3.7, values), lambda number: 3.7 / number),
}
PROCESSES: dict[str, Process] = {
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "sub-vp": SubVP(),
    "ve": VE(),
    "edm": EDMProcess(),
    "flow": RectifiedFlow(),
    "shifted": TimeShift(RectifiedFlow(), 3.0),
    "discrete": DiscreteVP(betas("cosine", 100)),
    "discrete-log-alpha": DiscreteVP(betas("linear", 100), interpolate="log-alpha"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_level_and_the_levels_of_a_table_get_the_numbers_of_math(name):
    function, of_math = FUNCTIONS[name]
    wanted = [of_math(number) for number in NUMBERS.tolist()]
    assert [function(number).item() for number in NUMBERS] == wanted
    with level_by_level():
        assert function(NUMBERS).tolist() == wanted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_levels_with_parts_get_the_numbers_that_they_have_alone(name):
    function, _ = FUNCTIONS[name]
    parts = NUMBERS.reshape(20, 2, 5)
    alone = torch.stack([function(level) for level in parts])
    with level_by_level():
        assert torch.equal(function(parts), alone)


def test_outside_of_tables_one_axis_is_that_of_samples():
    with level_by_level():
        pass
    assert torch.equal(elementary.expm1(NUMBERS), NUMBERS.expm1())
    with pytest.raises(ZeroDivisionError), level_by_level():
        _ = 1 / 0
    assert torch.equal(elementary.expm1(NUMBERS), NUMBERS.expm1()), "an error leaves the table as well"


def test_a_number_is_divided_with_one_rounding():
    assert elementary.divide(3.0, scalar(49.0)).item() == 3.0 / 49.0


@pytest.mark.parametrize("name", PROCESSES)
def test_a_schedule_has_the_levels_of_its_times(name):
    process = PROCESSES[name]
    times = [1.0, 0.87, 0.5, 0.311, 0.02]
    for level, t in zip(schedules.from_times(process, times), times, strict=True):
        assert level == process.at(t)
    sigmas = [1.1, 0.6, 0.3]
    for level, sigma in zip(schedules.from_sigmas(process, sigmas), sigmas, strict=True):
        assert level == schedules.from_sigmas(process, [sigma, 0.2])[0]


@pytest.mark.parametrize("sampler", [ddim, euler_ancestral])
def test_a_row_has_the_coefficients_of_its_step_alone(sampler):
    schedule = schedules.karras(LinearVP(), 9)
    mask = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    for levels in (schedule, schedule.map(lambda level: partly(level, mask))):
        for number, row in enumerate(sampler(levels).rows):
            alone = sampler(Schedule(levels.process, levels[number : number + 2])).rows[0]
            for one, other in zip(
                (row.keep, *row.gains, row.noise), (alone.keep, *alone.gains, alone.noise), strict=True
            ):
                assert torch.equal(one, other)


def test_a_single_level_meets_half_precision_unrounded():
    x = torch.linspace(-3, 3, 257).bfloat16()
    level = LinearVP().at(0.3)
    assert torch.equal(like(level.sigma, x) * x, level.sigma.item() * x)
