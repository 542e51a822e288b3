"""Diffusers' scheduler settings as sections of a recipe: process, prediction, and how its pipeline samples.

Facts: configuration files and defaults of diffusers' schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unveil.checkpoints.folders import read_json
from unveil.types import WeightsError, nearest

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
    "UniPCMultistepScheduler": ({"sampler": "unipc"}, "linspace"),
}
FLOW = "FlowMatchEulerDiscreteScheduler"
# Those whose last step ends at the table's first entry in place of the data, where set_alpha_to_one is false
ENDS_AT_0 = ("DDIMScheduler", "PNDMScheduler")
# (spacing, offset, ends at the data) -> our grid
GRIDS = {
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
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


@dataclass(frozen=True)
class Scheduler:
    """What a folder's scheduler says.

    Attributes:
        process: a section of a recipe; of a shift that follows the size, the process that is shifted.
        prediction: by name.
        sample: sampler, grid and clip.
        size_shift: arguments of `core.flow.SizeShifted`, where the shift follows the size.
    """

    process: Mapping[str, Any]
    prediction: str
    sample: Mapping[str, Any]
    size_shift: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Settings:
    """The settings, with the file that they are from for messages."""

    path: Path
    said: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, usual: Any = None) -> Any:
        value = self.said.get(name, usual)
        return usual if value is None else value

    def only(self, allowed: Mapping[str, Any]) -> None:
        for name, value in allowed.items():
            if self.get(name, value) != value:
                raise WeightsError(f"{self.path}: {name} = {self.said[name]!r}: only {value!r} is supported; set it so")


def read_scheduler(path: Path) -> Scheduler:
    """The scheduler of a `scheduler_config.json`.

    Raises:
        WeightsError: no such file, a scheduler that is not known, or settings that it is not supported with.
    """
    return scheduler_of(read_json(path), path)


def scheduler_of(said: Mapping[str, Any], path: Path) -> Scheduler:
    """The scheduler of its settings; `path` is for messages.

    Raises:
        WeightsError: as `read_scheduler`.
    """
    kind = said.get("_class_name", "DDIMScheduler")
    settings = _Settings(path, said)
    if kind == FLOW:
        return _flow(settings)
    if kind not in SAMPLERS:
        known = [*SAMPLERS, FLOW]
        raise WeightsError(f"{path}: scheduler {kind!r}; known: {', '.join(known)}{nearest(kind, known)}")
    settings.only(ONLY)
    schedule, target = settings.get("beta_schedule", "linear"), settings.get("prediction_type", "epsilon")
    if schedule not in BETAS or target not in PREDICTIONS:
        raise WeightsError(
            f"{path}: {schedule!r} with {target!r}: known are {', '.join(BETAS)}; {', '.join(PREDICTIONS)}"
        )
    table = settings.get("trained_betas")
    process = {
        "kind": "discrete-vp",
        "betas": table or BETAS[schedule],
        "steps": None if table else int(settings.get("num_train_timesteps", 1000)),
        "start": float(settings.get("beta_start", 1e-4)),
        "end": float(settings.get("beta_end", 0.02)),
        "last": "zero-snr" if settings.get("rescale_betas_zero_snr", False) else "published",
    }
    sampler, spacing = SAMPLERS[kind]
    # DDIM and DDPM clip unless they are told not to; the others do not know the setting
    clips = bool(settings.get("clip_sample", True)) and kind in ("DDIMScheduler", "DDPMScheduler")
    sample = {**sampler, "grid": _grid(settings, kind, spacing), "clip": "static" if clips else "none"}
    return Scheduler(process, PREDICTIONS[target], sample)


def _grid(settings: _Settings, kind: str, usual: str) -> str:
    if settings.get("use_karras_sigmas", False):
        return "karras"
    spacing = settings.get("timestep_spacing", usual)
    offset = int(settings.get("steps_offset", 0)) if spacing == "leading" else 0  # which alone has one
    onto_data = kind not in ENDS_AT_0 or bool(settings.get("set_alpha_to_one", kind == "DDIMScheduler"))
    if (spacing, offset, onto_data) not in GRIDS:
        ends = "the data" if onto_data else "the first entry of the table (set_alpha_to_one false)"
        raise WeightsError(
            f"{settings.path}: timestep_spacing {spacing!r} with steps_offset {offset}, ending at {ends}, is not "
            "supported; leading with offset 0 or 1, trailing and linspace onto the data are"
        )
    return GRIDS[spacing, offset, onto_data]


def _flow(settings: _Settings) -> Scheduler:
    settings.only(ONLY_FLOW)
    process: dict[str, Any] = {"kind": "rectified-flow"}
    sample = {"sampler": "euler", "clip": "none"}
    if settings.get("use_dynamic_shifting", False):
        size_shift = {
            "low": (int(settings.get("base_image_seq_len", 256)), float(settings.get("base_shift", 0.5))),
            "high": (int(settings.get("max_image_seq_len", 4096)), float(settings.get("max_shift", 1.15))),
            "exponential": settings.get("time_shift_type", "exponential") == "exponential",
        }
        return Scheduler(process, "flow", {**sample, "grid": "uniform"}, size_shift)
    shift = float(settings.get("shift", 1.0))
    if shift != 1:
        process = {"kind": "shifted", "process": process, "shift": shift}
    return Scheduler(process, "flow", {**sample, "grid": "uniform-above"})
