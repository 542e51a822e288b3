"""Benchmark of a video model beyond text-to-video: Sora's list of tasks with numbers, baselines and animations.

Source: Brooks et al. 2024, "Video generation models as world simulators" (OpenAI's report).
"""

from __future__ import annotations

from collections.abc import Callable

from unveil.analysis.video_context_tasks import connect, extend, image_to_video, loop
from unveil.analysis.video_edit_tasks import background, double_resolution, edit, sizes
from unveil.analysis.video_study import Progress, StudyContext, StudyResult, VideoStudy, VideoTaskSettings, run_study
from unveil.model import Model

TASKS: dict[str, Callable[[StudyContext[VideoTaskSettings]], StudyResult]] = {
    "image": image_to_video,
    "extend": extend,
    "loop": loop,
    "connect": connect,
    "edit": edit,
    "ground": background,
    "sizes": sizes,
    "twice": double_resolution,
}


def study_video(
    model: Model, settings: VideoTaskSettings, on_progress: Progress = lambda done, total: None
) -> VideoStudy:
    """Run the tasks on real videos of the playground's evaluation set.

    Args:
        model: Video model (3, 16, 32, 32) with a condition `prompt` in English.
        settings: Settings of the study.
        on_progress: Called with the number of generated videos.

    Raises:
        RecipeError: The model is not a text-to-video model, or a task is unknown.
    """
    return run_study(model, settings, TASKS, on_progress)
