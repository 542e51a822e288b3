"""Claims about guidance, on a mixture of Gaussians whose every step, class and score is known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unveil.core import guidance, prediction, schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import Momentum
from unveil.core.process import CosineVP, LinearVP, partly
from unveil.core.rng import SampleRNG
from unveil.core.samplers import ancestral, ddim, run
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel, like

MEANS = torch.tensor([[-1.4, 0.2], [1.2, 0.9], [0.9, -1.1]], dtype=torch.float64)
WHOLE = Mixture([0.4, 0.35, 0.25], MEANS, [0.3, 0.4, 0.25])
FIRST, LAST = WHOLE.part([0]), WHOLE.part([1, 2])
FLOW = NoiseLevel(0.6, 0.4, 0.6, -1.0, 1.0)  # of rectified flow
LEVELS = {
    "vp": LinearVP().at(0.4),
    "cosine": CosineVP().at(0.8),
    "exploding": NoiseLevel(0.5, 1.0, 3.0, 0.0, 6.0),
    "flow": FLOW,
}
each_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(got: Estimate, want: Estimate, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got.x0, want.x0, rtol=0, atol=atol)
    torch.testing.assert_close(got.eps, want.eps, rtol=0, atol=atol)


def differ(got: Estimate, other: Estimate) -> None:
    assert (got.x0 - other.x0).abs().max() > 1e-3


def consistent(estimate: Estimate, x: Tensor, level: NoiseLevel) -> None:
    torch.testing.assert_close(like(level.alpha, x) * estimate.x0 + like(level.sigma, x) * estimate.eps, x)


def logits(x: Tensor, level: NoiseLevel) -> Tensor:
    """The exact classifier: log p(x, class) at any level."""
    return torch.stack([WHOLE.part([k]).log_density(x, level) + WHOLE.weights[k].log() for k in range(3)], dim=1)


def velocity(estimate: Estimate, level: NoiseLevel) -> Tensor:
    return level.dalpha * estimate.x0 + level.dsigma * estimate.eps


def counted(step: DenoiseFn) -> tuple[DenoiseFn, list[int]]:
    calls: list[int] = []

    def called(x: Tensor, level: NoiseLevel) -> Estimate:
        calls.append(len(x))
        return step(x, level)

    return called, calls


# ---------------------------------------------------------------------- by the difference of two estimates


@each_level
@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.5])
def test_classifier_free_guidance_is_the_score_of_a_power_of_the_likelihood(x, level, scale):
    """Eps is minus sigma times the gradient of log p(x)^(1 - s) p(x | c)^s."""
    inner = x.clone().requires_grad_()
    sharpened = (1 - scale) * WHOLE.log_density(inner, level) + scale * FIRST.log_density(inner, level)
    score = torch.autograd.grad(sharpened.sum(), inner)[0]
    got = guidance.cfg(FIRST, WHOLE, scale)(x, level)
    torch.testing.assert_close(got.eps, -level.sigma * score, rtol=0, atol=1e-9)
    consistent(got, x, level)


def test_scale_1_is_none_0_is_the_null_and_neither_calls_the_other(x):
    null, null_calls = counted(WHOLE)
    conditional, calls = counted(FIRST)
    level = LEVELS["vp"]
    assert guidance.cfg(conditional, null, 1.0) is conditional
    same(guidance.cfg(conditional, null, 0.0)(x, level), WHOLE(x, level), 0)
    assert (len(calls), len(null_calls)) == (0, 1)
    same(guidance.cfg(conditional, null, lambda level: 1.0)(x, level), FIRST(x, level), 0)
    assert (len(calls), len(null_calls)) == (1, 1)


def test_a_scale_per_sample_is_each_samples_own(x):
    level = LEVELS["vp"]
    scales = torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64)
    together = guidance.cfg(FIRST, WHOLE, scales)(x[:3], level)
    for k, scale in enumerate(scales.tolist()):
        alone = guidance.cfg(FIRST, WHOLE, scale)(x[k : k + 1], level)
        torch.testing.assert_close(together.x0[k : k + 1], alone.x0)


def test_guided_channels_are_the_first_ones_and_the_rest_stay_conditional(x):
    level = LEVELS["vp"]
    full, plain = guidance.cfg(FIRST, WHOLE, 3.0)(x, level), FIRST(x, level)
    for scale in (3.0, torch.full((len(x),), 3.0, dtype=torch.float64)):
        part = guidance.cfg(FIRST, WHOLE, scale, channels=1)(x, level)
        torch.testing.assert_close(part.x0[:, :1], full.x0[:, :1])
        assert torch.equal(part.x0[:, 1:], plain.x0[:, 1:])
        consistent(part, x, level)


def test_a_negative_condition_pushes_samples_away_from_it():
    schedule = schedules.uniform(CosineVP(), 40)
    start = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pushed = run(ddim(schedule), guidance.cfg(WHOLE, FIRST, 3.0), start)
    near = [(torch.cdist(s, MEANS[:1]) < 1).double().mean().item() for s in (run(ddim(schedule), WHOLE, start), pushed)]
    assert near[0] > 0.3, near
    assert near[1] < 0.05, near


@each_level
def test_nested_conditions_have_their_own_scales(x, level):
    both = WHOLE.part([1])
    steps = [WHOLE, LAST, both]
    same(guidance.multi_condition(steps, [1.0, 1.0])(x, level), both(x, level), 0)
    same(guidance.multi_condition(steps, [1.0, 0.0])(x, level), LAST(x, level), 0)
    got = guidance.multi_condition(steps, [1.5, 4.0])(x, level)
    eps = [step(x, level).eps for step in steps]
    torch.testing.assert_close(got.eps, eps[0] + 1.5 * (eps[1] - eps[0]) + 4 * (eps[2] - eps[1]))
    consistent(got, x, level)
    differ(got, both(x, level))


def test_nested_steps_without_a_share_are_not_called(x):
    steps, calls = zip(*(counted(step) for step in (WHOLE, LAST, FIRST)), strict=True)
    guidance.multi_condition(steps, [1.0, 3.0])(x, FLOW)
    assert [len(made) for made in calls] == [0, 1, 1]


@each_level
def test_composed_conditions_add_and_a_negative_one_is_a_not(x, level):
    """Both classes of LAST, but not the second, leave the third: weights of posteriors, not only of vectors."""
    got = guidance.composed(WHOLE, [LAST, WHOLE.part([1])], [2.0, -0.5])(x, level)
    eps = [step(x, level).eps for step in (WHOLE, LAST, WHOLE.part([1]))]
    torch.testing.assert_close(got.eps, -0.5 * eps[0] + 2 * eps[1] - 0.5 * eps[2])
    consistent(got, x, level)
    same(guidance.composed(WHOLE, [LAST], [3.0])(x, level), guidance.cfg(LAST, WHOLE, 3.0)(x, level))
    same(guidance.composed(WHOLE, [LAST, FIRST], [0.0, 0.0])(x, level), WHOLE(x, level), 0)


def test_autoguidance_moves_samples_of_a_blurred_model_back_to_the_modes():
    """A weak model with half more deviation; the strong one errs likewise, by less: guided, the width is right."""
    true, strong, weak = (Mixture([1.0], MEANS[:1], [0.3 * width]) for width in (1.0, 1.25, 1.5))
    schedule = schedules.uniform(CosineVP(), 60)
    start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    widths = [
        run(ddim(schedule), step, start).std().item()
        for step in (true, strong, guidance.autoguidance(strong, weak, 2.0))
    ]
    assert abs(widths[2] - widths[0]) < 0.5 * abs(widths[1] - widths[0]), widths


# ---------------------------------------------------------------------- where it acts, and how much


def test_an_interval_guides_inside_and_not_outside(x):
    strong = guidance.cfg(FIRST, WHOLE, 3.0)
    limited = guidance.interval(strong, FIRST, 0.2, 0.7)
    for t, inside in ((0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.9, False)):
        level = CosineVP().at(t)
        same(limited(x, level), (strong if inside else FIRST)(x, level), 0)
    by_noise = guidance.interval(strong, FIRST, -1.0, 0.5, of="log-snr")
    for ratio, inside in ((-2.0, False), (0.0, True), (0.6, False)):
        level = CosineVP().at(CosineVP().t_of(ratio))
        same(by_noise(x, level), (strong if inside else FIRST)(x, level), 0)


def test_an_interval_of_all_levels_is_the_guided_step(x):
    strong = guidance.cfg(FIRST, WHOLE, 3.0)
    for limited in (
        guidance.interval(strong, FIRST, 0.0, 1.0),
        guidance.interval(strong, FIRST, -math.inf, math.inf, of="log-snr"),
    ):
        for t in (0.01, 0.5, 0.999):
            same(limited(x, CosineVP().at(t)), strong(x, CosineVP().at(t)), 0)
    schedule = schedules.uniform(LinearVP(), 12)
    got, want = (run(ddim(schedule), step, x) for step in (guidance.interval(strong, FIRST, 0.0, 1.0), strong))
    assert torch.equal(got, want)


def test_an_interval_outside_calls_only_the_plain_step(x):
    null, calls = counted(WHOLE)
    limited = guidance.interval(guidance.cfg(FIRST, null, 3.0), FIRST, 0.2, 0.7)
    run(ddim(schedules.uniform(CosineVP(), 10)), limited, x)
    assert len(calls) == 6  # t = 0.7, 0.6 ... 0.2


def test_levels_per_sample_are_each_inside_or_outside(x):
    limited = guidance.interval(guidance.cfg(FIRST, WHOLE, 3.0), FIRST, 0.2, 0.7)
    level = CosineVP().at(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    together = limited(x[:3], level)
    for k in range(3):
        alone = limited(x[k : k + 1], CosineVP().at(float(level.t[k])))
        torch.testing.assert_close(together.x0[k : k + 1], alone.x0, rtol=0, atol=1e-12)


@each_level
def test_rescaling_keeps_the_conditional_deviation(x, level):
    images = x.reshape(6, 2, 5)
    narrow = Mixture([0.5, 0.5], torch.stack([torch.zeros(2, 5), torch.ones(2, 5)]), [0.5, 0.2])
    strong = guidance.cfg(narrow.part([1]), narrow, 6.0)
    for amount, share in ((0.0, 0.0), (0.7, 0.7), (1.0, 1.0)):
        got = guidance.rescale(strong, narrow.part([1]), amount)(images, level)
        consistent(got, images, level)
        deviation = [
            (level.alpha * e.eps - level.sigma * e.x0).flatten(1).std(1)
            for e in (strong(images, level), narrow.part([1])(images, level), got)
        ]
        torch.testing.assert_close(deviation[2], (1 - share) * deviation[0] + share * deviation[1])
        if amount:
            differ(got, strong(images, level))


def test_rescaling_means_the_same_under_every_process(x):
    """One log-SNR, x / alpha equal: x0 is equal, too."""
    levels = [CosineVP().at(CosineVP().t_of(-0.5)), LinearVP().at(LinearVP().t_of(-0.5))]
    levels.append(NoiseLevel(0.5, 1.0, math.exp(0.5)))
    step = guidance.rescale(guidance.cfg(FIRST, WHOLE, 5.0), FIRST, 0.8)
    found = [step(level.alpha * x, level).x0 for level in levels]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)


def test_schedules_begin_without_guidance_and_rise_to_the_data():
    times = [k / 100 for k in range(100, -1, -1)]
    for name, make in guidance.SCHEDULES.items():
        values = [make(4.0)(NoiseLevel(t, 1.0, 1.0)) for t in times]
        if name == "constant":
            assert values == [4.0] * 101
            continue
        assert values[0] == pytest.approx(1.0)
        assert all(b >= a - 1e-12 for a, b in pairwise(values)), name
    for make in (guidance.linear, guidance.cosine):
        weights = [make(4.0)(NoiseLevel(t, 1.0, 1.0)) - 1 for t in times]
        assert sum(weights) / len(weights) == pytest.approx(3.0)  # the same mean weight as a constant one
    assert guidance.power_cosine(4.0)(NoiseLevel(0.0, 1.0, 0.0)) == pytest.approx(4.0)
    assert guidance.power_cosine(4.0, 2.0)(NoiseLevel(0.5, 1.0, 1.0)) == pytest.approx(1 + 3 * (1 - math.sqrt(0.5)) / 2)
    clamped = guidance.at_least(guidance.linear(4.0), 2.0)
    assert [clamped(NoiseLevel(t, 1.0, 1.0)) for t in (1.0, 0.5)] == [2.0, 4.0]


def test_a_schedule_is_the_scale_of_its_level(x):
    for schedule in (guidance.cosine(3.0), guidance.power_cosine(3.0)):
        step = guidance.cfg(FIRST, WHOLE, schedule)
        for t in (0.3, 0.8):
            level = CosineVP().at(t)
            same(step(x, level), guidance.cfg(FIRST, WHOLE, schedule(level))(x, level), 1e-12)
    level = CosineVP().at(torch.tensor([0.2, 0.6], dtype=torch.float64))
    together = guidance.cfg(FIRST, WHOLE, guidance.linear(3.0))(x[:2], level)
    alone = guidance.cfg(FIRST, WHOLE, 1 + 2 * 2 * 0.4)(x[1:2], CosineVP().at(0.6))
    torch.testing.assert_close(together.x0[1:], alone.x0)


# ---------------------------------------------------------------------- APG and CFG-Zero*


@each_level
def test_apg_without_projection_bound_and_memory_is_classifier_free_guidance(x, level):
    got = guidance.apg(FIRST, WHOLE, 4.0, parallel=1.0)(x, level)
    same(got, guidance.cfg(FIRST, WHOLE, 4.0)(x, level))
    same(guidance.apg(FIRST, WHOLE, 1.0)(x, level), FIRST(x, level), 0)


@each_level
def test_apg_moves_orthogonally_to_the_conditional_x0_within_its_norm_threshold(x, level):
    plain, null = FIRST(x, level).x0, WHOLE(x, level).x0
    got = guidance.apg(FIRST, WHOLE, 4.0)(x, level)
    moved = got.x0 - plain
    assert (moved * plain).sum(1).abs().max() < 1e-9
    along = ((plain - null) * plain).sum(1, keepdim=True) / plain.square().sum(1, keepdim=True) * plain
    torch.testing.assert_close(moved, 3 * (plain - null - along))
    consistent(got, x, level)
    differ(got, FIRST(x, level))
    bounded = guidance.apg(FIRST, WHOLE, 4.0, parallel=1.0, radius=0.05)(x, level)
    torch.testing.assert_close((bounded.x0 - plain).norm(dim=1), 3 * (plain - null).norm(dim=1).clamp(max=0.05))


def test_momentum_sums_within_a_run_and_starts_anew_with_the_next(x):
    levels = [CosineVP().at(t) for t in (0.9, 0.6, 0.3)]
    differences = [FIRST(x, level).x0 - WHOLE(x, level).x0 for level in levels]
    momentum = Momentum(-0.5)
    step = guidance.apg(FIRST, WHOLE, 2.0, parallel=1.0, momentum=momentum)
    for _ in range(2):  # two runs over the same levels with one step
        found = [step(x, level).x0 - FIRST(x, level).x0 for level in levels]
        torch.testing.assert_close(found[0], differences[0])
        torch.testing.assert_close(found[1], differences[1] - 0.5 * differences[0])
        torch.testing.assert_close(found[2], differences[2] - 0.5 * differences[1] + 0.25 * differences[0])
    torch.testing.assert_close(step(x[:3], levels[2]).x0, FIRST(x[:3], levels[2]).x0 + differences[2][:3])


def test_a_second_call_at_a_level_replaces_the_first(x):
    """As a corrector, churn or a rejected step makes it."""
    momentum = Momentum(-0.5)
    levels = [CosineVP().at(t) for t in (0.9, 0.6, 0.65)]
    first = momentum.add(x, levels[0])
    for level in (levels[1], levels[1], levels[2]):
        torch.testing.assert_close(momentum.add(2 * x, level), 2 * x - 0.5 * first)
    schedule = schedules.uniform(CosineVP(), 300)
    for level in schedule[:-1]:
        momentum.add(x, level)
    assert len(momentum._past) <= 3  # memory does not grow with the steps


@each_level
def test_cfg_zero_scales_the_null_to_fit_the_condition(x, level):
    """A null velocity that is the conditional one except for its length leaves nothing to guide."""

    def shorter(x: Tensor, level: NoiseLevel) -> Estimate:
        flow = 0.3 * velocity(FIRST(x, level), level)
        return Estimate.solved(prediction.solve(prediction.flow, level), x, flow)

    same(guidance.cfg_zero(FIRST, shorter, 7.0)(x, level), FIRST(x, level))
    differ(guidance.cfg(FIRST, shorter, 7.0)(x, level), FIRST(x, level))
    got = guidance.cfg_zero(FIRST, WHOLE, 3.0)(x, level)
    v, v0 = (velocity(step(x, level), level) for step in (FIRST, WHOLE))
    fit = (v * v0).sum(1, keepdim=True) / v0.square().sum(1, keepdim=True)
    torch.testing.assert_close(velocity(got, level), fit * v0 + 3 * (v - fit * v0))
    consistent(got, x, level)
    differ(got, FIRST(x, level))


@pytest.mark.parametrize(("over", "axes"), [("rows", (3,)), ("tokens", (1, 3, 5))])
def test_the_norm_of_the_conditional_velocity_is_kept_in_each_part(over, axes):
    level, generator = FLOW, torch.Generator().manual_seed(0)
    x, first, second = torch.randn(3, 2, 3, 4, 6, dtype=torch.float64, generator=generator)

    def step(flow: Tensor) -> DenoiseFn:
        return lambda x, level: Estimate.solved(prediction.solve(prediction.flow, level), x, flow)

    def norms(flow: Tensor) -> Tensor:
        parts = flow if over == "rows" else flow.unflatten(2, (2, 2)).unflatten(4, (3, 2))
        return parts.square().sum(axes)

    plain = guidance.cfg(step(first), step(second), 4.0)
    got = guidance.keep_norm(plain, step(first), over)(x, level)
    torch.testing.assert_close(norms(velocity(got, level)), norms(first))
    assert not torch.allclose(norms(velocity(plain(x, level), level)), norms(first))
    consistent(got, x, level)
    if over == "tokens":
        with pytest.raises(ShapeError, match="even sides"):
            guidance.keep_norm(step(first[..., 1:]), step(first[..., 1:]), over)(x[..., 1:], level)


def test_cfg_zero_does_not_move_x_in_its_first_steps(x):
    conditional, calls = counted(FIRST)
    still = guidance.cfg_zero(conditional, WHOLE, 3.0, still_from=0.9)
    levels = [NoiseLevel(t, 1 - t, t, -1.0, 1.0) for t in (1.0, 0.9, 0.8)]
    for here, there in ((levels[0], levels[1]), (levels[1], levels[2])):
        estimate = still(x, here)
        torch.testing.assert_close(there.alpha * estimate.x0 + there.sigma * estimate.eps, x)
    assert not calls
    differ(still(x, levels[2]), still(x, levels[1]))
    mixed = NoiseLevel(*(torch.tensor(pair, dtype=torch.float64) for pair in zip(levels[1], levels[2], strict=True)))
    together = still(x[:2], mixed)
    torch.testing.assert_close(together.x0[0], x[0])
    torch.testing.assert_close(together.x0[1:], still(x[1:2], levels[2]).x0)


# ---------------------------------------------------------------------- by a score of x


@each_level
@pytest.mark.parametrize("label", [0, 2])
def test_an_exact_classifier_at_scale_1_gives_the_conditional_step(x, level, label):
    score = guidance.log_probability(logits, torch.tensor([label]))
    got = guidance.shift_eps(WHOLE, guidance.gradient(score))(x, level)
    same(got, WHOLE.part([label])(x, level))
    differ(got, WHOLE(x, level))


@each_level
def test_classifier_and_classifier_free_guidance_agree_at_every_scale(x, level):
    labels = torch.tensor([0, 1, 2] * 10)
    for scale in (-1.0, 0.0, 3.0):
        got = guidance.shift_eps(WHOLE, guidance.gradient(guidance.log_probability(logits, labels), scale))(x, level)
        for k in range(3):
            want = guidance.cfg(WHOLE.part([k]), WHOLE, scale)(x[k::3], level)
            torch.testing.assert_close(got.x0[k::3], want.x0, rtol=0, atol=1e-8)


def test_steering_leaves_the_noise_end_as_it_is_and_knows_levels_per_sample(x):
    push = lambda x, level: torch.ones_like(x)  # noqa: E731
    top = CosineVP().at(1.0)
    flat = lambda x, level: Estimate(0 * x, x)  # noqa: E731
    same(guidance.shift_eps(flat, push)(x, top), flat(x, top), 0)

    def lost(x, level):
        raise ZeroDivisionError  # a classifier of another process says nothing there

    same(guidance.shift_eps(flat, lost)(x, top), flat(x, top), 0)
    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    level = CosineVP().at(times)
    level = level._replace(alpha=torch.where(times == 1, 0.0, level.alpha))
    got = guidance.shift_eps(flat, push)(x[:2], level)
    assert torch.equal(got.x0[0], 0 * x[0])
    middle = CosineVP().at(0.5)
    torch.testing.assert_close(got.eps[1], x[1] - middle.sigma)
    torch.testing.assert_close(got.x0[1], torch.full_like(x[1], middle.sigma**2 / middle.alpha))


def test_a_shifted_mean_samples_the_class():
    """The ancestral form: mean and deviation of the wanted component, from the unconditional model."""
    score = guidance.log_probability(logits, torch.tensor([1]))
    schedule = schedules.uniform(CosineVP(), 150)
    streams = SampleRNG(5, range(10))
    start = streams.normal((100, 2), -1).double().reshape(1000, 2)
    noise = lambda step, draw=0: streams.normal((100, 2), step).reshape(1000, 2)  # noqa: E731
    plan = ancestral(schedule, shift=guidance.gradient(score))
    samples = run(plan, WHOLE, start, noise=noise)
    torch.testing.assert_close(samples.mean(0), MEANS[1], rtol=0, atol=4.5 * 0.4 / 1000**0.5 + 0.01)
    assert samples.std(0).mean().item() == pytest.approx(0.4, abs=0.04)


def test_a_classifiers_gradient_is_found_inside_run_and_inference_mode(x):
    step = guidance.shift_eps(WHOLE, guidance.gradient(guidance.log_probability(logits, torch.tensor([0]))))
    schedule = schedules.uniform(LinearVP(), 8)
    want = run(ddim(schedule), FIRST, x)
    torch.testing.assert_close(run(ddim(schedule), step, x), want, rtol=0, atol=1e-8)
    with torch.inference_mode():
        torch.testing.assert_close(run(ddim(schedule), step, x.clone()), want, rtol=0, atol=1e-8)


@each_level
def test_an_exact_regressor_gives_the_posterior_of_a_value(x, level):
    """Data normal with deviation 1, y = x0[0] + noise of 0.5: p(y | x) is normal, and so is x0 given both."""
    prior = Mixture([1.0], torch.zeros(1, 2), [1.0])
    variance = level.alpha**2 + level.sigma**2
    left = level.sigma**2 / variance  # of x0 given x
    score = guidance.regression(
        lambda x, level: level.alpha / variance * x[:, :1], target=1.7, deviation=(left + 0.5**2) ** 0.5
    )
    got = guidance.shift_eps(prior, guidance.gradient(score))(x, level)
    mean = level.alpha / variance * x
    mean[:, 0] += left / (left + 0.25) * (1.7 - mean[:, 0])
    torch.testing.assert_close(got.x0, mean, rtol=0, atol=1e-9)
    differ(got, prior(x, level))


def test_a_score_of_the_estimate_has_its_gradient_through_the_denoiser(x):
    level = LEVELS["cosine"]
    score = guidance.on_estimate(WHOLE, lambda x0, level: -(x0 - 1).square().sum(1) / (1 + level.sigma))
    found = guidance.gradient(score, 2.0)(x, level)
    tiny = 1e-5
    for axis in range(2):
        ends = []
        for side in (tiny, -tiny):
            near = x.clone()
            near[:, axis] += side
            ends.append(-(WHOLE(near, level).x0 - 1).square().sum(1))
        torch.testing.assert_close(found[:, axis], 2 * (ends[0] - ends[1]) / (2 * tiny), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- by likeness to a reference

# three textures: a plane, stripes, and the stripes moved by one
PLANE = torch.full((1, 6, 6), 0.8, dtype=torch.float64)
STRIPES = torch.tensor([0.8, -0.8] * 3, dtype=torch.float64).expand(1, 6, 6)
TEXTURES = Mixture([1.0, 1.0, 1.0], torch.stack([PLANE, STRIPES, -STRIPES]), [0.15] * 3)


def maps(x: Tensor, level: NoiseLevel) -> list[Tensor]:
    """Two layers: the pixels, and differences of neighbours along both axes."""
    del level
    return [x, torch.cat([x.diff(dim=-1)[..., 1:, :], x.diff(dim=-2)[..., 1:]], dim=1)]


def nearest_texture(score: guidance.Score | None, scale: float) -> list[float]:
    start = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = TEXTURES if score is None else guidance.shift_eps(TEXTURES, guidance.gradient(score, scale))
    found = run(ddim(schedules.uniform(CosineVP(), 30)), step, start)
    which = torch.cdist(found.flatten(1), TEXTURES.means.flatten(1)).argmin(1)
    return [(which == k).double().mean().item() for k in range(3)]


def test_content_and_structure_find_the_reference_and_style_its_texture():
    assert max(nearest_texture(None, 0.0)) < 0.6
    textures = torch.stack([PLANE, STRIPES]).flatten(1)
    content = guidance.content(lambda x, level: x.flatten(1) @ textures.T, STRIPES[None])
    assert nearest_texture(content, 10.0)[1] > 0.85
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert nearest_texture(guidance.structure(maps, STRIPES[None], noise), 20.0)[1] > 0.9
    # Gram matrices of clean images: they would count the noise of x as texture
    style = guidance.on_estimate(TEXTURES, guidance.style(maps, STRIPES[None]))
    plane, stripes, moved = nearest_texture(style, 3.0)
    assert plane < 0.05  # the texture is wanted ...
    assert min(stripes, moved) > 0.2, (stripes, moved)  # ... wherever its stripes are


def test_likeness_is_greatest_for_the_reference_at_every_level():
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for level in LEVELS.values():
        own = level.alpha * STRIPES[None] + level.sigma * noise
        other = level.alpha * PLANE[None] + level.sigma * noise
        pair = torch.cat([own, other])
        content = guidance.content(lambda x, level: x, STRIPES[None], noise)(pair, level)
        assert content[0].item() == pytest.approx(1)
        assert content[1] < 1
        for make in (guidance.structure, guidance.style):
            score = make(maps, STRIPES[None], noise)(pair, level)
            assert score[0].item() == pytest.approx(0, abs=1e-12)
            assert score[1] < -1e-3


# ---------------------------------------------------------------------- one call or several


class Small(torch.nn.Module):
    """A network that listens to vectors, masked tokens and channels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.weight = torch.randn(5, 5, generator=generator)
        self.rows: list[int] = []

    def forward(self, x: Tensor, index: Tensor, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        shift = torch.zeros_like(x)
        if condition.vector is not None:
            shift = shift + condition.vector
        if condition.tokens is not None:
            mask = torch.ones(condition.tokens.shape[:2]) if condition.mask is None else condition.mask.float()
            shift = shift + (condition.tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return (torch.sin(x + index[:, None] / 500) + shift) @ self.weight


def vectors() -> tuple[Condition, Condition]:
    both = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(7))
    return Condition(vector=both[0]), Condition(vector=both[1])


@pytest.mark.parametrize("t", [0.4, torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)], ids=["one", "each"])
@pytest.mark.parametrize("kind", ["vector", "tokens"])
def test_one_batched_call_equals_two(kind, t):
    network = Small()
    denoiser = Denoiser(network, LinearVP())
    condition, null = vectors()
    if kind == "tokens":  # of different lengths, one masked already
        tokens = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(8))
        condition = Condition(tokens=tokens, mask=torch.tensor([True, True, False]).expand(4, 3))
        null = Condition(tokens=tokens[:, :1])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    level = LinearVP().at(t)
    two = guidance.cfg(lambda x, l: denoiser(x, l, condition), lambda x, l: denoiser(x, l, null), 3.0)(x, level)  # noqa: E741
    assert network.rows == [4, 4]
    step, without = guidance.batch_cond_uncond(denoiser, condition, null)
    one = guidance.cfg(step, without, 3.0)(x, level)
    assert network.rows[2:] == [8]
    same(one, two, 1e-6 * max(1.0, two.x0.abs().max().item()))
    differ(one, denoiser(x, level, condition))


