"""Analyses as tasks of the registry: samplers, guidance, restoration, ViT sizes, video models and the detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from unveil.tasks.evaluate import EvaluationFields, FeatureWeights
from unveil.tasks.fields import (
    Fields,
    Frames,
    LocalFile,
    ModelName,
    Name,
    NumberList,
    RecipeChanges,
    RecipeName,
    SamplingKeys,
    Seed,
    Settings,
    Side,
    info,
)
from unveil.tasks.task import Task, TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.analysis.inverse_problems import InverseSettings
    from unveil.analysis.samplers import SamplerStudySettings
    from unveil.analysis.vit import ViTStudySettings

MAX_CALLS = 100_000  # network evaluations of one sample
AnalysisSeed = Annotated[Seed, info("Seed of the initial noise and of the data.")]


class Analysis(Task):
    """An analysis, whose files are a page and the record of its numbers."""

    section: ClassVar[str] = "Evaluate"
    arguments: ClassVar[tuple[str, ...]] = ("model",)
    out: ClassVar[str] = "analysis"
    out_optional: ClassVar[bool] = True
    out_help: ClassVar[str] = "Output folder of the page; the run's folder when left out."
    makes: ClassVar[str] = "report"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Analysis"


class AnalyzeSamplers(Analysis):
    """Measure every sampler on a model: error against NFE, order, cost, as samplers.html and .json.

    Example: unveil analyze samplers ddpm-digits --calls 5,10,20 -o runs/study
    """

    name: ClassVar[str] = "analyze-samplers"

    model: Annotated[ModelName, info("Bundled model, or a folder: a saved model or a run.", metavar="MODEL")]
    calls: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MAX_CALLS)], ...],
        NumberList(),
        info(
            "Numbers of function evaluations (NFE) per sample, in rising order.",
            title="Function evaluations (NFE)",
            metavar="NUMBER,...",
            max_length=32,
        ),
    ] = (5, 10, 20, 50)
    num_samples: Annotated[
        int,
        info(
            "Number of samples, generated as one batch.",
            title="Number of samples",
            flags=["--num-samples", "-n"],
            ge=2,
            le=4096,
        ),
    ] = 16
    seed: AnalysisSeed = 0
    schedule: Annotated[
        Name | None,
        info("Noise schedule of all samplers; karras where the process allows it.", advanced=True),
    ] = None
    only: Annotated[
        tuple[Name, ...],
        info("Sampler to measure; all when left out; repeat for several.", title="Samplers", max_length=100),
    ] = ()

    def study_settings(self) -> SamplerStudySettings:
        """Return the settings of the study.

        Raises:
            RecipeError: The numbers of evaluations do not rise, or a sampler is unknown.
        """
        from unveil.analysis.samplers import SamplerStudySettings

        return SamplerStudySettings(self.calls, self.num_samples, self.seed, self.schedule, self.only)

    def check(self) -> None:
        """Check the numbers of evaluations and the names of the samplers."""
        self.study_settings()

    def run(self, context: TaskContext) -> TaskResult:
        """Run every sampler, and write the page."""
        from unveil.analysis.task_run import analyze_samplers

        return analyze_samplers(self, context)


class AnalyzeGuidance(EvaluationFields, Analysis):
    """Evaluate a model at several guidance scales: fidelity against diversity, as guidance.html and .json.

    Example: unveil analyze guidance ddpm-digits --scales 1,2,4 --set evaluate.samples=200 -o runs/study
    """

    name: ClassVar[str] = "analyze-guidance"

    scales: Annotated[
        tuple[Annotated[float, Field(ge=-100, le=1000)], ...],
        NumberList(),
        info(
            "Guidance scales, in rising order; 1: no guidance.",
            title="Guidance scales",
            metavar="NUMBER,...",
            max_length=32,
        ),
    ] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    feature_weights: FeatureWeights = None

    def check(self) -> None:
        """Check that the scales rise."""
        from unveil.analysis.guidance_sweep import check_scales

        check_scales(self.scales)

    def run(self, context: TaskContext) -> TaskResult:
        """Evaluate the model at each scale, and write the page."""
        from unveil.analysis.task_run import analyze_guidance

        return analyze_guidance(self, context)


class AnalyzeInverse(EvaluationFields, Analysis):
    """Restore images from measurements: inpainting, super-resolution, deblurring, colourization.

    Writes inverse.html and inverse.json, with the PSNR of each method and of baselines without a model.

    Example: unveil analyze inverse ddpm-digits -n 16 -o runs/study
    """

    name: ClassVar[str] = "analyze-inverse"

    num_images: Annotated[
        int,
        info(
            "Number of images, restored as one batch; an interval needs at least 2.",
            title="Number of images",
            flags=["--num-images", "-n"],
            ge=2,
            le=4096,
        ),
    ] = 64
    steps: Annotated[
        int,
        info("Number of sampling steps of each method; DPS takes five times as many.", ge=1, le=10_000),
    ] = 20
    seed: AnalysisSeed = 0
    split: Annotated[
        Literal["train", "held-out"], info("Split of the data: train or held-out.", metavar="SPLIT", advanced=True)
    ] = "held-out"

    def study_settings(self) -> InverseSettings:
        """Return the settings of the study."""
        from unveil.analysis.inverse_problems import InverseSettings

        return InverseSettings(self.num_images, self.steps, self.seed)

    def run(self, context: TaskContext) -> TaskResult:
        """Restore the images, and write the page."""
        from unveil.analysis.task_run import analyze_inverse

        return analyze_inverse(self, context)


class NetworkSize(Fields):
    """Number of blocks of a network, and width of its tokens."""

    depth: Annotated[int, info("Number of blocks.", title="Blocks", ge=1, le=1000)]
    width: Annotated[int, info("Width of the tokens.", title="Token width", ge=1, le=65_536)]


class AnalyzeViT(Analysis):
    """Train a ViT in several sizes on several amounts of data: accuracy as vit.html and vit.json.

    After an interruption the same command trains the networks that are missing.

    Example: unveil analyze vit vit-fashion --amounts 500,5000 --steps 300 -o runs/study
    """

    name: ClassVar[str] = "analyze-vit"
    arguments: ClassVar[tuple[str, ...]] = ("recipe",)
    common: ClassVar[tuple[str, ...]] = ("force",)
    out_help: ClassVar[str] = "Output folder of the page; runs/RECIPE-sizes when left out."

    recipe: Annotated[RecipeName, info("Bundled recipe, YAML file or run folder.", metavar="RECIPE")] = "vit-fashion"
    sizes: Annotated[
        tuple[NetworkSize, ...],
        info(
            "Sizes of the network: number of blocks and width of the tokens.",
            title="Size",
            metavar="BLOCKSxWIDTH,...",
            max_length=16,
        ),
    ] = (NetworkSize(depth=3, width=48), NetworkSize(depth=6, width=96), NetworkSize(depth=8, width=144))
    amounts: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000_000)], ...],
        NumberList(),
        info(
            "Numbers of training images, in rising order.",
            title="Numbers of training images",
            metavar="NUMBER,...",
            max_length=16,
        ),
    ] = (1000, 8000, 60000)
    steps: Annotated[int, info("Number of training steps of each network.", ge=1, le=10_000_000)] = 1200
    seeds: Annotated[
        int, info("Number of networks for each size and number of images.", title="Networks per size", ge=1, le=100)
    ] = 1
    settings: Annotated[
        RecipeChanges,
        info(
            "Change of the recipe, such as train.lr=0.001; may repeat.", title="Changes of the recipe", flags=["--set"]
        ),
    ] = Field(default_factory=dict)

    def study_settings(self) -> ViTStudySettings:
        """Return the settings of the study.

        Raises:
            RecipeError: A size is given twice, or the numbers of images do not rise.
        """
        from unveil.analysis.vit import ViTSize, ViTStudySettings

        sizes = tuple(ViTSize(size.depth, size.width) for size in self.sizes)
        return ViTStudySettings(sizes, self.amounts, self.steps, self.seeds)

    def check(self) -> None:
        """Check the sizes and the numbers of images."""
        self.study_settings()

    def run(self, context: TaskContext) -> TaskResult:
        """Train the networks, and write the page."""
        from unveil.analysis.task_run import analyze_vit

        return analyze_vit(self, context)


class VideoSize(Fields):
    """Width, height and length of a video."""

    width: Annotated[Side, info("Width of the video in pixels.", unit="px")]
    height: Annotated[Side, info("Height of the video in pixels.", unit="px")]
    frames: Annotated[Frames, info("Number of frames of the video.")]


class VideoBenchmark(Analysis):
    """A benchmark of a video model."""

    group: ClassVar[str] = "Benchmark"

    model: Annotated[ModelName, info("Bundled model, or a folder: a saved model or a run.", metavar="MODEL")]
    only: tuple[Name, ...] = ()  # each benchmark has its own tasks
    num_videos: Annotated[
        int | None,
        info(
            "Number of videos of each task; 48 when left out.",
            title="Number of videos",
            flags=["--num-videos", "-n"],
            ge=2,
            le=10_000,
        ),
    ] = None
    sampling: Annotated[
        Settings,
        SamplingKeys(),
        info(
            "Sampling setting, such as steps=24 or guidance_scale=2.",
            title="Sampling settings",
            flags=["--set"],
            max_length=50,
        ),
    ] = Field(default_factory=dict)
    seed: AnalysisSeed = 0
    quick: Annotated[bool, info("Run a smoke test of seconds that shows that everything works.")] = False
    compare_with: Annotated[
        tuple[LocalFile, ...],
        info(
            ".json file of another model in the same benchmark, which the page shows too; repeat for several.",
            title="Other results",
            metavar="PATH",
            advanced=True,
        ),
    ] = ()
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        info(
            "Number format of the network: float32, bfloat16 or float16. On a CPU without instructions for bfloat16, "
            "float32 is used in its place.",
            title="Number format",
            metavar="DTYPE",
            advanced=True,
        ),
    ] = "bfloat16"

    @property
    def sampling_changes(self) -> dict[str, Any]:
        """Changes of the model's sampling settings, by the names of `SampleConfig.flat`."""
        return dict(self.sampling)

    def setting_changes(self) -> dict[str, Any]:
        """Return the values of the benchmark's settings, without those that are left out."""
        values = {"seed": self.seed, "dtype": self.dtype, "only": self.only}
        return values if self.num_videos is None else values | {"count": self.num_videos}

    def check(self) -> None:
        """Check the names of the tasks of the benchmark."""
        from unveil.analysis.task_run import benchmark_settings

        benchmark_settings(self)

    def run(self, context: TaskContext) -> TaskResult:
        """Run the benchmark, and write the page."""
        from unveil.analysis.task_run import benchmark_video_model

        return benchmark_video_model(self, context)


