"""Jobs that make pictures from words or classes: what may be asked for, and how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from unveil.app.console import Console
from unveil.app.drawing import Place, write
from unveil.app.expanding import USUAL, Expander, Expanding
from unveil.app.options import PLAYGROUND
from unveil.app.wish import PROMPT, Wish, opened
from unveil.config import SampleConfig, validate
from unveil.config.section import Section
from unveil.model import Model
from unveil.pictures import png, sheet
from unveil.service.models import Models
from unveil.service.worker import Report
from unveil.tasks.film import Preview
from unveil.tasks.generate import LABEL, Request, generate
from unveil.types import RecipeError, nearest

PICTURES = "pictures"
MOST = 64  # pictures of a job
BATCH = 16  # of them at a time
SEEDS = 2**63 - 1
PREVIEWS = 8  # of a job, so many at most
_QUIET = Console(quiet=True)


class PictureRequest(Section):
    """What a job of pictures is asked for.

    Attributes:
        model: a name in the models folder, or of a shipped model.
        prompt: what is to be seen, for models that take words.
        negative: what is not.
        label: a class, for models that take one.
        count: pictures.
        seed: of the set; each picture has its own stream.
        width, height: in pixels; none: the model's own.
        sampling: changes of the model's own settings, by the names of `SampleConfig.flat`, such as steps and scale.
        loras: names in the models folder, each with its weight, as NAME or NAME:WEIGHT.
        expand: whether a short prompt is made dense before a model is told it that reads dense ones.
    """

    model: Annotated[str, Field(min_length=1, max_length=300)] = PLAYGROUND
    prompt: Annotated[str, Field(max_length=10_000)] | None = None
    negative: Annotated[str, Field(max_length=10_000)] | None = None
    label: Annotated[str, Field(max_length=300)] | None = None
    count: Annotated[int, Field(ge=1, le=MOST)] = 1
    seed: Annotated[int, Field(ge=0, le=SEEDS)] = 0
    width: Annotated[int, Field(ge=1, le=16_384)] | None = None
    height: Annotated[int, Field(ge=1, le=16_384)] | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    loras: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    expand: bool = True

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, as requests have them.

        Raises:
            RecipeError: one side alone.
        """
        if self.width is None and self.height is None:
            return None
        if self.width is None or self.height is None:
            raise RecipeError("width and height: give both, or neither")
        return self.height, self.width

    def request(self, model: Model) -> Request:
        """The request for a model.

        Raises:
            RecipeError: words or a class for a model that takes none.
        """
        given = self._conditions(model, {PROMPT: self.prompt, LABEL: self.label})
        negative = self._conditions(model, {PROMPT: self.negative})
        batch = min(self.count, BATCH)
        return Request(
            given, self.seed, count=self.count, batch=batch, sampling=self.sampling, negative=negative, size=self.size
        )

    def _conditions(self, model: Model, said: Mapping[str, str | None]) -> dict[str, list[str]]:
        found = {key: [value] for key, value in said.items() if value is not None}
        for key in found:
            if key not in model.conditioners:
                known = ", ".join(model.conditioners) or "nothing"
                raise RecipeError(f"{key}: {self.model} takes none; what it takes: {known}")
        return found


def read_request(given: Mapping[str, Any]) -> PictureRequest:
    """A request, checked as far as it can be without its model.

    Raises:
        RecipeError: each fault with its key, its value and what is allowed.
    """
    request = validate(PictureRequest, given, "request")
    allowed = [*SampleConfig().flat()]
    for name in request.sampling:
        if name not in allowed:
            raise RecipeError(
                f"request: sampling.{name}: unknown key{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
            )
    SampleConfig().changed(request.sampling)
    return request


class Pictures:
    """The work on such a job.

    Args:
        models: that are in memory.
        device: that they compute on.
    """

    def __init__(self, models: Models, device: str) -> None:
        self._models, self._device = models, device

    def __call__(self, given: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Makes the pictures of a request, each a file with its record, and a sheet where there are several.

        Raises:
            RecipeError, WeightsError: it cannot be done.
            Cancelled: it was told to stop.
        """
        asked = read_request(given)
        wish = Wish(asked.model, loras=asked.loras, device=self._device)
        model, source = self._models.get((asked.model, asked.loras), lambda: opened(wish, asked.model, _QUIET))
        report.check()
        expander = Expander(USUAL if asked.expand else Expanding(no_expand=True), model, _QUIET)
        request = expander(asked.request(model))

        def show(pixels: Tensor, done: int, total: int | None) -> None:
            if total is None or done < total:
                report.preview(png(sheet(pixels)))

        steps = model.sampling.changed(asked.sampling).steps
        preview = Preview(show, max(1, steps // PREVIEWS))
        pictures = list(generate(model, request, source, on_step=report.step, preview=preview))
        write(pictures, Place(folder))
