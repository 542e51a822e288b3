"""DPM-Solver and DPM-Solver++: exponential integrators in log-SNR, single-step and multistep.

The linear part of the probability-flow ODE is solved exactly. The rest is the integral of x0 (DPM-Solver++) or eps
(DPM-Solver) with an exponential weight, for which each method fits a polynomial through its estimates. `of` selects x0
or eps; the coefficients of one are those of the other with alpha and sigma exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import as_tensor, level_by_level, where
from unveil.core.samplers.coefficients import (
    Of,
    Rule,
    between,
    check_order,
    delta_lambda,
    gains,
    linear_step,
    midpoint,
    steps_left,
    taylor,
)
from unveil.core.samplers.loop import ZERO, CoefficientTable, StepRow, in_any_part, in_order, rows_of, with_noise
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.samplers.runge_kutta import sigma_down
from unveil.core.samplers.stages import (
    clamp_level,
    inner_steps,
    last_noisy,
    last_stage_only,
    orders_for,
    single_steps,
    stages,
)
from unveil.core.schedules import Schedule, levels_of, stacked
from unveil.errors import RecipeError

# ---------------------------------------------------------------------- multistep


def dpm_multistep(
    schedule: Schedule, order: int = 2, *, of: Of = "x0", rule: Rule = midpoint, lower_below: float = 10
) -> CoefficientTable:
    """DPM-Solver of order 1 to 3 from the estimates of earlier steps: one call a step.

    Args:
        schedule: Schedule from noise to data; with `of` "eps" it begins at alpha > 0.
        order: Order of the solver; the first steps have fewer estimates, and a lower order.
        of: "x0" is DPM-Solver++, "eps" DPM-Solver.
        rule: `midpoint` or `taylor` as published, or `exact`, whose third order is one.
        lower_below: Number of steps below which the last steps have order 2 and 1, for stability; 0: never.

    Raises:
        RecipeError: The order does not exist, or eps starts at alpha = 0.

    Source: Lu et al. 2022, algorithm 2, "2M" (arXiv:2211.01095); order 3 and lower_below: the authors' code.
    """
    return _multistep(schedule, order, of, rule, 0.0, 1.0, lower_below)


def dpmpp_2m(schedule: Schedule, *, lower_below: float = 10) -> CoefficientTable:
    """DPM-Solver++(2M): second order, one call a step, defined at both ends. See `dpm_multistep`."""
    return dpm_multistep(schedule, 2, lower_below=lower_below)


def dpmpp_3m(schedule: Schedule, *, lower_below: float = 10) -> CoefficientTable:
    """DPM-Solver++(3M) as published: a third estimate, at second order (see `taylor`). See `dpm_multistep`."""
    return dpm_multistep(schedule, 3, lower_below=lower_below)


def dpmpp_2m_sde(
    schedule: Schedule, eta: float = 1.0, *, rule: Rule = midpoint, noise_scale: float = 1.0
) -> CoefficientTable:
    """SDE-DPM-Solver++(2M): one call a step, with noise.

    Args:
        schedule: Schedule from noise to data.
        eta: 1 is the reverse SDE, 0 gives `dpmpp_2m`.
        rule: `midpoint`, or `taylor`, which k-diffusion calls "heun".
        noise_scale: Factor of the noise.

    Source: Lu et al. 2022, "SDE-DPM-Solver++(2M)" (arXiv:2211.01095); eta and the rules as in k-diffusion.
    """
    return _multistep(schedule, 2, "x0", rule, eta, noise_scale, 0)


def dpmpp_3m_sde(schedule: Schedule, eta: float = 1.0, *, noise_scale: float = 1.0) -> CoefficientTable:
    """DPM-Solver++(3M) with noise, as in k-diffusion. Arguments as `dpmpp_2m_sde`."""
    return _multistep(schedule, 3, "x0", taylor, eta, noise_scale, 0)


@level_by_level()
def _multistep(
    schedule: Schedule, order: int, of: Of, rule: Rule, eta: float, noise_scale: float, lower_below: float
) -> CoefficientTable:
    check_order(order, 3)
    now = linear_step(*schedule.steps, of, eta)
    weights, counts = gains(now, rule, order, order_per_step(schedule, order, lower_below))
    spans = list(pairwise(schedule)) if eta else None
    return CoefficientTable(
        rows_of(schedule[:-1], now.keep, weights, noise_scale * now.noise, spans=spans, counts=counts), of
    )


def order_per_step(schedule: Schedule, order: int, lower_below: float) -> Tensor:
    """The highest order of each step: that of the method, or with few steps the number of steps that remain.

    As published, the first steps, whose orders rise, are not lowered.
    """
    left = steps_left(schedule)
    rising = left[0] - left[:-1] + 1 < left[0].clamp(max=order)
    return where((left[0] < lower_below) & (left[:-1] < order) & ~rising, left[:-1], float(order))


# ---------------------------------------------------------------------- single-step


@level_by_level()
def dpm_singlestep(
    schedule: Schedule, orders: int | Sequence[int] = 2, *, of: Of = "x0", rule: Rule = last_stage_only
) -> CoefficientTable:
    """Single-step DPM-Solver of order 1 to 3: as many calls a step as its order.

    The inner calls are at halves or thirds of the step in log-SNR. A step that touches an end is of order 1.

    Args:
        schedule: Schedule from noise to data; with `of` "eps" it begins at alpha > 0.
        orders: Order of every step, or one for each step.
        of: "x0" is DPM-Solver++, "eps" DPM-Solver.
        rule: Rule of the last stage, `last_stage_only` or `exact` (published as "taylor").

    Raises:
        RecipeError: An order does not exist, or the number of orders is not the number of steps.

    Source: Lu et al. 2022, algorithms 1 and 2 (arXiv:2206.00927); x0: algorithm 1, "2S" (arXiv:2211.01095).
    """
    steps = len(schedule) - 1
    each = [orders] * steps if isinstance(orders, int) else list(orders)
    if len(each) != steps:
        raise RecipeError(f"{len(each)} orders for a schedule of {steps} steps: must be as many")
    for order in set(each):
        check_order(order, 3)
    steps = {order: inner_steps(schedule, schedule.steps, schedule[:-1], order, of, rule) for order in set(each)}
    return CoefficientTable(in_order([steps[order][number] for number, order in enumerate(each)]), of)


def dpmpp_2s(schedule: Schedule) -> CoefficientTable:
    """DPM-Solver++(2S): second order, two calls a step, the inner one half-way. See `dpm_singlestep`."""
    return dpm_singlestep(schedule, 2)


@level_by_level()
def dpm_singlestep_on_schedule(
    schedule: Schedule, orders: int | Sequence[int] = 3, *, of: Of = "x0", rule: Rule = last_stage_only
) -> CoefficientTable:
    """Single steps whose inner calls are at the schedule's own levels: one call for each of its steps.

    Args:
        schedule: Schedule from noise to data; with `of` "eps" it begins at alpha > 0.
        orders: Number of the schedule's steps that each single step takes. One number: `orders_for` that many calls.
        of: "x0" is DPM-Solver++, "eps" DPM-Solver.
        rule: Rule of the last stage, `last_stage_only` or `exact`.

    Raises:
        RecipeError: An order does not exist, or the orders do not sum to the schedule's steps.

    Source: Lu et al. 2022, algorithms 1 and 2 (arXiv:2206.00927), with the authors' code's inner levels.
    """
    steps = len(schedule) - 1
    each = orders_for(steps, orders) if isinstance(orders, int) else list(orders)
    if sum(each) != steps:
        raise RecipeError(f"orders {each} take {sum(each)} calls, but the schedule has {steps} steps")
    starts = list(accumulate(each, initial=0))[:-1]
    rows: dict[int, list[StepRow]] = {}  # by the number of the step's first level
    for order in set(each):
        check_order(order, 3)
        first = [start for start, own in zip(starts, each, strict=True) if own == order]
        levels = [[schedule[start + i] for start in first] for i in range(order + 1)]
        rows |= zip(first, single_steps(list(map(stacked, levels)), levels[:-1], of, rule), strict=True)
    return CoefficientTable(in_order([rows[start] for start in starts]), of)


@level_by_level()
def dpm_fast(
    schedule: Schedule, calls: int | None = None, *, eta: float = 0.0, noise_scale: float = 1.0
) -> CoefficientTable:
    """DPM-Solver-fast: steps of order 3 and a rest of lower order, uniform in log-SNR between the schedule's ends.

    Args:
        schedule: Schedule, of which only the ends count; a last step onto clean data is of order 1.
        calls: Number of network calls, without that of a last step onto clean data. None: one for each step of the
            schedule in total.
        eta: Share of the ancestral noise that is added after each step.
        noise_scale: Factor of the noise.

    Raises:
        RecipeError: alpha is 0 at the first level.

    Source: Lu et al. 2022, "DPM-Solver-fast" (arXiv:2206.00927); eta as in k-diffusion.
    """
    first, last = schedule[0], last_noisy(schedule)
    linear_step(first, schedule[-1], "eps")  # refuses alpha = 0
    onto_data = bool((last.sigma != schedule[-1].sigma).any())
    calls = len(schedule) - 1 - onto_data if calls is None else calls
    rows: list[StepRow] = []
    if bool((delta_lambda(first, last) != 0).any()):
        orders = orders_for(max(calls, 1), 3)
        ends = stacked([first]), stacked([last])
        shares = as_tensor([i / len(orders) for i in range(1, len(orders))])
        inner = levels_of(between(schedule, *ends, shares.reshape(-1, *(1,) * first.t.ndim))) if len(shares) else []
        levels = [first, *inner, last]
        here, there = stacked(levels[:-1]), stacked(levels[1:])
        down = clamp_level(sigma_down(here, there, eta)[0], ends[1]) if eta else there
        tables = here, down
        steps = {o: inner_steps(schedule, tables, levels[:-1], o, "eps", last_stage_only) for o in set(orders)}
        steps = [steps[order][number] for number, order in enumerate(orders)]
        up = noise_scale * elementary.sqrt(elementary.square(there.sigma) - elementary.square(down.sigma))
        rows = with_noise(steps, up, list(pairwise(levels))) if eta else in_order(steps)
    if onto_data or not rows:
        rows += stages([last, schedule[-1]], "eps", last_stage_only)
    return CoefficientTable(rows, "eps")


# ---------------------------------------------------------------------- with noise


@level_by_level()
def dpmpp_2s_ancestral(schedule: Schedule, eta: float = 1.0, *, noise_scale: float = 1.0) -> CoefficientTable:
    """DPM-Solver++(2S) to below each level, and noise up to it: two calls a step.

    Args:
        schedule: Schedule from noise to data.
        eta: 0 adds no noise, 1 that of the ancestral chain.
        noise_scale: Factor of the noise.

    Source: Lu et al. 2022, algorithm 1 (arXiv:2211.01095), in k-diffusion's ancestral form.
    """
    here, there = schedule.steps
    down, up = sigma_down(here, there, eta) if eta else (there, ZERO)
    steps = inner_steps(schedule, (here, down), schedule[:-1], 2, "x0", midpoint)
    return CoefficientTable(with_noise(steps, noise_scale * up, list(pairwise(schedule)) if eta else None))


@level_by_level()
def dpmpp_sde(
    schedule: Schedule, eta: float = 1.0, *, share: float = 0.5, noise_scale: float = 1.0
) -> CoefficientTable:
    """DPM-Solver++ of the reverse SDE, single-step: two calls a step, noise at each.

    Args:
        schedule: Schedule from noise to data.
        eta: 1 is the reverse SDE, 0 the ODE.
        share: Position of the inner call, as a part of the step in log-SNR, inside (0, 1].
        noise_scale: Factor of the noise.

    Raises:
        RecipeError: share is outside (0, 1].

    Source: k-diffusion's sample_dpmpp_sde, after Lu et al. 2022, algorithm 1 (arXiv:2211.01095).
    """
    if not 0 < share <= 1:
        raise RecipeError(f"share = {share}: the inner call must lie inside the step, in (0, 1]")
    here, there = schedule.steps
    down, up = sigma_down(here, there, eta) if eta else (there, ZERO)
    whole = linear_step(here, down)
    usable = delta_lambda(here, there) != 0
    middle = between(schedule, here, there, share)
    inner = levels_of(middle)
    low, added = sigma_down(here, middle, eta) if eta else (middle, ZERO)
    part = linear_step(here, low)
    spans = list(pairwise(schedule))
    firsts = list(zip(schedule, inner, strict=False))
    single = rows_of(schedule[:-1], whole.keep, (whole.gain,), noise_scale * up, spans=spans)
    first = rows_of(schedule[:-1], part.keep, (part.gain,), noise_scale * added, saves_x=True, spans=firsts)
    late = where(usable, 0.5 / share, 0.0)  # where the step touches an end, the inner level is its first one
    both = whole.gain * late, whole.gain * (1.0 - late)
    last = rows_of(inner, ZERO, both, noise_scale * up, saved_gain=whole.keep, spans=spans)
    splits = in_any_part(usable).tolist()
    steps = [[*two] if split else [one] for split, one, *two in zip(splits, single, first, last, strict=True)]
    return CoefficientTable(in_order(steps))


_DPM = "Lu et al. 2022 (arXiv:2206.00927), "
_DPMPP = "Lu et al. 2022 (arXiv:2211.01095), "
_EPS = {"of": "eps"}

SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec("dpmpp-2m", dpmpp_2m, _DPMPP + "algorithm 2", order=2),
    SamplerSpec("dpmpp-3m", dpmpp_3m, _DPMPP + "algorithm 2; 3M as in its code", order=2),
    SamplerSpec("dpm-solver-2m", dpm_multistep, _DPMPP + "algorithm 2 for eps", order=2, start="finite", options=_EPS),
    SamplerSpec(
        "dpm-solver-3m",
        dpm_multistep,
        _DPMPP + "algorithm 2 for eps; 3M as in its code",
        order=2,
        start="finite",
        options={"order": 3, **_EPS},
    ),
    SamplerSpec(
        "dpmpp-2m-sde", dpmpp_2m_sde, _DPMPP + "SDE-DPM-Solver++(2M)", order=2, strong_order=1, stochastic=True
    ),
    SamplerSpec(
        "dpmpp-2m-sde-heun",
        dpmpp_2m_sde,
        _DPMPP + "SDE-DPM-Solver++(2M)",
        order=2,
        strong_order=1,
        stochastic=True,
        options={"rule": taylor},
    ),
    SamplerSpec(
        "dpmpp-3m-sde",
        dpmpp_3m_sde,
        "k-diffusion's 3M SDE form of DPM-Solver++",
        order=2,
        strong_order=1,
        stochastic=True,
    ),
    SamplerSpec("dpmpp-2s", dpmpp_2s, _DPMPP + "algorithm 1", order=2, calls=2),
    SamplerSpec("dpmpp-3s", dpm_singlestep, _DPM + "algorithm 2, for x0", order=3, calls=3, options={"orders": 3}),
    SamplerSpec("dpm-solver-2", dpm_singlestep, _DPM + "algorithm 1", order=2, calls=2, start="finite", options=_EPS),
    SamplerSpec(
        "dpm-solver-3",
        dpm_singlestep,
        _DPM + "algorithm 2",
        order=3,
        calls=3,
        start="finite",
        options={"orders": 3, **_EPS},
    ),
    # the number of steps decides where their inner calls are, so that parts with fewer steps are not as if alone
    SamplerSpec("dpmpp-grouped", dpm_singlestep_on_schedule, _DPMPP + "algorithm 1", order=2, couples_parts=True),
    SamplerSpec("dpm-fast", dpm_fast, _DPM + "DPM-Solver-fast", order=2, start="finite", couples_parts=True),
    # strong order 1 in the limit, and 0.7 at 16 to 64 steps
    SamplerSpec(
        "dpmpp-sde",
        dpmpp_sde,
        "k-diffusion's SDE form of DPM-Solver++",
        order=1,
        strong_order=0.5,
        stochastic=True,
        calls=2,
    ),
    SamplerSpec(
        "dpmpp-2s-ancestral",
        dpmpp_2s_ancestral,
        "k-diffusion's ancestral form of DPM-Solver++(2S)",
        order=1,
        strong_order=1,
        stochastic=True,
        calls=2,
    ),
)
