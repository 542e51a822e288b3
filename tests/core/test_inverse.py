"""Claims about inverse problems, on Gaussian fields and mixtures whose posterior is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unveil.core import inverse, schedules
from unveil.core.denoiser import Estimate
from unveil.core.prediction import learned_range
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas
from unveil.core.rng import START, Noise, SampleRNG
from unveil.core.samplers import Plan, ancestral, ddim, run
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel

FINE = schedules.uniform(CosineVP(), 20)


class Field:
    """Images whose numbers are jointly normal, with any mean and covariance; called as a step is."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.shape = mean.shape
        self.mean = mean.flatten()
        self.covariance = covariance
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        """E[x0 | x], exact: each eigenvector separately."""
        alpha, sigma = float(level.alpha), float(level.sigma)
        off = (x.to(torch.float64).flatten(1) - alpha * self.mean) @ self.vectors
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        x0 = self.mean + (gain * off) @ self.vectors.T
        eps = (sigma / (alpha**2 * self.values + sigma**2) * off) @ self.vectors.T
        return Estimate(x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def sample(self, count: int, seed: int = 0) -> Tensor:
        z = torch.randn(count, len(self.mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (self.mean + (z * self.values.clamp(min=0).sqrt()) @ self.vectors.T).reshape(count, *self.shape)

    def given(self, matrix: Tensor, y: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and covariance of x0 given y = matrix x0 + noise; y is (B, ...)."""
        spread = matrix @ self.covariance @ matrix.T + (noise**2 + 1e-12) * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(spread, matrix @ self.covariance).T
        mean = self.mean + (y.double().flatten(1) - matrix @ self.mean) @ gain.T
        return mean.reshape(len(y), *self.shape), self.covariance - gain @ matrix @ self.covariance


def smooth(*shape: int, reach: float = 1.5, colours: float = 0.9) -> Field:
    """A random field whose neighbours resemble each other; channels (the first axis) by so much."""
    channels = torch.full((shape[0], shape[0]), colours, dtype=torch.float64).fill_diagonal_(1.0)
    covariance = 0.3 * channels
    for n in shape[1:]:
        far = (torch.arange(n)[:, None] - torch.arange(n)[None]).double()
        covariance = torch.kron(covariance, (-0.5 * (far / reach) ** 2).exp() + 0.02 * torch.eye(n))
    return Field(torch.zeros(shape, dtype=torch.float64), covariance)


def dense(operator: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The operator's matrix, for images small enough to write it down."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return operator(unit).flatten(1).T


def noises(shape: torch.Size, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Noise]:
    streams = SampleRNG(seed, range(shape[0]))
    draw = streams.bind(shape[1:])
    return streams.normal(shape[1:], START).to(dtype), lambda step, number=0: draw(step, number).to(dtype)


def psnr(x: Tensor, truth: Tensor) -> float:
    return 10 * math.log10(4 / (x - truth).square().mean().item())  # of pixels in [-1, 1]


def off(operator: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    return ((operator(x) - y).norm() / y.norm()).item()


# shape of one image -> operator, for every kind of measurement; sizes are odd and even, square and not
OPERATORS = {
    "mask": lambda shape: inverse.Mask(torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5),
    "super-resolution 2": lambda shape: inverse.block_average(shape[1:], 2),
    "super-resolution 4": lambda shape: inverse.block_average(shape[1:], 4),
    "deblurring": lambda shape: inverse.blur(shape[1:], inverse.gaussian(1.0), cutoff=0.05),
    "colourisation": lambda shape: inverse.channel_average(shape[0]),
    "uneven colours": lambda shape: inverse.channel_average(shape[0], [0.3, 0.6, 0.1]),
    "grey and small": lambda shape: inverse.Separable(
        {1: torch.full((1, shape[0]), 1 / 3), -1: inverse.block_average(shape[2:], 3).matrices[-1]}
    ),
}
each_operator = pytest.mark.parametrize("name", OPERATORS)


# ---------------------------------------------------------------------- operators


@each_operator
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 9), (3, 5, 1)])
def test_a_decomposition_is_that_of_its_operator(name, shape):
    operator = OPERATORS[name](shape)
    generator = torch.Generator().manual_seed(2)
    x, other = torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64)
    y = operator(x)
    torch.testing.assert_close(operator.back(operator.rotate(x)), x)
    torch.testing.assert_close(operator.rotate(x).norm(), x.norm())  # V is orthogonal
    seen = operator.singular(x) > 0
    torch.testing.assert_close(operator.observed(y), torch.where(seen, operator.rotate(x), 0.0), rtol=0, atol=1e-9)
    inverted = torch.linalg.pinv(dense(operator, shape), rtol=getattr(operator, "cutoff", 1e-9))
    torch.testing.assert_close(operator.pinv(y), (y.flatten(1) @ inverted.T).reshape(x.shape), rtol=0, atol=1e-8)
    if name != "deblurring":  # whose cutoff leaves a part out
        torch.testing.assert_close(operator(inverse.project(other, operator, y)), y, rtol=0, atol=1e-9)
    values = torch.linalg.svdvals(dense(operator, shape))
    mine = operator.singular(x).expand_as(x)[0].flatten().sort(descending=True).values
    values = torch.where(values > getattr(operator, "cutoff", 0.0) * values[0], values, 0.0)
    torch.testing.assert_close(mine[: len(values)], values[: mine.numel()], rtol=0, atol=1e-9)


def test_blocks_at_the_edge_are_means_of_what_is_there():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    y = inverse.block_average((3, 5), 2)(x)
    torch.testing.assert_close(y, torch.tensor([[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]]))


def test_a_blur_keeps_a_plane_and_spreads_a_point():
    operator = inverse.blur((9, 7), [0.25, 0.5, 0.25])
    torch.testing.assert_close(operator(torch.ones(1, 2, 9, 7)), torch.ones(1, 2, 9, 7))
    ramp = torch.arange(7.0).expand(1, 1, 9, 7)  # beyond the edges the last pixel goes on
    torch.testing.assert_close(operator(ramp)[0, 0, 4], torch.tensor([0.25, 1.0, 2.0, 3.0, 4.0, 5.0, 5.75]))
    point = torch.zeros(1, 1, 9, 7)
    point[..., 4, 3] = 1.0
    weights = torch.tensor([0.25, 0.5, 0.25])
    torch.testing.assert_close(operator(point)[0, 0, 3:6, 2:5], weights[:, None] * weights)
    assert inverse.gaussian(1.5).sum().item() == pytest.approx(1)


def test_a_large_image_needs_no_large_matrix():
    """512 x 384: a matrix of pixels by pixels would take 310 GB."""
    operator = inverse.block_average((512, 384), 4)
    x = torch.randn(1, 1, 512, 384, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    assert y.shape == (1, 1, 128, 96)
    assert off(operator, operator.pinv(y), y) < 1e-5


def test_operators_work_on_any_rank_and_keep_the_type():
    video = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    y = inverse.block_average((4, 6, 6), 2)(video)
    assert y.shape == (2, 3, 2, 3, 3)
    assert inverse.block_average((4, 6, 6), 2).pinv(y).dtype == torch.float32
    line = inverse.blur((10,), [0.2, 0.6, 0.2])(torch.ones(3, 10, dtype=torch.float64))
    assert line.dtype == torch.float64


# ---------------------------------------------------------------------- DDRM


@each_operator
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddrm_meets_a_noiseless_measurement_as_well_as_samples_of_the_posterior_do(name, shape, dtype):
    field, operator = smooth(*shape), OPERATORS[name](shape)
    truth = field.sample(12).to(dtype)
    y = operator(truth)
    plan = inverse.ddrm(FINE, operator, y)
    noise, draw = noises(truth.shape, dtype=dtype)
    x = run(plan, field, plan.start(noise), noise=draw)
    assert x.dtype == dtype
    assert off(operator, x, y) <= (2e-2 if name == "deblurring" else 1e-5)  # what lies below its cutoff is left out
    _, left = field.given(dense(operator, shape), y)
    exact = 10 * math.log10(
        4 * len(left) / (2 * left.trace().item() + 1e-9)
    )  # truth and sample differ twice the variance
    assert psnr(x, truth) > min(exact, 25.0) - (2.5 if name == "mask" else 0.5)


@pytest.mark.parametrize(("name", "gain"), [("mask", 3.0), ("super-resolution 2", 0.5), ("deblurring", 4.0)])
def test_ddrm_beats_the_trivial_reconstruction(name, gain):
    """Zeros in the gaps, blocks of one colour, the blurred image itself."""
    shape = (3, 7, 9)
    field, operator = smooth(*shape), OPERATORS[name](shape)
    truth = field.sample(12)
    y = operator(truth)
    plan = inverse.ddrm(FINE, operator, y)
    noise, draw = noises(truth.shape)
    trivial = y if name == "deblurring" else operator.pinv(y)
    assert psnr(run(plan, field, plan.start(noise), noise=draw), truth) > psnr(trivial, truth) + gain


def test_a_sharp_blur_is_inverted_to_a_thousandth():
    """In single precision: ten singular values of 1e-3 and less are among those of this operator."""
    shape = (3, 13, 16)
    field, operator = smooth(*shape), inverse.blur(shape[1:], inverse.gaussian(1.5))
    assert operator.singular(torch.zeros(1, *shape)).clamp(min=1e-9).le(1e-3).sum() > 10
    truth = field.sample(4).float()
    plan = inverse.ddrm(FINE, operator, operator(truth))
    noise, draw = noises(truth.shape, dtype=torch.float32)
    x = run(plan, field, plan.start(noise), noise=draw)
    assert off(operator, x, operator(truth)) <= 1e-3
    assert psnr(x, truth) > psnr(operator(truth), truth) + 4


def test_ddrm_returns_known_pixels_bit_by_bit():
    field, keep = smooth(3, 7, 9), torch.rand(6, 1, 7, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    truth = field.sample(6).float()
    operator = inverse.Mask(keep)
    plan = inverse.ddrm(schedules.uniform(LinearVP(), 10), operator, operator(truth))
    noise, draw = noises(truth.shape, dtype=torch.float32)
    x = run(plan, field, plan.start(noise), noise=draw)
    known = keep.expand_as(x)
    assert torch.equal(x[known], truth[known])
    assert (x[~known] != truth[~known]).all()


def test_ddrm_without_fresh_noise_samples_the_posterior_where_directions_are_independent():
    """A prior whose covariance has the operator's own basis: mean and covariance of samples are the exact ones."""
    shape, count = (1, 4, 4), 2000
    operator = inverse.Separable({-2: inverse.blur((4, 4), [0.3, 0.4, 0.3]).matrices[-2]}, cutoff=0.5)
    rotation = dense(operator.rotate, shape)
    widths = torch.linspace(0.2, 1.0, 16, dtype=torch.float64)
    field = Field(torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(shape),
                  rotation.T @ torch.diag(widths**2) @ rotation)  # fmt: skip
    y = operator(field.sample(1, seed=5))
    seen = (operator.singular(y) > 0).expand(1, *shape).flatten()
    assert 0 < seen.sum() < 16
    plan = inverse.ddrm(schedules.uniform(CosineVP(), 80), operator, y.expand(count, *shape), eta=0.0)
    noise, draw = noises(torch.Size((count, *shape)))
    x = run(plan, field, plan.start(noise), noise=draw).flatten(1)
    mean, covariance = field.given(rotation[seen], operator.observed(y).flatten()[None, seen])
    error = covariance.diagonal().clamp(min=0).sqrt() / count**0.5
    assert ((x.mean(0) - mean.flatten()).abs() < 4.5 * error + 0.01).all()
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_ddrm_follows_noised_images_under_the_true_denoiser(eta):
    """Each direction of x has the law alpha x0 + sigma noise at each level, whatever y and its noise say of it."""
    shape, count, noise_level = (1, 5, 4), 4000, 0.3
    operator = inverse.blur((5, 4), [0.25, 0.5, 0.25], cutoff=0.1)
    truth = smooth(*shape).sample(1).expand(count, *shape)
    z = torch.randn(count, *shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    y = operator(truth) + noise_level * z
    schedule = schedules.uniform(LinearVP(), 12)
    plan = inverse.ddrm(schedule, operator, y, noise_level=noise_level, eta=eta)
    noise, draw = noises(truth.shape)
    start = plan.start(noise)
    seen: list[float] = []

    def lawful(x: Tensor, level: NoiseLevel) -> None:
        off = (x - level.alpha * truth).flatten(1)
        rotated = operator.rotate(off.reshape(x.shape)).flatten(1) / level.sigma
        assert rotated.mean(0).abs().max() < 4.5 / count**0.5
        torch.testing.assert_close(rotated.std(0), torch.ones(20, dtype=torch.float64), rtol=0, atol=0.06)
        seen.append(level.t)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        lawful(x, level)
        return Estimate.of_x0(truth, x, level)

    run(plan, step, start, noise=draw)
    assert len(seen) == 12
    near = schedules.from_times(LinearVP(), [0.4, 0.0])  # where what y says weighs in the start
    least = near[0].alpha * noise_level / near[0].sigma  # below it y is noisier than x
    certain = (operator.singular(truth) > least).expand(1, *shape).flatten()
    assert certain.sum() > 5
    begun = inverse.ddrm(near, operator, y, noise_level=noise_level).start(noise) - near[0].alpha * truth
    widths = operator.rotate(begun).flatten(1).std(0)[certain]
    torch.testing.assert_close(widths, torch.full_like(widths, near[0].sigma), rtol=0.06, atol=0)


@each_operator
def test_ddrm_counts_the_noise_of_the_measurement_in(name):
    shape = (3, 7, 9)
    field, operator = smooth(*shape), OPERATORS[name](shape)
    truth = field.sample(8)
    y = operator(truth)
    y = y + 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise, draw = noises(truth.shape)
    errors = []
    for level in (0.0, 0.3):
        plan = inverse.ddrm(FINE, operator, y, noise_level=level)
        errors.append((run(plan, field, plan.start(noise), noise=draw) - truth).square().mean().item())
    assert errors[1] < 0.9 * errors[0]


def test_ddrm_is_the_same_under_every_process():
    """On one log-SNR schedule it takes the same path in x / alpha."""
    field, operator = smooth(3, 6, 5), inverse.block_average((6, 5), 2)
    y = operator(field.sample(3))
    found = []
    for process in (CosineVP(), LinearVP()):
        schedule = schedules.uniform_log_snr(process, 12, low=-3.5, high=3.0)
        plan = inverse.ddrm(schedule, operator, y, noise_level=0.1)
        noise, draw = noises(torch.Size((3, 3, 6, 5)))
        found.append(run(plan, field, plan.start(noise), noise=draw) / schedule[-1].alpha)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-8)


# ---------------------------------------------------------------------- masked generation


def known_half() -> tuple[Field, Tensor, Tensor]:
    field = smooth(3, 7, 9)
    return field, field.sample(6).float(), torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.mark.parametrize(
    "sampler",
    [
        ddim,
        lambda schedule: ddim(schedule, 0.5),
        ancestral,
        lambda schedule: inverse.repaint(ancestral(schedule), schedule, count=3),
    ],
    ids=["ddim", "stochastic", "ancestral", "repaint"],
)
@pytest.mark.parametrize("process", [CosineVP(), LinearVP(), DiscreteVP(betas("linear", 50))], ids=["cos", "lin", "n"])
def test_known_pixels_come_back_bit_by_bit(sampler: Callable[[Schedule], Plan], process):
    field, truth, keep = known_half()
    noise, draw = noises(truth.shape, dtype=torch.float32)
    schedule = schedules.uniform(process, 25)
    x = run(sampler(schedule), inverse.inpaint(field, truth, keep), schedule.start(noise), noise=draw)
    known = keep.expand_as(x)
    assert torch.equal(x[known], truth[known])
    gap = run(sampler(schedule), field, schedule.start(noise), noise=draw)
    assert psnr(x[~known], truth[~known]) > psnr(gap[~known], truth[~known]) + 2  # the gap fits what is around it


def test_a_mask_of_nothing_changes_nothing_and_of_everything_gives_the_image():
    field, truth, keep = known_half()
    noise, _ = noises(truth.shape, dtype=torch.float32)
    want = run(ddim(FINE), field, noise)
    torch.testing.assert_close(
        run(ddim(FINE), inverse.inpaint(field, truth, torch.zeros_like(keep)), noise), want, rtol=0, atol=1e-5
    )
    assert torch.equal(run(ddim(FINE), inverse.inpaint(field, truth, torch.ones_like(keep)), noise), truth)


def test_known_pixels_have_the_distribution_of_noised_images_at_every_level():
    """What RePaint and score SDE draw again at each level, the ancestral chain walks."""
    field = smooth(1, 2, 2)
    count = 4000
    truth = field.sample(1).expand(count, 1, 2, 2)
    noise, draw = noises(truth.shape)
    schedule = schedules.uniform(LinearVP(), 20)
    step = inverse.inpaint(field, truth, torch.tensor([[True, False], [False, False]]))

    def look(shown):
        there = schedule[shown.state.number]
        known = shown.state.x[:, 0, 0, 0]
        assert known.mean().item() == pytest.approx(
            float(there.alpha * truth[0, 0, 0, 0]), abs=4.5 * there.sigma.item() / count**0.5 + 0.01
        )
        assert known.std().item() == pytest.approx(
            there.sigma.item(), abs=4.5 * there.sigma.item() / (2 * count) ** 0.5 + 1e-9
        )

    run(ancestral(schedule), step, schedule.start(noise), noise=draw, on_step=look)


def test_paste_puts_known_pixels_back_whatever_the_sampler_left():
    _, truth, keep = known_half()
    x = inverse.paste(truth + 1e-7, truth, keep)
    assert torch.equal(x, torch.where(keep, truth, truth + 1e-7))


def test_resampling_goes_back_and_comes_again():
    """Two jumps of 2 in 6 steps, each stretch walked twice: from 2 left back to 4, from 0 ... as published."""
    schedule = schedules.uniform(CosineVP(), 6)
    plan = inverse.repaint(ancestral(schedule), schedule, length=2, count=2)
    seen: list[float] = []
    noise, draw = noises(torch.Size((1, 3)))
    drawn: list[int] = []

    def recorded(step: int, number: int = 0) -> Tensor:
        drawn.append(step)
        return draw(step, number)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        seen.append(round(level.t.item() * 6))
        return Estimate.of_x0(0 * x, x, level)

    run(plan, step, noise, noise=recorded)
    assert seen == [6, 5, 4, 5, 4, 3, 2, 3, 2, 1]
    assert plan.total == len(plan.moves) == 12
    assert drawn == list(range(11))  # each its own, and none for the last step onto the data
    once = inverse.repaint(ancestral(schedule), schedule, length=2, count=1)
    want = run(ancestral(schedule), step, noise, noise=draw)
    assert torch.equal(run(once, step, noise, noise=draw), want)


def test_a_jump_has_the_law_of_the_forward_process():
    schedule = schedules.uniform(LinearVP(), 6)
    plan = inverse.repaint(ddim(schedule), schedule, length=3, count=2)
    count = 20_000
    noise, draw = noises(torch.Size((count, 1)))
    field = Field(torch.tensor([0.4], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64))
    levels: list[tuple[NoiseLevel, float, float]] = []

    def looked(x: Tensor, level: NoiseLevel) -> Estimate:
        levels.append((level, x.mean().item(), x.std().item()))
        return field(x, level)

    fine = schedules.uniform(LinearVP(), 6)
    run(plan, looked, fine.start(noise), noise=draw)
    back = [after for before, after in pairwise(levels) if after[0].t > before[0].t]
    assert back
    for level, mean, width in back:
        assert mean == pytest.approx(
            level.alpha.item() * 0.4, abs=0.05
        )  # six steps of a first-order sampler lie between
        assert width == pytest.approx(float(level.alpha**2 * 0.25 + level.sigma**2) ** 0.5, abs=0.05)


def test_resampling_brings_the_gap_to_the_exact_posterior():
    """Two numbers with correlation 0.9, one known: plain replacement is off, RePaint's mean is nearer by half."""
    field = Field(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
    count = 2000
    pixels = torch.tensor([[1.5, 0.0]], dtype=torch.float64).expand(count, 2)
    keep = torch.tensor([True, False])
    schedule = schedules.uniform(CosineVP(), 30)
    noise, draw = noises(torch.Size((count, 2)))
    errors = []
    for again in (1, 8):
        plan = inverse.repaint(ancestral(schedule), schedule, length=3, count=again)
        x = run(plan, inverse.inpaint(field, pixels, keep), schedule.start(noise), noise=draw)
        errors.append(abs(x[:, 1].mean().item() - 0.9 * 1.5))
    assert errors[1] < 0.5 * errors[0], errors


def test_resampling_takes_learned_variances():
    process = DiscreteVP(betas("linear", 12))
    schedule = schedules.uniform(process, 12)
    plan = inverse.repaint(ancestral(schedule, learned_range), schedule, length=3, count=2)
    field = smooth(1, 2, 2)
    noise, draw = noises(torch.Size((3, 1, 2, 2)))

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(field(x, level).x0, x, level, torch.ones_like(x))

    assert torch.isfinite(run(plan, step, noise, noise=draw)).all()


# ---------------------------------------------------------------------- SDEdit


def test_an_edit_begins_at_its_strength_for_any_number_of_steps():
    pixels = smooth(1, 3, 3).sample(2)
    noise, _ = noises(pixels.shape)
    for steps in (3, 10, 64):
        rest, x = inverse.sdedit(schedules.uniform(CosineVP(), steps), pixels, noise, 0.35)
        assert rest[0] == CosineVP().at(0.35)
        assert [level.t for level in rest[1:]] == [k / steps for k in range(steps, -1, -1) if k / steps < 0.35]
        torch.testing.assert_close(x, rest[0].alpha * pixels + rest[0].sigma * noise)
    whole, _ = inverse.sdedit(schedules.uniform(CosineVP(), 10), pixels, noise, 1.0)
    assert [level.t for level in whole] == [level.t for level in schedules.uniform(CosineVP(), 10)]


def test_an_edit_of_a_discrete_process_begins_at_an_index():
    process = DiscreteVP(betas("linear", 20))
    pixels = torch.zeros(1, 3)
    rest, _ = inverse.sdedit(schedules.leading(process, 5), pixels, pixels, 0.33)
    assert [process.timestep(level) for level in rest[:-1]] == [6, 4, 0]
    rest, _ = inverse.sdedit(schedules.leading(process, 5), pixels, pixels, 0.01)
    assert [process.timestep(level) for level in rest[:-1]] == [0]
    rest, _ = inverse.sdedit(schedules.leading(process, 5), pixels, pixels, 1.0)
    assert len(rest) == 6  # a schedule that begins below t = 1 is not made longer


def test_an_edit_keeps_more_of_the_image_the_later_it_begins():
    field = smooth(1, 5, 5)
    pixels = field.sample(30) + 0.5  # from elsewhere: a field of another mean
    noise, _ = noises(pixels.shape)
    kept, likely = [], []
    for start in (0.1, 0.5, 1.0):
        rest, x = inverse.sdedit(schedules.uniform(CosineVP(), 40), pixels, noise, start)
        edited = run(ddim(rest), field, x)
        kept.append((edited - pixels).square().mean().item())
        likely.append(edited.mean().abs().item())
    assert kept[0] < kept[1] < kept[2]
    assert likely[0] > likely[1] > likely[2]  # and the more it becomes one of the model's


# ---------------------------------------------------------------------- DPS


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_dps_draws_near_to_any_differentiable_measurement(size):
    field = smooth(3, *size, reach=2.5)
    truth = field.sample(8)
    noise, draw = noises(truth.shape)
    schedule = schedules.uniform(CosineVP(), 60)
    free = run(ancestral(schedule), field, schedule.start(noise), noise=draw)
    small = inverse.block_average(size, 2)

    def bent(x: Tensor) -> Tensor:
        return small(x).tanh() ** 3 + small(x.square()).mean(1, keepdim=True)

    for measure, gain in ((bent, 1.0), (small, 2.0)):
        y = measure(truth)
        plan = inverse.dps(ancestral(schedule), measure, y, scale=0.5)
        x = run(plan, field, schedule.start(noise), noise=draw)
        assert off(measure, x, y) < 0.5 * off(measure, free, y)
        assert psnr(x, truth) > psnr(free, truth) + gain
    met = inverse.project(x, small, small(truth))
    torch.testing.assert_close(small(met), small(truth))


def test_a_step_of_dps_is_the_plans_and_the_gradient_at_the_x_before_it():
    """The gradient goes through the denoiser: compared with differences, under no_grad and inference_mode."""
    field = smooth(1, 3, 2)
    truth = field.sample(2)
    noise, _ = noises(truth.shape)
    schedule = schedules.from_times(CosineVP(), [0.8, 0.5])

    def distance(x: Tensor) -> Tensor:
        return (truth.sin() - field(x, schedule[0]).x0.sin()).flatten(1).norm(dim=1)

    slope, tiny = torch.zeros_like(truth), 1e-6
    for place in range(6):
        move = torch.zeros(6, dtype=torch.float64)
        move[place] = tiny
        move = move.reshape(1, 1, 3, 2)
        slope.flatten(1)[:, place] = (distance(noise + move) - distance(noise - move)) / (2 * tiny)
    plan = inverse.dps(ddim(schedule), torch.sin, truth.sin(), scale=0.7)
    want = run(ddim(schedule), field, noise) - 0.7 * slope
    torch.testing.assert_close(run(plan, field, noise), want, rtol=0, atol=1e-7)
    with torch.inference_mode():
        torch.testing.assert_close(run(plan, field, noise.clone()), want, rtol=0, atol=1e-7)
    alone = inverse.dps(ddim(schedule), torch.sin, truth[1:].sin(), scale=0.7)
    torch.testing.assert_close(run(alone, field, noise[1:]), want[1:], rtol=0, atol=1e-7)  # samples do not mix


# ---------------------------------------------------------------------- mistakes

IMAGE = torch.zeros(2, 3, 8, 8)
SCHEDULE = schedules.uniform(CosineVP(), 4)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: inverse.inpaint(Field, IMAGE, torch.ones(8, 9, dtype=torch.bool)), ShapeError,
         r"a mask of \(8, 9\) for \(2, 3, 8, 8\): must be of the same shape, or have 1"),
        (lambda: inverse.inpaint(Field, IMAGE, torch.ones(2, 8, 8, dtype=torch.bool)), ShapeError,
         r"such as \(B, 1, H, W\)"),
        (lambda: inverse.inpaint(Field, IMAGE, torch.ones(8, 8)), ShapeError, "torch.float32: must be boolean"),
        (lambda: inverse.Mask(torch.ones(8, 8)), ShapeError, "must be boolean, True where x is known"),
        (lambda: inverse.Mask(torch.ones(8, 9, dtype=torch.bool))(IMAGE), ShapeError, r"a mask of \(8, 9\)"),
        (lambda: inverse.paste(IMAGE[:1], IMAGE, torch.ones(8, 8, dtype=torch.bool)), ShapeError,
         r"known pixels \(2, 3, 8, 8\) for x \(1, 3, 8, 8\)"),
        (lambda: inverse.block_average((8, 9), 2)(IMAGE), ShapeError, "this operator needs 9 along axis -1"),
        (lambda: inverse.ddrm(SCHEDULE, inverse.block_average((8, 8), 2), IMAGE), ShapeError,
         r"a measurement \(2, 3, 8, 8\): this operator needs 4 along axis -2"),
        (lambda: inverse.sdedit(SCHEDULE, IMAGE, IMAGE, 0.0), RecipeError, r"start = 0.0: must lie in \(0, 1\]"),
        (lambda: inverse.sdedit(SCHEDULE, IMAGE, IMAGE, 1.2), RecipeError, r"start = 1.2: must lie in \(0, 1\]"),
        (lambda: inverse.sdedit(SCHEDULE, IMAGE, IMAGE[:1], 0.5), ShapeError, r"noise \(1, 3, 8, 8\) for an image"),
        (lambda: inverse.repaint(ancestral(SCHEDULE), SCHEDULE, length=0), RecipeError, "length = 0, count = 10: both"),
        (lambda: inverse.repaint(ancestral(FINE), SCHEDULE), RecipeError, "a plan of 20 rows over 4 steps"),
        (lambda: inverse.ddrm(SCHEDULE, inverse.Mask(IMAGE > 0), IMAGE, eta=1.5), RecipeError, "eta = 1.5: must lie"),
        (lambda: inverse.ddrm(SCHEDULE, inverse.Mask(IMAGE > 0), IMAGE, noise_level=-1), RecipeError, "at least 0"),
        (lambda: inverse.dps(ddim(SCHEDULE), torch.sin, IMAGE, scale=0.0), RecipeError, "scale = 0.0: must be above 0"),
        (lambda: inverse.block_average((8, 8), 0), RecipeError, "factor = 0: a block has at least 1 x 1 pixels"),
        (lambda: inverse.blur((8, 8), [0.5, 0.5]), RecipeError, "needs an odd number of weights in a row"),
        (lambda: inverse.gaussian(0.0), RecipeError, "deviation = 0.0: must be above 0 pixels"),
        (lambda: inverse.channel_average(3, [1.0]), RecipeError, "1 weights for 3 channels"),
        (lambda: inverse.Separable({0: torch.eye(2)}), RecipeError, "axis 0 is the batch"),
        (lambda: inverse.Separable({1: torch.ones(3)}), RecipeError, r"a matrix of shape \(3,\)"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_inputs_that_do_not_fit_are_named_when_they_are_seen():
    field, x = smooth(3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    step = inverse.inpaint(field, IMAGE, torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"known pixels \(2, 3, 8, 8\) for x \(2, 3, 4, 4\)"):
        run(ddim(SCHEDULE), step, x)
    plan = inverse.dps(ddim(SCHEDULE), inverse.block_average((4, 4), 2), torch.zeros(2, 3, 1))
    with pytest.raises(ShapeError, match=r"y \(2, 3, 1\): the measurement of x is \(2, 3, 2, 2\)"):
        run(plan, field, x)
    with pytest.raises(RecipeError, match="this sampler adds noise: pass noise="):
        run(inverse.repaint(ddim(SCHEDULE), SCHEDULE, length=1, count=2), field, x)
