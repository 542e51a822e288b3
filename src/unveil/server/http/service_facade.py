"""What routes ask of the service, without keeping others waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from unveil.server.http.errors import Problem
from unveil.server.jobs.job import ENDED, Job
from unveil.server.jobs.job_types import weighed
from unveil.server.jobs.service import Service

SOON_S, LATER_S = 0.02, 0.1  # between two looks at a job, in its first second and after
ALIVE_S = 15.0  # between two signs of life of a stream of events


class Calls:
    """The service, for routes; it is looked at from the loop itself and changed in one thread behind it.

    Args:
        service: behind it.
        budget: work of one job at most, see `kinds.cost`; None: as much as one likes.
    """

    def __init__(self, service: Service, budget: float | None) -> None:
        self.service, self.budget = service, budget
        self._writer = ThreadPoolExecutor(1, "writer")
        self._coming: dict[str, int] = {}  # jobs of each owner that are being written
        self._counting = threading.Lock()

    async def submit(self, kind: str, request: Mapping[str, Any], owner: str) -> Job:
        """Checks a request and puts it into the queue.

        Raises:
            RecipeError, WeightsError: it cannot be done.
            OverBudget: it is more work than a job may be.
            Busy: as many wait as may.
        """
        self.service.queue.refuse_full(owner, self._coming)  # what is being written counts; it waits for nobody
        cost = await run_in_threadpool(  # what it names is looked up on the disk
            weighed, kind, request, self.service.catalog, self.service.inputs, self.budget
        )
        self.service.queue.refuse_full(owner, self._coming)  # others came meanwhile
        with self._counting:
            self._coming[owner] = self._coming.get(owner, 0) + 1
        return await self._write(self._submitted, kind, dict(request), owner, cost)

    def _submitted(self, kind: str, request: Mapping[str, Any], owner: str, cost: float) -> Job:
        try:
            return self.service.submit(kind, request, owner, cost)
        finally:
            with self._counting:
                self._coming[owner] -= 1

    def get(self, id: str, owner: str) -> Job:
        """A job of an owner.

        Raises:
            Problem: there is none.
        """
        job = self.service.queue.get(id)
        if job is None or job.owner != owner:
            raise Problem(404, f"{id[:80]!r}: there is no such job", "not_found")
        return job

    async def cancel(self, id: str, owner: str) -> Job:
        """Asks for the end of a job.

        Raises:
            Problem: there is none, or it has ended.
        """
        if self.get(id, owner).state in ENDED:
            raise Problem(409, f"{id}: has ended", "has_ended")
        await self._write(self.service.queue.cancel, id)
        return self.get(id, owner)

    async def delete(self, id: str, owner: str) -> None:
        """Deletes a job that has ended, with what it made.

        Raises:
            Problem: there is none, or it has not ended.
        """
        self.get(id, owner)
        if not await self._write(self.service.delete, id):
            raise Problem(409, f"{id}: has not ended; cancel it first", "not_ended")

    async def ended(self, id: str, owner: str, request: Request) -> Job:
        """Waits for a job; who goes away meanwhile has cancelled it.

        Raises:
            Problem: nobody waits any more.
        """
        begun = looked = time.monotonic()
        while (job := self.get(id, owner)).state not in ENDED:
            now = time.monotonic()
            if now - looked > 0.5:
                looked = now
                if await request.is_disconnected():
                    await self._write(self.service.queue.cancel, id)
                    raise Problem(499, "nobody waits for it any more", "gone")
            await asyncio.sleep(SOON_S if now - begun < 1 else LATER_S)
        return job

    async def changes(self, id: str, owner: str) -> AsyncIterator[Job | None]:
        """A job each time that it stands otherwise, until it has ended; None now and then, as a sign of life."""
        last, told = None, time.monotonic()
        while True:
            job = self.get(id, owner)
            if job != last:
                last, told = job, time.monotonic()
                yield job
                if job.state in ENDED:
                    return
            elif time.monotonic() - told > ALIVE_S:
                told = time.monotonic()
                yield None
            await asyncio.sleep(LATER_S)

    async def _write(self, call: Any, *given: Any) -> Any:
        # what is begun is written, whoever goes away
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, call, *given))
