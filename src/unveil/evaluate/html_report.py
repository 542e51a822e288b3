"""One self-contained HTML page of a report: images and plots are inside it, nothing is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from unveil.evaluate import plots
from unveil.evaluate.html import document, figure, table
from unveil.evaluate.report import VIDEO_METRICS, Report, findings, flatten
from unveil.io.files import refuse_overwrite, write_atomically


def write_report(report: Report, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write report.json and report.html, one self-contained page, into the folder; return the page.

    Raises:
        OutputError: One of them exists and `force` is not set, or the folder cannot be written.
    """
    numbers, shown = Path(folder) / "report.json", Path(folder) / "report.html"
    for path in (numbers, shown):
        refuse_overwrite(path, force)
    rendered = page(report)  # before anything is written
    write_atomically(numbers, report.to_json())
    return write_atomically(shown, rendered)


def page(report: Report) -> str:
    """The whole page."""
    kinds = {
        "psnr": "Rebuilt pictures",
        "enlarged": "Enlarged pictures",
        "clips": "The playground from words",
        "captions": "Captions",
    }
    compared = next((name for key, name in kinds.items() if key in report.results), "Samples")
    title = f"{compared} against real pictures: {report.about.get('data', 'unnamed')}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Protocol <code>{report.protocol_sha256}</code>. Only reports with the same one may be compared.</p>",
        _warning(report),
        _image(report, "samples", "The first samples of each class, nothing chosen."),
        _image(report, "rebuilt", "Held-out pictures, spread evenly, each above what was made of its latents."),
        _image(
            report, "enlarged", "From above: what was given, its bicubic enlargement, the model's, the true picture."
        ),
        _image(report, "negative", "Pairs of the same noise: without a negative prompt (left) and with one (right)."),
        "<h2>Findings</h2>",
        table(("", "95 % interval in brackets", ""), findings(report)),
        *(f'<p class="remark">{escape(name)}: {escape(reason)}.</p>' for name, reason in report.missing.items()),
        *_read(report),
        *_fid(report),
        *_nearest(report),
        *_clips(report),
        *_captions(report),
        _image(report, "held_out", "Held-out pictures, for the eye."),
        "<h2>Protocol</h2>",
        table(("setting", "value"), [_setting(*pair) for pair in flatten(report.protocol).items()]),
        "<h2>About this run</h2>",
        table(("", ""), [_setting(*pair) for pair in flatten(report.about).items()]),
    ]
    return document(title, parts)


def _captions(report: Report) -> Iterable[str]:
    if not (captions := report.results.get("captions")):
        return
    yield "<h2>Told</h2>"
    yield _image(report, "told", "Held-out clips, nothing chosen, a row of frames each.")
    yield table(("told", "a caption of what is true"), [(row["told"], row["truth"]) for row in captions["shown"]])


def _warning(report: Report) -> str:
    if not report.memorised:
        return ""
    near = report.results["nearest"]
    return (
        f'<p class="warning"><strong>Memorised.</strong> The samples lie {near["ratio"]["value"]:.2f} times as far '
        f"from their nearest training pictures as new pictures do, and {near['exact_copies']} are exact copies.</p>"
    )


def _read(report: Report) -> Iterable[str]:
    if not (read := report.results.get("read")):
        return
    yield "<h2>Read as their class</h2>"
    rows = [
        (str(row["name"]), str(row["count"]), f"{row['value']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}")
        for row in read["per_class"]
    ]
    yield figure(plots.class_chart(read["per_class"]), "Share of samples read as the class they were made for.")
    yield table(("class", "samples", "read as it", "95 % interval"), rows)


def _fid(report: Report) -> Iterable[str]:
    if fid := report.results.get("fid"):
        yield "<h2>Frechet distance and its floor</h2>"
        yield figure(
            plots.floor_chart(fid["floor"]["values"], fid["value"]),
            "Real pictures differ from other real pictures too: the floor is what a perfect model would score.",
        )


def _nearest(report: Report) -> Iterable[str]:
    if not (near := report.results.get("nearest")):
        return
    yield '<h2 id="nearest">Nearest training pictures</h2>'
    yield figure(
        plots.nearest_chart(near["histogram"]),
        "A model that copies puts its samples left of the held-out pictures.",
    )
    yield _image(report, "nearest", "The samples nearest to a training picture (left of each pair) beside it (right).")


def _clips(report: Report) -> Iterable[str]:
    """Yield the section of each prompt set: example videos, accuracies by group, and the prompts that were missed."""
    for prompt_set, judged in report.results.get("clips", {}).items():
        yield f"<h2>Prompts: {escape(prompt_set)}</h2>"
        yield _image(
            report, f"clips {prompt_set}", "The first ones, of each motion where there is one; nothing chosen."
        )
        yield _image(report, f"frames {prompt_set}", "Frames of the first clip of each motion, a row of each.")
        measures = {key: words for key, words in VIDEO_METRICS.items() if key in judged}
        for kind in ("register", "motion", "shape"):
            rows = [
                (name, str(shares["count"]), *_filmed(shares, measures))
                for name, shares in judged[f"by_{kind}"].items()
            ]
            yield table((kind, "prompts", *measures.values()), rows) if rows else ""
        beside = [
            (name, "", *(f"{judged[key][row]:.1%}" if row in judged[key] else "" for row in measures))
            for key, name in (
                ("real_clips", "real clips of these prompts"),
                ("chance", "chance: anything in the world"),
            )
        ]
        yield table(("for comparison", "", *measures.values()), beside)
        if judged["missed"]:
            yield _image(report, f"missed {prompt_set}", "The first that do not show all.")
            yield table(
                ("prompt", "number", "read as"),
                [(row["prompt"], str(row["number"]), _said(row["read"])) for row in judged["missed"]],
            )


def _filmed(shares: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [
        f"{share['value']:.1%} ({share['low']:.0%} to {share['high']:.0%})" for share in (shares[key] for key in names)
    ]


def _said(facts: Mapping[str, str | None]) -> str:
    return ", ".join(str(value) for value in facts.values() if value is not None) or "nothing"


def _setting(key: str, value: Any) -> tuple[str, str]:
    return key, value if isinstance(value, str) else json.dumps(value)


def _image(report: Report, name: str, caption: str) -> str:
    return figure(report.images[name], caption) if name in report.images else ""
