"""From YAML to a checked section and back: safe reading, dotted overrides, errors that name key, value and remedy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from unveil.errors import RecipeError
from unveil.io.validation import short, validated
from unveil.model import migration

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
    """The plain values of one YAML document: maps, lists, strings, numbers, booleans, null.

    Args:
        where: the file's name or the like, for messages.

    Raises:
        RecipeError: not YAML, a tag that would make an object, a repeated key, too large, too deep or too many aliases.
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
    """Sets `train.steps=100` or `condition.0.drop_prob=0.2` in place; the value is YAML.

    A former name is read as the new one, with a warning that names it.

    Raises:
        RecipeError: no `=`, a path through something that is neither map nor list, an index out of range.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{assignment!r}: an override is written key=value, such as train.steps=100")
    former = migration.Former(assignment)
    value = read_yaml(text, f"the value of {path.strip()}")
    assign(raw, *migration.migrate_path(raw, path.strip(), value, former))
    former.warn()


def assign(raw: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path in place, making the maps on the way.

    Raises:
        RecipeError: the path goes through something that is neither map nor list, or an index is out of range.
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
    """The section made from plain values, which may have former names.

    Raises:
        RecipeError: each fault on a line of its own: key path, value, what is allowed, nearest name.
    """
    if not isinstance(raw, Mapping):
        raise RecipeError(
            f"{where}: holds {short(raw)}; a map of keys to values is needed, such as `data: {{kind: digits}}`"
        )
    former: str = getattr(kind, "former", "")
    if former:
        raw = migration.migrate(raw, former)
    return validated(kind, raw, where)


def dump(section: BaseModel) -> str:
    """YAML that `validate` reads back as an equal section; every value is written, defaults included."""
    plain = section.model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _index(key: str, length: int, at: str) -> int:
    if not key.isdigit() or int(key) >= length:
        raise RecipeError(f"{at}.{key}: {at} is a list of {length}; its places are 0 to {length - 1}")
    return int(key)
