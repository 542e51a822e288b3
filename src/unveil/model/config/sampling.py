"""Default sampling settings of a model: sampler, schedule, guidance."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from unveil.core import foreign_names, guidance, samplers, schedules
from unveil.core.denoiser import DenoiseFn
from unveil.core.prediction import VarianceRule
from unveil.core.process import Process
from unveil.core.samplers import Plan
from unveil.core.samplers.ancestral import Shift
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, did_you_mean
from unveil.model.config.sections import Section, validate
from unveil.model.migration import GUIDANCE_SCHEDULES, SETTINGS, migrate_settings

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Option = bool | int | float | str
OF_THE_MODEL = ("variance", "shift")  # settings of a sampler that the model and the caller give


# Kinds of guidance that keep the norm of the conditional velocity, and the parts that it is kept in
KEPT: dict[str, Literal["tokens", "rows"]] = {"cfg-token-norm": "tokens", "cfg-row-norm": "rows"}


class GuidanceConfig(Section):
    """Classifier-free guidance.

    Attributes:
        scale: Guidance scale; 1: no guidance, 0: without the condition, below 0: away from it.
        kind: Plain, adaptive projected, CFG-Zero* for flow models, or plain with the norm of the conditional velocity
            in each token (of Qwen-Image) or each row (of Lumina 2).
        schedule: Change of the scale over the noise levels.
        interval: Lower and upper t; other noise levels are not guided.
        rescale: Share of the standard deviation of the conditional estimate that is restored, against too much
            contrast.
        channels: Number of channels, from the first, that are guided; None: all.
    """

    scale: float = Field(default=1.0, ge=-100, le=100)
    kind: Literal["cfg", "apg", "cfg-zero", "cfg-token-norm", "cfg-row-norm"] = "cfg"
    schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "constant"
    interval: tuple[Share, Share] | None = None
    rescale: Share = 0.0
    channels: Positive | None = None

    @model_validator(mode="after")
    def _agrees(self) -> GuidanceConfig:
        if self.channels is not None and self.kind != "cfg":
            raise RecipeError(f"channels = {self.channels}: only kind cfg guides a part of the channels")
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise RecipeError(f"interval = {list(self.interval)}: from a lower t to a higher one, inside [0, 1]")
        return self

    def guide(self, conditional: DenoiseFn, null: DenoiseFn) -> DenoiseFn:
        """Return the guided denoising function."""
        conditional = guidance.memoized(conditional)
        scale = guidance.SCHEDULES[self.schedule](self.scale)
        if self.kind == "apg":
            guided = guidance.apg(conditional, null, scale, momentum=guidance.Momentum())
        elif self.kind == "cfg-zero":
            guided = guidance.cfg_zero(conditional, null, scale)
        else:
            plain = self.scale if self.schedule == "constant" else scale
            guided = guidance.cfg(conditional, null, plain, channels=self.channels)
        if self.kind in KEPT:
            guided = guidance.keep_norm(guided, conditional, KEPT[self.kind])
        if self.rescale:
            guided = guidance.rescale(guided, conditional, self.rescale)
        return guided if self.interval is None else guidance.interval(guided, conditional, *self.interval)


GUIDANCE = "guidance_"  # begins the flat names of its settings
INNER = {f"{GUIDANCE}{name}": name for name in GuidanceConfig.model_fields}


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings of sampling under their present names; other keys stay as they are."""
    if settings.get("schedule") in GUIDANCE_SCHEDULES or any(name in SETTINGS for name in settings):
        return migrate_settings(settings)
    return dict(settings)


