"""All tasks by name. A task is imported when it is used, so that help and completion stay fast.

A package adds tasks by the entry point group `unveil.tasks`: the entry's name is the task's, its value "module:Class".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.errors import DataError, RecipeError, did_you_mean
from unveil.tasks import NAME

if TYPE_CHECKING:  # pydantic takes a tenth of a second to import, and help must not wait for it
    from unveil.tasks.task import Task

GROUP = "unveil.tasks"


class TaskEntry(NamedTuple):
    """A task in the registry: the place of its class, and what help shows without importing it."""

    target: str
    section: str = ""
    summary: str = ""


# Each bundled task by section: its name, the place of its class (in `unveil.tasks` if no package is named), and the
# first line of its help; in the order in which help lists them. A test compares them with the classes.
_BUNDLED = {
    "Generate": (
        ("sample", "text_to_image:TextToImage", "Generate images from a prompt or from class labels."),
        ("variations", "variations:Variations", "Generate variations of an image from noise near its own."),
        (
            "interpolate",
            "interpolate:Interpolate",
            "Interpolate between two generated images, or between two given ones, frame by frame.",
        ),
        ("regenerate", "regenerate:Regenerate", "Generate a file again, exactly, from its metadata."),
    ),
    "Edit images": (
        ("img2img", "img2img:Img2Img", "Generate variants of images from a noised state (SDEdit)."),
        ("inpaint", "inpaint:Inpaint", "Generate new content inside a mask."),
        ("outpaint", "outpaint:Outpaint", "Extend an image beyond its edges."),
        ("upscale", "upscale:Upscale", "Upscale images, in tiles where the result is larger than the model's size."),
        ("invert", "invert:Invert", "Find the initial noise of an image by DDIM inversion."),
        ("preprocess-canny", "preprocess:Canny", "Detect the edges of images, one pixel thick, white on black."),
        ("preprocess-lines", "preprocess:Lines", "Detect the straight lines of images."),
        (
            "preprocess-scribble",
            "preprocess:Scribble",
            "Draw the outlines of large shapes in images, as with a thick pen.",
        ),
        ("preprocess-segments", "preprocess:Segments", "Segment images into regions, each in its own colour."),
        (
            "preprocess-mask",
            "preprocess:ColorMask",
            "Colour class maps, images whose pixels are class numbers, in fixed colours.",
        ),
        ("preprocess-boxes", "preprocess:Boxes", "Draw boxes in the colours of their classes."),
        (
            "preprocess-resize",
            "preprocess:Resize",
            "Bring existing control images, such as depth maps or poses, to a size without stretching them.",
        ),
    ),
    "Videos": (
        (
            "video-generate",
            "video_generate:VideoGenerate",
            "Generate a video from a prompt, and from images that are frames of it.",
        ),
        (
            "video-extend",
            "video_extend:VideoExtend",
            "Extend a video forward or backward; its own frames stay as they are.",
        ),
        (
            "video-interpolate",
            "video_interpolate:VideoInterpolate",
            "Generate the frames between two images, or between the end of a video and the start of another.",
        ),
        ("video-loop", "video_loop:VideoLoop", "Close a video to a loop, or generate a looping video from a prompt."),
        (
            "video-join",
            "video_join:VideoJoin",
            "Join two videos of one size: the result starts as the first and ends as the last.",
        ),
        (
            "video-edit",
            "video_edit:VideoEdit",
            "Edit a video by a prompt: the whole frame, a region, or everything except a region.",
        ),
        (
            "video-storyboard",
            "video_storyboard:VideoStoryboard",
            "Generate one video of several scenes, each a span of frames with its own prompt.",
        ),
        (
            "video-upscale",
            "video_upscale:VideoUpscale",
            "Upscale a video: bicubic upsampling, whose details are regenerated in overlapping windows.",
        ),
    ),
    "Train": (
        (
            "train",
            "train:Train",
            "Train a model by a recipe, or on a folder of images or videos; the same command again resumes the run.",
        ),
        (
            "data-check",
            "data_check:DataCheck",
            "Check training data: decode every file and report sizes, captions, duplicates, and what would be dropped.",
        ),
        ("data-show", "data_show:DataShow", "Show the images that a recipe trains on, as training sees them."),
        (
            "data-cache-latents",
            "data_show:CacheLatents",
            "Encode the images of a recipe once, for training with train.cache_latents=true.",
        ),
        ("recipes-list", "recipes:RecipesList", "List every bundled recipe with its claim."),
        ("recipes-show", "recipes:RecipesShow", "Print a recipe as it is written."),
        ("recipes-cite", "recipes:RecipesCite", "Print the sources of the parts that a recipe uses."),
        ("caption", "caption:CaptionMedia", "Caption the images and videos of a folder, or the videos of a recipe."),
    ),
    "Evaluate": (
        (
            "evaluate",
            "evaluate:Evaluate",
            "Evaluate a model: metrics with their protocol, images and plots, as report.json and report.html.",
        ),
        (
            "analyze-samplers",
            "unveil.analysis.task:AnalyzeSamplers",
            "Measure every sampler on a model: error against NFE, order, cost, as samplers.html and .json.",
        ),
        (
            "analyze-guidance",
            "unveil.analysis.task:AnalyzeGuidance",
            "Evaluate a model at several guidance scales: fidelity against diversity, as guidance.html and .json.",
        ),
        (
            "analyze-inverse",
            "unveil.analysis.task:AnalyzeInverse",
            "Restore images from measurements: inpainting, super-resolution, deblurring, colourization.",
        ),
        (
            "analyze-vit",
            "unveil.analysis.task:AnalyzeViT",
            "Train a ViT in several sizes on several amounts of data: accuracy as vit.html and vit.json.",
        ),
        (
            "analyze-video-tasks",
            "unveil.analysis.task:AnalyzeVideoTasks",
            "Benchmark a video model beyond text-to-video, by Sora's list of tasks.",
        ),
        (
            "analyze-prompts",
            "unveil.analysis.task:AnalyzePrompts",
            "Benchmark how a video model follows prompts, by kind of prompt.",
        ),
        (
            "analyze-physics",
            "unveil.analysis.task:AnalyzePhysics",
            "Benchmark what a video model knows about the world: permanence, space, actions, rules, motion.",
        ),
        (
            "analyze-detector",
            "unveil.analysis.task:AnalyzeDetector",
            "Measure the detector on real videos, before and after H.264: the ceiling of every score of a video model.",
        ),
        (
            "reproduce",
            "unveil.reproduce.task:Reproduce",
            "Reproduce a paper's claim as a small experiment with a computed verdict.",
        ),
    ),
    "Models": (
        (
            "get",
            "get:Get",
            "Download a model of a hub into the models folder, after showing its license and what it takes.",
        ),
        ("push", "push:Push", "Upload a model with its card to a hub, as a repository of your account."),
        (
            "convert",
            "convert:Convert",
            "Convert weights between the native format and those of other projects, or a run to a saved model.",
        ),
        ("rename", "models:RenameModel", "Rename a model of the models folder."),
        ("delete", "models:DeleteModel", "Delete a model of the models folder."),
        ("merge", "merge:Merge", "Merge models of one architecture by a weighted average of their weights."),
        ("translate", "translate:Translate", "Translate texts by a trained sequence-to-sequence model."),
        (
            "inspect-model",
            "inspect:InspectModel",
            "Show what a checkpoint contains, from its headers only; or the size and cost of an architecture.",
        ),
        (
            "inspect-models",
            "inspect:InspectModels",
            "List the models folder, $UNVEIL_MODELS or ./models, with the format of each file.",
        ),
        (
            "inspect-schedule",
            "inspect:InspectSchedule",
            "Plot a noise schedule: alpha-bar, the ratio of the two betas and the variational bound, per timestep.",
        ),
        (
            "inspect-samplers",
            "inspect:InspectSamplers",
            "List every sampler with its order, noise, network evaluations per step and settings.",
        ),
        ("lora-inspect", "lora:LoraInspect", "Show what a LoRA file contains, by its keys."),
        ("lora-convert", "lora:LoraConvert", "Convert a LoRA to another format; the model names the target modules."),
        ("lora-merge", "lora:LoraMerge", "Merge LoRAs into the weights of a model."),
    ),
    "Serve": (
        (
            "studio",
            "unveil.studio.task:Studio",
            "Generate images and videos, train and evaluate models in a browser; serves the HTTP interface as well.",
        ),
        (
            "serve",
            "unveil.server.task:Serve",
            "Serve image and video generation over HTTP, by an OpenAI-compatible interface and by its own.",
        ),
    ),
    "First steps": (
        (
            "demo",
            "demo:Demo",
            "Train on handwritten digits, generate some, evaluate the model, and generate a video from a prompt.",
        ),
    ),
}
BUNDLED: dict[str, TaskEntry] = {
    name: TaskEntry(target if target.startswith("unveil.") else f"unveil.tasks.{target}", section, summary)
    for section, rows in _BUNDLED.items()
    for name, target, summary in rows
}


@cache
def entries() -> Mapping[str, TaskEntry]:
    """Every task: the bundled ones, and those of installed packages."""
    added = {entry.name: TaskEntry(entry.value) for entry in entry_points(group=GROUP) if entry.name not in BUNDLED}
    return BUNDLED | added


@cache
def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        RecipeError: No task of this name, or the class of a package cannot be used.
    """
    from unveil.tasks.task import Task

    every = entries()
    if name not in every:
        raise RecipeError(f"task {name!r}: there is no such task{did_you_mean(name, [*every])}")
    module, _, attribute = every[name].target.partition(":")
    try:
        task: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise RecipeError(f"task {name!r}: {every[name].target} cannot be imported: {problem}") from problem
    if not (isinstance(task, type) and issubclass(task, Task) and task.name == name):
        raise RecipeError(f"task {name!r}: {every[name].target} is not a task of this name")
    return task


def entry_of(name: str) -> TaskEntry:
    """The entry of a task with its section and summary, imported if they are not known without."""
    entry = entries()[name]
    if entry.summary:
        return entry
    kind = task_class(name)
    return TaskEntry(entry.target, kind.section, summary(kind))


def summary(kind: type[Task]) -> str:
    """The first line of a task's description."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def parse(values: Mapping[str, Any], where: str = "") -> Task:
    """The task of plain values, whose key `name` says which.

    Raises:
        RecipeError: No such task, or faulty values.
        DataError: No name.
    """
    if not isinstance(values.get(NAME), str):
        raise DataError(f"{where or 'the task'}: names no task")
    kind = task_class(str(values[NAME]))
    return kind.parse({key: value for key, value in values.items() if key != NAME}, where or kind.name)
