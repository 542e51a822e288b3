"""LoRAs of SDXL, Stable Diffusion 3 and FLUX.1 on diffusers' folders: each layer gets what the file has for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import unveil
from tests.checkpoints import tiny_hf
from tests.checkpoints.pipeline_tasks import runs
from unveil.checkpoints import lora as files
from unveil.checkpoints.lora import parts_of
from unveil.io.files import write_tensors
from unveil.nn import lora

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KOHYA = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def attention(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a network's attention, by their paths."""
    found = network.named_modules()
    return {path: one for path, one in found if isinstance(one, nn.Linear) and "attn" in path}


@runs("lora", of=["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sdxl", ["unet", "text_encoder", "text_encoder_2"]),
        ("sd3", ["transformer", "text_encoder"]),
        ("flux", ["transformer", "text_encoder"]),
    ],
)
def test_every_module_is_found_and_merged(name: str, parts: list[str], naming: str, tmp_path: Path):
    pipeline = getattr(tiny_hf, name)()
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / name))
    generator = torch.Generator().manual_seed(3)
    written: dict[str, Tensor] = {}
    wanted: list[Tensor] = []
    for part in parts:
        for path, layer in attention(getattr(pipeline, part)).items():
            # transformers' newer versions leave it away, LoRAs have it
            inner = f"text_model.{path.removeprefix('text_model.')}" if "text" in part else path
            down = torch.randn(2, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 2, generator=generator)
            stem, ends = f"{part}.{inner}", ("lora_A", "lora_B")
            if naming == "kohya":
                stem, ends = f"{KOHYA[part]}_{inner.replace('.', '_')}", ("lora_down", "lora_up")
            written |= {f"{stem}.{ends[0]}.weight": down, f"{stem}.{ends[1]}.weight": up}
            wanted.append(layer.weight.detach() + up @ down)
    write_tensors(tmp_path / "style.safetensors", written)
    report = files.attach(parts_of(model), "style", files.read_lora(tmp_path / "style.safetensors"))
    assert (len(report.matched), report.unmatched) == (len(wanted), ())
    for part in parts_of(model).values():
        lora.fuse_lora(part.network)
    have = [one for one in model.state_dict().values() if one.ndim == 2]
    for weight in wanted:
        assert any(one.shape == weight.shape and torch.allclose(one, weight, atol=1e-5) for one in have)
