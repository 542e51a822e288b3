"""The studio, as a task of the registry."""

from __future__ import annotations

from typing import ClassVar

from unveil.server.task import Serve


class Studio(Serve):
    """Generate images and videos, train and evaluate models in a browser; serves the HTTP interface as well.

    Jobs survive a restart: queued jobs are run when the studio is started again with the same --state-dir.

    Example: unveil studio
    """

    name: ClassVar[str] = "studio"
    module: ClassVar[str] = "unveil.studio.server"
    extra: ClassVar[str] = "studio"
