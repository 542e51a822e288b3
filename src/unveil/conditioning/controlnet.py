"""ControlNets of a U-Net: any number at once, each with a weight, a range of the sampling run and a control image.

Sources: Zhang et al. 2023 (arXiv:2302.05543), section 3; guess mode: github.com/lllyasviel/ControlNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor, nn

from unveil.conditioning.image import ControlImageCondition
from unveil.core.denoiser import Denoiser
from unveil.errors import RecipeError, ShapeError, WeightsError, did_you_mean
from unveil.nn.controlnet import ControlNet
from unveil.nn.layers import Memo
from unveil.nn.unet import UNetConfig, UNetEncoder
from unveil.types import Condition, NoiseLevel

# Blocks to which residuals are added: all skips of the down blocks and the middle block, or only the middle block
ControlledBlocks = Literal["all", "middle"]
# `guess`: the hint speaks where the text says little, so that it acts on deep layers more than on shallow ones, and
# what guidance goes away from is not controlled at all
ControlMode = Literal["balanced", "guess"]
PLACES, MODES = get_args(ControlledBlocks), get_args(ControlMode)
GUESS_DECAY = 0.825  # from one residual to the next shallower one
# What a U-Net and its ControlNet have in common, in words
SHARED_SETTINGS = {
    "in_channels": "channels of x",
    "widths": "widths of the levels",
    "num_res_blocks": "blocks of a level",
    "patch": "patch",
    "cross_attention_dim": "width of the text",
    "vector_dim": "width of the time embedding",
}


@dataclass(frozen=True)
class AttachedControlNet:
    """One ControlNet, with the range and the weight of its residuals.

    Args:
        key: Key of its control image, in the values of a sample.
        network: The ControlNet.
        weight: Weight of its residuals: one number, or one for each, the middle's last.
        start, stop: Range of the sampling run in which it acts, as shares of the process's time: 0 is pure noise, 1 the
            image. A level t counts as 1 - t, so that a range means the same levels for every sampler and schedule; for
            a schedule uniform in t it is the share of the steps. `stop` itself is excluded, unless it is 1.
        blocks: Blocks to which its residuals are added: all, or only the middle.

    Raises:
        RecipeError: The range violates 0 <= start <= stop <= 1, or `blocks` is unknown.
    """

    key: str
    network: ControlNet
    weight: float | tuple[float, ...] = 1.0
    start: float = 0.0
    stop: float = 1.0
    blocks: ControlledBlocks = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1:
            raise RecipeError(
                f"{self.key}: start {self.start}, stop {self.stop}: must be shares, 0 <= start <= stop <= 1"
            )
        if self.blocks not in PLACES:
            raise RecipeError(f"blocks = {self.blocks!r}: must be all or middle{did_you_mean(self.blocks, PLACES)}")

    def weights(self, count: int, mode: ControlMode) -> Sequence[float]:
        """Weights of its `count` residuals."""
        weights = [self.weight] * count if isinstance(self.weight, int | float) else list(self.weight)
        if len(weights) != count:
            raise RecipeError(f"{self.key}: {len(weights)} weights for {count} residuals; give one, or one for each")
        return [w * GUESS_DECAY ** (count - 1 - i) for i, w in enumerate(weights)] if mode == "guess" else weights

    def share(self, level: NoiseLevel, rows: int) -> float | Tensor:
        """Factor of the residuals, 1 in the range, else 0: a number, or (rows, 1, 1, 1) for a level per sample."""
        time = level.t
        if not time.ndim:
            progress = 1 - time.item()
            return float(progress >= self.start and (progress < self.stop or self.stop == 1))
        # the noisiest part of a sample counts, as it does for the index that the network is given
        progress = 1 - (time.flatten(1).amax(1) if time.ndim > 1 else time.expand(rows))
        works = (progress >= self.start) & ((progress < self.stop) if self.stop < 1 else True)
        return works.float().view(-1, 1, 1, 1)


class MultiControlNet(nn.Module):
    """All ControlNets of a model; each uses its own channels of `condition.control_image`, in their order.

    Raises:
        RecipeError: No ControlNet is given, two have the same key, or the mode is unknown.
    """

    def __init__(self, controls: Sequence[AttachedControlNet], mode: ControlMode = "balanced") -> None:
        super().__init__()
        keys = [control.key for control in controls]
        if not keys or len(set(keys)) < len(keys):
            raise RecipeError(f"controls {', '.join(keys) or 'none'}: at least one, each under its own key")
        if mode not in MODES:
            raise RecipeError(f"mode = {mode!r}: must be balanced or guess{did_you_mean(mode, MODES)}")
        self.controls = tuple(controls)
        self.mode: ControlMode = mode
        self.networks = nn.ModuleList(control.network for control in controls)
        self._features: Memo[list[Tensor]] | None = None

    @property
    def conditioners(self) -> dict[str, ControlImageCondition]:
        """Conditioner of each control image, by key."""
        return {
            control.key: ControlImageCondition(control.network.hint_channels, key=control.key)
            for control in self.controls
        }

    def null_condition(self, null: Condition) -> Condition:
        """Null condition of guidance: with the same control image, or without one in guess mode."""
        return replace(null, control_image=None) if self.mode == "guess" else null

    def forward(self, x: Tensor, t: Tensor, condition: Condition, level: NoiseLevel | None = None) -> Condition:
        """Condition of the U-Net, in which residuals replace the control image.

        Args:
            x, t: Noisy samples and time inputs of the U-Net.
            level: Noise level of t; None: every ControlNet acts, whatever its range.

        Raises:
            ShapeError: The control image does not fit.
        """
        shares = [1.0 if level is None else control.share(level, len(x)) for control in self.controls]
        used = replace(condition, control_image=None)
        if condition.control_image is None or not any(isinstance(share, Tensor) or share for share in shares):
            return used
        residuals: list[Tensor] | None = None
        features = self._all_features(condition.control_image, x)
        for control, share, seen in zip(self.controls, shares, features, strict=True):
            if not isinstance(share, Tensor) and not share:
                continue
            # one that was trained without the images beside x (of inpainting) is not given them
            condition = used if control.network.config.concat_channels else replace(used, concat=None)
            added = _weighted(control.network(x, t, condition, seen), control, self.mode, share)
            residuals = added if residuals is None else _sum(residuals, added)
        return used if residuals is None else replace(used, residuals=tuple(residuals))

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Context in which values of control images and texts are computed once; see `UNetEncoder.precompute`."""
        before, self._features = self._features, Memo()
        with ExitStack() as inside:
            for control in self.controls:
                inside.enter_context(control.network.precompute(indices))
            try:
                yield
            finally:
                self._features = before

    def _all_features(self, hint: Tensor, x: Tensor) -> list[Tensor]:
        widths = [control.network.hint_channels for control in self.controls]
        if hint.shape[1] != sum(widths):
            keys = ", ".join(f"{control.key} {width}" for control, width in zip(self.controls, widths, strict=True))
            raise ShapeError(
                f"condition.control_image {tuple(hint.shape)}: the controls read {sum(widths)} channels ({keys})"
            )

        def features() -> list[Tensor]:
            parts = zip(self.controls, hint.split(widths, dim=1), strict=True)
            return [control.network.control_features(part, x) for control, part in parts]

        return features() if self._features is None else self._features.get(hint, features)


