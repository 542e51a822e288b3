"""Autoencoders of latent diffusion and of diffusers, which `checkpoints.diffusers_autoencoder` reads and writes."""

from __future__ import annotations

from unveil.checkpoints.autoencoder_keys import SIGNS
from unveil.checkpoints.format import Format, Signature

INSTEAD = "an autoencoder, which makes no images by itself; checkpoints.diffusers_autoencoder.read(path) opens it"
TITLES = {"ldm": "an autoencoder of latent diffusion", "diffusers": "an autoencoder of diffusers"}

FORMATS = tuple(
    Format(
        name=layout,
        kind="autoencoder",
        signatures=(
            Signature(TITLES[layout], {"the encoder": sign, "the decoder": "decoder.conv_in.weight"}, INSTEAD),
        ),
    )
    for layout, sign in SIGNS.items()
)
