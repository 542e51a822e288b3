"""Runs of claims: page, JSON record and images."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from unveil.data.cache import cache_folder
from unveil.errors import OutputError, RecipeError
from unveil.evaluate.plots import make_grid
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.reproduce.claim_page import MARK, index, page, plot_curves, plot_effects
from unveil.reproduce.experiment import FULL, QUICK, Claim, ExperimentContext, ExperimentResults, ProgressConsole
from unveil.reproduce.registry import all_claims, get_claim
from unveil.reproduce.results_json import Record, record_of, results_of

FOURFOLD = 4  # factor of the number of seeds in the second run, after a first run without power


def reproduce(
    name: str,
    *,
    quick: bool = False,
    out: Path | None = None,
    force: bool = False,
    console: ProgressConsole,
    cache: Path | None = None,
) -> Record:
    """Run a claim and write NAME.md, NAME.json, its images and the index into a folder.

    Args:
        name: Name of the claim.
        quick: True for the smoke run of seconds, which proves that the experiment works and nothing about the claim.
        out: Output folder; None for docs/reproductions, or runs/reproductions for the smoke run.
        force: Overwrite the files of an earlier run of this claim.
        console: Console for progress.
        cache: Folder of trained variants, which claims share; None for the package's cache folder.

    Raises:
        RecipeError: The name is unknown.
        OutputError: The page exists and `force` is False, or the folder cannot be written.
        NonFinite: A training or a sampler has values that are not finite.
    """
    claim = get_claim(name)
    out = out or Path("runs/reproductions" if quick else "docs/reproductions")
    cache = cache or cache_folder() / "study"
    for path in (out / f"{name}.md", out / f"{name}.json", *sorted(out.glob(f"{name}.*.png"))):
        refuse_overwrite(path, force)
    _check_index(out, force)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fastest for networks of this size, and CPU seconds are comparable
    try:
        scale = QUICK if quick else replace(FULL, seeds=claim.seeds)
        record = _run(claim, ExperimentContext(scale, cache, console), console, out)
    finally:
        torch.set_num_threads(threads)
    verdict = (record.get("fourfold") or record)["verdict"]
    console.say(f"{name}: {'quick run, which does not judge the claim' if quick else verdict}\n{out / f'{name}.md'}")
    return record


def _run(claim: Claim, context: ExperimentContext, console: ProgressConsole, out: Path) -> Record:
    """Return the record of the run, with that of a larger run if this one has too little power."""
    start = time.process_time()
    results = claim.run(context)
    record = record_of(claim, context, results, time.process_time() - start)
    _write(record, results, out)
    unsettled = [
        comparison.name
        for comparison in results.comparisons
        if comparison.primary and comparison.paper is not None and not comparison.is_settled
    ]
    if not unsettled or context.scale.quick:
        return record
    console.say(f"not settled: {'; '.join(unsettled)}. Again with {FOURFOLD} times the seeds")
    first_scale, context.scale = context.scale, replace(context.scale, seeds=FOURFOLD * context.scale.seeds)
    larger = claim.run(context)
    record = record_of(claim, context, larger, time.process_time() - start) | results_of(results, first_scale)
    record["fourfold"] = results_of(larger, context.scale)
    _write(record, larger, out)
    return record


def _write(record: Record, results: ExperimentResults, out: Path) -> None:
    """Write images first and the page last, so that every image of the page exists."""
    name = record["name"]
    final = record.get("fourfold") or record
    files = {f"{name}.effects.png": plot_effects(final["comparisons"])}
    if record["curves"]:
        files[f"{name}.curves.png"] = plot_curves(record["curves"])
    record["plots"] = list(files)
    record["sheets"] = []
    for sheet in results.sheets:
        files[f"{name}.{sheet.name}.png"] = make_grid(sheet.pixels, sheet.columns)
        record["sheets"].append({"file": f"{name}.{sheet.name}.png", "caption": sheet.caption})
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    for file, content in files.items():
        write_atomically(out / file, content)
    write_atomically(out / f"{name}.json", text)
    write_atomically(out / f"{name}.md", page(record))
    write_atomically(out / "index.md", index(_records(out)))


def _records(out: Path) -> list[Record]:
    """Return every record of a folder in the order of the claims."""
    return [
        json.loads((out / f"{name}.json").read_text("utf-8"))
        for name in all_claims()
        if (out / f"{name}.json").exists()
    ]


def _check_index(out: Path, force: bool) -> None:
    """Refuse, before any work, to overwrite a file that is not an index, and to index records that cannot be read."""
    path = out / "index.md"
    if not force and path.exists() and not path.read_text(errors="replace").startswith(MARK):
        raise OutputError(f"{path}: not an index of claims; choose another folder with --out, or pass --force")
    for name in all_claims():
        if (path := out / f"{name}.json").exists():
            try:
                index([json.loads(path.read_text("utf-8"))])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecipeError(f"{path}: not the record of a claim; move it or choose another folder") from error