class SampleConfig(Section):
    """Sampling settings.

    Attributes:
        sampler: Name in `core.samplers.sampler_specs`.
        steps: Number of steps of the schedule; most samplers make one network call in each, without guidance.
        eta: Share of the ancestral chain's noise, for samplers that take it; None: the sampler's default.
        options: Further settings of the sampler, by name.
        schedule: Noise schedule: a name in `core.schedules.SCHEDULES`, a respacing string such as "250", or a list of
            falling t.
        threshold: Thresholding of the predicted x0 to [-1, 1].
    """

    former: ClassVar[str] = "sample"
    sampler: str = "ddim"
    steps: Positive = 50
    eta: Share | None = None
    options: dict[str, Option] = Field(default_factory=dict)
    schedule: str | tuple[Share, ...] = "uniform"
    threshold: Literal["static", "dynamic", "none"] = "static"
    guidance: GuidanceConfig = GuidanceConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_schedule(cls, plain: Any) -> Any:
        """Add the schedule that is part of a sampler's foreign name, unless one is given."""
        if not isinstance(plain, dict) or not isinstance(plain.get("sampler"), str) or "schedule" in plain:
            return plain
        specs = samplers.sampler_specs()
        if plain["sampler"] in specs:
            return plain
        foreign = foreign_names.sampler(plain["sampler"], specs)
        return plain if foreign is None or foreign.schedule is None else {**plain, "schedule": foreign.schedule}

    @field_validator("schedule")
    @classmethod
    def _is_ours(cls, schedule: Any) -> Any:
        """Return our name of a schedule that is given by its name in another program."""
        names = schedules.SCHEDULES | schedules.SCHEDULED
        if not isinstance(schedule, str) or schedule in names:
            return schedule
        ours = foreign_names.schedule(schedule, names)
        if ours not in names and (sampler := foreign_names.sampler(schedule, samplers.sampler_specs())) is not None:
            raise RecipeError(
                f"schedule {schedule!r}: this is a sampler, not a noise schedule; use sampler={sampler.sampler}"
            )
        return ours

    @field_validator("sampler")
    @classmethod
    def _is_listed(cls, name: str) -> str:
        return samplers.get_sampler(name).name

    @field_validator("options")
    @classmethod
    def _are_of_their_kind(cls, options: dict[str, Option], info: ValidationInfo) -> dict[str, Option]:
        """Convert each option to the type that the sampler takes; unknown ones are refused by `_are_options`."""
        kinds, converted = _kinds(info.data["sampler"]) if "sampler" in info.data else {}, dict(options)
        for name in [name for name in options if name in kinds]:
            try:
                converted[name] = TypeAdapter(kinds[name]).validate_python(options[name])
            except ValidationError as problem:
                reason = problem.errors()[0]["msg"]
                raise RecipeError(
                    f"{name} = {options[name]!r}, of sampler {info.data['sampler']!r}: {reason}"
                ) from None
            if name == "eta" and float(converted[name]) < 0:
                raise RecipeError(f"eta = {converted[name]}: must be at least 0, which adds no noise")
        return converted

    @model_validator(mode="after")
    def _are_options(self) -> SampleConfig:
        allowed = self.settings()
        names = [*self.options, *(["eta"] if self.eta is not None else [])]
        for name in names:
            if name not in allowed:
                listed = ", ".join(allowed) or "none"
                raise RecipeError(
                    f"{name}: sampler {self.sampler!r} takes no such setting; its own are: {listed}"
                    f"{did_you_mean(name, allowed)}"
                )
        return self

    @property
    def nfe(self) -> int | None:
        """Approximate number of network calls for an image; None if the sampler decides while it runs."""
        per_step = samplers.get_sampler(self.sampler).calls
        return None if per_step is None else max(1, round(per_step * self.steps))

    def levels(self, process: Process) -> Schedule:
        """Return the noise schedule over a process."""
        if isinstance(self.schedule, str):
            return schedules.get_schedule(process, self.schedule, self.steps)
        return schedules.from_times(process, self.schedule)

    def plan(self, schedule: Schedule, variance: VarianceRule, shift: Shift | None = None) -> Plan:
        """Return the sampler over a noise schedule.

        Args:
            schedule: Noise schedule.
            variance: Variance of the model, for samplers that take one.
            shift: Shift of the mean, for samplers that take one.
        """
        entry = samplers.get_sampler(self.sampler)
        parameters = inspect.signature(entry.build).parameters
        arguments: dict[str, Any] = {**entry.options, **self.options}
        if self.eta is not None:
            arguments["eta"] = self.eta
        arguments |= {name: value for name, value in (("variance", variance), ("shift", shift)) if name in parameters}
        return entry.build(schedule, **arguments)

    @property
    def takes_shift(self) -> bool:
        """True if the sampler shifts its mean, as ADM's algorithm 1 does."""
        return "shift" in inspect.signature(samplers.get_sampler(self.sampler).build).parameters

    def flat(self) -> dict[str, Any]:
        """Return every setting by name, those of guidance as `guidance_scale`; settings that are None are left out."""
        plain = self.model_dump(mode="json")
        every = plain | {f"{GUIDANCE}{name}": value for name, value in plain.pop("guidance").items()}
        return {name: value for name, value in every.items() if value is not None}

    def brief(self) -> dict[str, Any]:
        """Return `flat` without the finer settings that have their default value."""
        usual = SampleConfig().flat()
        main = ("sampler", "steps", "eta", "schedule", "threshold", "guidance_scale")
        return {name: value for name, value in self.flat().items() if name in main or value != usual.get(name)}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return every name that `changed` takes, including those of unset settings."""
        return (*(name for name in cls.model_fields if name != "guidance"), *INNER)

    def changed(self, changes: Mapping[str, Any]) -> SampleConfig:
        """Return the settings with some changed, by the names of `flat` or former ones; None changes nothing.

        Another sampler begins without the settings of the old one; a respacing of one number follows the steps.

        Raises:
            RecipeError: A name is unknown, or a value is not allowed.
        """
        wanted = {name: value for name, value in current_settings(changes).items() if value is not None}
        plain = self.model_dump(mode="json")
        specs = samplers.sampler_specs()
        if "sampler" in wanted and (name := str(wanted["sampler"])) not in specs:
            foreign = foreign_names.sampler(name, specs)
            if foreign is not None:
                wanted["sampler"] = foreign.sampler
                if foreign.schedule is not None:
                    wanted.setdefault("schedule", foreign.schedule)
        if wanted.get("sampler", self.sampler) != self.sampler:
            plain |= {"eta": None, "options": {}}
        if "steps" in wanted and "schedule" not in wanted and str(self.schedule).isdecimal():
            plain["schedule"] = str(wanted["steps"])
        plain["guidance"] |= {INNER[name]: value for name, value in wanted.items() if name in INNER}
        plain |= {name: value for name, value in wanted.items() if name not in INNER}
        return validate(SampleConfig, plain, "sampling")

    def settings(self) -> list[str]:
        """Return the names of the sampler's settings, besides the noise schedule."""
        return list(_kinds(self.sampler))


def _kinds(sampler: str) -> dict[str, Any]:
    """Return the type of each setting of a sampler that can be given as plain text."""
    entry = samplers.get_sampler(sampler)
    parameters = list(inspect.signature(entry.build, eval_str=True).parameters.values())[1:]
    fixed = (*OF_THE_MODEL, *entry.options)
    kinds = {parameter.name: _written(parameter.annotation) for parameter in parameters if parameter.name not in fixed}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _written(kind: Any) -> Any:
    """Return the number type or list of words among the types of a parameter; None if it has neither."""
    types = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    plain = [option for option in types if option in (int, float) or get_origin(option) is Literal]
    return plain[0] if plain else None
