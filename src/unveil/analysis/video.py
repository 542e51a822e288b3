"""What a model of clips can do besides clips from text: Sora's list, each point with a number, a baseline and a film.

Source: Brooks et al. 2024, "Video generation models as world simulators" (OpenAI's report).
"""

from __future__ import annotations

from collections.abc import Callable

from unveil.analysis.video_bench import QUICK, Reach, StudyContext, VideoStudy, VideoStudySettings, run_study
from unveil.analysis.video_context_tasks import connect, extended, loop, picture
from unveil.analysis.video_edit_tasks import edit, ground, sizes, twice
from unveil.analysis.video_metrics import StudyResult
from unveil.model import Model

__all__ = ["QUICK", "TASKS", "VideoStudySettings", "study_video"]

TASKS: dict[str, Callable[[StudyContext[VideoStudySettings]], StudyResult]] = {
    "image": picture,
    "extend": extended,
    "loop": loop,
    "connect": connect,
    "edit": edit,
    "ground": ground,
    "sizes": sizes,
    "twice": twice,
}


def study_video(model: Model, settings: VideoStudySettings, reach: Reach = lambda done, total: None) -> VideoStudy:
    """Runs the tasks on real clips of the score world.

    Args:
        model: of clips (3, 16, 32, 32), with a condition `prompt` in English.
        settings: count, seed and the like.
        reach: told how many clips are drawn.

    Raises:
        RecipeError: another kind of model, or an unknown task.
    """
    return run_study(model, settings, TASKS, reach)
