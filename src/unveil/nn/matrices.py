"""The weights of a network whose products may be computed in a lower precision."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# Layers whose products autocast computes in the lower precision
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def matrices(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Their parameters with their keys in the state dict; normalisations and tables stay in float32."""
    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS):
            yield from layer.named_parameters(prefix=name, recurse=False)
