"""Golden kinds of processes, losses, bounds and samplers; every setting comes from the case's meta.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden import dit
from tests.golden.case import Case, Comparison, Unsupported
from unveil.checkpoints import openai_keys
from unveil.conditioning.class_label import Label
from unveil.core import prediction as predictions
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound, bound_term, prior_term
from unveil.core.objective import DiffusionLoss
from unveil.core.prediction import (
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


class Formula(nn.Module):
    """The recorded toy network: a x + b sin(c t) + d roll(x), and e cos(3 x) for the variance."""

    def __init__(self, settings: dict[str, Any], two_heads: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (settings[name] for name in "abcde")
        self.two_heads = two_heads

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        wave = torch.sin(self.c * t.float()).reshape(-1, *(1,) * (x.ndim - 1))
        y = self.a * x + self.b * wave + self.d * torch.roll(x, shifts=1, dims=-1)
        return torch.cat([y, self.e * torch.cos(3 * x)], 1) if self.two_heads else y


class Setup:
    """One published diffusion object: its chain, and a denoiser over it."""

    def __init__(
        self, betas_kind: str, steps: int, respacing: str, *, rescale: bool, timesteps: list[int] | None = None
    ):
        self.process = DiscreteVP(betas(OPENAI_BETAS[betas_kind], steps), rescale=1000.0 if rescale else None)
        kept = schedules.respaced_indices(steps, respacing)
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


def beta_tables(case: Case) -> Iterator[Comparison]:
    """ddim/beta_schedules: `arguments` is prose, "num_diffusion_timesteps=200, beta_start=1e-4, ..."."""
    given = dict(part.split("=") for part in case.meta["arguments"].replace(" ", "").split(","))
    for kind in case.io:
        table = betas(
            kind,
            int(given["num_diffusion_timesteps"]),
            start=float(given["beta_start"]),
            end=float(given["beta_end"]),
        )
        yield case.compare(kind, table)


def openai_schedules(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/schedules."""
    for kind, steps in case.meta["schedules"]:
        process = DiscreteVP(betas(OPENAI_BETAS[kind], steps))
        yield case.compare(f"{kind}_{steps}.betas", process.betas)
        yield case.compare(f"{kind}_{steps}.alphas_cumprod", process.alpha_bar[1:])


def dit_schedule(case: Case) -> Iterator[Comparison]:
    """DiT/schedule: every array of each respaced object."""
    made = case.meta["constructor"]
    table = betas(OPENAI_BETAS[made.get("noise_schedule", "linear")], made.get("diffusion_steps", 1000))
    for name, spacing in case.meta["respacings"].items():
        kept = schedules.respaced_indices(len(table), spacing["timestep_respacing"])
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
        meta["schedule"], meta["steps"], meta["respacing"] or "", rescale=meta["rescale_timesteps"],
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
            heads = is_learned(variance)
            denoiser = Denoiser(
                Formula(meta["model"], heads), setup.process, prediction=prediction, learns_variance=heads
            )
            yield from published_losses(case, name, setup, denoiser, variance)
            for clip in (0, 1):
                prefix = f"pmv.{name}.clip{clip}"
                if f"{prefix}.mean" in case.io:
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
    meta, made = case.meta, case.meta["constructor"]
    setup = Setup(
        made["noise_schedule"], made["steps"], made.get("timestep_respacing", ""),
        rescale=made.get("rescale_timesteps", False), timesteps=meta["timestep_map"],
    )  # fmt: skip
    denoiser, variance, condition = openai_denoiser(case, setup)
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


