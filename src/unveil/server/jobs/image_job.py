"""Image jobs: text-to-image, class-conditional sampling and image editing; their requests and their handler."""

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
from unveil.data.image_decoding import alpha_channel
from unveil.errors import RecipeError
from unveil.generation.generate import generate
from unveil.generation.image_output import FRAMES, ImageOutput, filenames, numbered, write
from unveil.generation.inputs import BESIDE
from unveil.generation.prompt_expansion import USUAL, ExpansionOptions, PromptExpander
from unveil.generation.trajectory import Preview
from unveil.io.images import make_grid, png
from unveil.model.config.base import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job import Job
from unveil.server.jobs.job_console import job_console
from unveil.server.jobs.model_cache import ModelCache
from unveil.server.jobs.request import MAX_SEED, BaseRequest, Name, Text, UploadName, validate_request
from unveil.server.jobs.uploads import MAX_PIXELS, UploadStore
from unveil.server.jobs.worker import JobProgress

PICTURES = "pictures"
MAX_IMAGES = 64  # per job
BATCH_SIZE = 16
ALPHA_THRESHOLD = 128  # mask pixels with a lower alpha count as transparent
REPAINT_JUMPS = (10, 10)  # jump length and number of resamples
PREVIEWS = 8  # maximum number of previews per job
STRIP = BESIDE[1]
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
        """Return the arguments of the task."""
        default_strength = {"img2img": 0.6, "inpaint": 1.0, "upscale": 0.3}
        strength = self.strength if self.strength is not None else default_strength.get(self.verb)
        inpainting = {"feather": self.feather, "method": self.method, "jumps": REPAINT_JUMPS}
        margins = (self.left, self.right, self.top, self.bottom)
        arguments: dict[str, dict[str, Any]] = {
            "img2img": {"strength": strength},
            "inpaint": {"strength": strength, **inpainting},
            "outpaint": {"margins": margins, **inpainting},
            "upscale": {"factor": self.factor, "strength": strength, "overlap": 0.25},
        }
        return arguments[self.verb]


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
    """Handler of image jobs.

    Args:
        models: Cache of loaded models.
        catalog: Names that requests may use.
        inputs: Uploaded files.
        device: Device to compute on.
    """

    def __init__(self, models: ModelCache, catalog: Catalog, inputs: UploadStore, device: str) -> None:
        self._models, self._catalog, self._inputs, self._device = models, catalog, inputs, device

    def __call__(self, fields: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Generate the images of a request: a file with metadata each, and a contact sheet if there are several.

        Raises:
            RecipeError, WeightsError: The request is not possible.
            Cancelled: The job was cancelled.
        """
        request = read_request(fields)
        wish = resolve_request(request, self._catalog, self._inputs, self._device)
        with job_console(progress) as console:
            if request.change is not None:
                self._edit(request, request.change, wish, ImageOutput(folder, preview=progress.preview_file), console)
                return
            assert wish.model is not None
            model, source = self._models.load(wish, wish.model, console)
            progress.check()
            expanding = USUAL if request.expand else ExpansionOptions(no_expand=True)
            expander = PromptExpander(expanding, model, console, shown=bool(wish.controls))
            generation = expander(wish.request(model, request.sampling, request.count))

            def show(pixels: Tensor, done: int, total: int | None) -> None:
                if total is None or done < total:
                    progress.preview(png(make_grid(pixels)))

            steps = model.sampling.changed(request.sampling).steps
            preview = Preview(show, max(1, steps // PREVIEWS))
            frames = FRAMES if request.strip else 0
            images = list(generate(model, generation, source, frames=frames, on_step=progress.step, preview=preview))
            write(images, ImageOutput(folder, strip=request.strip), filenames(numbered(generation)))

    def _edit(
        self, request: PictureRequest, change: EditSpec, wish: GenerationOptions, place: ImageOutput, console: Any
    ) -> None:
        image = self._inputs.path(change.picture)
        with TemporaryDirectory() as scratch:
            mask = None if change.mask is None else white_mask(self._inputs.path(change.mask), Path(scratch))
            job = editing.EditTask(change.verb, image, change.settings(), mask)
            editing.edit(wish, job, request.sampling, place, console, opener=self._models.load)


def image_files(job: Job) -> list[str]:
    """Return the file names of a job's images, without the files written beside them."""
    return [name for name in job.outputs if name.endswith(".png") and name not in BESIDE]


def resolve_request(
    request: PictureRequest, catalog: Catalog, inputs: UploadStore, device: str = "auto"
) -> GenerationOptions:
    """Turn a request into generation options, with names replaced by paths.

    Raises:
        WeightsError: A model, LoRA or ControlNet does not exist.
        MediaError: A file was not uploaded.
    """
    if request.change is not None:
        for name in (request.change.picture, request.change.mask):
            _ = name and inputs.path(name)
    loras = [catalog.lora(spec) for spec in request.loras]
    controls = [
        f"{catalog.controlnet(spec.name).path}={inputs.path(spec.picture)}:{spec.weight:g}:{spec.start:g}-{spec.stop:g}"
        for spec in request.controls
    ]
    return GenerationOptions(
        str(catalog.model(request.model).path),
        labels=() if request.label is None else (request.label,),
        count=request.count,
        seed=request.seed,
        first=request.first,
        batch=min(request.count, BATCH_SIZE),
        device=device,
        given=_prompt(request.prompt),
        negative=_prompt(request.negative),
        size=request.size_typed,
        loras=tuple(f"{lora.path}:{weight:g}" for lora, weight in loras),
        controls=tuple(controls),
    )


def white_mask(mask: Path, scratch: Path) -> Path:
    """Return a mask that is white in the part to regenerate; a mask with transparency marks that part by it."""
    with mask.open("rb") as file:
        alpha = alpha_channel(file, MAX_PIXELS)
    if alpha is None:
        return mask
    path = scratch / mask.with_suffix(".png").name
    path.write_bytes(png(torch.where(alpha < ALPHA_THRESHOLD, 255, 0).to(torch.uint8)))
    return path


def _prompt(text: str | None) -> tuple[str, ...]:
    return () if text is None else (f"{PROMPT}={text}",)
