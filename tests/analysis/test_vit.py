"""`unveil analyze vit`: every size on every amount, a page of them, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unveil import data
from unveil.analysis import vit
from unveil.analysis.task import AnalyzeViT
from unveil.analysis.vit import ViTPoint, ViTSize, ViTStudySettings, study_vit
from unveil.cli.commands import run
from unveil.cli.text_forms import read_network_sizes
from unveil.errors import Cancelled, RecipeError
from unveil.model.config import ClassifierRecipe, load_recipe
from unveil.nn.vit import ViTConfig
from unveil.train.classifier import ClassifierConfig, TrainedClassifier

CHANGES = ["data={kind: digits}", "network.size=8", "network.patch=2", "network.hidden_size=32", "network.heads=2"]
CHANGES += [
    "train.batch_size=32",
    "train.translate=0",
    "train.random_flip=false",
    "train.sizes=[]",
    "network.stem=patches",
]
CHANGES += ["network.begin=small", "train.lr=3e-3", "train.precision=float32"]
SETTINGS = ViTStudySettings((ViTSize(1, 16), ViTSize(1, 32)), (64, 512), steps=32)


def recipe(*changes: str, name: str = "vit-fashion") -> ClassifierRecipe:
    found = load_recipe(name, [*(CHANGES if name == "vit-fashion" else []), *changes])
    assert isinstance(found, ClassifierRecipe)
    return found


def study(
    folder: Path,
    settings: ViTStudySettings = SETTINGS,
    *changes: str,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[ViTPoint]:
    parts = [data.digits(part) for part in ("train", "held-out")]
    return study_vit(recipe(*changes), settings, parts[0], parts[1], folder, on_progress)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ViTPoint]]:
    kept = tmp_path_factory.mktemp("arms")
    return kept, study(kept)


def test_every_size_learns_from_every_amount(found: tuple[Path, list[ViTPoint]]):
    kept, points = found
    assert [(one.size, one.amount) for one in points] == [("1x16", 64), ("1x16", 512), ("1x32", 64), ("1x32", 512)]
    assert [one.epochs for one in points] == [16, 2, 16, 2]
    assert {one.steps for one in points} == {32}
    assert points[0].parameters < points[2].parameters
    for one in points:
        assert 0 <= one.low <= one.accuracy <= one.high <= 1
        assert list(one.by_size) == ["6", "8", "10", "12"]
    assert points[3].accuracy > 0.2  # chance is 0.1
    assert len(list(kept.iterdir())) == 4


def test_a_stopped_study_goes_on_with_what_is_missing(
    found: tuple[Path, list[ViTPoint]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept, points = found
    progress: list[tuple[int, int]] = []
    trained: list[int] = []
    train = vit.train_classifier

    def counted(config: ClassifierConfig, *rest: Any) -> TrainedClassifier:
        assert isinstance(config.network, ViTConfig)
        trained.append(config.network.hidden_size)
        return train(config, *rest)

    monkeypatch.setattr(vit, "train_classifier", counted)
    for path in kept.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1x16-512-0.json").unlink()
    (tmp_path / "1x32-64-0.json").write_text("{")  # cut short

    def stop(done: int, total: int) -> None:
        progress.append((done, total))
        if len(trained) == 2:
            raise Cancelled("by the reader")

    with pytest.raises(Cancelled):
        study(tmp_path, on_progress=stop)
    assert trained == [16, 32]
    assert progress[0] == (32, 128)  # the first was there
    again = study(tmp_path)
    assert trained == [16, 32, 32]
    assert [one._replace(cpu_seconds=0) for one in again] == [one._replace(cpu_seconds=0) for one in points]
    study(
        tmp_path, ViTStudySettings((ViTSize(1, 16),), (64,), steps=32), "train.lr=0.01"
    )  # what was kept is not of these
    assert trained == [16, 32, 32, 16]


def test_the_command_writes_a_page_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    changes = [word for change in CHANGES for word in ("--set", change)]
    words = ["analyze", "vit", "--sizes", "1x16,1x32", "--amounts", "40,200", "--steps", "4", "--seeds", "2", *changes]
    assert run([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    folder = tmp_path / "runs" / "vit-fashion-sizes"
    assert json.loads((folder / "vit.json").read_text()) | {"page": record["page"]} == record
    assert len(record["points"]) == 8
    assert {one["seed"] for one in record["points"]} == {41, 42}
    page = (folder / "vit.html").read_text()
    assert "data:image/png" in page
    mean = sum(one["accuracy"] for one in record["points"][:2]) / 2
    assert f"<td>1x16</td><td class=number>{mean:.1%}</td>" in page
    assert "12 px" in page
    assert run(words) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "3-48"], "--sizes '3-48': are written BLOCKSxWIDTH"),
        (["--sizes", "0x48"], "sizes.0.depth = 0: must be greater than or equal to 1"),
        (["--sizes", "1x16,1x16"], "write different sizes"),
        (["--sizes", "1x20"], "size 1x20: the width must be a multiple of a head's, 16; nearest 16"),
        (["--amounts", "500,100"], "write rising numbers"),
        (["--amounts", "20"], "amounts 20 to 20: must be between the batch size, 32, and the 1347"),
        (["--steps", "0"], "steps = 0: must be greater than or equal to 1"),
        (["classifier-digits"], "classifier-digits: a recipe of a cnn; the study needs a vit"),
        (
            ["transformer-tasks"],
            "transformer-tasks: is a recipe of kind sequence; give the recipe of a classifier",
        ),
    ],
)
def test_what_cannot_be_studied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    changes = [word for change in CHANGES for word in ("--set", change)] if words[0].startswith("--") else []
    assert run(["analyze", "vit", *words, *changes]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_are_read():
    read = AnalyzeViT.parse({"sizes": read_network_sizes("3x48, 6x96")})
    assert read.study_settings().sizes == (ViTSize(3, 48), ViTSize(6, 96))
    assert AnalyzeViT().study_settings() == ViTStudySettings()
    with pytest.raises(RecipeError, match="seeds 0: at least 1"):
        ViTStudySettings(seeds=0)
