"""`unveil caption` on a folder: labels, columns, files without an answer, and captions in another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from tests.prompting.test_llm_rewrite import Place, late, place, saying
from unveil import data

__all__ = ["place"]  # a fixture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path_factory.mktemp("cache")))


def painted(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(folder / name)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def opened(folder: Path, **changes: Any) -> Any:
    return data.open(data.FolderConfig(str(folder), 8, val_fraction=0.0, **changes))


@pytest.fixture
def ask(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The options of a model that answers with the number of images so far."""
    place.answer = lambda: (200, saying(f"Number {len(place.requests)}."))
    return ("--model", f"{place.url}#eyes")


# -- what is there ------------------------------------------------------------------------------------------------


def test_metadata_of_the_other_form_is_not_joined_by_a_second(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", "a.png", "b.png")
    (folder / "metadata.csv").write_text("file_name,text,label\na.png,alpha,x\nb.png,beta,y\n")
    before = tree(folder)
    refused(cli("caption", folder, *ask), 5, "metadata.csv is the metadata of this folder", "data.captions_file=")
    refused(cli("caption", folder, *ask, "--force"), 5, "metadata.csv is the metadata")
    refused(cli("caption", folder, *ask, "--out", folder / "metadata.jsonl"), 5, "metadata.csv is the metadata")
    assert not place.requests
    done = cli("caption", folder, *ask, "--out", "new.jsonl")
    assert done.code == 0, done.err
    assert "train on them with data.captions_file=new.jsonl" in done.out
    assert rows(Path("new.jsonl"))[0] == {"file_name": "a.png", "text": "alpha", "label": "x", "caption": "Number 1."}
    assert tree(folder) == before
    made = opened(folder, captions_file="new.jsonl")
    assert [(one.text, one.synthetic) for one in made.entries] == [("alpha", "Number 1."), ("beta", "Number 2.")]
    assert made.classes == ["x", "y"]


def test_sub_folders_that_are_classes_stay_classes(cli: Cli, tmp_path: Path, ask: Any):
    folder = painted(tmp_path / "mine", "x/a.png", "y/b.png")
    before = opened(folder)
    assert cli("caption", folder, *ask).code == 0
    assert [row["label"] for row in rows(folder / "metadata.jsonl")] == ["x", "y"]
    after = opened(folder)
    assert after.classes == before.classes == ["x", "y"]
    assert [after[k]["label"] for k in range(2)] == [before[k]["label"] for k in range(2)]
    assert [after[k]["text"] for k in range(2)] == ["Number 1.", "Number 2."]


def test_classes_that_metadata_cannot_hold_stay(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", "2023/a.png", "2024/b.png")
    refused(
        cli("caption", folder, *ask), 5, "cannot state these (2023, 2024)", "give --out, such as --out captions.jsonl"
    )
    assert not place.requests
    assert cli("caption", folder, *ask, "--out", "captions.jsonl").code == 0
    made = opened(folder, captions_file="captions.jsonl")
    assert (made.classes, made[1]["text"]) == (["2023", "2024"], "Number 2.")


def test_a_users_columns_stay_when_captions_are_rewritten(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", "a.png", "b.png", "c.png")
    own = [
        {"file_name": "b.png", "label": "x", "author": "me", "caption": "old", "confidence": 0.5},
        {"file_name": "a.png", "text": "alpha", "label": "y", "caption": "old"},
        {"file_name": "gone.png", "text": "away", "label": "y"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    answers = iter([(200, saying("One.")), (400, b"{}")])
    place.answer = lambda: next(answers)
    assert cli("caption", folder, *ask, "--force").code == 0
    assert rows(folder / "metadata.jsonl") == [
        {"file_name": "b.png", "label": "x", "author": "me"},
        {"file_name": "a.png", "text": "alpha", "label": "y", "caption": "One."},
        own[2],
    ]
    place.answer = lambda: (200, saying("Two."))
    assert cli("caption", folder, *ask, "--resume").code == 0
    found = rows(folder / "metadata.jsonl")
    assert [row.get("caption") for row in found] == ["Two.", "One.", None]
    assert found[0]["author"] == "me"


# -- what has no answer -------------------------------------------------------------------------------------------


def test_files_without_an_answer_train_as_before_and_are_requested_again(
    cli: Cli, tmp_path: Path, place: Place, ask: Any
):
    folder = painted(tmp_path / "mine", "a.png", "b.png", "c.png")
    (folder / "b.txt").write_text("beta")
    answers = iter([(200, saying("One.")), (400, b"{}"), (400, b"{}")])
    place.answer = lambda: next(answers)
    done = cli("caption", folder, *ask)
    assert done.code == 0, done.err
    assert "2 of these had no answer: --resume requests them again" in done.out
    made = opened(folder)
    assert [made[k]["text"] for k in range(3)] == ["One.", "beta", ""]
    place.answer = lambda: (200, saying("Late."))
    done = cli("caption", folder, *ask, "--resume", "--json")
    assert (done.code, done.json["captions"], done.json["failed"]) == (0, 3, [])
    assert [row["caption"] for row in rows(folder / "metadata.jsonl")] == ["One.", "Late.", "Late."]
    assert len(place.requests) == 5  # existing captions are not requested again


def test_an_unreachable_model_is_not_requested_for_every_file(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", *(f"{k:02}.png" for k in range(12)))
    answers = iter([(200, saying("One.")), *[(400, b"{}")] * 20])
    place.answer = lambda: next(answers)
    done = cli("caption", folder, *ask)
    refused(done, 1, "no caption of 5 files in a row; the last: no answer", "continue with --resume")
    assert "1 of 12 captioned; --resume captions the others" in done.err
    assert len(place.requests) == 6
    assert [row.get("caption") for row in rows(folder / "metadata.jsonl")] == ["One.", *[None] * 11]
    place.answer = lambda: (200, saying("Late."))
    assert cli("caption", folder, *ask, "--resume", "--json").json["captions"] == 12
    other = painted(tmp_path / "other", *(f"{k:02}.png" for k in range(12)))
    before = tree(other)
    place.answer = lambda: (400, b"{}")
    refused(cli("caption", other, *ask), 1, "no caption of 5 files in a row", "and start again")
    assert tree(other) == before


def test_failures_that_are_not_consecutive_do_not_stop(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", *(f"{k:02}.png" for k in range(12)))
    place.answer = lambda: (200, saying("One.")) if len(place.requests) % 5 == 0 else (400, b"{}")
    done = cli("caption", folder, *ask, "--json")
    assert (done.code, done.json["captions"], len(done.json["failed"])) == (0, 2, 10)


def test_tokens_and_costs_are_summed(cli: Cli, tmp_path: Path, place: Place, ask: Any):
    folder = painted(tmp_path / "mine", "a.png", "b.png", "c.png")
    usage = {"prompt_tokens": 90, "completion_tokens": 7, "cost": 0.5}
    place.answer = lambda: (200, saying("One." if len(place.requests) != 2 else None, **usage))
    done = cli("caption", folder, *ask)
    assert "270 tokens read, 21 written, 1.5 $" in done.out  # the answer that is none too
    done = cli("caption", folder, *ask, "--out", "new.jsonl", "--json")
    assert done.json["cost"] == {"read": 270, "written": 21, "price": 1.5}


def test_an_endpoint_that_never_answers(cli: Cli, tmp_path: Path, place: Place, ask: Any, monkeypatch: Any):
    monkeypatch.setenv("UNVEIL_API_SECONDS", "0.2")
    folder = painted(tmp_path / "mine", "a.png")
    before = tree(folder)
    place.answer = late
    refused(cli("caption", folder, *ask), 4, "mine: no caption of 1 files; the first: a.png: no answer", "timed out")
    assert len(place.requests) == 3
    assert tree(folder) == before
    refused(
        cli("caption", folder, "--model", "http://[::1/v1#eyes"),
        2,
        "is not a URL of an endpoint; write it such as http://local",
    )
    monkeypatch.setenv("UNVEIL_API_SECONDS", "soon")
    refused(cli("caption", folder, *ask), 2, "UNVEIL_API_SECONDS=soon: must be a number of seconds")
    assert tree(folder) == before
