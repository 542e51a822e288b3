"""Scalar conditions besides the text: the size of an image, the guidance scale of distilled models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError
from unveil.types import Condition


class ScalarCondition(nn.Module):
    """Numbers at the end of a network's vector; the defaults are the most frequent values of its training.

    Guidance compares two conditions with the same numbers, so there is no "none".

    Args:
        defaults: Numbers that are used if none are given.
        offset: Number of values before them in the vector; they are zero, and other conditions fill them.
        key: Key of the item that contains them.
    """

    drop = 0.0
    stays = True

    def __init__(self, defaults: Sequence[float], offset: int, *, key: str) -> None:
        super().__init__()
        self.offset, self.key = offset, key
        self.defaults: Tensor
        self.register_buffer("defaults", torch.tensor([float(value) for value in defaults]), persistent=False)

    def encode(self, raw: Tensor | Sequence[Any]) -> Condition:
        """Condition of B samples, each a number, a list of numbers, or text: (B, offset + numbers), with zeros first.

        Raises:
            RecipeError: A value is not numeric, or has the wrong number of numbers.
        """
        rows = torch.tensor([self.numbers(value) for value in raw], device=self.defaults.device)
        return Condition(vector=torch.cat([rows.new_zeros(len(rows), self.offset), rows], dim=1))

    def null(self, batch: int) -> Condition:
        """Condition of the default numbers, `batch` times."""
        return self.encode([self.defaults.tolist()] * batch)

    def numbers(self, value: Any) -> list[float]:
        """Numbers of one sample.

        Raises:
            RecipeError: The value is not numeric, or has the wrong number of numbers.
        """
        several: list[Any] = list(value) if isinstance(value, Sequence | Tensor) else [value]
        if isinstance(value, str):
            several = re.findall(r"[0-9.]+", value)
        try:
            numbers = [float(number) for number in several]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != len(self.defaults):
            raise RecipeError(f"{self.key} = {value!r}: give {self.expected_value()}")
        return numbers

    def expected_value(self) -> str:
        """Description of the values that may be given, for a message."""
        return "a number" if len(self.defaults) == 1 else f"{len(self.defaults)} numbers"


class SizeCondition(ScalarCondition):
    """Sizes that SDXL is conditioned on: an image's original size, its crop offset, and its present size.

    There are six numbers: height and width of the original, top and left of the crop, height and width of the image.
    Two numbers are the original's size, four also the crop; the rest are the defaults. In text the width comes first:
    "1024x768", or with left and top of the crop "1024x768+128+0".

    Args:
        shape: Shape of the images, (C, H, W); by default the original has this size and is not cropped.
        offset: Offset, as in `ScalarCondition`.
        scored: The image's present size is left out, and a zero is in its place, for a `ScoredPrompt` to fill.
        key: Key, as in `ScalarCondition`.

    Source: Podell et al. 2023, section 2.2 (arXiv:2307.01952).
    """

    def __init__(self, shape: Sequence[int], offset: int, *, scored: bool = False, key: str = "size") -> None:
        height, width = shape[-2:]
        super().__init__((height, width, 0, 0, *((0,) if scored else (height, width))), offset, key=key)
        self.scored = scored

    def resized(self, shape: Sequence[int]) -> SizeCondition:
        """Return the condition for images of another shape."""
        return SizeCondition(shape, self.offset, scored=self.scored, key=self.key).to(self.defaults.device)

    def numbers(self, value: Any) -> list[float]:
        """Numbers of one sample, as in `ScalarCondition`; two or four are completed."""
        several = re.findall(r"\d+", value) if isinstance(value, str) else value
        if isinstance(value, str) and len(several) in (2, 4):  # width before height, left before top
            several = [several[place ^ 1] for place in range(len(several))]
        if isinstance(several, Sequence | Tensor) and len(several) in (2, 4):
            several = [*several, *self.defaults.tolist()[len(several) :]]
        return super().numbers(several)

    def expected_value(self) -> str:
        """Description of the values that may be given, for a message."""
        return "WIDTHxHEIGHT of the original, WIDTHxHEIGHT+LEFT+TOP of its part, or six numbers"


class ScoredPrompt(nn.Module):
    """A prompt with an aesthetic score as the last number of its vector, and another one for "none": SDXL's refiner.

    A negative prompt gets the score of a prompt.

    Args:
        prompt: Conditioner whose vector ends with a zero.
        score, none: The two scores.

    Source: Podell et al. 2023, section 2.5 (arXiv:2307.01952), with the numbers of its published pipeline.
    """

    def __init__(self, prompt: Any, score: float = 6.0, none: float = 2.5) -> None:
        super().__init__()
        self.prompt, self.key, self.drop, self.scores = prompt, prompt.key, prompt.drop, (score, none)

    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts; errors are those of the conditioner."""
        return self._scored(self.prompt.encode(raw), self.scores[0])

    def null(self, batch: int) -> Condition:
        """Null condition, `batch` times."""
        return self._scored(self.prompt.null(batch), self.scores[1])

    def _scored(self, condition: Condition, score: float) -> Condition:
        assert condition.vector is not None  # as described
        vector = condition.vector.clone()
        vector[:, -1] = score
        return replace(condition, vector=vector)
