"""Runs a claim and writes its page, its numbers and its pictures."""

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
from unveil.reproduce.claim_page import MARK, index, page
from unveil.reproduce.experiment import FULL, QUICK, Claim, ExperimentContext, ExperimentResults, ProgressConsole
from unveil.reproduce.plot import curves_chart, effects_chart
from unveil.reproduce.registry import all_claims, get_claim
from unveil.reproduce.results_json import Record, record_of, results_of

FOURFOLD = 4  # a run without power is repeated with as many times the seeds


def reproduce(
    name: str,
    *,
    quick: bool = False,
    out: Path | None = None,
    force: bool = False,
    console: ProgressConsole,
    cache: Path | None = None,
) -> Record:
    """Runs the claim of this name and writes NAME.md, NAME.json and its pictures into a folder, with its index.

    Args:
        quick: the form of seconds that proves that the experiment works end to end, and nothing else.
        out: the folder; by default docs/reproductions, or runs/reproductions for the quick form.
        force: write over what an earlier run of this claim left there.
        cache: where trained arms are kept for other claims; by default the package's cache folder.

    Raises:
        RecipeError: an unknown name.
        OutputError: the page is there already and `force` is not set, or the folder cannot be written.
        NonFinite: an arm left the finite numbers.
    """
    claim = get_claim(name)
    out = out or Path("runs/reproductions" if quick else "docs/reproductions")
    cache = cache or cache_folder() / "study"
    for path in (out / f"{name}.md", out / f"{name}.json", *sorted(out.glob(f"{name}.*.png"))):
        refuse_overwrite(path, force)
    _check_index(out, force)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is fastest on one, and CPU seconds mean the same everywhere
    try:
        scale = QUICK if quick else replace(FULL, seeds=claim.seeds)
        record = _run(claim, ExperimentContext(scale, cache, console), console, out)
    finally:
        torch.set_num_threads(threads)
    console.say(f"{name}: {(record.get('fourfold') or record)['verdict']}\n{out / f'{name}.md'}")
    return record


def _run(claim: Claim, bench: ExperimentContext, console: ProgressConsole, out: Path) -> Record:
    """The record of the run, and of a larger one where this one could not have seen the paper's effect."""
    begun = time.process_time()
    findings = claim.run(bench)
    record = record_of(claim, bench, findings, time.process_time() - begun)
    _write(record, findings, out)
    weak = [one for one in findings.comparisons if one.primary and one.paper is not None and not one.is_settled]
    if not weak or bench.scale.quick:
        return record
    console.say(f"not settled: {'; '.join(one.name for one in weak)}. Again with {FOURFOLD} times the seeds")
    smaller, bench.scale = bench.scale, replace(bench.scale, seeds=FOURFOLD * bench.scale.seeds)
    again = claim.run(bench)
    record = record_of(claim, bench, again, time.process_time() - begun) | results_of(findings, smaller)
    record["fourfold"] = results_of(again, bench.scale)
    _write(record, again, out)
    return record


def _write(record: Record, findings: ExperimentResults, out: Path) -> None:
    """Pictures first, the page last: it never shows a picture that is not there."""
    name = record["name"]
    shown = record.get("fourfold") or record
    files = {f"{name}.effects.png": effects_chart(shown["comparisons"])}
    if record["curves"]:
        files[f"{name}.curves.png"] = curves_chart(record["curves"])
    record["plots"] = list(files)
    record["sheets"] = []
    for one in findings.sheets:
        files[f"{name}.{one.name}.png"] = make_grid(one.pixels, one.columns)
        record["sheets"].append({"file": f"{name}.{one.name}.png", "caption": one.caption})
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    for file, content in files.items():
        write_atomically(out / file, content)
    write_atomically(out / f"{name}.json", text)
    write_atomically(out / f"{name}.md", page(record))
    write_atomically(out / "index.md", index(_records(out)))


def _records(out: Path) -> list[Record]:
    """Every record of a folder, in the order of the claims."""
    return [
        json.loads((out / f"{name}.json").read_text("utf-8"))
        for name in all_claims()
        if (out / f"{name}.json").exists()
    ]


def _check_index(out: Path, force: bool) -> None:
    """Refuses, before any work, to write over what is no index, and to make one of records that cannot be read."""
    path = out / "index.md"
    if not force and path.exists() and not path.read_text(errors="replace").startswith(MARK):
        raise OutputError(f"{path}: not an index of claims; choose another folder with --out, or pass --force")
    for name in all_claims():
        if (path := out / f"{name}.json").exists():
            try:
                index([json.loads(path.read_text("utf-8"))])
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                raise RecipeError(f"{path}: no record of a claim; move it away, or choose another folder") from problem
