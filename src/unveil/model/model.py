"""Model: a denoiser with the conditioners, autoencoder and settings that turn conditions into images."""

from __future__ import annotations

import inspect
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from unveil.autoencoders import Identity
from unveil.autoencoders.tiling import decode_with_fallback
from unveil.conditioning.batching import build_conditions, expand_per_sample, keeps_in_uncond
from unveil.conditioning.controlnet import (
    AttachedControlNet,
    ControlMode,
    MultiControlNet,
    check_compatible,
    replace_controlnets,
)
from unveil.core import guidance
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.prediction import VarianceRule, fixed_small, is_learned
from unveil.core.process import Process
from unveil.core.rng import SampleRNG
from unveil.core.samplers import SamplingProgress
from unveil.core.samplers.ancestral import Shift
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import NonFinite, OutOfResources, RecipeError
from unveil.model import checkpoint_store
from unveil.model.config import ModelConfig, SampleConfig
from unveil.model.config.sampling import current_settings
from unveil.model.lora_state import CONTROL, LORA, TrainedLora
from unveil.nn.layers import low_precision_parameters
from unveil.types import BaseModel, Condition, ControlNetInfo, LoraInfo, NoiseLevel, Raw

if TYPE_CHECKING:
    from unveil.autoencoders import LatentAutoencoder
    from unveil.model.custom_sampling import GuidanceFunction, Guide, SamplerFunction, ScheduleFunction

# (run of one batch, its rows in the whole set) -> the run that takes its place
RunTransform = Callable[[SamplingRun, slice], SamplingRun]


class GenerateOptions(TypedDict, total=False):
    """Further keywords of `Model.generate`; each is optional.

    Attributes:
        negative_cond: Conditions to guide away from, by key.
        num_inference_steps: Number of sampling steps, as `steps`.
        sampler: Name in `samplers.sampler_specs`, or a function (schedule) that returns the steps, such as
            `samplers.heun` or a function with a `CoefficientTable`.
        schedule: Noise schedule: a name in `schedules.SCHEDULES`, a respacing string, falling times, or a function
            (process, steps) that returns a `Schedule`.
        guidance: Function (conditional, null) of two denoisers that returns the guided one, in place of classifier-free
            guidance. `conditional` remembers its last call; `null` has no or the negative condition, and raises
            RecipeError if the model has neither. Thresholding follows.
        latents: Standard normal noise (count, *shape of the network's input) to start from, as diffusers' `latents`;
            None: noise of the seed. The noise of stochastic samplers still follows the seed.
        threshold: Thresholding of the predicted x0: "static", "dynamic" or "none".
        eta: Share of the ancestral chain's noise, for samplers that take it; 0: deterministic.
        sampling: Further settings by the names of `SampleConfig.flat`, such as {"guidance_rescale": 0.7} or
            {"options": {"s_churn": 40}}.
        cond_grad: Function (x, level) that returns the gradient of log p(y | x), such as `guidance.gradient` of a
            classifier's score. It moves the mean of samplers that take a shift (ADM's algorithm 1), and the eps of all
            others.
        size: Height and width in pixels, or frames, height and width of a video, if other than the model's shape.
        tile_size: Size that the network processes in one call, see `Model.resized`.
        transform: Function (run, rows) that returns the `SamplingRun` to use in place of each batch's run.
        batch: Number of samples in one batch; None: all.
        start_index: Index of the first sample, by default 0; with one seed for each sample, index of every sample.
        on_step: Function called after each step of each batch; it may raise `errors.Cancelled`.
    """

    negative_cond: Raw | None
    num_inference_steps: int | None
    sampler: str | SamplerFunction | None
    schedule: str | Sequence[float] | ScheduleFunction | None
    guidance: GuidanceFunction | None
    latents: Tensor | None
    threshold: str | None
    eta: float | None
    sampling: Mapping[str, Any] | None
    cond_grad: Shift | None
    size: Sequence[int] | None
    tile_size: Sequence[int] | None
    transform: RunTransform | None
    batch: int | None
    start_index: int
    on_step: Callable[[SamplingProgress], object] | None


