"""Captions of images and videos: by the native captioner, by a model of transformers, or by one behind an address.

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

from unveil.checkpoints.formats.text_encoder import check_folder
from unveil.core.rng import SampleRNG
from unveil.data.tensor_dataset import stable_hash
from unveil.errors import NoAnswer, RecipeError, WeightsError, did_you_mean
from unveil.io.images import make_grid, png, to_unit
from unveil.io.optional_deps import import_extra
from unveil.model.captioner_folder import CaptionModel
from unveil.nn.decoding import Decoded, NextToken, beam, greedy, sampled
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN
from unveil.prompting.llm_rewrite import first_line
from unveil.prompting.media_scan import MAX_SIDE, resized
from unveil.prompting.openai_client import ChatClient

DecodingMethod = Literal["greedy", "beam", "sampled"]
DECODING_METHODS: tuple[DecodingMethod, ...] = ("greedy", "beam", "sampled")
FRAMES = 16  # maximum frames for the native captioner
SHOWN = 4  # frames of a video that other models get, side by side
BATCH = 16
_IMAGE_INSTRUCTION = (
    "Describe this picture for training a model that makes pictures from words: what is to be seen, how it looks, "
    "where it is, what is around it. Two or three plain sentences, and nothing else."
)
_VIDEO_INSTRUCTION = (
    "These are frames of one clip from left to right. Describe the clip for training a model that makes clips from "
    "words: what is to be seen, how it looks, how it moves, what is around it, what the camera does. Two or three "
    "plain sentences, and nothing else."
)


class MediaClip(NamedTuple):
    """A video or an image to caption: uint8 (C, T, H, W), and its frames per second.

    name: key of the random numbers of sampled captions; empty: the index among all captioned media.
    """

    pixels: Tensor
    rate: float = 8.0
    name: str = ""


class Caption(NamedTuple):
    """A caption; confidence is the probability of the whole text under its writer, None if unknown."""

    text: str
    confidence: float | None = None


class CaptionWriter(Protocol):
    """Interface of everything that writes captions.

    name: for people. at_once: preferred batch size.
    """

    name: str
    at_once: int

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """A caption for each.

        Raises:
            NoAnswer: it gives none; says why.
        """
        ...


class NativeCaptioner:
    """A native captioner.

    Args:
        model: the captioner.
        how: Decoding method.
        beams: Number of beams of "beam". temperature: Temperature of "sampled". seed: Seed of "sampled".
        length_power: Length penalty of "beam"; see `nn.decoding.beam`.

    Raises:
        RecipeError: another decoding method.
    """

    at_once = BATCH

    def __init__(
        self,
        model: CaptionModel,
        name: str = "captioner",
        *,
        how: DecodingMethod = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
        seed: int = 0,
        length_power: float = 0.6,
    ) -> None:
        if how not in DECODING_METHODS:
            raise RecipeError(
                f"how {how!r}: must be one of {', '.join(DECODING_METHODS)}{did_you_mean(how, DECODING_METHODS)}"
            )
        self.model, self.name, self.how = model, name, how
        self.beams, self.temperature, self.seed, self.length_power = beams, temperature, seed, length_power
        self._captioned = 0

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """Return a caption for each; media of one size and length are batched."""
        captions: dict[int, Caption] = {}
        ready = [self._prepared(clip) for clip in clips]
        for shape in dict.fromkeys(prepared.pixels.shape for prepared in ready):
            places = [place for place, prepared in enumerate(ready) if prepared.pixels.shape == shape]
            for start in range(0, len(places), self.at_once):
                part = places[start : start + self.at_once]
                # by name, so that a call that goes on draws what one that was never interrupted draws
                numbers = [
                    stable_hash(clips[place].name) if clips[place].name else self._captioned + place for place in part
                ]
                decoded = self._decoded([ready[place] for place in part], numbers)
                for place, tokens, logp in zip(part, decoded.tokens, decoded.log_probability.tolist(), strict=True):
                    captions[place] = Caption(self.model.words.decode(tokens), math.exp(logp))
        self._captioned += len(clips)
        return [captions[place] for place in range(len(clips))]

    @torch.no_grad()
    def _decoded(self, clips: Sequence[MediaClip], numbers: Sequence[int]) -> Decoded:
        network = self.model.network
        device = next(network.parameters()).device
        x = to_unit(torch.stack([clip.pixels for clip in clips])).to(device)
        rate = torch.tensor([clip.rate for clip in clips], dtype=torch.float64)
        reading = _Words(network.start(x, rate))
        start = torch.full((len(clips), 1), BEGIN, device=device)
        limit = network.config.max_length - 1
        if self.how == "beam":
            power = self.length_power
            return beam(reading, start, end=END, limit=limit, beams=self.beams, length_power=power)
        if self.how == "sampled":
            streams = SampleRNG(self.seed, numbers)
            return sampled(reading, start, end=END, limit=limit, streams=streams, temperature=self.temperature)
        return greedy(reading, start, end=END, limit=limit)

    def _prepared(self, clip: MediaClip) -> MediaClip:
        """At most FRAMES frames, evenly spread, in the size that the captioner knows best, as far as the aspect allows.

        Raises:
            RecipeError: other channels than those of the captioner.
        """
        config = self.model.network.config
        pixels, rate = clip.pixels, clip.rate
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
        return MediaClip(resized(pixels, size), rate)


class ImageToText:
    """A model of transformers that captions images, from a local folder; of videos it gets some frames side by side.

    A model with a chat template gets an instruction; others get only the image.

    Args:
        folder: Model folder as written by transformers: config.json, safetensors, settings of its
            `AutoProcessor`. No code in it is run.
        device: Device of the model.

    Raises:
        WeightsError: no such model there, or a folder that wants code or a pickle to be run.
        RecipeError: transformers is not installed.
    """

    at_once = 1

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no config.json; give the folder of an image-to-text model of transformers")
        check_folder(folder)
        transformers: Any = import_extra("transformers", "a captioner from a folder")
        how = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, **how)
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, **how, use_safetensors=True)
        except Exception as problem:  # whatever a damaged folder makes a library raise that reads every kind
            raise WeightsError(
                f"{folder}: cannot be opened as an image-to-text model ({first_line(problem)})"
            ) from problem
        self._model, self.name = model.to(device).eval(), folder.name

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """The likeliest caption of each.

        Raises:
            NoAnswer: it writes nothing, or fails.
        """
        return [self._caption(clip) for clip in clips]

    def _caption(self, clip: MediaClip) -> Caption:
        try:
            text = self._text(clip)
        except Exception as problem:  # code of many hands: whatever it raises is of this image
            raise NoAnswer(f"{self.name}: it fails ({first_line(problem)})") from problem
        if not text:
            raise NoAnswer(f"{self.name}: it writes nothing")
        return Caption(text)

    def _text(self, clip: MediaClip) -> str:
        from PIL import Image

        arguments: dict[str, Any] = {
            "images": Image.fromarray(_row(clip).permute(1, 2, 0).numpy()),
            "return_tensors": "pt",
        }
        talks = bool(getattr(self._processor, "chat_template", None))
        if talks:  # a chat model needs an instruction, and its answer follows it
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _instruction(clip)}]}
            arguments["text"] = self._processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs: Any = self._processor(**arguments).to(self._model.device)
        with torch.no_grad():
            tokens = self._model.generate(**inputs, max_new_tokens=128, do_sample=False)
        answer = tokens[:, inputs["input_ids"].shape[1] :] if talks else tokens
        return self._processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


class VisionEndpoint(ChatClient):
    """A model behind an address of OpenAI's protocol that is shown images; of videos some frames side by side."""

    at_once = 1

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """A caption for each.

        Raises:
            NoAnswer: as `answer`.
        """
        return [Caption(" ".join(self.answer(self._messages(clip)).split())) for clip in clips]

    def _messages(self, clip: MediaClip) -> list[dict[str, Any]]:
        url = "data:image/png;base64," + base64.b64encode(png(_row(clip))).decode()
        content = [{"type": "text", "text": _instruction(clip)}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": content}]


class _Words:
    """Decoding state of a captioner, restricted to words and the end token."""

    def __init__(self, reading: NextToken) -> None:
        self._reading = reading
        self.select = reading.select

    def next(self, tokens: Tensor) -> Tensor:
        """Logits of what follows."""
        logits = self._reading.next(tokens).clone()
        logits[:, [PADDING, BEGIN, UNKNOWN]] = -torch.inf
        return logits


def _instruction(clip: MediaClip) -> str:
    return _IMAGE_INSTRUCTION if clip.pixels.shape[1] == 1 else _VIDEO_INSTRUCTION


def batched(clips: Iterator[MediaClip], count: int) -> Iterator[list[MediaClip]]:
    """Clips in lists of `count`."""
    part: list[MediaClip] = []
    for clip in clips:
        part.append(clip)
        if len(part) == count:
            yield part
            part = []
    if part:
        yield part


def _row(clip: MediaClip) -> Tensor:
    """One image uint8 (3, H, W): of a video some of its frames side by side."""
    pixels = clip.pixels.expand(3, -1, -1, -1) if clip.pixels.shape[0] == 1 else clip.pixels
    scale = min(1.0, MAX_SIDE / max(pixels.shape[2:]))
    if scale < 1:
        pixels = resized(pixels, tuple(max(1, round(side * scale)) for side in pixels.shape[2:]))
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    chosen = torch.linspace(0, pixels.shape[1] - 1, min(SHOWN, pixels.shape[1])).round().long()
    return make_grid(pixels[:, chosen].transpose(0, 1), columns=len(chosen))
