"""Captions of a folder from tables of any form and with any names of columns."""

from __future__ import annotations

import json

import pytest

from unveil import data
from unveil.data.folder_index import FolderConfig, FolderIndex, index_folder
from unveil.data.metadata import captions_by_name, read_columns
from unveil.errors import DataError

A, B = {"image": "a.png", "prompt": "a cat"}, {"image": "b.png", "prompt": "a dog"}
CSV = "image,prompt\na.png,a cat\nb.png,a dog\n"


def index(folder, **given) -> FolderIndex:
    return index_folder(FolderConfig(str(folder), 16, **given))


def captions(folder, **given) -> list[tuple[str, str | None]]:
    return [(entry.path, entry.text or entry.synthetic) for entry in index(folder, **given).entries]


@pytest.fixture
def two(folder, paint):
    """A folder of two images."""
    paint("a.png"), paint("b.png")
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.json", json.dumps({"a.png": "a cat", "b.png": "a dog"})),
        ("captions.json", json.dumps({"a.png": {"text": "a cat"}, "b.png": {"text": "a dog"}})),
        ("captions.json", json.dumps([A, B])),
        ("captions.json", json.dumps({"version": 1, "rows": [A, B]})),
        ("captions.json", json.dumps(A) + "\n" + json.dumps(B)),
        ("captions.jsonl", json.dumps(A) + "\n" + json.dumps(B)),
        ("metadata.json", json.dumps([A, B])),
        ("metadata.csv", CSV),
        ("captions.csv", CSV),
        ("captions.csv", CSV.replace(",", ";")),
        ("captions.csv", CSV.replace(",", ", ", 1)),
        ("captions.csv", "\ufeff" + CSV),
        ("captions.tsv", CSV.replace(",", "\t")),
        ("captions.csv", "id,datei,beschreibung\n1,a.png,a cat\n2,b.png,a dog\n"),  # names of no meaning to the rule
        ("captions.csv", "image,mask,caption\na.png,b.png,a cat\nb.png,a.png,a dog\n"),  # two columns of files
        ("captions.csv", "image,caption,width,source\na.png,a cat,16,web\nb.png,a dog,16,web\n"),
    ],
)
def test_every_form_gives_the_same_captions(two, name, content):
    (two / name).write_text(content, encoding="utf-8")
    assert captions(two) == [("a.png", "a cat"), ("b.png", "a dog")]
    found = index(two)
    assert found.layout == name
    assert name not in [path for path, _ in found.ignored]


def test_several_captions_of_an_image_are_several_items(two):
    (two / "captions.json").write_text(json.dumps({"a.png": ["a cat", "a tom"], "b.png": "a dog"}))
    assert captions(two) == [("a.png", "a cat"), ("a.png", "a tom"), ("b.png", "a dog")]
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [{"image_id": 7, "caption": "a cat"}, {"image_id": 7, "caption": "a tom "}],
    }
    (two / "captions.json").write_text(json.dumps(coco))
    assert captions(two) == [("a.png", "a cat"), ("a.png", "a tom"), ("b.png", None)]


def test_prompts_and_videos_line_by_line(two, paint):
    paint("images/c.png")
    (two / "images.txt").write_text("images/c.png\nb.png\na.png\n")
    (two / "prompts.txt").write_text("a bird\n\na cat\n")
    assert captions(two) == [("images/c.png", "a bird"), ("b.png", None), ("a.png", "a cat")]
    (two / "prompts.txt").write_text("a bird\n")
    with pytest.raises(DataError, match=r"images.txt: 3 lines, and prompts.txt has 1; line n of one belongs to line n"):
        captions(two)


def test_prompts_and_videos_of_a_folder_of_videos(tmp_path):
    pytest.importorskip("av")
    from tests.io.video.tiny_videos import make_video

    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos/0.mp4", 2), make_video(tmp_path / "videos/1.mp4", 2)
    (tmp_path / "videos.txt").write_text("videos/0.mp4\nvideos/1.mp4\n")
    (tmp_path / "prompt.txt").write_text("a ring grows\na cross falls\n")
    report = data.check_videos(data.VideoFolderConfig(str(tmp_path), "native", 2))
    assert report.captions == ["a ring grows", "a cross falls"]


