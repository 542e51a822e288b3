"""The shared timing harness: a fresh process per case, peers in turn, several rounds, medians and ratios.

A benchmark is a script that names its cases and calls `main`:

    import harness

    def ours() -> dict[str, float]:
        model = ...                                   # set-up is not timed
        return harness.measure(lambda: model(x))      # CPU seconds, wall seconds, peak memory of this process

    if __name__ == "__main__":
        harness.main("forward", {"peer": peer, "ours": ours}, [harness.Ratio("ours", "peer", "ours", at_least=2.0)])

A case may also return a plain float (CPU seconds) or a dictionary of several measures. In a full run each
has its own process with one compute thread, so that its CPU seconds and peak memory are its alone, and the cases
of a round follow one another, so that a busy machine hits all alike. A ratio is the median over the rounds of the ratio
within a round.

    python benchmarks/NAME.py                full: writes benchmarks/results/NAME.json
    python benchmarks/NAME.py --short        one quick round: fails when a ratio lost half of what was recorded, there
                                             and in the median over two rounds more; where no memory is compared,
                                             the cases share a process
    options: --rounds N, --json (print the record), --threads N, --only CASE (in this process; may repeat)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Names in records made before they were renamed.
FORMER_NAMES = {"as shipped": "default settings", "picture": "image", '"processor"': '"cpu"'}
SHORT = "UNVEIL_BENCH_SHORT"  # set for the case's process by --short
DOUBT = 2  # rounds that a short run adds when it found something lost: one alone may have been disturbed
Case = Callable[[], "float | dict[str, float]"]


@dataclass(frozen=True)
class Ratio:
    """A quotient of two cases and what it must be: at least (a speed-up) or at most (an overhead)."""

    name: str
    top: str
    bottom: str
    measure: str = "cpu_s"
    at_least: float | None = None
    at_most: float | None = None
    goal: float | None = None
    bf16: bool = False  # judged only where this CPU is faster in bf16 than in float32

    def holds(self, value: float, slack: float = 1.0) -> bool:
        """Whether the bar is met; `slack` 2 forgives a factor of 2."""
        low, high = self.at_least, self.at_most
        return (low is None or value >= low / slack) and (high is None or value <= high * slack)


def measure(work: Callable[[], object], *, repeats: int = 8, warmup: int = 2) -> dict[str, float]:
    """Medians over `repeats` calls of `work`, in seconds of CPU (all threads) and of wall time, and the peak memory.

    In a short run there are at most 2 repeats and 1 warm-up.
    """
    if short():
        repeats, warmup = min(repeats, 2), min(warmup, 1)
    for _ in range(warmup):
        work()
    cpu, wall = [], []
    for _ in range(repeats):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall), "peak_mb": peak_mb()}


def measure_step(loss: Callable[[], Any], optimiser: Any, average: Callable[[], object]) -> dict[str, float]:
    """The same of a whole step of training: loss, backward, optimiser, averaged weights."""

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()
        average()

    return measure(step, repeats=8, warmup=2)


def measure_load(load: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of loading a module, and the peak of memory in MB above what the imports hold.

    `loaded_mb` is the peak until it is loaded, `above_mb` until every one of its weights was touched as well.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, begun = resident_mb(), time.process_time()
    module = load()
    seconds, loaded = time.process_time() - begun, peak_mb() - before
    for parameter in module.parameters():
        parameter.sum()
    return {"cpu_s": seconds, "loaded_mb": loaded, "above_mb": peak_mb() - before}


def short() -> bool:
    """Whether this is a short run."""
    return os.environ.get(SHORT) == "1"


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (2**20); 0 where the system does not tell."""
    return _memory("VmHWM")


def resident_mb() -> float:
    """Resident memory of this process now, in MB (2**20); 0 where the system does not tell."""
    return _memory("VmRSS")


def _memory(which: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(which)), 0.0)


