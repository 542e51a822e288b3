"""Pages of the studies of samplers, guidance and inverse problems, made of their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unveil.analysis.guidance_sweep import SHOWN, ScaleStudy
from unveil.analysis.inverse import METHODS, InverseStudy
from unveil.analysis.inverse_problems import InverseProblem
from unveil.analysis.samplers import KINDS, SamplerStudy
from unveil.evaluate import plots
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.findings import Figure, Finding, interval_of
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, to_html
from unveil.evaluate.report_page import record_tables
from unveil.io.images import to_pixels

STRIP = 8  # samples of each sampler, and images of each problem, on the page
COLOURED = 3  # images of each problem if they have colours, which take three times the room


# ---------------------------------------------------------------------- samplers


def samplers_page(study: SamplerStudy, record: Mapping[str, Any]) -> str:
    """Error against NFE, orders, costs, samples side by side, and what the model cannot run."""
    settings = record["settings"]
    introduction = (
        "Every sampler starts from the same noise, on the same kind of schedule, without guidance; x0 is clipped as "
        f"the model samples ({settings['clip']}). A deterministic one is compared with the solution of the "
        "probability-flow ODE, solved by Heun's method with "
        f"{settings['fine_calls']} function evaluations; a stochastic one with its own run of as many evaluations on "
        "the same Brownian path; where no order on a path is declared, its samples as a set with those of the fine "
        "solve."
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
    for kind in KINDS.values():
        samplers = [sampler for sampler in record["samplers"] if sampler["measured"] == kind]
        if not samplers:
            continue
        lines = [
            ChartLine(sampler["name"], [(point["calls"], point["error"]) for point in sampler["points"]])
            for sampler in samplers
        ]
        level = record["floor"] if kind == KINDS["distribution"] else None
        caption = f"{_sentence(kind)} against NFE." + (
            "" if level is None else " The level: two fine solves of different noise."
        )
        yield Figure(caption, lines_chart(lines, "NFE", kind, log_x=True, log_y=True, level=level))


def _numbers(record: Mapping[str, Any]) -> Iterable[Block]:
    requested = record["settings"]["calls"]
    heads = ("sampler", *(f"{nfe} NFE" for nfe in requested), "order", "fitted", "ms per NFE", "us of the sampler")
    for kind in KINDS.values():
        rows: list[list[str]] = []
        for sampler in record["samplers"]:
            if sampler["measured"] == kind:
                points = {point["asked"]: point for point in sampler["points"]}
                cells = [_point(points[nfe]) if nfe in points else "" for nfe in requested]
                rows.append([sampler["name"], *cells, *_order(sampler), *_cost(sampler)])
        if rows:
            yield Heading(_sentence(kind), 3)
            yield Table(heads, rows)
    yield Paragraph(
        "In brackets the NFE of the run, if it differs from the requested one. The order is the declared one, on a "
        "path for stochastic samplers, and the fitted slope: both agree if steps are fine enough and the model is "
        "smooth enough. Costs are of the whole batch.",
        "remark",
    )


def _point(point: Mapping[str, Any]) -> str:
    used = "" if point["calls"] == point["asked"] else f" ({point['calls']})"
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
    strips += [(sampler.name, sampler.samples[nfe]) for sampler in study.found if nfe in sampler.samples]
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
    chart = lines_chart(lines, "recall: held-out images that samples reach", "fidelity", marks=marks)
    blocks: list[Block] = [
        Paragraph(
            "The same noise at every guidance scale; 1 is no guidance. Each point is a whole evaluation, of which the "
            "protocol is below."
        ),
        Figure("Fidelity against diversity; the numbers at the points are guidance scales.", chart),
    ]
    if rows[0].get("fid"):
        fid = ChartLine("FID", [(row["scale"], row["fid"]["value"]) for row in rows])
        floor = rows[0]["fid"]["floor"]["mean"]
        caption = "FID against the guidance scale. The level: real images against other real images."
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
    """What is restored and how well, whether each bar is met, and images side by side."""
    part, kind = record["data"]["part"], record["data"]["kind"]
    methods = {row["method"] for row in record["rows"]}
    heads = (
        "problem", "gain", "PSNR", "baseline", "|Ax - y| / |y|", "as stored", "known pixels", "NFE", "s per image",
    )  # fmt: skip
    blocks: list[Block] = [
        Paragraph(
            f"{record['settings']['count']} {part} images of {kind}, each measured in part and restored from the "
            "measurement by the model without another condition. The gain is the PSNR of the restoration above that "
            "of the baseline, image by image, with the 95 % interval of its mean."
        ),
        Heading("Bars"),
        Table(("problem", "gain", "bar", "met"), list(_bars(record))),
        Paragraph(
            f"Each bar also needs |Ax - y| / |y| of at most {record['limits']['residual']:g} for every image, and "
            "known pixels that are equal to the bit.",
            "remark",
        ),
        Heading("Numbers"),
        Table(heads, [_restored(row) for row in record["rows"]]),
        Paragraph(
            '|Ax - y| / |y| is the largest of all images; "as stored" is that of images cut to the range of bytes, of '
            "which the PSNR is, too. Rows with noise have no bar. Seconds are of the processor, for a model that runs "
            "on one.",
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
    known = {None: "", True: "bit-equal", False: "changed"}[row["known"]]
    residual, stored = f"{row['residual']:.1e}", f"{row['clipped']:.1e}"
    quality = f"{row['psnr']['mean']:.2f} dB", f"{row['baseline']['mean']:.2f} dB"
    return _problem(row), _gain(row), *quality, residual, stored, known, str(row["calls"]), f"{row['seconds']:.3f}"


def _problem(row: Mapping[str, Any]) -> str:
    return f"{row['problem']}, {row['method']}" + (f", noise {row['noise']:g}" if row["noise"] else "")


def _gain(row: Mapping[str, Any]) -> str:
    mean, low, high = (row["gain"][key] for key in ("mean", "low", "high"))
    return Finding("gain", mean, low, high, unit="dB", form="+.2f").text


def _strips(study: InverseStudy, problem: InverseProblem) -> Table:
    strips = [("original", study.pictures), ("measured", problem.shown)]
    if problem.baseline is not problem.shown:
        strips.append(("baseline", problem.baseline))
    strips += [(row.method, row.pictures) for row in study.rows if (row.problem, row.noise) == problem.key]
    count = STRIP if study.pictures.shape[1] == 1 else COLOURED
    rows = [(name, Figure(name, plots.make_grid(to_pixels(images[:count]), count))) for name, images in strips]
    return Table(("", ""), rows)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
