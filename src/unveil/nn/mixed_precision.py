"""The weights of a network that a lower precision is made for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# Layers whose products autocast computes in the lower precision
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Its kernel wants its weight in the type of its input, and sums in float32 all the same
NORMALISATIONS = (nn.RMSNorm,)


def low_precision_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Their parameters with their keys in the state dict; other normalisations and tables stay in float32."""
    for name, layer in network.named_modules():
        if isinstance(layer, (*MATRICES, *NORMALISATIONS)):
            yield from layer.named_parameters(prefix=name, recurse=False)
