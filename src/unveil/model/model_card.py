"""Model cards: the description, the requirements and the limits of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.model.config import AutoencoderModelConfig, Section

if TYPE_CHECKING:
    from unveil.model.model import Model


def card(model: Model, about: str = "") -> str:
    """Return the card of a model in Markdown.

    Args:
        about: Markdown for the end of the card, about the training and the evaluation.
    """
    count = sum(p.numel() for p in model.parameters())
    rows = {
        "makes": f"samples of shape {tuple(model.shape)}",
        "network": f"{type(model.denoiser.network).__name__}, {count:,} parameters with its conditioners",
        "process": repr(model.process),
        "conditions": ", ".join(model.conditioners) or "none",
    }
    if model.config is not None:
        rows["prediction"] = f"{_named(model.config.prediction)}, variance {model.config.variance}"
    lines = ["# Model card", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    if model.config is not None:
        example = (
            ", cond={" + ", ".join(f'"{key}": ...' for key in model.conditioners) + "}"
            if len(model.conditioners)
            else ""
        )
        lines += ["```python", "import unveil", "", 'model = unveil.load("this/folder")']
        lines += [f"samples = model.generate(count=4, seed=0{example})", "```", ""]
    lines += [
        "Its samples resemble the data it was trained on, with that data's gaps and biases; it knows nothing else.",
        "It was not made to identify, depict or judge real people, nor to pass samples off as records of fact.",
        "",
    ]
    return "\n".join(lines) + (f"\n{about.strip()}\n" if about.strip() else "")


def autoencoder_card(codec: AutoencoderKL | VQModel, config: AutoencoderModelConfig, about: str = "") -> str:
    """Return the card of an autoencoder in Markdown.

    Args:
        about: Markdown for the end of the card, about the training and the evaluation.
    """
    latents = codec.latent_shape(config.shape)
    values = math.prod(latents)
    share = f"{values / math.prod(config.shape):.3g}"
    rows = {
        "images": f"of shape {tuple(config.shape)}",
        "latents": f"of shape {latents}: {values:,} values, {share} of the image's",
        "autoencoder": f"{type(codec).__name__}, {sum(p.numel() for p in codec.parameters()):,} parameters",
        "scale": ", ".join(f"{number:.4g}" for number in codec.scale.tolist()),
        "shift": ", ".join(f"{number:.4g}" for number in codec.shift.tolist()),
    }
    lines = ["# Card of an autoencoder", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]
    lines += ["```yaml", "autoencoder: {kind: saved, path: this/folder}  # of a diffusion model's recipe", "```", ""]
    lines += ["Its reconstructions resemble the images it was trained on; other images lose more.", ""]
    return "\n".join(lines) + (f"\n{about.strip()}\n" if about.strip() else "")


def _named(prediction: str | Section) -> str:
    """Return a name, or a preconditioning's kind with its settings."""
    if isinstance(prediction, str):
        return prediction
    settings = prediction.model_dump(mode="json")
    kind = settings.pop("kind")
    return f"{kind} ({', '.join(f'{name} {value}' for name, value in settings.items())})" if settings else kind
