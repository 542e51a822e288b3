"""The pages of the studies of a model, in the style of an evaluation's report, drawn from their records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from unveil.analysis.guidance_sweep import SHOWN, ScaleStudy
from unveil.analysis.inverse import METHODS, InverseStudy
from unveil.analysis.inverse_problems import InverseProblem
from unveil.analysis.samplers import KINDS, SamplerStudy
from unveil.evaluate import plots
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.html import document, figure, image, table
from unveil.evaluate.report import flatten
from unveil.io.images import to_pixels

STRIP = 8  # samples of each sampler, and pictures of each problem, on the page
COLOURED = 3  # pictures of each problem where they have colours, which take three times the room


# ---------------------------------------------------------------------- samplers


def samplers_page(study: SamplerStudy, record: Mapping[str, Any]) -> str:
    """Error against network calls, orders, costs, samples side by side, and what the model cannot run."""
    title = f"Samplers of {record['model']['name']}"
    settings = record["settings"]
    return document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            "<p>Every sampler starts from the same noise, on the same kind of grid, without guidance; x0 is clipped as "
            f"the model samples ({settings['clip']}). A deterministic one is compared with the solution of the "
            "probability-flow ODE, solved by Heun's method with "
            f"{settings['fine_calls']} network calls; a stochastic one with its own run of as many calls on the same "
            "Brownian path; where no order on a path is declared, its samples as a set with those of the fine "
            "solve.</p>",
            *_charts(record),
            "<h2>Numbers</h2>",
            *_numbers(record),
            *_refused(record),
            *_side_by_side(study),
            *settings_tables(record),
        ],
    )


def _charts(record: Mapping[str, Any]) -> Iterable[str]:
    for words in KINDS.values():
        chosen = [one for one in record["samplers"] if one["measured"] == words]
        if not chosen:
            continue
        lines = [ChartLine(one["name"], [(p["calls"], p["error"]) for p in one["points"]]) for one in chosen]
        level = record["floor"] if words == KINDS["distribution"] else None
        caption = f"{_sentence(words)} against network calls." + (
            "" if level is None else " The level: two fine solves of different noise."
        )
        yield figure(lines_chart(lines, "network calls", words, log_x=True, log_y=True, level=level), caption)


def _numbers(record: Mapping[str, Any]) -> Iterable[str]:
    asked = record["settings"]["calls"]
    heads = ("sampler", *(f"{n} calls" for n in asked), "order", "fitted", "ms per call", "us beside it")
    for words in KINDS.values():
        rows: list[list[str]] = []
        for one in record["samplers"]:
            if one["measured"] == words:
                at = {point["asked"]: point for point in one["points"]}
                cells = [_point(at[n]) if n in at else "" for n in asked]
                rows.append([one["name"], *cells, *_order(one), *_cost(one)])
        if rows:
            yield f"<h3>{escape(_sentence(words))}</h3>"
            yield table(heads, rows)
    yield (
        '<p class="remark">In brackets the calls that were made, where they are not those asked for. The order is the '
        "declared one, on a path for stochastic samplers, and the slope that was fitted: it is met where steps are "
        "fine enough and the model smooth enough. Costs are of the whole batch.</p>"
    )


def _point(point: Mapping[str, Any]) -> str:
    made = "" if point["calls"] == point["asked"] else f" ({point['calls']})"
    return f"{point['error']:.3g}{made}"


def _order(one: Mapping[str, Any]) -> tuple[str, str]:
    declared = one["declared"]["strong" if one["stochastic"] else "order"]
    fitted = one["fitted_order"]
    return "" if declared is None else f"{declared:g}", "" if fitted is None else f"{fitted:.2f}"


def _cost(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{1e3 * one['seconds_per_call']:.2f}", f"{1e6 * one['seconds_beside_per_call']:.0f}"


def _refused(record: Mapping[str, Any]) -> Iterable[str]:
    if record["refused"]:
        yield "<h2>Not run</h2>"
        yield table(("sampler", "why"), record["refused"].items())


def _side_by_side(study: SamplerStudy) -> Iterable[str]:
    if study.exact.ndim != 4 or study.exact.shape[1] not in (1, 3):
        return
    strips = [("fine solve", study.exact)]
    asked = study.settings.calls[min(1, len(study.settings.calls) - 1)]
    strips += [(one.name, one.samples[asked]) for one in study.found if asked in one.samples]
    yield f"<h2>Samples at {asked} network calls</h2>"
    rows = (
        f"<tr><td>{escape(name)}</td><td>{image(plots.make_grid(to_pixels(samples[:STRIP]), STRIP), name)}</td></tr>"
        for name, samples in strips
    )
    yield f"<table>{''.join(rows)}</table>"


# ---------------------------------------------------------------------- guidance


def scales_page(study: ScaleStudy, record: Mapping[str, Any]) -> str:
    """Fidelity against diversity along the scale, the numbers, and samples side by side."""
    title = f"Guidance of {record['model']['name']}"
    rows = record["scales"]
    lines = [
        ChartLine(name, [(row["recall"]["value"], row[key]["value"]) for row in rows])
        for key, name in (("read", "read as their class"), ("precision", "precision"))
        if rows[0].get(key)
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<p>The same noise at every scale; 1 is no guidance. Each point is a whole evaluation, of which the protocol "
        "is below.</p>",
        figure(
            lines_chart(lines, "recall: held-out pictures that samples reach", "fidelity", marks=_marks(study)),
            "Fidelity against diversity; the numbers at the points are scales.",
        ),
    ]
    if rows[0].get("fid"):
        fid = ChartLine("FID", [(row["scale"], row["fid"]["value"]) for row in rows])
        floor = rows[0]["fid"]["floor"]["mean"]
        caption = "FID against the scale. The level: real pictures from other real pictures."
        parts.append(figure(lines_chart([fid], "scale", "FID", level=floor), caption))
    parts += ["<h2>Numbers</h2>", _scale_table(rows), *_missing(record)]
    if study.samples.shape[1] in (1, 3):
        caption = f"One row per scale, from the same noise: {', '.join(f'{s:g}' for s in study.scales)}."
        parts += ["<h2>Samples</h2>", figure(plots.make_grid(study.samples, SHOWN), caption)]
    return document(title, [*parts, *settings_tables(record)])


def _marks(study: ScaleStudy) -> list[str]:
    return [f"{scale:g}" for scale in study.scales]


def _scale_table(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = {"read": "read as their class", "precision": "precision", "recall": "recall", "fid": "FID", "kid": "KID"}
    known = {key: name for key, name in kinds.items() if rows[0].get(key)}
    cells = ([f"{row['scale']:g}", *(_found(row[key], key) for key in known)] for row in rows)
    return table(("scale", *known.values()), cells)


def _found(found: Mapping[str, float], key: str) -> str:
    form = {"fid": ".3f", "kid": ".5f"}.get(key, ".1%")
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def _missing(record: Mapping[str, Any]) -> Iterable[str]:
    return (f'<p class="remark">{escape(name)}: {escape(why)}.</p>' for name, why in record["missing"].items())


# ---------------------------------------------------------------------- inverse problems


def inverse_page(study: InverseStudy, record: Mapping[str, Any]) -> str:
    """What was restored and how well, whether each bar is met, and pictures side by side."""
    title = f"Inverse problems with {record['model']['name']}"
    part, kind = record["data"]["part"], record["data"]["kind"]
    used = {row["method"] for row in record["rows"]}
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{record['settings']['count']} {escape(part)} pictures of {escape(kind)}, each measured in part and "
        "restored from that by the model, which was told nothing else. The gain is the PSNR of the restoration above "
        "that of the baseline, picture by picture, with the 95 % interval of its mean.</p>",
        "<h2>Bars</h2>",
        table(("problem", "gain", "bar", "met"), _bars(record)),
        f'<p class="remark">Each bar also asks for |Ax - y| / |y| of at most {record["limits"]["residual"]:g} for '
        "every picture, and for known pixels that are equal to the bit.</p>",
        "<h2>Numbers</h2>",
        table(
            (
                "problem", "gain", "PSNR", "baseline", "|Ax - y| / |y|", "as stored", "known pixels", "calls",
                "s per picture",
            ),
            (_restored(row) for row in record["rows"]),
        ),
        '<p class="remark">|Ax - y| / |y| is the largest of all pictures; "as stored" is that of pictures cut to the '
        "range of bytes, of which the PSNR is, too. Rows with noise have no bar. Seconds are of the processor, for a "
        "model that runs on one.</p>",
        table(("method", ""), [(name, METHODS[name]) for name in METHODS if name in used]),
    ]  # fmt: skip
    if record["skipped"]:
        parts += ["<h2>Skipped</h2>", table(("problem", "why"), record["skipped"].items())]
    for problem in study.problems:
        words = record["problems"][problem.name]
        noise = f", with noise of {problem.noise:g}" if problem.noise else ""
        parts.append(f"<h2>{escape(_sentence(problem.name))}{noise}</h2>")
        parts.append(f"<p>Measured: {escape(words['measured'])}. Baseline: {escape(words['baseline'])}.</p>")
        parts.append(_strips(study, problem))
    return document(title, [*parts, *settings_tables(record)])


def _bars(record: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for row in record["rows"]:
        if row["bar"] is not None:
            whole = "yes" if row["whole_interval"] else "yes by the mean, not by the whole interval"
            yield _problem(row), _gain(row), f"{row['bar']:g} dB", whole if row["met"] else "no"


def _restored(row: Mapping[str, Any]) -> Sequence[str]:
    known = {None: "", True: "bit-equal", False: "changed"}[row["known"]]
    off, stored = f"{row['residual']:.1e}", f"{row['clipped']:.1e}"
    quality = f"{row['psnr']['mean']:.2f} dB", f"{row['baseline']['mean']:.2f} dB"
    return _problem(row), _gain(row), *quality, off, stored, known, str(row["calls"]), f"{row['seconds']:.3f}"


def _problem(row: Mapping[str, Any]) -> str:
    return f"{row['problem']}, {row['method']}" + (f", noise {row['noise']:g}" if row["noise"] else "")


def _gain(row: Mapping[str, Any]) -> str:
    gain = row["gain"]
    return f"{gain['mean']:+.2f} dB ({gain['low']:+.2f} to {gain['high']:+.2f})"


def _strips(study: InverseStudy, problem: InverseProblem) -> str:
    shown = [("original", study.pictures), ("measured", problem.shown)]
    if problem.baseline is not problem.shown:
        shown.append(("baseline", problem.baseline))
    shown += [(row.method, row.pictures) for row in study.rows if (row.problem, row.noise) == problem.key]
    strip = STRIP if study.pictures.shape[1] == 1 else COLOURED
    cells = ((name, plots.make_grid(to_pixels(pictures[:strip]), strip)) for name, pictures in shown)
    return f"<table>{''.join(f'<tr><td>{name}</td><td>{image(png, name)}</td></tr>' for name, png in cells)}</table>"


# ---------------------------------------------------------------------- all


def settings_tables(record: Mapping[str, Any]) -> Iterable[str]:
    """The settings of a study, its protocol, and what is said of the run, where the record has them."""
    for heading, key in (("Settings", "settings"), ("Protocol", "protocol"), ("About this run", "about")):
        if key in record:
            yield f"<h2>{heading}</h2>"
            rows = flatten(record[key]).items()
            yield table(("", ""), ((name, one if isinstance(one, str) else json.dumps(one)) for name, one in rows))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
