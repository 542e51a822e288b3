"""Fields that image and video requests share, and their limits."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from unveil.errors import RecipeError, did_you_mean
from unveil.model.config import SampleConfig, validate
from unveil.model.config.sections import Section
from unveil.model.migration import migrate_settings
from unveil.server.jobs.uploads import NAME
from unveil.tasks.fields import PLAYGROUND
from unveil.types import is_valid_utf8

MAX_SEED = 2**63 - 1
MAX_PROMPT_LENGTH = 10_000  # characters
MAX_SIDE = 16_384  # pixels


def _plain(text: str) -> str:
    """Refuse text that cannot be written to files or the database."""
    if "\0" in text or not is_valid_utf8(text):
        raise ValueError("contains an invalid character: NUL, or half of a surrogate pair")
    return text


Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_plain)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_LENGTH), AfterValidator(_plain)]
UploadName = Annotated[str, Field(pattern=rf"^{NAME}$")]  # name of an uploaded file
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
RequestType = TypeVar("RequestType", bound="BaseRequest")


def random_seed() -> int:
    """Draw a random seed, short enough to be typed."""
    return secrets.randbelow(2**32)


class BaseRequest(Section):
    """Fields that image and video requests share.

    Attributes:
        model: Name of a bundled model, of a model in the models folder, or of a run of this server.
        prompt: Text prompt, for text-conditional models.
        negative: Negative prompt.
        seed: Seed of the whole request; each sample has its own random stream.
        width, height: Size in pixels; none: the model's own size.
        sampling: Overrides of the model's sampling settings by the keys of `SampleConfig.flat`, such as steps.
        expand: Expand a short prompt if the model was trained on detailed prompts.
    """

    model: Name = PLAYGROUND
    prompt: Text | None = None
    negative: Text | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    width: Side | None = None
    height: Side | None = None
    sampling: dict[Annotated[str, Field(max_length=100)], Any] = Field(default_factory=dict, max_length=50)
    expand: bool = True

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width.

        Raises:
            RecipeError: Only one of them was given.
        """
        if self.width is None and self.height is None:
            return None
        if self.width is None or self.height is None:
            raise RecipeError("width and height: give both or none")
        return self.height, self.width

    @property
    def size_typed(self) -> str | None:
        """Size in the form of the command line, WIDTHxHEIGHT."""
        return None if self.size is None else f"{self.width}x{self.height}"


def validate_request(
    kind: type[RequestType], fields: Mapping[str, Any], allowed: tuple[str, ...] | None = None
) -> RequestType:
    """Validate a request as far as possible without its model.

    Args:
        kind: Class of the request.
        fields: Fields as received.
        allowed: Allowed sampling settings; None: all settings.

    Raises:
        RecipeError: Names each invalid key, its value and the allowed values.
    """
    if isinstance(settings := fields.get("sampling"), Mapping):
        fields = {**fields, "sampling": migrate_settings(settings)}  # a job that waited may have former names
    request = validate(kind, fields, "request")
    names = allowed or SampleConfig.names()
    for name in request.sampling:
        if name not in names:
            raise RecipeError(
                f"request: sampling.{name}: unknown key{did_you_mean(name, names)}; allowed: {', '.join(names)}"
            )
    SampleConfig().changed(request.sampling)
    _ = request.size
    return request
