"""Golden kinds of consistency models: their schedules, samplers, scalings and editing; settings come from meta.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, separately
from tests.golden.k_diffusion import by_draw, by_step, ratio
from unveil.core import loss_weights, preconditioning, schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import clip_static
from unveil.core.rng import Noise
from unveil.core.samplers import CoefficientTable, SamplingProgress, consistency, run, sampler_specs
from unveil.core.samplers.runge_kutta import sigma_down
from unveil.core.schedules import Schedule
from unveil.core.ve import EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.types import Condition, NoiseLevel

LEAST, MOST, RHO, STEPS = 0.002, 80.0, 7.0, 40  # defaults of the original


def karras(given: Mapping[str, Any]) -> Schedule:
    """`get_sigmas_karras`: n levels and 0."""
    low, high = given.get("sigma_min", LEAST), given.get("sigma_max", MOST)
    return schedules.karras(EDMProcess(), given["n"], sigma_min=low, sigma_max=high, rho=given.get("rho", RHO))


def stops(given: Mapping[str, Any]) -> Schedule:
    """The levels `ts` of multistep sampling, numbers of a Karras schedule of `steps`; the last is where it ends."""
    low, high = (given.get(name, least) for name, least in (("t_min", LEAST), ("t_max", MOST)))
    rho, steps = given.get("rho", RHO), given.get("steps", STEPS)
    first, last = high ** (1 / rho), low ** (1 / rho)
    start, *others = ((first + t / (steps - 1) * (last - first)) ** rho for t in given["ts"])
    return schedules.from_sigmas(EDMProcess(), [start, *(min(max(level, low), high) for level in others)])


def exact(settings: Mapping[str, Any]) -> DenoiseFn:
    """The recorded denoiser: a mixture of numbers, at every pixel."""
    pixel = Mixture(settings["w"], torch.tensor(settings["m"], dtype=torch.float64), settings["s"])

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(pixel(x.flatten(), level).x0.reshape(x.shape), x, level)

    return step


def sigmas(case: Case) -> Iterator[Comparison]:
    for k, given in enumerate(case.meta["specs"]):
        schedule = karras(given)
        yield case.compare(f"spec{k}.sigmas", [ratio(level) for level in schedule])
        if f"spec{k}.ancestral.sigma_down" in case.io:
            pairs = [sigma_down(here, there, 1.0) for here, there in pairwise(schedule)]
            yield case.compare(f"spec{k}.ancestral.sigma_down", [ratio(low) for low, _ in pairs])
            yield case.compare(f"spec{k}.ancestral.sigma_up", [up for _, up in pairs])


# ---------------------------------------------------------------------- samplers

CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


def planned(kind: str, schedule: Schedule, given: Mapping[str, Any]) -> CoefficientTable:
    """The table of an original sampler over its sigmas."""
    churn = {name: given[name] for name in CHURN if name in given}
    if kind == "onestep":
        return consistency(schedules.Schedule(schedule.process, [schedule[0], schedule[-1]]))
    if kind == "multistep":
        return consistency(stops(given), least=schedule.process.at(given.get("t_min", LEAST) / EDMProcess().sigma_max))
    if kind == "progdist":
        return table(sampler_specs()["euler"].plan(schedules.Schedule(schedule.process, schedule[:-1])))
    if kind == "ancestral":
        return table(sampler_specs()["euler-ancestral"].plan(schedule))
    if kind == "euler":
        return table(sampler_specs()["euler"].plan(schedule))
    options = {"power": 1 / 3} if kind == "dpm" else {}  # their middle is the mean of the cube roots
    return table(sampler_specs()[{"heun": "heun", "dpm": "dpm2"}[kind]].build(schedule, **options, **churn))


def table(plan: object) -> CoefficientTable:
    """The plan, which is a table."""
    assert isinstance(plan, CoefficientTable)
    return plan


def noise_of(kind: str, plan: CoefficientTable, schedule: Schedule, noises: Tensor | None) -> Noise | None:
    """The recorded noises as our rows ask for them."""
    if noises is None:
        return None
    return by_step(plan, schedule, noises) if kind in ("heun", "dpm") else by_draw(plan, noises)


def samplers(case: Case) -> Iterator[Comparison]:
    """Samplers called directly."""
    step, schedule = exact(case.meta["denoiser"]), karras(case.meta["sigmas"])
    yield case.compare("sigmas", [ratio(level) for level in schedule])
    for name, given in case.meta["arguments"].items():
        yield from separately(name, direct_run(case, name, step, schedule, given))


def direct_run(
    case: Case, name: str, step: DenoiseFn, schedule: Schedule, given: Mapping[str, Any]
) -> Iterator[Comparison]:
    """One sampler called directly."""
    kind = name.rstrip("0123456789").removesuffix("_churn")
    plan = planned(kind, schedule, given)
    noises = case.io.get(f"{name}.noises")
    seen: list[Tensor] = []

    def watch(shown: SamplingProgress) -> None:
        """The original shows the first call of each step; ours follows no marked row."""
        number = shown.state.number - 1
        if number == 0 or not plan.rows[number - 1].saves_x:
            seen.append(shown.estimate.x0.clone())

    x = run(plan, step, case.io["x_T"], noise=noise_of(kind, plan, schedule, noises), on_step=watch)
    yield case.compare(f"{name}.sample", x)
    if f"{name}.denoised" in case.io:
        yield case.compare(f"{name}.denoised", torch.stack(seen))


# ---------------------------------------------------------------------- a network and all around it


class Toy(nn.Module):
    """The recorded network: a x + b sin(c t) + d tanh(x rolled)."""

    def __init__(self, given: Mapping[str, float]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (given[name] for name in "abcd")

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        del condition
        wave = torch.sin(self.c * t).reshape(-1, *(1,) * (x.ndim - 1))
        return self.a * x + self.b * wave + self.d * torch.tanh(torch.roll(x, 1, dims=-1))


@dataclass(frozen=True)
class Teacher(preconditioning.EDMPreconditioning):
    """EDM's preconditioning, with the number for the level in thousandths as the distilled networks have it."""

    def timestep(self, level: NoiseLevel) -> Any:
        return 1000 * super().timestep(level)


