"""Output of generated images: progress and previews, image files with their metadata, and metadata read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import DataError, RecipeError
from unveil.generation.generate import PLAIN, GeneratedSample, ModelSource, Preview, Request, TaskSpec, generate
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import EXIF, METADATA_KEY, UNICODE, USER_COMMENT, make_grid, png, to_pixels
from unveil.io.video.containers import FORMATS, HEAD, container_of
from unveil.io.video.reader import VideoReader, given_or_new
from unveil.model import Model
from unveil.model.config.sampling import current_settings
from unveil.model.migration import METADATA_FORMAT, RENAMED_IN_FORMAT, migrate_metadata
from unveil.types import format_size

TRAJECTORY_FRAMES = 9  # of a strip: from the first step of the noise to the image
MAX_STRIPS = 8  # maximum number of samples in a strip
MAX_SHEET_IMAGES = 256  # maximum number of images in the contact sheet of a folder
MAX_PREVIEWS = 8  # maximum number of previews of a run for `on_preview`
MAX_TEXT = 1_000_000  # maximum length of metadata, in characters
PNG_SIGNATURE = b"\x89PNG"
PARAMETERS = "parameters"  # name of the text that image tools show
_OTHER_FORMS = ("jpg", "jpeg", "webp", "bmp", "tif", "tiff", "avif")
NO_METADATA = "{}: has no metadata of its generation (stripped, or written with --no-metadata)"


@dataclass(frozen=True)
class ImageOutput:
    """Output of images: a folder, or one .png file; and the preview of the estimate.

    Attributes:
        out: Folder, or .png file.
        strip: Also write a strip of each sample's trajectory.
        metadata: Write metadata into the files.
        force: Overwrite existing files.
        preview: File of the preview.
        preview_every: Number of steps from one preview to the next.
        on_preview: (PNG, steps done, number of steps or None) -> called with previews in place of the file.
    """

    out: Path
    strip: bool = False
    metadata: bool = True
    force: bool = False
    preview: Path | None = None
    preview_every: int = 5
    on_preview: Callable[[bytes, int, int | None], object] | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ImageOutput:
        """Return the output for a command's options, by their names."""
        names = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names})

    @property
    def one_file(self) -> bool:
        """True if everything is written into a single image."""
        return self.out.suffix.lower() == ".png"

    def check(
        self, names: Sequence[str] = (), alike: bool = True, mark: str = "", existing: AbstractSet[str] = frozenset()
    ) -> None:
        """Refuse existing files before any work.

        Args:
            names: File names in a folder, if known.
            alike: True if the images have one size, so that a contact sheet and a strip are written.
            mark: Prefix of the names of contact sheet and strip in a folder.
            existing: File names of images of this run that are there already; their contact sheet is made again.

        Raises:
            RecipeError: A preview that the image would overwrite, two results of one name, or images of several sizes
                for one file.
            OutputError: A file that would be overwritten.
        """
        if self.preview is not None and self.preview == self.out:
            raise RecipeError(f"--preview {self.preview}: is the output file; choose another name")
        suffix = self.out.suffix.lower().removeprefix(".")
        if suffix in map(str.lower, FORMATS) and not self.out.is_dir():
            raise RecipeError(
                f"--out {self.out}: the name of a video; name a folder or a .png file; `unveil video` writes videos"
            )
        if suffix in _OTHER_FORMS and not self.out.is_dir():
            raise RecipeError(f"--out {self.out}: images are written as PNG; name a folder, or {self.out.stem}.png")
        if self.one_file and not alike:
            raise RecipeError(
                f"--out {self.out}: images of several sizes fit no contact sheet; use a folder, or --size"
            )
        paths = [self.out] if self.one_file else [self.out / name for name in names]
        if names and alike:
            paths += [self.out / f"{mark}sheet.png"] if len(names) > 1 and not self.one_file else []
            paths += [self.strip_path(mark)] if self.strip else []
        if doubled := [path for path, often in Counter(paths).items() if often > 1]:
            raise RecipeError(f"{doubled[0]}: two results would have this name; rename one of the input images")
        there = {self.out / name for name in (*existing, *([f"{mark}sheet.png"] if existing else []))}
        for path in paths + ([self.preview] if self.preview else []):
            refuse_overwrite(path, self.force or path in there)

    def strip_path(self, mark: str = "") -> Path:
        """Return the file of the strip, whose name in a folder begins with `mark`."""
        return self.out.with_suffix(".strip.png") if self.one_file else self.out / f"{mark}strip.png"


