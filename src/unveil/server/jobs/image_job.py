"""Jobs that make pictures, from words, classes or other pictures: what may be asked for, and how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from unveil.cli import image_commands as editing
from unveil.cli.generation_options import PROMPT, GenerationOptions
from unveil.cli.image_output import FRAMES, ImageOutput, filenames, numbered, write
from unveil.cli.prompt_expansion import USUAL, ExpansionOptions, PromptExpander
from unveil.data.image_decoding import transparency
from unveil.io.images import png, sheet
from unveil.model.config.base import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job import Job
from unveil.server.jobs.job_console import heard
from unveil.server.jobs.model_cache import Models
from unveil.server.jobs.request import SEEDS, Asked, Name, Sent, Text, read
from unveil.server.jobs.uploads import PIXELS, Inputs
from unveil.server.jobs.worker import Report
from unveil.tasks.generate import generate
from unveil.tasks.inputs import BESIDE
from unveil.tasks.trajectory import Preview
from unveil.types import RecipeError

PICTURES = "pictures"
MOST = 64  # pictures of a job
BATCH = 16  # of them at a time
HALF = 128  # of a mask's alpha: what is below is transparent
JUMPS = (10, 10)  # of repaint
PREVIEWS = 8  # of a job, so many at most
STRIP = BESIDE[1]
Margin = Annotated[int, Field(ge=0, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Verb = Literal["img2img", "inpaint", "outpaint", "upscale"]


class Change(Section):
    """What is done to a picture.

    Attributes:
        verb: img2img draws it again from a noised state; inpaint makes what is white in the mask anew; outpaint goes
            on beyond its edges; upscale enlarges it.
        picture: the name of a picture that was sent. mask: of inpaint, as large.
        strength: 0 keeps the picture, 1 nothing of it; none: as the command line has it.
        feather, method: of inpaint and outpaint.
        left, right, top, bottom: pixels that outpaint adds.
        factor: of upscale.
    """

    verb: Verb
    picture: Sent
    mask: Sent | None = None
    strength: Share | None = None
    feather: Annotated[int, Field(ge=0, le=512)] = 0
    method: Literal["auto", "network", "replace", "repaint"] = "auto"
    left: Margin = 0
    right: Margin = 0
    top: Margin = 0
    bottom: Margin = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    @property
    def jumps(self) -> tuple[int, int]:
        """How the method goes back and forth: the steps of a jump, and how often each stretch is walked."""
        return JUMPS if self.method == "repaint" and self.verb in ("inpaint", "outpaint") else (0, 1)

    def settings(self) -> dict[str, Any]:
        """As the verb's own arguments."""
        usual = {"img2img": 0.6, "inpaint": 1.0, "upscale": 0.3}
        strength = self.strength if self.strength is not None else usual.get(self.verb)
        filling = {"feather": self.feather, "method": self.method, "jumps": JUMPS}
        margins = (self.left, self.right, self.top, self.bottom)
        own: dict[str, dict[str, Any]] = {
            "img2img": {"strength": strength},
            "inpaint": {"strength": strength, **filling},
            "outpaint": {"margins": margins, **filling},
            "upscale": {"factor": self.factor, "strength": strength, "overlap": 0.25},
        }
        return own[self.verb]


class Steered(Section):
    """A ControlNet of the models folder, the picture that it reads, its weight and its part of the run."""

    name: Name
    picture: Sent
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0
    start: Share = 0.0
    stop: Share = 1.0


class PictureRequest(Asked):
    """What a job of pictures is asked for.

    Attributes:
        label: a class, for models that take one.
        count: pictures; of an edit, so many of the one picture. first: which of the seed's pictures is the first.
        loras: names in the models folder, each with its weight, as NAME or NAME:WEIGHT.
        controls: ControlNets of the models folder.
        change: what is done to a picture that was sent; none: pictures are made from nothing.
        strip: whether states on the way to each picture are made a picture as well; of an edit there are none.
    """

    label: Annotated[Text, Field(max_length=300)] | None = None
    count: Annotated[int, Field(ge=1, le=MOST)] = 1
    first: Annotated[int, Field(ge=0, le=SEEDS)] = 0
    loras: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    controls: Annotated[tuple[Steered, ...], Field(max_length=4)] = ()
    change: Change | None = None
    strip: bool = False


