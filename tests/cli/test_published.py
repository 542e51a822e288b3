"""Published files are sampled directly and guided by their classifiers; other files need settings that keys lack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import Cli, tree
from unveil.checkpoints import openai_keys
from unveil.checkpoints.formats.openai import release
from unveil.io.files import read_tensors
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.unet import UNet, UNetConfig

NETWORK = UNetConfig(
    in_channels=3,
    out_channels=6,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention=(2,),
    head_channels=16,
    time_scale_shift="scale-shift",
    resample="residual",
)
OVERRIDES = [
    "size=16",
    "head_channels=16",
    "attention_order=heads-first",
    "beta_schedule=cosine",
    "timesteps=100",
    "rescale_timesteps=1000",
]
MODEL_OVERRIDES = [f"file.{one}" for one in [*OVERRIDES, "variance=learned-range"]]
CLASSIFIER_OVERRIDES = [f"classifier.{one}" for one in [*OVERRIDES, "num_res_blocks=1"]]


def redrawn(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.05 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A model and a classifier in the published layout, of no released size."""
    label = {openai_keys.OUR_LABEL: torch.zeros(10, NETWORK.vector_dim)}
    torch.save(
        redrawn(openai_keys.published_state_dict(UNet(NETWORK).state_dict(), NETWORK, label), 0), tmp_path / "model.pt"
    )
    config = NoisyClassifierConfig(
        3,
        10,
        16,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention=(2,),
        head_channels=16,
        pool="attention",
    )
    state = openai_keys.published_classifier_state_dict(NoisyClassifier(config).state_dict(), config)
    torch.save(redrawn(state, 1), tmp_path / "classifier.pt")
    return tmp_path


def test_an_unknown_file_names_the_settings_that_its_keys_lack(cli: Cli, files: Path):
    done = cli("sample", "model.pt", "--class", 3, "steps=2")
    assert done.code == 1
    for name in (
        "size",
        "heads or head_channels",
        "attention_order",
        "beta_schedule",
        "timesteps",
        "rescale_timesteps",
        "variance",
    ):
        assert name in done.err
    assert "Traceback" not in done.err
    assert sorted(tree(files)) == ["classifier.pt", "model.pt"]


def test_with_these_settings_it_is_sampled_under_classifier_guidance(cli: Cli, files: Path):
    plain = cli("sample", "model.pt", *MODEL_OVERRIDES, "steps=2", "--class", 3, "--out", "plain.png")
    assert plain.code == 0, plain.err
    arguments = [*MODEL_OVERRIDES, *CLASSIFIER_OVERRIDES, "steps=2", "--class", 3, "--classifier", "classifier.pt"]
    guided = cli("sample", "model.pt", *arguments, "--classifier-scale", 1e6, "--out", "guided.png")
    assert guided.code == 0, guided.err
    with Image.open(files / "plain.png") as one, Image.open(files / "guided.png") as other:
        assert one.size == other.size == (16, 16)
        assert one.tobytes() != other.tobytes()


def test_a_file_with_more_than_tensors_is_not_opened(cli: Cli, tmp_path: Path):
    torch.save({"state": {"weight": torch.zeros(2)}, "config": {"a": 1}}, tmp_path / "more.pt")
    done = cli("sample", "more.pt", "steps=2")
    assert done.code == 1
    assert "unveil convert" in done.err


def test_a_classifier_of_another_size_is_refused(cli: Cli, files: Path):
    other = [one.replace("size=16", "size=32") for one in CLASSIFIER_OVERRIDES]
    config = NoisyClassifierConfig(
        3,
        10,
        32,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention=(2,),
        head_channels=16,
        pool="attention",
    )
    state = openai_keys.published_classifier_state_dict(NoisyClassifier(config).state_dict(), config)
    torch.save(redrawn(state, 1), files / "large.pt")
    done = cli("sample", "model.pt", *MODEL_OVERRIDES, *other, "steps=2", "--class", 3, "--classifier", "large.pt")
    assert done.code != 0
    assert "the classifier reads images of (3, 32, 32)" in done.err
    assert not (files / "samples").exists()


@pytest.mark.slow
@pytest.mark.release
def test_random_files_of_the_released_64_pixel_pair(cli: Cli, tmp_path: Path):
    for name, seed in (("64x64_diffusion", 0), ("64x64_classifier", 1)):
        found = release((name,))
        network = found.network
        if isinstance(network, UNetConfig):
            label = {openai_keys.OUR_LABEL: torch.zeros(1000, network.vector_dim)}
            state = openai_keys.published_state_dict(UNet(network).state_dict(), network, label)
        else:
            state = openai_keys.published_classifier_state_dict(NoisyClassifier(network).state_dict(), network)
        torch.save(redrawn(state, seed), tmp_path / f"{name}.pt")
        del state
    arguments = ["--classifier", "64x64_classifier.pt", "--class", 207, "steps=2", "--out", "dog.png"]
    done = cli("sample", "64x64_diffusion.pt", *arguments)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "dog.png") as image:
        assert image.size == (64, 64)


def test_convert_needs_only_keys_and_a_few_settings(cli: Cli, files: Path):
    words = [word for one in MODEL_OVERRIDES for word in ("--set", one)]
    done = cli("convert", "model.pt", "ours", *words, "--json")
    assert done.code == 0, done.err
    theirs = torch.load(files / "model.pt", weights_only=True)
    assert (done.json["matched"], done.json["unmatched"]) == (len(theirs), 0)
    assert cli("convert", "ours", "back.safetensors").code == 0
    back = read_tensors(files / "back.safetensors")
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.items())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, "give size, heads or head_channels, attention_order"),  # the keys alone do not tell
        ([], 1, "or give --recipe: that of the model in the file"),
        (
            ["--set", "network.model_channels=32"],
            2,
            "network: a change of a recipe; give --recipe, or write file.KEY=VALUE",
        ),
        (["--set", "file.sise=16"], 2, "file: sise: unknown key; nearest: 'size'"),
    ],
)
def test_convert_names_missing_settings(cli: Cli, files: Path, words: list[str], code: int, message: str):
    done = cli("convert", "model.pt", "ours", *words)
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert sorted(tree(files)) == ["classifier.pt", "model.pt"]
