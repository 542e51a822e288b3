"""Every sampler keeps what its entry in the registry declares; a new one is tested by being listed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.core.mixture import MEANS, SPREADS, WEIGHTS, draw, exact
from tests.core.path import affine_moments, consistent, marginal, quantile, quick
from unveil.core import prediction as predictions
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process, betas
from unveil.core.rng import START, BrownianPath, Noise, SampleRNG
from unveil.core.samplers import (
    CoefficientTable,
    Plan,
    SamplerSpec,
    SamplerState,
    SamplingProgress,
    get_sampler,
    run,
    sampler_specs,
)
from unveil.core.schedules import Schedule
from unveil.core.sde import SubVP
from unveil.core.ve import VE, EDMProcess
from unveil.errors import Cancelled, RecipeError
from unveil.types import NoiseLevel, like

PROCESSES: dict[str, Process] = {
    "cosine-vp": CosineVP(),
    "linear-vp": LinearVP(),
    "discrete": DiscreteVP(betas("linear", 1000)),
    "ve": VE(),
    "edm": EDMProcess(),
    "rectified-flow": RectifiedFlow(),
    "sub-vp": SubVP(),
    "shifted-flow": TimeShift(RectifiedFlow(), 3.0),
}
DATA = NoiseLevel(0.0, 1.0, 0.0)

every = pytest.mark.parametrize("entry", sampler_specs().values(), ids=sampler_specs())


def those(keep: Callable[[SamplerSpec], object]) -> pytest.MarkDecorator:
    """The entries of which something is true."""
    kept = {name: entry for name, entry in sampler_specs().items() if keep(entry)}
    return pytest.mark.parametrize("entry", kept.values(), ids=list(kept))


def fresh(size: int) -> Noise:
    """Noise by row, float64 and the same in every run."""
    return lambda row, draw=0: torch.randn(size, generator=torch.Generator().manual_seed(row), dtype=torch.float64)


def step_for(entry: SamplerSpec) -> DenoiseFn:
    """The exact step that the entry asks for."""
    return consistent if entry.denoiser == "consistency" else exact


def log_snr_schedule(process: Process, steps: int, low: float = -3.5, high: float = 4.0) -> Schedule:
    return schedules.uniform_log_snr(process, steps, low=low, high=high)


def fitted(errors: list[float]) -> float:
    """The order over runs of which each has twice the steps of the one before."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


# ---------------------------------------------------------------------- order


@those(lambda entry: entry.order is not None and not entry.stochastic)
def test_the_error_falls_at_the_declared_order(entry):
    share = torch.special.ndtr(torch.linspace(-2.5, 2.5, 60, dtype=torch.float64))

    def error(steps: int) -> float:
        schedule = log_snr_schedule(CosineVP(), steps, -4, 5)
        x = run(entry.plan(schedule), quick, quantile(share, schedule[0]))
        return (x - quantile(share, schedule[-1])).square().mean().sqrt().item()

    errors = [error(steps) for steps in (32, 64, 128)]
    assert fitted(errors) > entry.order - 0.2, f"errors {errors} fit order {fitted(errors):.2f}"


@those(lambda entry: entry.order is not None and entry.stochastic)
def test_mean_and_variance_come_near_at_the_declared_order(entry):
    def error(steps: int) -> float:
        schedule = log_snr_schedule(CosineVP(), steps)
        plan = entry.plan(schedule)
        assert isinstance(plan, CoefficientTable), (
            "a weak order is measured on a table: declare order=None, or test it elsewhere"
        )
        mean, variance = affine_moments(plan, schedule[0], 0.4, 0.5)
        end = schedule[-1]
        return abs(mean - 0.4 * end.alpha) + abs(variance - (0.5 * end.alpha) ** 2 - end.sigma**2)

    errors = [error(steps) for steps in (64, 128, 256)]
    assert fitted(errors) > entry.order - 0.2, f"errors {errors} fit order {fitted(errors):.2f}"


@cache
def increments(count: int) -> tuple[Tensor, list[float]]:
    """One Brownian path at the levels of a fine schedule, and its clock there."""
    schedule = log_snr_schedule(CosineVP(), count)
    path = BrownianPath(SampleRNG(5, range(1000)), ())
    clock = [float(level.alpha**2) for level in schedule]
    values = [torch.zeros(1000, dtype=torch.float64)]
    for k in range(count):
        width = clock[k + 1] - clock[k]
        values.append(values[-1] + math.sqrt(width) * path.increment(schedule[k], schedule[k + 1]).double())
    return torch.stack(values), clock


