"""diffusers' U-Nets with cross-attention and its ControlNets: the same results from the same weights, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from unveil.checkpoints import diffusers_unet
from unveil.conditioning.class_label import Label
from unveil.errors import RecipeError, WeightsError
from unveil.nn.controlnet import ControlNet
from unveil.types import Condition

diffusers = pytest.importorskip("diffusers")

SD1 = {"attention_head_dim": 4, "use_linear_projection": False}
SD2 = {"attention_head_dim": [4, 8], "use_linear_projection": True}  # heads of 16
INPAINTING = {"attention_head_dim": 4, "in_channels": 9}
CLASSES = {"attention_head_dim": 4, "num_class_embeds": 5, "transformer_layers_per_block": [1, 2]}
SHIFT = {"attention_head_dim": 2, "resnet_time_scale_shift": "scale_shift"}


def theirs(**settings: Any) -> Any:
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "block_out_channels": (64, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    network = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, cross_attention_dim=24, **usual | settings
    )
    return redrawn(network)


def redrawn(network: Any) -> Any:
    """No weight is 0, so that each matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def inputs(channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, channels, 8, 8, generator=generator)
    return x, torch.tensor([7.0, 500.0]), torch.randn(2, 5, 24, generator=generator)


@pytest.mark.parametrize(
    "settings", [SD1, SD2, INPAINTING, CLASSES, SHIFT], ids=["sd1", "sd2", "9", "classes", "shift"]
)
@torch.no_grad()
def test_a_folder_of_diffusers_gives_the_same_results_and_is_written_back_unchanged(settings: Any, tmp_path: Path):
    network = theirs(**settings)
    network.save_pretrained(tmp_path / "theirs")
    parts = diffusers_unet.read_unet(tmp_path / "theirs")
    x, t, tokens = inputs(settings.get("in_channels", 4))
    labels = torch.tensor([0, 4]) if "num_class_embeds" in settings else None
    mask = torch.tensor([[True, True, False, True, True], [True] * 5])
    condition = Condition(tokens=tokens, mask=mask, concat=x[:, 4:] if x.shape[1] > 4 else None)
    if parts.label is not None:
        label = Label(5, parts.network.vector_dim)
        label.load_state_dict(parts.label)
        condition = condition.join(label.encode(cast(Tensor, labels)))
    want = network(x, t, tokens, class_labels=labels, encoder_attention_mask=mask).sample
    torch.testing.assert_close(parts.network(x[:, :4], t, condition), want, rtol=1e-4, atol=1e-4)

    diffusers_unet.write(parts.network, tmp_path / "ours", parts.label, size=8)
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours").eval()
    state = network.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert torch.equal(again(x, t, tokens, class_labels=labels, encoder_attention_mask=mask).sample, want)


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (9, 4)])
@torch.no_grad()
def test_sides_that_are_no_multiple_of_the_downsampling_give_the_same_results(size: tuple[int, int]):
    """Halves are rounded up, twice; upsampling gives the size before."""
    down = ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    network = theirs(
        block_out_channels=(32, 64, 64),
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        attention_head_dim=4,
    )
    controlnet = redrawn(diffusers.ControlNetModel.from_unet(network))
    config = diffusers_unet.config_from_settings(network.config)
    ours = diffusers_unet.convert_state_dict(network.state_dict(), config).network
    _, t, tokens = inputs()
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(3))
    residuals, middle = controlnet(
        x, t, tokens, controlnet_cond=x.new_ones(2, 3, *(8 * side for side in size)), return_dict=False
    )
    want = network(x, t, tokens, down_block_additional_residuals=residuals, mid_block_additional_residual=middle).sample
    got = ours(x, t, Condition(tokens=tokens, residuals=(*residuals, middle)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with ours.precompute([7.0]):
        torch.testing.assert_close(ours(x, t, Condition(tokens=tokens, residuals=(*residuals, middle))), got)


@pytest.mark.parametrize("settings", [SD1, SD2], ids=["sd1", "sd2"])
@torch.no_grad()
def test_a_controlnet_of_diffusers_gives_the_same_results_and_is_written_back_unchanged(settings: Any, tmp_path: Path):
    unet = theirs(**settings)
    network = redrawn(diffusers.ControlNetModel.from_unet(unet))
    network.save_pretrained(tmp_path / "theirs")
    ours = diffusers_unet.read_controlnet(tmp_path / "theirs")
    x, t, tokens = inputs()
    hint = torch.rand(2, 3, 64, 64)
    down, middle = network(x, t, tokens, controlnet_cond=hint, return_dict=False)
    got = ours(x, t, Condition(tokens=tokens, control_image=hint))
    for mine, want in zip(got, [*down, middle], strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)
    want = unet(x, t, tokens, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    controlled = diffusers_unet.convert_state_dict(unet.state_dict(), ours.config).network
    torch.testing.assert_close(controlled(x, t, Condition(tokens=tokens, residuals=got)), want, rtol=1e-4, atol=1e-4)

    diffusers_unet.write(ours, tmp_path / "ours")
    again = diffusers.ControlNetModel.from_pretrained(tmp_path / "ours").eval()
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"only_cross_attention": True}, "only_cross_attention = True"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"attention_head_dim": [3, 8]}, r"attention_head_dim = \[3, 8\]"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block = \[1, 2\]"),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ({"frequency": 3}, "frequency = 3: is not a known setting"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_its_name(changes: dict[str, Any], named: str):
    settings = dict(theirs(**SD1).config)
    assert diffusers_unet.config_from_settings(settings).heads == 4
    with pytest.raises(RecipeError, match=named):
        diffusers_unet.config_from_settings(settings | changes)


def test_a_folder_of_another_class_or_with_other_weights_is_refused(tmp_path: Path):
    network = theirs(**SD1)
    network.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="UNet2DConditionModel, not a ControlNetModel"):
        diffusers_unet.read_controlnet(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 32}))
    with pytest.raises(WeightsError, match=r"attn2.to_k.weight: \(64, 24\), expected \(64, 32\)"):
        diffusers_unet.read_unet(tmp_path)


def test_a_controlnet_cannot_be_a_folder_with_labels(tmp_path: Path):
    network = diffusers_unet.convert_state_dict(
        theirs(**SD1).state_dict(), diffusers_unet.config_from_settings(theirs(**SD1).config)
    ).network
    diffusers_unet.write(ControlNet.from_unet(network), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_class_embeds": 3}))
    with pytest.raises(RecipeError, match="num_class_embeds = 3"):
        diffusers_unet.read_controlnet(tmp_path)
