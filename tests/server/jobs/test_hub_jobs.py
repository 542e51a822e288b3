"""Models by name on a server: for admins only, by short names, and with a token that no job shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.checkpoints.hub.conftest import TOKEN, files_of
from tests.checkpoints.hub.server import Repo, serving
from tests.server.jobs.conftest import done
from unveil.errors import WeightsError
from unveil.io.sandbox import compute_environment
from unveil.model import build
from unveil.model.config import Recipe, load_recipe
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_types import AdminRequired, job_cost
from unveil.tasks import registry

CHANGES = ["network.model_channels=8", "network.groups=4", "process.timesteps=50", "sample.steps=2"]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def save(folder: Path) -> None:
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    build(recipe.model).save(folder)


def test_only_an_admin_may_change_what_all_keys_share(models: Path, tmp_path: Path):
    inputs = SimpleNamespace(info=None, path=None)
    catalog = Catalog(tmp_path / "runs")
    requests = {
        "get": {"repository": "someone/digits"},
        "push": {"source": "ddpm-digits", "repository": "me/digits"},
        "convert": {"source": "ddpm-digits", "output": "mine"},
        "rename": {"source": "ddpm-digits", "output": "mine"},
        "delete": {"source": "ddpm-digits", "yes": True},
    }
    for kind, request in requests.items():
        with pytest.raises(AdminRequired, match=f"{kind}: .*needs a key with the role admin"):
            job_cost(kind, request, catalog, inputs, is_admin=False)  # type: ignore[arg-type]
        assert job_cost(kind, request, catalog, inputs, is_admin=True) == 1.0  # type: ignore[arg-type]
    assert [name for name in registry.BUNDLED if registry.task_class(name).admin] == ["get", "push", "rename", "delete"]


def test_a_short_name_finds_the_downloaded_model_and_offers_a_missing_one(models: Path):
    catalog = Catalog(None)
    with pytest.raises(WeightsError, match=r"no model has this name.*; the task get downloads sd-turbo; there are"):
        catalog.model("sd-turbo")
    with pytest.raises(WeightsError, match="the task get downloads someone/thing"):
        catalog.model("someone/thing")
    save(models / "checkpoints" / "stabilityai" / "sd-turbo")
    assert catalog.model("sd-turbo").path == models / "checkpoints" / "stabilityai" / "sd-turbo"
    assert catalog.model("stabilityai/sd-turbo") == catalog.model("sd-turbo")


def test_a_worker_knows_the_mirror_and_no_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    passed = compute_environment()
    assert passed["HF_ENDPOINT"] == "https://mirror.example"
    assert not {"HTTPS_PROXY", "HF_TOKEN"} & passed.keys()


@pytest.mark.slow
def test_a_job_downloads_a_model_and_shows_no_token(queue, worker, models: Path, tmp_path: Path, monkeypatch):
    """The process of the job reads the token of `hf auth login`, a file."""
    save(tmp_path / "digits")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    with serving() as hub:
        hub.repos["someone/digits"] = Repo(files_of(tmp_path / "digits"))
        for name, value in {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}.items():
            monkeypatch.setenv(name, value)
        job = done(queue, worker, "get", repository="someone/digits")
        assert job.error is None
        assert {one.headers.get("authorization") for one in hub.requested("/someone/") if not one.storage} == {
            f"Bearer {TOKEN}"
        }
        hub.repos["someone/gated"] = Repo(files_of(tmp_path / "digits"), gated=True)
        refused = done(queue, worker, "get", repository="someone/gated")
    assert "is gated (HTTP 403)" in str(refused.error)
    assert files_of(models / "checkpoints") == {
        f"someone/digits/{name}": content for name, content in files_of(tmp_path / "digits").items()
    }
    places = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "home"]
    assert [path for path in places if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in str(job) + str(refused)


def test_jobs_rename_and_delete_models_of_the_models_folder_only(queue, worker, models: Path):
    save(models / "checkpoints" / "someone" / "digits")
    job = done(queue, worker, "rename", source="someone/digits", output="mine")
    assert job.error is None
    assert [entry.name for entry in Catalog(None).models() if entry.origin == "models"] == ["mine"]
    assert "not a model of" in str(done(queue, worker, "delete", source="ddpm-digits", yes=True).error)
    assert "confirm with --yes" in str(done(queue, worker, "delete", source="mine").error)
    assert done(queue, worker, "delete", source="mine", yes=True).error is None
    assert not (models / "checkpoints" / "mine").exists()
