"""Schedules: where they put their levels, on any process, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from unveil.core import schedules
from unveil.core.flow import DynamicShift, RectifiedFlow, TimeShift
from unveil.core.process import DATA, CosineVP, DiscreteVP, LinearVP, betas, partly
from unveil.core.ve import VE, EDMProcess
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

DISCRETE = DiscreteVP(betas("linear", 1000))
PROCESSES = {
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "discrete": DISCRETE,
    "ve": VE(),
    "edm": EDMProcess(),
    "rectified-flow": RectifiedFlow(),
}
WITH_ENDS = {
    "karras": schedules.karras,
    "exponential": schedules.exponential,
    "polyexponential": schedules.polyexponential,
}


def ratios(schedule: schedules.Schedule) -> list[float]:
    return [float(level.sigma / level.alpha) for level in schedule]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("make", WITH_ENDS.values(), ids=WITH_ENDS)
def test_schedules_between_two_ratios_are_the_same_on_every_process(make, process):
    for steps in (1, 2, 9):
        schedule = make(PROCESSES[process], steps, sigma_min=0.05, sigma_max=20)
        assert len(schedule) == steps + 1
        assert schedule[-1] == DATA
        assert ratios(schedule) == pytest.approx(
            ratios(make(EDMProcess(), steps, sigma_min=0.05, sigma_max=20)), rel=1e-9
        )
        assert ratios(schedule)[0] == pytest.approx(20)
        assert steps == 1 or ratios(schedule)[-2] == pytest.approx(0.05)


def test_karras_levels_are_even_in_the_power_1_over_rho():
    roots = [ratio ** (1 / 7) for ratio in ratios(schedules.karras(EDMProcess(), 18))[:-1]]
    assert [a - b for a, b in pairwise(roots)] == pytest.approx([(80 ** (1 / 7) - 0.002 ** (1 / 7)) / 17] * 17)
    even = ratios(schedules.karras(EDMProcess(), 5, sigma_min=1, sigma_max=5, rho=1))
    assert even == pytest.approx([5, 4, 3, 2, 1, 0])


def test_exponential_levels_are_even_in_the_logarithm_and_rho_bends_them():
    plain = schedules.exponential(VE(), 6, sigma_min=0.1, sigma_max=10)
    same = schedules.uniform_log_snr(VE(), 5, low=-math.log(10), high=math.log(10)).onto_data()
    assert ratios(plain) == pytest.approx(ratios(same))
    bent = schedules.polyexponential(VE(), 3, sigma_min=0.1, sigma_max=10, rho=2)
    assert ratios(bent) == pytest.approx([10, 0.1 * 100**0.25, 0.1, 0])


def test_the_vp_schedule_is_even_in_the_time_of_the_linear_process():
    schedule = schedules.vp(LinearVP(), 5)
    assert [level.t.item() for level in schedule] == pytest.approx([1, 0.75025, 0.5005, 0.25075, 0.001, 0])
    assert ratios(schedules.vp(EDMProcess(), 5)) == pytest.approx(ratios(schedule))


def test_linear_quadratic_begins_as_a_fine_run_and_widens_evenly():
    times = [level.t.item() for level in schedules.linear_quadratic(RectifiedFlow(), 50)]
    widths = [a - b for a, b in pairwise(times)]
    assert times[0] == 1
    assert times[-1] == 0
    assert widths[:25] == pytest.approx([0.001] * 25)
    growth = [b - a for a, b in pairwise(widths[25:])]
    assert growth == pytest.approx([growth[0]] * 24)
    assert growth[0] > 0
    assert widths[25] - growth[0] / 2 == pytest.approx(0.001)  # it begins with the slope that the first half had
    assert [level.t.item() for level in schedules.linear_quadratic(RectifiedFlow(), 1)] == [1, 0]
    uniform = schedules.linear_quadratic(RectifiedFlow(), 7, fine=7)
    assert [level.t.item() for level in uniform] == pytest.approx([1 - i / 7 for i in range(8)])


def test_what_is_left_out_is_the_range_that_the_process_is_trained_on():
    assert ratios(schedules.karras(EDMProcess(0.01, 50.0), 4))[::3] == pytest.approx([50, 0.01])
    assert ratios(schedules.exponential(VE(), 4))[::3] == pytest.approx([50, 0.01])
    first, last = DISCRETE.at(1.0), DISCRETE.at(1 / 1000)
    assert ratios(schedules.karras(DISCRETE, 4))[::3] == pytest.approx(
        [float(first.sigma / first.alpha), float(last.sigma / last.alpha)]
    )
    schedule = schedules.uniform_log_snr(DISCRETE, 4)
    assert ratios(schedule)[::4] == pytest.approx(ratios(schedules.karras(DISCRETE, 4))[::3])


def test_a_users_own_tables():
    assert [level.t.item() for level in schedules.from_times(LinearVP(), [1.0, 0.4, 0.0])] == [1.0, 0.4, 0.0]
    assert ratios(schedules.from_sigmas(CosineVP(), [3.0, 0.5, 0.0])) == pytest.approx([3, 0.5, 0])
    times = [torch.tensor([t, 0.2], dtype=torch.float64) for t in (0.9, 0.5, 0.2)]
    assert torch.equal(schedules.from_times(RectifiedFlow(), times)[1].sigma, times[1])


def test_onto_data_ends_every_part_once():
    schedule = schedules.uniform(VE(), 3)
    assert schedule[-1].sigma == pytest.approx(0.01)
    clean = schedule.onto_data()
    assert len(clean) == 5
    assert clean[-1] == DATA
    assert clean.onto_data() is clean
    assert len(schedules.uniform(CosineVP(), 3).onto_data()) == 4
    tokens = schedules.from_times(VE(), [torch.tensor([1.0, 0.5]), torch.tensor([0.3, 0.0])]).onto_data()
    assert len(tokens) == 3
    assert torch.equal(tokens[-1].sigma, torch.zeros(2))
    mask = torch.tensor([True, False]).reshape(1, 2)
    assert len(schedules.uniform(CosineVP(), 3).map(lambda level: partly(level, mask)).onto_data()) == 4


def test_a_run_starts_with_the_deviation_of_the_process():
    noise = torch.ones(2)
    assert schedules.uniform(LinearVP(), 3).start(noise).tolist() == [1, 1]
    assert schedules.uniform(RectifiedFlow(), 3).start(noise).tolist() == [1, 1]
    assert schedules.karras(EDMProcess(), 3).start(noise).tolist() == [80, 80]
    tokens = schedules.from_times(EDMProcess(), [torch.tensor([1.0, 0.5]), torch.tensor([0.3, 0.1])])
    assert tokens.start(noise).tolist() == [80, 40]


@pytest.mark.parametrize("process", PROCESSES)
def test_levels_between_are_found_by_their_log_snr(process):
    schedule = schedules.karras(PROCESSES[process], 3, sigma_min=0.1, sigma_max=10)
    assert schedule.at(0.7).half_log_snr == pytest.approx(0.7)
    assert schedule.at(math.inf) == DATA
    some = schedule.at(torch.tensor([[0.7, math.inf], [-1.0, 0.7]], dtype=torch.float64))
    assert some.half_log_snr.tolist() == [[pytest.approx(0.7), math.inf], [pytest.approx(-1), pytest.approx(0.7)]]
    assert all(field.shape == (2, 2) for field in some)


def test_pure_noise_is_found_where_the_process_reaches_it():
    schedule = schedules.uniform(RectifiedFlow(), 2)
    assert schedule.at(-math.inf).alpha == 0
    with pytest.raises(RecipeError, match="outside of LinearVP"):
        schedules.uniform(LinearVP(), 2).at(-math.inf)


def test_every_schedule_has_a_name():
    for name in schedules.SCHEDULES:
        process = EDMProcess() if name not in ("leading", "trailing", "quadratic") else DISCRETE
        schedule = schedules.get_schedule(process, name, 5)
        assert len(schedule) == 6
        for process in PROCESSES.values():
            with pytest.raises(RecipeError, match="at least 1 network call"):
                schedules.get_schedule(process, name, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schedules.from_times(LinearVP(), [0.9, 0.3, 0.5]),
            r"level 2 \(t = 0.5\) must be below level 1 \(t = 0.3\)",
        ),
        (
            lambda: schedules.from_times(LinearVP(), [0.9, 0.9]),
            r"level 1 \(t = 0.9\) must be below level 0 \(t = 0.9\)",
        ),
        (
            lambda: schedules.from_times(EDMProcess(), [torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.2])]),
            "level 1 .* must be",
        ),
        (lambda: schedules.from_times(LinearVP(), [0.9]), "a schedule of 1 levels"),
        (lambda: schedules.Schedule(VE(), [VE().at(0.0), DATA, DATA]), "level 2 .* must be below"),
        (
            lambda: schedules.from_sigmas(EDMProcess(), [3.0, 5.0]),
            "sigma 1 = 5.0: a schedule goes from noise to data, so below 3.0",
        ),
        (lambda: schedules.from_sigmas(EDMProcess(), [3.0, -1.0]), "sigma 1 = -1.0: must be a number of at least 0"),
        (lambda: schedules.from_sigmas(LinearVP(), [500.0, 0.0]), "sigma / alpha = 500 is outside of LinearVP"),
        (lambda: schedules.from_sigmas(VE(), [1.0, 0.001]), "sigma / alpha = 0.001 is outside of VE"),
        (lambda: schedules.from_sigmas(DISCRETE, [1.0, 0.001]), "sigma / alpha = 0.001 is outside of DiscreteVP"),
        (lambda: schedules.karras(CosineVP(), 5), "CosineVP reaches alpha = 0.*give this schedule a noisy end"),
        (lambda: schedules.exponential(RectifiedFlow(), 5), "RectifiedFlow reaches alpha = 0"),
        (lambda: schedules.uniform_log_snr(RectifiedFlow(), 5), "RectifiedFlow reaches alpha = 0"),
        (lambda: schedules.uniform_log_snr(EDMProcess(), 5, low=2, high=1), "low = 2, high = 1: .* must rise"),
        (lambda: schedules.karras(EDMProcess(), 5, sigma_min=5, sigma_max=1), "must be 0 < sigma_min <= sigma_max"),
        (lambda: schedules.karras(EDMProcess(), 5, sigma_min=0), "must be 0 < sigma_min"),
        (lambda: schedules.karras(EDMProcess(), 5, rho=0), "rho = 0: must be above 0; 7 is usual"),
        (lambda: schedules.polyexponential(EDMProcess(), 5, rho=-1), "rho = -1: must be above 0; 1 is usual"),
        (lambda: schedules.linear_quadratic(RectifiedFlow(), 1001), "follows a run of 1000 steps, so at most 1000"),
        (lambda: schedules.get_schedule(EDMProcess(), "karas", 5), "nearest: 'karras'"),
    ],
)
def test_schedules_that_cannot_be_say_why(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_levels_fall_in_noise_where_the_times_do_not_tell():
    schedule = schedules.Schedule(VE(), [VE().at(0.0), NoiseLevel(0.0, 1.0, 0.0)])
    assert len(schedule) == 2


# ---------------------------------------------------------------------- those of published schedulers


def indices(schedule: schedules.Schedule) -> list[float]:
    return [DISCRETE.timestep(level) for level in schedule]


def test_indices_may_begin_at_1_and_end_at_0():
    assert indices(schedules.get_schedule(DISCRETE, "leading-1", 10)) == [*range(901, 0, -100), -1]
    assert indices(schedules.get_schedule(DISCRETE, "latent-diffusion", 10)) == [*range(901, 0, -100), 0]
    assert schedules.get_schedule(DISCRETE, "latent-diffusion", 10)[-1].sigma > 0
    with pytest.raises(RecipeError, match="index 1000: this process has 0 to 999"):
        schedules.get_schedule(DISCRETE, "leading-1", 1000)


def test_both_ends_of_a_table_are_evaluated():
    assert indices(schedules.get_schedule(DISCRETE, "both-ends", 10)) == pytest.approx([*range(999, -1, -111), -1])
    assert indices(schedules.get_schedule(DISCRETE, "both-ends", 3)) == pytest.approx([999, 499.5, 0, -1])


def test_the_last_call_of_uniform_above_is_shifted_twice():
    times = [level.t.item() for level in schedules.get_schedule(TimeShift(RectifiedFlow(), 3.0), "uniform-above", 5)]
    last = 3 * 0.001 / (1 + 2 * 0.001)
    assert times == pytest.approx([1 + part * (last - 1) / 4 for part in range(5)] + [0])
    assert schedules.uniform_above(RectifiedFlow(), 5)[-2].t == pytest.approx(0.001)


def test_a_shift_follows_the_number_of_tokens():
    process = DynamicShift(RectifiedFlow(), 1.0)
    assert process.resized((16, 32, 32)).shift == pytest.approx(math.exp(0.5))  # 256 tokens
    assert process.resized((16, 128, 128)).shift == pytest.approx(math.exp(1.15))  # 4096
    assert process.resized((16, 64, 136)).shift == pytest.approx(math.exp(0.5 + 0.65 * (32 * 68 - 256) / 3840))
    plain = DynamicShift(RectifiedFlow(), 1.0, exponential=False, patch=1).resized((4, 16, 16))
    assert plain.shift == pytest.approx(0.5)
    assert plain.at(0.5) == TimeShift(RectifiedFlow(), 0.5).at(0.5)
