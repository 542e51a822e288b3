"""What the page asks of the service, for whoever looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unveil.server.jobs.catalog import about
from unveil.server.jobs.job import ENDED, Job
from unveil.server.jobs.job_types import weighed
from unveil.server.jobs.queue import Place
from unveil.server.jobs.service import Service
from unveil.server.jobs.uploads import BYTES, Kept
from unveil.studio.i18n import LANGUAGES, Say
from unveil.studio.mask import mask_of
from unveil.studio.upload_decoder import decoded
from unveil.types import DataError, RecipeError

Owner = str


class Client:
    """The service behind a page.

    Args:
        service: behind it.
        budget: work of one job at most; None: as much as one likes.
        say: the words of the page.
    """

    def __init__(self, service: Service, budget: float | None, say: Say | None = None) -> None:
        self.service, self.budget, self.say = service, budget, say or Say(LANGUAGES[0])

    def speaking(self, say: Say) -> Client:
        """The same for a page of other words."""
        return Client(self.service, self.budget, say)

    def submit(self, kind: str, request: Mapping[str, Any], owner: Owner) -> Job:
        """Checks a request and puts it into the queue.

        Raises:
            RecipeError, WeightsError, MediaError: it cannot be done.
            Busy: as many wait as may.
        """
        cost = weighed(kind, request, self.service.catalog, self.service.inputs, self.budget)
        return self.service.submit(kind, request, owner, cost)

    def keep(self, path: str | None) -> Kept | None:
        """A file that the page has, as one that requests may speak of; None: there is none.

        Raises:
            MediaError: no picture and no clip that is read here, or too large.
        """
        if not path:
            return None
        file = Path(path)
        if file.stat().st_size > BYTES:
            raise DataError(
                self.say("{name}: larger than {most} MiB, the most that is read.", name=file.name, most=BYTES >> 20)
            )
        return self.service.inputs.keep(file.read_bytes())

    def cover(self, path: str | None) -> Image.Image | None:
        """A picture that the page has, or the first frame of a clip; None: there is none.

        Raises:
            MediaError: as `keep`.
        """
        kept, inputs = self.keep(path), self.service.inputs
        if kept is None:
            return None
        if kept.kind == "clip":
            return inputs.cover(kept.name)
        with inputs.path(kept.name).open("rb") as file:  # as clips are decoded by a child, so are pictures here
            return decoded(file, "RGB", (kept.width, kept.height))

    def mask(self, painted: Mapping[str, Any] | None, kept: Kept) -> str | None:
        """What was painted over a picture or a clip that was sent, as another file that requests may speak of.

        Raises:
            MediaError: as `mask_of`.
        """
        mask = mask_of(painted, (kept.height, kept.width))
        return None if mask is None else self.service.inputs.keep(mask).name

    def sent(self, name: str | None) -> str | None:
        """Where a file that was sent lies; None: it is gone, or none was."""
        try:
            return None if name is None else str(self.service.inputs.path(name))
        except DataError:
            return None

    def models(self, *makes: str | None) -> list[str]:
        """The names of models; of those that make one of these, None being those that do not say it."""
        found = self.service.catalog.models()
        return [one.name for one in found if not makes or about(one).makes in makes]

    def job(self, id: str | None, owner: Owner) -> Job | None:
        """A job of an owner; None: there is none."""
        job = self.service.queue.get(id) if id else None
        return None if job is None or job.owner != owner else job

    def place(self, job: Job | None) -> Place | None:
        """Where a job stands that waits."""
        if job is None or job.state != "queued":
            return None
        return self.service.queue.places(len(self.service.crew.devices)).get(job.id)

    def preview(self, job: Job | None) -> bool:
        """Whether there is a picture of what is on its way."""
        return job is not None and job.state == "running" and self.service.preview(job.id) is not None

    def cancel(self, id: str | None, owner: Owner) -> Job | None:
        """Asks for the end of a job of an owner."""
        job = self.job(id, owner)
        return None if job is None else self.service.queue.cancel(job.id)

    def delete(self, id: str | None, owner: Owner) -> None:
        """Deletes a job that has ended, and what it made.

        Raises:
            RecipeError: there is none, or it has not ended.
        """
        job = self.job(id, owner)
        if job is None or job.state not in ENDED or not self.service.delete(job.id):
            raise RecipeError(self.say("There is no such job that has ended."))
