"""Samplers as tables: a solver's coefficients depend on the grid alone and are worked out before the run."""

from itertools import chain

from unveil.core import foreign_names as _foreign
from unveil.core.foreign_names import Spelled
from unveil.core.samplers.adaptive import LISTED as _ADAPTIVE
from unveil.core.samplers.adaptive import dpm_adaptive
from unveil.core.samplers.ancestral import LISTED as _ANCESTRAL
from unveil.core.samplers.ancestral import ancestral
from unveil.core.samplers.consistency import LISTED as _CONSISTENCY
from unveil.core.samplers.consistency import consistency
from unveil.core.samplers.ddim import LISTED as _DDIM
from unveil.core.samplers.ddim import ddim, encode, slerp
from unveil.core.samplers.exponential import LISTED as _EXPONENTIAL
from unveil.core.samplers.exponential import (
    dpm_fast,
    dpm_multistep,
    dpm_singlestep,
    dpm_singlestep_on_schedule,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from unveil.core.samplers.langevin import LISTED as _LANGEVIN
from unveil.core.samplers.langevin import (
    annealed_langevin,
    euler_maruyama,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)
from unveil.core.samplers.loop import (
    CoefficientTable,
    Plan,
    SamplerState,
    SamplingProgress,
    StepResult,
    StepRow,
    draw_noise,
    run,
)
from unveil.core.samplers.multistep import LISTED as _MULTISTEP
from unveil.core.samplers.multistep import adams_bashforth, lms, plms, pndm
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.samplers.runge_kutta import LISTED as _RUNGE_KUTTA
from unveil.core.samplers.runge_kutta import dpm2, dpm2_ancestral, euler, euler_ancestral, euler_time, heun, heun_time
from unveil.core.samplers.unipc import LISTED as _UNIPC
from unveil.core.samplers.unipc import unipc
from unveil.errors import RecipeError, did_you_mean

# Every sampler by the name that recipes and the command line use.
SAMPLERS: dict[str, SamplerSpec] = {
    entry.name: entry
    for entry in chain(
        _DDIM, _ANCESTRAL, _RUNGE_KUTTA, _MULTISTEP, _EXPONENTIAL, _UNIPC, _ADAPTIVE, _LANGEVIN, _CONSISTENCY
    )
}


def get_sampler(name: str) -> SamplerSpec:
    """The sampler of a name, ours or that of another program, such as "euler_a"; see `core.foreign_names`.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    return SAMPLERS[spelled(name).sampler]


def spelled(name: str) -> Spelled:
    """The name here of a sampler, and the schedule that its name has with it, as "DPM++ 2M Karras" has.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    entry = _foreign.sampler(name, SAMPLERS)
    if entry is None:
        close = did_you_mean(_foreign.plain(name), list(SAMPLERS))
        raise RecipeError(f"sampler {name!r}: no such sampler{close}; `unveil inspect samplers` lists all")
    return entry


__all__ = [
    "SAMPLERS",
    "CoefficientTable",
    "Plan",
    "SamplerSpec",
    "SamplerState",
    "SamplingProgress",
    "Spelled",
    "StepResult",
    "StepRow",
    "adams_bashforth",
    "ancestral",
    "annealed_langevin",
    "consistency",
    "ddim",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpm_multistep",
    "dpm_singlestep",
    "dpm_singlestep_on_schedule",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "draw_noise",
    "encode",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "euler_time",
    "get_sampler",
    "heun",
    "heun_time",
    "langevin",
    "lms",
    "plms",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
    "run",
    "slerp",
    "spelled",
    "unipc",
]
