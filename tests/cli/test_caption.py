"""`unveil caption` and the training of captioners on the command line."""

from __future__ import annotations

import _thread
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from tests.prompting.test_llm_rewrite import Place, place, saying
from tests.prompting.tiny import COLOURS, Grounds, trained
from unveil import playground
from unveil.errors import DataError, RecipeError, WeightsError
from unveil.io.images import png
from unveil.io.video.writer import write_video
from unveil.model.captioner_folder import load_captioner
from unveil.prompting.captioners import NativeCaptioner
from unveil.tasks import caption_run
from unveil.tasks.caption import CaptionMedia

__all__ = ["place"]  # a fixture
AXIS = ("still", "left", "right", "up", "down")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner") / "grounds"
    trained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos, one of which has a caption, an image, and two damaged files."""
    data, made = Grounds(), tmp_path / "mine"
    for k in range(3):
        write_video(made / "clips" / f"{list(COLOURS)[k]}.mp4", data[k]["pixels"].repeat_interleave(2, 2), 8.0, None)
    (made / "clips" / "red.txt").write_text("my words")
    (made / "white.png").write_bytes(png(data[3]["pixels"][:, 0]))
    (made / "broken.mp4").write_bytes(b"nothing")
    (made / "broken.png").write_bytes(b"nothing")
    return made


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_captions_of_a_folder_keep_the_existing_ones(cli: Cli, run: Path, folder: Path):
    before = tree(folder)
    done = cli("caption", folder, "--model", run, "--json")
    assert done.code == 0, done.err
    assert done.json["captions"] == 4
    assert [one["path"] for one in done.json["failed"]] == ["broken.mp4", "broken.png"]
    found = {row["file_name"]: row for row in rows(folder / "metadata.jsonl")}
    assert {name: row["caption"] for name, row in found.items()} == {
        "clips/blue.mp4": "a blue ground", "clips/green.mp4": "a green ground", "clips/red.mp4": "a red ground",
        "white.png": "a white ground",
    }  # fmt: skip
    assert found["clips/red.mp4"]["text"] == "my words"
    assert "text" not in found["white.png"]
    assert all(0 < row["confidence"] <= 1 for row in found.values())
    after = tree(folder)
    assert after.pop("metadata.jsonl")
    assert after == before


def test_an_existing_file_of_captions_is_overwritten_only_with_force(cli: Cli, run: Path, folder: Path):
    (folder / "metadata.jsonl").write_text('{"file_name": "white.png", "text": "mine"}\n')
    before = tree(folder)
    refused(cli("caption", folder, "--model", run), 2, "metadata.jsonl: exists already", "give --out")
    assert tree(folder) == before
    done = cli("caption", folder, "--model", run, "--out", folder / "new.jsonl")
    assert done.code == 0, done.err
    (row,) = rows(folder / "new.jsonl")
    assert (row["text"], row["caption"]) == ("mine", "a white ground")
    refused(cli("caption", folder, "--model", run, "--out", folder / "new.jsonl"), 2, "exists already")


@pytest.mark.parametrize("how", [("--decoding", "beam"), ("--decoding", "sampled", "--temperature", 0.1)])
def test_other_decoding_options(cli: Cli, run: Path, folder: Path, how: Any):
    done = cli("caption", folder, "--model", run, *how)
    assert done.code == 0, done.err
    assert "left out: broken.mp4" in done.out
    assert {row["caption"].split()[1] for row in rows(folder / "metadata.jsonl")} == set(COLOURS)


def test_an_endpoint_that_answers_some_requests(cli: Cli, folder: Path, place: Place):
    answers = iter([(200, saying("One.")), (400, b"{}"), (200, saying("Three.")), (200, saying(None))])
    place.answer = lambda: next(answers)
    done = cli("caption", folder, "--model", f"{place.url}#eyes", "--json")
    assert done.code == 0, done.err
    found = rows(folder / "metadata.jsonl")
    assert [row.get("caption") for row in found] == ["One.", None, "Three.", None]  # none is lost to training
    assert found[2]["text"] == "my words"
    assert len(done.json["failed"]) == 4


@pytest.mark.parametrize("out", [(), ("--out", "new.jsonl")])
def test_captioning_resumes_after_an_interruption(cli: Cli, folder: Path, place: Place, out: Any):
    texts = iter(["One.", "Two.", None, "Three.", "Four."])

    def answer() -> tuple[int, bytes]:
        if (text := next(texts)) is not None:
            return 200, saying(text)
        _thread.interrupt_main()
        time.sleep(2)
        return 500, b"{}"

    place.answer = answer
    ask = ("caption", folder, "--model", f"{place.url}#eyes", *out)
    done = cli(*ask)
    assert done.code == 130
    assert "2 of 6 captioned; --resume captions the others" in done.err
    file = Path(out[1]) if out else folder / "metadata.jsonl"
    assert [row.get("caption") for row in rows(file)] == ["One.", "Two.", None, None]
    assert [row.get("text") for row in rows(file)] == [None, None, "my words", None]
    refused(cli(*ask), 2, "already")
    done = cli(*ask, "--resume", "--json")
    assert done.code == 0, done.err
    assert done.json["captions"] == 4
    assert [(row.get("text"), row["caption"]) for row in rows(file)] == [
        (None, "One."), (None, "Two."), ("my words", "Three."), (None, "Four."),
    ]  # fmt: skip


def test_a_users_caption_file_is_completed_and_loses_nothing(cli: Cli, run: Path, folder: Path):
    (folder / "metadata.jsonl").write_text('{"file_name": "white.png", "text": "mine"}\n')
    before = tree(folder)
    refused(cli("caption", folder, "--model", run, "--resume"), 2, "metadata.jsonl: exists already")
    assert tree(folder) == before
    (folder / "metadata.jsonl").write_text('{"file_name": "white.png", "caption": "mine", "label": "white"}\n')
    before = rows(folder / "metadata.jsonl")
    assert cli("caption", folder, "--model", run, "--resume").code == 0
    assert rows(folder / "metadata.jsonl") == before


@pytest.mark.parametrize(
    ("decode", "options", "how", "beams"),
    [
        ({"num_beams": 1}, {}, "greedy", 4),
        ({"num_beams": 3}, {}, "beam", 3),
        ({"num_beams": 3}, {"num_beams": 1}, "greedy", 1),
        ({"num_beams": 3}, {"decoding": "greedy"}, "greedy", 3),
        ({"num_beams": 1}, {"decoding": "beam"}, "beam", 4),
        ({"num_beams": 1}, {"num_beams": 2}, "beam", 2),
        ({"num_beams": 3, "length_penalty": 1.0}, {}, "beam", 3),
        (None, {}, "greedy", 4),
    ],
)
def test_a_captioner_writes_as_its_recipe_says(
    run: Path, tmp_path: Path, monkeypatch: Any, decode, options, how, beams
):
    trained = load_captioner(run)
    decoding = {} if decode is None else {"decode": decode}
    monkeypatch.setattr(
        caption_run, "load_captioner", lambda *place: trained._replace(facts={"size": [8, 8], **decoding})
    )
    task = CaptionMedia(folder=str(tmp_path), model=str(tmp_path / "any"), **options)
    own = caption_run.open_captioner(task, task.model, "auto")
    assert isinstance(own, NativeCaptioner)
    assert (own.how, own.beams, own.length_power) == (how, beams, (decode or {}).get("length_penalty", 0.6))


def test_decoding_options_that_cannot_be_read_are_refused(run: Path, tmp_path: Path, monkeypatch: Any):
    trained = load_captioner(run)
    task = CaptionMedia(folder=str(tmp_path), model=str(tmp_path / "any"))
    for wrong in ({"num_beams": 0}, {"beems": 1}, 3):
        monkeypatch.setattr(
            caption_run, "load_captioner", lambda *place, w=wrong: trained._replace(facts={"decode": w})
        )
        with pytest.raises(WeightsError, match="its decoding settings cannot be read"):
            caption_run.open_captioner(task, task.model, "auto")


def test_invalid_options_are_refused(cli: Cli, run: Path, folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    refused(cli("caption", "empty", "--model", run), 4, "contains neither an image nor a video")
    refused(cli("caption", "nowhere", "--model", run), 4, "nowhere")
    refused(cli("caption", folder, "--model", "ddpm-digits"), 1, "ddpm-digits: not a captioner")
    refused(cli("caption", folder, "--model", run, "--decoding", "gredy"), 2, "nearest: 'greedy'")
    refused(cli("caption", folder, "--model", "http://127.0.0.1:9/v1#eyes"), 4, "no caption of 6 files")
    refused(cli("caption", folder, "--model", run, "--out", "new.csv"), 2, "--out new.csv", "such as captions.jsonl")
    refused(cli("caption", folder, "--model", run, "--out", "."), 2, "--out .: captions are written as JSON")
    refused(
        cli("caption", folder, "--model", run, "--num-beams", 0),
        2,
        "--num-beams 0: must be at least 1, which is greedy",
    )
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_captioners_are_trained_and_evaluated_by_their_recipes(cli: Cli):
    done = cli("train", "captioner-short", "--quick", "--output-dir", "short")
    assert done.code == 0, done.err
    done = cli("train", "captioner-playground", "--quick", "base=short", "--output-dir", "dense")
    assert done.code == 0, done.err
    assert "unveil caption FOLDER --model dense" in done.out
    done = cli("evaluate", "dense", "-n", 10)
    assert done.code == 0, done.err
    assert "correct attributes" in done.out
    refused(cli("sample", "dense"), 1, "dense")
    refused(cli("train", "captioner-short", "--dry-run"), 2, "a recipe of kind captioner")


def test_videos_of_a_recipe_are_captioned_by_number_and_trained_on(cli: Cli, run: Path, tmp_path: Path):
    small, out = ("data.count=20", "data.caption_error_rate=0", "data.caption_styles=[raw]"), tmp_path / "new.jsonl"
    done = cli("caption", "playground-small", *small, "-n", 6, "--model", run, "--out", out, "--json")
    assert done.code == 0, done.err
    found = rows(out)
    assert [row["file_name"] for row in found] == [str(number) for number in range(6)]
    config = playground.PlaygroundConfig(
        min_size=16, max_size=16, frames=(8,), motions=AXIS, caption_styles=("raw",), caption_error_rate=0
    )
    world = playground.Playground(replace(config, count=20))
    own = [item["text"] for item in world.annotations(range(20))]
    assert [row["text"] for row in found] == own[:6]
    for share in (1.0, 0.5, 0.0):
        mixed = playground.Playground(replace(config, count=20, captions_file=str(out), synthetic_prob=share))
        items = mixed.annotations(range(20))
        written = [row["caption"] for row in found]
        kept = [item["text"] == text for item, text in zip(items, own, strict=True)]
        assert all(kept[6:])  # videos without a new caption keep the old one
        assert {"texts" in item for item in items[6:]} == {False}
        assert [item["texts"] for item in items[:6]] == list(zip(own, written, strict=False))
        assert sum(not one for one in kept) in {1.0: (6,), 0.5: range(1, 6), 0.0: (0,)}[share]
        assert [item["text"] for item in items] == [mixed[number]["text"] for number in range(20)]
        assert (
            playground.Playground(mixed.config, "held-out")[0]["text"]
            == playground.Playground(config, "held-out")[0]["text"]
        )


def test_captions_of_other_videos_are_refused(cli: Cli, run: Path, tmp_path: Path):
    out = tmp_path / "new.jsonl"
    assert cli("caption", "playground-small", "-n", 2, "--model", run, "--out", out, "--quiet").code == 0
    pattern = r"captions '.*new.jsonl': of another world: video 0 was '.*' there and is '"
    with pytest.raises(RecipeError, match=pattern):
        playground.Playground(playground.PlaygroundConfig(captions_file=str(out)))
    with pytest.raises(RecipeError, match=r"captions 'none.jsonl': no such file; unveil caption writes it"):
        playground.Playground(playground.PlaygroundConfig(captions_file="none.jsonl"))
    out.write_text('{"file_name": "a.mp4", "caption": "a"}\n')
    with pytest.raises(DataError, match=r"new.jsonl line 1: 'a.mp4' is not the index of a video"):
        playground.Playground(playground.PlaygroundConfig(captions_file=str(out)))


def test_neither_a_folder_nor_a_count_of_videos_is_refused(cli: Cli, run: Path, folder: Path, tmp_path: Path):
    out = tmp_path / "new.jsonl"
    few = ("--model", run, "--out", out)
    refused(cli("caption", "playground-small", *few), 2, "playground-small: a recipe; give --num-videos")
    refused(
        cli("caption", folder, "data.count=3", *few), 2, "'data.count=3': changes are of a recipe; give --num-videos"
    )
    refused(cli("caption", "playground-small", "-n", 2, "--model", run), 2, "give a file with --out")
    refused(cli("caption", "ddpm-digits", "-n", 2, *few), 2, "ddpm-digits: its data are digits; only the play")
    refused(cli("caption", "playground-small", "data.count=2", "-n", 3, *few), 2, "count 3: must be 1 to 2")
    assert not out.exists()


def test_the_bundled_captioner_describes_held_out_videos(cli: Cli):
    ask = ("--recipe", "captioner-playground", "-n", 60, "--json")
    done = cli("evaluate", "playground-captioner", *ask)
    assert done.code == 0, done.err
    found = done.json["results"]["captions"]
    assert found["attributes"]["value"] >= 0.88
    assert found["parse"]["value"] >= 0.95
    assert found["chance"] <= 0.5  # control: captions of other clips
