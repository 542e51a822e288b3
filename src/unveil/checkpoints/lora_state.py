"""A LoRA that was trained here, as the one part with weights of a run's checkpoints, and where such a file lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.lora_export import own
from unveil.checkpoints.lora_formats import DENOISER
from unveil.nn import lora
from unveil.nn.lora_layer import Addition

LORA = "lora.safetensors"
NAME = "trained"  # on the network


class Trained(nn.Module):
    """The LoRA in training on a network, seen as a module: its state dict is the file, in our naming."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._on = [network]  # no child: its weights are the base's

    @property
    def _additions(self) -> list[Addition]:
        return lora.additions(self._on[0], NAME)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The file's tensors by key; they are those that train."""
        return own({DENOISER: self._additions}).tensors

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Copies a file's numbers into the parameters."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state_dict[key])
