"""Samplers as tables: a solver's coefficients depend only on the schedule and are computed before the run."""

from unveil.core.foreign_names import Spelled
from unveil.core.samplers.adaptive import dpm_adaptive
from unveil.core.samplers.ancestral import ancestral
from unveil.core.samplers.consistency import consistency
from unveil.core.samplers.ddim import ddim, encode, slerp
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
from unveil.core.samplers.multistep import adams_bashforth, lms, plms, pndm
from unveil.core.samplers.registry import SamplerSpec, get_sampler, sampler_specs, spelled
from unveil.core.samplers.runge_kutta import dpm2, dpm2_ancestral, euler, euler_ancestral, euler_time, heun, heun_time
from unveil.core.samplers.unipc import unipc

__all__ = [
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
    "sampler_specs",
    "slerp",
    "spelled",
    "unipc",
]
