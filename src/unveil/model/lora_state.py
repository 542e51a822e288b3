"""LoRAs in training: their weights as a part of a run's checkpoints, and their names in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.nn import lora
from unveil.nn.lora import LoraDelta

DENOISER = "denoiser"  # the role of the network that denoises, beside the text encoders
CONTROL = "control.safetensors"  # of a ControlNet that was trained here, in the place of a model's weights
LORA = "lora.safetensors"
NAME = "trained"  # on the network


class TrainedLora(nn.Module):
    """LoRA that is trained on a network, as a module whose state dict contains the tensors of the LoRA's file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._on = [network]  # no child: its weights are the base's

    @property
    def _additions(self) -> list[LoraDelta]:
        return lora.lora_state(self._on[0], NAME)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors of the file by key, which are the trained parameters."""
        return native_tensors({DENOISER: self._additions})

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Copy the tensors of a file into the parameters."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state_dict[key])


def native_tensors(added: Mapping[str, Sequence[LoraDelta]]) -> dict[str, Tensor]:
    """Return a LoRA in our naming: the paths of our layers with their rows, by role of the network."""
    tensors: dict[str, Tensor] = {}
    for role, listed in added.items():
        for delta in listed:
            path = f"{role}.{delta.layer}[{delta.start}:{delta.stop}]"
            tensors |= {f"{path}.lora_A.weight": delta.down, f"{path}.lora_B.weight": delta.up}
            tensors[f"{path}.alpha"] = torch.tensor(delta.alpha)
    return tensors
