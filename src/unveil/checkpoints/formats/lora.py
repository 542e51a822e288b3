"""Files of LoRAs, which `checkpoints.lora` reads and puts on a model."""

from __future__ import annotations

from unveil.checkpoints.format import Format, Signature
from unveil.checkpoints.lora_formats import naming_of

FORMATS = (
    Format(
        name="lora",
        kind="LoRA",
        signatures=(
            Signature("a LoRA", {}, "give it beside the model that it is for: unveil sample MODEL --lora FILE"),
        ),
        recognise=lambda keys: naming_of(keys) is not None,
        priority=30,
    ),
)
