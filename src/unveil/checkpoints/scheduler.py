"""Diffusers' scheduler settings as sections of a recipe, and back: process, prediction, and how its pipeline samples.

Facts: configuration files and defaults of diffusers' schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints.hf_files import read_json
from unveil.core.process import betas, snr_shifted
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.model.config import ModelConfig, SampleConfig
from unveil.model.config.model import DiscreteVPSection

BETAS = {"linear": "linear", "scaled_linear": "sqrt-linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# Our sampler of each, and its spacing where the settings name none. Euler and DDIM are theirs to rounding; the others
# are the same methods, with our rules for the first and last steps.
SAMPLERS: dict[str, tuple[dict[str, Any], str]] = {
    "DDIMScheduler": ({"sampler": "ddim", "eta": 0.0}, "leading"),
    "DDPMScheduler": ({"sampler": "ancestral"}, "leading"),
    "EulerDiscreteScheduler": ({"sampler": "euler"}, "linspace"),
    "EulerAncestralDiscreteScheduler": ({"sampler": "euler-ancestral"}, "linspace"),
    "HeunDiscreteScheduler": ({"sampler": "heun"}, "linspace"),
    "LMSDiscreteScheduler": ({"sampler": "lms"}, "linspace"),
    "PNDMScheduler": ({"sampler": "plms"}, "leading"),
    "DPMSolverMultistepScheduler": ({"sampler": "dpmpp-2m"}, "linspace"),
    "UniPCMultistepScheduler": ({"sampler": "unipc-2"}, "linspace"),
    "CogVideoXDDIMScheduler": ({"sampler": "ddim", "eta": 0.0}, "leading"),
    "CogVideoXDPMScheduler": ({"sampler": "dpmpp-2m-sde"}, "leading"),
}
# Those of CogVideoX, whose tables are shifted and whose settings have other values where they are left out
SHIFTED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
USUAL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "snr_shift_scale": 3.0}
FLOW = "FlowMatchEulerDiscreteScheduler"
# Those whose last step ends at the table's first entry in place of the data, where set_alpha_to_one is false
ENDS_AT_0 = ("DDIMScheduler", "PNDMScheduler")
# (spacing, offset, ends at the data) -> our schedule
SCHEDULES = {
    ("leading", 0, True): "leading",
    ("leading", 1, True): "leading-1",
    ("leading", 1, False): "latent-diffusion",
    ("trailing", 0, True): "trailing",
    ("linspace", 0, True): "both-ends",
}
# Settings that are supported with one value only, which is also what they are when left out
ONLY: dict[str, Any] = {
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "timestep_type": "discrete",
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "thresholding": False,
}
ONLY_FLOW: dict[str, Any] = {
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
ONLY_SOLVER: dict[str, Any] = {
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "disable_corrector": [],
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "num_train_timesteps": 1000,
}
# Multistep solvers by what their settings say: (algorithm, order, type), of which any type goes with None
SOLVERS: dict[tuple[str, int, str | None], dict[str, Any]] = {
    ("dpmsolver++", 1, None): {"sampler": "ddim", "eta": 0.0},
    ("dpmsolver++", 2, "midpoint"): {"sampler": "dpmpp-2m"},
    ("dpmsolver++", 3, None): {"sampler": "dpmpp-3m"},
    ("dpmsolver", 1, None): {"sampler": "ddim", "eta": 0.0},
    ("dpmsolver", 2, "midpoint"): {"sampler": "dpm-solver-2m"},
    ("dpmsolver", 3, None): {"sampler": "dpm-solver-3m"},
    ("sde-dpmsolver++", 2, "midpoint"): {"sampler": "dpmpp-2m-sde"},
    ("sde-dpmsolver++", 2, "heun"): {"sampler": "dpmpp-2m-sde-heun"},
    ("sde-dpmsolver++", 3, None): {"sampler": "dpmpp-3m-sde"},
    ("unipc", 1, "bh2"): {"sampler": "unipc-1"},
    ("unipc", 2, "bh2"): {"sampler": "unipc-2"},
    ("unipc", 3, "bh2"): {"sampler": "unipc-3"},
    ("unipc", 3, "bh1"): {"sampler": "unipc-3-b1"},
    ("unipc of eps", 3, "bh2"): {"sampler": "unipc-3-eps"},
}
# What diffusers takes the types of others for
SAME_TYPES = {
    "DPMSolverMultistepScheduler": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    "UniPCMultistepScheduler": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2"),
}
# Those that diffusers does not take to the data: it refuses to, or ends at NaN
NOT_TO_THE_DATA = ("dpm-solver-2m", "dpm-solver-3m", "unipc-3-b1", "unipc-3-eps")
TERMINALS = (0.1, 0.02)  # sigma of the last call, of schedulers that name one


@dataclass(frozen=True)
class SchedulerConfig:
    """Process, prediction and sampling of a folder's scheduler.

    Attributes:
        process: A section of a recipe; of a shift that follows the size, the process that is shifted.
        prediction: By name.
        sample: Sampler, schedule and threshold.
        size_shift: Arguments of `core.flow.DynamicShift`, where the shift follows the size.
    """

    process: Mapping[str, Any]
    prediction: str
    sample: Mapping[str, Any]
    size_shift: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Settings:
    """The settings, with the file that they are from for messages."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, usual: Any = None) -> Any:
        value = self.values.get(name, usual)
        return usual if value is None else value

    def only(self, allowed: Mapping[str, Any]) -> None:
        for name, value in allowed.items():
            if self.get(name, value) != value:
                raise WeightsError(
                    f"{self.path}: {name} = {self.values[name]!r}: only {value!r} is supported; set it so"
                )