def test_a_file_is_found_by_its_name_alone(folder, paint):
    paint("x/a.png"), paint("y/b.png"), paint("z/b.png")
    (folder / "captions.csv").write_text("image,caption\na.png,a cat\ny/b.png,a dog\n")
    assert captions(folder) == [("x/a.png", "a cat"), ("y/b.png", "a dog")]
    (folder / "captions.csv").write_text("image,caption\na.png,a cat\nb.png,a dog\n")  # two files have this name
    assert captions(folder) == [("x/a.png", "a cat")]
    assert index(folder).refused == [("b.png", "named in captions.csv line 3, but not there")]


def test_columns_can_be_named(two):
    (two / "t.csv").write_text("left,right,short,long\na.png,b.png,cat,a cat\nb.png,a.png,dog,a dog\n")
    (two / "u.csv").write_text(CSV)
    given = {"metadata_file": "t.csv", "file_column": "right", "caption_column": "long"}
    assert captions(two, **given) == [("b.png", "a cat"), ("a.png", "a dog")]
    with pytest.raises(DataError, match=r"t.csv: no column 'lung'; nearest: 'long'; there are left, long, .*data.capt"):
        captions(two, metadata_file="t.csv", file_column="left", caption_column="lung")
    with pytest.raises(DataError, match=r"no file 'tt.csv' in it; nearest: 't.csv'; correct data.metadata_file"):
        captions(two, metadata_file="tt.csv")


def test_what_is_not_clear_lists_the_columns(two):
    (two / "t.csv").write_text("left,right,text\na.png,b.png,a cat\n")
    with pytest.raises(
        DataError, match=r"of the columns left, right, text left and right name files of it; .*data.file_column=NAME"
    ):
        captions(two, metadata_file="t.csv")
    (two / "t.csv").write_text("image,text\nq.png,a cat\n")
    with pytest.raises(DataError, match=r"of the columns image, text none names a file of it"):
        captions(two, metadata_file="t.csv")
    (two / "t.csv").write_text("image,short,long\na.png,cat,a cat\n")
    report = data.check_images(FolderConfig(str(two), 16, metadata_file="t.csv"))
    words = "t.csv has the columns image, short, long, and short or long may be the captions; name the column: "
    assert (report.explain_missing("text") or "").endswith(f"{words}data.caption_column=short")
    assert f"captions     none: {words}" in report.to_text()
    (two / "u.csv").write_text("image,text\nb.png,a dog\n"), (two / "t.csv").write_text("image,text\na.png,a cat\n")
    with pytest.raises(DataError, match=r"t.csv and u.csv list its files; name the one to read: data.meta"):
        captions(two)


def test_other_tables_are_left_alone(two):
    (two / "losses.csv").write_text("step,loss\n1,0.5\n")
    (two / "sizes.json").write_text(json.dumps({"a.png": 3}))
    (two / "broken.json").write_text("{")
    (two / "files.csv").write_text("image,width\na.png,16\n")  # says nothing of use
    found = index(two)
    assert (found.layout, len(found.entries)) == ("plain", 2)
    assert [path for path, _ in sorted(found.ignored)] == ["broken.json", "files.csv", "losses.csv", "sizes.json"]


def test_a_captioner_keeps_the_rows_of_any_table(two):
    (two / "captions.csv").write_text("image,prompt,source\na.png,a cat,web\nb.png,,web\n")
    assert list(read_columns(two / "captions.csv", ["a.png", "b.png"])) == [
        ("a.png", {"file_name": "a.png", "text": "a cat", "source": "web"}),
        ("b.png", {"file_name": "b.png", "source": "web"}),
    ]


def test_a_file_of_captions_may_be_a_map(two, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"a.png": "a cat"}))
    assert captions_by_name(tmp_path / "mine.json") == {"a.png": "a cat"}
    (two / "mine.csv").write_text(CSV)  # inside the folder: no list of its files, as it was named otherwise
    found = index(two, captions_file=str(two / "mine.csv"))
    assert (found.layout, [entry.synthetic for entry in found.entries]) == ("plain", ["a cat", "a dog"])
