"""Write captions of images and videos with the native captioner, a transformers model, or a remote endpoint.

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
from unveil.io.video.frame_timing import frame_count
from unveil.model.captioner_folder import CaptionModel
from unveil.nn.decoding import Decoded, NextToken, beam, greedy, sampled
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN
from unveil.prompting.llm_rewrite import first_line
from unveil.prompting.media_scan import MAX_SIDE, resized
from unveil.prompting.openai_client import ChatClient

DecodingMethod = Literal["greedy", "beam", "sampled"]
DECODING_METHODS: tuple[DecodingMethod, ...] = ("greedy", "beam", "sampled")
FRAMES = 16  # maximum frames for the native captioner
GRID_FRAMES = 4  # frames of a video that other models get, side by side
BATCH = 16
_IMAGE_INSTRUCTION = (
    "Describe this image for training a text-to-image model: what is visible, how it looks, where it is, and what "
    "surrounds it. Answer with two or three plain sentences and nothing else."
)
_VIDEO_INSTRUCTION = (
    "These are frames of one video from left to right. Describe the video for training a text-to-video model: what is "
    "visible, how it looks, how it moves, what surrounds it, and what the camera does. Answer with two or three plain "
    "sentences and nothing else."
)


class MediaClip(NamedTuple):
    """A video or an image to caption.

    Attributes:
        pixels: uint8 (C, T, H, W); an image has one frame.
        rate: Frames per second.
        name: Key of the random numbers of sampled captions; empty: the index among all captioned media.
    """

    pixels: Tensor
    rate: float = 8.0
    name: str = ""


class Caption(NamedTuple):
    """A caption.

    Attributes:
        text: The caption.
        confidence: Probability of the whole text under the model that wrote it; None if unknown.
    """

    text: str
    confidence: float | None = None


class CaptionWriter(Protocol):
    """Protocol of captioners.

    Attributes:
        name: Name that is displayed.
        at_once: Preferred batch size.
        rate: Frames per second of the videos that it was trained on; None: unknown.
    """

    name: str
    at_once: int
    rate: float | None

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """Write one caption for each image or video.

        Raises:
            NoAnswer: The captioner gives no caption; the message states the reason.
        """
        ...


class NativeCaptioner:
    """Captioner of the project's own format.

    Args:
        model: Captioner network with its vocabulary.
        name: Name that is displayed.
        how: Decoding method.
        beams: Number of beams of "beam".
        temperature: Temperature of "sampled".
        seed: Seed of "sampled".
        length_power: Length penalty of "beam"; see `nn.decoding.beam`.

    Raises:
        RecipeError: The decoding method does not exist.
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
        self.rate: float | None = model.facts.get("fps")
        self.beams, self.temperature, self.seed, self.length_power = beams, temperature, seed, length_power
        self._captioned = 0

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """Write one caption for each; media of the same size and length form batches."""
        captions: dict[int, Caption] = {}
        ready = [self._prepare(clip) for clip in clips]
        for shape in dict.fromkeys(prepared.pixels.shape for prepared in ready):
            indices = [index for index, prepared in enumerate(ready) if prepared.pixels.shape == shape]
            for start in range(0, len(indices), self.at_once):
                batch = indices[start : start + self.at_once]
                # keyed by name, so that a resumed call samples the same captions as an uninterrupted one
                streams = [
                    stable_hash(clips[index].name) if clips[index].name else self._captioned + index for index in batch
                ]
                decoded = self._decode([ready[index] for index in batch], streams)
                for index, tokens, logp in zip(batch, decoded.tokens, decoded.log_probability.tolist(), strict=True):
                    captions[index] = Caption(self.model.words.decode(tokens), math.exp(logp))
        self._captioned += len(clips)
        return [captions[index] for index in range(len(clips))]

    @torch.no_grad()
    def _decode(self, clips: Sequence[MediaClip], streams: Sequence[int]) -> Decoded:
        network = self.model.network
        device = next(network.parameters()).device
        x = to_unit(torch.stack([clip.pixels for clip in clips])).to(device)
        rate = torch.tensor([clip.rate for clip in clips], dtype=torch.float64)
        reading = _WordDecoder(network.start(x, rate))
        start = torch.full((len(clips), 1), BEGIN, device=device)
        limit = network.config.max_length - 1
        if self.how == "beam":
            power = self.length_power
            return beam(reading, start, end=END, limit=limit, beams=self.beams, length_power=power)
        if self.how == "sampled":
            rng = SampleRNG(self.seed, streams)
            return sampled(reading, start, end=END, limit=limit, streams=rng, temperature=self.temperature)
        return greedy(reading, start, end=END, limit=limit)

    def _prepare(self, clip: MediaClip) -> MediaClip:
        """Select at most FRAMES frames, and resize them towards the captioner's training size.

        A faster video is brought to the captioner's rate by the frames closest in time. If it still has more than
        FRAMES, these are spaced evenly over it. The network gets its own rate, as if the video had been speeded up,
        because it has seen no other. The aspect ratio is kept up to whole patches.

        Raises:
            RecipeError: The number of channels differs from the captioner's.
        """
        config = self.model.network.config
        pixels, rate = clip.pixels, clip.rate
        if pixels.shape[0] == 1 and config.channels == 3:
            pixels = pixels.expand(3, -1, -1, -1)
        if pixels.shape[0] != config.channels:
            raise RecipeError(f"{pixels.shape[0]} channels: this captioner takes {config.channels}")
        if self.rate is not None and rate > self.rate:
            pixels = pixels[:, frames_at(pixels.shape[1], rate, self.rate)]
            rate = self.rate
        count = pixels.shape[1]
        if count > FRAMES:
            chosen = torch.linspace(0, count - 1, FRAMES).round().long()
            pixels, rate = pixels[:, chosen], rate * (FRAMES - 1) / (count - 1)
        side_target = min(self.model.facts.get("size") or pixels.shape[2:])
        scale = side_target / min(pixels.shape[2:])
        size = tuple(max(1, round(side * scale / config.patch)) * config.patch for side in pixels.shape[2:])
        return MediaClip(resized(pixels, size), self.rate or rate)


