"""A model from wherever it is: one place that tells the kinds of files and folders apart."""

from __future__ import annotations

from pathlib import Path

import torch

from unveil.checkpoints import dit_pipeline, hf, openai_models
from unveil.model import Model, model_dir, model_folder


def load(name_or_path: str | Path, *, dtype: torch.dtype = torch.float32) -> Model:
    """Return a bundled model by its name, the model in a folder, or a published one, in evaluation mode.

    Args:
        name_or_path: Name of a bundled model or of one in the models folder (see `model_dir`), a folder of ours (a
            saved model, a checkpoint, a run) or of diffusers, or a published file of tensors.
        dtype: Type that the network computes in; see `Model.to_inference_dtype`. Tensors of a diffusers folder are
            copied only if they have another type.

    Raises:
        WeightsError: there is no such model, or it is damaged, or one that is not known.
    """
    path = model_dir.resolve(name_or_path, "checkpoints")
    if path.is_file():
        return openai_models.load(path).to_inference_dtype(dtype)
    if hf.is_folder(path):
        return hf.load(path, dtype)
    return (
        dit_pipeline.read_folder(path) if dit_pipeline.is_folder(path) else model_folder.load_model(path)
    ).to_inference_dtype(dtype)
