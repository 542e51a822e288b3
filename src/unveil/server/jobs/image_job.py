"""Image jobs: text-to-image, class-conditional sampling and image editing; their requests and their handler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from unveil.data.image_decoding import alpha_channel
from unveil.errors import RecipeError
from unveil.generation.inputs import EXTRA_FILES
from unveil.io.images import png
from unveil.model.config.sections import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job import Job
from unveil.server.jobs.request import MAX_SEED, BaseRequest, Name, Text, UploadName, validate_request
from unveil.server.jobs.uploads import MAX_PIXELS
from unveil.server.jobs.worker import JobHandler, JobProgress

PICTURES = "pictures"
MAX_IMAGES = 64  # per job
BATCH_SIZE = 16
ALPHA_THRESHOLD = 128  # mask pixels with a lower alpha count as transparent
REPAINT_JUMPS = (10, 10)  # jump length and number of resamples
PREVIEWS = 8  # maximum number of previews per job
STRIP = EXTRA_FILES[1]
Margin = Annotated[int, Field(ge=0, le=4096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
EditTask = Literal["img2img", "inpaint", "outpaint", "upscale"]


class EditSpec(Section):
    """Edit of an uploaded image.

    Attributes:
        verb: img2img regenerates the image from a noised state; inpaint regenerates the white part of the mask;
            outpaint extends the image beyond its edges; upscale enlarges it.
        picture: Upload name of the image.
        mask: Upload name of the mask of inpaint, of the same size.
        strength: Denoising strength from 0 (keeps the image) to 1 (keeps nothing); none: the task's default.
        feather: Width in pixels of the soft edge of the mask, for inpaint and outpaint.
        method: Method of inpaint and outpaint.
        left, right, top, bottom: Pixels that outpaint adds on each side.
        factor: Upscale factor.
    """

    verb: EditTask
    picture: UploadName
    mask: UploadName | None = None
    strength: Fraction | None = None
    feather: Annotated[int, Field(ge=0, le=512)] = 0
    method: Literal["auto", "network", "replace", "repaint"] = "auto"
    left: Margin = 0
    right: Margin = 0
    top: Margin = 0
    bottom: Margin = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    @property
    def jumps(self) -> tuple[int, int]:
        """Jump length and number of resamples of RePaint; (0, 1) for other methods."""
        return REPAINT_JUMPS if self.method == "repaint" and self.verb in ("inpaint", "outpaint") else (0, 1)

    def settings(self) -> dict[str, Any]:
        """Return the fields of the task, without those that were left out."""
        own = {
            "img2img": ("strength",),
            "inpaint": ("strength", "mask", "feather", "method"),
            "outpaint": ("left", "right", "top", "bottom", "feather", "method"),
            "upscale": ("factor", "strength"),
        }
        values = {name: getattr(self, name) for name in own[self.verb]}
        return {name: value for name, value in values.items() if value is not None}


class ControlNetSpec(Section):
    """A ControlNet of the models folder, its control image, its weight, and the range of sampling where it acts."""

    name: Name
    picture: UploadName
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0
    start: Fraction = 0.0
    stop: Fraction = 1.0


class PictureRequest(BaseRequest):
    """Request of an image job.

    Attributes:
        label: Class, for class-conditional models.
        count: Number of images; for an edit, number of variants of the one image.
        first: Start index among the images of the seed.
        loras: LoRAs of the models folder, each as NAME or NAME:WEIGHT.
        controls: ControlNets of the models folder.
        change: Edit of an uploaded image; none: images are generated from noise.
        strip: Also save the sampling trajectory of each image; not for edits.
    """

    label: Annotated[Text, Field(max_length=300)] | None = None
    count: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    first: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    loras: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    controls: Annotated[tuple[ControlNetSpec, ...], Field(max_length=4)] = ()
    change: EditSpec | None = None
    strip: bool = False


def read_request(fields: Mapping[str, Any]) -> PictureRequest:
    """Validate a request as far as possible without its model.

    Raises:
        RecipeError: Names each invalid key, its value and the allowed values.
    """
    request = validate_request(PictureRequest, fields)
    if request.change is not None and (request.change.verb == "inpaint") != (request.change.mask is not None):
        raise RecipeError("request: change.mask: inpaint needs one, and nothing else takes one")
    return request


class ImageJob:
    """Handler of image jobs, which are tasks in another form.

    Args:
        catalog: Names that requests may use.
        handlers: Handler of the jobs of each task.
    """

    def __init__(self, catalog: Catalog, handlers: Mapping[str, JobHandler]) -> None:
        self._catalog, self._handlers = catalog, handlers

    def __call__(self, fields: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Generate the images of a request: a file with metadata each, and a contact sheet if there are several.

        Raises:
            RecipeError, WeightsError: The request is not possible.
            Cancelled: The job was cancelled.
        """
        name, values = task_values(read_request(fields), self._catalog)
        self._handlers[name](values, folder, progress)


def image_files(job: Job) -> list[str]:
    """Return the file names of a job's images, without the files written beside them."""
    return [name for name in job.outputs if name.endswith(".png") and name not in EXTRA_FILES]


def task_values(request: PictureRequest, catalog: Catalog) -> tuple[str, dict[str, Any]]:
    """The name and the plain values of the task that a request stands for.

    Raises:
        WeightsError: A LoRA does not exist.
    """
    change = request.change
    loras = [catalog.lora(spec) for spec in request.loras]
    values: dict[str, Any] = {
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "label": request.label,
        "seed": request.seed,
        "count": request.count,
        "start_index": request.first,
        "width": request.width,
        "height": request.height,
        "sampling": dict(request.sampling),
        "lora": [{"file": entry.name, "weight": weight} for entry, weight in loras],
        "controlnet": [
            {"network": spec.name, "image": spec.picture, "weight": spec.weight, "start": spec.start, "stop": spec.stop}
            for spec in request.controls
        ],
    }
    if change is None:
        values |= {"save_trajectory": request.strip, "expand_prompt": None if request.expand else "none"}
    else:
        values |= {"image": change.picture, **change.settings()}
    return "sample" if change is None else change.verb, {key: one for key, one in values.items() if one is not None}


def white_mask(mask: Path, scratch: Path) -> Path:
    """Return a mask that is white in the part to regenerate; a mask with transparency marks that part by it."""
    with mask.open("rb") as file:
        alpha = alpha_channel(file, MAX_PIXELS)
    if alpha is None:
        return mask
    path = scratch / mask.with_suffix(".png").name
    path.write_bytes(png(torch.where(alpha < ALPHA_THRESHOLD, 255, 0).to(torch.uint8)))
    return path
