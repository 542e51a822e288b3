"""Page of a report with the findings and figures of its judge."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unveil.evaluate.findings import Finding
from unveil.evaluate.judges import judges
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, findings_table, to_html
from unveil.evaluate.report import Report, flatten
from unveil.io.files import refuse_overwrite, write_atomically


def write_report(report: Report, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write report.json and report.html, one self-contained page, into the folder; return the page.

    Raises:
        OutputError: One of them exists and `force` is not set, or the folder cannot be written.
    """
    json_path, html_path = Path(folder) / "report.json", Path(folder) / "report.html"
    for path in (json_path, html_path):
        refuse_overwrite(path, force)
    rendered = page(report)  # before anything is written
    write_atomically(json_path, report.to_json())
    return write_atomically(html_path, rendered)


def findings(report: Report) -> list[Finding]:
    """Return the findings of a report, as its page and the command line show them."""
    return [finding for judge in judges() for finding in judge.findings(report.results)]


def summary(report: Report) -> list[str]:
    """Return the findings, a line each."""
    return [finding.line for finding in findings(report)]


def page(report: Report) -> str:
    """Return the whole page as HTML."""
    shown = [judge for judge in judges() if judge.key in report.results]
    title = f"{shown[0].title if shown else 'Samples'} against real images: {report.about.get('data', 'unnamed')}"
    figures = {name: caption for judge in shown for name, caption in judge.figures.items()}
    blocks: list[Block] = [
        Paragraph(f"Protocol `{report.protocol_sha256}`. Only reports of equal protocols may be compared."),
        *(block for judge in shown for block in judge.warnings(report)),
        *(figure for name, caption in figures.items() for figure in report.figure(name, caption)),
        Heading("Findings"),
        findings_table(findings(report)),
        *(Paragraph(f"{name}: {reason}.", "remark") for name, reason in report.missing.items()),
        *(block for judge in shown for block in judge.details(report)),
        Heading("Protocol"),
        settings_table(report.protocol, ("setting", "value")),
        Heading("About this run"),
        settings_table(report.about),
    ]
    return to_html(Page(title, blocks))


def settings_table(settings: Mapping[str, Any], heads: tuple[str, str] = ("", "")) -> Table:
    """Return a table of nested settings under dotted names."""
    rows = flatten(settings).items()
    return Table(heads, [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in rows])


def record_tables(record: Mapping[str, Any]) -> Iterable[Block]:
    """Yield the settings, the protocol and the metadata of a study as tables, if the record has them."""
    for heading, key in (("Settings", "settings"), ("Protocol", "protocol"), ("About this run", "about")):
        if key in record:
            yield Heading(heading)
            yield settings_table(record[key])
