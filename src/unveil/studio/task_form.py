"""Forms made of tasks: a component for each field, and the task's plain values from what the components hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unveil.model.config import recipe_names
from unveil.studio.client import StudioClient
from unveil.studio.form_parsing import FormParser
from unveil.studio.i18n import Translator
from unveil.studio.upload_components import ImageUpload, VideoUpload
from unveil.tasks.fields import NEW, CatalogName, FileInput, LocalPath, Repeated
from unveil.tasks.task import Task, field_group, field_mark, find_mark

ITEMS = 2  # of a list of adapters, keyframes or scenes that a form has fields for
IMAGES = ("image", "mask")


@dataclass(frozen=True)
class FormField:
    """A component, and how its value becomes that of the field.

    Attributes:
        path: Keys and indices of the value in the task.
        part: The component.
        read: Turns the component's value into the field's; None is a value that was not given.
    """

    path: tuple[str | int, ...]
    part: Any
    read: Callable[[Any], Any]


class TaskForm:
    """The components of a task's fields, grouped; advanced ones are folded.

    Args:
        kind: The task.
        client: Service of the page.
        tr: Translator of the page.
    """

    def __init__(self, kind: type[Task], client: StudioClient, tr: Translator) -> None:
        self.kind, self._client, self._tr, self._typed = kind, client, tr, FormParser(tr)
        self.fields: list[FormField] = []

    def build(self) -> None:
        """Create the components inside the current block."""
        names = [name for name, field in self.kind.model_fields.items() if find_mark(field, LocalPath) is None]
        plain = [name for name in names if not extra_of(self.kind.model_fields[name]).get("advanced")]
        for title, group in _grouped(self.kind, plain):
            with gr.Group():
                if title:
                    gr.Markdown(self._tr.optional(title))
                self._add(self.kind, group, ())
        advanced = [name for name in names if name not in plain]
        if advanced:
            with gr.Accordion(self._tr("More settings"), open=False):
                self._add(self.kind, advanced, ())

    def component(self, name: str, **shown: Any) -> FormField:
        """Create the component of one field that is a number, a text, a choice or a map."""
        field = self.kind.model_fields[name]
        label = self._tr.optional(label_of(name, field))
        return FormField((name,), *self._plain(field, label, {"label": label, **shown}))

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The plain values of the task.

        Args:
            values: Values of the components, in the order of `fields`.

        Raises:
            RecipeError, DataError: A value that cannot be read.
        """
        request: dict[str, Any] = {}
        items: dict[str, dict[int, dict[str, Any]]] = {}
        for field, value in zip(self.fields, values, strict=True):
            if (read := field.read(value)) is None:
                continue
            if len(field.path) == 1:
                request[str(field.path[0])] = read
            else:
                name, place, inner = field.path
                items.setdefault(str(name), {}).setdefault(int(place), {})[str(inner)] = read
        for name, each in items.items():
            required = [key for key, inner in _item(self.kind, name).model_fields.items() if inner.is_required()]
            complete = [item for _, item in sorted(each.items()) if all(key in item for key in required)]
            if complete:
                request[name] = complete
        return request

    def _add(self, kind: type[BaseModel], names: Sequence[str], path: tuple[str | int, ...]) -> None:
        for name in names:
            field = kind.model_fields[name]
            item = _item_of(field)
            if item is not None and not path:
                for place in range(ITEMS):
                    with gr.Row():
                        self._add(item, list(item.model_fields), (name, place))
            else:
                self.fields.append(self._field((*path, name), name, field))

    def _field(self, path: tuple[str | int, ...], name: str, field: FieldInfo) -> FormField:
        label, help = self._tr.optional(label_of(name, field)), self._tr.optional(str(field.description or ""))
        if len(path) > 1:
            outer = str(path[0])
            title = self._tr.optional(label_of(outer, self.kind.model_fields[outer]))
            label = f"{title} {int(path[1]) + 1}: {label}"
        shown: dict[str, Any] = {"label": label, "elem_id": "task-" + "-".join(map(str, path))}
        mark = field_mark(field)
        if isinstance(mark, FileInput):
            if mark.medium in IMAGES:
                part: Any = ImageUpload(type="filepath", height=200, **shown)
            elif mark.medium == "media":
                part = gr.File(type="filepath", file_types=["image", "video"], height=120, **shown)
            else:
                part = VideoUpload(height=200, **shown)
            return FormField(path, part, self._uploaded)
        shown["info"] = help
        if isinstance(mark, CatalogName) and mark.kind not in NEW:
            names = [(name, name) for name in self._names(mark)]
            if get_origin(plain_type(field)) is tuple:
                return FormField(path, gr.Dropdown(names, value=[], multiselect=True, **shown), _non_empty)
            default = field.default if isinstance(field.default, str) else ""
            typed = {"allow_custom_value": True} if mark.kind == "model_or_architecture" else {}
            dropdown = gr.Dropdown([(self._tr("none"), ""), *names], value=default, **typed, **shown)
            return FormField(path, dropdown, _non_empty)
        return FormField(path, *self._plain(field, label, shown))

    def _plain(self, field: FieldInfo, label: str, shown: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
        """The component of a number, a text, a choice or a map, and how it is read."""
        kind, extra = plain_type(field), extra_of(field)
        default: Any = field.default if isinstance(field.default, bool | int | float | str) else None
        low, high = (limit(field, name) for name in ("ge", "le"))
        if kind is bool:
            return gr.Checkbox(bool(default), **shown), bool
        if get_origin(kind) is Literal:
            empty = [(self._tr("model default"), "")] if default is None else []
            choices = [*empty, *((choice, choice) for choice in get_args(kind))]
            return gr.Dropdown(choices, value=default or "", **shown), _non_empty
        if get_origin(kind) is dict:
            return gr.Textbox(lines=2, **shown), lambda text: self._typed.settings(text, label) or None
        if _is_repeated(field):
            usual: Any = field.default if isinstance(field.default, tuple) else ()
            values = [f"{value:g}" for value in usual if isinstance(value, int | float)]
            lines = max(2 if extra.get("widget") == "text" else 1, len(values))
            return gr.Textbox(lines=lines, placeholder="\n".join(values), **shown), _lines
        if kind in (int, float) and low is not None and high is not None and extra.get("widget") == "slider":
            step = 1 if kind is int else 0.05
            return gr.Slider(low, high, value=default, step=step, **shown), kind
        if kind in (int, float):
            read = self._typed.integer if kind is int else self._typed.number
            text = "" if default is None else f"{default:g}"
            shown = {"placeholder": self._tr("auto"), **shown}
            return gr.Textbox(text, **shown), lambda value: read(value, label)
        return gr.Textbox("" if default is None else str(default), **shown), _non_empty

    def _uploaded(self, path: Any) -> str | None:
        upload = self._client.store_upload(path)
        return None if upload is None else upload.name

    def _names(self, mark: CatalogName) -> list[str]:
        catalog = self._client.catalog
        entries = {
            "lora": catalog.loras,
            "controlnet": catalog.controlnets,
            "captioner": catalog.captioners,
            "sequence": catalog.sequences,
        }
        if mark.kind == "recipe":
            return recipe_names()
        if mark.kind == "recipe_or_model":
            return list(dict.fromkeys([*recipe_names(), *self._client.models()]))
        if mark.kind in entries:
            return [entry.name for entry in entries[mark.kind]()]
        return catalog.folders() if mark.kind == "folder" else self._client.models()


def label_of(name: str, field: FieldInfo) -> str:
    """The label of a field: its title, or its name in words."""
    return field.title or name.replace("_", " ").capitalize()


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """How a field is shown, see `tasks.fields.info`."""
    return dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}


