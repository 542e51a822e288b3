"""A file of prompts on the command line: a set of images for each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.checkpoints import tiny_sd
from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from unveil.cli.text_forms import merge_settings
from unveil.generation.image_output import read_generation_metadata
from unveil.tasks.fields import PLAYGROUND
from unveil.tasks.text_to_image import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd") / "folder"
    tiny_sd.pipeline().save_pretrained(place)
    return place


def written(name: str, *lines: str | dict[str, Any]) -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text(text + "\n", "utf-8")
    return name


@pytest.mark.slow
def test_each_line_generates_the_images_of_a_single_request(cli: Cli, folder: Path):
    path = written(
        "p.jsonl",
        "# two, then one",
        {"prompt": "a cat", "seed": 3, "count": 2},
        "",
        {"prompt": "x=3", "negative": "2", "seed": 5, "steps": 2, "scale": 3, "sampler": "heun"},
    )
    done = cli("sample", folder, "--prompts", path, "--steps", 1, "--out", "made", "--save-trajectory", "--json")
    assert done.code == 0, done.err
    names = ["line0002_seed3_00000.png", "line0002_seed3_00001.png", "line0004_seed5_00000.png"]
    extra = ["line0002_sheet.png", "line0002_strip.png", "line0004_strip.png"]
    assert sorted(tree(Path("made"))) == sorted([*names, *extra])
    assert done.json["images"] == [f"made/{name}" for name in names]
    assert [(one["line"], one["prompt"], one["count"]) for one in done.json["sets"]] == [(2, "a cat", 2), (4, "x=3", 1)]
    assert cli("sample", folder, "a cat", "--seed", 3, "-n", 2, "--steps", 1, "--out", "own").code == 0
    for n in range(2):
        alone = Image.open(f"own/seed3_0000{n}.png")  # its metadata state no count and other output options
        assert alone.tobytes() == Image.open(Path("made", names[n])).tobytes()
    facts = read_generation_metadata(Path("made", names[2]))
    assert (facts["given"], facts["negative"]) == ({"prompt": "x=3"}, {"prompt": "2"})
    assert (facts["steps"], facts["guidance_scale"], facts["sampler"], facts["seed"]) == (2, 3.0, "heun", 5)
    assert cli("sample", folder, "--from-metadata", Path("made", names[2]), "--out", "again.png").code == 0
    assert Path("again.png").read_bytes() == Path("made", names[2]).read_bytes()


def test_a_plain_line_is_a_prompt_and_options_hold_for_every_line(cli: Cli, folder: Path):
    path = written("p.txt", "steps=9", '{"prompt": "a"}')
    options = ["-n", 2, "--seed", 4, "--seed", 6, "--negative-cond", "prompt=a dog", "--guidance-scale", 2]
    done = cli("sample", folder, "steps=1", "--prompts", path, *options, "--out", "made")
    assert done.code == 0, done.err
    assert "line 1 (1 of 2): steps=9" in done.out
    assert "4 images of 2 prompts: made/line0001_seed4_00000.png ... line0002_seed6_00000.png" in done.out
    for number, prompt in enumerate(["steps=9", '{"prompt": "a"}'], 1):
        for seed in (4, 6):
            facts = read_generation_metadata(Path(f"made/line{number:04d}_seed{seed}_00000.png"))
            assert (facts["given"], facts["negative"]) == ({"prompt": prompt}, {"prompt": "a dog"})
            assert (facts["steps"], facts["guidance_scale"]) == (1, 2.0)


@pytest.mark.slow
def test_an_existing_file_is_kept_and_nothing_is_sampled(cli: Cli, folder: Path):
    path = written("p.txt", "a cat", "a dog")
    Path("made").mkdir()
    for name in ("line0002_seed0_00000.png", "line0002_sheet.png"):
        Path("made", name).write_text("precious")
        before = tree(Path())
        draw = ["sample", folder, "--prompts", path, "-n", 2, "--steps", 1, "--out", "made"]
        refused(cli(*draw), 2, f"made/{name}: exists already", "--force")
        assert tree(Path()) == before
        Path("made", name).unlink()
    Path("made", name).write_text("old")
    assert cli(*draw, "--force").code == 0
    assert Path("made", name).read_bytes() != b"old"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a", "steps": 0}'], ["1 faulty line", "line 2: steps = 0: must be at least 1"]),
        (['{"prompt": "a", "sampler": "dim"}', '{"promt": "b"}'], ["line 3: no prompt; nearest: 'promt'"]),
        (
            ['{"prompt": "a", "sampler": "dim"}', '{"prompt": "b", "steps": 5000}'],
            [
                "2 faulty lines",
                "line 2: ",
                "sampler 'dim': no such sampler",
                "line 3: steps = 5000: this process has 1000",
            ],
        ),
    ],
)
def test_faulty_lines_are_reported_before_sampling(cli: Cli, folder: Path, lines: list[str], words: list[str]):
    path = written("p.jsonl", '{"prompt": "good", "steps": 1}', *lines)
    before = tree(Path())
    refused(cli("sample", folder, "--prompts", path, "--out", "made"), 4, f"{path}: ", *words)
    assert tree(Path()) == before


def test_options_that_exclude_a_file_of_prompts(cli: Cli, folder: Path):
    path = written("p.txt", "a cat")
    draw = ["sample", folder, "--prompts", path, "--out", "made"]
    before = tree(Path())
    refused(cli(*draw, "a dog"), 2, "--prompts p.txt and the prompt 'a dog': give one of them")
    refused(cli(*draw, "--cond", "prompt=a dog"), 2, "--prompts p.txt and the prompt 'a dog'")
    refused(cli(*draw, "--latents", "n.safetensors"), 2, "--prompts p.txt and --latents")
    refused(cli(*draw, "--from-metadata", "a.png"), 2, "--prompts and --from-metadata: give one of them")
    refused(cli(*draw[:-1], "made.png"), 2, "--out made.png", "give a folder")
    refused(cli("sample", "--prompts", path), 2, "sample needs a model")
    refused(cli("sample", "ddpm-digits", *draw[2:]), 2, "this model takes no prompt, only: label")
    refused(cli("sample", folder, "--prompts", "none.txt"), 4, "none.txt: cannot be read")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    "typed",
    ["a large blue square on green", "\u4e00\u4e2a\u7ea2\u8272\u5706\u5f62", "a red circle " * 40, "\u7ea2" * 300],
)
def test_a_first_argument_that_cannot_be_a_model_is_a_prompt(typed: str):
    values = merge_settings(TextToImage, {"model": typed}, {"settings": ["steps=4"]})
    assert values == {"model": PLAYGROUND, "prompt": [typed], "steps": 4}


def test_a_first_argument_that_can_be_a_model_is_one(tmp_path: Path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    for name in ("ddpm-digits", str(folder), "missing-model"):
        assert merge_settings(TextToImage, {"model": name}, {"settings": None}) == {"model": name}