def toy_net(case: Case) -> Iterator[Comparison]:
    """`karras_sample` as a whole: x is noise times sigma_max, x0 and the sample are clamped."""
    for name, given in case.meta["arguments"].items():
        yield from separately(name, toy_run(case, name, given))


def toy_run(case: Case, name: str, given: Mapping[str, Any]) -> Iterator[Comparison]:
    """One call of `karras_sample`: the range of levels is its own; the boundary and multistep's rho the denoiser's."""
    trained, noises = case.meta["settings"]["denoiser"], case.io[f"{name}.noises"]
    kind, data = given["sampler"], trained["sigma_data"]
    boundary = preconditioning.ConsistencyPreconditioning(data, trained["sigma_min"])
    step = Denoiser(
        Toy(case.meta["network"]), EDMProcess(), prediction=boundary if given["distillation"] else Teacher(data)
    )
    low, high = given.get("sigma_min", LEAST), given.get("sigma_max", MOST)
    count = given["steps"] + (kind == "progdist")
    schedule = karras({"n": count, "sigma_min": low, "sigma_max": high, "rho": given.get("rho", RHO)})
    # every sampler takes all keywords, whether it uses them or not
    options = {option: given[option] for option in (*CHURN, "ts") if option in given}
    options |= {"t_min": low, "t_max": high, "rho": trained["rho"], "steps": given["steps"]}
    plan = planned(kind, schedule, options)
    clipped = clip_static(step) if given.get("clip_denoised", True) else step
    x = run(plan, clipped, high * noises[0], noise=noise_of(kind, plan, schedule, noises[1:]))
    # the original clamps the sample whatever clip_denoised is
    yield case.compare(f"{name}.sample", x.clamp(-1, 1))


