"""Writes docs/results/index.md from the reports beside it: `python docs/results_index.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from unveil.evaluate.judges.captioner import CAPTION_METRICS
from unveil.evaluate.judges.video_alignment import VIDEO_METRICS
from unveil.evaluate.report import Report
from unveil.io.files import write_atomically

RESULTS = Path(__file__).parent / "results"
INTRODUCTION = """# Results

Reports of models trained by the shipped recipes, as `unveil evaluate` wrote them: averaged weights, one stated seed, \
nothing filtered. Each page holds its protocol and the hash of it; numbers under different hashes are not compared. \
This page is written by `python docs/results_index.py` from the reports.
"""


def scores(report: Report) -> dict[str, str | float]:
    """What a recipe's `expected.scores` says of a report."""
    found = report.results
    values: dict[str, str | float] = {}
    if read := found.get("read"):
        values["read as their class"] = _percent(read["value"])
    if fid := found.get("fid"):
        values["FID / floor"] = round(fid["ratio"], 2)
    if bits := found.get("bits_per_dim"):
        values["bits/dim"] = round(bits["value"], 2)
    if iou := found.get("iou"):
        values["mean IoU"] = round(iou["value"], 3)
    if psnr := found.get("psnr"):
        values["PSNR"] = f"{psnr['value']:.1f} dB"
        values["PSNR, mean of pictures"] = f"{psnr['per_picture']['value']:.1f} dB"
    enlarged = found.get("enlarged", {})
    if gain := enlarged.get("psnr"):
        values["PSNR above bicubic"] = f"{gain['value']:.2f} dB"
    for key, name in (("ssim", "SSIM above bicubic"), ("perceptual", "perceptual distance below bicubic")):
        if key in enlarged:
            values[name] = round(enlarged[key]["value"], 3)
    for key, name in (("named", "named attributes seen"), ("negative", "fall by a negative prompt")):
        if key in found:
            values[name] = _percent(found[key]["value"])
    for prompts, judged in found.get("clips", {}).items():
        values |= {
            f"{words}, {prompts}": _percent(judged[key]["value"])
            for key, words in VIDEO_METRICS.items()
            if key in judged
        }
    for key, name, digits in (("ssim", "SSIM", 3), ("perceptual", "perceptual distance", 3), ("rfid", "rFID", 2)):
        if key in found:
            values[name] = round(found[key]["value"], digits)
    for key, words in CAPTION_METRICS.items():
        if "captions" in found:
            values[words] = _percent(found["captions"][key]["value"])
    if seen := found.get("things"):
        values["colour, shape and motion seen"] = _percent(seen["together"]["value"])
    if codebook := found.get("codebook"):
        values["codebook used"] = f"{_percent(codebook['used'])} of {codebook['codes']}"
    return values


