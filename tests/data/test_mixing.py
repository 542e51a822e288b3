"""Captions of a captioner beside those that were there: mostly these, some of those, all of their words learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil import data
from unveil.data.content import content
from unveil.data.listing import Entry
from unveil.data.mixing import told
from unveil.train.words import texts
from unveil.types import MediaError, RecipeError

BOTH = Entry("a.png", text="mine", synthetic="told")


def folder(path: Path, rows: list[dict[str, str]], **changes: object) -> data.FolderConfig:
    path.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(path / row["file_name"])
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.FolderConfig(str(path), 8, held_out=0.0, **changes)


def test_most_captions_are_those_of_the_captioner():
    random.seed(0)
    found = [told(BOTH, 0.95, fixed=False)["text"] for _ in range(4000)]
    assert 0.94 < found.count("told") / 4000 < 0.96
    assert found.count("told") + found.count("mine") == 4000
    for share, text in ((1.0, "told"), (0.0, "mine")):
        assert {told(BOTH, share, fixed=False)["text"] for _ in range(50)} == {text}


def test_what_never_trains_has_one_of_them_always():
    entries = [Entry(f"{k}.png", text="mine", synthetic="told") for k in range(2000)]
    found = [told(one, 0.9, fixed=True)["text"] for one in entries]
    assert found == [told(one, 0.9, fixed=True)["text"] for one in entries]
    assert 0.87 < found.count("told") / 2000 < 0.93


@pytest.mark.parametrize(
    ("entry", "text"),
    [(Entry("a", text="mine"), "mine"), (Entry("a", synthetic="told"), "told"), (Entry("a"), "")],
)
def test_with_one_caption_there_is_no_choice(entry, text):
    assert told(entry, 0.5, fixed=False) == {"text": text}


def test_a_folder_with_both_columns(tmp_path):
    rows = [
        {"file_name": "a.png", "text": "alpha", "caption": "beta"},
        {"file_name": "b.png", "caption": "gamma"},
        {"file_name": "c.png", "text": "delta"},
    ]
    dataset = data.open(folder(tmp_path / "both", rows))
    random.seed(1)
    seen = [{dataset[k]["text"] for _ in range(200)} for k in range(3)]
    assert seen == [{"alpha", "beta"}, {"gamma"}, {"delta"}]
    assert set(texts(dataset, "prompt")) == {"alpha", "beta", "gamma", "delta"}
    one = data.open(folder(tmp_path / "both", rows, share=0.0))
    assert {one[0]["text"] for _ in range(50)} == {"alpha"}
    other = data.open(folder(tmp_path / "both", rows, synthetic="text", text="caption", share=0.0))
    assert other[0]["text"] == "beta"


def test_the_hash_of_a_folder_knows_both(tmp_path):
    plain = [{"file_name": "a.png", "text": "alpha"}]
    first = content(data.open(folder(tmp_path / "one", plain)))
    assert first == content(data.open(folder(tmp_path / "two", plain)))
    both = [plain[0] | {"caption": "beta"}]
    assert first != content(data.open(folder(tmp_path / "three", both)))


def test_a_file_of_pictures_and_clips_serves_both(tmp_path):
    pytest.importorskip("av")
    from tests.video.films import film

    config = folder(tmp_path / "mixed", [{"file_name": "a.png", "caption": "still"}])
    film(tmp_path / "mixed" / "b.mp4", 4)
    with (tmp_path / "mixed" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "b.mp4", "caption": "moves"}\n')
    assert [data.open(config)[0]["text"]] == ["still"]
    clips = data.open(data.ClipsConfig(str(tmp_path / "mixed"), size=16, frames=2, held_out=0.0))
    assert [item["text"] for item in (clips[0],)] == ["moves"]


def test_what_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match=r"share 1.5: of synthetic captions, must be 0 to 1"):
        data.FolderConfig("x", 8, share=1.5)
    with pytest.raises(MediaError, match="caption is 7, not text"):
        data.open(folder(tmp_path / "bad", [{"file_name": "a.png", "caption": 7}]))  # type: ignore[dict-item]
    with pytest.raises(MediaError, match="no column 'told'"):
        data.open(folder(tmp_path / "other", [{"file_name": "a.png", "text": "alpha"}], synthetic="told"))