def scalings(case: Case) -> Iterator[Comparison]:
    level = EDMProcess().at(case.io["input.sigma"].double() / EDMProcess().sigma_max)
    for k, given in enumerate(case.meta["specs"]):
        data = given["sigma_data"]
        for name, shell in (
            ("edm", Teacher(data)),
            ("consistency", preconditioning.ConsistencyPreconditioning(data, given["sigma_min"])),
        ):
            columns = preconditioning.scalings(shell, level)
            for part, column in zip(("c_skip", "c_out", "c_in"), columns, strict=False):
                yield case.compare(f"spec{k}.{name}.{part}", torch.as_tensor(column).expand_as(level.t))  # type: ignore[arg-type]
            yield case.compare(f"spec{k}.rescaled_t", columns.c_noise)
        snr = loss_weights.snr(level)
        yield case.compare(f"spec{k}.snr", snr)
        known = {
            "snr": snr,
            "snr+1": loss_weights.edm(1.0)(level),
            "karras": loss_weights.edm(data)(level),
            "truncated-snr": loss_weights.truncated_snr(level),
            "uniform": torch.ones_like(snr),
        }
        for name, weight in known.items():
            yield case.compare(f"spec{k}.weight.{name}", weight)


# ---------------------------------------------------------------------- editing


def first_axis(vector: Sequence[float]) -> Tensor:
    """An orthogonal matrix (N, N) whose first column points along `vector`, float32."""
    start = np.eye(len(vector))
    start[:, 0] = np.asarray(vector) / np.linalg.norm(vector)
    matrix = np.linalg.qr(start)[0]
    return torch.from_numpy(matrix * np.sign(matrix[:, 0].sum())).float()


Basis = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def luminance() -> Basis:
    """Channels to and from a basis whose first one is the brightness."""
    q = first_axis([0.2989, 0.5870, 0.1140])
    return (
        lambda x: torch.einsum("bchw,cd->bdhw", x, q).unsqueeze(1),
        lambda y: torch.einsum("bdhw,cd->bchw", y.squeeze(1), q),
    )


def patches(size: int, side: int = 8) -> Basis:
    """Patches of side x side pixels to and from a basis whose first one is their mean."""
    q = first_axis([1.0] * side**2)

    def there(x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        cut = x.reshape(b, c, size // side, side, size // side, side).permute(0, 1, 3, 5, 2, 4)
        return torch.einsum("bcphw,pq->bcqhw", cut.reshape(b, c, side**2, size // side, size // side), q)

    def back(y: Tensor) -> Tensor:
        b, c = y.shape[:2]
        cut = torch.einsum("bcqhw,pq->bcphw", y, q)
        cut = cut.reshape(b, c, side, side, size // side, size // side).permute(0, 1, 4, 2, 5, 3)
        return cut.reshape(b, c, size, size)

    return there, back


def replaced(step: DenoiseFn, basis: Basis, images: Tensor) -> DenoiseFn:
    """The step whose clamped x0 takes the first number of a basis from `images`."""
    there, back = basis

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        mixed = there(clip_static(step)(x, level).x0)
        mixed[:, :, :1] = there(images)[:, :, :1]
        return Estimate.of_x0(back(mixed), x, level)

    return guided


def editing(case: Case) -> Iterator[Comparison]:
    """Colouring and super-resolution without training."""
    step, images = exact(case.meta["denoiser"]), case.io["input.images"]
    schedule = stops(case.meta)
    for name, basis in (("colorization", luminance()), ("superres", patches(images.shape[-1]))):
        there, back = basis
        known = there(images)
        known[:, :, 1:] = 0
        plan = consistency(schedule, least=schedule.process.at(case.meta.get("t_min", LEAST) / EDMProcess().sigma_max))
        x = run(
            plan, replaced(step, basis, images), case.io["input.x_T"], noise=by_draw(plan, case.io[f"{name}.noises"])
        )
        yield case.compare(f"{name}.conditioning_images", back(known))
        yield case.compare(f"{name}.sample", x)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "consistency_models/karras_sigmas": sigmas,
    "consistency_models/samplers": samplers,
    "consistency_models/karras_sample_toy_net": toy_net,
    "consistency_models/scalings": scalings,
    "consistency_models/editing_samplers": editing,
}
