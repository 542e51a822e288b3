"""Golden kinds of processes, losses, bounds and samplers; every setting comes from the case's meta.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden import dit
from tests.golden.case import Case, Comparison, separately
from tests.golden.networks import openai_config
from unveil.checkpoints import openai_keys
from unveil.conditioning.class_label import Label
from unveil.core import prediction as predictions
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound, bound_term, prior_term
from unveil.core.objective import DiffusionLoss
from unveil.core.prediction import (
    Prediction,
    VarianceRule,
    fixed_large,
    fixed_small,
    is_learned,
    learned,
    learned_range,
)
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import Noise
from unveil.core.samplers import SamplerState, ancestral, ddim, encode, run
from unveil.core.timestep_sampling import SecondMoment
from unveil.core.transition import Chain, Transition
from unveil.nn.unet import UNet
from unveil.types import Condition, NoiseLevel, like

OPENAI_BETAS = {"linear": "linear-scaled", "cosine": "cosine", "squaredcos_cap_v2": "cosine"}
OPENAI_VARIANCE = {
    "LEARNED": learned,
    "LEARNED_RANGE": learned_range,
    "FIXED_SMALL": fixed_small,
    "FIXED_LARGE": fixed_large,
}


# keywords of the published constructors with their defaults
OPENAI = {"steps": 1000, "learn_sigma": False, "sigma_small": False, "noise_schedule": "linear", "use_kl": False,
          "predict_xstart": False, "rescale_timesteps": False, "rescale_learned_sigmas": False,
          "timestep_respacing": ""}  # fmt: skip
DIT = {"timestep_respacing": "", "noise_schedule": "linear", "use_kl": False, "sigma_small": False,
       "predict_xstart": False, "learn_sigma": True, "rescale_learned_sigmas": False,
       "diffusion_steps": 1000}  # fmt: skip
RESAMPLER = {"num_timesteps": None, "history_per_term": 10, "uniform_prob": 0.001}


def keywords(constructor: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a constructor; one that it does not have stays unread."""
    return {name: constructor.get(name, value) for name, value in defaults.items()}


def variance_of(call: Mapping[str, Any]) -> VarianceRule:
    """The variance of a constructor's keywords."""
    if call["learn_sigma"]:
        return learned_range
    return fixed_small if call["sigma_small"] else fixed_large


