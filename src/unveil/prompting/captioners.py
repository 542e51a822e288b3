"""Captions of pictures and clips: by our own captioner, by a model of transformers, or by one behind an address.

Source: Betker et al. 2023, "Improving image generation with better captions", section 2; Brooks et al. 2024.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.checkpoints.text_encoder_loader import check_folder
from unveil.core.rng import SampleRNG
from unveil.data.tensor_dataset import rank
from unveil.io.images import png, sheet, to_unit
from unveil.io.optional_deps import extra
from unveil.model.captioner_folder import CaptionModel
from unveil.nn.decoding import Decoded, NextToken, beam, greedy, sampled
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN
from unveil.prompting.llm_rewrite import first_line
from unveil.prompting.media_scan import LONGEST, resized
from unveil.prompting.openai_client import Client
from unveil.types import NoAnswer, RecipeError, WeightsError, did_you_mean

How = Literal["greedy", "beam", "sampled"]
HOWS: tuple[How, ...] = ("greedy", "beam", "sampled")
FRAMES = 16  # that our own captioner looks at
SHOWN = 4  # frames that other models are shown of a clip, side by side
BATCH = 16
_ASKED = (
    "Describe this picture for training a model that makes pictures from words: what is to be seen, how it looks, "
    "where it is, what is around it. Two or three plain sentences, and nothing else."
)
_ASKED_CLIP = (
    "These are frames of one clip from left to right. Describe the clip for training a model that makes clips from "
    "words: what is to be seen, how it looks, how it moves, what is around it, what the camera does. Two or three "
    "plain sentences, and nothing else."
)


class Reel(NamedTuple):
    """A clip or a picture to tell: uint8 (C, T, H, W), and its frames a second.

    name: what it is told apart by where words are drawn by chance; empty: by its place among all that are told.
    """

    pixels: Tensor
    rate: float = 8.0
    name: str = ""


class Told(NamedTuple):
    """A caption; confidence is the probability that its writer gives to the whole text, None where it does not say."""

    text: str
    confidence: float | None = None


class Teller(Protocol):
    """What writes captions.

    name: for people. at_once: how many it tells together at best.
    """

    name: str
    at_once: int

    def __call__(self, reels: Sequence[Reel]) -> list[Told]:
        """A caption for each.

        Raises:
            NoAnswer: it gives none; says why.
        """
        ...


class Own:
    """Our captioner.

    Args:
        model: the captioner.
        how: its likeliest word at each place, the best of several beams, or drawn by chance.
        beams: of "beam". temperature: of "sampled"; below 1 the likely grows likelier. seed: of what is drawn.
        length_power: of "beam"; see `nn.decoding.beam`.

    Raises:
        RecipeError: another way.
    """

    at_once = BATCH

    def __init__(
        self,
        model: CaptionModel,
        name: str = "captioner",
        *,
        how: How = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
        seed: int = 0,
        length_power: float = 0.6,
    ) -> None:
        if how not in HOWS:
            raise RecipeError(f"how {how!r}: must be one of {', '.join(HOWS)}{did_you_mean(how, HOWS)}")
        self.model, self.name, self.how = model, name, how
        self.beams, self.temperature, self.seed, self.length_power = beams, temperature, seed, length_power
        self._told = 0

    def __call__(self, reels: Sequence[Reel]) -> list[Told]:
        """A caption for each; those of one size and length are told together."""
        found: dict[int, Told] = {}
        ready = [self._prepared(reel) for reel in reels]
        for shape in dict.fromkeys(one.pixels.shape for one in ready):
            places = [place for place, one in enumerate(ready) if one.pixels.shape == shape]
            for start in range(0, len(places), self.at_once):
                part = places[start : start + self.at_once]
                # by name, so that a call that goes on draws what one that was never interrupted draws
                numbers = [rank(reels[place].name) if reels[place].name else self._told + place for place in part]
                decoded = self._decoded([ready[place] for place in part], numbers)
                for place, tokens, logp in zip(part, decoded.tokens, decoded.log_probability.tolist(), strict=True):
                    found[place] = Told(self.model.words.decode(tokens), math.exp(logp))
        self._told += len(reels)
        return [found[place] for place in range(len(reels))]

    @torch.no_grad()
    def _decoded(self, reels: Sequence[Reel], numbers: Sequence[int]) -> Decoded:
        network = self.model.network
        device = next(network.parameters()).device
        x = to_unit(torch.stack([reel.pixels for reel in reels])).to(device)
        rate = torch.tensor([reel.rate for reel in reels], dtype=torch.float64)
        reading = _Words(network.start(x, rate))
        start = torch.full((len(reels), 1), BEGIN, device=device)
        limit = network.config.max_length - 1
        if self.how == "beam":
            power = self.length_power
            return beam(reading, start, end=END, limit=limit, beams=self.beams, length_power=power)
        if self.how == "sampled":
            streams = SampleRNG(self.seed, numbers)
            return sampled(reading, start, end=END, limit=limit, streams=streams, temperature=self.temperature)
        return greedy(reading, start, end=END, limit=limit)

    def _prepared(self, reel: Reel) -> Reel:
        """At most FRAMES frames, evenly spread, in the size that the captioner knows best, as far as the aspect allows.

        Raises:
            RecipeError: other channels than the captioner looks at.
        """
        config = self.model.network.config
        pixels, rate = reel.pixels, reel.rate
        if pixels.shape[0] == 1 and config.channels == 3:
            pixels = pixels.expand(3, -1, -1, -1)
        if pixels.shape[0] != config.channels:
            raise RecipeError(f"{pixels.shape[0]} channels: this captioner looks at {config.channels}")
        count = pixels.shape[1]
        if count > FRAMES:
            chosen = torch.linspace(0, count - 1, FRAMES).round().long()
            pixels, rate = pixels[:, chosen], rate * (FRAMES - 1) / (count - 1)
        best = min(self.model.facts.get("size") or pixels.shape[2:])
        scale = best / min(pixels.shape[2:])
        size = tuple(max(1, round(side * scale / config.patch)) * config.patch for side in pixels.shape[2:])
        return Reel(resized(pixels, size), rate)


class ImageToText:
    """A model of transformers that tells pictures, from a local folder; of clips it is shown some frames side by side.

    One that talks, which its chat template says, is asked for a caption; others are shown the picture alone.

    Args:
        folder: as transformers writes it: config.json, safetensors, a processor. No code in it is run.
        device: where it runs.

    Raises:
        WeightsError: no such model there, or a folder that wants code or a pickle to be run.
        RecipeError: transformers is not installed.
    """

    at_once = 1

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no config.json; give the folder of an image-to-text model of transformers")
        check_folder(folder)
        transformers: Any = extra("transformers", "a captioner from a folder")
        how = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, **how)
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, **how, use_safetensors=True)
        except Exception as problem:  # whatever a damaged folder makes a library raise that reads every kind
            raise WeightsError(
                f"{folder}: cannot be opened as an image-to-text model ({first_line(problem)})"
            ) from problem
        self._model, self.name = model.to(device).eval(), folder.name

    def __call__(self, reels: Sequence[Reel]) -> list[Told]:
        """The likeliest caption of each.

        Raises:
            NoAnswer: it writes nothing, or fails.
        """
        return [self._one(reel) for reel in reels]

    def _one(self, reel: Reel) -> Told:
        try:
            text = self._text(reel)
        except Exception as problem:  # code of many hands: whatever it raises is of this picture
            raise NoAnswer(f"{self.name}: it fails ({first_line(problem)})") from problem
        if not text:
            raise NoAnswer(f"{self.name}: it writes nothing")
        return Told(text)

    def _text(self, reel: Reel) -> str:
        from PIL import Image

        given: dict[str, Any] = {"images": Image.fromarray(_row(reel).permute(1, 2, 0).numpy()), "return_tensors": "pt"}
        talks = bool(getattr(self._processor, "chat_template", None))
        if talks:  # it tells nothing unless it is asked, and its answer comes after the question
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _asked(reel)}]}
            given["text"] = self._processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs: Any = self._processor(**given).to(self._model.device)
        with torch.no_grad():
            found = self._model.generate(**inputs, max_new_tokens=128, do_sample=False)
        answer = found[:, inputs["input_ids"].shape[1] :] if talks else found
        return self._processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


class Vision(Client):
    """A model behind an address of OpenAI's protocol that is shown pictures; of clips some frames side by side."""

    at_once = 1

    def __call__(self, reels: Sequence[Reel]) -> list[Told]:
        """A caption for each.

        Raises:
            NoAnswer: as `answer`.
        """
        return [Told(" ".join(self.answer(self._messages(reel)).split())) for reel in reels]

    def _messages(self, reel: Reel) -> list[dict[str, Any]]:
        url = "data:image/png;base64," + base64.b64encode(png(_row(reel))).decode()
        content = [{"type": "text", "text": _asked(reel)}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": content}]


class _Words:
    """A captioner in the middle of writing, which writes words and the end alone."""

    def __init__(self, reading: NextToken) -> None:
        self._reading = reading
        self.select = reading.select

    def next(self, tokens: Tensor) -> Tensor:
        """Logits of what follows."""
        logits = self._reading.next(tokens).clone()
        logits[:, [PADDING, BEGIN, UNKNOWN]] = -torch.inf
        return logits


def _asked(reel: Reel) -> str:
    return _ASKED if reel.pixels.shape[1] == 1 else _ASKED_CLIP


def in_parts(reels: Iterator[Reel], count: int) -> Iterator[list[Reel]]:
    """Reels in lists of so many."""
    part: list[Reel] = []
    for reel in reels:
        part.append(reel)
        if len(part) == count:
            yield part
            part = []
    if part:
        yield part


def _row(reel: Reel) -> Tensor:
    """One picture uint8 (3, H, W): of a clip some of its frames side by side."""
    pixels = reel.pixels.expand(3, -1, -1, -1) if reel.pixels.shape[0] == 1 else reel.pixels
    scale = min(1.0, LONGEST / max(pixels.shape[2:]))
    if scale < 1:
        pixels = resized(pixels, tuple(max(1, round(side * scale)) for side in pixels.shape[2:]))
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    chosen = torch.linspace(0, pixels.shape[1] - 1, min(SHOWN, pixels.shape[1])).round().long()
    return sheet(pixels[:, chosen].transpose(0, 1), columns=len(chosen))
