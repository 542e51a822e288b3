"""Small files with drawn weights in the place of published ones, for pages that speak of these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unveil import data
from unveil.checkpoints import lora, lora_export
from unveil.checkpoints.formats import controlnet, single_file
from unveil.io.files import write_tensors
from unveil.model import Model, build
from unveil.model.config import Recipe, load_recipe
from unveil.nn.controlnet import ControlNet, hint_widths
from unveil.nn.lora import LoraConfig, LoraDelta, init_lora
from unveil.nn.unet import UNet
from unveil.playground import PlaygroundConfig, ScenesConfig

SIDE, VIDEOS = 32, 8
CODEC = (
    "{kind: kl, model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, z_channels: 4, latent_channels: 4, "
    "scale: 0.18215}"
)


def stable_diffusion(folder: Path) -> None:
    """The models folder with sd15.safetensors, the LoRA detail and the ControlNet canny; and photo.png.

    The model is that of the recipe sd1-finetune in its small form, so that it can be trained on.
    """
    model = _model()
    models_folder = folder / "models"
    for subfolder in ("checkpoints", "loras", "controlnets"):
        (models_folder / subfolder).mkdir(parents=True, exist_ok=True)
    write_tensors(models_folder / "checkpoints" / "sd15.safetensors", single_file.tensors_of(model))
    lora_export.write(models_folder / "loras" / "detail.safetensors", _lora(model))
    assert isinstance(model.denoiser.network, UNet)
    network = ControlNet.from_unet(model.denoiser.network, hint_widths=hint_widths(2))
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.02  # what is new is zero, and adds nothing
    write_tensors(models_folder / "controlnets" / "canny.safetensors", controlnet.published_state_dict(network))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    image = np.stack([x * 8, y * 8, (x + y) * 4], axis=-1).astype(np.uint8)
    image[8:24, 8:24] = (200, 30, 30)
    Image.fromarray(image).save(folder / "photo.png")


def legacy(folder: Path) -> None:
    """old.ckpt, the same model as Lightning writes it."""
    torch.save({"state_dict": single_file.tensors_of(_model()), "global_step": 7}, folder / "old.ckpt")


def ours(folder: Path) -> None:
    """sd15-ours, the same model as a folder of ours."""
    _model().save(folder / "sd15-ours")


def captioned(folder: Path) -> None:
    """The folder photos again, with captions."""
    shutil.copytree(folder / "photos", folder / "captioned")
    for path in (folder / "captioned").glob("*.png"):
        path.with_suffix(".txt").write_text(f"a photo of zwt, number {path.stem}", "utf-8")


def sdxl(folder: Path) -> None:
    """A folder of diffusers with an SDXL pipeline in the models folder."""
    from tests.checkpoints import tiny_hf

    tiny_hf.saved(tiny_hf.sdxl(), folder / "models" / "checkpoints" / "sdxl-base")


def playground(folder: Path) -> None:
    """The folder playground-video, a model of clips of the bundled one's shape that knows the same words.

    It is in the reader's folder, where it goes before the model that comes with the package.
    """
    model, texts = _filming()
    words: Any = model.conditioners["prompt"]
    words.build_vocabulary(texts)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save(folder / "playground-video")


def filmed(folder: Path) -> None:
    """The folder clips: MP4 and GIF files of several sizes and two rates, with captions."""
    from unveil.io.video.writer import write_video

    pytest.importorskip("av")
    (folder / "clips").mkdir()
    for number in range(VIDEOS):
        side, rate = (32, 40)[number % 2], (8, 16)[number // 2 % 2]
        world = PlaygroundConfig(min_size=side, max_size=side, frames=(33,), fps=(rate,), caption_styles=("short",))
        item = data.open(world)[number]
        pixels = torch.as_tensor(item["pixels"])[:, :, : side - 8 * (number % 3 == 0)]
        name = f"{number:02d}.{'gif' if number == 3 else 'mp4'}"
        write_video(folder / "clips" / name, pixels, rate)
        (folder / "clips" / f"{number:02d}.txt").write_text(item["text"], "utf-8")


def annotated(folder: Path) -> None:
    """The folder coco: scenes with their boxes and outlines in COCO's format, and masks of the same names."""
    scenes = data.open(ScenesConfig(count=VIDEOS))
    (folder / "coco" / "masks").mkdir(parents=True)
    images, marks = [], []
    for number in range(VIDEOS):
        item, file = scenes[number], f"{number:02d}.png"
        Image.fromarray(item["pixels"].permute(1, 2, 0).numpy()).save(folder / "coco" / file)
        Image.fromarray((item["mask"] > 0).to(torch.uint8).numpy()).save(folder / "coco" / "masks" / file)
        images.append({"id": number, "file_name": file, "width": 32, "height": 32})
        for kind, (x, y, w, h) in zip(item["kinds"].tolist(), (item["boxes"] * 32).tolist(), strict=True):
            left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
            marks.append({"image_id": number, "category_id": 1 + kind % 2, "bbox": [left, top, w, h]})
            marks[-1]["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    categories = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    content = {"images": images, "annotations": marks, "categories": categories}
    (folder / "coco" / "instances.json").write_text(json.dumps(content), "utf-8")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "stable-diffusion": stable_diffusion,
    "legacy": legacy,
    "sd15-ours": ours,
    "captioned": captioned,
    "sdxl": sdxl,
    "playground": playground,
    "clips": filmed,
    "coco": annotated,
}


def provide(names: Sequence[str], folder: Path) -> None:
    """Makes what a page's note asks for; skips the test where the extra hf is not installed."""
    for library in ("transformers", "diffusers"):
        pytest.importorskip(library)
    for name in names:
        STAND_INS[name](folder)


def _model() -> Model:
    recipe = load_recipe("sd1-finetune", ["base=null", f"autoencoder={CODEC}"], small=True)
    assert isinstance(recipe, Recipe)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build(recipe.model)
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def _filming() -> tuple[Model, list[str]]:
    """A fresh model of the playground's clips, and captions that hold every word of it."""
    recipe = load_recipe("playground-video", small=True)
    assert isinstance(recipe, Recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(recipe.model)
    world: Any = data.open(PlaygroundConfig(languages=("en", "zh"), count=2000))
    return model, [str(item["text"]) for item in world.annotations(range(2000))]


def _lora(model: Model) -> lora_export.LoraFile:
    """A LoRA of the attention in kohya's naming, that changes images."""
    parts = lora.parts_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = [
            LoraDelta(one.layer, one.down, torch.randn_like(one.up) * 0.1, one.alpha)
            for one in init_lora(parts["denoiser"].network, LoraConfig(("own.*", "context.*"), rank=4))
        ]
    return lora_export.to_lora_file({"denoiser": made}, parts, "kohya")
