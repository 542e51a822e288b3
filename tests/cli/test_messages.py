"""What a new user sees after a mistake: one sentence with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Cli

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
WORDS = "condition=[{kind: learned-text, vocab_size: 50, max_length: 8, hidden_size: 16, depth: 1, heads: 2}]"
TINY = ("network.model_channels=8", "network.groups=4", "train.steps=2", "train.batch_size=2", "sample.steps=2")


def images(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (32, 32), (20 * number, 100, 50)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("typed", "meant"), [("extnd", "extend"), ("genrate", "generate"), ("storybord", "storyboard")]
)
def test_a_mistyped_subcommand_is_not_a_prompt(typed: str, meant: str, cli: Cli):
    done = cli("video", typed)
    assert (done.code, done.out) == (2, "")
    assert f"nearest: {meant}" in done.err
    assert f"unveil video generate {typed}" in done.err, "the way to a prompt of this word"


def test_a_file_with_the_name_of_a_mistyped_subcommand_is_inspected(cli: Cli):
    Path("modell").write_bytes(b"no model")
    assert "no such command" not in cli("inspect", "modell").err


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt", "weights.pth"])
def test_weights_that_are_pointers_of_git_lfs_are_named(name: str, cli: Cli):
    Path(name).write_text(POINTER)
    for command in ("inspect", "sample"):
        done = cli(command, name)
        assert done.code in (1, 2)
        assert "Git LFS" in done.err
        assert "git lfs pull" in done.err


def test_a_pointer_in_a_saved_model_or_a_data_folder_is_named(cli: Cli, saved: Path):
    model = Path("model")
    model.mkdir()
    for file in saved.iterdir():
        if file.is_file():
            (model / file.name).write_bytes(file.read_bytes())
    (model / "denoiser.safetensors").write_text(POINTER)
    assert "denoiser.safetensors: a pointer of Git LFS" in cli("sample", "model", "--label", "3").err
    images(Path("photos"))
    Path("photos/0.png").write_text(POINTER)
    assert "0.png: a pointer of Git LFS" in cli("data", "check", "photos").out
    Path("videos").mkdir()
    Path("videos/0.mp4").write_text(POINTER)
    assert "0.mp4: a pointer of Git LFS" in cli("data", "check", "videos").out


def test_a_folder_without_captions_or_labels_says_so_before_training(cli: Cli):
    folder = images(Path("photos"))
    text = (WORDS, "network.transformer_depth=[1,1]", "network.cross_attention_dim=16")
    for settings, noun in ((text, "caption"), (("condition=[{kind: class-label, num_classes: 3}]",), "label")):
        done = cli("train", "own-images", f"data.path={folder}", "data.val_fraction=0.3", *TINY, *settings, "-o", "run")
        assert done.code == 2
        assert f"4 images have no {noun}" in done.err
        assert ("images.txt" if noun == "caption" else "metadata.jsonl") in done.err
        assert not Path("run").exists()


def test_images_are_not_written_under_the_name_of_a_video(cli: Cli, saved: Path):
    for name, remedy in (("out.mp4", "unveil video"), ("out.gif", "unveil video"), ("out.jpg", "out.png")):
        done = cli("sample", saved, "--label", "3", "-o", name)
        assert done.code == 2
        assert remedy in done.err
        assert not Path(name).exists()


def test_a_model_of_another_medium_is_answered_with_its_command(cli: Cli, saved: Path):
    done = cli("video", "generate", "a red circle", "--model", saved)
    assert done.code == 2
    assert "unveil sample" in done.err
    assert "unveil caption" in cli("sample", "playground-captioner").err
    shown = cli("sample", "playground-world", "a red circle", "--steps", "1", "-o", "one.png")
    assert "`unveil video --model playground-world` generates videos" in shown.out
    assert "unveil video" not in cli("sample", "a red circle", "--steps", "1", "-o", "two.png").out


@pytest.mark.filterwarnings("always::unveil.errors.PromptTruncated")  # shown to a user, as every command shows it
def test_a_long_prompt_is_cut_in_messages(cli: Cli):
    words = " ".join(f"blorp{number}" for number in range(900))
    for prompt in (f"a red circle {words}", "red " * 5000):
        done = cli("sample", prompt, "--steps", "1", "-o", "out.png")
        assert done.err
        assert max(map(len, done.err.splitlines())) < 700  # of prompts of 9,000 and 20,000 characters