class AnalyzeVideoTasks(VideoBenchmark):
    """Benchmark a video model beyond text-to-video, by Sora's list of tasks.

    The tasks are image-to-video, extension at both ends, loops, joins, edits of an object and of the background, other
    sizes, aspect ratios and lengths, and twice the resolution. Real videos and baselines without a model are measured
    too. Writes video.html and .json.

    Example: unveil analyze video-tasks runs/playground-video --only extend --only loop -n 16
    """

    name: ClassVar[str] = "analyze-video-tasks"

    only: Annotated[
        tuple[Name, ...],
        info(
            "Task: image, extend, loop, connect, edit, ground, sizes or twice; all when left out; may repeat.",
            title="Tasks",
            max_length=100,
        ),
    ] = ()
    sizes: Annotated[
        tuple[VideoSize, ...],
        info(
            "Width and height in pixels and number of frames, such as 48x24x16; the benchmark's own when left out; "
            "repeat for several.",
            title="Size",
            flags=["--size"],
            metavar="WxHxFRAMES",
            advanced=True,
            max_length=32,
        ),
    ] = ()
    prompt_set: Annotated[
        Literal["seen", "held-out", "validation"],
        info("Prompt set of the playground: seen, held-out or validation.", metavar="NAME", advanced=True),
    ] = "seen"

    def setting_changes(self) -> dict[str, Any]:
        """Return the values of the benchmark's settings, without those that are left out."""
        values = super().setting_changes() | {"prompt_set": self.prompt_set}
        sizes = tuple((size.frames, size.height, size.width) for size in self.sizes)
        return values | {"sizes": sizes} if sizes else values


