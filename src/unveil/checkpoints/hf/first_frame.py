"""The first frame of a video as a condition of networks that take it besides the noisy latents: Wan's image to video.

Facts: how diffusers' `WanImageToVideoPipeline` encodes the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.video_vaes import VideoVAE
from unveil.checkpoints.hf.weights import fill
from unveil.conditioning.image import FIRST_FRAME, images_of
from unveil.errors import RecipeError, ShapeError
from unveil.io.images import to_pixels
from unveil.io.optional_deps import import_extra
from unveil.nn.layers import EmptyParameters
from unveil.types import Condition, format_size

ReadImages = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> their tokens (B, L, D)


class FirstFrame(nn.Module):
    """Latents of a clip whose first frame is known and whose others are grey, and which latents are known.

    Args:
        codec: Autoencoder of the model.
        shape: Shape of the clips, (3, T, H, W).
        read: Reader of the frame's tokens, which are flattened into the condition's vector; None: there are none.
    """

    drop = 0.0
    stays = True
    key = FIRST_FRAME

    def __init__(self, codec: VideoVAE, shape: Sequence[int], read: ReadImages | None = None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self._parts = (codec, read)  # of the model, which has them as modules

    def resized(self, shape: Sequence[int]) -> FirstFrame:
        """Return the condition for clips of another shape."""
        codec, read = self._parts
        return FirstFrame(codec, shape, read)

    @torch.no_grad()
    def encode(self, raw: Tensor | Sequence[Tensor]) -> Condition:
        """Condition of images (B, 3, H, W), uint8 or in [-1, 1]: `concat` is (B, ct + Z, T', H', W').

        Raises:
            ShapeError: Images of another size than the clips.
        """
        codec, read = self._parts
        images = images_of(raw, 3, self.key).to(codec.mean.device).float()
        if images.shape[2:] != self.shape[2:]:
            raise ShapeError(
                f"{self.key}: an image of {format_size(images.shape[2:])} for videos of {format_size(self.shape[2:])}"
            )
        clip = images.new_zeros(len(images), *self.shape)
        clip[:, :, 0] = images
        latents = codec.encode(clip)
        mask = latents.new_zeros(len(latents), codec.rates[0], *latents.shape[2:])
        mask[:, :, 0] = 1
        vector = None if read is None else read(images).flatten(1)
        return Condition(concat=torch.cat([mask, latents], dim=1), vector=vector)

    def null(self, batch: int) -> Condition:
        """Never: every clip of such a network begins with an image.

        Raises:
            RecipeError: Always; names the option.
        """
        del batch
        raise RecipeError(f"{self.key}: missing; this model continues an image: give it, such as --image FILE")


def image_reader(folder: PipelineFolder, dtype: torch.dtype) -> ReadImages:
    """The tokens of a folder's image encoder, a CLIP: its layer before the last.

    Raises:
        WeightsError: A component that is missing or damaged.
        RecipeError: Transformers is not installed.
    """
    library: Any = import_extra("transformers", f"a {folder.kind}")
    place = folder.place("image_encoder")
    config = library.CLIPVisionConfig.from_pretrained(place, local_files_only=True)
    with EmptyParameters():
        encoder = library.CLIPVisionModel(config)
    theirs = {f"vision_model.{key.removeprefix('vision_model.')}": tensor for key, tensor in _tensors(folder).items()}
    if not any(key.startswith("vision_model.") for key in encoder.state_dict()):
        theirs = {key.removeprefix("vision_model."): tensor for key, tensor in theirs.items()}
    fill(encoder.eval().requires_grad_(False), theirs, dtype, place)
    processor = library.CLIPImageProcessor.from_pretrained(folder.place("image_processor"), local_files_only=True)

    def read(images: Tensor) -> Tensor:
        device = next(encoder.parameters()).device
        shown = [image.permute(1, 2, 0).numpy() for image in to_pixels(images).cpu()]
        pixels = processor(images=shown, return_tensors="pt").pixel_values.to(device, dtype)
        return encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2].float().to(images.device)

    return read


def _tensors(folder: PipelineFolder) -> dict[str, Tensor]:
    """The weights of the image encoder, without the table of places, which older versions wrote."""
    return {key: tensor for key, tensor in folder.tensors("image_encoder").items() if not key.endswith("position_ids")}
