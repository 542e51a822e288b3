"""ViTs of transformers: equal results at random weights, both names, both directions, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from unveil.checkpoints import vit
from unveil.errors import RecipeError, WeightsError
from unveil.nn.vit import ViT, ViTConfig, get_preset

SMALL = ViTConfig(3, 8, 0, 4, 2, 16, 2, 2.0, head="hidden", norm_eps=1e-12)
# Parameters of transformers' ViTModel: google/vit-base-patch16-224-in21k and its larger kin
COUNTS = {"vit-b-16": 86_389_248, "vit-l-16": 304_351_232, "vit-h-14": 632_404_480}


def drawn(config: ViTConfig) -> ViT:
    torch.manual_seed(0)
    network = ViT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def theirs_of(config: ViTConfig) -> Any:
    from transformers import ViTConfig as Theirs
    from transformers import ViTForImageClassification, ViTModel

    settings = Theirs(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=int(config.mlp_ratio * config.hidden_size),
        image_size=config.size,
        patch_size=config.patch,
        num_labels=config.num_classes or 2,
    )
    return (ViTForImageClassification if config.num_classes else ViTModel)(settings)


@pytest.mark.slow
def test_transformers_gives_the_same_and_reads_what_is_written(tmp_path):
    ours = drawn(SMALL)
    model = theirs_of(SMALL).eval()
    model.load_state_dict(vit.published_state_dict(ours.state_dict(), SMALL, "modules"))  # strict: no key is left over
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = model(x)
        assert (found.last_hidden_state - ours.tokens(x)).abs().max() < 1e-5
        assert (found.pooler_output - ours(x).features).abs().max() < 1e-5
        large = torch.randn(1, 3, 16, 12)
        interpolated = model(large, interpolate_pos_encoding=True).last_hidden_state
        assert (interpolated - ours.tokens(large)).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "theirs")
    back = vit.read_folder(tmp_path / "theirs")
    assert back.config == SMALL
    assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in ours.state_dict().items())

    labelled = replace(SMALL, num_classes=5, head="linear")
    ours = drawn(labelled)
    vit.write_folder(ours, tmp_path / "ours")
    model = type(theirs_of(labelled)).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert (model(x).logits - ours(x).logits).abs().max() < 1e-5


@pytest.mark.parametrize("era", ["files", "modules"])
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, num_classes=5, head="linear")], ids=["model", "classifier"])
def test_weights_survive_the_way_there_and_back(config, era):
    ours = drawn(config).state_dict()
    theirs = vit.published_state_dict(ours, config, era)
    assert vit.is_vit({key: tensor.shape for key, tensor in theirs.items()})
    seen = vit.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}, heads=2)
    assert seen == config
    back = vit.convert_state_dict(theirs, seen)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in ours.items())


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_have_transformers_counts(name):
    config = replace(get_preset(name), head="hidden")
    with torch.device("meta"):
        theirs = vit.published_state_dict(ViT(config).state_dict(), config)
    assert sum(tensor.numel() for tensor in theirs.values()) == COUNTS[name]
    assert vit.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}, norm_eps=1e-6) == config


def test_what_transformers_does_not_have_is_refused():
    for config in (replace(SMALL, pool="mean"), replace(SMALL, num_classes=3)):
        with pytest.raises(RecipeError, match="class token"):
            vit.key_map(config)
    with pytest.raises(RecipeError, match="transformers' ViT has patches"):
        vit.key_map(replace(SMALL, patch=4, stem="convolutions"))


def test_other_files_are_named():
    with pytest.raises(WeightsError, match="not a ViT"):
        vit.config_from_keys({"a": (1,)})
    theirs = vit.published_state_dict(drawn(SMALL).state_dict(), SMALL)
    shapes = {key: tensor.shape for key, tensor in theirs.items()}
    with pytest.raises(WeightsError, match="2 blocks of width 16, whose heads no key shows"):
        vit.config_from_keys(shapes)
    with pytest.raises(WeightsError, match="another shape"):
        vit.convert_state_dict(theirs, replace(SMALL, size=16))