def read_scheduler(path: Path) -> SchedulerConfig:
    """The scheduler of a `scheduler_config.json`.

    Raises:
        WeightsError: No such file, a scheduler that is not known, or settings that it is not supported with.
    """
    return scheduler_of(read_json(path), path)


def scheduler_of(raw: Mapping[str, Any], path: Path) -> SchedulerConfig:
    """The scheduler of its settings; `path` is for messages.

    Raises:
        WeightsError: As `read_scheduler`.
    """
    kind = raw.get("_class_name", "DDIMScheduler")
    settings = _Settings(path, raw)
    if kind == FLOW:
        return _flow(settings)
    if kind not in SAMPLERS:
        supported = [*SAMPLERS, FLOW]
        raise WeightsError(f"{path}: scheduler {kind!r}; known: {', '.join(supported)}{did_you_mean(kind, supported)}")
    settings.only(ONLY)
    if kind == "UniPCMultistepScheduler" and settings.get("use_flow_sigmas", False):
        return _flow_solver(settings)
    if kind in SHIFTED:
        settings = _Settings(path, {**USUAL, **raw})
    schedule, target = settings.get("beta_schedule", "linear"), settings.get("prediction_type", "epsilon")
    if schedule not in BETAS or target not in PREDICTIONS:
        raise WeightsError(
            f"{path}: {schedule!r} with {target!r}: known are {', '.join(BETAS)}; {', '.join(PREDICTIONS)}"
        )
    table = settings.get("trained_betas")
    process = {
        "kind": "discrete-vp",
        "beta_schedule": table or BETAS[schedule],
        "timesteps": None if table else int(settings.get("num_train_timesteps", 1000)),
        "beta_start": float(settings.get("beta_start", 1e-4)),
        "beta_end": float(settings.get("beta_end", 0.02)),
        "last": "zero-snr" if settings.get("rescale_betas_zero_snr", False) else "published",
    }
    if kind in SHIFTED:
        process = process | {
            "beta_schedule": _shifted_table(process, float(settings.get("snr_shift_scale"))),
            "timesteps": None,
        }
    sampler, spacing = SAMPLERS[kind]
    if kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        sampler = _solver(settings, kind)
    # DDIM and DDPM clip by default; the others do not have the setting
    clips = bool(settings.get("clip_sample", True)) and kind in ("DDIMScheduler", "DDPMScheduler")
    sample = {
        **sampler,
        "schedule": _schedule_name(settings, kind, spacing),
        "threshold": "static" if clips else "none",
    }
    return SchedulerConfig(process, PREDICTIONS[target], sample)


