"""Files that are recognised and not read: networks of others in one file, which run from their diffusers folder."""

from __future__ import annotations

from unveil.checkpoints.format import Format, Signature
from unveil.checkpoints.formats.single_file import WHOLE
from unveil.checkpoints.ldm_unet import PREFIX

FOLDER = "give the folder that diffusers writes, which is read through its own networks"
VIDEO = "put it into transformer/ of a folder of diffusers, whose settings, autoencoder and text encoder it needs"

FORMATS = (
    Format(
        name="other-networks",
        signatures=(
            Signature(
                "Stable Diffusion XL in one file", {**WHOLE, "the text encoders": "conditioner.embedders."}, FOLDER
            ),
            Signature("Stable Diffusion 3 in one file", {"blocks": f"{PREFIX}joint_blocks."}, FOLDER),
            Signature("HunyuanVideo's network", {"its text": "txt_in.individual_token_refiner."}, VIDEO),
            Signature("FLUX in one file", {"blocks": "double_blocks.", "more blocks": "single_blocks."}, FOLDER),
            Signature("Wan's network", {"blocks": "blocks.0.self_attn.", "its head": "head.modulation"}, VIDEO),
            Signature("LTX-Video in one file", {"first layer": f"{PREFIX}patchify_proj.weight"}, VIDEO),
            Signature(
                "CogVideoX's network in SAT's layout",
                {"blocks": f"{PREFIX}transformer.layers.0.attention.query_key_value."},
                FOLDER,
            ),
        ),
        priority=10,  # Stable Diffusion XL has the keys of a latent diffusion model too
    ),
)