@dataclass
class WrittenFiles:
    """The files of a command."""

    images: list[Path] = field(default_factory=list)
    sheet: Path | None = None
    strip: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Return the files for JSON."""
        return {
            "images": [str(path) for path in self.images],
            "sheet": str(self.sheet) if self.sheet else None,
            "strip": str(self.strip) if self.strip else None,
        }

    def text(self) -> str:
        """Return the files as text for a person."""
        lines = [str(self.images[0])] if len(self.images) == 1 else []
        if len(self.images) > 1:
            lines.append(f"{len(self.images)} images: {self.images[0]} ... {self.images[-1].name}")
        return "\n".join([*lines, *(str(path) for path in (self.sheet, self.strip) if path)])


def sample_ids(request: Request) -> list[tuple[int, int]]:
    """Return the seed and the index of each sample of a request."""
    if isinstance(request.seed, int):
        return [(request.seed, request.first + place) for place in range(request.count)]
    return [(seed, request.first) for seed in request.seed]


def filenames(rows: Iterable[tuple[int, int]]) -> list[str]:
    """Return file names for images by their seeds and indices; a repeated name gets a number."""
    names: list[str] = []
    often = Counter[str]()
    for seed, number in rows:
        name = f"seed{seed}_{number:05d}"
        often[name] += 1
        names.append(f"{name}.png" if often[name] == 1 else f"{name}_{often[name]}.png")
    return names


def generate_images(
    model: Model, source: ModelSource, request: Request, output: ImageOutput, console: Console, edit: TaskSpec = PLAIN
) -> Iterator[GeneratedSample]:
    """Yield the samples of a request, with progress, and previews if the output has some.

    A negative prompt without guidance has no effect; a warning says so.
    """
    if request.negative and request.sampling.get("guidance_scale", model.sampling.guidance.scale) == 1:
        console.warn("negative prompts and conditions have no effect without guidance; use --guidance-scale above 1")
    frames = TRAJECTORY_FRAMES if output.strip else 0
    preview = _preview(output, model.sampling.changed(request.sampling).steps)
    with console.progress("step", 0) as progress:
        yield from generate(model, request, source, edit, frames=frames, on_step=progress.reach, preview=preview)


def write_images(
    samples: Iterable[GeneratedSample],
    output: ImageOutput,
    names: Sequence[str],
    columns: int | None = None,
    mark: str = "",
    existing: AbstractSet[str] = frozenset(),
) -> WrittenFiles:
    """Write one file for each sample as it comes, and then a contact sheet; a .png holds the image, or the sheet.

    If the iteration ends early, the files of the samples until then remain.

    Args:
        samples: At least one; a contact sheet and a strip need all of one size. The sheet of a folder shows the first
            256.
        output: Folder or file, and what is written.
        names: File names in a folder.
        columns: Number of columns of the contact sheet.
        mark: Prefix of the names of contact sheet and strip in a folder.
        existing: File names of samples that are in the folder already.

    Raises:
        OutputError: A file exists already, which `ImageOutput.check` reports before the work.
    """
    files: dict[Path, bytes] = {}
    written, count, single = WrittenFiles(), 0, b""
    images: list[Tensor] = []
    trajectories: list[Tensor] = []
    shapes: set[tuple[int, ...]] = set()
    for count, sample in enumerate(samples, 1):
        if output.one_file:
            single = single or png(sample.pixels, _texts(sample, output.metadata))
        else:
            written.images.append(output.out / names[count - 1])
            if names[count - 1] not in existing:
                content = png(sample.pixels, _texts(sample, output.metadata))
                write_files({written.images[-1]: content}, output.force)
        shapes.add(tuple(sample.pixels.shape))
        images += [sample.pixels] if output.one_file or len(images) < MAX_SHEET_IMAGES else []
        trajectories += [to_pixels(sample.trajectory)] if output.strip and len(trajectories) < MAX_STRIPS else []
    if count == 1 and output.one_file:
        files[output.out] = single
        written.images.append(output.out)
    if count > 1 and len(shapes) == 1:
        written.sheet = output.out if output.one_file else output.out / f"{mark}sheet.png"
        files[written.sheet] = png(make_grid(torch.stack(images), columns))
    if trajectories and len(shapes) == 1:
        written.strip = output.strip_path(mark)
        files[written.strip] = png(make_grid(torch.cat(trajectories), columns=len(trajectories[0])))
    write_files(files, output.force or bool(existing))
    return written


def write_files(files: dict[Path, bytes], force: bool) -> None:
    """Write every file, each whole or not at all.

    Raises:
        OutputError: A file exists already; nothing was written.
    """
    for path in files:
        refuse_overwrite(path, force)
    for path, content in files.items():
        write_atomically(path, content)


def _preview(output: ImageOutput, steps: int) -> Preview | None:
    path, on_preview = output.preview, output.on_preview
    if on_preview is not None:
        return Preview(
            lambda pixels, done, total: on_preview(png(make_grid(pixels)), done, total), max(1, steps // MAX_PREVIEWS)
        )
    if path is None:
        return None

    def show(pixels: Tensor, done: int, total: int | None) -> None:
        del done, total
        write_atomically(path, png(make_grid(pixels)))

    return Preview(show, output.preview_every)


def _texts(sample: GeneratedSample, metadata: bool) -> dict[str, str]:
    if not metadata:
        return {}
    facts = sample.facts
    return {
        PARAMETERS: parameters(facts, sample.pixels.shape[1:]),
        METADATA_KEY: json.dumps(facts, ensure_ascii=False),
    }


def read_generation_metadata(path: Path, decoder: VideoReader | None = None) -> dict[str, Any]:
    """Return the generation metadata of an image or a video that this program wrote.

    Args:
        path: The file.
        decoder: Decoder that reads the metadata of a video; None: one that is started for this file.

    Raises:
        DataError: No such file, not an image or a video, or one without our metadata.
    """
    text = _video_text(path, decoder) or _image_text(path)
    if text is None:
        raise DataError(NO_METADATA.format(path))
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}: its metadata are damaged ({problem}); use the file as it was written") from problem
    is_current = facts.get("format") == METADATA_FORMAT and not any(key in text for key in RENAMED_IN_FORMAT)
    return facts if is_current else migrate_metadata(facts)


def _image_text(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG", "GIF", "WEBP"]) as image:
            if image.format == "PNG":
                image.load()  # texts may follow the pixels
                return getattr(image, "text", {}).get(METADATA_KEY)
            comment = image.getexif().get_ifd(EXIF).get(USER_COMMENT, b"")
            if isinstance(comment, bytes) and comment.startswith(UNICODE):
                return comment.removeprefix(UNICODE).decode("utf-16-le")
            return _ours(image.info.get("comment", b"").decode())
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> DataError:
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{path}: no such file; give an image or video that this program wrote")
    return DataError(f"{path}: neither a readable image nor a video ({problem}); give a file that this program wrote")


def _video_text(path: Path, decoder: VideoReader | None) -> str | None:
    """Return the metadata text of a video; None if the file is not a video."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head.startswith(PNG_SIGNATURE) or container_of(head) in (None, "GIF"):
            return None
        with given_or_new(decoder) as decoder:
            text = _ours(decoder.comment(path) or "")
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if text is None:
        raise DataError(NO_METADATA.format(path))
    return text


