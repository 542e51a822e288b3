"""Tests of what the models of diffusers' folders do: which test runs which task, and edits of any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unveil.checkpoints import lora as files
from unveil.checkpoints.hf.family import PipelineTask
from unveil.checkpoints.lora import parts_of
from unveil.generation.generate import Request, TaskSpec, generate
from unveil.generation.img2img import img2img
from unveil.generation.inpaint import inpaint
from unveil.io.files import write_tensors
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.nn import lora

Test = TypeVar("Test", bound=Callable[..., Any])


def runs(*tasks: PipelineTask, of: Iterable[str]) -> Callable[[Test], Test]:
    """Note that a test runs these tasks on folders of these classes; `test_pipeline_marks` compares with the table."""
    noted = {(kind, task) for kind in of for task in tasks}

    def note(test: Test) -> Test:
        test.runs = noted  # type: ignore[attr-defined]
        return test

    return note


def edited(model: Model, prompts: Sequence[str], edit: TaskSpec, steps: int) -> Tensor:
    request = Request({"prompt": prompts} if prompts else {}, seed=3, sampling={"steps": steps})
    return torch.stack([sample.pixels for sample in generate(model, request, edit=edit)])


def check_edits(model: Model, prompts: Sequence[str], size: tuple[int, int], *, masked: bool = True) -> None:
    """img2img keeps an image at strength 0 and changes it above; inpaint changes the masked part alone."""
    generator = torch.Generator().manual_seed(5)
    image = (255 * torch.rand(1, model.shape[0], *size, generator=generator)).to(torch.uint8)
    with torch.no_grad():
        kept = to_pixels(model.autoencoder.decode(model.autoencoder.encode(image.float() / 127.5 - 1)))
    same, half, whole = (edited(model, prompts, img2img(model, image, strength=share), 2) for share in (0.0, 0.5, 1.0))
    assert torch.equal(same, kept)
    assert not torch.equal(half, kept)
    assert not torch.equal(whole, half)
    if masked:
        mask = torch.zeros(1, 1, *size, dtype=torch.bool)
        mask[..., : size[1] // 2] = True
        filled = edited(model, prompts, inpaint(model, image, mask), 2)
        assert torch.equal(filled[~mask.expand_as(filled)], image[~mask.expand_as(image)])
        assert not torch.equal(filled, image)


def check_lora(model: Model, transformer: nn.Module, file: Path) -> None:
    """Each attention layer of a network of diffusers gets the matrices that a file has for it."""
    written, wanted = dict[str, Tensor](), list[Tensor]()
    generator = torch.Generator().manual_seed(3)
    for place, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and "attn" in place.replace("attention", "attn"):
            down = torch.randn(2, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 2, generator=generator)
            written |= {f"transformer.{place}.lora_A.weight": down, f"transformer.{place}.lora_B.weight": up}
            wanted.append(layer.weight.detach() + up @ down)
    write_tensors(file, written)
    report = files.attach(parts_of(model), "style", files.read_lora(file))
    assert (len(report.matched), report.unmatched) == (len(wanted), ())
    assert wanted
    for part in parts_of(model).values():
        lora.fuse_lora(part.network)
    merged = [tensor for tensor in model.state_dict().values() if tensor.ndim == 2]
    for weight in wanted:
        assert any(tensor.shape == weight.shape and torch.allclose(tensor, weight, atol=1e-5) for tensor in merged)
