"""What the page shows of jobs, as HTML in which every word from outside is text and nothing else."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from markupsafe import Markup, escape

from unveil.cli.console import duration
from unveil.server.jobs.image_job import PICTURES, STRIP, pictures_of
from unveil.server.jobs.job import ENDED, Job
from unveil.server.jobs.queue import Place
from unveil.server.jobs.video_job import CLIPS, COVER, SHOWN
from unveil.studio.error_messages import why
from unveil.studio.i18n import Say

LONGEST = 300  # letters of a prompt on a card
# what is no letter and would be acted upon, or turn the words that follow: shown as the picture of a sign
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= {code: 0xFFFD for code in (0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(text: object) -> Markup:
    """Words from outside as text: no tags, and no signs that a terminal or a page would act upon."""
    return escape(str(text).translate(_UNSEEN))


def alert(text: str) -> Markup:
    """What went wrong, which is read out at once."""
    return Markup('<div class="alert" role="alert">{}</div>').format(plain(text)) if text else Markup("")


def hint(text: str) -> Markup:
    """What to do where there is nothing yet."""
    return Markup('<p class="hint">{}</p>').format(plain(text))


def picture(data: bytes, words: str) -> Markup:
    """A PNG that no address leads to."""
    told = base64.b64encode(data).decode()
    return Markup('<img class="wide" alt="{}" src="data:image/png;base64,{}">').format(plain(words), told)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """Cells are text, or HTML where they were made here."""
    top = Markup("").join(Markup('<th scope="col">{}</th>').format(plain(head)) for head in heads)
    told = Markup("<caption>{}</caption>").format(plain(caption)) if caption else Markup("")
    whole = '<div class="scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(whole).format(told, top, Markup("").join(_row(row) for row in rows))


def _row(cells: Sequence[object]) -> Markup:
    made = [cell if isinstance(cell, Markup) else plain(cell) for cell in cells]
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in made))


def button(do: str, label: str, about: str = "", **data: str) -> Markup:
    """A button that says what to do; `about` tells those who cannot see what it stands beside.

    Args:
        do: the word that the page's code hears.
        label: what is written on it.
        about: what it does, with the thing's name.
        data: more that is heard.
    """
    told = Markup("").join(Markup(' data-{}="{}"').format(key, plain(value)) for key, value in data.items())
    name = Markup(' aria-label="{}"').format(plain(about)) if about else Markup("")
    return Markup('<button type="button" class="own" data-do="{}"{}{}>{}</button>').format(do, told, name, plain(label))


def address(job: Job, name: str) -> str:
    """Where a file of a job lies."""
    return f"/v1/jobs/{job.id}/files/{quote(name)}"


def sent_address(name: str) -> str:
    """Where a file that was sent lies."""
    return f"/v1/inputs/{quote(name)}"


def film(source: str, words: str, cover: str = "") -> Markup:
    """A clip that plays when it is asked to; a GIF is a picture."""
    if source.endswith(".gif"):
        return Markup('<img class="wide" src="{}" alt="{}">').format(source, plain(words))
    video = '<video controls loop muted playsinline preload="metadata" poster="{}" src="{}" aria-label="{}"></video>'
    return Markup(video).format(cover, source, plain(words))


def described(job: Job) -> str:
    """What a job was asked for, in a line."""
    asked = job.request
    named = [asked.get(key) for key in ("prompt", "label", "folder", "run", "model", "recipe")]
    return next((str(one)[:LONGEST] for one in named if one), job.kind)


def made(job: Job, say: Say) -> Markup:
    """What a completed job made."""
    if job.kind == CLIPS:
        return _clip(job, say)
    if job.kind != PICTURES:
        return Markup("")
    figures = Markup("").join(
        Markup('<figure><a href="{0}" target="_blank" rel="noopener"><img src="{0}" alt="{1}"></a>'
               '<figcaption><a href="{0}" download="{2}">{3}</a></figcaption></figure>').format(
            address(job, name), plain(f"{described(job)} ({number})"), name, plain(say("Download {name}", name=name)))
        for number, name in enumerate(pictures_of(job), 1)
    )  # fmt: skip
    strip = Markup("")
    if STRIP in job.outputs:
        words = say("From noise to picture"), say("States of the pictures, step by step")
        strip = Markup('<details open><summary>{}</summary><img class="wide strip" src="{}" alt="{}"></details>')
        strip = strip.format(plain(words[0]), address(job, STRIP), plain(words[1]))
    return Markup('<div class="figures">{}</div>{}').format(figures, strip)


def _clip(job: Job, say: Say) -> Markup:
    name = next(one for one in job.outputs if one.startswith("clip."))
    after = film(address(job, name), described(job), address(job, COVER))
    strip = Markup('<img class="wide strip" src="{}" alt="{}">').format(
        address(job, SHOWN), plain(say("Frames of the clip, from left to right"))
    )
    link = Markup('<a href="{}" download="{}">{}</a>').format(
        address(job, name), name, plain(say("Download {name}", name=name))
    )
    before = job.request.get("clip")
    if before is None:
        return Markup('<div class="figures">{}</div>{}<p>{}</p>').format(after, strip, link)
    pair = [(say("Before"), film(sent_address(before), say("The clip that was given"))), (say("After"), after)]
    shown = Markup("").join(
        Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(plain(name), one) for name, one in pair
    )
    return Markup('<div class="figures pair">{}</div>{}<p>{}</p>').format(shown, strip, link)


def warnings(job: Job) -> Markup:
    """What a person should know of what was made."""
    return Markup("").join(Markup('<p class="said">{}</p>').format(plain(line)) for line in job.said)


def status(job: Job | None, place: Place | None, preview: bool, say: Say) -> Markup:
    """How a job stands: its place in the queue, its progress with what is on its way, or its end."""
    if job is None:
        return Markup("")
    if job.state == "completed":
        took = duration((job.ended or 0) - (job.started or 0))
        return Markup('<p class="state" data-state="completed" data-job="{}">{}</p>{}').format(
            job.id, plain(say("Done in {time}.", time=took)), warnings(job)
        )
    if job.state == "failed":
        return Markup('<div data-state="failed" data-job="{}">{}</div>').format(
            job.id, alert(say("It failed: {error}", error=why(job, say)))
        )
    if job.state == "cancelled":
        return Markup('<p class="state" data-state="cancelled" data-job="{}">{}</p>').format(
            job.id, plain(say("Cancelled."))
        )
    shown = Markup("")
    if preview:
        shown = Markup('<img class="wide preview" src="/v1/jobs/{}/preview?{}" alt="{}">').format(
            job.id, job.done, plain(say("What is on its way"))
        )
    return Markup('<div class="state" data-state="{}" data-job="{}">{}<p>{}</p>{}</div>').format(
        job.state, job.id, bar(job, say), plain(stands(job, place, say)), shown
    )


def bar(job: Job, say: Say) -> Markup:
    """The progress of a job."""
    if not job.total:
        return Markup('<progress aria-label="{}"></progress>').format(plain(say("Progress")))
    return Markup('<progress aria-label="{}" max="{}" value="{}"></progress>').format(
        plain(say("Progress")), job.total, min(job.done, job.total)
    )


def stands(job: Job, place: Place | None, say: Say) -> str:
    """How a job stands, in words."""
    if job.state == "queued":
        if place is None:
            return say("Waits.")
        return say("Waits behind {count}; begins in about {time}.", count=place.ahead, time=duration(place.seconds))
    if job.state == "running":
        if job.stopping:
            return say("Is being cancelled.")
        if not job.total or not job.done or job.started is None:
            return say("Begins.")
        left = (time.time() - job.started) * (job.total - job.done) / job.done
        return say("Step {done} of {total}, {time} left.", done=job.done, total=job.total, time=duration(left))
    ended = {"completed": say("Done."), "failed": say("Failed."), "cancelled": say("Cancelled.")}
    return ended[job.state]


def is_over(job: Job | None) -> bool:
    """Whether nothing more will change of a job."""
    return job is None or job.state in ENDED