class AnalyzePrompts(VideoBenchmark):
    """Benchmark how a video model follows prompts, by kind of prompt.

    The kinds are colours, sizes, positions, counts, several objects, combinations that are not in the training data,
    long prompts, negation and others. Real videos, chance and expanded prompts are measured too. Writes text.html and
    .json.

    Example: unveil analyze prompts runs/playground-video --only colour --only position -n 16
    """

    name: ClassVar[str] = "analyze-prompts"

    only: Annotated[
        tuple[Name, ...],
        info(
            "Kind of prompt: colour, shape, size, motion, position, ground, alt-text, chinese, rare, count, several, "
            "long or negation; all when left out; repeat for several.",
            title="Kinds of prompts",
            max_length=100,
        ),
    ] = ()
    expand_prompt: Annotated[
        Literal["rules", "none"],
        info("Prompt expansion to measure too: rules or none.", title="Prompt expansion", metavar="rules|none"),
    ] = "rules"

    def setting_changes(self) -> dict[str, Any]:
        """Return the values of the benchmark's settings, without those that are left out."""
        return super().setting_changes() | {"expand": self.expand_prompt == "rules"}


class AnalyzePhysics(VideoBenchmark):
    """Benchmark what a video model knows about the world: permanence, space, actions, rules, motion.

    The videos show objects behind an occluder and out of frame, pillars from all sides, paint that stays, a corridor
    that follows the prompt, a game, breaking and falling. They are generated from prompts and from first frames; real
    videos are measured too. Writes world.html and .json.

    Example: unveil analyze physics runs/playground-video --only brush --only corridor -n 16
    """

    name: ClassVar[str] = "analyze-physics"

    only: Annotated[
        tuple[Name, ...],
        info(
            "Law: occluder, frame, space, brush, corridor, game or impact; all when left out; repeat for several.",
            title="Laws",
            max_length=100,
        ),
    ] = ()


class AnalyzeDetector(Analysis):
    """Measure the detector on real videos, before and after H.264: the ceiling of every score of a video model.

    The videos are from the playground, with mixed sizes, lengths and frame rates. Writes detector.html and .json.

    Example: unveil analyze detector -n 200 -o runs/study
    """

    name: ClassVar[str] = "analyze-detector"
    arguments: ClassVar[tuple[str, ...]] = ()
    common: ClassVar[tuple[str, ...]] = ("force",)
    out_help: ClassVar[str] = "Output folder of the page; runs/detector when left out."

    num_videos: Annotated[
        int,
        info(
            "Number of videos, at least one of each motion.",
            title="Number of videos",
            flags=["--num-videos", "-n"],
            ge=1,
            le=100_000,
        ),
    ] = 500
    seed: AnalysisSeed = 0

    def check(self) -> None:
        """Check the number of videos."""
        from unveil.analysis.detector_accuracy import DetectorSettings

        DetectorSettings(count=self.num_videos, seed=self.seed)

    def run(self, context: TaskContext) -> TaskResult:
        """Measure the detector, and write the page."""
        from unveil.analysis.task_run import analyze_detector

        return analyze_detector(self, context)
