"""Model: a denoiser with everything around it that turns a wish into pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unveil.codec import Identity
from unveil.codec.tiles import decode_within
from unveil.config import ModelConfig, SampleConfig
from unveil.config.codec import SavedSection, build_codec, section_of
from unveil.core import guidance, samplers
from unveil.core.denoiser import Denoiser, Estimate, Step
from unveil.core.noise import START, Streams
from unveil.core.process import Process
from unveil.core.samplers import Progress
from unveil.core.samplers.ancestral import Shift
from unveil.core.variance import VarianceRule, fixed_small, is_learned
from unveil.types import Condition, Level, NonFinite, OutOfResources, Raw, RecipeError, nearest

if TYPE_CHECKING:
    from unveil.codec import Codec

# Layers whose products autocast computes in the lower precision
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Model(nn.Module):
    """What recipes build, training trains and checkpoints hold.

    Args:
        denoiser: the network, the process it was trained under and what it predicts.
        shape: of one sample, such as (C, H, W).
        conditioners: modules with `key`, `drop`, `encode(values)` and `null(batch)`, each reading its own key.
        codec: between pixels and what the network sees; None: nothing is between.
        variance: of a reverse step, for ancestral sampling and for the bound.
        config: what it was built from; without one it can be saved only by whoever builds it again.
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
        self._precision = self._lowered = torch.float32

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
            for layer in self.denoiser.network.modules():
                for parameter in layer.parameters(recurse=False) if isinstance(layer, MATRICES) else ():
                    parameter.data = parameter.data.to(dtype)
            self._lowered = dtype
        return self

    @property
    def sampling(self) -> SampleConfig:
        """How it samples when nothing else is asked for."""
        return self.config.sample if self.config is not None else SampleConfig()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

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
        raw = dict(raw or {})
        for key in raw:
            if key not in self.conditioners:
                known = list(self.conditioners)
                raise RecipeError(
                    f"condition {key!r}: this model takes {', '.join(known) or 'none'}{nearest(key, known)}"
                )
        count = count or max([1, *(len(v) for v in raw.values() if _is_rows(v))])
        wanted: list[Condition] = []
        nothing: list[Condition] = []
        for key, one in cast(Mapping[str, Any], self.conditioners).items():
            none: list[Condition] = [one.null(count)] if one.drop > 0 else []
            if key not in raw and not none:
                raise RecipeError(f"{key}: missing, and this model was trained with it always; give one")
            wanted += [one.encode(_rows(key, raw[key], count))] if key in raw else none
            nothing += none
        condition = reduce(Condition.join, wanted) if wanted else None
        # one condition without a "nothing" leaves none for the whole
        null = reduce(Condition.join, nothing) if wanted and len(nothing) == len(wanted) else None
        return condition, null

    def step(self, condition: Condition | None) -> Step:
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
            raise NonFinite("sampling left the finite numbers; set clip = static, use more steps, or dtype float32")
        with torch.no_grad():
            if self.precision != torch.float32:
                with torch.autocast(latents.device.type, self.precision):
                    pixels = decode_within(self.codec, latents).float()
                if bool(torch.isfinite(pixels).all()):
                    return pixels
            return decode_within(self.codec, latents.float())

    @torch.no_grad()
    def generate(
        self,
        *,
        raw: Raw | None = None,
        count: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        clip: str | None = None,
        scale: float | None = None,
        grid: str | Sequence[float] | None = None,
        sampling: Mapping[str, Any] | None = None,
        negative: Raw | None = None,
        shift: Shift | None = None,
        batch: int | None = None,
        first_sample: int = 0,
        on_step: Callable[[Progress], object] | None = None,
    ) -> Tensor:
        """Samples (count, *shape), pixels in [-1, 1]; what is left out is as the model's own `sample` says.

        Sample n of a seed is the same whatever `count`, `batch` and `first_sample` it comes out of (its noise to
        the bit, the picture within what kernels differ by).

        Args:
            raw: the condition, see `encode`.
            seed: of the whole set.
            sampler: a name in `samplers.SAMPLERS`.
            steps: of the grid; most samplers make one network call in each, without guidance.
            eta: 0 deterministic, 1 as noisy as the ancestral chain; for samplers that take it.
            clip: of the estimated x0: "static", "dynamic" or "none".
            scale: of classifier-free guidance; 1 is none, 0 leaves the condition away.
            grid: a name in `grids.GRIDS`, a respacing string, or falling times.
            sampling: further settings by the names of `SampleConfig.flat`, such as {"rescale": 0.7} or
                {"options": {"s_churn": 40}}.
            negative: a condition to go away from, in the place of none; see `encode`.
            shift: (x, level) -> the gradient of log p(y | x), such as `guidance.gradient` of a classifier's score:
                moves the mean of samplers that take a shift (ADM's algorithm 1), and the eps of all others.
            batch: samples at a time; None: all.
            first_sample: number of the first.
            on_step: called after each step of each batch; it may raise `types.Cancelled`.

        Raises:
            RecipeError: a setting that cannot work.
            NonFinite: sampling left the finite numbers.
        """
        if count < 1:
            raise RecipeError(f"count = {count}: at least 1")
        changes = {"sampler": sampler, "steps": steps, "eta": eta, "clip": clip, "scale": scale, "grid": grid}
        how = self.sampling.changed({**(sampling or {}), **{k: v for k, v in changes.items() if v is not None}})
        rows = {key: _rows(key, value, count) for key, value in (raw or {}).items()}
        avoided = {key: _rows(key, value, count) for key, value in (negative or {}).items()}
        training = self.training
        self.eval()
        try:
            parts = []
            size = min(batch or count, count)
            for start in range(0, count, size):
                numbers = range(first_sample + start, first_sample + min(start + size, count))
                part, away = (
                    {key: value[start : start + len(numbers)] for key, value in one.items()} for one in (rows, avoided)
                )
                step = self._guided(how, part, away, len(numbers), shift)
                parts.append(self._draw(how, step, Streams(seed, numbers, device=self.device), shift, on_step))
        finally:
            self.train(training)
        return torch.cat(parts)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Writes a folder of model.yaml, a safetensors file per part and card.md, whole or not at all."""
        from unveil.checkpoints import ours  # a layer above: only saving and loading reach it

        return ours.save_model(self, Path(folder), force=force)

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """The model of a folder that `save` or a training run wrote, or of a published file of tensors."""
        from unveil.checkpoints import ours, published

        return published.load(Path(path)) if Path(path).is_file() else ours.load_model(Path(path))

    def _estimate(self, x: Tensor, level: Level, condition: Condition | None) -> Estimate:
        """The denoiser in the precision asked for."""
        if self.precision == torch.float32:
            return self.denoiser(x, level, condition)
        with torch.autocast(x.device.type, self.precision):
            return self.denoiser(x, level, condition)

    def _guided(self, how: SampleConfig, raw: Raw, negative: Raw, count: int, shift: Shift | None) -> Step:
        """The step of one batch with its condition bound, guided and clipped."""
        condition, null = self.encode(raw, count)
        step = self.step(condition)
        if negative:
            null = self.encode(negative, count)[0]
        if how.guidance.scale != 1:
            if null is None:
                raise RecipeError(
                    f"scale = {how.guidance.scale}: guidance needs a model trained with drop > 0; use scale 1"
                )
            assert condition is not None  # without one there is no null
            if how.guidance.scale != 0 and guidance.together(self.device, count):
                step = how.guidance.guide(*guidance.batched(self._estimate, condition, null))
            else:
                step = how.guidance.guide(step, self.step(null))
        if shift is not None and not how.takes_shift:
            step = guidance.steer(step, shift)
        if how.clip != "none":
            step = guidance.clip_static(step) if how.clip == "static" else guidance.clip_dynamic(step)
        return step

    def _draw(
        self,
        how: SampleConfig,
        step: Step,
        streams: Streams,
        shift: Shift | None,
        on_step: Callable[[Progress], object] | None,
    ) -> Tensor:
        """One batch."""
        levels = how.levels(self.process)
        plan = how.plan(levels, self.variance, shift)
        shape = self.codec.latent_shape(self.shape)
        x = levels.start(streams.normal(shape, START))
        with self._ahead(plan.levels if isinstance(plan, samplers.Table) else levels):
            latents = samplers.run(plan, step, x, noise=streams.bind(shape), on_step=on_step)
        pixels = self.decode(latents)
        return pixels if how.clip == "none" else pixels.clamp(-1, 1)

    def _ahead(self, levels: Iterable[Level]) -> AbstractContextManager[None]:
        """Where the network can work out what depends on the levels alone before the run, it does."""
        ahead = getattr(self.denoiser.network, "ahead", None)
        if ahead is None:
            return nullcontext()
        plain = [level for level in levels if not isinstance(level.t, Tensor) and level.sigma != 0]
        one = torch.empty(1)
        return ahead([self.denoiser.index(level, one).item() for level in plain])


def build(config: ModelConfig) -> Model:
    """The model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory."""
    network = config.build_network()
    with torch.device("cpu"):  # tables of levels live there, whatever device the weights are made on
        process = config.process.build()
        prediction = config.build_prediction(process)
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=config.learns_variance)
    codec, config = _codec(config)
    conditioners = [one.build(config, getattr(network, "vector_dim", None)) for one in config.condition]
    return Model(
        denoiser,
        config.shape,
        conditioners=conditioners,
        codec=codec,
        variance=config.build_variance(),
        config=config,
    )


def _codec(config: ModelConfig) -> tuple[Codec, ModelConfig]:
    """The codec, and the config that describes it whole: a saved one becomes a part of the model."""
    if not isinstance(config.codec, SavedSection):
        return build_codec(config.codec, config.shape), config
    from unveil.checkpoints import ours  # a layer above: only saving and loading reach it

    codec = ours.load_codec(config.codec.path)
    return codec, config.model_copy(update={"codec": section_of(codec)})


def load(name_or_path: str | Path) -> Model:
    """A shipped model by its name, the model in a folder (a saved one, a checkpoint or a run), or a published file.

    Raises:
        WeightsError: there is no such model, or it is damaged, or a file that is not known.
    """
    return Model.load(name_or_path)


def _is_rows(value: Any) -> bool:
    """Whether a raw value holds one entry per row, as opposed to one for all."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor) and value.ndim > 0)


def _rows(key: str, value: Any, count: int) -> Any:
    """The value with one entry per row."""
    if not _is_rows(value):
        return [value] * count
    if len(value) == 1 and count > 1:
        return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else [value[0]] * count
    if len(value) != count:
        raise RecipeError(f"{key}: {len(value)} values for {count} samples; give one, or one for each")
    return value