FUNCTIONS = ("sampler", "schedule", "guidance")  # keywords of `generate` that a function may be given for
SMALL = 1 << 16  # values of the latents of a batch up to which its memory is not estimated
FPS = "fps"  # key of the condition on the frame rate, for networks that take it


class Model(nn.Module):
    """A diffusion model: the denoiser, the conditioners and the autoencoder, with their configuration.

    Args:
        denoiser: Network with its noise process and its prediction target.
        shape: Shape of one sample, such as (C, H, W).
        conditioners: Modules with `key`, `drop`, `encode(values)` and `null(batch)`, each for one key.
        autoencoder: Maps between pixels and the latents of the network; None: the network works on pixels.
        variance: Variance of a reverse step, for ancestral sampling and for the variational bound.
        config: Configuration that the model was built from. `save` needs one.
        sample: Default sampling settings; None: those of `config`.
        fps: Frames per second of the videos of training; None: that of `config`, or unknown.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        conditioners: Sequence[nn.Module] = (),
        autoencoder: LatentAutoencoder | None = None,
        variance: VarianceRule = fixed_small,
        config: ModelConfig | None = None,
        sample: SampleConfig | None = None,
        fps: float | None = None,
    ) -> None:
        super().__init__()
        if denoiser.learns_variance != is_learned(variance):
            raise RecipeError(
                f"the denoiser {'has' if denoiser.learns_variance else 'lacks'} variance channels, but the variance "
                f"given is {'' if is_learned(variance) else 'not '}a learned one; the two must agree"
            )
        self.denoiser = denoiser
        self.conditioners = nn.ModuleDict({str(part.key): part for part in conditioners})
        self.autoencoder: LatentAutoencoder = autoencoder or Identity()
        if isinstance(self.autoencoder, nn.Module):  # a diffusion model's latents must stay what they are
            self.autoencoder.requires_grad_(False).eval()
        self.shape = tuple(shape)
        self.variance = variance
        self.config = config
        self.sampling = sample or (config.sample if config is not None else SampleConfig())
        self.fps = config.fps if fps is None and config is not None else fps
        self.source_folder: Path | None = None  # folder of another program that the model was read from
        self.base: BaseModel | None = None  # base model, if only a LoRA or a ControlNet is trained and saved
        self.lora_infos: tuple[LoraInfo, ...] = ()  # attached LoRAs, for the metadata of images
        self.controlnet_infos: tuple[ControlNetInfo, ...] = ()  # ControlNets from files, with their control images
        self._precision = self._weight_dtype = torch.float32
        self.controls: MultiControlNet | None = None

    def train(self, mode: bool = True) -> Model:
        """Set training or evaluation mode; the autoencoder is frozen and stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.autoencoder, nn.Module):
            self.autoencoder.eval()
        return self

    @property
    def is_video(self) -> bool:
        """True if the samples are videos (C, T, H, W)."""
        return len(self.shape) == 4

    @property
    def process(self) -> Process:
        """Noise process that the denoiser was trained under."""
        return self.denoiser.process

    @property
    def precision(self) -> torch.dtype:
        """Type of the network's products; sums and normalisations are computed in float32.

        The weights keep their type and are converted at every call; `to_inference_dtype` converts them once.

        Raises:
            RecipeError: The weights were converted to another type before.
        """
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        if self._weight_dtype not in (torch.float32, dtype):
            raise RecipeError(
                f"precision {dtype}: the weights were converted to {self._weight_dtype}; load the model again"
            )
        self._precision = dtype

    def to_inference_dtype(self, dtype: torch.dtype) -> Model:
        """Convert the network's matrices to `dtype` in place and compute in it; return this model.

        Results are those of `precision = dtype` up to rounding, with less time and memory. The precision of the
        weights is lost, so use this for a model that only samples.

        Raises:
            RecipeError: The weights were converted to another type before.
        """
        self.precision = dtype
        if dtype != torch.float32:
            for part in (self.denoiser.network, *([] if self.controls is None else [self.controls])):
                for _, parameter in low_precision_parameters(part):
                    parameter.data = parameter.data.to(dtype)
            self._weight_dtype = dtype
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def with_controlnets(self, *controls: AttachedControlNet, mode: ControlMode = "balanced") -> Model:
        """Attach these ControlNets in place of all earlier ones, or detach all; return this model.

        A control image is passed to `generate` as a condition, under the key of its ControlNet.

        Args:
            mode: Mode of the ControlNets: "balanced", or "guess", in which the control image counts more than the
                prompt. Deep layers are then controlled more strongly than shallow ones, and the negative condition is
                not controlled.

        Raises:
            RecipeError: A key belongs to a conditioner of the model, or two ControlNets have the same key.
            WeightsError: A ControlNet belongs to another base model.
        """
        factor = self.shape[-1] // self.autoencoder.latent_shape(self.shape)[-1]
        # a model of latents whose autoencoder is not part of it
        latents_only = isinstance(self.autoencoder, Identity) and self.shape[0] not in (1, 3)
        for control in controls:
            check_compatible(control, self.denoiser.network, None if latents_only else factor)
        self.controls = replace_controlnets(self.conditioners, self.controls, controls, mode)
        return self

    def resized(self, size: Sequence[int], tile_size: Sequence[int] | None = None) -> Model:
        """Model for samples of another size; it shares the weights.

        Args:
            size: End of the new shape: height and width, or frames, height and width of a video.
            tile_size: End of the shape that the network takes in one call, if it works in tiles; None: the whole.
                The noise process depends on this size, because a tile loses as much signal as an image of its size.

        A part that depends on the size has a method `resized`: a noise process whose shift grows with the shape of the
        latents, a conditioner that encodes the size of the samples.
        """
        shape = with_last_dims(self.shape, size)
        other = Model(
            self.denoiser.with_process(
                resized_part(self.process, self.autoencoder.latent_shape(with_last_dims(shape, tile_size or ())))
            ),
            shape,
            conditioners=[resized_part(part, shape) for part in self.conditioners.values()],
            autoencoder=self.autoencoder,
            variance=self.variance,
            config=self.config,
            sample=self.sampling,
            fps=self.fps,
        )
        inherited = (
            "source_folder",
            "controls",
            "base",
            "lora_infos",
            "controlnet_infos",
            "_precision",
            "_weight_dtype",
        )
        for name in inherited:
            setattr(other, name, getattr(self, name))
        return other.train(self.training)

    def encode(self, cond: Raw | None = None, count: int | None = None) -> tuple[Condition | None, Condition | None]:
        """Encode conditions for `count` samples.

        Args:
            cond: Conditions by key: one value for all samples, or a list (tensor) with one for each. A key that is
                left out is unconditional.
            count: Number of samples; None: length of the longest list, at least 1.

        Returns:
            Condition and null condition. Each is None if the model takes no conditions; the second also if the model
            was trained without condition dropout.

        Raises:
            RecipeError: A key (the message names the nearest) or a value is unknown, or a list has the wrong length.
        """
        return build_conditions(cast(Mapping[str, Any], self.conditioners), cond or {}, count)

    def denoise_fn(self, condition: Condition | None) -> DenoiseFn:
        """Bind a condition to the denoiser, for samplers and guidance."""
        return lambda x, level: self._estimate(x, level, condition)

    def compile_network(self) -> Model:
        """Compile the network with torch.compile and return this model.

        The first calls take about a minute. Weights and their names do not change; results differ only by the
        rounding of the kernels.

        Raises:
            OutOfResources: The model is on the CPU, and no C++ compiler was found.
        """
        compilers = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
        if self.device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
            raise OutOfResources("compile: no C++ compiler was found; install one, name it in CXX, or do not compile")
        self.denoiser.network.compile()
        return self

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pixels.

        Values that are not finite in half precision are decoded again in float32. If memory runs out, the latents are
        decoded in tiles.

        Raises:
            NonFinite: The latents are not finite.
            OutOfResources: The memory is too small for one tile.
        """
        if not bool(torch.isfinite(latents).all()):
            raise NonFinite(
                "sampling left the finite numbers; set threshold = static, use more steps, or dtype float32"
            )
        if isinstance(self.autoencoder, Identity):
            return latents.float()
        with torch.no_grad():
            if self.precision != torch.float32:
                with torch.autocast(latents.device.type, self.precision):
                    pixels = decode_with_fallback(self.autoencoder, latents).float()
                if bool(torch.isfinite(pixels).all()):
                    return pixels
            return decode_with_fallback(self.autoencoder, latents.float())

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        label: Any = None,
        cond: Raw | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
        steps: int | None = None,
        count: int | None = None,
        seed: int | Sequence[int] = 0,
        **options: Unpack[GenerateOptions],
    ) -> Tensor:
        """Generate samples (count, *shape), pixels in [-1, 1]; the defaults are those of the model's `sample`.

        Example: `model.generate("a red circle", negative_prompt="blue", guidance_scale=3)`, or
        `model.generate(label=[3, 4])`.

        A sample depends only on the seed and its index, not on `count` and `batch`: its noise is equal to the bit,
        the image up to the rounding of the kernels.

        Args:
            prompt: Text prompt, or one for each sample, of a model that takes one.
            label: Class, or one for each sample, of a model that takes one.
            cond: Conditions by key, see `encode`; `prompt` and `label` are added to these.
            negative_prompt: Prompt to guide away from.
            guidance_scale: Classifier-free guidance scale; 1: no guidance, 0: unconditional.
            steps: Number of sampling steps; most samplers make one network call in each, without guidance.
            count: Number of samples; None: the number of values of a condition.
            seed: Seed of the whole set, or a list with one seed for each sample.
            options: Further keywords, those of `GenerateOptions`: sampler, schedule, size, batch and others.

        Raises:
            RecipeError: A setting is invalid, or a keyword is unknown; the message names the nearest.
            ShapeError: The latents have another shape than the network's input.
            NonFinite: The sampled values are not finite.
            OutOfResources: The memory is too small for a batch; the message says what fits.
        """
        settings = self.sampling.changed(_sampling_changes(options, steps=steps, guidance_scale=guidance_scale))
        cond = _with_conditions(cond or {}, prompt=prompt, label=label)
        negative_cond = _with_conditions(options.get("negative_cond") or {}, prompt=negative_prompt)
        if count is None:
            listed = (*cond.values(), options.get("latents"))
            lengths = (len(value) for value in listed if isinstance(value, list | tuple | Tensor))
            count = max([1, *lengths]) if isinstance(seed, int) else len(seed)
        if count < 1:
            raise RecipeError(f"count = {count}: at least 1")
        rows = {key: expand_per_sample(key, value, count) for key, value in cond.items()}
        negative_rows = {key: expand_per_sample(key, value, count) for key, value in negative_cond.items()}
        streams = _sample_streams(seed, count, options.get("start_index", 0))
        training = self.training
        self.eval()
        try:
            length = min(options.get("batch") or count, count)
            batches = (slice(start, start + length) for start in range(0, count, length))
            return torch.cat(
                [self._generate_batch(settings, streams, rows, negative_rows, batch, options) for batch in batches]
            )
        finally:
            self.train(training)

    def _generate_batch(
        self,
        settings: SampleConfig,
        streams: Sequence[tuple[int, int]],
        rows: Mapping[str, Any],
        negative_rows: Mapping[str, Any],
        batch: slice,
        options: GenerateOptions,
    ) -> Tensor:
        """Generate the samples of one batch; `rows` and `streams` are those of the whole set."""
        seeds, indices = zip(*streams[batch], strict=True)
        run = self.prepare(
            settings,
            SampleRNG(seeds, indices, device=self.device),
            cond={key: value[batch] for key, value in rows.items()},
            negative_cond={key: value[batch] for key, value in negative_rows.items()},
            size=options.get("size"),
            tile_size=options.get("tile_size"),
            cond_grad=options.get("cond_grad"),
        )
        if len(run) * math.prod(run.shape) > SMALL:
            from unveil.model.memory_estimate import require_memory  # imports torch's counter of FLOPs

            guided = settings.guidance.scale not in (0, 1) or options.get("guidance") is not None
            pixels_of_one = with_last_dims(self.shape, options.get("size") or ())
            require_memory(self, run, pixels_of_one, options.get("tile_size"), guided=guided)
        if any(callable(options.get(name)) for name in FUNCTIONS) or options.get("latents") is not None:
            from unveil.model.custom_sampling import customized

            guided = partial(self._guided, settings, count=len(seeds), cond_grad=options.get("cond_grad"))
            run = customized(run, cast(Mapping[str, Any], options), batch, len(streams), settings.steps, guided)
        transform = options.get("transform")
        pixels = self.decode((run if transform is None else transform(run, batch)).run(options.get("on_step")))
        return pixels if settings.threshold == "none" else pixels.clamp(-1, 1)

    def prepare(
        self,
        settings: SampleConfig,
        streams: SampleRNG,
        *,
        cond: Raw | None = None,
        negative_cond: Raw | None = None,
        size: Sequence[int] | None = None,
        tile_size: Sequence[int] | None = None,
        cond_grad: Shift | None = None,
    ) -> SamplingRun:
        """Prepare the sampling run of one batch; the arguments are those of `generate`, one row for each stream."""
        if size is not None and tuple(size) != self.shape[-len(size) :]:
            return self.resized(size, tile_size).prepare(
                settings, streams, cond=cond, negative_cond=negative_cond, cond_grad=cond_grad
            )
        count = len(streams.samples)
        condition, null = self.encode(cond, count)
        if negative_cond:
            shared = {key: value for key, value in (cond or {}).items() if keeps_in_uncond(self.conditioners[key])}
            null = self.encode({**shared, **negative_cond}, count)[0]
        shape = self.shape if isinstance(self.autoencoder, Identity) else self.autoencoder.latent_shape(self.shape)
        return SamplingRun(
            schedule=settings.levels(self.process),
            make_plan=lambda schedule: settings.plan(schedule, self.variance, cond_grad),
            make_guided_denoiser=lambda condition, null: self._guided(settings, condition, null, count, cond_grad),
            condition=condition,
            null=null,
            streams=streams,
            shape=shape,
            noise=streams.bind(shape),
            precompute=self._precompute,
            conditioners=dict(self.conditioners.items()),
            make_denoiser=self.denoise_fn,
        )

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield file name and module of every part whose weights are saved.

        Raises:
            RecipeError: The key of a condition cannot be the name of a file.
        """
        if self.base is not None:
            if self.controls is not None and self.base.what == "control":
                yield CONTROL, self.controls.controls[0].network
            else:
                yield LORA, TrainedLora(self.denoiser.network)
            return
        yield "denoiser.safetensors", self.denoiser
        for name, part in self.conditioners.items():
            if name in ("denoiser", "autoencoder", "codec", "train_state") or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise RecipeError(
                    f"condition key {name!r}: names a file of the saved model; use letters, digits, - and _"
                )
            if part.state_dict():
                yield f"{name}.safetensors", part
        if isinstance(self.autoencoder, nn.Module) and self.autoencoder.state_dict():
            yield checkpoint_store.AUTOENCODER, self.autoencoder

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write a folder of model.yaml, a safetensors file per part and card.md, whole or not at all."""
        return checkpoint_store.save_model(self, Path(folder), force=force)

    def _estimate(self, x: Tensor, level: NoiseLevel, condition: Condition | None) -> Estimate:
        """Call the denoiser with its ControlNets, in the chosen precision."""
        full_precision = self.precision == torch.float32
        with nullcontext() if full_precision else torch.autocast(x.device.type, self.precision):
            if self.controls is not None and condition is not None:
                condition = self.controls(*self.denoiser.network_inputs(x, level), condition, level)
            return self.denoiser(x, level, condition)

    def _guided(
        self,
        settings: SampleConfig,
        condition: Condition | None,
        null: Condition | None,
        count: int,
        cond_grad: Shift | None,
        guide: Guide | None = None,
    ) -> DenoiseFn:
        """Bind the conditions of one batch, with guidance (that of the settings, or `guide`) and thresholding."""
        denoise = self.denoise_fn(condition)
        scale = settings.guidance.scale
        if guide is not None and null is None:
            denoise = guide(denoise, None)
        elif guide is not None or scale != 1:
            guided = guide or settings.guidance.guide
            if null is None:
                raise RecipeError(
                    f"guidance_scale = {scale}: guidance needs a model trained with drop_prob > 0; use guidance_scale 1"
                )
            assert condition is not None  # a null condition requires a condition
            null = null if self.controls is None else self.controls.null_condition(null)
            alike = (condition.control_image is None) == (null.control_image is None)
            if scale != 0 and alike and guidance.should_batch(self.device, count):
                denoise = guided(*guidance.batch_cond_uncond(self._estimate, condition, null))
            else:
                denoise = guided(denoise, self.denoise_fn(null))
        if cond_grad is not None and not settings.takes_shift:
            denoise = guidance.shift_eps(denoise, cond_grad)
        if settings.threshold != "none":
            limit = guidance.clip_static if settings.threshold == "static" else guidance.clip_dynamic
            denoise = limit(denoise)
        return denoise

    @contextmanager
    def _precompute(self, levels: Iterable[NoiseLevel]) -> Iterator[None]:
        """Let the networks compute before the run what depends only on noise levels or conditions."""
        parts = [part for part in (self.denoiser.network, self.controls) if hasattr(part, "precompute")]
        plain = [level for level in levels if not level.t.ndim and level.sigma != 0] if parts else []
        indices = [self.denoiser.timestep(level, torch.empty(1)).item() for level in plain]
        with ExitStack() as inside:
            for part in parts:
                inside.enter_context(cast(Any, part).precompute(indices))
            yield


def with_last_dims(shape: tuple[int, ...], end: Sequence[int]) -> tuple[int, ...]:
    """Return the shape with its last dimensions replaced by `end`."""
    return (*shape[: len(shape) - len(end)], *end)


def resized_part(part: Any, shape: tuple[int, ...]) -> Any:
    """Return the part for another shape of samples, if it depends on the shape."""
    return part.resized(shape) if hasattr(part, "resized") else part


def _with_conditions(conditions: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """Add the conditions that have a keyword to the conditions by key."""
    return {**conditions, **{key: value for key, value in named.items() if value is not None}}


def _sampling_changes(options: GenerateOptions, *, steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
    """Return the settings of `SampleConfig` among the keywords of `Model.generate`."""
    if unknown := [name for name in options if name not in GenerateOptions.__annotations__]:
        from unveil.model.foreign_keywords import unknown_keyword

        explicit = [key for key in inspect.signature(Model.generate).parameters if key not in ("self", "options")]
        raise RecipeError(unknown_keyword(unknown[0], [*explicit, *GenerateOptions.__annotations__]))
    if steps is not None and options.get("num_inference_steps") is not None:
        raise RecipeError("generate: steps and num_inference_steps are the same setting; give one of them")
    changes: dict[str, Any] = {name: options.get(name) for name in ("sampler", "eta", "threshold", "schedule")}
    if guidance_scale is not None and options.get("guidance") is not None:
        raise RecipeError("generate: guidance_scale and guidance: a guidance function has its own scale; give one")
    if callable(changes["sampler"]):
        if changes["eta"] is not None:
            raise RecipeError("generate: eta with a sampler function: functools.partial(function, eta=...) sets it")
        changes["sampler"] = "ddim"  # takes no shift of the mean, like functions: the schedule is their only argument
    if callable(changes["schedule"]):
        del changes["schedule"]
    changes |= {"steps": options.get("num_inference_steps") if steps is None else steps}
    changes |= {"guidance_scale": guidance_scale}
    stated = {name: value for name, value in changes.items() if value is not None}
    return {**current_settings(options.get("sampling") or {}), **stated}


def _sample_streams(seed: int | Sequence[int], count: int, start_index: int) -> list[tuple[int, int]]:
    """Return the seed and the index of each sample."""
    if isinstance(seed, int):
        return [(seed, start_index + number) for number in range(count)]
    if len(seed) != count:
        raise RecipeError(f"seed: {len(seed)} for {count} samples; give one, or one for each")
    return [(each, start_index) for each in seed]