def _ours(comment: str) -> str | None:
    """Return a comment that can be our metadata; other programs write theirs in the same field."""
    return comment if comment.startswith("{") else None


def parameters(facts: Mapping[str, Any], size: Sequence[int]) -> str:
    """Return the metadata as the text that image tools show under `parameters`."""
    conditions = ", ".join(f"{key} {value}" for key, value in facts.get("given", {}).items())
    shown = {
        "Steps": facts["steps"],
        "Sampler": facts["sampler"],
        "CFG scale": current_settings(facts)["guidance_scale"],
        "Seed": facts["seed"],
        "Sample": facts["sample"],
        "Size": format_size(size),
        "Model hash": str(facts["model"]["sha256"])[:10],
        "Model": facts["model"]["name"],
        "Version": f"unveil {facts['versions']['unveil']}",
    }
    if loras := facts.get("loras"):
        shown["LoRA"] = " ".join(f"{lora['name']} {lora['sha256'][:10]} x {lora['weight']:g}" for lora in loras)
    for number, net in enumerate(facts.get("controls", [])):
        shown[f"ControlNet {number}"] = (
            f"{net['name']} {net['sha256'][:10]} x {net['weight']:g}, {net['start']:g} to {net['stop']:g}, "
            f"of {net['image']} {net['image_sha256'][:10]}"
        )
    return f"{conditions}\n" + ", ".join(f"{key}: {value}" for key, value in shown.items())
