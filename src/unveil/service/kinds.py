"""What a worker knows to do, by the kind of a job."""

from __future__ import annotations

from collections.abc import Mapping

from unveil.service.models import Models
from unveil.service.pictures import PICTURES, Pictures
from unveil.service.worker import Work


def kinds(device: str) -> Mapping[str, Work]:
    """All of it, on one device."""
    return {PICTURES: Pictures(Models(), device)}