class Formula(nn.Module):
    """The recorded toy network: a x + b sin(c t) + d roll(x), and e cos(3 x) for the variance.

    two_heads: of cases with several variances, which state it in words.
    """

    def __init__(self, settings: Mapping[str, Any], two_heads: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (settings[name] for name in "abcde")
        stated = settings.get("two_heads")
        self.two_heads = stated if isinstance(stated, bool) else two_heads

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        wave = torch.sin(self.c * t.float()).reshape(-1, *(1,) * (x.ndim - 1))
        y = self.a * x + self.b * wave + self.d * torch.roll(x, shifts=1, dims=-1)
        return torch.cat([y, self.e * torch.cos(3 * x)], 1) if self.two_heads else y


def respaced(steps: int, respacing: str | list[int] | None) -> list[int]:
    """The indices that a respacing keeps: a string, the counts of parts, or None for all."""
    spacing = respacing if isinstance(respacing, str) else ",".join(map(str, respacing or []))
    return schedules.respaced_indices(steps, spacing)


class Setup:
    """One published diffusion object: its chain, and a denoiser over it."""

    def __init__(
        self,
        betas_kind: str,
        steps: int,
        respacing: str | list[int] | None,
        *,
        rescale: bool,
        timesteps: list[int] | None = None,
    ):
        self.process = DiscreteVP(betas(OPENAI_BETAS[betas_kind], steps), rescale=1000.0 if rescale else None)
        kept = respaced(steps, respacing)
        if timesteps is not None and kept != timesteps:
            raise AssertionError(f"respacing {respacing!r} keeps {kept}, recorded {timesteps}")
        self.schedule = schedules.at_indices(self.process, kept)
        self.kept = kept
        self.chain = Chain(self.schedule)

    def levels(self, t: Tensor) -> NoiseLevel:
        """The levels (B,) of indices into the respaced chain."""
        return self.process.at((torch.tensor(self.kept)[t].double() + 1) / self.process.steps)

    def below(self, t: Tensor) -> NoiseLevel:
        """The next cleaner levels (B,)."""
        return self.chain.of(self.levels(t)).s

    def above(self, t: Tensor) -> NoiseLevel:
        """The next noisier levels (B,); beyond the last one alpha is 0, as published."""
        last = t == len(self.kept) - 1
        level = self.levels((t + 1).clamp(max=len(self.kept) - 1))
        return level._replace(
            alpha=torch.where(last, 0.0, level.alpha),
            sigma=torch.where(last, 1.0, level.sigma),  # type: ignore[arg-type]
        )


def expanded(value: Any, x: Tensor) -> Tensor:
    """A number, (B,) or full tensor spread to x's shape."""
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return like(value, x) * torch.ones_like(x)


def drawn(noises: Tensor) -> Noise:
    """The recorded noises, by step."""
    return lambda step, draw=0: noises[step]


# ---------------------------------------------------------------------- schedules


def openai_schedules(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/schedules."""
    for kind, steps in case.meta["schedules"]:
        process = DiscreteVP(betas(OPENAI_BETAS[kind], steps))
        yield case.compare(f"{kind}_{steps}.betas", process.betas)
        yield case.compare(f"{kind}_{steps}.alphas_cumprod", process.alpha_bar[1:])


def dit_schedule(case: Case) -> Iterator[Comparison]:
    """DiT/schedule: every array of each respaced object."""
    call = keywords(case.meta["constructor"], DIT)
    table = betas(OPENAI_BETAS[call["noise_schedule"]], call["diffusion_steps"])
    spacings = [spacing["timestep_respacing"] for spacing in case.meta["respacings"].values()]
    yield case.compare("timestep_respacing", int(spacings == call["timestep_respacing"]), want=1)
    for name, spacing in case.meta["respacings"].items():
        kept = respaced(len(table), spacing["timestep_respacing"])
        yield case.compare(f"{name}.num_timesteps", len(kept), want=spacing["num_timesteps"])
        chosen = DiscreteVP(table).alpha_bar[torch.tensor(kept) + 1]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), chosen[:-1]])
        # a respaced chain computes its cumulative products from its betas: they differ from a slice at 1e-10
        process = DiscreteVP(1 - chosen / previous)
        arrays = {**published_arrays(process), "timestep_map": torch.tensor(kept)}
        for array, value in arrays.items():
            if f"{name}.{array}" in case.io:
                yield case.compare(f"{name}.{array}", value)


def published_arrays(process: DiscreteVP) -> dict[str, Tensor]:
    """The arrays that published diffusion objects keep, from levels and transitions."""
    times = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    level = process.at(times)
    step = Chain([process.at(i / process.steps) for i in range(process.steps, -1, -1)]).of(level)
    acp = process.alpha_bar[1:]
    one = torch.ones(1, dtype=torch.float64)
    return {
        "betas": process.betas,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": torch.cat([one, acp[:-1]]),
        "alphas_cumprod_next": torch.cat([acp[1:], 0 * one]),
        "sqrt_alphas_cumprod": level.alpha,
        "sqrt_one_minus_alphas_cumprod": level.sigma,
        "log_one_minus_alphas_cumprod": 2 * level.sigma.log(),  # type: ignore[union-attr]
        "sqrt_recip_alphas_cumprod": 1 / level.alpha,
        "sqrt_recipm1_alphas_cumprod": level.sigma / level.alpha,
        "posterior_variance": step.var,
        "posterior_log_variance_clipped": step.floor.log(),  # type: ignore[union-attr]
        "posterior_mean_coef1": step.c0,
        "posterior_mean_coef2": step.ct,
    }  # type: ignore[return-value]


# ---------------------------------------------------------------------- OpenAI's diffusion object


def improved_losses(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/losses: 3 predictions x 4 variances x 4 losses, and single steps of three samplers."""
    meta = case.meta
    setup = Setup(
        meta["schedule"], meta["steps"], meta["respacing"], rescale=meta["rescale_timesteps"],
        timesteps=meta["timestep_map"],
    )  # fmt: skip
    t, x0, noise = case.io["input.t"], case.io["input.x0"], case.io["input.noise"]
    level = setup.levels(t)
    x = like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise
    yield case.compare("output.q_sample", x)
    means = {
        "PREVIOUS_X": predictions.posterior_mean(setup.chain),
        "START_X": predictions.x0,
        "EPSILON": predictions.eps,
    }
    for mean_name, prediction in means.items():
        for var_name, variance in OPENAI_VARIANCE.items():
            name = f"{mean_name}.{var_name}"
            yield from separately(name, combination(case, name, setup, prediction, variance, x))


def combination(
    case: Case, name: str, setup: Setup, prediction: Prediction, variance: VarianceRule, x: Tensor
) -> Iterator[Comparison]:
    """One prediction with one variance."""
    heads = is_learned(variance)
    network = Formula(case.meta["model"], heads)
    denoiser = Denoiser(network, setup.process, prediction=prediction, learns_variance=heads)
    yield from published_losses(case, name, setup, denoiser, variance)
    for clip in (0, 1):
        prefix = f"pmv.{name}.clip{clip}"
        if f"{prefix}.mean" in case.io:
            t = case.io["input.t"]
            yield from p_mean_variance(case, prefix, setup, denoiser, variance, x, t, clip=bool(clip))
    yield from single_steps(case, name, setup, denoiser, variance, x)


def published_losses(
    case: Case, name: str, setup: Setup, denoiser: Denoiser, variance: VarianceRule
) -> Iterator[Comparison]:
    """The four published loss types as settings of one objective."""
    steps = len(setup.chain)
    level = setup.levels(case.io["input.t"])
    both = 1.0 if is_learned(variance) else 0.0
    kinds = {  # (simple, bound), where bound weighs N times the mean of the terms
        "MSE": (1.0, both / steps),
        "RESCALED_MSE": (1.0, both / 1000),
        "KL": (0.0, 1 / steps),
        "RESCALED_KL": (0.0, 1.0),
    }
    for kind, (simple, weight) in kinds.items():
        loss = DiffusionLoss(simple=simple, bound=weight, variance=variance, chain=setup.chain).at(
            denoiser, case.io["input.x0"], None, level.t, case.io["input.noise"]
        )
        prefix = f"loss.{name}.{kind}"
        if f"{prefix}.loss" in case.io:
            yield case.compare(f"{prefix}.loss", loss.per_sample)
        if f"{prefix}.mse" in case.io:
            yield case.compare(f"{prefix}.mse", loss.terms["simple"])
        if f"{prefix}.vb" in case.io:
            yield case.compare(f"{prefix}.vb", weight * loss.terms["bound"])


def p_mean_variance(
    case: Case, prefix: str, setup: Setup, denoiser: Denoiser, variance: VarianceRule, x: Tensor, t: Tensor, *,
    clip: bool, change: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Comparison]:  # fmt: skip
    """Mean, variance and x0 of one reverse step."""
    level = setup.levels(t)
    move = setup.chain.of(level)
    estimate = edited(denoiser, clip=clip, change=change)(x, level)
    # published PREVIOUS_X returns the network's mean as it is, whatever happens to x0
    mean = denoiser.output(x, level)[0] if is_mean(denoiser) else move.mean(estimate.x0, x)
    spread = variance(move, estimate.extra)
    got = {
        "mean": mean,
        "pred_xstart": estimate.x0,
        "variance": expanded(spread.value, x),
        "log_variance": expanded(spread.log, x),
    }
    for field, value in got.items():
        if f"{prefix}.{field}" in case.io:
            yield case.compare(f"{prefix}.{field}", value)


def single_steps(
    case: Case, name: str, setup: Setup, denoiser: Denoiser, variance: VarianceRule, x: Tensor
) -> Iterator[Comparison]:
    """p_sample, ddim_sample and ddim_reverse of one step at per-sample levels."""
    t, noise = case.io["input.t"], case.io["p_sample.noise"]
    yield case.compare(f"p_sample.{name}", p_sample(setup, denoiser, variance, x, t, noise, clip=True))
    step = clip_static(denoiser)
    pair = schedules.Schedule(setup.process, [setup.levels(t), setup.below(t)])
    for key in case.io:
        if key.startswith("ddim_sample_eta") and key.endswith(f".{name}"):
            eta = float(key.removeprefix("ddim_sample_eta").removesuffix(f".{name}"))
            yield case.compare(key, run(ddim(pair, eta), step, x, noise=lambda k: noise))
    up = schedules.Schedule(setup.process, [setup.above(t), setup.levels(t)])
    yield case.compare(f"ddim_reverse.{name}", run(encode(up), step, x))


def p_sample(
    setup: Setup, denoiser: Denoiser, variance: VarianceRule, x: Tensor, t: Tensor, noise: Tensor, *, clip: bool
) -> Tensor:
    """Each sample at its own place in the chain, through the ancestral plan."""
    step = clip_static(denoiser) if clip and not is_mean(denoiser) else denoiser
    plan = ancestral(setup.schedule, variance)
    out = []
    for b, index in enumerate(t.tolist()):
        place = len(setup.kept) - 1 - index
        one = SamplerState(x[b : b + 1].clone(), (), place)
        state = plan.advance(one, step, lambda k, draw=0, b=b: noise[b : b + 1], torch.empty_like(x[b : b + 1])).state
        out.append(state.x)
    return torch.cat(out)


def edited(denoiser: DenoiseFn, *, clip: bool, change: Callable[[Tensor], Tensor] | None) -> DenoiseFn:
    """x0 changed, then clipped."""

    def changed(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = denoiser(x, level)
        return estimate if change is None else Estimate.of_x0(change(estimate.x0), x, level, estimate.extra)

    return clip_static(changed) if clip else changed


def is_mean(denoiser: Denoiser) -> bool:
    """Whether the network predicts the posterior mean."""
    return denoiser.prediction not in predictions.PREDICTIONS.values()


def calc_bpd(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/calc_bpd: every term of the bound."""
    meta, call = case.meta, keywords(case.meta["constructor"], OPENAI)
    setup = Setup(
        call["noise_schedule"], call["steps"], call["timestep_respacing"], rescale=call["rescale_timesteps"],
        timesteps=meta["timestep_map"],
    )  # fmt: skip
    denoiser, variance, condition = openai_denoiser(case, setup, call)
    step = lambda x, level: denoiser(x, level, condition)  # noqa: E731
    got = bound(
        clip_static(step) if meta["clip_denoised"] else step,
        setup.chain, case.io["input.x0"], variance, noise=drawn(case.io["noises"]),
    )  # fmt: skip
    yield case.compare("output.vb", got.terms)
    yield case.compare("output.prior_bpd", got.prior)
    yield case.compare("output.total_bpd", got.total)
    yield case.compare("output.xstart_mse", got.x0_mse)
    yield case.compare("output.mse", got.eps_mse)


def openai_denoiser(
    case: Case, setup: Setup, call: Mapping[str, Any]
) -> tuple[Denoiser, VarianceRule, Condition | None]:
    """The case's network, a formula, a recorded U-Net or DiT, with its prediction and variance."""
    meta, variance, condition = case.meta, variance_of(call), None
    if isinstance(meta["model"], Mapping):
        network: nn.Module = Formula(meta["model"], is_learned(variance))
    elif "patch_size" in meta["network"]["constructor"]:
        network = dit.looped(case)
    else:
        network, condition = openai_unet(case)
    prediction = predictions.x0 if call["predict_xstart"] else predictions.eps
    denoiser = Denoiser(network, setup.process, prediction=prediction, learns_variance=is_learned(variance))
    return denoiser.eval(), variance, condition


def openai_unet(case: Case) -> tuple[nn.Module, Condition | None]:
    """The recorded U-Net, and the condition that its label table makes of the case's classes."""
    config = openai_config(case, case.meta["network"]["constructor"])
    parts = openai_keys.convert_state_dict(case.weights(), config)
    network = UNet(config)
    network.load_state_dict(parts.network)
    if parts.label is None:
        return network.eval(), None
    label = Label(*parts.label["table.weight"].shape)
    label.load_state_dict(parts.label)
    classes = torch.tensor(case.meta["y"]) if "y" in case.meta else case.io["input.y"]
    with torch.no_grad():
        return network.eval(), label.encode(classes)


def second_moment(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/loss_second_moment: the weights after each update, and one draw."""
    made, io = keywords(case.meta["constructor"], RESAMPLER), case.io
    sampler = SecondMoment(made["num_timesteps"], made["history_per_term"], made["uniform_prob"])
    weights = [sampler.weights()]
    for index, losses in zip(io["ts"], io["losses"], strict=True):
        sampler.update(index, losses)
        weights.append(sampler.weights())
    # the original's weights before warm-up are ones, ours always sum to 1
    got = torch.stack([w if warm else w * len(w) for w, warm in zip(weights, io["warmed_up"], strict=True)])
    yield case.compare("weights", got)
    yield case.compare("p", sampler.weights())
    yield case.compare("loss_counts", sampler.counts)
    # the original fills a history from the front, ours from the end
    filled = zip(sampler.history_table, sampler.counts.tolist(), strict=True)
    yield case.compare("loss_history", torch.stack([row.roll(count) for row, count in filled]))
    u = np.random.RandomState(case.meta["numpy_seed_for_sample"]).random_sample(len(io["sample.indices"]))
    place, weight = sampler.draw(torch.from_numpy(u), range(len(u)))
    yield case.compare("sample.indices", (place * made["num_timesteps"]).floor().long())
    yield case.compare("sample.weights", weight.float())


# ---------------------------------------------------------------------- DiT's copy of it


def dit_setup(case: Case) -> tuple[Setup, dict[str, Any]]:
    """DiT's `create_diffusion`, and its keywords."""
    call = keywords(case.meta["constructor"], DIT)
    setup = Setup(
        call["noise_schedule"], call["diffusion_steps"], call["timestep_respacing"], rescale=False,
        timesteps=case.meta.get("timestep_map"),
    )  # fmt: skip
    return setup, call


def dit_diffusion(case: Case) -> Iterator[Comparison]:
    """DiT/diffusion: the methods of the diffusion object at given indices."""
    setup, call = dit_setup(case)
    denoiser, variance, _ = openai_denoiser(case, setup, call)
    t, x0, noise = case.io["input.t"], case.io["input.x0"], case.io["input.noise"]
    level = setup.levels(t)
    x = like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise
    yield from q_distributions(case, setup.chain.of(level), x0, x)
    for clip in (0, 1):
        prefix = f"output.p_mean_variance.clip{clip}"
        yield from p_mean_variance(case, prefix, setup, denoiser, variance, x, t, clip=bool(clip))
    half = "output.p_mean_variance.denoised_fn_half"
    yield from p_mean_variance(case, half, setup, denoiser, variance, x, t, clip=True, change=lambda x0: 0.5 * x0)
    if "output.p_sample.sample" in case.io:
        drawn_noise = case.io["output.p_sample.noise"]
        yield case.compare("output.p_sample.sample", p_sample(setup, denoiser, variance, x, t, drawn_noise, clip=True))
    yield from dit_ddim(case, setup, denoiser, x)
    yield from dit_losses(case, setup, denoiser, (variance, call), x)


def q_distributions(case: Case, move: Transition, x0: Tensor, x: Tensor) -> Iterator[Comparison]:
    """q(x_t | x0) and q(x_s | x_t, x0)."""
    level = move.t
    got = {
        "q_sample": x,
        "q_mean": like(level.alpha, x) * x0,
        "q_variance": expanded(level.sigma**2, x),
        "q_log_variance": expanded(2 * level.sigma.log(), x),  # type: ignore[union-attr]
        "q_posterior_mean": move.mean(x0, x),
        "q_posterior_variance": expanded(move.var, x),
        "q_posterior_log_variance_clipped": expanded(move.floor.log(), x),  # type: ignore[union-attr]
    }
    for name, value in got.items():
        if f"output.{name}" in case.io:
            yield case.compare(f"output.{name}", value)


def dit_ddim(case: Case, setup: Setup, denoiser: Denoiser, x: Tensor) -> Iterator[Comparison]:
    """DDIM steps at several eta, and the reverse step."""
    t, step = case.io["input.t"], clip_static(denoiser)
    pair = schedules.Schedule(setup.process, [setup.levels(t), setup.below(t)])
    for key in case.io:
        if key.startswith("output.ddim_sample.eta"):
            eta = float(key.removeprefix("output.ddim_sample.eta"))
            noise = case.io["output.ddim_sample.noise"]
            yield case.compare(key, run(ddim(pair, eta), step, x, noise=lambda k, z=noise: z))
    up = schedules.Schedule(setup.process, [setup.above(t), setup.levels(t)])
    if "output.ddim_reverse_sample.sample" in case.io:
        yield case.compare("output.ddim_reverse_sample.sample", run(encode(up), step, x))
        yield case.compare("output.ddim_reverse_sample.pred_xstart", step(x, setup.levels(t)).x0)


def dit_losses(
    case: Case, setup: Setup, denoiser: Denoiser, options: tuple[VarianceRule, Mapping[str, Any]], x: Tensor
) -> Iterator[Comparison]:
    """training_losses, single terms of the bound, and the prior."""
    (variance, call), x0, level = options, case.io["input.x0"], setup.levels(case.io["input.t"])
    simple, weight = 1.0, 1 / 1000 if call["rescale_learned_sigmas"] else 1 / len(setup.chain)
    if call["use_kl"]:  # the bound alone, times the number of steps
        simple, weight = 0.0, 1.0
    elif not is_learned(variance):
        weight = 0.0
    loss = DiffusionLoss(simple=simple, bound=weight, variance=variance, chain=setup.chain).at(
        denoiser,
        x0,
        None,
        level.t,
        case.io["input.noise"],  # type: ignore[arg-type]
    )
    yield case.compare("output.training_losses.loss", loss.per_sample)
    if "output.training_losses.mse" in case.io:
        yield case.compare("output.training_losses.mse", loss.terms["simple"])
    if "output.training_losses.vb" in case.io:
        yield case.compare("output.training_losses.vb", weight * loss.terms["bound"])
    move = setup.chain.of(level)
    for clip in (0, 1):
        if f"output.vb_terms_bpd.clip{clip}" in case.io:
            estimate = (clip_static(denoiser) if clip else denoiser)(x, level)
            log = variance(move, estimate.extra).log
            term = bound_term(move, x0, x, move.mean(estimate.x0, x), log)
            yield case.compare(f"output.vb_terms_bpd.clip{clip}", term)
    if "output.prior_bpd" in case.io:
        yield case.compare("output.prior_bpd", prior_term(setup.chain[0].t, x0))


def dit_loops(case: Case) -> Iterator[Comparison]:
    """DiT/sample_loops: whole runs of the ancestral and DDIM samplers and the encoder."""
    setup, call = dit_setup(case)
    denoiser, variance, _ = openai_denoiser(case, setup, call)
    for name in sorted(key.removesuffix(".noises") for key in case.io if key.endswith(".noises")):
        yield from separately(name, dit_loop(case, name, setup, denoiser, variance))
    if "ddim_reverse.x0" in case.io:
        yield case.compare("ddim_reverse.trajectory", dit_reverse(setup, denoiser, case.io["ddim_reverse.x0"]))


def dit_loop(case: Case, name: str, setup: Setup, denoiser: Denoiser, variance: VarianceRule) -> Iterator[Comparison]:
    """One whole run."""
    noises, trajectory = case.io[f"{name}.noises"], list[Tensor]()
    step: DenoiseFn = clip_static(denoiser) if name.endswith("_clip") else denoiser
    plan = ancestral(setup.schedule, variance) if name.startswith("p_sample") else ddim(setup.schedule, eta_of(name))
    sample = run(
        plan, step, noises[0].clone(), noise=drawn(noises[1:]),
        on_step=lambda shown: trajectory.append(shown.state.x.clone()),
    )  # fmt: skip
    yield case.compare(f"{name}.sample", sample)
    if f"{name}.trajectory" in case.io:
        yield case.compare(f"{name}.trajectory", torch.stack(trajectory))


def eta_of(name: str) -> float:
    """The eta in ddim_eta0.5_clip."""
    return float(name.removeprefix("ddim_eta").removesuffix("_clip"))


def dit_reverse(setup: Setup, denoiser: Denoiser, x0: Tensor) -> Tensor:
    """The published encoder takes the image for a point of index 0, and ends where alpha is 0."""
    top = NoiseLevel(1.0, 0.0, 1.0)
    trajectory: list[Tensor] = []
    run(
        encode(schedules.Schedule(setup.process, [top, *setup.schedule[:-1]])),
        denoiser,
        x0.clone(),
        on_step=lambda shown: trajectory.append(shown.state.x.clone()),
    )
    return torch.stack(trajectory)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "improved-diffusion/schedules": openai_schedules,
    "improved-diffusion/losses": improved_losses,
    "improved-diffusion/calc_bpd": calc_bpd,
    "improved-diffusion/loss_second_moment": second_moment,
    "DiT/schedule": dit_schedule,
    "DiT/diffusion": dit_diffusion,
    "DiT/sample_loops": dit_loops,
}
