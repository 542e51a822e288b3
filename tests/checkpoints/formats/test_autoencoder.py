"""Autoencoders of latent diffusion and diffusers: published counts, both directions, and equal numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, VQModel, VQModelConfig
from unveil.checkpoints import inspection
from unveil.checkpoints.formats import autoencoder
from unveil.checkpoints.loader import load_state
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import write_tensors
from unveil.nn.layers import meta_device

ROOT = os.environ.get("UNVEIL_GOLDEN")
DD: dict[str, Any] = {
    "double_z": True, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
CONFIGS = {
    "kl": autoencoder.config_from_arguments({"ddconfig": DD, "embed_dim": 3}),
    "attention": autoencoder.config_from_arguments({"ddconfig": DD | {"attn_resolutions": [16, 8]}, "embed_dim": 3}),
    "without 1x1": AutoencoderKLConfig(3, 3, 32, (1, 2), 2, 4),
    "vq": autoencoder.config_from_arguments({"ddconfig": DD | {"double_z": False}, "embed_dim": 2, "n_embed": 24}),
    "noattn": autoencoder.config_from_arguments(
        {"ddconfig": DD | {"double_z": False, "attn_type": "none"}, "embed_dim": 3, "n_embed": 24}
    ),
}


def drawn(config: AutoencoderKLConfig | VQModelConfig) -> AutoencoderKL | VQModel:
    """A codec whose zero-initialised layers matter too."""
    torch.manual_seed(0)
    codec = AutoencoderKL(config) if isinstance(config, AutoencoderKLConfig) else VQModel(config)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    return codec.eval()


def shaken(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
def test_the_published_autoencoders_have_their_counts_and_are_recognised_by_their_shapes():
    facts = json.loads((Path(str(ROOT)) / "latent-diffusion" / "param_counts.json").read_text())
    known = {name: fact for name, fact in facts.items() if "arguments" in fact}
    assert len(known) == 13
    for name, fact in known.items():
        config = autoencoder.config_from_arguments(fact["arguments"])
        with meta_device():
            theirs = autoencoder.published_state_dict(
                AutoencoderKL(config) if isinstance(config, AutoencoderKLConfig) else VQModel(config)
            )
        assert (len(theirs), sum(t.numel() for t in theirs.values())) == (fact["n_keys"], fact["params"]), name
        shapes = {f"first_stage_model.{key}": tuple(tensor.shape) for key, tensor in theirs.items()}
        assert autoencoder.config_from_keys(shapes) == config, name


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_there_and_back_is_the_identity_and_keys_tell_the_configuration(config, layout):
    codec = drawn(config)
    theirs = autoencoder.published_state_dict(codec, layout)
    assert autoencoder.detect_layout({key: tensor.shape for key, tensor in theirs.items()}) == layout
    beside = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    back = autoencoder.build_autoencoder(theirs | beside)
    assert back.config == config
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in codec.state_dict().items())
    assert not any(parameter.requires_grad for parameter in back.parameters())
    whole = {f"first_stage_model.{key}": tensor for key, tensor in theirs.items()}
    other = autoencoder.build_autoencoder(whole | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, scale=0.18215)
    assert other.scale.tolist() == pytest.approx([0.18215] * config.width)


def test_attention_of_diffusers_old_files_has_other_names(tmp_path):
    codec = drawn(CONFIGS["kl"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    theirs: dict[str, Tensor] = {}
    for key, tensor in autoencoder.published_state_dict(codec, "diffusers").items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        theirs[key] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in theirs
    write_tensors(tmp_path / "vae.safetensors", theirs)
    assert inspection.inspect(tmp_path / "vae.safetensors")["what"] == "an autoencoder of diffusers"
    back = autoencoder.read_folder(tmp_path / "vae.safetensors")
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in codec.state_dict().items())


# ---------------------------------------------------------------------- diffusers


def theirs_kl(**changes: Any) -> Any:
    from diffusers import AutoencoderKL as DiffusersKL

    settings: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 16,
        "scaling_factor": 0.5,
    }
    return shaken(DiffusersKL(**settings | changes))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1, "layers_per_block": 2},
        {"mid_block_add_attention": False, "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2, "latents_mean": [0.1] * 4, "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)  # fmt: skip
def test_diffusers_autoencoder_kl_gives_the_same_and_opens_what_is_written(tmp_path, changes):
    from diffusers import AutoencoderKL as DiffusersKL

    theirs: Any = theirs_kl(**changes)
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    read = autoencoder.read_folder(tmp_path / "pipeline")
    assert isinstance(read, AutoencoderKL)
    pixels, noise = torch.randn(2, 3, 16, 24), torch.randn(2, 4, 8, 12)
    expected, posterior = theirs.encode(pixels).latent_dist, read.posterior(pixels)
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.logvar, expected.logvar, rtol=1e-4, atol=1e-4)
    z = expected.mean + expected.std * noise
    config = theirs.config
    if config.latents_mean is not None:
        mean, std = (torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (config.latents_mean, config.latents_std))
        latents = (z - mean) * config.scaling_factor / std
    else:
        latents = (z - (config.shift_factor or 0.0)) * config.scaling_factor
    torch.testing.assert_close(read.encode(pixels, noise), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read.decode(latents), theirs.decode(z).sample, rtol=1e-4, atol=1e-4)
    back = DiffusersKL.from_pretrained(autoencoder.write_folder(read, tmp_path / "ours"))
    state: dict[str, Tensor] = back.state_dict()  # type: ignore[union-attr]
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    again = autoencoder.read_folder(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in read.state_dict().items()
               if key not in ("scale", "shift"))  # fmt: skip
    for name in ("scale", "shift"):
        torch.testing.assert_close(getattr(again, name), getattr(read, name))


@torch.no_grad()
def test_diffusers_vq_model_gives_the_same_and_opens_what_is_written(tmp_path):
    from diffusers import VQModel as DiffusersVQ

    theirs: Any = shaken(DiffusersVQ(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=24, vq_embed_dim=2, scaling_factor=1.0,
    ))  # fmt: skip
    theirs.save_pretrained(tmp_path / "vqvae")
    read = autoencoder.read_folder(tmp_path)
    assert isinstance(read, VQModel)
    pixels = torch.randn(2, 3, 16, 24)
    latents = read.encode(pixels)
    torch.testing.assert_close(latents, theirs.encode(pixels).latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read.decode(latents), theirs.decode(latents).sample, rtol=1e-4, atol=1e-4)
    back: Any = DiffusersVQ.from_pretrained(autoencoder.write_folder(read, tmp_path / "ours"))
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in theirs.state_dict().items())


# ---------------------------------------------------------------------- mistakes


def test_mistakes_are_named(tmp_path):
    theirs = autoencoder.published_state_dict(drawn(CONFIGS["kl"]))
    bias = theirs.pop("decoder.up.1.block.0.conv1.bias")
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(decoder.up.1.block.0.conv1.bias\)"):
        autoencoder.build_autoencoder(theirs)
    theirs |= {"decoder.up.1.block.0.conv1.bias": bias[:3]}
    with pytest.raises(WeightsError, match=r"decoder.up.1.block.0.conv1.bias: \(3,\), expected \(64,\)"):
        autoencoder.build_autoencoder(theirs)
    with pytest.raises(WeightsError, match="an autoencoder, which makes no images by itself"):
        load_state(theirs)
    with pytest.raises(WeightsError, match="not an autoencoder by its keys"):
        autoencoder.build_autoencoder({"time_embed.0.weight": bias})
    with pytest.raises(WeightsError, match=r"not a whole autoencoder: 'encoder\.conv_in\.weight' is missing"):
        autoencoder.build_autoencoder({key: tensor for key, tensor in theirs.items() if "encoder.conv_in" not in key})
    with pytest.raises(RecipeError, match="attn_type = 'linear': only 'vanilla' and 'none' are supported"):
        autoencoder.config_from_arguments({"ddconfig": DD | {"attn_type": "linear"}, "embed_dim": 3})
    with pytest.raises(RecipeError, match="setting 'ch_mult' is missing"):
        autoencoder.config_from_arguments({"ddconfig": {k: v for k, v in DD.items() if k != "ch_mult"}, "embed_dim": 3})
    local = AutoencoderKL(AutoencoderKLConfig(3, 3, 8, (1, 2), 1, 4, middle="blocks", norm="pixel"))
    with pytest.raises(RecipeError, match="norm = 'pixel': the layout 'ldm' has 'group' only"):
        autoencoder.published_state_dict(local)
    with pytest.raises(WeightsError, match="no folder of an autoencoder of diffusers"):
        autoencoder.read_folder(tmp_path)
    theirs_kl().save_pretrained(tmp_path / "vae")
    posterior = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(posterior | {"act_fn": "gelu"}))
    with pytest.raises(WeightsError, match="act_fn = 'gelu': only 'silu' is supported"):
        autoencoder.read_folder(tmp_path)
