"""Directives whose content is the package itself, so that no page can say what the code does not.

{source}   lines of a function beside the formula that they compute
{api}      every module of a layer, from its docstrings
{routes}   every route of the server, with what it does
{recipes}  every bundled recipe with its claim and command
{pipelines} every family of diffusers' pipelines that is read, and what its models do
{settings} the keys of a section of a recipe, their types and defaults
{pages}    a toctree of generated pages, of which some may not be there yet
"""

from __future__ import annotations

import ast
import json
import os
import re
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from fastapi.routing import APIRoute
from pydantic_core import PydanticUndefined, to_jsonable_python
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralInclude
from sphinx.directives.other import TocTree
from sphinx.util.docutils import SphinxDirective
from sphinx.util.matching import patfilter

import unveil
from unveil.checkpoints.hf.family import TASKS
from unveil.checkpoints.hf.pipelines import FAMILIES
from unveil.model.config import ClassifierRecipe, Section, load_recipe, recipe_names
from unveil.server.http.routes import router

PACKAGE = Path(unveil.__file__).parent


class Source(LiteralInclude):
    """`{source} core/prediction.py solve` with :start-at: and :end-at: shows those lines, under their real numbers."""

    optional_arguments = 1  # the function or class; without one the whole file is searched

    def run(self) -> list[nodes.Node]:
        """A literalinclude with the options that every one of ours has."""
        path, *name = self.arguments
        # Sphinx reads "/x" from the root of the documentation
        self.arguments = ["/" + os.path.relpath(PACKAGE / path, self.env.srcdir)]
        self.options |= {"language": "python", "lineno-match": None, "dedent": None}
        self.options |= {"pyobject": name[0]} if name else {}
        self.options.setdefault("caption", ": ".join([path, *name]))
        return super().run()


class Api(SphinxDirective):
    """`{api} core` documents every module of unveil.core that says something."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section per module."""
        self.env.note_reread()  # the package changes, and the page does not
        lines: list[str] = []
        for module in modules(self.arguments[0]):
            lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:"]
            lines += ["   :ignore-module-all:", "```", ""]  # a package's own names; what it passes on has its module
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Recipes(SphinxDirective):
    """Every recipe that ships."""

    def run(self) -> list[nodes.Node]:
        """A section per recipe."""
        self.env.note_reread()  # the package changes, and the page does not
        lines: list[str] = []
        for recipe in map(load_recipe, recipe_names()):
            kind = "A classifier. " if isinstance(recipe, ClassifierRecipe) else ""
            lines += [f"### {recipe.name}", "", f"{kind}{recipe.reference}.", ""]
            lines += [f"Claim: {recipe.claim}.", ""] if recipe.claim else []
            lines += ["```bash", recipe.command or f"unveil train {recipe.name}", "```", ""]
            scores = {"published": recipe.expected.published, "ours": recipe.expected.scores}
            for name, found in scores.items():
                lines += [f"{name}: " + ", ".join(f"{k} {v}" for k, v in found.items()), ""] if found else []
            lines += [f"time: {recipe.expected.time}", ""] if recipe.expected.time else []
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Pipelines(SphinxDirective):
    """`{pipelines} family, classes, sample, ...` is a table of all families, under these titles of its columns."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A row per family."""
        self.env.note_reread()
        heads = [head.strip() for head in self.arguments[0].split(",")]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for family in FAMILIES:
            classes = ", ".join(f"`{name}`" for name in family.pipelines)
            marks = ["yes" if task in family.tasks else "no" for task in TASKS]
            lines.append(f"| {' | '.join([family.name, classes, *marks])} |")
        return self.parse_text_to_nodes("\n".join(lines))