def read_request(given: Mapping[str, Any]) -> PictureRequest:
    """A request, checked as far as it can be without its model.

    Raises:
        RecipeError: each fault with its key, its value and what is allowed.
    """
    request = read(PictureRequest, given)
    if request.change is not None and (request.change.verb == "inpaint") != (request.change.mask is not None):
        raise RecipeError("request: change.mask: inpaint needs one, and nothing else takes one")
    return request


class Pictures:
    """The work on such a job.

    Args:
        models: that are in memory.
        catalog: the names that requests may say.
        inputs: the files that were sent.
        device: that they compute on.
    """

    def __init__(self, models: Models, catalog: Catalog, inputs: Inputs, device: str) -> None:
        self._models, self._catalog, self._inputs, self._device = models, catalog, inputs, device

    def __call__(self, given: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Makes the pictures of a request, each a file with its record, and a sheet where there are several.

        Raises:
            RecipeError, WeightsError: it cannot be done.
            Cancelled: it was told to stop.
        """
        asked = read_request(given)
        wish = wish_of(asked, self._catalog, self._inputs, self._device)
        with heard(report) as desk:
            if asked.change is not None:
                self._edit(asked, asked.change, wish, ImageOutput(folder, preview=report.preview_file), desk)
                return
            assert wish.model is not None
            model, source = self._models.opener(wish, wish.model, desk)
            report.check()
            expanding = USUAL if asked.expand else ExpansionOptions(no_expand=True)
            expander = PromptExpander(expanding, model, desk, shown=bool(wish.controls))
            request = expander(wish.request(model, asked.sampling, asked.count))

            def show(pixels: Tensor, done: int, total: int | None) -> None:
                if total is None or done < total:
                    report.preview(png(sheet(pixels)))

            steps = model.sampling.changed(asked.sampling).steps
            preview = Preview(show, max(1, steps // PREVIEWS))
            frames = FRAMES if asked.strip else 0
            made = list(generate(model, request, source, frames=frames, on_step=report.step, preview=preview))
            write(made, ImageOutput(folder, strip=asked.strip), filenames(numbered(request)))

    def _edit(
        self, asked: PictureRequest, change: Change, wish: GenerationOptions, place: ImageOutput, desk: Any
    ) -> None:
        picture = self._inputs.path(change.picture)
        with TemporaryDirectory() as beside:
            mask = None if change.mask is None else _hole(self._inputs.path(change.mask), Path(beside))
            job = editing.EditTask(change.verb, picture, change.settings(), mask)
            editing.edit(wish, job, asked.sampling, place, desk, opener=self._models.opener)


def pictures_of(job: Job) -> list[str]:
    """The names of the pictures that a job made, without what was written beside them."""
    return [name for name in job.outputs if name.endswith(".png") and name not in BESIDE]


def wish_of(asked: PictureRequest, catalog: Catalog, inputs: Inputs, device: str = "auto") -> GenerationOptions:
    """The wish of a request, its names being places by now.

    Raises:
        WeightsError: there is no model, LoRA or ControlNet of a name.
        MediaError: a file that was not sent.
    """
    if asked.change is not None:
        for name in (asked.change.picture, asked.change.mask):
            _ = name and inputs.path(name)
    found = [catalog.lora(one) for one in asked.loras]
    steered = [
        f"{catalog.control(one.name).path}={inputs.path(one.picture)}:{one.weight:g}:{one.start:g}-{one.stop:g}"
        for one in asked.controls
    ]
    return GenerationOptions(
        str(catalog.model(asked.model).path),
        labels=() if asked.label is None else (asked.label,),
        count=asked.count,
        seed=asked.seed,
        first=asked.first,
        batch=min(asked.count, BATCH),
        device=device,
        given=_prompt(asked.prompt),
        negative=_prompt(asked.negative),
        size=asked.size_typed,
        loras=tuple(f"{known.path}:{weight:g}" for known, weight in found),
        controls=tuple(steered),
    )


def _hole(mask: Path, beside: Path) -> Path:
    """A mask that is white where the picture is made anew, of one that is that, or transparent there."""
    with mask.open("rb") as file:
        alpha = transparency(file, PIXELS)
    if alpha is None:
        return mask
    path = beside / mask.with_suffix(".png").name
    path.write_bytes(png(torch.where(alpha < HALF, 255, 0).to(torch.uint8)))
    return path


def _prompt(text: str | None) -> tuple[str, ...]:
    return () if text is None else (f"{PROMPT}={text}",)
