"""Set-up of every test: one compute thread, and a cache folder that is not the user's. Reports of a run of tests."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads only wait for each other

import pytest
import torch

torch.set_num_threads(1)
gc.disable()  # until all tests are collected: a third of that time would be searches for garbage that is not there

DURATIONS = Path(__file__).with_name("durations.json")  # seconds of each file of tests, made by --record-durations
LEFT_TO_RELEASES = ("release", "timed")  # markers of what `make test` leaves to `make test-all`
_LEFT = pytest.StashKey[Counter[str]]()
_TOOK = pytest.StashKey[Counter[str]]()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name} from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT], config.stash[_TOOK] = Counter(), Counter()
    config.pluginmanager.register(Reports(config), "unveil-reports")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end; unknown ones as they stand."""
    if DURATIONS.is_file():
        took: dict[str, float] = json.loads(DURATIONS.read_text("utf-8"))
        items.sort(key=lambda item: -took.get(item.nodeid.partition("::")[0], 0.0))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU; torch finds none"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Collect garbage from now on, without the tests and modules of the collection, which never become garbage."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


class Reports:
    """What was left out and why, at the end of a run; and how long each file took."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.left, self.took = config.stash[_LEFT], config.stash[_TOOK]

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = [name for name in LEFT_TO_RELEASES if item.get_closest_marker(name)]
            self.left.update(marks[:1] or ["another choice of markers or names"])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid.partition("::")[0]] += report.duration

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):  # one of several processes: the first one writes the end
            self.config.workeroutput["left"] = dict(self.left)  # type: ignore[attr-defined]
        elif self.config.getoption("--record-durations"):
            took = {name: round(seconds, 1) for name, seconds in sorted(self.took.items())}
            DURATIONS.write_text(json.dumps(took, indent=1) + "\n", "utf-8")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for name, count in getattr(node, "workeroutput", {}).get("left", {}).items():
            self.left[name] = max(self.left[name], count)  # each process has seen all tests

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        reasons: dict[str, Counter[str]] = {}
        for report in terminalreporter.stats.get("skipped", []):
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reasons.setdefault(why.removeprefix("Skipped: "), Counter())[report.nodeid.partition("::")[0]] += 1
        if not reasons and not self.left:
            return
        terminalreporter.section("not tried here, and why")
        for name, count in sorted(self.left.items()):
            terminalreporter.line(f"{count:5d}  {name}" + (": make test-all" if name in LEFT_TO_RELEASES else ""))
        for why, files in sorted(reasons.items()):
            some = ", ".join(sorted(files)[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
            terminalreporter.line(f"{sum(files.values()):5d}  {why} ({some})")
