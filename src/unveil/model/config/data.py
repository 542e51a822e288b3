"""The data section of a recipe: any kind of data, and for images a control image that is computed from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import unveil.playground  # noqa: F401  enters its kinds of data
from unveil.data import ControlImageConfig, data_kinds
from unveil.data.preprocessors.registry import PREPROCESSORS
from unveil.errors import RecipeError
from unveil.model.config.sections import PartSection, choice, section

if TYPE_CHECKING:  # made at run time, from the dataclasses
    HintSection = PartSection
else:
    HintSection = choice(*(section(kind, part) for kind, part in PREPROCESSORS.items()))


class ImageDataSection(PartSection):
    """Data with images.

    Attributes:
        control_image: Preprocessor that adds a control image, "hint", to every item, such as
            {kind: canny, low: 100, high: 200}.
    """

    control_image: HintSection | None = None

    @model_validator(mode="after")
    def _hint_works(self) -> ImageDataSection:
        try:
            if self.control_image is not None:
                self.control_image.build()
        except RecipeError as problem:
            raise RecipeError(f"control_image: {problem}") from problem
        return self

    def build(self, derived: Mapping[str, Any] | None = None) -> Any:
        """Return the config of the data, with the preprocessor of its control images if there is one."""
        config = super().build(derived)
        return config if self.control_image is None else ControlImageConfig(config, self.control_image.build())


def frame_rate_of(section: PartSection) -> float | None:
    """Frames per second of the videos of a data section; None if it does not state one rate for all of them."""
    rates: float | Sequence[float] | None = getattr(section, "fps", None)
    each = set(rates) if isinstance(rates, Sequence) else {rates}
    only = each.pop() if len(each) == 1 else None
    return None if only is None else float(only)


if TYPE_CHECKING:
    Data = PartSection
else:
    Data = choice(
        *(
            section(name, kind.config, base=ImageDataSection if kind.has_images else PartSection)
            for name, kind in data_kinds().items()
        )
    )
