"""Asynchronous access of routes to the service, without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from unveil.server.http.errors import HttpProblem
from unveil.server.jobs.job_table import ENDED, Job
from unveil.server.jobs.service import Service

SOON_S, LATER_S = 0.02, 0.1  # polling interval of a job, in its first second and after
ALIVE_S = 15.0  # interval of keep-alive messages in an event stream


class AsyncService:
    """Service for routes: reads happen in the event loop, writes in one thread.

    Args:
        service: Service behind it.
        budget: Maximum cost of a job, as `Service.cost` computes it; None: unlimited.
    """

    def __init__(self, service: Service, budget: float | None) -> None:
        self.service, self.budget = service, budget
        self._writer = ThreadPoolExecutor(1, "writer")
        self._coming: dict[str, int] = {}  # number of jobs per owner that are being written
        self._counting = threading.Lock()

    async def submit(self, kind: str, request: Mapping[str, Any], owner: str) -> Job:
        """Validate a request and append it to the queue.

        Raises:
            RecipeError, WeightsError: The request is not possible.
            JobTooLarge: The job exceeds the budget.
            QueueFull: The queue is full, or the owner has too many files.
            OutOfResources: The owner's quota is used up.
        """
        self.service.queue.check_capacity(owner, self._coming)  # counts jobs that are being written; does not wait
        cost = await run_in_threadpool(  # looks up names on the disk
            self.service.cost, kind, request, owner, self.budget
        )
        self.service.queue.check_capacity(owner, self._coming)  # others may have been submitted meanwhile
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
        """Return a job of an owner.

        Raises:
            HttpProblem: It does not exist.
        """
        job = self.service.queue.get(id)
        if job is None or job.owner != owner:
            raise HttpProblem(404, f"{id[:80]!r}: no such job", "not_found")
        return job

    async def cancel(self, id: str, owner: str) -> Job:
        """Cancel a job.

        Raises:
            HttpProblem: It does not exist, or has ended.
        """
        if self.get(id, owner).state in ENDED:
            raise HttpProblem(409, f"{id}: has ended", "has_ended")
        await self._write(self.service.queue.cancel, id)
        return self.get(id, owner)

    async def delete(self, id: str, owner: str) -> None:
        """Delete a job that has ended, and its outputs.

        Raises:
            HttpProblem: It does not exist, or has not ended.
        """
        self.get(id, owner)
        if not await self._write(self.service.delete, id):
            raise HttpProblem(409, f"{id}: has not ended; cancel it first", "not_ended")

    async def wait(self, id: str, owner: str, request: Request) -> Job:
        """Wait for a job; if the client disconnects, the job is cancelled.

        Raises:
            HttpProblem: The client has disconnected.
        """
        start = looked = time.monotonic()
        while (job := self.get(id, owner)).state not in ENDED:
            now = time.monotonic()
            if now - looked > 0.5:
                looked = now
                if await request.is_disconnected():
                    await self._write(self.service.queue.cancel, id)
                    raise HttpProblem(499, "the client has disconnected", "gone")
            await asyncio.sleep(SOON_S if now - start < 1 else LATER_S)
        return job

    async def changes(self, id: str, owner: str) -> AsyncIterator[Job | None]:
        """Yield each change of a job until it has ended, and None at intervals as a keep-alive."""
        last, last_sent = None, time.monotonic()
        while True:
            job = self.get(id, owner)
            if job != last:
                last, last_sent = job, time.monotonic()
                yield job
                if job.state in ENDED:
                    return
            elif time.monotonic() - last_sent > ALIVE_S:
                last_sent = time.monotonic()
                yield None
            await asyncio.sleep(LATER_S)

    async def _write(self, call: Any, *args: Any) -> Any:
        # a started write is completed even if the client disconnects
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, call, *args))
