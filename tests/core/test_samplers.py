"""Claims about samplers, proved on a mixture whose exact denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.mixture import DEVIATION, MEAN, draw, exact
from unveil.core import prediction, schedules
from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.prediction import fixed_large, fixed_small, learned_range
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas, partly
from unveil.core.rng import START, SampleRNG, key, keys
from unveil.core.samplers import SamplerState, ancestral, ddim, encode, run, slerp
from unveil.core.transition import Chain
from unveil.errors import Cancelled, RecipeError
from unveil.types import NoiseLevel

PROCESSES = {
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "discrete-linear": DiscreteVP(betas("linear", 1000)),
    "discrete-cosine": DiscreteVP(betas("cosine", 1000), interpolate="log-alpha"),
}


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def recorded(count: int, size: int = 500) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_ddims_error_falls_at_first_order(noise):
    process = CosineVP()

    def sample(steps: int) -> torch.Tensor:
        schedule = schedules.uniform_log_snr(process, steps, low=-4, high=5)
        return run(ddim(schedule), exact, schedule[0].sigma * noise)

    reference = sample(8192)
    errors = [(sample(steps) - reference).abs().mean().item() for steps in (64, 128, 256)]
    order = math.log2(errors[0] / errors[2]) / 2
    assert order > 0.8, f"errors {errors} fit order {order:.2f}"


def test_the_process_does_not_matter_on_one_log_snr_schedule(noise):
    results = []
    for process in PROCESSES.values():
        schedule = schedules.uniform_log_snr(process, 20, low=-3.9, high=3.0)
        results.append(run(ddim(schedule), exact, schedule[0].sigma * noise) / schedule[-1].alpha)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["x0", "eps", "v", "score", "flow", "edm-f"])
def test_the_prediction_does_not_matter(name, noise):
    chosen = {**prediction.PREDICTIONS, "edm-f": prediction.edm_f(0.5)}[name]
    process = LinearVP()

    class Exact(torch.nn.Module):
        def forward(self, x, t, condition):
            level = process.at(float(t[0]) / 1000)
            found, (a, b) = exact(x, level), chosen(level)
            return a * found.x0 + b * found.eps

    schedule = schedules.from_times(process, [0.95, 0.6, 0.4, 0.2, 0.05])
    got = run(ddim(schedule), Denoiser(Exact(), process, prediction=chosen), noise.clone())
    torch.testing.assert_close(got, run(ddim(schedule), exact, noise.clone()), rtol=0, atol=1e-5)  # index in float32


@pytest.mark.parametrize("process", ["discrete-linear", "cosine-vp"])
def test_ddim_at_eta_1_is_the_ancestral_chain_with_fixed_small_variance(process, noise):
    schedule = schedules.uniform(PROCESSES[process], 40)
    zs = recorded(40)
    one = run(ddim(schedule, 1.0), exact, noise, noise=lambda k: zs[k])
    two = run(ancestral(schedule, fixed_small), exact, noise, noise=lambda k: zs[k])
    torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_a_respaced_chain_is_a_coarser_list_of_levels():
    process = DiscreteVP(betas("cosine", 400))
    schedule = schedules.respaced(process, "9,3")
    kept = schedules.respaced_indices(400, "9,3")
    acp = torch.cumprod(1 - process.betas, 0)[torch.tensor(kept)]
    own = 1 - acp / torch.cat([torch.ones(1, dtype=torch.float64), acp[:-1]])  # betas of the respaced chain
    respaced = DiscreteVP(own)
    short = Chain([respaced.at(i / 12) for i in range(12, -1, -1)])
    for mine, theirs in zip(Chain(schedule), short, strict=True):
        for field in ("beta", "c0", "ct", "var", "floor"):
            assert getattr(mine, field).item() == pytest.approx(getattr(theirs, field).item(), rel=1e-9)


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_sampling_finds_the_mixture(process, variance):
    streams = SampleRNG(3, range(40))
    schedule = schedules.uniform(PROCESSES[process], 300)
    start = schedule.start(streams.normal((100,), START).double())
    x = run(ancestral(schedule, variance), exact, start, noise=streams.bind((100,)))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert x.std().item() == pytest.approx(DEVIATION, abs=0.04)


def test_a_learned_variance_is_between_its_bounds_and_ends_are_fixed_ones():
    process = DiscreteVP(betas("linear", 50))
    schedule = schedules.trailing(process, 10)
    zs, x = recorded(10, 6), torch.linspace(-1, 1, 6, dtype=torch.float64)

    def speaking(value: float):
        return lambda x, level: Estimate.of_x0(0.3 * x, x, level, torch.full_like(x, value))

    for value, fixed in ((-1.0, fixed_small), (1.0, fixed_large)):
        step = speaking(value)
        got = run(ancestral(schedule, learned_range), step, x.clone(), noise=lambda k: zs[k])
        want = run(ancestral(schedule, fixed), step, x.clone(), noise=lambda k: zs[k])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_shift_moves_the_mean_by_variance_times_gradient():
    process = DiscreteVP(betas("linear", 20))
    schedule = schedules.at_indices(process, [10])
    step = lambda x, level: Estimate.of_x0(0 * x, x, level)  # noqa: E731
    x = torch.zeros(4, dtype=torch.float64)
    plain = run(ancestral(schedule, fixed_large), step, x)
    moved = run(ancestral(schedule, fixed_large, shift=lambda x, level: torch.ones_like(x)), step, x)
    variance = fixed_large(Chain(schedule)[0], None).value
    torch.testing.assert_close(moved - plain, torch.full_like(x, variance))


def test_encoding_inverts_decoding_better_with_more_steps():
    x0 = draw(200)
    process = PROCESSES["discrete-linear"]
    errors = []
    for steps in (10, 100, 1000):
        schedule = schedules.leading(process, steps)
        noise = run(encode(schedule), exact, x0.clone())
        errors.append((run(ddim(schedule), exact, noise) - x0).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert errors[2] < 0.01


def test_channels_left_as_context_do_not_move_and_do_not_disturb():
    process = CosineVP()
    noised = torch.tensor([True, False, True]).reshape(1, 3, 1)
    schedule = schedules.uniform(process, 12)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    for sampler in (ddim, lambda g: ddim(g, 1.0), ancestral):
        zs = [torch.randn(5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(12)]
        part = run(
            sampler(schedule.map(lambda level: partly(level, noised))),
            exact_or_kept,
            x.clone(),
            noise=lambda k, zs=zs: zs[k],
        )
        plain = run(sampler(schedule), exact, x[:, ::2].clone(), noise=lambda k, zs=zs: zs[k][:, ::2])
        assert torch.equal(part[:, 1], x[:, 1])
        torch.testing.assert_close(part[:, ::2], plain, rtol=0, atol=1e-12)


def exact_or_kept(x: torch.Tensor, level: NoiseLevel) -> Estimate:
    """The exact denoiser where there is noise; clean parts are what they are."""
    safe = level._replace(sigma=torch.where(level.sigma == 0, 1e-3, level.sigma))
    clean = level.sigma.expand_as(x) == 0
    x0 = torch.where(clean, x, exact(x, safe).x0)
    return Estimate(x0, (x - level.alpha * x0) / safe.sigma)


def test_one_sample_is_the_same_alone_and_in_a_batch():
    process = DiscreteVP(betas("cosine", 100))
    schedule = schedules.trailing(process, 10)

    def sample(numbers: list[int]) -> torch.Tensor:
        streams = SampleRNG(11, numbers)
        start = schedule.start(streams.normal((2, 3), START))
        return run(
            ddim(schedule, 1.0), lambda x, at: Estimate.of_x0(x.tanh(), x, at), start, noise=streams.bind((2, 3))
        )

    together = sample(list(range(8)))
    assert torch.equal(SampleRNG(11, [5]).normal((2, 3), 4), SampleRNG(11, range(8)).normal((2, 3), 4)[5:6])
    torch.testing.assert_close(sample([5]), together[5:6], rtol=1e-5, atol=1e-6)


def test_streams_differ_in_every_part_of_their_key():
    one = SampleRNG(1, [2]).normal((4,), 3, 4)
    for other in (SampleRNG(0, [2]).normal((4,), 3, 4), SampleRNG(1, [3]).normal((4,), 3, 4),
                  SampleRNG(1, [2]).normal((4,), 2, 4), SampleRNG(1, [2]).normal((4,), 3, 5)):  # fmt: skip
        assert not torch.allclose(one, other)
    assert not torch.allclose(SampleRNG(1, [2]).normal((4,), -1), SampleRNG(1, [2]).normal((4,), 1))
    u = SampleRNG(0, range(20000)).uniform(0)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.01)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_noise_is_standard_normal_and_no_two_streams_meet():
    """100,000 streams: a generator seeded with 32 bits would repeat about one of them."""
    noise = SampleRNG(0, range(100_000)).normal((9,), 5).double()
    assert noise.mean().abs() < 0.005
    assert noise.std().item() == pytest.approx(1, abs=0.003)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.03)
    assert (noise.abs() > 1.959964).double().mean().item() == pytest.approx(0.05, abs=0.001)
    assert torch.corrcoef(noise.T).sub(torch.eye(9)).abs().max() < 0.015
    assert len(noise[:, :3].unique(dim=0)) == 100_000
    assert len(SampleRNG(0, range(1)).normal((), 0).shape) == 1
    assert SampleRNG(0, [3]).normal((0,), 0).shape == (1, 0)


def test_keys_of_a_batch_are_those_of_its_samples():
    many = keys(7, [3, -1, 2**63], -1, 4)
    assert [int(one) for one in many] == [key(7, n, -1, 4) for n in (3, -1, 2**63)]


def test_a_run_left_half_way_goes_on_to_the_same_end(noise):
    schedule = schedules.uniform(LinearVP(), 20)
    whole = run(ddim(schedule), exact, noise.clone())
    kept: list[SamplerState] = []

    def stop(shown):
        kept.append(shown.state._replace(x=shown.state.x.clone()))
        if shown.state.number == 7:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run(ddim(schedule), exact, noise.clone(), on_step=stop)
    assert torch.equal(run(ddim(schedule), exact, kept[-1]), whole)


def test_a_run_does_not_write_into_the_noise_it_was_given(noise):
    before = noise.clone()
    run(ddim(schedules.uniform(LinearVP(), 3)), exact, noise)
    assert torch.equal(noise, before)


def test_slerp_keeps_the_length_of_noise():
    a, b = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5).norm(dim=1) / a.norm(dim=1)
    assert ((middle > 0.9) & (middle < 1.1)).all()
    assert torch.allclose(slerp(a, a, 0.3), a)


def test_published_spacings():
    assert schedules.respaced_indices(1000, "ddim25") == list(range(0, 1000, 40))
    assert schedules.respaced_indices(300, "10,15,20")[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    fast = schedules.respaced_indices(1000, "fast27")
    assert len(fast) == 27
    assert fast[-1] == 997
    assert len(schedules.leading(PROCESSES["discrete-linear"], 7)) == 8  # always the requested calls, and the data
    assert PROCESSES["discrete-linear"].timestep(schedules.trailing(PROCESSES["discrete-linear"], 9)[0]) == 999
    for steps in (1, 3, 50, 999, 1000):
        for make in (schedules.leading, schedules.trailing, schedules.uniform):
            assert len(make(PROCESSES["discrete-linear"], steps)) == steps + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: schedules.uniform(p, 0), "at least 1 network call"),
        (lambda p: schedules.respaced(p, "10;20"), "write '250'"),
        (lambda p: schedules.respaced(p, "ddim300"), "no whole stride gives 300 of 1000"),
        (lambda p: schedules.respaced(p, "600,2"), "part 0 has 500 steps, 600 requested"),
        (lambda p: schedules.at_indices(p, [1000]), "index 1000: this process has 0 to 999"),
        (lambda p: schedules.leading(LinearVP(), 10), "LinearVP has no indices"),
        (lambda p: schedules.get_schedule(p, "trailin", 10), "nearest: 'trailing'"),
        (lambda p: schedules.trailing(p, 2000), "steps = 2000: this process has 1000"),
    ],
)
def test_mistaken_schedules_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make(PROCESSES["discrete-linear"])


def test_missing_noise_is_named(noise):
    with pytest.raises(RecipeError, match="this sampler adds noise: pass noise="):
        run(ddim(schedules.uniform(CosineVP(), 4), eta=1.0), exact, noise)
