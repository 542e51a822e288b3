"""The table of published models: its form, the pages that show it, and what a name means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkpoints.hub.server import Repo
from tests.rules.source import ROOT
from unveil.checkpoints.hub import client, get, table
from unveil.checkpoints.hub.client import HubFile, Repository
from unveil.checkpoints.hub.table import PublishedModel, Record, published_models
from unveil.errors import RecipeError
from unveil.io.console import Console


@pytest.mark.parametrize("model", published_models().values(), ids=lambda model: model.name)
def test_the_form_of_the_table(model: PublishedModel):
    assert client.is_repository(model.repository)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", model.name)
    assert len(model.license) > 2
    assert model.conditions == (table.FREE.fullmatch(model.license) is None)
    assert model.revision is None or client.COMMIT.fullmatch(model.revision)
    assert {model.bytes, model.memory} == {None} if model.revision is None else (model.bytes or 0) > (model.memory or 0)
    assert model.makes in ("images", "videos")
    assert model.side % 16 == 0
    assert model.purpose.isascii()
    assert model.purpose.endswith(".")
    assert model.purpose_zh.endswith("\u3002")


def test_the_table_has_the_models_of_each_kind():
    assert set(published_models()) == {"sd15", "sd-turbo", "sdxl", "sd3", "flux-schnell", "wan", "ltx"}


@pytest.mark.parametrize(
    ("page", "purpose"), [("docs/howto/hub.md", "purpose"), ("docs/zh/howto/hub.md", "purpose_zh")]
)
def test_the_pages_show_the_table(page: str, purpose: str):
    text = (ROOT / page).read_text("utf-8")
    rows = [
        f"| `{m.name}` | `{m.repository}` | {m.license} | {getattr(m, purpose)} |" for m in published_models().values()
    ]
    assert [row for row in rows if row not in text] == []


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("sd-turbo", "stabilityai/sd-turbo", "main"),
        ("sd-turbo@fp16", "stabilityai/sd-turbo", "fp16"),
        ("someone/thing", "someone/thing", "main"),
        ("someone/thing@refs/pr/3", "someone/thing", "refs/pr/3"),
    ],
)
def test_what_a_name_means(models: Path, name: str, repository: str, revision: str):
    assert table.parse(name)[:2] == (repository, revision)


@pytest.mark.parametrize(
    "name", ["nothing", "a/b/c", "../x/y", "a/..", "http://x/y", "someone/thing@", "a/b@-x", "x--y/z", ""]
)
def test_what_is_no_name(models: Path, name: str):
    with pytest.raises(RecipeError):
        table.parse(name)
    assert not table.is_wanted(name)


def test_a_short_name_takes_the_commit_that_was_recorded(models: Path):
    found = Repository("stabilityai/sd-turbo", "a" * 40, "own", "", (HubFile("x.safetensors", 3, "b" * 64),))
    record = Record(found, ("x.safetensors",), (), 3, 3, 1e6)
    table.write_record(record)
    assert table.read_record("stabilityai/sd-turbo") == record
    assert table.parse("sd-turbo").revision == "a" * 40
    assert table.parse("stabilityai/sd-turbo").revision == "main"
    table.record_file("stabilityai/sd-turbo").write_text("{")
    assert table.parse("sd-turbo").revision == "main"


def test_the_first_download_of_a_short_name_records_its_commit_and_size(hub, published: Repo, monkeypatch):
    model = PublishedModel("digits-x", "someone/digits", "mit", False, "images", 16, "x.", "x", None, None, None)
    monkeypatch.setattr(table, "published_models", lambda: {"digits-x": model})
    planned = get.plan("digits-x")
    get.fetch(planned, Console(quiet=True))
    first = published.commit
    published.files["card.md"] = b"another"
    assert published.commit != first
    record = table.read_record("someone/digits")
    assert record is not None
    assert (record.bytes, record.weights) == (planned.selection.bytes, planned.selection.weights)
    assert table.parse("digits-x").revision == first
    assert table.resolve("digits-x") == table.resolve("someone/digits")  # the short name finds the model
