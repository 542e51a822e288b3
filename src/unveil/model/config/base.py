"""What every part of a recipe is: a frozen, checked section; and how one is made from a dataclass of core or nn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from unveil.errors import did_you_mean
from unveil.model import migration


class Section(BaseModel):
    """Frozen, with finite numbers, and an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    former: ClassVar[str] = ""  # the section's name in `model.migration`, where plain values may have former names

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            allowed = list(cls.model_fields)
            for key in given:
                if key not in allowed:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key{nearest}; allowed: {allowed}",
                        {
                            "key": str(key),
                            "nearest": migration.foreign(str(key), allowed) or did_you_mean(key, allowed),
                            "allowed": ", ".join(allowed),
                        },
                    )
        return given


class PartSection(Section):
    """A section that mirrors a frozen dataclass of a lower layer, field by field, but for the derived ones."""

    part: ClassVar[type[Any]]
    kind: str

    def build(self, derived: Mapping[str, Any] | None = None) -> Any:
        """The dataclass with this section's values and those that follow from the rest of the recipe."""
        given = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self.part) if f.name in type(self).model_fields
        }
        return self.part(**given, **(derived or {}))

    @classmethod
    def derived_names(cls) -> list[str]:
        """The dataclass's fields that are no key of the section."""
        return [f.name for f in dataclasses.fields(cls.part) if f.init and f.name not in cls.model_fields]


def section(
    kind: str,
    part: type[Any],
    *,
    derived: Sequence[str] = (),
    shorthand: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    base: type[PartSection] = PartSection,
) -> type[PartSection]:
    """The section `{kind: ..., <the fields of a frozen dataclass>}`; types, defaults and checks are the dataclass's.

    Args:
        derived: fields that are no key of the section, because they follow from the rest of the recipe.
        shorthand: turns keys that stand for several fields into these, before anything is checked.
        base: what it derives from; its own keys are keys of the section too.
    """
    hints = get_type_hints(part)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}  # pyright: ignore[reportInvalidTypeForm]
    for field in dataclasses.fields(part):
        if field.init and field.name not in (*derived, "kind"):
            fields[field.name] = (hints[field.name], _default(field))
    spelled: dict[str, Any] = {}
    if shorthand is not None:
        expand = lambda given: shorthand(given) if isinstance(given, Mapping) else given  # noqa: E731
        spelled["spelled_out"] = model_validator(mode="before")(expand)
    made = create_model(
        f"{part.__name__}Section", __base__=base, __doc__=part.__doc__, __validators__=spelled, **fields
    )
    made.part = part
    return made


class ByKind:
    """Marks a union of sections that `kind` tells apart: Annotated[A | B, ByKind()]."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        sections: tuple[type[Section], ...] = get_args(source) or (source,)
        choices = {get_args(one.model_fields["kind"].annotation)[0]: handler.generate_schema(one) for one in sections}
        allowed = ", ".join(choices)

        def must_be_a_map(given: Any) -> Any:
            if not isinstance(given, Mapping | Section):
                raise PydanticCustomError("unknown_kind", "needs a map", {"allowed": allowed})
            return given

        by_kind = core_schema.tagged_union_schema(
            choices,
            "kind",
            custom_error_type="unknown_kind",
            custom_error_message="unknown kind",
            custom_error_context={"allowed": allowed},
        )
        return core_schema.no_info_before_validator_function(must_be_a_map, by_kind)


def choice(*sections: type[Section]) -> Any:
    """The type of a field that takes any of these sections and tells them apart by `kind`."""
    return Annotated[Union[sections], ByKind()]  # noqa: UP007 - made of a variable number


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ...
