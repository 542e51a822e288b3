"""Citations of recipes, and the description of a model's prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Cli
from unveil.model import build
from unveil.model.config import Recipe, load_recipe, recipe_names
from unveil.tasks.recipes_run import sources

CITED = {
    "edm-cifar10": {
        "prediction": "Karras et al. 2022, table 1",
        "weight": "Karras et al. 2022, table 1 and eq. 8",
        "times": "Karras et al. 2022, table 1",
        "sampler": "Karras et al. 2022, algorithm 2",
        "schedule": "Karras et al. 2022, eq. 5",
    },
    "score-sde-cifar10": {
        "process": "Song et al. 2021, eq. 30",
        "objective": "Song & Ermon 2019, eq. 5",
        "weight": "Song & Ermon 2019, eq. 6",
        "sampler": "Song et al. 2021, algorithm 1",
    },
    "flow-fashion": {"process": "Liu et al. 2022, eq. 1", "times": "Esser et al. 2024, eq. 19"},
    "classifier-imagenet64": {"network": "Dhariwal & Nichol 2021", "guidance": "Dhariwal & Nichol 2021, section 4"},
}


def cited(name: str, *changes: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in sources(load_recipe(name, changes)):
        found.setdefault(line["part"], []).append(line["source"])
    return found


@pytest.mark.parametrize("name", CITED)
def test_each_component_in_use_is_cited(name: str):
    found = cited(name)
    for part, source in CITED[name].items():
        assert any(source in one for one in found[part]), f"{part}: {found.get(part)}"


def test_unused_components_are_not_cited():
    assert "variance" not in cited("edm-cifar10")
    assert "guidance" not in cited("edm-cifar10")
    assert "weight" not in cited("flow-fashion")


def test_other_choices_cite_other_papers():
    found = cited(
        "edm-cifar10", "condition.0.drop_prob=0.1", "sample.guidance={scale: 2, rescale: 0.7, interval: [0.1, 0.9]}"
    )
    assert "2207.12598" in found["guidance"][0]
    assert "2404.07724" in found["interval"][0]
    assert "2305.08891" in found["rescale"][0]
    sliced = cited("flow-fashion", "prediction=score", "objective={kind: sliced-score-matching}", "sample.steps=3")
    assert "1905.07088" in sliced["objective"][0]
    shifted = cited("flow-fashion", "process={kind: shifted, shift: 3, process: {kind: rectified-flow}}")
    assert len(shifted["process"]) == 2


def test_every_recipe_cites_each_source_once():
    for name in recipe_names():
        found = sources(load_recipe(name))
        assert found or load_recipe(name).kind == "classifier", name
        assert len({line["source"] for line in found}) == len(found), name


def test_a_preconditioning_is_described_by_its_name_and_settings(cli: Cli, tmp_path: Path):
    recipe = load_recipe("edm-cifar10", small=True)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(0)
    build(recipe.model).save(tmp_path / "model")
    card = (tmp_path / "model" / "card.md").read_text("utf-8")
    assert "| prediction | edm (sigma_data 0.5, index_scale 1.0), variance fixed-small |" in card
    shown = cli("inspect", "model", "model").out
    assert "prediction   edm, sigma_data 0.5, index_scale 1.0" in shown
    assert "Section" not in card + shown