class ControlledUNet(nn.Module):
    """U-Net with its ControlNets as one network, at every level: (x, t, condition) to the U-Net's output."""

    def __init__(self, network: nn.Module, controls: MultiControlNet) -> None:
        super().__init__()
        self.network, self.controls = network, controls

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Output of the U-Net for x, t and a condition with a control image."""
        return self.network(x, t, self.controls(x, t, condition))


def with_controlnets(denoiser: Denoiser, controls: MultiControlNet | None) -> Denoiser:
    """Denoiser of the U-Net with its ControlNets, for training; the given denoiser if there are none."""
    if controls is None:
        return denoiser
    under, learns = ControlledUNet(denoiser.network, controls), denoiser.learns_variance
    return Denoiser(under, denoiser.process, prediction=denoiser.prediction, learns_variance=learns)


def check_compatible(control: AttachedControlNet, network: nn.Module, factor: int | None) -> None:
    """Check that a ControlNet fits a network.

    Args:
        network: Network to which its residuals are added.
        factor: Factor by which images are larger than x; None: unknown.

    Raises:
        WeightsError: The network is not a U-Net, or not the one that the ControlNet was copied from; the message names
            the differences with both values.
    """
    if not isinstance(network, UNetEncoder):
        raise WeightsError(
            f"{control.key}: a ControlNet is for a U-Net of this package, such as Stable Diffusion 1's or 2's; this "
            f"model's network is another one ({type(network).__module__}.{type(network).__name__})"
        )
    theirs, ours = control.network.config, network.config
    differ = [
        f"{words} {_described(theirs, name)}, here {_described(ours, name)}"
        for name, words in SHARED_SETTINGS.items()
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if not differ and control.network.stack_widths != network.stack_widths:
        differ = [f"widths on the way down {control.network.stack_widths}, here {network.stack_widths}"]
    if differ:
        raise WeightsError(
            f"{control.key}: a ControlNet of another base ({'; '.join(differ)}); give one that was trained for this "
            "model, or the model that it was trained for"
        )
    if factor is not None and control.network.factor != factor:
        raise WeightsError(
            f"{control.key}: a ControlNet whose hints are {control.network.factor} times the size of x; here images "
            f"are {factor} times its size; give one that was trained for this model"
        )


def replace_controlnets(
    conditioners: nn.ModuleDict,
    before: MultiControlNet | None,
    controls: Sequence[AttachedControlNet],
    mode: ControlMode,
) -> MultiControlNet | None:
    """Replace the conditioners of a model's control images by those of other ControlNets.

    Returns:
        New ControlNets; None if there are none.

    Raises:
        RecipeError: A key belongs to another condition, or two ControlNets have the same key; nothing is changed then.
    """
    old = set() if before is None else {control.key for control in before.controls}
    for control in controls:
        if control.key in conditioners and control.key not in old:
            raise RecipeError(f"control {control.key!r}: the model has a condition of that name; give another key")
    new = MultiControlNet(controls, mode) if controls else None
    for key in old:
        del conditioners[key]
    if new is not None:
        device = next(new.parameters()).device
        conditioners.update({key: hint.to(device) for key, hint in new.conditioners.items()})
    return new


def _described(config: UNetConfig, name: str) -> str:
    value = getattr(config, name)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _weighted(
    residuals: Sequence[Tensor], control: AttachedControlNet, mode: ControlMode, share: float | Tensor
) -> list[Tensor]:
    weights = control.weights(len(residuals), mode)
    chosen = list(zip(residuals, weights, strict=True))[-1 if control.blocks == "middle" else 0 :]
    if isinstance(share, Tensor):
        return [residual * (weight * share.to(residual)) for residual, weight in chosen]
    return [residual if weight == 1 else residual * weight for residual, weight in chosen]


def _sum(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Sum of two lists of residuals, aligned at the middle's, which is last; either may contain only the middle's."""
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    start = len(long) - len(short)
    return [*long[:start], *(a + b for a, b in zip(long[start:], short, strict=True))]