def test_a_batched_run_equals_a_run_of_two_calls_and_saves_the_null_where_it_is_not_needed():
    network = Small()
    denoiser = Denoiser(network, CosineVP(), prediction=prediction.v)
    condition, null = vectors()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    plan = ddim(schedules.uniform(CosineVP(), 10))

    def guided(steps: list[DenoiseFn]) -> DenoiseFn:
        strong = guidance.rescale(guidance.cfg(steps[0], steps[1], 3.0), steps[0], 0.5)
        return guidance.interval(strong, steps[0], 0.25, 0.75)

    separate = [lambda x, l, c=c: denoiser(x, l, c) for c in (condition, null)]  # noqa: E741
    want = run(plan, guided(separate), x)
    network.rows.clear()
    got = run(plan, guided(guidance.batch_cond_uncond(denoiser, condition, null)), x)
    assert sorted(network.rows) == [4] * 5 + [8] * 5
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    network.rows.clear()
    shared = run(plan, guided([guidance.memoized(separate[0]), separate[1]]), x)
    assert network.rows == [4] * 15
    torch.testing.assert_close(shared, want, rtol=1e-6, atol=1e-6)


def test_what_is_shared_is_forgotten_when_x_or_the_level_changes(x):
    step, calls = counted(FIRST)
    shared = guidance.memoized(step)
    level = LEVELS["vp"]
    first = shared(x, level)
    assert shared(x, level) is first
    assert len(calls) == 1
    same(shared(2 * x, level), FIRST(2 * x, level), 0)
    shared(x, LEVELS["cosine"])
    shared(x, level)
    assert len(calls) == 4
    x.add_(1.0)
    same(shared(x, level), FIRST(x, level), 0)
    with torch.enable_grad():  # an estimate without a graph is of no use where one is wanted
        shared(x.requires_grad_(), level)
    with torch.no_grad():
        shared(x, level)
    assert len(calls) == 7


