"""What a model of clips can do besides clips from text: Sora's list, each point with a number, a baseline and a film.

Source: Brooks et al. 2024, "Video generation models as world simulators" (OpenAI's report).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unveil.model import Model
from unveil.study.video_bench import QUICK, Bench, Found, Reach, Settings, check_model, quietly
from unveil.study.video_changed import edit, ground, sizes, twice
from unveil.study.video_given import connect, extended, loop, picture
from unveil.types import RecipeError, nearest

__all__ = ["QUICK", "TASKS", "Settings", "VideoStudy", "study_video"]

TASKS: dict[str, Callable[[Bench], Found]] = {
    "picture": picture,
    "extend": extended,
    "loop": loop,
    "connect": connect,
    "edit": edit,
    "ground": ground,
    "sizes": sizes,
    "twice": twice,
}


@dataclass(frozen=True)
class VideoStudy:
    """What a model makes of each task.

    Attributes:
        seconds: of the processor, of each task.
    """

    settings: Settings
    sampling: Mapping[str, Any]
    found: Mapping[str, Found]
    seconds: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Everything but the films, as plain values."""
        settings = {**asdict(self.settings), "sampling": dict(self.sampling)}
        tasks = {
            name: {**one.record(), "cpu_seconds": round(self.seconds[name], 1)} for name, one in self.found.items()
        }
        return {"settings": settings, "tasks": tasks}


def study_video(model: Model, settings: Settings, reach: Reach = lambda done, total: None) -> VideoStudy:
    """Runs the tasks on real clips of the score world.

    Args:
        model: of clips (3, 16, 32, 32), with a condition `prompt` in English.
        settings: count, seed and the like.
        reach: told how many clips are drawn.

    Raises:
        RecipeError: another kind of model, or an unknown task.
    """
    check_model(model)
    for name in settings.only:
        if name not in TASKS:
            raise RecipeError(f"task {name!r}: must be one of {', '.join(TASKS)}{nearest(name, list(TASKS))}")
    bench = Bench(model.eval(), settings, reach)
    found: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    with quietly():
        for name in settings.only or TASKS:
            begun = time.process_time()
            found[name] = TASKS[name](bench)
            seconds[name] = time.process_time() - begun
    return VideoStudy(settings, model.sampling.changed(settings.sampling).brief(), found, seconds)
