"""Names of samplers and schedules in diffusers, k-diffusion, ComfyUI and the A1111 web UI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

# Lower case, with "-" for spaces and underscores, and "pp" for "++"
SAMPLERS: Mapping[str, str] = {
    "euler-a": "euler-ancestral",
    "k-euler": "euler",
    "k-euler-a": "euler-ancestral",
    "k-euler-ancestral": "euler-ancestral",
    "k-heun": "heun",
    "k-lms": "lms",
    "k-dpm-2": "dpm2",
    "k-dpm-2-a": "dpm2-ancestral",
    "dpm2-a": "dpm2-ancestral",
    "dpm-2": "dpm2",
    "dpm-2-ancestral": "dpm2-ancestral",
    "dpm-2-a": "dpm2-ancestral",
    "dpmpp-2s-a": "dpmpp-2s-ancestral",
    "dpmpp-2m-sde-gpu": "dpmpp-2m-sde",
    "dpmpp-2m-sde-heun-gpu": "dpmpp-2m-sde-heun",
    "dpmpp-3m-sde-gpu": "dpmpp-3m-sde",
    "dpmpp-sde-gpu": "dpmpp-sde",
    "k-dpmpp-2m": "dpmpp-2m",
    "k-dpmpp-2m-sde": "dpmpp-2m-sde",
    "k-dpmpp-sde": "dpmpp-sde",
    "k-dpmpp-2s-a": "dpmpp-2s-ancestral",
    "dpm-solverpp": "dpmpp-2m",
    "dpmsolverpp": "dpmpp-2m",
    "dpm-solver": "dpm-solver-2m",
    "uni-pc": "unipc-3-b1",  # of ComfyUI and A1111: order 3, B(h) = h
    "unipc": "unipc-3-b1",
    "uni-pc-bh2": "unipc-3",
    "ddpm": "ancestral",
    "ddpm-ancestral": "ancestral",
    "k-diffusion-euler": "euler",
    "lcm": "consistency",
    "plms-sampler": "plms",
    "ddimscheduler": "ddim",
    "ddpmscheduler": "ancestral",
    "pndmscheduler": "plms",  # as the folders of Stable Diffusion run it: skip_prk_steps is true
    "lmsdiscretescheduler": "lms",
    "eulerdiscretescheduler": "euler",
    "eulerancestraldiscretescheduler": "euler-ancestral",
    "heundiscretescheduler": "heun",
    "kdpm2discretescheduler": "dpm2",
    "kdpm2ancestraldiscretescheduler": "dpm2-ancestral",
    "dpmsolvermultistepscheduler": "dpmpp-2m",
    "dpmsolversinglestepscheduler": "dpmpp-2s",
    "dpmsolversdescheduler": "dpmpp-sde",
    "unipcmultistepscheduler": "unipc-2",
    "lcmscheduler": "consistency",
    "cogvideoxddimscheduler": "ddim",
    "cogvideoxdpmscheduler": "dpmpp-2m-sde",
    "flowmatcheulerdiscretescheduler": "euler",
    "flowmatchheundiscretescheduler": "heun-time",
}
SCHEDULES: Mapping[str, str] = {
    "normal": "uniform",
    "simple": "uniform",
    "automatic": "uniform",
    "linspace": "both-ends",
    "sgm-uniform": "trailing",
    "ddim-uniform": "leading-1",  # of ComfyUI: from index 1, in whole strides
    "ddim": "leading-1",
    "poly-exponential": "polyexponential",
    "use-karras-sigmas": "karras",
    "use-exponential-sigmas": "exponential",
}
SUFFIXES = ("karras", "exponential", "polyexponential", "sgm-uniform", "normal", "simple", "uniform", "automatic")
# Samplers of other programs that do not exist here, without "scheduler" and "multistep" -> the closest sampler here
ABSENT_SAMPLERS: Mapping[str, str] = {
    "restart": "heun-churn",  # also adds noise during sampling
    "karrasve": "heun-churn",
    "deis": "dpm-solver-2m",  # also multistep exponential integration of eps
    "ipndm": "plms",
    "ipndm-v": "plms",
    "res": "dpmpp-2m",
    "gradient-estimation": "lms",
    "heunpp2": "heun",
    "edmeuler": "euler",
    "edmdpmsolver": "dpmpp-2m",
    "er-sde": "dpmpp-3m-sde",
    "sa-solver": "dpmpp-3m-sde",
    "sasolver": "dpmpp-3m-sde",
    "seeds-2": "dpmpp-sde",
    "seeds-3": "dpmpp-sde",
    "cosinedpmsolver": "dpmpp-2m-sde",
    "scoresdeve": "pc-reverse-diffusion",
    "scoresdevp": "euler-maruyama",
    "tcd": "consistency",
    "cmstochasticiterative": "consistency",
    "flowmatchlcm": "consistency",
}
# Samplers of other programs that are a command here -> what to use
COMMAND_SAMPLERS: Mapping[str, str] = {
    "repaint": "use `unveil inpaint --method repaint`",
    "ddiminverse": "use `unveil invert`",
    "dpmsolverinverse": "use `unveil invert`",
}
# Schedules of other programs that do not exist here
ABSENT_SCHEDULES = (
    "ays", "align-your-steps", "beta", "kl-optimal", "laplace", "turbo", "bong-tangent", "gits", "sgm-beta"
)  # fmt: skip


class Spelled(NamedTuple):
    """Our name of a sampler, and the schedule in its foreign name, if any."""

    sampler: str
    schedule: str | None = None


def plain(name: str) -> str:
    """A name in lower case, with dashes for spaces and underscores, and "pp" for "++"."""
    text = re.sub(r"[\s_]+", "-", name.strip().lower().replace("++", "pp"))
    return text.replace("dpm-pp", "dpmpp").replace("dpm-plus-plus", "dpmpp")


def sampler(name: str, ours: Mapping[str, object]) -> Spelled | None:
    """Return the sampler of a foreign name, with its schedule, as of "DPM++ 2M Karras"; None: there is none.

    Args:
        ours: Samplers by their names here.
    """
    text = plain(name).removeprefix("sample-")  # as k-diffusion calls its functions
    if text in ours:
        return Spelled(text)
    for spelling in (text, f"{text}scheduler"):  # diffusers' class with or without its last word
        if spelling in SAMPLERS:
            return Spelled(SAMPLERS[spelling])
    for suffix in SUFFIXES:
        base = text.removesuffix(f"-{suffix}")
        if base != text and base and (spelled := sampler(base, ours)) is not None and spelled.schedule is None:
            return Spelled(spelled.sampler, SCHEDULES.get(suffix, suffix))
    return None


def absent_sampler(name: str, ours: Mapping[str, object]) -> str | None:
    """Return what to use instead of a sampler of another program that does not exist here; None: it is unknown.

    Args:
        ours: Samplers by their names here.
    """
    text = plain(name).removeprefix("sample-")
    for suffix in ABSENT_SCHEDULES:
        base = text.removesuffix(f"-{suffix}")
        if base != text and (spelled := sampler(base, ours)) is not None:
            return f"the sampler is {spelled.sampler!r}, but its schedule {suffix!r} does not exist here; try 'karras'"
        if text == suffix:
            return "this is a schedule of other programs, which does not exist here; try the schedule 'karras'"
    base = re.sub(r"-(cfg-pp|cfgpp)(-|$)", r"\2", text)
    if base != text and (spelled := sampler(base, ours)) is not None:
        return f"CFG++ does not exist here; the sampler without it is {spelled.sampler!r}"
    text = text.removesuffix("scheduler").removesuffix("-").removesuffix("multistep").removesuffix("-")
    if text in COMMAND_SAMPLERS:
        return COMMAND_SAMPLERS[text]
    return (
        f"it does not exist here; the closest method is {ABSENT_SAMPLERS[text]!r}" if text in ABSENT_SAMPLERS else None
    )


def schedule(name: str, ours: Mapping[str, object]) -> str:
    """Return the schedule of a foreign name; a name that is not foreign is returned unchanged."""
    text = plain(name)
    if name in ours:
        return name
    return text if text in ours else SCHEDULES.get(text, name)
