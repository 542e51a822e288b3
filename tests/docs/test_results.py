"""The page of results and what recipes expect say what the reports say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from unveil.config import load_recipe, recipe_names
from unveil.evaluate.report import Report

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("results_index", DOCS / "results_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_reports_give(generator):
    assert (DOCS / "results/index.md").read_text() == generator.index(), "run python docs/results_index.py"


def test_recipes_expect_what_was_measured(generator):
    for folder in sorted((DOCS / "results").glob("*/report.json")):
        name = folder.parent.name
        assert name in recipe_names(), f"docs/results/{name}: no such recipe"
        expected = load_recipe(name).expected.scores
        assert expected == generator.scores(Report.load(folder)), f"src/unveil/recipes/{name}.yaml: expected.scores"