def openai_denoiser(case: Case, setup: Setup) -> tuple[Denoiser, VarianceRule, Condition | None]:
    """The case's network, a formula or a recorded U-Net, with its prediction and variance."""
    meta, made = case.meta, case.meta["constructor"]
    small = fixed_small if made.get("sigma_small", False) else fixed_large
    variance = learned_range if made.get("learn_sigma", False) else small
    condition = None
    if isinstance(meta["model"], dict):
        network: nn.Module = Formula(meta["model"], is_learned(variance))
    elif "unet" in str(meta["network"]["like_case"]):
        network, condition = openai_unet(case)
    elif str(meta["network"]["like_case"]).startswith("DiT/"):
        network = dit.looped(case)
    else:
        raise Unsupported(f"the network of {meta['network']['like_case']} does not exist yet")
    prediction = predictions.x0 if made.get("predict_xstart", False) else predictions.eps
    denoiser = Denoiser(network, setup.process, prediction=prediction, learns_variance=is_learned(variance))
    return denoiser.eval(), variance, condition


def openai_unet(case: Case) -> tuple[nn.Module, Condition | None]:
    """The recorded U-Net, and the condition that its label table makes of the case's classes."""
    config = openai_keys.config_from_arguments(case.meta["network"]["constructor"])
    parts = openai_keys.convert_state_dict(case.weights(), config)
    network = UNet(config)
    network.load_state_dict(parts.network)
    if parts.label is None:
        return network.eval(), None
    label = Label(*parts.label["table.weight"].shape)
    label.load_state_dict(parts.label)
    classes = case.io["input.y"] if "input.y" in case.io else torch.tensor(case.meta["y"])
    with torch.no_grad():
        return network.eval(), label.encode(classes)


def second_moment(case: Case) -> Iterator[Comparison]:
    """improved-diffusion/loss_second_moment: the weights after each update, and one draw."""
    made, io = case.meta["constructor"], case.io
    sampler = SecondMoment(made["num_timesteps"], made["history_per_term"], made["uniform_prob"])
    weights = [sampler.weights()]
    for index, losses in zip(io["ts"], io["losses"], strict=True):
        sampler.update(index, losses)
        weights.append(sampler.weights())
    scale = io["weights"][-1].sum()  # the original's weights before warm-up are ones, ours always sum to 1
    got = torch.stack([w * (len(w) if not warm else scale) for w, warm in zip(weights, io["warmed_up"], strict=True)])
    yield case.compare("weights", got)
    yield case.compare("p", sampler.weights())
    yield case.compare("loss_counts", sampler.counts)
    yield case.compare("loss_history", sampler.history_table)
    u = np.random.RandomState(case.meta["numpy_seed_for_sample"]).random_sample(len(io["sample.indices"]))
    place, weight = sampler.draw(torch.from_numpy(u), range(len(u)))
    yield case.compare("sample.indices", (place * made["num_timesteps"]).floor().long())
    yield case.compare("sample.weights", weight.float())


# ---------------------------------------------------------------------- DiT's copy of it


def dit_setup(case: Case) -> Setup:
    """DiT's `create_diffusion`; learn_sigma is its default."""
    made = {"noise_schedule": "linear", "diffusion_steps": 1000, **case.meta["constructor"]}
    case.meta["constructor"] = {"learn_sigma": True, **case.meta["constructor"]}
    return Setup(made["noise_schedule"], made["diffusion_steps"], made["timestep_respacing"], rescale=False)


def dit_diffusion(case: Case) -> Iterator[Comparison]:
    """DiT/diffusion: the methods of the diffusion object at given indices."""
    setup = dit_setup(case)
    denoiser, variance, _ = openai_denoiser(case, setup)
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
    yield from dit_losses(case, setup, denoiser, variance, x)


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