def test_three_conditions_in_one_call():
    network = Small()
    denoiser = Denoiser(network, LinearVP())
    condition, null = vectors()
    other = Condition(vector=torch.ones(4, 5))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    level = LinearVP().at(0.3)
    got = guidance.multi_condition(guidance.batch_cond_uncond(denoiser, null, other, condition), [1.5, 3.0])(x, level)
    assert network.rows == [12]
    steps = [lambda x, l, c=c: denoiser(x, l, c) for c in (null, other, condition)]  # noqa: E741
    same(got, guidance.multi_condition(steps, [1.5, 3.0])(x, level), 2e-5)


# ---------------------------------------------------------------------- levels per element


@pytest.mark.parametrize(
    "step",
    [
        guidance.cfg(FIRST, WHOLE, 3.0),
        guidance.cfg(FIRST, WHOLE, guidance.linear(3.0)),
        guidance.multi_condition([WHOLE, LAST, FIRST], [1.5, 2.0]),
        guidance.rescale(guidance.cfg(FIRST, WHOLE, 3.0), FIRST),
        guidance.interval(guidance.cfg(FIRST, WHOLE, 3.0), FIRST, 0.1, 0.9),
        guidance.apg(FIRST, WHOLE, 3.0, radius=0.5),
        guidance.cfg_zero(FIRST, WHOLE, 3.0),
        guidance.shift_eps(WHOLE, guidance.gradient(guidance.log_probability(logits, torch.tensor([0])), 3.0)),
    ],
    ids=["cfg", "schedule", "nested", "rescale", "interval", "apg", "cfg-zero", "steer"],
)
def test_parts_that_are_clean_already_are_not_moved(step, x):
    level = partly(LinearVP().at(0.4), torch.tensor([[True, False]]))
    got = step(x, level)
    torch.testing.assert_close(got.x0[:, 1], x[:, 1], rtol=0, atol=1e-12)
    consistent(got, x, level)


