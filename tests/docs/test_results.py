"""The page of results and what recipes expect say what the reports say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from unveil.analysis.inverse_problems import PROBLEM_TYPES
from unveil.evaluate.report import Report
from unveil.model.config import load_recipe, recipe_names

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
        name, _, changed = folder.parent.name.partition(".")  # after the dot: with changes that the report names
        assert name in recipe_names(), f"docs/results/{name}: no such recipe"
        if changed:
            about = Report.load(folder).about
            trained = f"unveil train {name} " in about["training"].get("command", "")
            assert trained or f"--recipe {name} " in about["command"]  # a bundled model, which has no run
            continue
        expected = load_recipe(name).expected.scores
        assert expected == generator.scores(Report.load(folder)), (
            f"src/unveil/assets/recipes/{name}.yaml: expected.scores"
        )


def test_recipes_of_other_networks_expect_what_their_cards_say(generator):
    found = dict(generator.cards())
    assert {"vit-fashion", "transformer-tasks", "transformer-translate"} <= found.keys()
    for name, card in found.items():
        assert card["command"] == f"unveil train {name}"  # nothing was changed
        expected = load_recipe(name).expected.scores
        assert expected == generator.card_scores(card), f"src/unveil/assets/recipes/{name}.yaml: expected.scores"


def test_other_networks_are_as_good_as_promised(generator):
    found = dict(generator.cards())
    for way in ("greedy", "beam"):
        tasks = found["transformer-tasks"]["exact"][way]
        assert tasks["copy"] == tasks["reverse"] == 1
        assert tasks["sort"] >= 0.99
        assert found["transformer-translate"]["exact"][way]["all"] >= 0.95
    vit = found["vit-fashion"]
    assert vit["accuracy"] >= 0.91
    assert min(vit["accuracy_by_size"].values()) >= vit["accuracy"] - 0.03


@pytest.mark.parametrize(("name", "times"), [("score-sde-vp-fashion", 1.5), ("ncsn-fashion", 3)])
def test_models_without_labels_are_near_the_baseline_without_labels(name: str, times: float):
    fid, baseline = (
        Report.load(DOCS / "results" / one / "report.json").results["fid"]["value"]
        for one in (name, "ddpm-fashion.unlabelled")
    )
    assert fid <= times * baseline


def test_enlargements_are_better_than_bicubic_ones_by_an_interval():
    gains = Report.load(DOCS / "results/upsampler-fashion").results["enlarged"]
    assert all(gains[name]["low"] > 0 for name in ("psnr", "ssim", "perceptual"))


def test_a_negative_prompt_lowers_what_it_names_by_an_interval():
    results = Report.load(DOCS / "results/words-scenes").results
    assert results["negative"]["low"] > 0
    assert results["named"]["low"] > results["named"]["chance"]


# Bars that no method reaches; one that is reached after all is a fault too, so that this list stays true.
MISSED = {"inverse-fashion": set[str](), "inverse-scenes": set[str]()}


@pytest.mark.parametrize("name", MISSED)
def test_the_inverse_problems_that_miss_their_bar_are_known(name: str):
    folder = DOCS / "results" / name
    study = json.loads((folder / "inverse.json").read_text())
    known = [row for row in study["rows"] if row["bar"] is not None]
    problems = {row["problem"] for row in known}
    assert problems | set(study["skipped"]) == set(PROBLEM_TYPES)
    assert problems - {row["problem"] for row in known if row["met"]} == MISSED[name]
    assert all(row["residual"] <= study["limits"]["residual"] for row in known)
    assert all(row["known"] for row in known if row["problem"] == "mask")
    assert all(len((folder / file).read_text()) < 400_000 for file in ("inverse.json", "inverse.html"))
