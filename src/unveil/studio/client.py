"""Access of the page to the service, on behalf of one owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from PIL import Image

from unveil.errors import DataError, RecipeError
from unveil.server.jobs.catalog import Catalog, model_info
from unveil.server.jobs.job_delay import JobDelay
from unveil.server.jobs.job_table import ENDED, Job
from unveil.server.jobs.outputs import MAX_BYTES, UploadedFile, UploadStore
from unveil.server.jobs.queue import QueuePosition
from unveil.server.jobs.service import Service
from unveil.studio.i18n import LANGUAGES, Translator
from unveil.studio.mask import painted_mask
from unveil.studio.upload_decoder import decode_upload

Owner = str
_owner: ContextVar[Owner | None] = ContextVar("owner", default=None)  # of the event that is handled


class StudioClient:
    """The service behind a page.

    Args:
        service: Service behind it.
        budget: Maximum cost of a job; None: unlimited.
        tr: Translator of the page.
    """

    def __init__(self, service: Service, budget: float | None, tr: Translator | None = None) -> None:
        self.service, self.budget, self.tr = service, budget, tr or Translator(LANGUAGES[0])

    @property
    def catalog(self) -> Catalog:
        """Names that the owner of the current event may use.

        While the page is built, these are the names that all owners share, or all names of a server without keys.
        """
        owner = _owner.get()
        return self.service.catalog("" if owner is None and not self.has_keys else owner)

    @property
    def has_keys(self) -> bool:
        """Whether the server requires API keys, so that it has several owners."""
        return self.service.admins is not None

    def require_admin(self, owner: Owner) -> None:
        """Check that an owner may add models.

        Raises:
            RecipeError: The owner may not.
        """
        if not self.service.is_admin(owner):
            raise RecipeError(self.tr("All keys share the models; only a key with the role admin can add one."))

    @property
    def uploads(self) -> UploadStore:
        """Uploaded files of the owner of the current event."""
        return self.service.uploads(_owner.get() or "")

    @staticmethod
    @contextmanager
    def on_behalf_of(owner: Owner) -> Iterator[None]:
        """Give the calls of the block the names and the uploads of an owner."""
        token = _owner.set(owner)
        try:
            yield
        finally:
            _owner.reset(token)

    def with_language(self, tr: Translator) -> StudioClient:
        """Return the same client for a page in another language."""
        return StudioClient(self.service, self.budget, tr)

    def submit(self, kind: str, request: Mapping[str, Any], owner: Owner) -> Job:
        """Validate a request and append it to the queue.

        Raises:
            RecipeError, WeightsError, DataError: The request is not possible.
            QueueFull: The queue is full, or the owner has too many files.
            OutOfResources: The owner's quota is used up.
        """
        cost = self.service.cost(kind, request, owner, self.budget)
        return self.service.submit(kind, request, owner, cost)

    def delay(self, kind: str, request: Mapping[str, Any], owner: Owner) -> JobDelay | None:
        """Estimate for how long a job that is not yet submitted would keep others waiting; None for short jobs."""
        return self.service.delay(Job("", kind, dict(request), owner))

    def store_upload(self, path: str | None) -> UploadedFile | None:
        """Store a file of the page as an upload, to which requests can refer; None without a file.

        Raises:
            DataError: Not a supported image or video, or too large.
        """
        if not path:
            return None
        file = Path(path)
        if file.stat().st_size > MAX_BYTES:
            raise DataError(
                self.tr("{name}: larger than the maximum of {most} MiB.", name=file.name, most=MAX_BYTES >> 20)
            )
        with file.open("rb") as content:
            return self.service.store_upload(content, _owner.get() or "")

    def cover_image(self, path: str | None) -> Image.Image | None:
        """Return an image of the page, or the first frame of a video; None without a file.

        Raises:
            DataError: As `store_upload`.
        """
        upload, inputs = self.store_upload(path), self.uploads
        if upload is None:
            return None
        with self.service.owners.turns.turn(_owner.get() or ""):
            return self._decode(inputs, upload)

    @staticmethod
    def _decode(inputs: UploadStore, upload: UploadedFile) -> Image.Image:
        """Decode an image, or the first frame of a video, in a child process."""
        if upload.kind == "video":
            return inputs.cover(upload.name)
        with inputs.path(upload.name).open("rb") as file:
            return decode_upload(file, "RGB", (upload.width, upload.height))

    def store_mask(self, painted: Mapping[str, Any] | None, upload: UploadedFile) -> str | None:
        """Store what was painted over an uploaded image or video as a mask, and return its upload name.

        Raises:
            DataError: As `painted_mask`.
        """
        mask = painted_mask(painted, (upload.height, upload.width))
        return None if mask is None else self.service.store_upload(mask, _owner.get() or "").name

    def upload_path(self, name: str | None) -> str | None:
        """Return the path of an upload; None if it was deleted or no name is given."""
        try:
            return None if name is None else str(self.uploads.path(name))
        except DataError:
            return None

    def models(self, *makes: str | None) -> list[str]:
        """List the names of models, optionally of those with these outputs; None stands for unknown output."""
        models = self.catalog.models()
        return [entry.name for entry in models if not makes or model_info(entry).makes in makes]

    def job(self, id: Any, owner: Owner) -> Job | None:
        """Return a job of an owner; None if it does not exist, or if the id, which a browser sent, is not a text."""
        job = self.service.queue.get(id) if id and isinstance(id, str) else None
        return None if job is None or job.owner != owner else job

    def queue_position(self, job: Job | None) -> QueuePosition | None:
        """Return the position of a queued job."""
        if job is None or job.state != "queued":
            return None
        return self.service.positions().get(job.id)

    def has_preview(self, job: Job | None) -> bool:
        """Return True if a running job has a preview image."""
        return job is not None and job.state == "running" and self.service.preview(job.id) is not None

    def cancel(self, id: str | None, owner: Owner) -> Job | None:
        """Cancel a job of an owner."""
        job = self.job(id, owner)
        return None if job is None else self.service.queue.cancel(job.id)

    def delete(self, id: str | None, owner: Owner) -> None:
        """Delete a job that has ended, and its outputs.

        Raises:
            RecipeError: It does not exist, or has not ended.
        """
        job = self.job(id, owner)
        if job is None or job.state not in ENDED or not self.service.delete(job.id):
            raise RecipeError(self.tr("This job does not exist or has not ended."))