def dit_losses(case: Case, setup: Setup, denoiser: Denoiser, variance: VarianceRule, x: Tensor) -> Iterator[Comparison]:
    """training_losses, single terms of the bound, and the prior."""
    made, x0, level = case.meta["constructor"], case.io["input.x0"], setup.levels(case.io["input.t"])
    steps = len(setup.chain)
    weight = (1 / 1000 if made.get("rescale_learned_sigmas", False) else 1 / steps) if is_learned(variance) else 0.0
    loss = DiffusionLoss(bound=weight, variance=variance, chain=setup.chain).at(
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
    setup = dit_setup(case)
    denoiser, variance, _ = openai_denoiser(case, setup)
    io = case.io
    clipped: dict[bool, DenoiseFn] = {True: clip_static(denoiser), False: denoiser}
    for name in sorted({key.split(".")[0] for key in io if key.endswith(".noises")}):
        noises = io[f"{name}.noises"]
        plan = (
            ancestral(setup.schedule, variance) if name.startswith("p_sample") else ddim(setup.schedule, eta_of(name))
        )
        trajectory: list[Tensor] = []
        sample = run(
            plan, clipped[name.endswith("_clip")], noises[0].clone(), noise=drawn(noises[1:]),
            on_step=lambda shown, kept=trajectory: kept.append(shown.state.x.clone()),
        )  # fmt: skip
        yield case.compare(f"{name}.sample", sample)
        if f"{name}.trajectory" in io:
            yield case.compare(f"{name}.trajectory", torch.stack(trajectory))
    if "ddim_reverse.x0" in io:
        yield case.compare("ddim_reverse.trajectory", dit_reverse(setup, denoiser, io["ddim_reverse.x0"]))


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


# ---------------------------------------------------------------------- DDIM's own code


def ddim_steps(case: Case) -> Iterator[Comparison]:
    """ddim/generalized_steps: DDIM and DDPM on an exact mixture, in float32 and float64."""
    meta, io = case.meta, case.io
    table = betas(
        meta["beta_schedule"], meta["num_diffusion_timesteps"], start=meta["beta_start"], end=meta["beta_end"]
    )
    process = DiscreteVP(table)
    for name, settings in meta["runs"].items():
        for dtype, infix in ((torch.float64, ".f64"), (torch.float32, "")):
            # the original's single-precision run drew its levels from a float32 table
            source = process if dtype is torch.float64 else DiscreteVP(io["betas"])
            schedule = schedules.at_indices(source, settings["seq"])
            step = mixture(io, dtype)
            ddpm = settings["function"] == "ddpm_steps"
            plan = ancestral(schedule, fixed_large) if ddpm else ddim(schedule, settings["eta"])
            states: list[Tensor] = []
            first: list[Tensor] = []

            def keep(shown: Any, states: list[Tensor] = states, first: list[Tensor] = first) -> None:
                states.append(shown.state.x.clone())
                first.append(shown.estimate.x0.clone())

            out = run(
                plan, clip_static(step) if ddpm else step, io["x_T"].to(dtype),
                noise=drawn(io["noise"].to(dtype)), on_step=keep,
            )  # fmt: skip
            got = {"out": out, "x_after_1": states[0], "x0_pred_0": first[0]}
            for field, value in got.items():
                key = f"{name}{infix}.{field}"
                if key in io and (infix or f"{name}.f64.{field}" not in io):
                    yield case.compare(key, value)
                elif key in io:
                    yield Comparison(key, value, io[key])


def mixture(io: dict[str, Tensor], dtype: torch.dtype) -> DenoiseFn:
    """The exact denoiser of isotropic Gaussians in D dimensions."""
    weights, means, spreads = (io[f"gm_{name}"].to(dtype) for name in ("weights", "means", "stds"))
    means = means.flatten(1)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        ratio = level.sigma / level.alpha
        flat = (x / level.alpha).flatten(1)[:, None]  # (B, 1, D)
        width = spreads**2 + ratio**2
        apart = (flat - means).square().sum(-1)
        belief = torch.softmax(weights.log() - flat.shape[-1] / 2 * width.log() - apart / (2 * width), -1)
        each = (spreads[:, None] ** 2 * flat + ratio**2 * means) / width[:, None]
        return Estimate.of_x0((belief[..., None] * each).sum(1).reshape(x.shape), x, level)

    return step


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "ddim/beta_schedules": beta_tables,
    "ddim/generalized_steps": ddim_steps,
    "improved-diffusion/schedules": openai_schedules,
    "improved-diffusion/losses": improved_losses,
    "improved-diffusion/calc_bpd": calc_bpd,
    "improved-diffusion/loss_second_moment": second_moment,
    "DiT/schedule": dit_schedule,
    "DiT/diffusion": dit_diffusion,
    "DiT/sample_loops": dit_loops,
}
