"""HTML of jobs; all text from outside is escaped."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from markupsafe import Markup, escape

from unveil.io.console import duration
from unveil.server.jobs.job_delay import JobDelay
from unveil.server.jobs.job_table import ENDED, Job
from unveil.server.jobs.outputs import COVER, STRIP, image_files, video_file
from unveil.server.jobs.queue import QueuePosition
from unveil.studio.error_messages import failure_text
from unveil.studio.i18n import Translator

LONGEST = 300  # characters of a prompt on a card
# control and bidirectional characters, which are replaced by visible symbols
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= {code: 0xFFFD for code in (0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def safe_text(text: object) -> Markup:
    """Escape text from outside, and make control characters visible."""
    return escape(str(text).translate(_UNSEEN))


def alert(text: str) -> Markup:
    """Return an error that screen readers announce at once."""
    return Markup('<div class="alert" role="alert">{}</div>').format(safe_text(text)) if text else Markup("")


def hint(text: str) -> Markup:
    """Return a hint on what to do if there is nothing to show."""
    return Markup('<p class="hint">{}</p>').format(safe_text(text))


def embedded_image(data: bytes, words: str) -> Markup:
    """Return an embedded PNG image."""
    encoded = base64.b64encode(data).decode()
    return Markup('<img class="wide" alt="{}" src="data:image/png;base64,{}">').format(safe_text(words), encoded)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """Return a table; cells are text, or Markup built here."""
    top = Markup("").join(Markup('<th scope="col">{}</th>').format(safe_text(head)) for head in heads)
    caption_html = Markup("<caption>{}</caption>").format(safe_text(caption)) if caption else Markup("")
    whole = '<div class="scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(whole).format(caption_html, top, Markup("").join(_row(row) for row in rows))


def _row(cells: Sequence[object]) -> Markup:
    cells_html = [cell if isinstance(cell, Markup) else safe_text(cell) for cell in cells]
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells_html))


def button(do: str, label: str, about: str = "", **data: str) -> Markup:
    """Return a button handled by the page's script.

    Args:
        do: Action name, passed to the handler.
        label: Text of the button.
        about: Accessible name that includes the object of the action.
        data: More data for the handler.
    """
    attributes = Markup("").join(Markup(' data-{}="{}"').format(key, safe_text(value)) for key, value in data.items())
    name = Markup(' aria-label="{}"').format(safe_text(about)) if about else Markup("")
    return Markup('<button type="button" class="own" data-do="{}"{}{}>{}</button>').format(
        do, attributes, name, safe_text(label)
    )


def file_url(job: Job, name: str) -> str:
    """Return the URL of an output file of a job."""
    return f"/v1/jobs/{job.id}/files/{quote(name)}"


def upload_url(name: str) -> str:
    """Return the URL of an upload."""
    return f"/v1/inputs/{quote(name)}"


def video_html(source: str, words: str, cover: str = "") -> Markup:
    """Return a video player; a GIF is shown as an image."""
    if source.endswith(".gif"):
        return Markup('<img class="wide" src="{}" alt="{}">').format(source, safe_text(words))
    video = '<video controls loop muted playsinline preload="metadata" poster="{}" src="{}" aria-label="{}"></video>'
    return Markup(video).format(cover, source, safe_text(words))


def job_title(job: Job) -> str:
    """Return a one-line description of a job's request."""
    request = job.request
    named = [request.get(key) for key in ("prompt", "label", "folder", "run_name", "source", "model", "recipe")]
    texts = (", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in named if value)
    return next(texts, job.kind)[:LONGEST]


def outputs_html(job: Job, tr: Translator) -> Markup:
    """Return the outputs of a completed job."""
    if COVER in job.outputs:
        return _video(job, tr)
    if video_file(job) is not None or not image_files(job):
        return _files(job, tr)
    figures = Markup("").join(
        Markup('<figure><a href="{0}" target="_blank" rel="noopener"><img src="{0}" alt="{1}"></a>'
               '<figcaption><a href="{0}" download="{2}">{3}</a></figcaption></figure>').format(
            file_url(job, name), safe_text(f"{job_title(job)} ({number})"), name,
            safe_text(tr("Download {name}", name=name)))
        for number, name in enumerate(image_files(job), 1)
    )  # fmt: skip
    strip = Markup("")
    if STRIP in job.outputs:
        words = tr("Sampling trajectory"), tr("Intermediate states of the images, step by step")
        strip = Markup('<details open><summary>{}</summary><img class="wide strip" src="{}" alt="{}"></details>')
        strip = strip.format(safe_text(words[0]), file_url(job, STRIP), safe_text(words[1]))
    return Markup('<div class="figures">{}</div>{}').format(figures, strip)


def _files(job: Job, tr: Translator) -> Markup:
    """Return the files of a task: images and videos as such, others as links."""
    shown: list[Markup] = []
    links: list[Markup] = []
    for name in job.outputs:
        url, words = file_url(job, name), job_title(job)
        if name.endswith((".mp4", ".webm")):
            body = video_html(url, words)
        elif name.endswith((".png", ".gif", ".webp", ".apng")):
            body = Markup('<img src="{}" alt="{}">').format(url, safe_text(words))
        else:
            body = None
        link = Markup('<a href="{0}" download="{1}">{2}</a>').format(
            url, name, safe_text(tr("Download {name}", name=name))
        )
        if body is None:
            links.append(Markup("<p>{}</p>").format(link))
            continue
        shown.append(Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(body, link))
    figures = Markup('<div class="figures">{}</div>').format(Markup("").join(shown)) if shown else Markup("")
    return figures + Markup("").join(links)


def _video(job: Job, tr: Translator) -> Markup:
    name = video_file(job)
    assert name is not None, job.outputs
    after = video_html(file_url(job, name), job_title(job), file_url(job, COVER))
    strip = Markup('<img class="wide strip" src="{}" alt="{}">').format(
        file_url(job, STRIP), safe_text(tr("Frames of the video, from left to right"))
    )
    link = Markup('<a href="{}" download="{}">{}</a>').format(
        file_url(job, name), name, safe_text(tr("Download {name}", name=name))
    )
    before = job.request.get("video")
    if not isinstance(before, str):
        return Markup('<div class="figures">{}</div>{}<p>{}</p>').format(after, strip, link)
    pair = [(tr("Before"), video_html(upload_url(before), tr("Input video"))), (tr("After"), after)]
    shown = Markup("").join(
        Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(safe_text(name), output)
        for name, output in pair
    )
    return Markup('<div class="figures pair">{}</div>{}<p>{}</p>').format(shown, strip, link)


def warnings_html(job: Job) -> Markup:
    """Return the messages of a job."""
    return Markup("").join(Markup('<p class="message">{}</p>').format(safe_text(line)) for line in job.messages)


def delay_html(delay: JobDelay | None, tr: Translator) -> Markup:
    """Return the warning before the start of a job for which others wait."""
    if delay is None:
        return Markup("")
    if delay.is_shared:
        who = tr("All other jobs, also images and videos, wait until this one ends.")
    else:
        who = tr("Other long jobs, such as trainings and evaluations, wait until this one ends.")
    if delay.seconds is None:
        took = tr("How long it takes is not known yet.")
    else:
        took = tr("It takes about {time}.", time=duration(delay.seconds))
    after = tr("{count} queued jobs start after it.", count=delay.after) if delay.after else ""
    return Markup('<p class="message">{}</p>').format(safe_text(" ".join(filter(None, (who, took, after)))))


def status_html(job: Job | None, place: QueuePosition | None, preview: bool, tr: Translator) -> Markup:
    """Return the status of a job: its position in the queue, its progress with a preview, or how it ended."""
    if job is None:
        return Markup("")
    if job.state == "completed":
        took = duration((job.ended or 0) - (job.started or 0))
        return Markup('<p class="state" data-state="completed" data-job="{}">{}</p>{}').format(
            job.id, safe_text(tr("Done in {time}.", time=took)), warnings_html(job)
        )
    if job.state == "failed":
        return Markup('<div data-state="failed" data-job="{}">{}</div>').format(
            job.id, alert(tr("Failed: {error}", error=failure_text(job, tr)))
        )
    if job.state == "cancelled":
        return Markup('<p class="state" data-state="cancelled" data-job="{}">{}</p>').format(
            job.id, safe_text(tr("Cancelled."))
        )
    shown = Markup("")
    if preview:
        shown = Markup('<img class="wide preview" src="/v1/jobs/{}/preview?{}" alt="{}">').format(
            job.id, job.completed_steps, safe_text(tr("Preview"))
        )
    return Markup('<div class="state" data-state="{}" data-job="{}">{}<p>{}</p>{}</div>').format(
        job.state, job.id, progress_html(job, tr), safe_text(status_text(job, place, tr)), shown
    )


def progress_html(job: Job, tr: Translator) -> Markup:
    """Return the progress bar of a job."""
    if not job.total_steps:
        return Markup('<progress aria-label="{}"></progress>').format(safe_text(tr("Progress")))
    return Markup('<progress aria-label="{}" max="{}" value="{}"></progress>').format(
        safe_text(tr("Progress")), job.total_steps, min(job.completed_steps, job.total_steps)
    )


def status_text(job: Job, place: QueuePosition | None, tr: Translator) -> str:
    """Return the status of a job as text."""
    if job.state == "queued":
        if place is None:
            return tr("Queued.")
        return tr("{count} jobs ahead; starts in about {time}.", count=place.ahead, time=duration(place.seconds))
    if job.state == "running":
        if job.cancelling:
            return tr("Cancelling.")
        if not job.total_steps or not job.completed_steps or job.started is None:
            return tr("Starting.")
        left = (time.time() - job.started) * (job.total_steps - job.completed_steps) / job.completed_steps
        return tr(
            "Step {done} of {total}, {time} left.", done=job.completed_steps, total=job.total_steps, time=duration(left)
        )
    ended = {"completed": tr("Done."), "failed": tr("Failed."), "cancelled": tr("Cancelled.")}
    return ended[job.state]


def has_ended(job: Job | None) -> bool:
    """Return True if a job will not change any more."""
    return job is None or job.state in ENDED
