"""Pages of the studies of video models, made of their records and animations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unveil.analysis.video_bench import VideoStudy
from unveil.analysis.video_metrics import StudyResult, finding_of
from unveil.errors import RecipeError
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.findings import Figure, Finding
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, bars_table, to_html
from unveil.evaluate.report_page import record_tables
from unveil.model.migration import VIDEO_TASKS

_EDGE = "The model's output stands below its input or reference, and its frames have a coloured edge."


def video_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """The bars, then each task with its numbers and animations."""
    settings = record["settings"]
    scope = f"{settings['count']} videos of each task, of the list of prompts {settings['asked']!r}"
    return _page(f"Video tasks of {record['model']['name']}", scope, study.found, record)


def text_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """Each kind of prompt with its share of correct videos, and animations."""
    scope = f"{record['settings']['count']} prompts of each kind"
    return _page(f"Prompts that {record['model']['name']} follows", scope, study.found, record)


def world_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """The bars, then each law with its numbers and animations."""
    scope = f"{record['settings']['count']} videos of each law"
    return _page(f"Laws of the world that {record['model']['name']} follows", scope, study.found, record)


def _page(title: str, scope: str, results: Mapping[str, StudyResult], record: Mapping[str, Any]) -> str:
    tasks: Mapping[str, Any] = record["tasks"]
    findings = [finding_of(row, task["title"]) for task in tasks.values() for row in task["rows"]]
    blocks: list[Block] = [
        Paragraph(
            f"{scope}, one sample each, nothing filtered; read by the detector on frames before any compression. "
            "In brackets the 95 % interval over videos."
        ),
        *bars_table(findings),
        *_size_comparison(record),
        *_shortfalls(findings),
    ]
    for name, task in tasks.items():
        rows = [_row(finding_of(row)) for row in task["rows"]]
        blocks += [
            Heading(task["title"]),
            Paragraph(task["method"]),
            Table(("", "value", "bar", "real videos", "without a model"), rows),
            *_curve(task["curve"]),
            *(Figure(f"{caption}. {_EDGE}", image) for caption, image in results[name].animations.items()),
        ]
    return to_html(Page(title, [*blocks, *record_tables(record)]))


def _shortfalls(findings: Iterable[Finding]) -> Iterable[Block]:
    """Yield the findings whose whole interval is worse than the ceiling of real videos."""
    rows = [
        (finding.name, finding.text, finding.number(finding.ceiling))
        for finding in findings
        if finding.is_worse_than_ceiling and finding.ceiling is not None
    ]
    yield Heading("Limits of the model")
    if rows:
        yield Paragraph("The detector reads a better number from real videos than the whole interval.")
        yield Table(("", "value", "real videos"), rows)
    else:
        yield Paragraph("No number is worse by its whole interval than the detector's number of real videos.")


def main_rows(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study that pages of other models show: model, size, and the main numbers of each task.

    Raises:
        RecipeError: not the record of a study of clips.
    """
    try:
        name, parameters = record["model"]["name"], int(record["about"]["parameters"])
        count, tasks = int(record["settings"]["count"]), record["tasks"]
        numbers = {
            VIDEO_TASKS.get(name, name): {
                f"{task['title']}: {row['measure']}": {"unit": row["unit"], "found": _interval(row["found"])}
                for row in [row for row in task["rows"] if row["main"]] or task["rows"][:1]
            }
            for name, task in tasks.items()
        }
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as problem:
        raise RecipeError("not the record of a study of videos, or an earlier version's; make it again") from problem
    return {"model": name, "parameters": parameters, "count": count, "tasks": numbers}


def _interval(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(stored[name]) for name in ("value", "low", "high")}


def _size_comparison(record: Mapping[str, Any]) -> Iterable[Block]:
    """Yield the main numbers of every task against the size of the model, if records of other models are there."""
    if not record.get("beside"):
        return
    models = sorted([main_rows(record), *record["beside"]], key=lambda model: model["parameters"])
    by_model = [
        {
            name: Finding(name, *(row["found"][key] for key in ("value", "low", "high")), unit=row["unit"])
            for rows in model["tasks"].values()
            for name, row in rows.items()
        }
        for model in models
    ]
    common = [name for name in by_model[0] if all(name in findings for findings in by_model)]
    sizes = [model["parameters"] / 1e6 for model in models]
    heads = [
        f"{model['model']}, {size:.2f} million, {model['count']} videos"
        for model, size in zip(models, sizes, strict=True)
    ]
    yield Heading("Models of other sizes")
    yield Table(("", *heads), [(name, *(findings[name].text for findings in by_model)) for name in common])
    for units, axis in ((("%", "part"), "share"), (("px",), "pixels"), (("",), "ratio or degrees")):
        lines = [
            ChartLine(name, [(size, findings[name].value) for size, findings in zip(sizes, by_model, strict=True)])
            for name in common
            if by_model[0][name].unit in units
        ]
        if lines:
            label = axis if len(lines) > 1 else f"{lines[0].name}, {axis}"  # a single line has no legend
            chart = lines_chart(lines, "millions of parameters", label, log_x=True)
            yield Figure("By the parameters of network and text encoder.", chart)


def _row(finding: Finding) -> tuple[str, ...]:
    ceiling = "" if finding.ceiling is None else finding.number(finding.ceiling)
    baselines = "; ".join(f"{name} {finding.number(value)}" for name, value in finding.baselines.items())
    return finding.name, finding.text, finding.bar_text, ceiling, baselines


def _curve(curve: Mapping[str, Mapping[str, float]]) -> Iterable[Block]:
    if curve:
        names = list(dict.fromkeys(name for numbers in curve.values() for name in numbers))
        rows = [
            (label, *(f"{numbers[name]:.2f} px" if name == "path" else f"{numbers[name]:.1%}" for name in names))
            for label, numbers in curve.items()
        ]
        yield Table(("by strength of the noise", *names), rows)