class Settings(SphinxDirective):
    """`{settings} unveil.model.config TrainConfig` lists the keys of a section; a third word chooses one of a union."""

    required_arguments = 2
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table of key, allowed values and default."""
        self.env.note_reread()  # the package changes, and the page does not
        section = named(*self.arguments)
        meanings = documented(section)
        lines = ["| key | value | default | |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            if key != "kind" or len(get_args(field.annotation)) > 1:
                meaning = (meanings.get(key) or field.description or "").replace("|", "\\|")
                lines.append(f"| `{key}` | {spelled(field.annotation)} | {_default(field)} | {meaning} |")
        return self.parse_text_to_nodes("\n".join(lines))


class Routes(SphinxDirective):
    """Every route of the server, and what it does."""

    def run(self) -> list[nodes.Node]:
        """A table of method, path and meaning."""
        self.env.note_reread()  # the package changes, and the page does not
        lines = ["| route | |", "|---|---|"]
        for route in router.routes:
            if isinstance(route, APIRoute):
                meaning = re.sub(r"\s+", " ", route.description.split("\n\n")[0]).replace("|", "\\|")
                lines.append(f"| `{' '.join(sorted(route.methods))} {route.path}` | {meaning} |")
        return self.parse_text_to_nodes("\n".join(lines))


class Pages(TocTree):
    """A globbing toctree without the patterns that match nothing."""

    def run(self) -> list[nodes.Node]:
        """The toctree of what is there, or nothing."""
        there = [line for line in self.content if patfilter(self.env.found_docs, line)]
        self.content = StringList(there, source=self.env.docname)
        self.options["glob"] = True
        return super().run() if there else []


def modules(layer: str) -> Iterator[str]:
    """The public modules of a layer that offer anything, by name; a layer of one file is that file."""
    home = PACKAGE / layer
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    for path in files:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        tree = ast.parse(path.read_text("utf-8"))
        offers = any(isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_" for node in tree.body)
        if offers and not any(part.startswith("_") and part != "__init__" for part in parts):
            yield ".".join(parts).removesuffix(".__init__")


def named(module: str, name: str, kind: str | None = None) -> type[Section]:
    """The section of this name; of a choice of sections that of a kind."""
    found = getattr(import_module(module), name)
    if kind is None:
        return found
    choices = get_args(found)[0]  # of Annotated[A | B, ...], or of Annotated[A, ...] where there is one
    return next(one for one in get_args(choices) or (choices,) if one.model_fields["kind"].default == kind)


def documented(section: type[Section]) -> dict[str, str]:
    """Return the description of each key: of the section, of the dataclass that it mirrors, and of their bases."""
    sources = [*section.__mro__, *getattr(section, "part", object).__mro__]
    keys = list(section.model_fields)
    found: dict[str, str] = {}
    for source in sources:
        if source.__doc__ and not source.__module__.startswith(("pydantic", "builtins")):
            found = {key: text for key, text in meanings(source.__doc__).items() if key in keys} | found
    return found


def meanings(docstring: str) -> dict[str, str]:
    """What a docstring says of each key: the text behind `key:` or `key, other:` until the next of them."""
    text = re.sub(r"\n[ ]*(Raises|Sources?):.*", "", docstring, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"\n[ ]*(Args|Attributes):", ". ", text))
    parts = re.split(r"(?:^|(?<=[.;]) )([a-z]\w*(?:, [a-z]\w*)*): ", text)
    return {
        key: meaning.strip()
        for names, meaning in zip(parts[1::2], parts[2::2], strict=True)
        for key in names.split(", ")
    }


def spelled(annotation: Any) -> str:
    """A type for a reader: `"a" | "b"`, whole number, list of numbers."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spelled(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(spelled(one) for one in inner))
    if origin in (tuple, list):
        return "list of " + spelled(inner[0])
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(annotation, "section")


def _default(field: Any) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, (), [], ""):
        return "none"
    if hasattr(type(value), "model_fields"):
        return "as below"
    return f"`{json.dumps(to_jsonable_python(value))}`" if isinstance(value, bool | tuple) else f"`{value}`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    for directive in (Source, Api, Recipes, Pipelines, Settings, Routes, Pages):
        app.add_directive(directive.__name__.lower(), directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
