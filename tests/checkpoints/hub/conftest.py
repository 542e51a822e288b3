"""A hub on this machine, a client of it, with its own cache and models folder, and a token that must not leak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from tests.checkpoints.hub.server import Hub, Repo, serving
from unveil.model import build
from unveil.model.config import Recipe, load_recipe

TOKEN = "hf_thisisthesecrettokenofthetest"
CHANGES = ["network.model_channels=8", "network.groups=4", "process.timesteps=50", "sample.steps=2"]


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    """A hub for all tests: each new client reads certificates, which takes longer than most of them."""
    with serving() as hub:
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub; the client reads its address at its import, so it is set in the client's constants."""
    server.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(server.address)}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    return server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of digits, with random weights."""
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    build(recipe.model).save(folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(hub: Hub, tiny: Path) -> Repo:
    """The repository `someone/digits`: the saved model, a card, and files that are not taken."""
    extra = {"README.md": b"# digits\n", "photo.png": b"\x89PNG", "train.py": b"print()", "weights.bin": b"\x80\x02"}
    hub.repos["someone/digits"] = Repo(files_of(tiny) | extra)
    return hub.repos["someone/digits"]
