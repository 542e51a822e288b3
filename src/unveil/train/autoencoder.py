"""Training of autoencoders of images and videos: the learner of an autoencoder, with or without a discriminator.

In one step the decoder's images pass through the frozen discriminator, and the discriminator is trained on the same
images, detached from the decoder. So one loss has the gradients of both.

Sources: Esser et al. 2021, section 3.1 (arXiv:2012.09841); Rombach et al. 2022, appendix G (arXiv:2112.10752).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.autoencoders.autoencoder import channels_last
from unveil.autoencoders.losses import ADVERSARIAL, ERRORS, LPIPS, adaptive_weight, generator_loss, likelihood
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.core.rng import key as hash_of
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.perceptual import perceptual
from unveil.io.files import write_atomically
from unveil.io.images import stack_rows
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import AutoencoderLossSection, AutoencoderModelConfig, AutoencoderRecipe, dump
from unveil.model.config.autoencoder import PUBLISHED_KL, ClipLengthSection
from unveil.model.model_card import autoencoder_card
from unveil.nn.discriminator import PatchDiscriminator
from unveil.train.batch_preparation import fixed_subset, hflip, random_flip_mask, slice_batch, to_float
from unveil.train.data_order import Batch, IndexableItems, check_items
from unveil.train.learner import Learner
from unveil.train.sample_images import image_sheet
from unveil.train.signals import Stop
from unveil.train.trainer import learn

POSTERIOR, LATENT = 0, 1  # draws of an example's stream
LENGTH, LOOKED = 2, 3  # draws of a step
COLUMNS = 8  # of a sheet, whose two rows of images are each above their reconstructions
MEASURED = 10_000  # training images, or frames, that scale and shift are measured on, at most
PART = 256  # of them at a time, but at least a clip


class ReconstructedBatch(NamedTuple):
    """Reconstructed images (B, C, H, W), or videos (B, C, T, H, W), with the regularising loss.

    Attributes:
        pixels: Reconstructions.
        regulariser: Regularising loss of each, (B,): the KL divergence, or the loss of the codebook.
    """

    pixels: Tensor
    regulariser: Tensor


class AuxModules(nn.Module):
    """Auxiliary modules of an autoencoder: a discriminator, the log scale of the error, both, or none."""

    def __init__(self, loss: AutoencoderLossSection, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.discriminator = None if loss.discriminator is None else loss.discriminator.build(shape)
        self.log_scale = None if loss.logvar_init is None else nn.Parameter(torch.tensor(loss.logvar_init))


class AutoencoderLearner(Learner):
    """Learner of an autoencoder.

    Args:
        codec: Autoencoder that is trained.
        config: Configuration that is saved with the autoencoder.
        loss: Loss that is minimised.
        by_channel: True if the scale of the latents is measured for each channel.
        lengths: Lengths of the clips that training cuts out of videos; None: whole videos.
        key: Key of the item's image or video.
        seed: Seed of the latents that replace unused entries of a codebook, and of lengths.

    Raises:
        RecipeError, WeightsError: The perceptual network cannot be loaded.
    """

    def __init__(
        self,
        codec: AutoencoderKL | VQModel,
        config: AutoencoderModelConfig,
        loss: AutoencoderLossSection,
        *,
        by_channel: bool = False,
        lengths: ClipLengthSection | None = None,
        key: str = "pixels",
        seed: int = 0,
    ) -> None:
        super().__init__(codec)
        self.config = config
        self.settings = loss
        self.by_channel, self.lengths = by_channel, lengths
        self.key = key
        self.shape = config.shape
        self.auxiliary = AuxModules(loss, config.shape)
        wanted = loss.perceptual
        self.judge: LPIPS | None = None if wanted is None else perceptual(wanted.network, wanted.weights)
        self._seed = seed
        self._taken: list[tuple[Tensor, Tensor]] = []  # of step `_at`, what was put on which entries
        self._at = -1
        regulariser, weight, published = (
            ("kl", loss.kl_weight, PUBLISHED_KL)
            if isinstance(codec, AutoencoderKL)
            else ("codebook", loss.codebook_weight, 1.0)
        )
        self._regulariser_weight = published if weight is None else weight
        self.logged = ("error", regulariser, *(("perceptual",) if self.judge else ()))
        if self.auxiliary.discriminator is not None:
            self.logged += ("generator", "discriminator", "weight")

    # ------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Loss of a batch: error, perceptual distance, regularising loss and, once started, the adversarial losses."""
        if step != self._at:  # a step that was skipped leaves no trace
            self._at, self._taken = step, []
        x = self.pixels(batch)
        if flip:
            x = hflip(x, random_flip_mask(x, streams, step))
        if self.lengths is not None:
            x = self._cut(x, self.lengths, step)
        reconstruction = self.reconstruct(self.model, x, streams, step)
        return self.losses_of(x, reconstruction, step)

    def pixels(self, batch: Batch) -> Tensor:
        """Images in [-1, 1] in channels-last memory, in which convolutions are fastest; videos are not converted."""
        return channels_last(to_float(cast(Tensor, batch.data)))

    def _cut(self, clips: Tensor, lengths: ClipLengthSection, step: int) -> Tensor:
        """Clips of the step's random length and position, cut out of videos (B, C, T, H, W)."""
        drawn = self._drawn(LENGTH, step)
        time, whole = getattr(self.model.config, "time"), clips.shape[2]  # noqa: B009 - of a codec of clips
        shortest = min(lengths.min_frames or 1 + time, whole)
        allowed = torch.arange(shortest, whole + 1, time)
        still, length, place = drawn.tolist()
        frames = 1 if still < lengths.image_prob else int(allowed[int(length * len(allowed))])
        start = int(place * (whole - frames + 1))
        return clips[:, :, start : start + frames]

    def _drawn(self, what: int, step: int) -> Tensor:
        """Three random numbers of a step, the same in all parts of its batch."""
        return torch.rand(3, generator=torch.Generator().manual_seed(hash_of(self._seed, step, what) >> 1))

    def reconstruct(
        self, codec: AutoencoderKL | VQModel, x: Tensor, streams: SampleRNG | None, step: int
    ) -> ReconstructedBatch:
        """Reconstruct images with the trained or the EMA autoencoder; without streams, from the likeliest latents."""
        settings = self.settings
        if isinstance(codec, AutoencoderKL):
            posterior = codec.posterior(x)
            z = posterior.mode
            if streams is not None:
                z = posterior.sample(streams.normal(z.shape[1:], step, POSTERIOR).to(z))
            regulariser = posterior.kl().float() / math.prod(x.shape[1:])
        else:
            features = codec.encoded(x)
            quantised = codec.quantise(features.float())
            if streams is not None and torch.is_grad_enabled():
                self._taken.append((features.detach().float(), quantised.indices))
            z, regulariser = quantised.latents, quantised.loss.float().expand(len(x))
        if streams is not None and settings.latent_noise:
            spread = z.detach().float().std().to(z)
            z = z + settings.latent_noise * spread * streams.normal(z.shape[1:], step, LATENT).to(z)
        return ReconstructedBatch(codec.decoded(z).float(), regulariser)

    def losses_of(self, x: Tensor, reconstruction: ReconstructedBatch, step: int) -> LossOutput:
        """Loss of images and their reconstructions; without gradients, the discriminator is not used."""
        settings = self.settings
        error = ERRORS[settings.distance](x - reconstruction.pixels).flatten(1).mean(1)  # (B,)
        terms = {"error": error}
        if self.judge is not None and settings.perceptual is not None:
            terms["perceptual"] = self._looked(self.judge.to(x.device), x, reconstruction.pixels, step)
            error = error + settings.perceptual.weight * terms["perceptual"]
        log_scale = x.new_zeros(()) if self.auxiliary.log_scale is None else self.auxiliary.log_scale
        rebuilt = likelihood(error, log_scale)  # (B,)
        regulariser = "kl" if isinstance(self.model, AutoencoderKL) else "codebook"
        terms[regulariser] = reconstruction.regulariser
        value = rebuilt.mean() + self._regulariser_weight * reconstruction.regulariser.mean()
        critic, at = self.auxiliary.discriminator, settings.discriminator
        judged = critic is not None and at is not None and step >= at.start and torch.is_grad_enabled()
        # what is not finite would stay in the running means of the discriminator's normalisations
        if judged and bool(rebuilt.detach().isfinite().all()):
            assert critic is not None
            assert at is not None
            shares = self._adversarial(critic, x, reconstruction.pixels, rebuilt.mean())
            value = value + at.weight * shares["weight"] * shares["generator"] + shares["discriminator"]
            terms |= {name: share.detach().expand(len(x)) for name, share in shares.items()}
        detached = {name: term.detach() for name, term in terms.items()}
        nowhere = torch.full((len(x),), math.nan, dtype=torch.float64)
        return LossOutput(value, rebuilt.detach(), nowhere, detached)

    def _looked(self, judge: LPIPS, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Perceptual distance (B,), in training of the number of frames in the settings."""
        wanted = self.settings.perceptual.frames if self.settings.perceptual is not None else None
        if wanted is not None and x.ndim == 5 and torch.is_grad_enabled():
            places = (torch.arange(wanted) + self._drawn(LOOKED, step)[0]) / wanted
            chosen = (places * x.shape[2]).long().unique()  # one of each share of the clip
            x, y = x[:, :, chosen], y[:, :, chosen]
        return judge(x, y)

    def _adversarial(self, critic: PatchDiscriminator, x: Tensor, y: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        """Adversarial loss of the decoder, its adaptive weight, and the loss of the discriminator."""
        assert self.settings.discriminator is not None
        with _still(critic):
            generator = generator_loss(critic(y).float())
        weight = adaptive_weight(rebuilt, generator, self.model.last_layer)
        real, fake = critic(x).float(), critic(y.detach()).float()
        adversarial = ADVERSARIAL[self.settings.discriminator.kind](real, fake)
        return {"generator": generator, "weight": weight, "discriminator": adversarial}

    # ------------------------------------------------------------------ what a run calls

    def observe(self, step: int, t: Tensor, per_sample: Tensor) -> None:
        """Update the codebook with the latents of the step."""
        taken, self._taken = self._taken, []
        if isinstance(self.model, VQModel) and taken:
            z, indices = (torch.cat(part) for part in zip(*taken, strict=True))
            generator = torch.Generator().manual_seed(hash_of(self._seed, step) >> 1)
            self.model.quantiser.observe(z, indices, generator)

    def compile(self) -> None:
        """Compile encoder and decoder."""
        self.model.encoder.compile()
        self.model.decoder.compile()

    def validator(self, items: IndexableItems, at_once: int, count: int, seed: int) -> AutoencoderValidation:
        """Validation by the loss without a discriminator, and by the PSNR, with the most probable latents."""
        return AutoencoderValidation(self, fixed_subset(items, count, self.key, []), at_once)

    def sample_sheets(
        self, items: IndexableItems, seed: int, stop: Stop
    ) -> tuple[ReconstructionSheets, int | None] | None:
        """Sheets of images with their reconstructions."""
        if self.shape[0] not in (1, 3):
            return None
        columns = min(COLUMNS, len(items)) if len(self.shape) == 3 else 1  # a clip has its own row
        count = min(2 if columns > 1 else COLUMNS, len(items) // columns) * columns
        return ReconstructionSheets(self, fixed_subset(items, count, self.key, [])), columns

    def finish(self, average: AutoencoderKL | VQModel, items: IndexableItems) -> None:
        """Measure scale and shift of the latents on training images, and store them with the autoencoder."""
        frames = self.shape[1] if len(self.shape) == 4 else 1
        count, part = min(max(MEASURED // frames, 1), len(items)), max(PART // frames, 1)
        device = self.device
        places = [place * len(items) // count for place in range(count)]
        parts = (
            torch.stack([torch.as_tensor(items[place][self.key]) for place in places[start : start + part]])
            for start in range(0, count, part)
        )
        scale, shift = measure_latent_scaling(
            average, (to_float(each).to(device) for each in parts), by_channel=self.by_channel
        )
        for codec in (self.model, average):
            codec.scale.copy_(scale)
            codec.shift.copy_(shift)

    def ema_tensors(self, average: AutoencoderKL | VQModel) -> dict[str, dict[str, Tensor]]:
        """Tensors of the autoencoder by file name."""
        return checkpoint_store.weight_files(average)

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the autoencoder with the trained weights."""
        return {
            **checkpoint_store.weight_files(self.model),
            "model.yaml": dump(self.config),
            "card.md": self.card(about),
        }

    def load(self, model: AutoencoderKL | VQModel, folder: Path, which: model_folder.WeightSet) -> None:
        """Copy the weights of a folder into the autoencoder."""
        model_folder.load_into(model, folder, which)

    def card(self, about: str) -> str:
        """Card of the autoencoder."""
        return autoencoder_card(self.model, self.config, about)


class AutoencoderValidation:
    """Reconstruction error of the EMA autoencoder on held-out images."""

    from_start = False

    def __init__(self, learner: AutoencoderLearner, batch: Batch, at_once: int) -> None:
        self.learner, self.batch, self.at_once = learner, batch, at_once

    @torch.no_grad()
    def line(self, model: AutoencoderKL | VQModel) -> dict[str, Any]:
        """Return `validation`, the loss, and `psnr`, of the mean squared error over all images, in decibels."""
        learner, count = self.learner, len(self.batch.numbers)
        total = squared = 0.0
        for start in range(0, count, self.at_once):
            part = slice_batch(self.batch, start, min(start + self.at_once, count), learner.device)
            x = learner.pixels(part)
            reconstruction = learner.reconstruct(model, x, None, 0)
            loss = learner.losses_of(x, reconstruction, 0)
            total += loss.value.item() * len(part.numbers)
            squared += ((reconstruction.pixels.clamp(-1, 1) - x) / 2).square().flatten(1).mean(1).sum().item()
        return {"validation": total / count, "psnr": -10 * math.log10(max(squared / count, 1e-12))}


class ReconstructionSheets:
    """Sheets of images with their reconstructions by the EMA autoencoder, in rows."""

    def __init__(self, learner: AutoencoderLearner, batch: Batch) -> None:
        self.learner, self.batch = learner, batch

    @torch.no_grad()
    def draw(self, model: AutoencoderKL | VQModel, path: Path, columns: int | None) -> None:
        """Write one sheet."""
        batch = slice_batch(self.batch, 0, len(self.batch.numbers), self.learner.device)
        x = self.learner.pixels(batch)
        reconstruction = self.learner.reconstruct(model, x, None, 0).pixels
        write_atomically(path, image_sheet(stack_rows(x, reconstruction, columns or len(x)), columns))


def fit_autoencoder(
    recipe: AutoencoderRecipe,
    codec: AutoencoderKL | VQModel,
    dataset: IndexableItems,
    *,
    run: Path | str,
    held_out: IndexableItems | None = None,
) -> Path:
    """Train an autoencoder in a run folder, or resume the run in it; return the folder.

    As with `train.fit`, the same seed gives the same weights bit for bit, however often the run was interrupted. At the
    end the autoencoder has the EMA weights, and the scale and shift that normalise the latents of training images to
    mean 0 and standard deviation 1.

    Args:
        recipe: Loss and settings of training.
        codec: Autoencoder, as the recipe builds it, on the device for training.
        dataset: Items with images or videos, uint8, or floats in [-1, 1].
        run: Run folder, which is new or contains a run of the same recipe.
        held_out: Items for the held-out loss, which are not trained on.

    Raises:
        RecipeError: A setting is invalid, or the folder contains a run of another recipe.
        WeightsError: The weights of the perceptual network are missing or damaged.
        ShapeError: The images have another shape than the recipe's.
        OutputError, NonFinite, OutOfResources, Cancelled: Training stops, as in `train.fit`.
    """
    if (
        isinstance(codec, VQModel)
        and (codec.config.learned == "ema" or codec.config.restart_dead > 0)
        and int(os.environ.get("WORLD_SIZE", 1)) > 1
    ):
        raise RecipeError(
            "autoencoder.learned = ema, autoencoder.restart_dead > 0: such a codebook is trained in one "
            "process; train in one, or set learned: gradient and restart_dead: 0"
        )
    learner = learner_of(recipe, codec)
    check_items(dataset, recipe.key, [], recipe.shape)
    recorded = recipe.model_dump(mode="json")
    return learn(learner, dataset, config=recipe.train, run=run, held_out=held_out, recorded=recorded)


def learner_of(recipe: AutoencoderRecipe, codec: AutoencoderKL | VQModel) -> AutoencoderLearner:
    """Return the learner of a recipe; the seed determines the initial weights of its discriminator.

    Raises:
        RecipeError, WeightsError: The perceptual network cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_of(recipe.train.seed, 1) >> 1)
        return AutoencoderLearner(
            codec, recipe.model, recipe.loss, by_channel=recipe.scale == "channel", lengths=recipe.lengths,
            key=recipe.key, seed=recipe.train.seed,
        )  # fmt: skip


@torch.no_grad()
def measure_latent_scaling(
    codec: AutoencoderKL | VQModel, parts: Iterator[Tensor], *, by_channel: bool
) -> tuple[Tensor, Tensor]:
    """Measure the scale and shift (C,) that normalise the latents of images to mean 0 and standard deviation 1.

    Args:
        parts: Batches of images (B, C, H, W), or videos (B, C, T, H, W), in [-1, 1]; non-finite ones are left out.
        by_channel: True if each channel has its own scale and shift.

    Raises:
        NonFinite: None of the latents are finite.

    Source: Rombach et al. 2022, appendix D.1, for the deviation of one batch; here over all of them, and the mean.
    """
    count, total, squares = 0, torch.zeros(len(codec.scale)).double(), torch.zeros(len(codec.scale)).double()
    for pixels in parts:
        z = codec.from_latents(codec.encode(channels_last(pixels))).cpu().double()
        z = z[z.flatten(1).isfinite().all(1)]  # a broken image, which training skips too
        places = (0, *range(2, z.ndim))
        total += z.sum(places)
        squares += z.square().sum(places)
        count += z.numel() // z.shape[1]
    if not count:
        raise NonFinite("the latents of all training images are not finite, so they have no scale; lower train.lr")
    mean, square = total / count, squares / count
    if not by_channel:
        mean, square = (each.mean().expand_as(each) for each in (mean, square))
    deviation = (square - mean.square()).clamp(min=1e-12).sqrt()
    return (1 / deviation).float(), mean.float()


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """Context in which gradients pass through a network, but its weights get none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
