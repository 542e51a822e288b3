"""Model: a denoiser with everything around it that turns a wish into pictures."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unveil.autoencoders import Identity
from unveil.autoencoders.tiling import decode_with_fallback
from unveil.conditioning.batching import build_conditions, expand_per_sample, keeps_in_uncond
from unveil.conditioning.controlnet import Control, Mode, MultiControlNet, check_compatible, replace_controlnets
from unveil.core import guidance
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.process import Process
from unveil.core.rng import SampleRNG
from unveil.core.samplers import SamplingProgress
from unveil.core.samplers.ancestral import Shift
from unveil.core.sampling_run import SamplingRun
from unveil.core.variance import VarianceRule, fixed_small, is_learned
from unveil.model import model_saving
from unveil.model.config import ModelConfig, SampleConfig
from unveil.model.lora_state import CONTROL, LORA, TrainedLora
from unveil.model.migration import migrate_settings
from unveil.model.shapes import ending, sized
from unveil.nn.mixed_precision import low_precision_parameters
from unveil.types import (
    BaseModel,
    Condition,
    ControlNetInfo,
    LoraInfo,
    NoiseLevel,
    NonFinite,
    OutOfResources,
    Raw,
    RecipeError,
    did_you_mean,
)

if TYPE_CHECKING:
    from unveil.autoencoders import Codec

# a batch's course and the rows that it is of a set -> the course that is run
RunTransform = Callable[[SamplingRun, slice], SamplingRun]


class Model(nn.Module):
    """What recipes build, training trains and checkpoints hold.

    Args:
        denoiser: the network, the process it was trained under and what it predicts.
        shape: of one sample, such as (C, H, W).
        conditioners: modules with `key`, `drop`, `encode(values)` and `null(batch)`, each reading its own key.
        codec: between pixels and what the network sees; None: nothing is between.
        variance: of a reverse step, for ancestral sampling and for the bound.
        config: what it was built from; without one it can be saved only by whoever builds it again.
        sample: how it samples when nothing else is asked for; None: as the config says.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        conditioners: Sequence[nn.Module] = (),
        codec: Codec | None = None,
        variance: VarianceRule = fixed_small,
        config: ModelConfig | None = None,
        sample: SampleConfig | None = None,
    ) -> None:
        super().__init__()
        if denoiser.learns_variance != is_learned(variance):
            raise RecipeError(
                f"the denoiser {'has' if denoiser.learns_variance else 'lacks'} variance channels, but the variance "
                f"given is {'' if is_learned(variance) else 'not '}a learned one; the two must agree"
            )
        self.denoiser = denoiser
        self.conditioners = nn.ModuleDict({str(one.key): one for one in conditioners})
        self.codec: Codec = codec or Identity()
        if isinstance(self.codec, nn.Module):  # a diffusion model's latents must stay what they are
            self.codec.requires_grad_(False).eval()
        self.shape = tuple(shape)
        self.variance = variance
        self.config = config
        self.sampling = sample or (config.sample if config is not None else SampleConfig())
        self.home: Path | None = None  # another program's folder that it was read from, and that keeps it
        self.base: BaseModel | None = None  # of a LoRA or a ControlNet, where that alone is trained and saved
        self.worn: tuple[LoraInfo, ...] = ()  # LoRAs that are on it, for the records of pictures
        self.steering: tuple[ControlNetInfo, ...] = ()  # its controls from files, with their pictures, for the same
        self._precision = self._lowered = torch.float32
        self.controls: MultiControlNet | None = None

    def train(self, mode: bool = True) -> Model:
        """Training or evaluation mode; the codec is frozen and stays in the latter."""
        super().train(mode)
        if isinstance(self.codec, nn.Module):
            self.codec.eval()
        return self

    @property
    def process(self) -> Process:
        """The process that the denoiser was trained under."""
        return self.denoiser.process

    @property
    def precision(self) -> torch.dtype:
        """What the network computes in: products in this type, sums and normalisations in float32.

        The weights stay as they are, and are converted at every call; `lowered` converts them for good.

        Raises:
            RecipeError: set to another type than the weights were lowered to.
        """
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        if self._lowered not in (torch.float32, dtype):
            raise RecipeError(f"precision {dtype}: the weights were lowered to {self._lowered}; load the model again")
        self._precision = dtype

    def lowered(self, dtype: torch.dtype) -> Model:
        """This model, computing in `dtype`, the matrices of its network converted for good.

        Results are those of `precision = dtype` within its rounding, sooner and in less memory. What is lost of the
        weights is lost, so it is for a model that is only sampled.

        Raises:
            RecipeError: it was lowered to another type before.
        """
        self.precision = dtype
        if dtype != torch.float32:
            for part in (self.denoiser.network, *([] if self.controls is None else [self.controls])):
                for _, parameter in low_precision_parameters(part):
                    parameter.data = parameter.data.to(dtype)
            self._lowered = dtype
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def controlled(self, *controls: Control, mode: Mode = "balanced") -> Model:
        """This model under these ControlNets and no others; without any, as it was before.

        The picture that a control reads is asked for by the control's key, beside the model's own conditions. How
        pictures are drawn, and by which sampler and guidance, stays as it is.

        Args:
            mode: `guess` makes the most of the hint where the text says little: deep layers are steered more than
                shallow ones, and what guidance goes away from is not controlled.

        Raises:
            RecipeError: a key that one of the model's conditions has, or two controls of one key.
            WeightsError: a ControlNet of another base.
        """
        factor = self.shape[-1] // self.codec.latent_shape(self.shape)[-1]
        bare = isinstance(self.codec, Identity) and self.shape[0] not in (1, 3)  # latents, whose codec is elsewhere
        for one in controls:
            check_compatible(one, self.denoiser.network, None if bare else factor)
        self.controls = replace_controlnets(self.conditioners, self.controls, controls, mode)
        return self

    def sized(self, size: Sequence[int], seen: Sequence[int] | None = None) -> Model:
        """This model for samples of another size; it shares the weights.

        Args:
            size: the end of the new shape: height and width, or frames, height and width of a clip.
            seen: the same of what the network is given at once, where that is a tile; None: the whole. The process is
                the one for this, since what a tile shows is lost in as much noise as in a picture of its size.

        Parts that depend on the size follow by a `sized` of their own, which is given a shape: of latents for a
        process whose shift grows with them, of samples for a condition that tells the network the size.
        """
        shape = ending(self.shape, size)
        other = Model(
            self.denoiser.under(sized(self.process, self.codec.latent_shape(ending(shape, seen or ())))),
            shape,
            conditioners=[sized(one, shape) for one in self.conditioners.values()],
            codec=self.codec,
            variance=self.variance,
            config=self.config,
            sample=self.sampling,
        )
        for name in ("home", "controls", "base", "worn", "steering", "_precision", "_lowered"):
            setattr(other, name, getattr(self, name))
        return other.train(self.training)

    def encode(self, raw: Raw | None = None, count: int | None = None) -> tuple[Condition | None, Condition | None]:
        """The condition that `raw` asks for, and the null condition, each of `count` rows.

        Args:
            raw: by key, one value for all rows or a list (tensor) of one per row; a key left out means "none".
            count: rows; None takes the longest value given, at least 1.

        Returns:
            condition and null; None where the model takes no condition, or was trained without dropping it.

        Raises:
            RecipeError: a key or a value that the model does not know (names the nearest), or a wrong number.
        """
        return build_conditions(cast(Mapping[str, Any], self.conditioners), raw or {}, count)

    def step(self, condition: Condition | None) -> DenoiseFn:
        """The denoiser with its condition bound: what samplers and guidance take."""
        return lambda x, level: self._estimate(x, level, condition)

    def compiled(self) -> Model:
        """This model with its network compiled by torch: the first calls take a minute, later ones less time.

        Weights and their names stay; results stay within what kernels differ by.

        Raises:
            OutOfResources: a processor is to be compiled for, and there is no C++ compiler.
        """
        compilers = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
        if self.device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
            raise OutOfResources("compile: no C++ compiler was found; install one, name it in CXX, or do not compile")
        self.denoiser.network.compile()
        return self

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents; what is not finite in half precision is decoded once more in float32.

        Where memory does not hold the whole, it is decoded once more in tiles.

        Raises:
            NonFinite: the latents themselves are not finite.
            OutOfResources: memory does not hold a tile either.
        """
        if not bool(torch.isfinite(latents).all()):
            raise NonFinite(
                "sampling left the finite numbers; set threshold = static, use more steps, or dtype float32"
            )
        with torch.no_grad():
            if self.precision != torch.float32:
                with torch.autocast(latents.device.type, self.precision):
                    pixels = decode_with_fallback(self.codec, latents).float()
                if bool(torch.isfinite(pixels).all()):
                    return pixels
            return decode_with_fallback(self.codec, latents.float())

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        label: Any = None,
        cond: Raw | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_cond: Raw | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        schedule: str | Sequence[float] | None = None,
        threshold: str | None = None,
        raw: Raw | None = None,
        count: int | None = None,
        seed: int | Sequence[int] = 0,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        clip: str | None = None,
        scale: float | None = None,
        grid: str | Sequence[float] | None = None,
        sampling: Mapping[str, Any] | None = None,
        negative: Raw | None = None,
        shift: Shift | None = None,
        size: Sequence[int] | None = None,
        seen: Sequence[int] | None = None,
        change: RunTransform | None = None,
        batch: int | None = None,
        first_sample: int = 0,
        on_step: Callable[[SamplingProgress], object] | None = None,
        **unknown: Any,
    ) -> Tensor:
        """Samples (count, *shape), pixels in [-1, 1]; what is left out is as the model's own `sample` says.

        Example: `model.generate("a red circle", negative_prompt="blue", guidance_scale=3)`, or
        `model.generate(label=[3, 4])`.

        Sample n of a seed is the same whatever `count`, `batch` and `first_sample` it comes out of (its noise to
        the bit, the picture within what kernels differ by).

        Args:
            prompt: text prompt, or one for each sample, of a model that takes one.
            label: class, or one for each sample, of a model that takes one.
            cond: conditions by key, see `encode`; `prompt` and `label` are added to these.
            negative_prompt: prompt to guide away from.
            negative_cond: conditions to guide away from, by key.
            guidance_scale: classifier-free guidance scale; 1 is no guidance, 0 leaves the condition away.
            num_inference_steps: number of sampling steps, as `steps`.
            schedule: noise schedule: a name in `schedules.GRIDS`, a respacing string, or falling times.
            threshold: thresholding of the predicted x0: "static", "dynamic" or "none".
            raw, negative, scale, grid, clip: former names of `cond`, `negative_cond`, `guidance_scale`, `schedule` and
                `threshold`.
            count: number of samples; as many as there are values of a condition when left out.
            seed: of the whole set; or one for each sample, each then the `first_sample` of its own.
            sampler: a name in `samplers.SAMPLERS`.
            steps: of the grid; most samplers make one network call in each, without guidance.
            eta: 0 deterministic, 1 as noisy as the ancestral chain; for samplers that take it.
            sampling: further settings by the names of `SampleConfig.flat`, such as {"guidance_rescale": 0.7} or
                {"options": {"s_churn": 40}}.
            shift: (x, level) -> the gradient of log p(y | x), such as `guidance.gradient` of a classifier's score:
                moves the mean of samplers that take a shift (ADM's algorithm 1), and the eps of all others.
            size: height and width in pixels, or frames, height and width of a clip, where the network takes others
                than the model's own. seen: see `sized`.
            change: (course, rows) -> what is run instead of each batch's course; see `core.sampling_run`.
            batch: samples at a time; None: all.
            first_sample: number of the first.
            on_step: called after each step of each batch; it may raise `types.Cancelled`.

        Raises:
            RecipeError: a setting that cannot work, or a keyword that there is not; the nearest is named.
            NonFinite: sampling left the finite numbers.
        """
        if unknown:
            raise RecipeError(_unknown_keyword(next(iter(unknown))))
        scale = guidance_scale if scale is None else scale
        steps = num_inference_steps if steps is None else steps
        grid = schedule if grid is None else grid
        clip = threshold if clip is None else clip
        raw = _with_conditions({**(raw or {}), **(cond or {})}, prompt=prompt, label=label)
        negative = _with_conditions({**(negative or {}), **(negative_cond or {})}, prompt=negative_prompt)
        if count is None:
            lengths = (len(value) for value in raw.values() if isinstance(value, list | tuple | Tensor))
            count = max([1, *lengths]) if isinstance(seed, int) else len(seed)
        if count < 1:
            raise RecipeError(f"count = {count}: at least 1")
        changes = {"sampler": sampler, "steps": steps, "eta": eta, "threshold": clip}
        changes |= {"guidance_scale": scale, "schedule": grid}
        how = self.sampling.changed(
            {**migrate_settings(sampling or {}), **{k: v for k, v in changes.items() if v is not None}}
        )
        rows = {key: expand_per_sample(key, value, count) for key, value in raw.items()}
        avoided = {key: expand_per_sample(key, value, count) for key, value in negative.items()}
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise RecipeError(f"seed: {len(seeds)} for {count} samples; give one, or one for each")
        numbers = [first_sample + (n if isinstance(seed, int) else 0) for n in range(count)]
        training = self.training
        self.eval()
        try:
            parts = []
            length = min(batch or count, count)
            for start in range(0, count, length):
                here = slice(start, start + length)
                part, away = ({key: value[here] for key, value in one.items()} for one in (rows, avoided))
                streams = SampleRNG(seeds[here], numbers[here], device=self.device)
                course = self.course(how, streams, raw=part, negative=away, size=size, seen=seen, shift=shift)
                pixels = self.decode((course if change is None else change(course, here)).run(on_step))
                parts.append(pixels if how.threshold == "none" else pixels.clamp(-1, 1))
        finally:
            self.train(training)
        return torch.cat(parts)

    def course(
        self,
        how: SampleConfig,
        streams: SampleRNG,
        *,
        raw: Raw | None = None,
        negative: Raw | None = None,
        size: Sequence[int] | None = None,
        seen: Sequence[int] | None = None,
        shift: Shift | None = None,
    ) -> SamplingRun:
        """One batch made ready to run; arguments are those of `generate`, with as many rows as `streams` has."""
        if size is not None and tuple(size) != self.shape[-len(size) :]:
            return self.sized(size, seen).course(how, streams, raw=raw, negative=negative, shift=shift)
        count = len(streams.samples)
        condition, null = self.encode(raw, count)
        if negative:
            kept = {key: value for key, value in (raw or {}).items() if keeps_in_uncond(self.conditioners[key])}
            null = self.encode({**kept, **negative}, count)[0]
        shape = self.codec.latent_shape(self.shape)
        return SamplingRun(
            grid=how.levels(self.process),
            planned=lambda grid: how.plan(grid, self.variance, shift),
            guided=lambda condition, null: self._guided(how, condition, null, count, shift),
            condition=condition,
            null=null,
            streams=streams,
            shape=shape,
            noise=streams.bind(shape),
            ahead=self._ahead,
            conditioners=dict(self.conditioners.items()),
            plain=self.step,
        )

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """File name and module of every part that a saved model has weights of.

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
            if name in ("denoiser", "codec", "train_state") or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise RecipeError(
                    f"condition key {name!r}: names a file of the saved model; use letters, digits, - and _"
                )
            if part.state_dict():
                yield f"{name}.safetensors", part
        if isinstance(self.codec, nn.Module) and self.codec.state_dict():
            yield model_saving.CODEC, self.codec

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write a folder of model.yaml, a safetensors file per part and card.md, whole or not at all."""
        return model_saving.save_model(self, Path(folder), force=force)

    def _estimate(self, x: Tensor, level: NoiseLevel, condition: Condition | None) -> Estimate:
        """The denoiser under its controls, in the precision asked for."""
        whole = self.precision == torch.float32
        with nullcontext() if whole else torch.autocast(x.device.type, self.precision):
            if self.controls is not None and condition is not None:
                condition = self.controls(*self.denoiser.inputs(x, level), condition, level)
            return self.denoiser(x, level, condition)

    def _guided(
        self, how: SampleConfig, condition: Condition | None, null: Condition | None, count: int, shift: Shift | None
    ) -> DenoiseFn:
        """The step of one batch with its condition bound, guided and clipped."""
        step = self.step(condition)
        if how.guidance.scale != 1:
            if null is None:
                raise RecipeError(
                    f"scale = {how.guidance.scale}: guidance needs a model trained with drop > 0; use scale 1"
                )
            assert condition is not None  # without one there is no null
            null = null if self.controls is None else self.controls.without(null)
            alike = (condition.hint is None) == (null.hint is None)
            if how.guidance.scale != 0 and alike and guidance.should_batch(self.device, count):
                step = how.guidance.guide(*guidance.batch_cond_uncond(self._estimate, condition, null))
            else:
                step = how.guidance.guide(step, self.step(null))
        if shift is not None and not how.takes_shift:
            step = guidance.shift_eps(step, shift)
        if how.threshold != "none":
            step = guidance.clip_static(step) if how.threshold == "static" else guidance.clip_dynamic(step)
        return step

    @contextmanager
    def _ahead(self, levels: Iterable[NoiseLevel]) -> Iterator[None]:
        """Where a network can work out before the run what depends on levels or conditions alone, it does."""
        parts = [part for part in (self.denoiser.network, self.controls) if hasattr(part, "ahead")]
        plain = [level for level in levels if not isinstance(level.t, Tensor) and level.sigma != 0] if parts else []
        indices = [self.denoiser.index(level, torch.empty(1)).item() for level in plain]
        with ExitStack() as inside:
            for part in parts:
                inside.enter_context(cast(Any, part).ahead(indices))
            yield


# Keywords of other programs' pipelines, and what they are called here
_KEYWORDS = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "num_images": "count",
    "num_images_per_prompt": "count",
    "n": "count",
    "generator": "seed",
    "scheduler": "schedule",
    "class_labels": "label",
    "height": "size",
    "width": "size",
    "given": "cond",
}


def _unknown_keyword(name: str) -> str:
    allowed = [one for one in inspect.signature(Model.generate).parameters if one not in ("self", "unknown")]
    near = f"; nearest: {_KEYWORDS[name]!r}" if name in _KEYWORDS else did_you_mean(name, allowed)
    return f"generate: {name}: no such keyword{near}"


def _with_conditions(conditions: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """Conditions by key, with those that have a keyword of their own."""
    return {**conditions, **{key: value for key, value in named.items() if value is not None}}
