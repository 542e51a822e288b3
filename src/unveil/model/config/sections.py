"""Sections of a recipe: frozen, checked classes, built from dataclasses of other packages, and read from safe YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from unveil.errors import RecipeError, did_you_mean
from unveil.io.validation import short, validated
from unveil.model import migration


class Section(BaseModel):
    """A frozen section with finite numbers; an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    former: ClassVar[str] = ""  # the section's name in `model.migration`, where plain values may have former names

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            allowed = list(cls.model_fields)
            for key in values:
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
        return values


class PartSection(Section):
    """A section that mirrors a frozen dataclass of a lower layer, field by field, except the derived ones."""

    part: ClassVar[type[Any]]
    kind: str

    def build(self, derived: Mapping[str, Any] | None = None) -> Any:
        """Return the dataclass with this section's values and those that follow from the rest of the recipe."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self.part) if f.name in type(self).model_fields
        }
        return self.part(**values, **(derived or {}))

    @classmethod
    def derived_names(cls) -> list[str]:
        """Return the dataclass's fields that are not keys of the section."""
        return [f.name for f in dataclasses.fields(cls.part) if f.init and f.name not in cls.model_fields]


def section(
    kind: str,
    part: type[Any],
    *,
    derived: Sequence[str] = (),
    shorthand: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    base: type[PartSection] = PartSection,
) -> type[PartSection]:
    """Return the section `{kind: ..., <fields of a dataclass>}` with the dataclass's types, defaults and checks.

    Args:
        kind: Value of `kind` that selects the section.
        part: The dataclass.
        derived: Fields that are not keys of the section, because they follow from the rest of the recipe.
        shorthand: Function that expands keys that stand for several fields, before anything is checked.
        base: Base class; its keys are keys of the section too.
    """
    hints = get_type_hints(part)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}  # pyright: ignore[reportInvalidTypeForm]
    for field in dataclasses.fields(part):
        if field.init and field.name not in (*derived, "kind"):
            fields[field.name] = (hints[field.name], _default(field))
    spelled: dict[str, Any] = {}
    if shorthand is not None:
        expand = lambda values: shorthand(values) if isinstance(values, Mapping) else values  # noqa: E731
        spelled["spelled_out"] = model_validator(mode="before")(expand)
    built = create_model(
        f"{part.__name__}Section", __base__=base, __doc__=part.__doc__, __validators__=spelled, **fields
    )
    built.part = part
    return built


class ByKind:
    """Marker of a union of sections that `kind` distinguishes: Annotated[A | B, ByKind()]."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        sections: tuple[type[Section], ...] = get_args(source) or (source,)
        choices = {
            get_args(option.model_fields["kind"].annotation)[0]: handler.generate_schema(option) for option in sections
        }
        allowed = ", ".join(choices)

        def must_be_a_map(value: Any) -> Any:
            if not isinstance(value, Mapping | Section):
                raise PydanticCustomError("unknown_kind", "needs a map", {"allowed": allowed})
            return value

        by_kind = core_schema.tagged_union_schema(
            choices,
            "kind",
            custom_error_type="unknown_kind",
            custom_error_message="unknown kind",
            custom_error_context={"allowed": allowed},
        )
        return core_schema.no_info_before_validator_function(must_be_a_map, by_kind)


def choice(*sections: type[Section]) -> Any:
    """Return the type of a field that takes any of these sections and distinguishes them by `kind`."""
    return Annotated[Union[sections], ByKind()]  # noqa: UP007 - made of a variable number


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ...


MAX_BYTES = 256 * 1024  # a recipe is a page; anything larger is something else
MAX_ALIASES = 20  # each alias may multiply what the text stands for ("billion laughs")
MAX_DEPTH = 40

S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which a repeated key is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str, where: str) -> Any:
    """Return the plain values of a YAML document: maps, lists, strings, numbers, booleans, null.

    Args:
        where: Name of the file or of another origin, for messages.

    Raises:
        RecipeError: The text is not plain YAML, has a tag or a repeated key, or exceeds a limit of size, depth or
            aliases.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{where}: {len(text)} characters; a recipe has at most {MAX_BYTES}")
    try:
        aliases = depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if aliases > MAX_ALIASES:
                raise RecipeError(f"{where}: more than {MAX_ALIASES} aliases (*name); write the values out")
            if depth > MAX_DEPTH:
                raise RecipeError(f"{where}: nested deeper than {MAX_DEPTH} levels; flatten it")
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or str(problem)
        raise RecipeError(f"{where}{place}: not plain YAML ({reason}); tags and objects are not allowed") from problem
    except ValueError as problem:  # such as the date 2020-13-45
        if isinstance(problem, RecipeError):
            raise
        raise RecipeError(f"{where}: not plain YAML ({problem})") from problem


def override(raw: dict[str, Any], assignment: str) -> None:
    """Apply an override such as `train.steps=100` or `condition.0.drop_prob=0.2` in place; the value is YAML.

    A former name is read as the new one, with a warning that names it.

    Raises:
        RecipeError: `=` is missing, the path passes through a plain value, or an index is out of range.
    """
    change(raw, *read_assignment(assignment))


def read_assignment(assignment: str) -> tuple[str, Any]:
    """Return the key and the value of an override such as `train.steps=100`; the value is YAML.

    Raises:
        RecipeError: `=` is missing, or the value is not YAML.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{assignment!r}: an override is written key=value, such as train.steps=100")
    return path.strip(), read_yaml(text, f"the value of {path.strip()}")


def change(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path in place; a former name is read as the new one, with a warning.

    Raises:
        RecipeError: The path passes through a plain value, or an index is out of range.
    """
    former = migration.Former(f"{path}={value}")
    assign(raw, *migration.migrate_path(raw, path, value, former))
    former.warn()


def assign(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path in place; missing maps are created.

    Raises:
        RecipeError: The path passes through a plain value, or an index is out of range.
    """
    keys = path.split(".")
    here: Any = raw
    for depth, key in enumerate(keys):
        at = ".".join(keys[:depth]) or "the recipe"
        last = depth == len(keys) - 1
        if isinstance(here, list):
            place = _index(key, len(here), at)
            if last:
                here[place] = value
            here = here[place]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            elif here.get(key) is None:
                here[key] = {}
            here = here[key]
        else:
            raise RecipeError(f"{path}: {at} is the value {here!r} and has no key {key!r}; set {at} itself")


def validate(kind: type[S], raw: Any, where: str) -> S:
    """Return the checked section of plain values, which may have former names.

    Raises:
        RecipeError: The values have faults; there is a line for each: key path, value, what is allowed, nearest name.
    """
    if not isinstance(raw, Mapping):
        raise RecipeError(
            f"{where}: holds {short(raw)}; a map of keys to values is needed, such as `data: {{kind: digits}}`"
        )
    former: str = getattr(kind, "former", "")
    try:
        return validated(kind, raw, where)
    except RecipeError:
        migrated = migration.migrate(raw, former) if former else raw
        if migrated == raw:
            raise
    return validated(kind, migrated, where)


def dump(section: BaseModel) -> str:
    """Return the YAML from which `validate` reads an equal section, with every value, defaults included."""
    plain = section.model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _index(key: str, length: int, at: str) -> int:
    if not key.isdigit() or int(key) >= length:
        raise RecipeError(f"{at}.{key}: {at} is a list of {length}; its places are 0 to {length - 1}")
    return int(key)