def _solver(settings: _Settings, kind: str) -> dict[str, Any]:
    """The sampler of a multistep solver's algorithm, order and type."""
    order = int(settings.get("solver_order", 2))
    if kind == "UniPCMultistepScheduler":
        algorithm = "unipc" if settings.get("predict_x0", True) else "unipc of eps"
        how = settings.get("solver_type", "bh2")
    else:
        algorithm, how = settings.get("algorithm_type", "dpmsolver++"), settings.get("solver_type", "midpoint")
    how = SAME_TYPES[kind].get(how, how)
    sampler = SOLVERS.get((algorithm, order, None)) or SOLVERS.get((algorithm, order, how))
    if sampler is None:
        supported = ", ".join(f"{name} {number} {kind or 'any'}" for name, number, kind in SOLVERS)
        raise WeightsError(
            f"{settings.path}: {algorithm} of solver_order {order} and solver_type {how!r} is not supported; these are "
            f"(algorithm, order, type): {supported}"
        )
    return sampler


def _schedule_name(settings: _Settings, kind: str, usual: str) -> str:
    if settings.get("use_karras_sigmas", False):
        return "karras"
    spacing = settings.get("timestep_spacing", usual)
    offset = int(settings.get("steps_offset", 0)) if spacing == "leading" else 0  # which alone has one
    onto_data = kind not in ENDS_AT_0 or bool(settings.get("set_alpha_to_one", kind == "DDIMScheduler"))
    if (spacing, offset, onto_data) not in SCHEDULES:
        ends = "the data" if onto_data else "the first entry of the table (set_alpha_to_one false)"
        raise WeightsError(
            f"{settings.path}: timestep_spacing {spacing!r} with steps_offset {offset}, ending at {ends}, is not "
            "supported; leading with offset 0 or 1, trailing and linspace onto the data are"
        )
    return SCHEDULES[spacing, offset, onto_data]


def _shifted_table(process: Mapping[str, Any], scale: float) -> list[float]:
    """Its betas, with less signal at every level."""
    named = process["beta_schedule"]
    table = (
        betas(named, process["timesteps"], start=process["beta_start"], end=process["beta_end"])
        if process["timesteps"]
        else named
    )
    return snr_shifted(torch.as_tensor(table, dtype=torch.float64), scale).tolist()


def _flow_solver(settings: _Settings) -> SchedulerConfig:
    """UniPC over rectified flow, of Wan's folders; its network takes whole timesteps."""
    settings.only(ONLY_SOLVER)
    if settings.get("prediction_type") != "flow_prediction":
        raise WeightsError(f"{settings.path}: use_flow_sigmas goes with prediction_type 'flow_prediction'; set it so")
    order, shift = int(settings.get("solver_order", 2)), float(settings.get("flow_shift", 1.0))
    if order not in (1, 2, 3):
        raise WeightsError(f"{settings.path}: solver_order = {order}: 1, 2 and 3 are supported")
    process: dict[str, Any] = {"kind": "rectified-flow", "rounding": "down"}
    if shift != 1:
        process = {"kind": "shifted", "process": process, "shift": shift}
    return SchedulerConfig(
        process, "flow", {"sampler": f"unipc-{order}", "schedule": "flow-sigmas", "threshold": "none"}
    )


def _flow(settings: _Settings) -> SchedulerConfig:
    settings.only(ONLY_FLOW)
    terminal, follows = settings.get("shift_terminal"), settings.get("use_dynamic_shifting", False)
    if terminal is not None and (terminal not in TERMINALS or not follows):
        supported = " and ".join(map(str, TERMINALS))
        raise WeightsError(
            f"{settings.path}: shift_terminal = {terminal!r}: {supported} with use_dynamic_shifting are supported"
        )
    process: dict[str, Any] = {"kind": "rectified-flow"}
    sample = {"sampler": "euler", "threshold": "none"}
    if follows:
        size_shift = {
            "low": (int(settings.get("base_image_seq_len", 256)), float(settings.get("base_shift", 0.5))),
            "high": (int(settings.get("max_image_seq_len", 4096)), float(settings.get("max_shift", 1.15))),
            "exponential": settings.get("time_shift_type", "exponential") == "exponential",
        }
        schedule = "uniform" if terminal is None else f"uniform-to-{terminal:g}"
        return SchedulerConfig(process, "flow", {**sample, "schedule": schedule}, size_shift)
    shift = float(settings.get("shift", 1.0))
    if shift != 1:
        process = {"kind": "shifted", "process": process, "shift": shift}
    return SchedulerConfig(process, "flow", {**sample, "schedule": "uniform-above"})