# ---------------------------------------------------------------------- thresholds


def test_guidance_composes_left_to_right(x):
    level = LinearVP().at(0.5)
    strong = guidance.cfg(FIRST, WHOLE, 3.0)(x, level)
    assert strong.x0.abs().max() > 1
    clipped = guidance.clip_static(guidance.cfg(FIRST, WHOLE, 3.0))(x, level)
    torch.testing.assert_close(clipped.x0, strong.x0.clamp(-1, 1))
    consistent(clipped, x, level)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_dynamic_clipping_scales_each_sample_by_its_own_percentile(kind):
    x = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-0.5, 0.5, 101)]).to(kind)
    level = LinearVP().at(0.5)
    step = guidance.clip_dynamic(lambda x, at: Estimate.of_x0(x, x, at), 0.9)
    got = step(x, level).x0
    assert got.dtype == kind
    assert got[0].abs().max().item() == pytest.approx(1, abs=0.01 if kind is torch.bfloat16 else 1e-6)
    assert torch.equal(got[1], x[1])  # never below the limit, so untouched
    numbers = guidance.clip_dynamic(lambda x, at: Estimate.of_x0(x, x, at), 0.9)(x[0], level).x0
    assert numbers.abs().max().item() == pytest.approx(1, abs=0.01)  # where a sample is one number


