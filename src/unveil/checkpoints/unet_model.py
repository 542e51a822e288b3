"""The two parts of a native model that formats of U-Nets hold: its network, and the label table beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unveil.checkpoints.overrides import in_float
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model, build
from unveil.model.config import ModelConfig
from unveil.model.config.model import UNetSection
from unveil.nn.layers import meta_device
from unveil.nn.unet import UNetConfig

OUR_LABEL = "table.weight"  # key of the table in a label conditioner's state dict


def network_of(model: Model, classes: Sequence[str], name: str) -> Any:
    """Return the network of a model.

    Args:
        classes: Names of the classes that the format holds.
        name: Name of the format, for the error.

    Raises:
        RecipeError: The network has another class.
    """
    network = model.denoiser.network
    if (actual := type(network).__name__) not in classes:
        raise RecipeError(
            f"a {actual}, but {name} is a layout of a {' or '.join(classes)}; give another layout or recipe"
        )
    return network


def network_section(config: UNetConfig) -> dict[str, Any]:
    """Return the recipe section of a U-Net's configuration."""
    names = [name for name in UNetSection.model_fields if name != "kind" and hasattr(config, name)]
    return {"kind": "unet", **{name: getattr(config, name) for name in names}}


def build_model(config: ModelConfig, network: Mapping[str, Tensor], label: Mapping[str, Tensor] | None) -> Model:
    """Return the model of a configuration with these weights, in evaluation mode; they become float32.

    Args:
        config: Configuration of the model.
        network: State dict of the network.
        label: State dict of the label conditioner, if there is one.
    """
    with meta_device():  # no weight is initialised that the file replaces
        model = build(config)
    model.denoiser.network.load_state_dict(in_float(network), assign=True)
    for section in config.condition:
        conditioner = section.build(config, getattr(model.denoiser.network, "vector_dim", None))
        if label is not None and section.kind == "class-label":
            conditioner.load_state_dict(in_float(label))
        model.conditioners[section.key] = conditioner
    return model.eval()


def fill(model: Model, network: Mapping[str, Tensor], label: Mapping[str, Tensor] | None) -> None:
    """Copy weights into a model that is built already.

    Args:
        model: The model.
        network: State dict of its network.
        label: State dict of its label conditioner; None: the file has no classes.

    Raises:
        WeightsError: Only one of the file and the model has classes, or their numbers differ.
    """
    model.denoiser.network.load_state_dict(in_float(network))
    conditioner = _label_conditioner(model)
    if (label is None) != (conditioner is None):
        has, lacks = ("file", "recipe") if label is not None else ("recipe", "file")
        raise WeightsError(f"the {has} has class labels and the {lacks} has none; change the recipe's condition")
    if conditioner is not None and label is not None:
        rows = conditioner.state_dict()[OUR_LABEL]
        if rows.shape != label[OUR_LABEL].shape:
            raise WeightsError(
                f"label_emb.weight: {tuple(label[OUR_LABEL].shape)} in the file, {tuple(rows.shape)} in the recipe; "
                "set its classes, and drop = 0: published tables have no row for no label"
            )
        conditioner.load_state_dict(in_float(label))


def has_null_label(model: Model) -> bool:
    """Return whether the model's label table has a row for no label."""
    return any(getattr(conditioner, "drop", 0) > 0 for conditioner in model.conditioners.values())


def label_table(model: Model) -> dict[str, Tensor] | None:
    """Return the state dict of the label conditioner for a format without a row for no label; None: no classes.

    Raises:
        WeightsError: The table has such a row.
    """
    conditioner: Any = _label_conditioner(model)
    if conditioner is None:
        return None
    table = conditioner.state_dict()[OUR_LABEL]
    if len(table) != conditioner.classes:
        raise WeightsError(
            "the label table has a row for no label, which the published layout does not know; "
            "only models trained with drop = 0 can be written in it"
        )
    return {OUR_LABEL: table}


def _label_conditioner(model: Model) -> nn.Module | None:
    return dict(model.conditioners.items()).get("label")