def card_scores(card: dict[str, Any]) -> dict[str, str | float]:
    """What a recipe's `expected.scores` says of the card of a classifier or of a model of sequences."""
    if "exact" in card:
        ways = card["exact"]
        parts = [part for part in ways["greedy"] if "," not in part and (part != "all" or len(ways["greedy"]) == 1)]
        return {f"exact, {part}": ", ".join(f"{_percent(ways[way][part])} {way}" for way in ways) for part in parts}
    values: dict[str, str | float] = {"read": _percent(card["accuracy"])}
    return values | {
        f"read at {side} pixels": _percent(share) for side, share in card.get("accuracy_by_size", {}).items()
    }


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def cards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of networks that are no diffusion models, as their training wrote them."""
    for path in sorted(RESULTS.glob("*/*.yaml")):
        yield path.stem, yaml.safe_load(path.read_text("utf-8"))


def _held_out() -> Iterator[str]:
    """A table of the cards."""
    heads = ("network", "command", "parameters", "CPU-minutes of training", "of what was held out", "card")
    yield from _head(heads)
    for name, card in cards():
        found = "; ".join(f"{what} {value}" for what, value in card_scores(card).items())
        yield _row(
            f"`{name}`", f"`{card['command']}`", f"{card['parameters']:,}", f"{card['cpu_seconds'] / 60:.1f}",
            found, f"[card]({name}/{name}.yaml)",
        )  # fmt: skip
    for path in sorted(RESULTS.glob("*/vit.json")):
        study, folder = json.loads(path.read_text("utf-8")), path.parent.name
        about = study["about"]
        yield ""
        yield (
            f"Sizes and amounts of data, `{about['command']}` at {about['commit']}: [page]({folder}/vit.html), "
            f"[numbers]({folder}/vit.json)"
        )


def _reports() -> Iterator[tuple[str, Report]]:
    for path in sorted(RESULTS.glob("*/report.json")):
        yield path.parent.name, Report.load(path)


def _table(columns: dict[str, Callable[[str, Report], str]], reports: list[tuple[str, Report]]) -> list[str]:
    return [*_head(columns), *(_row(*(cell(*one) for cell in columns.values())) for one in reports)]


def _head(titles: Iterable[str]) -> tuple[str, str]:
    """The first two lines of a table."""
    titles = tuple(titles)
    return _row(*titles), "|" + " --- |" * len(titles)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _part(
    title: str, columns: dict[str, Callable[[str, Report], str]], reports: list[tuple[str, Report]]
) -> Iterator[str]:
    """A table under its title, where there is a report for it."""
    if reports:
        yield from (*([title, ""] if title else []), *_table(columns, reports), "")


def _commands(_: str, report: Report) -> str:
    training = report.about.get("training", {})
    commands = [training["command"]] if "command" in training else []
    return ", ".join(f"`{one}`" for one in [*commands, report.about["command"]])


def _minutes(_: str, report: Report) -> str:
    minutes = report.about.get("training", {}).get("cpu_minutes")
    return "as shipped" if minutes is None else f"{minutes:.1f}"


def _read(_: str, report: Report) -> str:
    if not (read := report.results.get("read")):
        return "-"
    return f"{read['value']:.1%} of {read['count']:,} ({read['low']:.1%} to {read['high']:.1%})".replace("%", " %")


def _fid(_: str, report: Report) -> str:
    fid = report.results["fid"]
    return f"{fid['value']:.3f} / {fid['floor']['mean']:.3f} = {fid['ratio']:.2f}"


def _bits(_: str, report: Report) -> str:
    bits = report.results.get("bits_per_dim")
    return "-" if bits is None else f"{bits['value']:.2f} ({bits['low']:.2f} to {bits['high']:.2f})"


def _iou(_: str, report: Report) -> str:
    iou = report.results["iou"]
    return (
        f"{iou['value']:.3f} ({iou['low']:.3f} to {iou['high']:.3f}); another picture's truth gives {iou['chance']:.3f}"
    )


def _psnr(_: str, report: Report) -> str:
    psnr = report.results["psnr"]
    return f"{psnr['value']:.2f} dB ({psnr['low']:.2f} to {psnr['high']:.2f}); {psnr['per_picture']['value']:.2f} dB"


def _codes(_: str, report: Report) -> str:
    codebook = report.results.get("codebook")
    return "-" if codebook is None else f"{_percent(codebook['used'])} of {codebook['codes']}"


def _seen(_: str, report: Report) -> str:
    if not (seen := report.results.get("things")):
        return "-"
    parts = ", ".join(f"{key} {_percent(one['value'])}" for key, one in seen.items() if key != "together")
    return f"{_percent(seen['together']['value'])} ({parts}); before it {_percent(seen['together']['real'])}"


def _number(key: str) -> Callable[[str, Report], str]:
    return lambda _, report: f"{report.results[key]['value']:.3f}" if key in report.results else "-"


def _rebuilt() -> dict[str, Callable[[str, Report], str]]:
    """What an autoencoder keeps of held-out images or clips."""
    return {
        "values": lambda _, report: str(report.results["latents"]["values"]),
        "PSNR, pooled; mean of pictures": _psnr,
        "SSIM": _number("ssim"),
        "perceptual distance": _number("perceptual"),
        "rFID": _number("rfid"),
        "codebook used": _codes,
        "colour, shape and motion seen after it": _seen,
    }


def _gain(key: str, unit: str, digits: int) -> Callable[[str, Report], str]:
    """How much better than bicubic ones enlarged images are, by a measure; both means behind it."""

    def cell(_: str, report: Report) -> str:
        if (found := report.results["enlarged"].get(key)) is None:
            return "-"
        value, low, high, model, bicubic = (f"{found[one]:.{digits}f}" for one in _GAIN)
        return f"{value}{unit} ({low} to {high}); {model}, bicubic {bicubic}"

    return cell


_GAIN = ("value", "low", "high", "model", "bicubic")


def _enlarged() -> dict[str, Callable[[str, Report], str]]:
    return {
        "PSNR": _gain("psnr", " dB", 2),
        "SSIM": _gain("ssim", "", 3),
        "perceptual distance": _gain("perceptual", "", 3),
    }


def _share(key: str, *others: str) -> Callable[[str, Report], str]:
    """A share with its interval, by its place in the results, and other shares behind it."""

    def cell(_: str, report: Report) -> str:
        found: Any = reduce(getitem, key.split("."), report.results)
        behind = "".join(f"; {one.replace('_', ' ')} {_percent(found[one])}" for one in others)
        return f"{_percent(found['value'])} ({_percent(found['low'])} to {_percent(found['high'])}){behind}"

    return cell


def _named() -> dict[str, Callable[[str, Report], str]]:
    """What scenes show of what was said."""
    return {
        "named attributes seen": _share("named", "together", "chance", "real_pictures"),
        "what a negative prompt names is seen less often by": _share("negative", "without", "with"),
    }


def _captioned() -> dict[str, Callable[[str, Report], str]]:
    """What captions say of what is to be seen."""
    return {words: _share(f"captions.{key}") for key, words in CAPTION_METRICS.items()}


def _filmed() -> dict[str, Callable[[str, Report], str]]:
    """What clips show of what was asked for, of each list of prompts."""

    def cell(prompts: str) -> Callable[[str, Report], str]:
        def of_list(_: str, report: Report) -> str:
            if (found := report.results["clips"].get(prompts)) is None:
                return "-"
            shares = {words: found[key] for key, words in VIDEO_METRICS.items() if key in found}
            return "; ".join(
                f"{words} {_percent(own['value'])} ({_percent(own['low'])} to {_percent(own['high'])})"
                for words, own in shares.items()
            )

        return of_list

    return {"seen combinations": cell("seen"), "held-out combinations": cell("held-out")}


def _studies() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(RESULTS.glob("*/inverse.json")):
        yield path.parent.name, json.loads(path.read_text("utf-8"))


def _restored(study: dict[str, Any]) -> Iterator[str]:
    """A line of each problem and method that has a bar."""
    for row in study["rows"]:
        if row["bar"] is None:
            continue
        gain, known = row["gain"], {None: "-", True: "bit-equal", False: "changed"}[row["known"]]
        reach = f"{gain['mean']:+.2f} dB ({gain['low']:+.2f} to {gain['high']:+.2f})"
        met = ("yes" if row["whole_interval"] else "by the mean, not by the whole interval") if row["met"] else "no"
        yield _row(
            f"`{study['model']['name']}`", row["problem"], row["method"], reach, f"{row['bar']:g} dB", met,
            f"{row['residual']:.0e}", known,
        )  # fmt: skip


def _inverse() -> Iterator[str]:
    """What `unveil study inverse` found: a table, and its origin."""
    heads = ("model", "problem", "method", "PSNR beyond the baseline", "bar", "met", "residual", "known pixels")
    yield "Inverse problems on held-out pictures, without noise:"
    yield ""
    yield from _head(heads)
    for _, study in _studies():
        yield from _restored(study)
    for name, study in _studies():
        about, count = study["about"], study["settings"]["count"]
        yield ""
        yield (
            f"`{study['model']['name']}`: {count} pictures, `{about['command']}` at {about['commit']}: "
            f"[page]({name}/inverse.html), [numbers]({name}/inverse.json)"
        )


def _clips() -> Iterator[str]:
    """What the studies of models of clips found: each bar with what was reached, and where the rest stands."""
    for kind, head in (
        ("video", "What models of clips do besides clips from text:"),
        ("world", "What models of clips know about the world:"),
    ):
        paths = sorted(RESULTS.glob(f"*/{kind}.json"))
        studies = [(path.parent.name, json.loads(path.read_text("utf-8"))) for path in paths]
        if studies:
            yield from ("", head, "", *_head(("model", "task", "found", "bar", "met")))
        for _, study in studies:
            yield from _bars(study)
        for name, study in studies:
            yield from ("", _origin(name, study, kind))
    for path in sorted(RESULTS.glob("*/text.json")):
        name, study = path.parent.name, json.loads(path.read_text("utf-8"))
        yield from ("", "What is understood, by kind of prompt: " + _origin(name, study, "text"))


def _bars(study: dict[str, Any]) -> Iterator[str]:
    """A line of each measure of a study that has a bar."""
    for task in study["tasks"].values():
        for row in task["rows"]:
            if row["bar"] is not None:
                own, form = row["found"], _in(row["unit"])
                found = f"{form(own['value'])} ({form(own['low'])} to {form(own['high'])})"
                bar, met = f"{row['rule']} {form(row['bar'])}", "yes" if row["met"] else "no"
                yield _row(f"`{study['model']['name']}`", f"{task['title']}: {row['measure']}", found, bar, met)


def _origin(name: str, study: dict[str, Any], kind: str) -> str:
    return (
        f"`{study['model']['name']}`: `{study['about']['command']}` at {study['about']['commit']}: "
        f"[page]({name}/{kind}.html), [numbers]({name}/{kind}.json)"
    )


def _detector() -> Iterator[str]:
    """What `unveil study detector` found."""
    for path in sorted(RESULTS.glob("*/detector.json")):
        record = json.loads(path.read_text("utf-8"))
        plain, after = (record["found"][way] for way in ("plain", "h264"))
        shares = "; ".join(
            f"{key} {_percent(one['value'])}, {_percent(after[key]['value'])}" for key, one in plain.items()
        )
        yield ""
        yield (
            f"What the playground's detector reads of {record['settings']['count']:,} real clips, as drawn and after "
            f"H.264: {shares}. `{record['about']['command']}` at {record['about']['commit']}: "
            f"[page]({path.parent.name}/detector.html), [numbers]({path.parent.name}/detector.json)"
        )


def _stages() -> Iterator[str]:
    """How the bundled models that were trained in stages came to be: the score against what the training took."""
    for path in sorted(RESULTS.glob("*/training.json")):
        told, spent = json.loads(path.read_text("utf-8")), 0.0
        yield f"Stages of `{path.parent.name}`, {told['scored']}:"
        yield ""
        loss = "held-out loss, of its own lengths and times"
        yield from _head(("stage", "steps", "core-minutes so far", loss, *VIDEO_METRICS.values()))
        for number, stage in enumerate(told["stages"], 1):
            spent += stage["wall_minutes"] * stage["processes"]
            loss = f"{stage['held_out_loss'][-1][1]:.4f}" if stage["held_out_loss"] else "-"
            shares = [_percent(stage["score"][key]) if key in stage.get("score", {}) else "-" for key in VIDEO_METRICS]
            yield _row(f"{number}", f"{stage['steps']:,}", f"{spent:.0f}", loss, *shares)
        yield ""
        yield f"The settings of each stage: [numbers]({path.parent.name}/training.json)"
        yield ""


def _in(unit: str) -> Callable[[float], str]:
    """How numbers of a unit are written."""
    return _percent if unit == "%" else lambda value: f"{value:.2f}" + (f" {unit}" if unit else "")


def index() -> str:
    """The page."""
    first: dict[str, Callable[[str, Report], str]] = {
        "model": lambda name, _: f"`{name}`",
        "commands": _commands,
        "at commit": lambda _, report: str(report.about["commit"]),
        "CPU-minutes of training": _minutes,
    }
    last: dict[str, Callable[[str, Report], str]] = {
        "protocol": lambda _, report: report.protocol_sha256[:12],
        "report": lambda name, _: f"[page]({name}/report.html), [numbers]({name}/report.json)",
    }
    reports = list(_reports())

    def part(title: str, key: str, columns: dict[str, Callable[[str, Report], str]]) -> Iterator[str]:
        yield from _part(title, {**first, **columns, **last}, [one for one in reports if key in one[1].results])

    lines = [
        INTRODUCTION,
        *part("", "fid", {"read as their class": _read, "FID / floor": _fid, "bits/dim, bound": _bits}),
        *part("States given pictures, on held-out scenes:", "iou", {"mean IoU": _iou}),
        *part("Autoencoders, on held-out pictures and clips:", "psnr", _rebuilt()),
        *part("Enlargements, picture for picture against bicubic ones:", "enlarged", _enlarged()),
        *part("Scenes from words:", "named", _named()),
        *part("The playground from words, clips and pictures that are as asked:", "clips", _filmed()),
        *part("Captions of held-out clips of the playground, read back:", "captions", _captioned()),
        *_stages(),
        "Classifiers and models of sequences:",
        "",
        *_held_out(),
        "",
        *_inverse(),
        *_clips(),
        *_detector(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(write_atomically(RESULTS / "index.md", index()))
