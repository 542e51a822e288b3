"""A linear layer and its GELU in one call give what the two give, wherever the one call is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from unveil.nn import cpu_kernels
from unveil.nn.cpu_kernels import linear_geglu, linear_gelu
from unveil.nn.flops import multiply_adds
from unveil.nn.transformer import Mlp


class Calls(TorchDispatchMode):
    """The names of the operations that were called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def fused(self) -> bool:
        return any("linear_pointwise" in name for name in self.names)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    if cpu_kernels._KERNEL is None:
        pytest.skip("this torch has no such kernel")
    return nn.Linear(24, 40)


def called(x: Tensor, layer: nn.Linear, approximate: str = "tanh") -> tuple[Tensor, bool]:
    with Calls() as calls:
        found = linear_gelu(x, layer, approximate)
    return found, calls.fused


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (2, 1, 3, 24)])
def test_one_call_gives_what_two_give(layer: nn.Linear, shape: tuple[int, ...], approximate: str):
    x = 3 * torch.randn(shape)
    with torch.no_grad():
        found, fused = called(x, layer, approximate)
        expected = F.gelu(layer(x), approximate=approximate)
    assert fused
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_without_a_bias(layer: nn.Linear):
    layer.bias = None
    x = torch.randn(3, 24)
    with torch.no_grad():
        torch.testing.assert_close(linear_gelu(x, layer, "tanh"), F.gelu(layer(x), approximate="tanh"))


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_it_computes_in_its_type_whatever_is_given(
    layer: nn.Linear, held: torch.dtype, given: torch.dtype
):
    x = torch.randn(6, 24)
    with torch.no_grad():
        exact = F.gelu(layer(x), approximate="tanh")
        layer.to(held)
        with torch.autocast("cpu", torch.bfloat16):
            found, fused = called(x.to(given), layer)
            assert found.dtype == F.gelu(layer(x.to(given))).dtype == torch.bfloat16
    assert fused == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


def test_gradients_hooks_and_other_layers_disable_the_kernel(layer: nn.Linear):
    x = torch.randn(2, 24, requires_grad=True)
    found, fused = called(x, layer)
    assert not fused
    found.sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda *given: 0 * given[-1])
        assert called(x, layer)[0].abs().max() == 0
        handle.remove()

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        other = Doubled(24, 40)
        torch.testing.assert_close(linear_gelu(x, other), F.gelu(other(x)))
        frozen = layer.requires_grad_(False)
    assert not called(x, frozen)[1]  # the input wants a gradient
    assert called(x.detach(), frozen)[1]  # nothing does


def test_half_precision_of_another_kind_takes_the_plain_way(layer: nn.Linear):
    with torch.no_grad():
        found, fused = called(torch.randn(2, 24).double(), layer.double())
    assert not fused
    assert found.dtype == torch.float64


def test_what_it_costs_is_counted_alike():
    mlp, x = Mlp(16, 64, "gelu-tanh"), torch.randn(3, 5, 16)
    here = multiply_adds(mlp, (x,))
    with torch.device("meta"):
        there = multiply_adds(Mlp(16, 64, "gelu-tanh"), (torch.empty(3, 5, 16),))
    assert here == there == 2 * 15 * 16 * 64


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_layer_gives_what_its_halves_give_with_and_without_gradients(layer: nn.Linear, bias: bool):
    layer = nn.Linear(24, 40, bias)
    x = torch.randn(3, 5, 24)
    value, gate = layer(x).chunk(2, dim=-1)
    want = value * F.gelu(gate)
    with Calls() as calls:
        got = linear_geglu(x, layer)
    assert not calls.fused
    torch.testing.assert_close(got, want)
    with torch.no_grad(), Calls() as calls:
        got = linear_geglu(x, layer)
    assert calls.fused
    torch.testing.assert_close(got, want)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lowered = linear_geglu(x, layer)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), want, rtol=0.05, atol=0.05)


def test_a_processor_without_bf16_computes_it_in_plain_operations(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch):
    """Processors without AVX-512 have no kernel for it, and the call would be an error of oneDNN."""
    monkeypatch.setattr(cpu_kernels, "cpu_computes_bf16", lambda: False)
    x = torch.randn(6, 24)
    with torch.no_grad():
        exact = F.gelu(layer(x), approximate="tanh")
        layer.to(torch.bfloat16)
        found, fused = called(x.bfloat16(), layer)
        torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.02)
        assert not fused
        value, gate = layer(x.bfloat16()).chunk(2, dim=-1)
        torch.testing.assert_close(linear_geglu(x.bfloat16(), layer), value * F.gelu(gate))
