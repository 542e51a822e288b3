"""What the code before the renames gives on this processor; see README.md.

It runs at commit be3b907 only: `python -m tests.former.make_record FOLDER`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from tests.former import numbers
from tests.former.command import FILES, run_end, unveil
from tests.former.environment import key, key_digest
from tests.former.make_reports import DIGITS
from tests.former.outputs import tensors, texts
from tests.former.pixels import pixels_sha256
from unveil.evaluate import Report, compare

STOPPED = ("stopped", "stopped-captioner")


def make_record(folder: Path) -> None:
    """Writes all numbers into a folder named after the environment, within `folder`."""
    target = folder / key_digest(key())
    target.mkdir(parents=True)
    with TemporaryDirectory() as scratch:
        files = Path(scratch) / "files"
        shutil.copytree(FILES, files)
        save_file(tensors(files), target / "outputs.safetensors")
        record = numbers.everything() | {
            "outputs": texts(files),
            "ends": {name: end_of_a_run(files, name) for name in STOPPED},
            "resumed": {name: end_of_a_stopped_run(files, name) for name in STOPPED},
            "pixels": {entry["file"]: regenerated(files, entry) for entry in entries()},
            "gallery": {str(path.relative_to(files)): from_gallery(files, path) for path in gallery(files)},
            "report": report_values(files),
        }
    written = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    (target / "record.json").write_text(written + "\n")


def entries() -> list[dict[str, Any]]:
    """What the index says of the files that are made again."""
    return [entry for entry in json.loads((FILES / "index.json").read_text()) if entry["regenerates"]]


def gallery(files: Path) -> list[Path]:
    """The images that jobs of a server made."""
    return sorted(files.glob("service/made/*/seed*.png"))


def end_of_a_run(files: Path, name: str) -> dict[str, Any]:
    """Losses and weights of a run that was not stopped."""
    shutil.copy(files / "runs" / name / "recipe.yaml", files / f"{name}.yaml")
    unveil("train", f"{name}.yaml", "--run", f"whole/{name}", "--quiet", folder=files)
    return run_end(files / "whole" / name)


def end_of_a_stopped_run(files: Path, name: str) -> dict[str, Any]:
    """Losses and weights of a run that was stopped on the processor of `files/` and goes on here."""
    unveil("train", f"runs/{name}", "--quiet", folder=files)
    return run_end(files / "runs" / name)


def regenerated(files: Path, entry: dict[str, Any]) -> str:
    """A hash of the pixels of a file that is made again."""
    again = files / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    unveil(*entry["again"], folder=files)
    return pixels_sha256(again / entry["file"].rsplit("/", 1)[1])


def from_gallery(files: Path, path: Path) -> str:
    """A hash of the pixels of a job's image that is made again from its metadata."""
    out = files / "from-gallery" / path.name
    out.parent.mkdir(exist_ok=True)
    unveil("sample", "--like", path.relative_to(files), "--out", out, "--force", folder=files)
    return pixels_sha256(out)


def report_values(files: Path) -> list[float]:
    """The measures of the bundled digits that `compare` lists, in its order."""
    unveil("evaluate", *DIGITS, "--set", "sample.steps=2", "--out", "today", "--quiet", folder=files)
    changes = compare(Report.load(files / "reports" / "two-steps"), Report.load(files / "today"))
    return [change[2] for change in changes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) != 2:
        sys.exit("python -m tests.former.make_record FOLDER")
    make_record(Path(sys.argv[1]))
