"""`unveil preprocess`: files, folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Cli


@pytest.fixture
def image(tmp_path: Path) -> Path:
    array = np.zeros((30, 40, 3), np.uint8)
    array[8:22, 10:30] = 255
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    return path


def read(path: str) -> np.ndarray:
    return np.array(Image.open(path))


def test_an_image_becomes_a_control_image_of_its_size(cli: Cli, image: Path):
    done = cli("preprocess", "canny", image.name, "--out", "edges.png", "--json")
    assert done.code == 0, done.err
    assert done.json["hints"][0] | {"drawn": 0} == {
        "source": "photo.png",
        "hint": "edges.png",
        "size": [40, 30],
        "drawn": 0,
    }
    edges = read("edges.png")
    assert edges.shape == (30, 40, 3)
    assert set(np.flatnonzero(edges[15, :, 0])) <= {9, 10, 29, 30}
    for command in (["lines"], ["scribble", "--sigma", "1"], ["segments"]):
        done = cli("preprocess", command[0], "photo.png", "--out", f"{command[0]}.png", *command[1:], "--quiet")
        assert (done.code, done.out) == (0, "")
        assert read(f"{command[0]}.png").any()


def test_nothing_is_overwritten_unless_forced(cli: Cli, image: Path):
    before = image.read_bytes()
    assert cli("preprocess", "canny", "photo.png", "--out", "a.png").code == 0
    refused = cli("preprocess", "canny", "photo.png", "--out", "a.png")
    assert refused.code == 2
    assert "a.png: exists already" in refused.err
    assert cli("preprocess", "canny", "photo.png", "--out", "a.png", "--force").code == 0
    assert cli("preprocess", "canny", "photo.png", "--out", "photo.png", "--force").code == 5
    assert image.read_bytes() == before


def test_a_folder_is_preprocessed_into_a_folder(cli: Cli, image: Path):
    inner = image.parent / "photos" / "more"
    inner.mkdir(parents=True)
    Image.open(image).save(inner / "b.jpg")
    image.rename(inner.parent / "a.png")
    assert cli("preprocess", "canny", "photos", "--out", "hints").code == 0
    assert sorted(str(path) for path in Path("hints").rglob("*.png")) == ["hints/a.png", "hints/more/b.png"]
    inside = cli("preprocess", "canny", "photos", "--out", "photos/hints")
    assert inside.code == 2
    assert "control images would be read as images" in inside.err
    (inner / "b.png").write_bytes((inner.parent / "a.png").read_bytes())
    both = cli("preprocess", "canny", "photos", "--out", "others")
    assert both.code == 4
    assert "both would be written to" in both.err
    (inner / "b.png").unlink()
    (inner / "c.png").write_text("not an image")
    some = cli("preprocess", "canny", "photos", "--out", "others")
    assert some.code == 4
    assert "1 of 3 could not be processed, 2 were" in some.err
    assert "c.png: its content is text" in some.err
    assert len(list(Path("others").rglob("*.png"))) == 2


def test_masks_boxes_and_existing_control_images(cli: Cli, image: Path):
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save("classes.png")
    assert cli("preprocess", "mask", "classes.png", "--out", "colours.png").code == 0
    assert read("colours.png")[0].tolist() == [[0, 0, 0], [128, 0, 0]]
    coloured = cli("preprocess", "mask", "photo.png", "--out", "no.png")
    assert coloured.code == 4
    assert "an image of mode RGB; a map of classes has one channel" in coloured.err
    Path("layout.json").write_text(json.dumps({"boxes": [[0.5, 0.5, 0.5, 0.5]], "labels": [1]}))
    assert cli("preprocess", "boxes", "layout.json", "--out", "boxes.png", "--width", 20, "--height", 10).code == 0
    assert read("boxes.png")[5, 10].tolist() == [0, 128, 0]
    Path("wrong.json").write_text('{"boxes": [[1, 2]]}')
    wrong = cli("preprocess", "boxes", "wrong.json", "--out", "no.png")
    assert wrong.code == 4
    assert "wrong.json: not a file of boxes" in wrong.err
    assert cli("preprocess", "resize", "photo.png", "--out", "given.png", "--width", 80, "--height", 60).code == 0
    assert read("given.png").shape == (60, 80, 3)
    stretched = cli("preprocess", "resize", "photo.png", "--out", "no.png")
    assert stretched.code == 1
    assert "40 x 30 has the aspect ratio 1.33, the wanted 512 x 512 has 1" in stretched.err
    assert not Path("no.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos.png", "--out", "o.png"], 4, "photos.png: no such file or folder; nearest: 'photo.png'"),
        (["text.png", "--out", "o.png"], 4, "its content is text, not PNG, JPEG or WebP"),
        (["empty", "--out", "o"], 4, "empty: no .jfif, .jpe, .jpeg, .jpg, .png, .webp in it"),
        (["photo.png", "--out", "o.jpg"], 2, "--out o.jpg: must end in .png"),
        (["empty", "--out", "o.png"], 2, "empty is a folder, so the control images need a folder too"),
        (["photo.png", "--out", "o.png", "--low", "9", "--high", "3"], 2, "low must be at most high"),
        (["photo.png", "--out", "o.png", "--high", "300"], 2, "each must lie in [0, 255]"),
    ],
)
def test_bad_input_is_reported(cli: Cli, image: Path, arguments: list[str], code: int, message: str):
    Path("text.png").write_text("words")
    Path("empty").mkdir()
    done = cli("preprocess", "canny", *arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert not Path("o.png").exists()
