"""`unveil merge`: a model whose weights lie between those of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unveil.errors import RecipeError, did_you_mean
from unveil.generation.generate import DTYPES
from unveil.generation.model_loading import open_model, resolve_device
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.model import checkpoint_store
from unveil.model.weight_averaging import average_weights


def merge(names: Sequence[str], shares: str | None, out: Path, dtype: str, force: bool, console: Console) -> None:
    """Writes the mean of models as a model of its own, and says what it was made of.

    Args:
        names: of the models; the first gives the settings.
        shares: numbers with commas between them; None: equal ones.

    Raises:
        RecipeError: shares that are no numbers, or not one for each model; an unknown type; a folder of another
            program, which cannot be written.
        WeightsError: no such model, or models of unlike networks.
        OutputError: something is there already.
    """
    refuse_overwrite(out, force)
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype {dtype!r}: must be one of {', '.join(DTYPES)}{did_you_mean(dtype, [*DTYPES])}")
    parts = _numbers(shares) if shares is not None else [1.0] * len(names)
    opened = [open_model(name, resolve_device("cpu")) for name in names]
    for name, (model, _) in zip(names, opened, strict=True):
        if model.source_folder is not None or model.base is not None:
            raise RecipeError(
                f"{name}: not a model of its own; bring it into one first: unveil convert {name} OUT --format ours"
            )
    made = average_weights([model for model, _ in opened], parts)
    facts = [
        {"model": source.name, "sha256": source.sha256, "share": share / sum(parts)}
        for (_, source), share in zip(opened, parts, strict=True)
    ]
    told = "\n".join(f"- {one['share']:g} of `{one['model']}` (sha256 {str(one['sha256'])[:12]})" for one in facts)
    about = f"The mean of models, weight for weight:\n\n{told}\n"
    checkpoint_store.save_model(made.to(DTYPES[dtype]), out, force=force, about=about)
    console.result({"out": str(out), "of": facts}, f"{out}: the mean of {', '.join(names)}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--merge-weights {text!r}: must be numbers with commas between them, such as 0.7,0.3"
        ) from None