def limit(field: FieldInfo, name: str) -> float | None:
    """A limit of a field's number: ge or le; None without one."""
    values = (getattr(mark, name, None) for mark in field.metadata)
    return next((value for value in values if value is not None), None)


def plain_type(field: FieldInfo) -> Any:
    """The type of a field without its marks and without None."""
    kind = _bare(field.annotation)
    if get_origin(kind) in (UnionType, Union):
        kind = next(_bare(member) for member in get_args(kind) if member is not NoneType)
    return kind


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _is_repeated(field: FieldInfo) -> bool:
    return any(isinstance(mark, Repeated) for mark in field.metadata) or get_origin(plain_type(field)) is tuple


def _item_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of the items of a list of objects; None for other fields."""
    members = [_bare(member) for member in get_args(plain_type(field))]
    return next((member for member in members if isinstance(member, type) and issubclass(member, BaseModel)), None)


def _item(kind: type[Task], name: str) -> type[BaseModel]:
    item = _item_of(kind.model_fields[name])
    assert item is not None, name
    return item


def _grouped(kind: type[Task], names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The fields of each group, in the order in which the groups begin."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(field_group(kind, name), []).append(name)
    yield from groups.items()


def _non_empty(value: Any) -> Any:
    return value or None


def _lines(text: Any) -> list[str] | None:
    return [line.strip() for line in str(text or "").splitlines() if line.strip()] or None
