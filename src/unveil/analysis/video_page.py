"""The pages of studies of clips, drawn from their records and films."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from unveil.analysis.pages import settings_tables
from unveil.analysis.video_bench import VideoStudy
from unveil.analysis.video_metrics import StudyResult, format_row
from unveil.errors import RecipeError
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.html import document, figure, table

_EDGE = "What was made stands below what it was made of or is compared with, and its frames have a coloured edge."


def video_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """Whether each bar is met, then each task with its numbers and films."""
    told = f"{record['settings']['count']} clips of each task, of the list of prompts {record['settings']['asked']!r}"
    return _page(f"What {record['model']['name']} does with clips", told, study.found, record)


def text_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """Each kind of prompts with its share of right clips, and films."""
    told = f"{record['settings']['count']} prompts of each kind"
    return _page(f"What {record['model']['name']} understands", told, study.found, record)


def world_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """Whether each bar is met, then each law with its numbers and films."""
    told = f"{record['settings']['count']} clips of each law"
    return _page(f"What {record['model']['name']} knows about the world", told, study.found, record)


def _page(title: str, told: str, found: Mapping[str, StudyResult], record: Mapping[str, Any]) -> str:
    bars = list(_bars(record))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(told)}, one sample each, nothing filtered; read by the detector on frames before any compression. "
        "In brackets the 95 % interval over clips.</p>",
        *(("<h2>Bars</h2>", table(("task", "found", "bar", "met"), bars)) if bars else ()),
        *_beside(record),
        *_short(record),
    ]
    for name, task in record["tasks"].items():
        parts += [
            f"<h2>{escape(task['title'])}</h2>",
            f"<p>{escape(task['method'])}</p>",
            table(("", "found", "bar", "real clips", "without a model"), [_row(row) for row in task["rows"]]),
            *_curve(task["curve"]),
            *(figure(film, f"{words}. {_EDGE}") for words, film in found[name].films.items()),
        ]
    return document(title, [*parts, *settings_tables(record)])


def _bars(record: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for task in record["tasks"].values():
        for row in task["rows"]:
            if row["bar"] is not None:
                bar, met = f"{row['rule']} {format_row(row['bar'], row['unit'])}", "yes" if row["met"] else "no"
                yield f"{task['title']}: {row['measure']}", _found(row), bar, met


def _short(record: Mapping[str, Any]) -> Iterable[str]:
    """The numbers that are worse than what real clips reach, by their whole interval."""
    rows = [
        (f"{task['title']}: {row['measure']}", _found(row), format_row(row["ceiling"], row["unit"]))
        for task in record["tasks"].values()
        for row in task["rows"]
        if row["short"]
    ]
    yield "<h2>What it cannot do</h2>"
    if rows:
        yield "<p>Or not as real clips do: what the same program reads from them is better than the whole interval.</p>"
        yield table(("", "found", "real clips"), rows)
    else:
        yield "<p>No number is worse than what the same program reads from real clips by its whole interval.</p>"


def main_rows(record: Mapping[str, Any]) -> dict[str, Any]:
    """What other models' pages show of a study beside their own: its model, its size, the main numbers of each task.

    Raises:
        RecipeError: not the record of a study of clips.
    """
    try:
        name, parameters = record["model"]["name"], int(record["about"]["parameters"])
        count, tasks = int(record["settings"]["count"]), record["tasks"]
        numbers = {
            name: {
                f"{task['title']}: {row['measure']}": {"unit": row["unit"], "found": _interval(row["found"])}
                for row in [row for row in task["rows"] if row["main"]] or task["rows"][:1]
            }
            for name, task in tasks.items()
        }
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as problem:
        raise RecipeError("not the record of a study of clips, or an earlier version's; make it again") from problem
    return {"model": name, "parameters": parameters, "count": count, "tasks": numbers}


def _interval(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(found[name]) for name in ("value", "low", "high")}


def _beside(record: Mapping[str, Any]) -> Iterable[str]:
    """The main numbers of every task against the size of the model, where other models stand beside it."""
    if not record.get("beside"):
        return
    models = sorted([main_rows(record), *record["beside"]], key=lambda one: one["parameters"])
    found = [{words: row for rows in one["tasks"].values() for words, row in rows.items()} for one in models]
    common = [words for words in found[0] if all(words in rows for rows in found)]
    sizes = [one["parameters"] / 1e6 for one in models]
    heads = [
        f"{one['model']}, {size:.2f} million, {one['count']} clips" for one, size in zip(models, sizes, strict=True)
    ]
    yield "<h2>Models of other sizes</h2>"
    yield table(("", *heads), [(words, *(_found(rows[words]) for rows in found)) for words in common])
    for units, axis in ((("%", "part"), "share"), (("px",), "pixels"), (("",), "ratio or degrees")):
        lines = [
            ChartLine(words, [(size, rows[words]["found"]["value"]) for size, rows in zip(sizes, found, strict=True)])
            for words in common
            if found[0][words]["unit"] in units
        ]
        if lines:
            what = axis if len(lines) > 1 else f"{lines[0].name}, {axis}"  # a line alone has no legend
            chart = lines_chart(lines, "millions of parameters", what, log_x=True)
            yield figure(chart, "By the parameters of network and text encoder.")


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    bar = "" if row["bar"] is None else f"{row['rule']} {format_row(row['bar'], row['unit'])}"
    ceiling = "" if row["ceiling"] is None else format_row(row["ceiling"], row["unit"])
    baselines = "; ".join(f"{name} {format_row(value, row['unit'])}" for name, value in row["baselines"].items())
    return row["measure"], _found(row), bar, ceiling, baselines


def _found(row: Mapping[str, Any]) -> str:
    value, low, high = (format_row(row["found"][name], row["unit"]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _curve(curve: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    if curve:
        names = list(dict.fromkeys(name for own in curve.values() for name in own))
        rows = [
            (words, *(f"{own[name]:.2f} px" if name == "path" else f"{own[name]:.1%}" for name in names))
            for words, own in curve.items()
        ]
        yield table(("by strength of the noise", *names), rows)
