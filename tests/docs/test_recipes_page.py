"""The page of recipes shows every section that a recipe can hold, and every kind of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, get_args

import pytest

from tests.docs.pages import DOCS, read
from unveil.model.config import AnyRecipe, Section

PAGE = DOCS / "recipes.md"


@cache
def directives() -> ModuleType:
    """The directives that make the tables of the site."""
    pytest.importorskip("sphinx", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("from_source", DOCS / "_ext" / "from_source.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def sections(annotation: Any, found: dict[type[Section], str], where: str = "") -> Iterator[tuple[type[Section], str]]:
    """Every section that a value of this type can hold, with the key that it stands behind."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        if annotation not in found:
            found[annotation] = where
            yield annotation, where
            for key, field in annotation.model_fields.items():
                yield from sections(field.annotation, found, f"{where}.{key}".strip("."))
        return
    for inner in get_args(annotation):
        yield from sections(inner, found, where)


def shown(text: str) -> set[type[Section]]:
    """The sections whose tables a page has."""
    lines = [line for line in text.splitlines() if line.startswith("```{settings} ")]
    return {directives().named(*line.split()[1:]) for line in lines}


def missing(text: str) -> list[str]:
    """What a recipe can hold and a page does not show: sections without a table, kinds without a word."""
    tables, lacking = shown(text), []
    for section, where in sections(AnyRecipe, {}):
        kinds = get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
        kind = kinds[0] if len(kinds) == 1 else None
        keys = set(section.model_fields) - ({"kind"} if kind else set())
        if keys and section not in tables:
            lacking.append(f"{where or 'a recipe'}: no table of {section.__name__} (kind {kind})")
        chosen = kind and not where.endswith(kind)  # a section of one kind, under its own name, has none to choose
        if chosen and f"`kind: {kind}`" not in text and (keys or f"`{kind}`" not in text):
            lacking.append(f"{where or 'a recipe'}: kind {kind} is not named")
    return lacking


def test_every_kind_that_a_recipe_can_name_stands_on_the_page():
    assert missing(PAGE.read_text("utf-8")) == []


def test_a_kind_that_is_not_on_the_page_is_seen():
    text = PAGE.read_text("utf-8")
    gone = "```{settings} unveil.model.config.model VideoDiTSection\n"
    assert gone in text
    assert missing(text.replace(gone, "")) == ["network: no table of VideoDiTConfigSection (kind video-dit)"]
    assert missing(text.replace("`kind: vq`", "")) == ["autoencoder: kind vq is not named"]
    assert missing(text.replace("truncated-snr", "")) == ["objective.weight: kind truncated-snr is not named"]


def test_the_page_has_no_table_twice():
    tables = [block.language for block in read(PAGE).blocks if block.language.startswith("{settings}")]
    assert len(tables) == len(set(tables)) > 60


def test_a_key_is_described_by_the_base_of_its_section():
    descriptions = directives().documented(directives().named("unveil.model.config.model", "VQSection"))
    assert descriptions["codebook_size"] == "Number of entries of the codebook."
    assert "deviation is near 1" in descriptions["scale"]  # of CodecConfig
    assert descriptions["z_channels"]  # of the autoencoder's networks
