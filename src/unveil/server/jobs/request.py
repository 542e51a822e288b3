"""What every request for pictures and clips says, and its limits."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from unveil.cli.options import PLAYGROUND
from unveil.model.config import SampleConfig, validate
from unveil.model.config.base import Section
from unveil.model.migration import migrate_settings
from unveil.server.jobs.uploads import NAME
from unveil.types import RecipeError, did_you_mean, is_valid_utf8

SEEDS = 2**63 - 1
LONGEST = 10_000  # letters of a prompt
SIDE = 16_384  # px


def _plain(text: str) -> str:
    """Refuses what no file and no database can hold."""
    if "\0" in text or not is_valid_utf8(text):
        raise ValueError("holds a sign that is no letter: NUL, or half of a surrogate pair")
    return text


Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_plain)]
Text = Annotated[str, Field(max_length=LONGEST), AfterValidator(_plain)]
Sent = Annotated[str, Field(pattern=rf"^{NAME}$")]  # a file of `inputs`
Side = Annotated[int, Field(ge=1, le=SIDE)]
Any_ = TypeVar("Any_", bound="Asked")


def any_seed() -> int:
    """A seed for who named none, short enough to be typed again."""
    return secrets.randbelow(2**32)


class Asked(Section):
    """What pictures and clips have alike.

    Attributes:
        model: a name in the models folder, of a shipped model, or of a run of this server.
        prompt: what is to be seen, for models that take words.
        negative: what is not.
        seed: of the set; each sample has its own stream.
        width, height: in pixels; none: the model's own.
        sampling: changes of the model's own settings, by the names of `SampleConfig.flat`, such as steps and
            guidance_scale.
        expand: whether a short prompt is made dense before a model is told it that reads dense ones.
    """

    model: Name = PLAYGROUND
    prompt: Text | None = None
    negative: Text | None = None
    seed: Annotated[int, Field(ge=0, le=SEEDS)] = 0
    width: Side | None = None
    height: Side | None = None
    sampling: dict[Annotated[str, Field(max_length=100)], Any] = Field(default_factory=dict, max_length=50)
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

    @property
    def size_typed(self) -> str | None:
        """The size as commands have it, WIDTHxHEIGHT."""
        return None if self.size is None else f"{self.width}x{self.height}"


def read(kind: type[Any_], given: Mapping[str, Any], allowed: tuple[str, ...] | None = None) -> Any_:
    """A request, checked as far as it can be without its model.

    Args:
        kind: of request.
        given: as it was sent.
        allowed: settings of sampling; None: all that there are.

    Raises:
        RecipeError: each fault with its key, its value and what is allowed.
    """
    if isinstance(settings := given.get("sampling"), Mapping):
        given = {**given, "sampling": migrate_settings(settings)}  # a job that waited may have former names
    request = validate(kind, given, "request")
    names = allowed or SampleConfig.names()
    for name in request.sampling:
        if name not in names:
            raise RecipeError(
                f"request: sampling.{name}: unknown key{did_you_mean(name, names)}; allowed: {', '.join(names)}"
            )
    SampleConfig().changed(request.sampling)
    _ = request.size
    return request
