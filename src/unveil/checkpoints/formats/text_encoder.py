"""Text encoders of transformers, which `checkpoints.text_encoder_loader` reads."""

from __future__ import annotations

from unveil.checkpoints.format import Format, Signature

FORMATS = (
    Format(
        name="transformers",
        kind="text encoder",
        signatures=(
            Signature(
                "a text encoder of transformers",
                {
                    "its table": "text_model.embeddings.token_embedding.weight",
                    "its blocks": "text_model.encoder.layers.0.",
                },
                "a text encoder, which makes no images by itself; give the whole folder or file that it is from",
            ),
        ),
    ),
)