def fixed_path(table: CoefficientTable, count: int) -> Noise:
    """The normalised increments of that path over the spans of a table; every end is a level of the fine schedule."""
    values, clock = increments(count)

    def noise(row: int, draw: int = 0) -> Tensor:
        span = table.rows[row].span
        assert span is not None, "a strong order needs the span of each row that adds noise"
        times = [float(level.alpha**2) for level in span]
        ends = [min(range(count + 1), key=lambda k: abs(clock[k] - time)) for time in times]
        assert all(abs(clock[k] - time) < 1e-9 for k, time in zip(ends, times, strict=True))
        return (values[ends[1]] - values[ends[0]]) / math.sqrt(clock[ends[1]] - clock[ends[0]])

    return noise


@pytest.mark.slow
@those(lambda entry: entry.strong_order is not None)
def test_the_error_on_one_brownian_path_falls_at_the_declared_strong_order(entry):
    generator = torch.Generator().manual_seed(4)
    start = draw(1000, seed=3), torch.randn(1000, generator=generator, dtype=torch.float64)

    def sample(steps: int) -> Tensor:
        schedule = log_snr_schedule(CosineVP(), steps)
        table = entry.plan(schedule)
        x = schedule[0].alpha * start[0] + schedule[0].sigma * start[1]
        return run(table, quick, x, noise=fixed_path(table, 1024))

    reference = sample(512)
    errors = [(sample(steps) - reference).abs().mean().item() for steps in (16, 32, 64)]
    assert fitted(errors) > entry.strong_order - 0.2, f"errors {errors} fit order {fitted(errors):.2f}"


# ---------------------------------------------------------------------- distribution


@pytest.mark.slow
@those(lambda entry: entry.stochastic and entry.fine_options is not None)
def test_mean_and_variance_of_20000_samples_are_the_mixtures(entry):
    # first order needs many steps; a consistency function is exact in any number
    calls = {1: 1000, None: 300}.get(entry.order, 150) if entry.denoiser == "mean" else 3
    schedule = log_snr_schedule(CosineVP(), max(round(calls / max(entry.calls or 1, 1)), 3)).onto_data()
    plan = entry.build(schedule, **{**entry.options, **entry.fine_options})
    size = 20_000
    generator = torch.Generator().manual_seed(10**6)  # none of the rows' seeds
    x = schedule[0].alpha * draw(size, seed=10**7) + schedule[0].sigma * torch.randn(
        size, generator=generator, dtype=torch.float64
    )
    x = run(plan, consistent if entry.denoiser == "consistency" else quick, x, noise=fresh(size))
    mean = (WEIGHTS * MEANS).sum()
    central = MEANS - mean
    variance = (WEIGHTS * (SPREADS**2 + central**2)).sum()
    fourth = (WEIGHTS * (central**4 + 6 * central**2 * SPREADS**2 + 3 * SPREADS**4)).sum()
    assert abs(x.mean() - mean) < 4.5 * (variance / size).sqrt(), "mean"
    assert abs(x.var() - variance) < 4.5 * ((fourth - variance**2) / size).sqrt(), "variance"


# ---------------------------------------------------------------------- processes


def on(process: Process, entry: SamplerSpec, clean: bool) -> Tensor:
    """A sample in x0's own scale, from one start and on one log-SNR schedule."""
    schedule = log_snr_schedule(process, 12, -3.9, 3.0)
    schedule = schedule.onto_data() if clean else schedule
    noise = torch.linspace(-2, 2, 40, dtype=torch.float64)
    x = run(entry.plan(schedule), step_for(entry), schedule[0].alpha * 0.2 + schedule[0].sigma * noise, noise=fresh(40))
    return x / schedule[-1].alpha


@pytest.mark.parametrize("clean", [False, True], ids=["to-a-level", "onto-data"])
@those(lambda entry: entry.domain == "log-snr")
def test_the_process_does_not_matter_on_one_log_snr_schedule(entry, clean):
    want = on(PROCESSES["cosine-vp"], entry, clean)
    for process in PROCESSES.values():
        torch.testing.assert_close(on(process, entry, clean), want, rtol=0, atol=1e-9)


@those(lambda entry: entry.domain == "time")
def test_the_process_matters_where_the_entry_says_so(entry):
    want = on(PROCESSES["cosine-vp"], entry, False)
    assert max((on(process, entry, False) - want).abs().max() for process in PROCESSES.values()) > 1e-6


@every
@pytest.mark.parametrize("process", PROCESSES)
def test_whole_runs_of_any_length_are_finite_or_refused_by_name(entry, process):
    for steps in (1, 2, 7):
        schedule = schedules.uniform(PROCESSES[process], steps).onto_data()
        if schedule[0].alpha == 0 and entry.start == "finite":
            with pytest.raises(RecipeError, match="alpha"):
                run(entry.plan(schedule), step_for(entry), schedule.start(fresh(9)(START % 7)), noise=fresh(9))
            continue
        x = run(entry.plan(schedule), step_for(entry), schedule.start(fresh(9)(0)), noise=fresh(9))
        assert x.isfinite().all()


