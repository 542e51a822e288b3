"""python -m tests.golden CASE_DIR...: runs recorded cases and prints one line per compared tensor group.

A folder that holds cases below it is walked. Lines: case, name, largest error, tolerance, `ok` or `FAIL`; a kind
that is not known prints `unsupported`. A setting of the case that was never read fails as `unread`. Exits 1 when a line
is FAIL or unsupported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.golden.case import Case, Comparison, Unsupported
from tests.golden.settings import unread

Kinds = dict[str, Callable[[Case], Iterator[Comparison]]]
MODULES = (
    "networks",
    "dit",
    "diffusion",
    "ddim",
    "metrics",
    "solvers",
    "latent_samplers",
    "latent_networks",
    "latent_schedule",
    "k_diffusion",
    "edm_samplers",
    "consistency",
    "score_sde",
    "edm_networks",
    "classifier_guidance",
    "autoencoders",
    "text",
    "stable_diffusion",
    "lora",
)


def kinds() -> Kinds:
    """Every kind that can be run, by name."""
    merged: Kinds = {}
    for module in MODULES:
        if importlib.util.find_spec(f"tests.golden.{module}") is not None:
            merged |= importlib.import_module(f"tests.golden.{module}").KINDS
    return merged


def cases(folder: Path) -> list[Path]:
    """The folder itself where it is a case, else the cases below it, sorted."""
    if (folder / "meta.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.rglob("meta.json"))


def run(folder: Path, known: Kinds) -> Iterator[tuple[str, bool]]:
    """One line per compared group and whether it is good, as the case yields them."""
    case = Case(folder)
    if case.kind not in known:
        yield f"{case.name}  {case.kind}  -  -  unsupported", False
        return
    count = 0
    try:
        for comparison in known[case.kind](case):
            error, tolerance, ok, note = comparison.judge(case.rules)
            word = "ok" if ok else "FAIL" + (f" ({note})" if note else "")
            yield f"{case.name}  {comparison.name}  {error:.3g}  {tolerance:.3g}  {word}", ok
            count += 1
    except Unsupported as reason:
        yield f"{case.name}  {case.kind}  -  -  unsupported ({reason})", False
    except Exception as error:  # a case that breaks must not hide the ones after it
        yield f"{case.name}  {case.kind}  -  -  FAIL ({type(error).__name__}: {error})", False
    else:
        if not count:
            yield f"{case.name}  {case.kind}  -  -  FAIL (nothing was compared)", False
        for setting in unread(case.meta):
            yield f"{case.name}  {setting}  -  -  FAIL (unread)", False


def main(arguments: list[str]) -> int:
    """Exit status: 0 all good, 1 a FAIL or unsupported line, 2 nothing to run."""
    folders = [case for argument in arguments for case in cases(Path(argument))]
    if not folders:
        print("no cases: give folders that hold a meta.json", file=sys.stderr)
        return 2
    known, good = kinds(), True
    for folder in folders:
        for line, ok in run(folder, known):
            print(line, flush=True)
            good = good and ok
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
