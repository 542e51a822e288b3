"""Pages of the studies, made of their records, samples and animations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unveil.analysis.guidance_sweep import SHOWN, ScaleStudy
from unveil.analysis.inverse_problems import METHODS, InverseProblem, InverseStudy
from unveil.analysis.samplers import DISTANCES, SamplerStudy
from unveil.analysis.video_study import StudyResult, VideoStudy, finding_of
from unveil.errors import RecipeError
from unveil.evaluate import plots
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.findings import Figure, Finding, interval_of
from unveil.evaluate.migration import migrate_video_study
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, bars_table, to_html
from unveil.evaluate.report_page import record_tables
from unveil.io.images import to_pixels

STRIP = 8  # samples of each sampler, and images of each problem, on the page
QUICK_NOTE = "quick run: it shows that everything works, and does not judge the model"
COLOURED = 3  # images of each problem with colours, which take three times the space


# ---------------------------------------------------------------------- samplers


def samplers_page(study: SamplerStudy, record: Mapping[str, Any]) -> str:
    """Error against NFE, orders, costs, samples side by side, and samplers that do not run on the model."""
    settings = record["settings"]
    introduction = (
        "Every sampler starts from the same noise, on the same kind of schedule, without guidance, with the model's "
        f"clipping of x0 ({settings['clip']}). A deterministic sampler is compared with the solution of the "
        "probability-flow ODE, solved by Heun's method with "
        f"{settings['fine_calls']} function evaluations; a stochastic sampler with its own run of as many evaluations "
        "on the same Brownian path; without a declared strong order, the distribution of its samples is compared with "
        "that of the fine solve."
    )
    blocks = [
        Paragraph(introduction),
        *_charts(record),
        Heading("Numbers"),
        *_numbers(record),
        *_refused(record),
        *_side_by_side(study),
        *record_tables(record),
    ]
    return to_html(Page(f"Samplers of {record['model']['name']}", blocks))


def _charts(record: Mapping[str, Any]) -> Iterable[Block]:
    for kind in DISTANCES.values():
        samplers = [sampler for sampler in record["samplers"] if sampler["measured"] == kind]
        if not samplers:
            continue
        lines = [
            ChartLine(sampler["name"], [(point["calls"], point["error"]) for point in sampler["points"]])
            for sampler in samplers
        ]
        level = record["floor"] if kind == DISTANCES["distribution"] else None
        caption = f"{_sentence(kind)} against NFE." + (
            "" if level is None else " Level: two fine solves of different noise."
        )
        yield Figure(caption, lines_chart(lines, "NFE", kind, log_x=True, log_y=True, level=level))


def _numbers(record: Mapping[str, Any]) -> Iterable[Block]:
    requested = record["settings"]["calls"]
    heads = ("sampler", *(f"{nfe} NFE" for nfe in requested), "order", "fitted", "ms per NFE", "us of the sampler")
    for kind in DISTANCES.values():
        rows: list[list[str]] = []
        for sampler in record["samplers"]:
            if sampler["measured"] == kind:
                points = {point["requested"]: point for point in sampler["points"]}
                cells = [_point(points[nfe]) if nfe in points else "" for nfe in requested]
                rows.append([sampler["name"], *cells, *_order(sampler), *_cost(sampler)])
        if rows:
            yield Heading(_sentence(kind), 3)
            yield Table(heads, rows)
    yield Paragraph(
        "The NFE of the run is in brackets if it differs from the requested one. The order is the declared one (the "
        "strong order of stochastic samplers) and the fitted slope. Both agree if the steps are small and the model is "
        "smooth. Costs are those of the whole batch.",
        "remark",
    )


def _point(point: Mapping[str, Any]) -> str:
    used = "" if point["calls"] == point["requested"] else f" ({point['calls']})"
    return f"{point['error']:.3g}{used}"


def _order(sampler: Mapping[str, Any]) -> tuple[str, str]:
    declared = sampler["declared"]["strong" if sampler["stochastic"] else "order"]
    fitted = sampler["fitted_order"]
    return "" if declared is None else f"{declared:g}", "" if fitted is None else f"{fitted:.2f}"


def _cost(sampler: Mapping[str, Any]) -> tuple[str, str]:
    return f"{1e3 * sampler['seconds_per_call']:.2f}", f"{1e6 * sampler['seconds_beside_per_call']:.0f}"


def _refused(record: Mapping[str, Any]) -> Iterable[Block]:
    if record["refused"]:
        yield Heading("Not run")
        yield Table(("sampler", "reason"), list(record["refused"].items()))


def _side_by_side(study: SamplerStudy) -> Iterable[Block]:
    if study.exact.ndim != 4 or study.exact.shape[1] not in (1, 3):
        return
    strips = [("fine solve", study.exact)]
    nfe = study.settings.calls[min(1, len(study.settings.calls) - 1)]
    strips += [(sampler.name, sampler.samples[nfe]) for sampler in study.measurements if nfe in sampler.samples]
    yield Heading(f"Samples at {nfe} NFE")
    yield Table(
        ("", ""),
        [(name, Figure(name, plots.make_grid(to_pixels(samples[:STRIP]), STRIP))) for name, samples in strips],
    )


# ---------------------------------------------------------------------- guidance


def scales_page(study: ScaleStudy, record: Mapping[str, Any]) -> str:
    """Fidelity against diversity along the guidance scale, the numbers, and samples side by side."""
    rows = record["scales"]
    lines = [
        ChartLine(name, [(row["recall"]["value"], row[key]["value"]) for row in rows])
        for key, name in (("read", "read as their class"), ("precision", "precision"))
        if rows[0].get(key)
    ]
    marks = [f"{scale:g}" for scale in study.scales]
    chart = lines_chart(lines, "recall", "fidelity", marks=marks)
    blocks: list[Block] = [
        Paragraph(
            "The same noise at every guidance scale; 1 means no guidance. Each point is an evaluation by the "
            "protocol below."
        ),
        Figure("Fidelity against diversity; the numbers at the points are guidance scales.", chart),
    ]
    if rows[0].get("fid"):
        fid = ChartLine("FID", [(row["scale"], row["fid"]["value"]) for row in rows])
        floor = rows[0]["fid"]["floor"]["mean"]
        caption = "FID against the guidance scale. Level: real images against other real images."
        blocks.append(Figure(caption, lines_chart([fid], "guidance scale", "FID", level=floor)))
    blocks += [Heading("Numbers"), _scale_table(rows)]
    blocks += [Paragraph(f"{name}: {reason}.", "remark") for name, reason in record["missing"].items()]
    if study.samples.shape[1] in (1, 3):
        caption = f"One row per guidance scale, from the same noise: {', '.join(f'{s:g}' for s in study.scales)}."
        blocks += [Heading("Samples"), Figure(caption, plots.make_grid(study.samples, SHOWN))]
    return to_html(Page(f"Guidance of {record['model']['name']}", [*blocks, *record_tables(record)]))


def _scale_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = {"read": "read as their class", "precision": "precision", "recall": "recall", "fid": "FID", "kid": "KID"}
    forms = {"fid": ".3f", "kid": ".5f"}
    columns = {key: name for key, name in names.items() if rows[0].get(key)}
    cells = [
        [f"{row['scale']:g}"]
        + [Finding(name, *interval_of(row[key]), form=forms.get(key, ".1%")).text for key, name in columns.items()]
        for row in rows
    ]
    return Table(("guidance scale", *columns.values()), cells)


# ---------------------------------------------------------------------- inverse problems


def inverse_page(study: InverseStudy, record: Mapping[str, Any]) -> str:
    """Quality of the restorations, the bars, and images side by side."""
    part, kind = record["data"]["part"], record["data"]["kind"]
    methods = {row["method"] for row in record["rows"]}
    heads = (
        "problem", "gain", "PSNR", "baseline", "|Ax - y| / |y|", "as stored", "known pixels", "NFE", "s per image",
    )  # fmt: skip
    blocks: list[Block] = [
        Paragraph(
            f"{record['settings']['count']} {part} images of {kind}. The model restores each from a measurement, "
            "without another condition. The gain is the PSNR of the restoration minus that of the baseline, image by "
            "image, with the 95 % interval of its mean."
        ),
        Heading("Bars"),
        Table(("problem", "gain", "bar", "met"), list(_bars(record))),
        Paragraph(
            f"Each bar also needs |Ax - y| / |y| of at most {record['limits']['residual']:g} for every image, and "
            "bit-equal known pixels.",
            "remark",
        ),
        Heading("Numbers"),
        Table(heads, [_restored(row) for row in record["rows"]]),
        Paragraph(
            '|Ax - y| / |y| is the largest of all images; "as stored" and the PSNR are those of images clipped to '
            "[-1, 1]. Rows with noise have no bar. Seconds are CPU seconds for a model on the CPU.",
            "remark",
        ),
        Table(("method", ""), [(name, METHODS[name]) for name in METHODS if name in methods]),
    ]
    if record["skipped"]:
        blocks += [Heading("Skipped"), Table(("problem", "reason"), list(record["skipped"].items()))]
    for problem in study.problems:
        description = record["problems"][problem.name]
        noise = f", with noise of {problem.noise:g}" if problem.noise else ""
        blocks.append(Heading(f"{_sentence(problem.name)}{noise}"))
        blocks.append(Paragraph(f"Measured: {description['measured']}. Baseline: {description['baseline']}."))
        blocks.append(_strips(study, problem))
    title = f"Inverse problems with {record['model']['name']}"
    return to_html(Page(title, [*blocks, *record_tables(record)]))


def _bars(record: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for row in record["rows"]:
        if row["bar"] is not None:
            whole = "yes" if row["whole_interval"] else "yes by the mean, not by the whole interval"
            yield _problem(row), _gain(row), f"{row['bar']:g} dB", whole if row["met"] else "no"


def _restored(row: Mapping[str, Any]) -> Sequence[str]:
    pixels = {None: "", True: "bit-equal", False: "changed"}[row["known"]]
    residual, stored = f"{row['residual']:.1e}", f"{row['clipped']:.1e}"
    quality = f"{row['psnr']['mean']:.2f} dB", f"{row['baseline']['mean']:.2f} dB"
    return _problem(row), _gain(row), *quality, residual, stored, pixels, str(row["calls"]), f"{row['seconds']:.3f}"


def _problem(row: Mapping[str, Any]) -> str:
    return f"{row['problem']}, {row['method']}" + (f", noise {row['noise']:g}" if row["noise"] else "")


def _gain(row: Mapping[str, Any]) -> str:
    mean, low, high = (row["gain"][key] for key in ("mean", "low", "high"))
    return Finding("gain", mean, low, high, unit="dB", form="+.2f").text


def _strips(study: InverseStudy, problem: InverseProblem) -> Table:
    strips = [("original", study.images), ("measured", problem.preview)]
    if problem.baseline is not problem.preview:
        strips.append(("baseline", problem.baseline))
    strips += [(row.method, row.images) for row in study.rows if (row.problem, row.noise) == problem.key]
    count = STRIP if study.images.shape[1] == 1 else COLOURED
    rows = [(name, Figure(name, plots.make_grid(to_pixels(images[:count]), count))) for name, images in strips]
    return Table(("", ""), rows)


# ---------------------------------------------------------------------- video models

_EDGE = "The model's output is below its input or reference; generated frames have a coloured edge."


def video_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """The bars, then each task with its numbers and animations."""
    settings = record["settings"]
    scope = f"{settings['count']} videos of each task, of the list of prompts {settings['prompt_set']!r}"
    return _page(f"Video tasks of {record['model']['name']}", scope, study.results, record)


def prompts_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """Each kind of prompt with its share of correct videos, and animations."""
    scope = f"{record['settings']['count']} prompts of each kind"
    return _page(f"Prompts that {record['model']['name']} follows", scope, study.results, record)


def physics_page(study: VideoStudy, record: Mapping[str, Any]) -> str:
    """The bars, then each law with its numbers and animations."""
    scope = f"{record['settings']['count']} videos of each law"
    return _page(f"Laws of the world that {record['model']['name']} follows", scope, study.results, record)


def _page(title: str, scope: str, results: Mapping[str, StudyResult], record: Mapping[str, Any]) -> str:
    tasks: Mapping[str, Any] = record["tasks"]
    quick = record.get("quick", False)
    findings = [finding_of(row, task["title"]) for task in tasks.values() for row in task["rows"]]
    blocks: list[Block] = [
        Paragraph(
            f"{scope}, one sample each, without selection, measured by the detector on uncompressed frames. "
            "95 % intervals over videos in brackets."
        ),
        *([Paragraph(f"**{QUICK_NOTE}**")] if quick else bars_table(findings)),
        *_size_comparison(record),
        *([] if quick else _shortfalls(findings)),
    ]
    for name, task in tasks.items():
        rows = [_row(shown_finding(finding_of(row), quick)) for row in task["rows"]]
        blocks += [
            Heading(task["title"]),
            Paragraph(task["method"]),
            Table(("", "value", "bar", "real videos", "without a model"), rows),
            *_curve(task["curve"]),
            *(Figure(f"{caption}. {_EDGE}", image) for caption, image in results[name].animations.items()),
        ]
    return to_html(Page(title, [*blocks, *record_tables(record)]))


def shown_finding(finding: Finding, quick: bool) -> Finding:
    """Return a finding as it is shown: without its bar if it is of a quick run, which has too few videos to judge."""
    return replace(finding, bar=None) if quick else finding


def _shortfalls(findings: Iterable[Finding]) -> Iterable[Block]:
    """Yield the findings whose whole interval is worse than the ceiling of real videos."""
    rows = [
        (finding.name, finding.text, finding.number(finding.ceiling))
        for finding in findings
        if finding.is_worse_than_ceiling and finding.ceiling is not None
    ]
    yield Heading("Limits of the model")
    if rows:
        yield Paragraph("The detector's number of real videos is better than the whole interval.")
        yield Table(("", "value", "real videos"), rows)
    else:
        yield Paragraph("The whole interval of no number is worse than the detector's number of real videos.")


def main_rows(record: Mapping[str, Any]) -> dict[str, Any]:
    """Model, size, and the main numbers of each task of a study, which pages of other models show.

    Raises:
        RecipeError: The record is not that of a study of a video model.
    """
    try:
        record = migrate_video_study(record)
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
        raise RecipeError("not the record of a study of videos; run the study again") from problem
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
        yield Table(("by denoising strength", *names), rows)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