def frames_at(count: int, rate: float, wanted: float) -> list[int]:
    """Numbers of the frames that are closest in time to those of another rate, of a video of `count` frames."""
    return [round(index * rate / wanted) for index in range(frame_count((count - 1) / rate, wanted))]


class ImageToText:
    """Image-to-text model of transformers in a local folder; a video is given as some frames side by side.

    A model with a chat template gets an instruction; other models get only the image.

    Args:
        folder: Model folder as written by transformers: config.json, safetensors, and the settings of its
            `AutoProcessor`. Code in the folder is not run.
        device: Device of the model.

    Raises:
        WeightsError: The folder contains no such model, or needs code or a pickle to be run.
        RecipeError: Transformers is not installed.
    """

    at_once = 1
    rate: float | None = None

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no config.json; give the folder of an image-to-text model of transformers")
        check_folder(folder)
        transformers: Any = import_extra("transformers", "a captioner from a folder")
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, **options)
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, **options, use_safetensors=True
            )
        except Exception as problem:  # a library that reads any model may raise anything for a damaged folder
            raise WeightsError(
                f"{folder}: cannot be opened as an image-to-text model ({first_line(problem)})"
            ) from problem
        self._model, self.name = model.to(device).eval(), folder.name

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """Write the most likely caption of each.

        Raises:
            NoAnswer: The model writes nothing, or fails.
        """
        return [self._caption(clip) for clip in clips]

    def _caption(self, clip: MediaClip) -> Caption:
        try:
            text = self._text(clip)
        except Exception as problem:  # a third-party model may raise anything; the error belongs to this image
            raise NoAnswer(f"{self.name}: the model fails ({first_line(problem)})") from problem
        if not text:
            raise NoAnswer(f"{self.name}: the model writes nothing")
        return Caption(text)

    def _text(self, clip: MediaClip) -> str:
        from PIL import Image

        arguments: dict[str, Any] = {
            "images": Image.fromarray(_frame_row(clip).permute(1, 2, 0).numpy()),
            "return_tensors": "pt",
        }
        has_chat = bool(getattr(self._processor, "chat_template", None))
        if has_chat:  # a chat model needs an instruction, and its answer follows the prompt
            message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _instruction(clip)}]}
            arguments["text"] = self._processor.apply_chat_template([message], add_generation_prompt=True)
        inputs: Any = self._processor(**arguments).to(self._model.device)
        with torch.no_grad():
            tokens = self._model.generate(**inputs, max_new_tokens=128, do_sample=False)
        answer = tokens[:, inputs["input_ids"].shape[1] :] if has_chat else tokens
        return self._processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


class VisionEndpoint(ChatClient):
    """Vision model at an OpenAI-compatible endpoint; a video is given as some frames side by side."""

    at_once = 1
    rate: float | None = None

    def __call__(self, clips: Sequence[MediaClip]) -> list[Caption]:
        """Write one caption for each.

        Raises:
            NoAnswer: As `answer`.
        """
        return [Caption(" ".join(self.answer(self._messages(clip)).split())) for clip in clips]

    def _messages(self, clip: MediaClip) -> list[dict[str, Any]]:
        url = "data:image/png;base64," + base64.b64encode(png(_frame_row(clip))).decode()
        content = [{"type": "text", "text": _instruction(clip)}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": content}]


class _WordDecoder:
    """Decoding state of a captioner, restricted to words and the end token."""

    def __init__(self, reading: NextToken) -> None:
        self._reading = reading
        self.select = reading.select

    def next(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token."""
        logits = self._reading.next(tokens).clone()
        logits[:, [PADDING, BEGIN, UNKNOWN]] = -torch.inf
        return logits


def _instruction(clip: MediaClip) -> str:
    return _IMAGE_INSTRUCTION if clip.pixels.shape[1] == 1 else _VIDEO_INSTRUCTION


def batched(clips: Iterator[MediaClip], count: int) -> Iterator[list[MediaClip]]:
    """Yield the media in lists of `count`."""
    batch: list[MediaClip] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def _frame_row(clip: MediaClip) -> Tensor:
    """Return one image, uint8 (3, H, W); of a video, up to GRID_FRAMES frames side by side."""
    pixels = clip.pixels.expand(3, -1, -1, -1) if clip.pixels.shape[0] == 1 else clip.pixels
    scale = min(1.0, MAX_SIDE / max(pixels.shape[2:]))
    if scale < 1:
        pixels = resized(pixels, tuple(max(1, round(side * scale)) for side in pixels.shape[2:]))
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    chosen = torch.linspace(0, pixels.shape[1] - 1, min(GRID_FRAMES, pixels.shape[1])).round().long()
    return make_grid(pixels[:, chosen].transpose(0, 1), columns=len(chosen))