def test_dynamic_clipping_keeps_contrast_where_static_clipping_flattens():
    """At a high scale many pixels leave the range: static clipping makes them all equal, dynamic does not."""
    x = torch.linspace(-2, 2, 400, dtype=torch.float64)[None]
    level = LinearVP().at(0.3)
    wild = lambda x, at: Estimate.of_x0(2 * x, x, at)  # noqa: E731
    flat = [(c(wild)(x, level).x0.abs() >= 1).double().mean() for c in (guidance.clip_static, guidance.clip_dynamic)]
    assert flat[0] > 0.7
    assert flat[1] < 0.02


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.interval(FIRST, WHOLE, 0.2, 1.4), r"interval 0.2 to 1.4: t lies in \[0, 1\]"),
        (lambda: guidance.interval(FIRST, WHOLE, -0.1, 0.4), r"interval -0.1 to 0.4: t lies in \[0, 1\]"),
        (lambda: guidance.interval(FIRST, WHOLE, 0.7, 0.2), "interval 0.7 to 0.2: must rise"),
        (lambda: guidance.cfg(FIRST, WHOLE, 2.0, channels=0), "channels = 0: guide at least 1"),
        (lambda: guidance.rescale(FIRST, WHOLE, 1.5), r"amount = 1.5: must lie in \[0, 1\]"),
        (lambda: guidance.power_cosine(2.0, 0.0), "power = 0.0: must be above 0"),
        (lambda: guidance.apg(FIRST, WHOLE, 2.0, radius=0.0), "radius = 0.0: must be above 0"),
        (lambda: Momentum(-1.0), r"beta = -1.0: must lie inside \(-1, 1\)"),
        (
            lambda: guidance.multi_condition([FIRST, WHOLE], [1.0, 2.0]),
            "2 steps, 2 scales: needs one for each step after",
        ),
        (lambda: guidance.composed(FIRST, [WHOLE], []), "1 conditional steps, 0 scales: needs one for each"),
        (lambda: guidance.clip_dynamic(FIRST, 99.5), r"percentile = 99.5: must lie inside \(0, 1\)"),
        (lambda: guidance.regression(logits, 1.0, 0.0), "deviation = 0.0: must be above 0"),
    ],
)
def test_mistaken_settings_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_inputs_that_do_not_fit_are_named(x):
    level = LEVELS["vp"]
    one = torch.tensor([0])
    with pytest.raises(ShapeError, match=r"x \(2,\): the classifier reads images of \(3, 64, 64\); use one"):
        guidance.gradient(guidance.log_probability(logits, one, shape=(3, 64, 64)))(x, level)
    with pytest.raises(RecipeError, match="label 3: the classifier knows 0 to 2"):
        guidance.gradient(guidance.log_probability(logits, torch.tensor([3])))(x, level)
    with pytest.raises(ShapeError, match=r"7 labels and logits \(30, 3\) for 30 images"):
        guidance.gradient(guidance.log_probability(logits, torch.zeros(7, dtype=torch.long)))(x, level)
    with pytest.raises(ShapeError, match=r"a reference \(1, 1, 6, 6\) for x \(30, 2\): give an image of x's size"):
        guidance.gradient(guidance.content(lambda x, level: x, STRIPES[None]))(x, level)
    with pytest.raises(ShapeError, match=r"noise \(6, 6\) for a reference \(1, 6, 6\)"):
        guidance.style(maps, STRIPES, STRIPES[0])
    with pytest.raises(ShapeError, match=r"a score of shape \(30, 2\) for 30 samples: needs one number each"):
        guidance.gradient(lambda x, level: x)(x, level)
    with pytest.raises(RecipeError, match="the score does not depend on x"):
        guidance.gradient(lambda x, level: x.detach().sum(1))(x, level)
    with pytest.raises(ShapeError, match=r"channels = 3: x is \(30, 2\)"):
        guidance.cfg(FIRST, WHOLE, 2.0, channels=3)(x, level)
    with pytest.raises(ShapeError, match="conditions differ in the route 'vector': only 1 of 2 use it"):
        guidance.batch_cond_uncond(Denoiser(Small(), LinearVP()), vectors()[0], Condition())
    with pytest.raises(ShapeError, match=r"conditions differ in the shape of 'vector': \[\(4,\), \(5,\)\]"):
        guidance.batch_cond_uncond(Denoiser(Small(), LinearVP()), vectors()[0], Condition(vector=torch.ones(4, 4)))