def settings_of(config: ModelConfig, spacing: Mapping[str, Any]) -> dict[str, Any]:
    """Diffusers' settings of a model's process, prediction and sampling, what `scheduler_of` reads.

    Args:
        config: Configuration of the model.
        spacing: Spacing of DDIM's levels, where the model samples in a way that diffusers does not
            know.

    Raises:
        RecipeError: As `process_settings`.
    """
    clips = {"clip_sample": config.sample.threshold == "static"}
    return _sampling_of(config, spacing) | process_settings(config) | clips


def process_settings(config: ModelConfig) -> dict[str, Any]:
    """Diffusers' settings of a model's process and prediction.

    Raises:
        RecipeError: Another process than a table of betas, or a prediction that diffusers does not know.
    """
    process = config.process
    if not isinstance(process, DiscreteVPSection):
        raise RecipeError(f"process {process.kind}: diffusers' schedulers of such pipelines know discrete-vp alone")
    written = {
        name: getattr(process, name) for name in ("beta_schedule", "timesteps", "beta_start", "beta_end", "last")
    }
    schedules, targets = ({ours: theirs for theirs, ours in table.items()} for table in (BETAS, PREDICTIONS))
    named = isinstance(process.beta_schedule, str)
    if process != DiscreteVPSection(**written) or (named and process.beta_schedule not in schedules):
        raise RecipeError(
            f"process {process}: diffusers' scheduler knows {', '.join(schedules)} and betas written out, "
            "without further settings"
        )
    if config.prediction not in targets:
        raise RecipeError(f"prediction {config.prediction!r}: diffusers' scheduler knows {', '.join(targets)}")
    table = (
        {"beta_schedule": schedules[str(process.beta_schedule)]}
        if named
        else {"trained_betas": list(process.beta_schedule)}
    )
    return {
        **table,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "num_train_timesteps": (process.timesteps or 1000) if named else len(process.beta_schedule),
        "prediction_type": targets[str(config.prediction)],
        "rescale_betas_zero_snr": process.last == "zero-snr",
    }


def _sampling_of(config: ModelConfig, spacing: Mapping[str, Any]) -> dict[str, Any]:
    """Class and spacing of the levels; DDIM where the sampler, its options or its levels have no counterpart."""
    sample = config.sample
    classes = {way["sampler"]: name for name, (way, _) in SAMPLERS.items() if name not in SHIFTED}
    solver = _solver_settings(sample)
    kind = None if sample.options else solver.get("_class_name", classes.get(sample.sampler))
    spacing_key = next((key for key, schedule in SCHEDULES.items() if schedule == sample.schedule), None)
    if kind is None or (
        sample.schedule != "karras" and (spacing_key is None or (not spacing_key[2] and kind not in ENDS_AT_0))
    ):
        return {"_class_name": "DDIMScheduler", **spacing}
    if sample.schedule == "karras":
        return {"_class_name": kind, "use_karras_sigmas": True, **solver}
    assert spacing_key is not None  # else the sampler was returned above
    there, offset, onto_data = spacing_key
    more = {"set_alpha_to_one": onto_data} if kind in ENDS_AT_0 else {}
    if kind == "PNDMScheduler":
        more |= {"skip_prk_steps": True}
    return {"_class_name": kind, "timestep_spacing": there, "steps_offset": offset, **more, **solver}


def _solver_settings(sample: SampleConfig) -> dict[str, Any]:
    """Settings that `_solver` reads, for a solver that diffusers has; empty for other samplers."""
    if sample.sampler in NOT_TO_THE_DATA or sample.eta not in (None, 1.0):
        return {}
    for (algorithm, order, how), way in SOLVERS.items():
        if way != {"sampler": sample.sampler}:
            continue
        settings = {"solver_order": order} | ({} if how is None else {"solver_type": how})
        if algorithm.startswith("unipc"):
            return {"_class_name": "UniPCMultistepScheduler", "predict_x0": algorithm == "unipc", **settings}
        return {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": algorithm, **settings}
    return {}
