"""Tests of what the models of diffusers' folders do: which test runs which task, and edits of any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from unveil.checkpoints.hf.family import PipelineTask
from unveil.generation.generate import Request, TaskSpec, generate
from unveil.generation.img2img import img2img
from unveil.generation.inpaint import inpaint
from unveil.io.images import to_pixels
from unveil.model import Model

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
    """img2img changes an image the more, the higher its strength; inpaint changes the masked part alone."""
    generator = torch.Generator().manual_seed(5)
    image = (255 * torch.rand(1, model.shape[0], *size, generator=generator)).to(torch.uint8)
    with torch.no_grad():
        kept = to_pixels(model.autoencoder.decode(model.autoencoder.encode(image.float() / 127.5 - 1)))
    near, far = (edited(model, prompts, img2img(model, image, strength=share), 4) for share in (0.25, 1.0))
    change = [float((one.int() - kept.int()).abs().float().mean()) for one in (near, far)]
    assert 0 < change[0] < change[1]
    if masked:
        mask = torch.zeros(1, 1, *size, dtype=torch.bool)
        mask[..., : size[1] // 2] = True
        filled = edited(model, prompts, inpaint(model, image, mask), 2)
        assert torch.equal(filled[~mask.expand_as(filled)], image[~mask.expand_as(image)])
        assert not torch.equal(filled, image)
