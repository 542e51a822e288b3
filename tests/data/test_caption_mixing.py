"""Captions of a captioner beside those that were there: mostly these, some of those, all of their words learned."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil import data
from unveil.data.fingerprint import dataset_fingerprint
from unveil.data.folder_index import IndexEntry
from unveil.data.image_folder import pick_caption
from unveil.data.metadata import labels_are_classes
from unveil.errors import DataError, RecipeError
from unveil.train.vocabulary import all_captions

BOTH = IndexEntry("a.png", text="mine", synthetic="synthetic")


def folder(path: Path, rows: list[dict[str, str]], **changes: object) -> data.FolderConfig:
    path.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(path / row["file_name"])
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.FolderConfig(str(path), 8, val_fraction=0.0, **changes)


def test_most_captions_are_those_of_the_captioner():
    random.seed(0)
    found = [pick_caption(BOTH, 0.95, fixed=False)["text"] for _ in range(4000)]
    assert 0.94 < found.count("synthetic") / 4000 < 0.96
    assert found.count("synthetic") + found.count("mine") == 4000
    for share, text in ((1.0, "synthetic"), (0.0, "mine")):
        assert {pick_caption(BOTH, share, fixed=False)["text"] for _ in range(50)} == {text}


def test_what_never_trains_has_one_of_them_always():
    entries = [IndexEntry(f"{k}.png", text="mine", synthetic="synthetic") for k in range(2000)]
    found = [pick_caption(one, 0.9, fixed=True)["text"] for one in entries]
    assert found == [pick_caption(one, 0.9, fixed=True)["text"] for one in entries]
    assert 0.87 < found.count("synthetic") / 2000 < 0.93


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (IndexEntry("a", text="mine"), "mine"),
        (IndexEntry("a", synthetic="synthetic"), "synthetic"),
        (IndexEntry("a"), ""),
    ],
)
def test_with_one_caption_there_is_no_choice(entry, text):
    assert pick_caption(entry, 0.5, fixed=False) == {"text": text}


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
    assert set(all_captions(dataset, "prompt")) == {"alpha", "beta", "gamma", "delta"}
    one = data.open(folder(tmp_path / "both", rows, synthetic_prob=0.0))
    assert {one[0]["text"] for _ in range(50)} == {"alpha"}
    other = data.open(
        folder(tmp_path / "both", rows, synthetic_column="text", caption_column="caption", synthetic_prob=0.0)
    )
    assert other[0]["text"] == "beta"


def test_the_hash_of_a_folder_knows_both(tmp_path):
    plain = [{"file_name": "a.png", "text": "alpha"}]
    first = dataset_fingerprint(data.open(folder(tmp_path / "one", plain)))
    assert first == dataset_fingerprint(data.open(folder(tmp_path / "two", plain)))
    both = [plain[0] | {"caption": "beta"}]
    assert first != dataset_fingerprint(data.open(folder(tmp_path / "three", both)))


def test_a_file_of_images_and_videos_serves_both(tmp_path):
    pytest.importorskip("av")
    from tests.io.video.tiny_videos import make_video

    config = folder(tmp_path / "mixed", [{"file_name": "a.png", "caption": "still"}])
    make_video(tmp_path / "mixed" / "b.mp4", 4)
    with (tmp_path / "mixed" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "b.mp4", "caption": "moves"}\n')
    assert [data.open(config)[0]["text"]] == ["still"]
    clips = data.open(data.VideoFolderConfig(str(tmp_path / "mixed"), size=16, frames=2, val_fraction=0.0))
    assert [item["text"] for item in (clips[0],)] == ["moves"]


def test_captions_that_lie_elsewhere_are_merged_by_name(tmp_path):
    rows = [{"file_name": "a.png", "text": "alpha", "caption": "old"}, {"file_name": "b.png", "caption": "old"}]
    plain = folder(tmp_path / "mine", rows)
    written = [
        {"file_name": "a.png", "text": "another", "caption": "beta", "confidence": 0.5},
        {"file_name": "gone.png", "caption": "lost"},
        {"file_name": "b.png"},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    config = replace(plain, captions_file=str(tmp_path / "captions.jsonl"))
    dataset = data.open(config)
    assert [(one.text, one.synthetic) for one in dataset.entries] == [("alpha", "beta"), (None, None)]
    assert dataset.report.ignored == [("gone.png", f"named in {tmp_path / 'captions.jsonl'}, but not there")]
    assert dataset_fingerprint(dataset) != dataset_fingerprint(data.open(plain))
    own = data.open(replace(config, synthetic_prob=0.0))
    assert own[0]["text"] == "alpha"


def test_captions_of_another_column_and_of_class_folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "mine" / name / "a.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("file_name,dense\nx/a.png,one\n./y/a.png,two\n")
    config = data.FolderConfig(
        str(tmp_path / "mine"),
        8,
        val_fraction=0.0,
        synthetic_column="dense",
        captions_file=str(tmp_path / "captions.csv"),
    )
    dataset = data.open(config)
    assert dataset.classes == ["x", "y"]
    assert [(dataset[k]["label"], dataset[k]["text"]) for k in range(2)] == [(0, "one"), (1, "two")]
    with pytest.raises(DataError, match="no column 'dence'; nearest: 'dense'"):
        data.open(replace(config, synthetic_column="dence"))


def test_captions_of_clips_that_lie_elsewhere(tmp_path):
    pytest.importorskip("av")
    from tests.io.video.tiny_videos import make_video

    make_video(tmp_path / "mine" / "b.mp4", 4)
    (tmp_path / "captions.jsonl").write_text('{"file_name": "b.mp4", "caption": "moves"}\n')
    config = data.VideoFolderConfig(str(tmp_path / "mine"), size=16, frames=2, val_fraction=0.0)
    assert data.open(replace(config, captions_file=str(tmp_path / "captions.jsonl")))[0]["text"] == "moves"


def test_files_that_are_none_of_captions(tmp_path):
    plain = folder(tmp_path / "mine", [{"file_name": "a.png"}])
    captions_file = tmp_path / "captions.jsonl"
    with pytest.raises(RecipeError, match=r"captions '.*captions.jsonl': no such file; .* with a folder and --out"):
        data.open(replace(plain, captions_file=str(captions_file)))
    captions_file.write_text('{"file_name": "mine/a.png", "caption": "one"}\n')
    with pytest.raises(DataError, match=r"none of its 1 names is that of a file .*, such as 'mine/a.png'; give the"):
        data.open(replace(plain, captions_file=str(captions_file)))
    captions_file.write_text('{"file_name": "a.png", "text": "one"}\n')
    with pytest.raises(DataError, match=r"no column 'captoin'.*; there are file_name, text"):
        data.open(replace(plain, captions_file=str(captions_file), synthetic_column="captoin"))
    captions_file.write_text('{"file_name": "a.png", "caption": ""}\n')
    with pytest.raises(DataError, match=r"captions.jsonl: no caption in its column 'caption'; give a file that unveil"):
        data.open(replace(plain, captions_file=str(captions_file)))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("cat", "dog"), True), (("0", "1", "2"), True), (("2023", "2024"), False), (("2023", "misc"), True),
        (("20240101", "misc"), False), (("-1", "misc"), False), (("00", "01"), True), (("1", "2"), False),
    ],
)  # fmt: skip
def test_labels_of_a_column_have_the_classes_of_sub_folders_or_are_known_not_to(tmp_path, names, kept):
    assert labels_are_classes(names) == kept
    rows = [{"file_name": f"{name}.png", "label": name} for name in names]
    config = folder(tmp_path / "mine", rows)
    if kept:
        assert data.open(config).classes == sorted(names)
    elif "misc" in names:
        with pytest.raises(DataError, match="numbers of classes are 0 to 999999"):
            data.open(config)
    else:
        assert data.open(config).classes != sorted(names)


def test_what_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match=r"synthetic_prob 1.5: of synthetic captions, must be 0 to 1"):
        data.FolderConfig("x", 8, synthetic_prob=1.5)
    with pytest.raises(DataError, match="caption is 7, not text"):
        data.open(folder(tmp_path / "bad", [{"file_name": "a.png", "caption": 7}]))  # type: ignore[dict-item]
    with pytest.raises(DataError, match="no column 'synthetic'"):
        data.open(folder(tmp_path / "other", [{"file_name": "a.png", "text": "alpha"}], synthetic_column="synthetic"))