@every
def test_the_last_step_onto_clean_data_leaves_nothing_but_the_estimate(entry):
    def settled(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.full_like(x, 0.7), x, level)

    for name, process in PROCESSES.items():
        even = schedules.uniform(process, 3).onto_data()
        finite = entry.start == "any" or even[0].alpha > 0
        for schedule in [schedules.uniform_log_snr(process, 6, low=-3).onto_data(), *([even] if finite else [])]:
            x = run(entry.plan(schedule), settled, schedule.start(fresh(9)(0)), noise=fresh(9))
            residual = (x - 0.7).abs().max().item()
            assert residual < 1e-9, f"{name}, from t = {schedule[0].t:.3g}: {residual:.3g} is left"


@those(lambda entry: entry.domain == "time")
def test_parts_that_reach_clean_data_before_others_are_the_estimate_there(entry):
    def settled(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.full_like(x, 0.7), x, level)

    times = [[0.9, 0.9], [0.4, 0.7], [0.0, 0.5], [0.0, 0.2], [0.0, 0.0]]
    levels = [torch.tensor([at], dtype=torch.float64) for at in times]
    schedule = schedules.from_times(TimeShift(RectifiedFlow(), 3.0), levels)
    x = run(entry.plan(schedule), settled, fresh(2)(0)[None], noise=lambda row, draw=0: fresh(2)(row)[None])
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- samples, progress, resuming


def smooth(x: Tensor, level: NoiseLevel) -> Estimate:
    """A network's estimate, which is computed when it is used."""
    return Estimate.solved(predictions.solve(predictions.eps, level), x, torch.sin(x) + 0.3 * x)


def batch_of(entry: SamplerSpec, samples: list[int]) -> Tensor:
    streams = SampleRNG(11, samples)
    schedule = schedules.uniform_log_snr(LinearVP(), 6, low=-3, high=3)
    return run(entry.plan(schedule), smooth, schedule.start(streams.normal((2, 3), START)), noise=streams.bind((2, 3)))


@every
def test_one_sample_is_the_same_alone_and_among_eight(entry):
    assert torch.equal(SampleRNG(11, [5]).normal((2, 3), 4), SampleRNG(11, range(8)).normal((2, 3), 4)[5:6])
    together = batch_of(entry, list(range(8)))
    torch.testing.assert_close(batch_of(entry, [5]), together[5:6], rtol=1e-5, atol=1e-6)
    assert together.dtype == torch.float32


def setting(entry: SamplerSpec) -> tuple[Plan, Tensor, Noise]:
    schedule = log_snr_schedule(CosineVP(), 6).onto_data()
    return (
        entry.plan(schedule),
        torch.linspace(-9, 9, 20, dtype=torch.float64).reshape(4, 5),
        lambda row, draw=0: fresh(20)(row).reshape(4, 5),
    )


def copied(state: SamplerState) -> SamplerState:
    past = tuple(tensor.clone() for tensor in state.past)
    return state._replace(
        x=state.x.clone(), past=past, saved_x=None if state.saved_x is None else state.saved_x.clone()
    )


@every
def test_progress_shows_previews_and_changes_nothing(entry):
    plan, x, noise = setting(entry)
    before = x.clone()
    silent = run(plan, smooth, x, noise=noise)
    assert torch.equal(x, before)
    seen: list[SamplingProgress] = []

    def watch(shown: SamplingProgress) -> None:
        assert shown.estimate.x0.shape == x.shape
        assert shown.estimate.x0.isfinite().all()
        assert shown.total == plan.total
        seen.append(shown)

    assert torch.equal(run(plan, smooth, x, noise=noise, on_step=watch), silent)
    numbers = [shown.state.number for shown in seen]
    assert numbers == sorted(set(numbers))
    assert plan.total in (numbers[-1], None)


@every
def test_a_run_that_was_stopped_goes_on_to_the_same_end(entry):
    plan, x, noise = setting(entry)
    whole = run(plan, smooth, x, noise=noise)
    kept: list[SamplerState] = []
    for stop in (1, 2, 5):

        def watch(shown: SamplingProgress, stop: int = stop) -> None:
            if len(kept) == stop:
                raise Cancelled("enough")
            kept.append(copied(shown.state))

        kept.clear()
        with pytest.raises(Cancelled):
            run(plan, smooth, x, noise=noise, on_step=watch)
        assert torch.equal(run(plan, smooth, kept[-1], noise=noise), whole)


def calls_of(entry: SamplerSpec, steps: int) -> int:
    calls = 0

    def counted(x: Tensor, level: NoiseLevel) -> Estimate:
        nonlocal calls
        calls += 1
        return exact(x, level)

    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    run(entry.plan(log_snr_schedule(CosineVP(), steps)), counted, x, noise=fresh(5) if entry.stochastic else None)
    return calls


