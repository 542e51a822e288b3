"""What a worker knows to do, by the kind of a job, and how a request of each kind is checked and weighed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.service.asked import Asked
from unveil.service.catalog import RUNS, Catalog
from unveil.service.clips import CLIPS, Clips
from unveil.service.clips import read_request as read_clips
from unveil.service.inputs import FOLDER, Inputs
from unveil.service.models import Models
from unveil.service.pictures import PICTURES, Pictures
from unveil.service.pictures import read_request as read_pictures
from unveil.service.worker import Work

# what reads a request of a kind: the request, or a RecipeError
REQUESTS: Mapping[str, Callable[[Mapping[str, Any]], Asked]] = {PICTURES: read_pictures, CLIPS: read_clips}


def kinds(folder: Path, device: str) -> Mapping[str, Work]:
    """All that a worker does, for a service's folder and on one device."""
    models, catalog, inputs = Models(), Catalog(folder / RUNS), Inputs(folder / FOLDER)
    return {
        PICTURES: Pictures(models, catalog, inputs, device),
        CLIPS: Clips(models, catalog, inputs, device),
    }
