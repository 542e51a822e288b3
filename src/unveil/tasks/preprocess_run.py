"""The work of `tasks.preprocess`: control images made from images, one file or a whole folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.data.image_decoding import DecodeOptions, read_classes, read_image
from unveil.data.preprocessors import segmentation
from unveil.data.preprocessors.registry import PREPROCESSORS
from unveil.errors import DataError, Error, OutputError, RecipeError, did_you_mean
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import png
from unveil.tasks.task import TaskContext, TaskResult

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 24  # of a file of boxes
_ORIGINAL_SIZE = DecodeOptions(None, max_pixels=MAX_PIXELS)
_MAX_LISTED = 10  # failed files in the error message


def preprocess_images(source: Path, kind: str, settings: Mapping[str, Any], context: TaskContext) -> TaskResult:
    """Write the control images of images, each of the size of its image."""
    preprocessor = PREPROCESSORS[kind](**settings)
    return _process_files(source, IMAGE_SUFFIXES, lambda path: preprocessor({"pixels": _read_image(path)}), context)


def color_class_maps(source: Path, context: TaskContext) -> TaskResult:
    """Write class maps in colours."""
    return _process_files(
        source, IMAGE_SUFFIXES, lambda path: segmentation.colours(read_classes(path, MAX_PIXELS)), context
    )


def draw_boxes(source: Path, width: int, height: int, style: str, context: TaskContext) -> TaskResult:
    """Write the boxes of JSON files as rectangles."""
    preprocessor = PREPROCESSORS["boxes"](labels="labels", style=style)
    check_size(width, height)
    blank = torch.zeros(1, height, width, dtype=torch.uint8)
    return _process_files(source, {".json"}, lambda path: preprocessor({"pixels": blank, **_read_boxes(path)}), context)


def resize_control_images(source: Path, width: int, height: int, context: TaskContext) -> TaskResult:
    """Write existing control images at another size."""
    check_size(width, height)
    return _process_files(
        source,
        IMAGE_SUFFIXES,
        lambda path: segmentation.resize_control_image(_read_image(path), height, width),
        context,
    )


def _process_files(
    source: Path, suffixes: Iterable[str], preprocessor: Callable[[Path], Tensor], context: TaskContext
) -> TaskResult:
    """Write the control image of every file; a file that fails does not stop the others and is listed at the end."""
    output = context.output
    pairs = _file_pairs(source, output.path, set(suffixes), force=output.force)
    written: list[dict[str, Any]] = []
    failed: list[Error] = []
    with context.console.progress("control image", len(pairs)) as progress:
        for path, target in pairs:
            try:
                control_image = preprocessor(path)
            except (Error, OSError) as problem:
                message = str(problem) if str(path) in str(problem) else f"{path}: {problem}"
                failed.append(type(problem)(message) if isinstance(problem, Error) else DataError(message))
            else:
                write_atomically(target, png(control_image))
                share = round(float((control_image != 0).any(0).double().mean()), 6)
                size = [control_image.shape[2], control_image.shape[1]]
                written.append({"source": str(path), "hint": str(target), "size": size, "drawn": share})
            progress.advance()
    if len(failed) == 1 and len(pairs) == 1:
        raise failed[0]
    if failed:
        lines = [f"  {problem}" for problem in failed[:_MAX_LISTED]]
        lines += [f"  and {len(failed) - _MAX_LISTED} more"] if len(failed) > _MAX_LISTED else []
        raise DataError(
            "\n".join([f"{len(failed)} of {len(pairs)} could not be processed, {len(written)} were:", *lines])
            + "\nrepair or remove them"
        )
    text = f"{len(written)} control images in {output.path}" if source.is_dir() else str(output.path)
    return TaskResult({"hints": written}, text)


def _file_pairs(source: Path, out: Path, suffixes: set[str], *, force: bool) -> list[tuple[Path, Path]]:
    """Return each input file with its output file, which does not exist unless `force` is set."""
    source, out = source.expanduser(), out.expanduser()
    if not source.exists():
        siblings = [path.name for path in source.parent.iterdir()] if source.parent.is_dir() else []
        raise DataError(f"{source}: no such file or folder{did_you_mean(source.name, siblings)}")
    if source.is_file():
        if out.suffix.lower() != ".png":
            raise RecipeError(f"--out {out}: must end in .png")
        if out.resolve() == source.resolve():
            raise OutputError(f"--out {out}: is the input image itself; choose another name")
        return [(source, refuse_overwrite(out, force))]
    if out.is_file() or out.suffix.lower() == ".png":
        raise RecipeError(f"--out {out}: {source} is a folder, so the control images need a folder too, not a file")
    if out.resolve().is_relative_to(source.resolve()):
        raise RecipeError(
            f"--out {out}: is inside {source}, so that control images would be read as images; choose another"
        )
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not files:
        raise DataError(f"{source}: no {', '.join(sorted(suffixes))} in it; check the path")
    targets: dict[Path, Path] = {}
    for path in files:
        target = (out / path.relative_to(source)).with_suffix(".png")
        if target in targets:
            raise DataError(f"{path} and {targets[target]}: both would be written to {target}; rename one of them")
        targets[target] = path
    return [(path, refuse_overwrite(target, force)) for target, path in targets.items()]


def _read_image(path: Path) -> Tensor:
    real = path.resolve()  # a link that the user names may lead anywhere
    return read_image(real.parent, real.name, _ORIGINAL_SIZE)


def _read_boxes(path: Path) -> dict[str, Tensor | None]:
    """Return the boxes (N, 4) and labels (N,) of a file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        content = json.loads(path.read_text("utf-8"))
        rows = torch.tensor(content["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor(content.get("labels", [0] * len(rows)))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as problem:
        raise DataError(
            f"{path}: not a file of boxes ({problem}); it holds "
            '{"boxes": [[0.5, 0.5, 0.2, 0.4]], "labels": [0]}: centre x, centre y, width, height in [0, 1]'
        ) from problem
    return {"boxes": rows, "labels": labels.long() if not len(rows) else labels}


def check_size(width: int, height: int) -> None:
    """Check the size of a control image.

    Raises:
        RecipeError: A side below 1, or too many pixels.
    """
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise RecipeError(f"--width {width} --height {height}: each at least 1, together at most {MAX_PIXELS:,} pixels")