@every
def test_the_cost_and_the_need_of_noise_are_as_declared(entry):
    if entry.stochastic:
        x = torch.linspace(-2, 2, 5, dtype=torch.float64)
        with pytest.raises(RecipeError, match="this sampler adds noise"):
            run(entry.plan(log_snr_schedule(CosineVP(), 3)), exact, x)
    if entry.calls is not None:
        # the calls of more steps: what a beginning costs once is not a part of a step
        assert calls_of(entry, 16) - calls_of(entry, 10) == pytest.approx(6 * entry.calls)
    else:
        calls_of(entry, 10)


# ---------------------------------------------------------------------- a level for each token


TOKENS = {
    "known": lambda part: 0.0,
    "plain": lambda part: 0.9 * (1 - part),
    "early": lambda part: 0.9 * max(1 - 2 * part, 0.0),
    "late": lambda part: 0.8 * min(2 - 2 * part, 1.0),
    "waiting": lambda part: 0.3,
}


def token_noise(plan: Plan, path: BrownianPath, skipped: int) -> Noise:
    """The same noise for a token alone and among others: by its span, or by the number of the row."""

    def noise(row: int, draw: int = 0) -> Tensor:
        spanned = isinstance(plan, CoefficientTable) and plan.rows[row].span is not None
        return (path.along(plan)(row) if spanned else path.streams.normal(path.shape, row + skipped)).double()

    return noise


@every
def test_tokens_with_levels_of_their_own_are_sampled_as_if_alone(entry):
    process, steps, count = RectifiedFlow(), 8, 3
    path = BrownianPath(SampleRNG(3, range(count)), (len(TOKENS),))
    tracks = [[track(k / steps) for k in range(steps + 1)] for track in TOKENS.values()]
    times = [torch.tensor([at], dtype=torch.float64) for at in zip(*tracks, strict=True)]
    together = entry.plan(schedules.from_times(process, times))
    x = path.streams.normal(path.shape, START).double()
    got = run(together, by_token(step_for(entry)), x, noise=token_noise(together, path, 0))
    assert got.isfinite().all()
    for j, name in enumerate(TOKENS):
        moving = sorted(set(tracks[j]), reverse=True)
        if len(moving) == 1:
            assert torch.equal(got[:, j], x[:, j]), f"the {name} token moved"
        elif not entry.couples_parts:
            alone = entry.plan(schedules.from_times(process, moving))
            waited = tracks[j].index(moving[0], 0) if tracks[j][1] != tracks[j][0] else tracks[j].count(moving[0]) - 1
            rows = (together.total or 0) // steps
            want = run(alone, step_for(entry), x, noise=token_noise(alone, path, waited * rows))
            torch.testing.assert_close(got[:, j], want[:, j], rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def by_token(step: DenoiseFn) -> DenoiseFn:
    """The step with levels (1, T) of x (B, T), token by token, so that it need not know of tensors."""

    def tokens(x: Tensor, level: NoiseLevel) -> Estimate:
        columns = []
        for j in range(x.shape[1]):
            own = NoiseLevel(
                *(torch.as_tensor(v, dtype=torch.float64).expand(len(x), x.shape[1])[0, j].item() for v in level)
            )
            clean = own.sigma == 0
            columns.append(x[:, j] / own.alpha if clean else step(x[:, j].contiguous(), own).x0)
        return Estimate.of_x0(torch.stack(columns, 1), x, level)

    return tokens


# ---------------------------------------------------------------------- the registry itself


def test_every_entry_has_its_name_and_its_source():
    for name, entry in sampler_specs().items():
        assert entry.name == name
        assert len(entry.source) > 5
        assert get_sampler(name) is entry
        assert entry.stochastic or entry.strong_order is None


def test_an_unknown_sampler_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"sampler 'huen': no such sampler; nearest: 'heun'"):
        get_sampler("huen")


def test_the_quick_denoiser_and_the_path_are_exact():
    for level in (CosineVP().at(0.5), EDMProcess().at(0.3), LinearVP().at(0.01)):
        x = torch.linspace(-3, 3, 50, dtype=torch.float64) * float(like(level.sigma, torch.zeros(1)))
        torch.testing.assert_close(quick(x, level).x0, exact(x, level).x0, rtol=0, atol=1e-12)
        slope = (marginal(x + 1e-5, level) - marginal(x - 1e-5, level)).log() - math.log(2e-5)
        score = (marginal(x + 1e-4, level) - 2 * marginal(x, level) + marginal(x - 1e-4, level)) / 1e-8 / slope.exp()
        torch.testing.assert_close(score, -exact(x, level).eps / level.sigma, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(quantile(marginal(x, level), level), x, rtol=0, atol=1e-6)
    assert consistent(torch.zeros(1, dtype=torch.float64), DATA).x0.abs() < 1e-12