def main(name: str, cases: Mapping[str, Case], ratios: Sequence[Ratio] = (), *, rounds: int = 3) -> None:
    """Runs the script's command line; exits 1 when a bar is missed (--short: by a factor of 2 of the record).

    A ratio of bf16 is measured and not judged on a CPU where `precision: auto` means float32.
    """
    parser = argparse.ArgumentParser(description=f"benchmark {name}: {', '.join(cases)}")
    parser.add_argument("--rounds", type=int, default=None, help=f"rounds over all cases ({rounds})")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of a case (1)")
    parser.add_argument("--short", action="store_true", help="one quick round, compared with the record")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--only", choices=list(cases), action="append", help="run a case in this process; may repeat")
    arguments = parser.parse_args()
    for case in arguments.only or ():
        result = cases[case]()
        print("MEASURED " + json.dumps(result if isinstance(result, dict) else {"cpu_s": result}), flush=True)
    if arguments.only:
        return
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
    environment |= {SHORT: "1" if arguments.short else "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, and so must ours

    # What a peer imports takes longer than a short case; where no memory is compared, one process imports it once.
    together = arguments.short and not any(ratio.measure.endswith("_mb") for ratio in ratios)
    groups = [list(cases)] if together else [[case] for case in cases]

    def take(count: int) -> list[dict[str, dict[str, float]]]:
        return [{case: costs for group in groups for case, costs in _run(group, environment)} for _ in range(count)]

    turns = take(arguments.rounds or (1 if arguments.short else rounds))
    record = _record(name, turns, ratios, threads=arguments.threads)
    judged = [ratio for ratio in ratios if record["ratios"][ratio.name].get("judged", True)]
    if arguments.short and _lost(name, record, judged):
        record = _record(name, turns + take(DOUBT), ratios, threads=arguments.threads)
    print(json.dumps(record, indent=1) if arguments.json else _table(record))
    if not arguments.short:
        RESULTS.mkdir(exist_ok=True)
        part = RESULTS / f"{name}.json.part"
        part.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(part, RESULTS / f"{name}.json")
    below = [ratio.name for ratio in judged if not record["ratios"][ratio.name]["ok"]]
    missed = _lost(name, record, judged) if arguments.short else below
    if missed:
        sys.exit(f"{name}: missed {', '.join(missed)}")


def _run(cases: Sequence[str], environment: Mapping[str, str]) -> Iterable[tuple[str, dict[str, float]]]:
    """What each case measures, one after the other in a process of their own."""
    command = [sys.executable, sys.argv[0], *(word for case in cases for word in ("--only", case))]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if done.returncode or len(lines) != len(cases):
        sys.exit(f"case {cases[min(len(lines), len(cases) - 1)]!r} failed:\n{done.stderr.strip()}")
    return zip(cases, (json.loads(line.removeprefix("MEASURED ")) for line in lines), strict=True)


def _record(name: str, turns: list[dict[str, dict[str, float]]], ratios: Sequence[Ratio], *, threads: int) -> dict:
    medians = {
        case: {key: statistics.median(turn[case][key] for turn in turns) for key in first}
        for case, first in turns[0].items()
    }
    results = {}
    for ratio in ratios:
        each = [turn[ratio.top][ratio.measure] / turn[ratio.bottom][ratio.measure] for turn in turns]
        value = statistics.median(each)
        bar = {"at_least": ratio.at_least, "at_most": ratio.at_most, "goal": ratio.goal}
        stated = {key: number for key, number in bar.items() if number is not None}
        results[ratio.name] = {"value": value, "rounds": each, **stated, "ok": ratio.holds(value)}
        if ratio.bf16 and not _gains_by_bf16():
            results[ratio.name]["judged"] = False
    return {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # as a user types it, wherever the checkout lies
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": _machine(threads),
        "rounds": len(turns),
        "cases": medians,
        "ratios": results,
    }


@cache
def _gains_by_bf16() -> bool:
    """Whether training with `precision: auto` uses bf16 on this CPU; by a process with one compute thread."""
    import torch

    from unveil.train.precision import multiplies_bf16

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return multiplies_bf16(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


def _machine(threads: int) -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = about.get("flags", "").split()
    return {
        "cpu": about.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def recorded(name: str) -> dict[str, Any] | None:
    """Return the record of a benchmark in today's names; None if there is no record."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    text = path.read_text()
    for former, current in FORMER_NAMES.items():
        text = text.replace(former, current)
    return json.loads(text)


def _lost(name: str, record: dict, ratios: Sequence[Ratio]) -> list[str]:
    """Names of the ratios that fell to half of the recorded gain (or rose to twice a recorded overhead)."""
    before_by_name = (recorded(name) or {"ratios": {}})["ratios"]
    lost = []
    for ratio in ratios:
        value, before = record["ratios"][ratio.name]["value"], before_by_name.get(ratio.name, {}).get("value")
        if before is None:
            holds = ratio.holds(value, slack=2.0)
        else:
            holds = value <= before * 2 if ratio.at_most is not None else value >= before / 2
        lost += [] if holds else [ratio.name]
    return lost


def _table(record: dict) -> str:
    lines = [f"{record['name']}: {record['rounds']} rounds, {record['machine']['threads']} thread(s)"]
    for case, measures in record["cases"].items():
        lines.append(f"  {case:28s} " + "  ".join(f"{key} {value:.4g}" for key, value in measures.items()))
    for name, ratio in record["ratios"].items():
        bars = "  ".join(f"{key} {ratio[key]:g}" for key in ("at_least", "at_most", "goal") if key in ratio)
        judgement = "ok" if ratio["ok"] else "MISSED"
        if not ratio.get("judged", True):
            judgement = "not judged: this CPU gains nothing by bf16"
        lines.append(f"  {name:28s} {ratio['value']:.3g}x  {bars}  {judgement}")
    return "\n".join(lines)
