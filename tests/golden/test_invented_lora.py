"""LoRAs of four projects under settings that no record has: diffusers' networks with weights merged by the formulas."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden.invented import Record, check, failures, normal
from tests.golden.reference_layers import Weights

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Made = dict[str, Any]
Pair = tuple[Tensor, Tensor]
UNETS: dict[str, Made] = {
    # linear layers around the transformers, attention at the second level, other heads and groups
    "linear": {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [16, 32], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 12,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 2, "norm_num_groups": 4,
        "use_linear_projection": True,
    },
    # two transformer blocks a layer, widths of heads by level
    "deep": {
        "sample_size": 4, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 16], "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": [8, 4], "norm_num_groups": 8,
        "transformer_layers_per_block": 2,
    },
}  # fmt: skip
TEXT: Made = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3,
    "projection_dim": 12, "max_position_embeddings": 7, "vocab_size": 30, "hidden_act": "gelu",
}  # fmt: skip
DIT: Made = {
    "num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 3, "out_channels": 6, "num_layers": 1,
    "sample_size": 12, "patch_size": 4, "num_embeds_ada_norm": 5, "norm_elementwise_affine": False,
    "norm_num_groups": 8, "attention_bias": True, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero",
    "norm_eps": 1e-3, "dropout": 0.1, "upcast_attention": False,
}  # fmt: skip


class Base(NamedTuple):
    """A network with its inputs by the names of its arguments."""

    network: nn.Module
    inputs: Mapping[str, Tensor]

    def output(self, replaced: Mapping[str, Tensor]) -> Tensor:
        """What it makes with some weights replaced."""
        with torch.no_grad():
            return torch.func.functional_call(self.network, dict(replaced), kwargs=dict(self.inputs))[0]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.network.state_dict().items() if value.is_floating_point()}

    def layers(self, classes: set[str]) -> dict[str, nn.Module]:
        """Linear layers and convolutions inside modules of some classes, in the order of the network."""
        result: dict[str, nn.Module] = {}
        for path, module in self.network.named_modules():
            if type(module).__name__ in classes:
                inner = ((f"{path}.{name}", part) for name, part in module.named_modules())
                result |= {name: part for name, part in inner if isinstance(part, nn.Linear | nn.Conv2d)}
        return result


def drawn(network: nn.Module) -> nn.Module:
    w = Weights(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(w.drawn(name, tuple(parameter.shape)))
    return network.eval().requires_grad_(False)


def unet(made: Made) -> Base:
    size = (2, made["in_channels"], made["sample_size"], 2 * made["sample_size"])
    context = normal(2, 2, 3, made["cross_attention_dim"])
    inputs = {"sample": normal(1, *size), "timestep": torch.tensor([7, 930]), "encoder_hidden_states": context}
    return Base(drawn(diffusers.UNet2DConditionModel(**made)), inputs)


def dit(made: Made) -> Base:
    x = normal(1, 2, made["in_channels"], made["sample_size"], made["sample_size"])
    inputs = {"hidden_states": x, "timestep": torch.tensor([1, 850]), "class_labels": torch.tensor([4, 0])}
    return Base(drawn(diffusers.DiTTransformer2DModel(**made)), inputs)


def text_encoder(made: Made) -> Base:
    ids = torch.tensor([[3, 9, 29, 0, 1]])
    return Base(drawn(transformers.CLIPTextModel(transformers.CLIPTextConfig(**made))), {"input_ids": ids})


def pair(path: str, layer: nn.Module, rank: int) -> Pair:
    """The two matrices of a layer, of which the first is a convolution where the layer is one."""
    w, shape = Weights(4), layer.get_parameter("weight").shape
    down, up = w.drawn(f"{path}.down", (rank, *shape[1:])), w.drawn(f"{path}.up", (shape[0], rank))
    return down, up.reshape(*up.shape, *(1,) * (len(shape) - 2))


def merged(base: Base, pairs: Mapping[str, Pair], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """W + scale up down, of which a convolution's is one over the channels of down."""
    weights = base.weights
    return {
        f"{path}.weight": weights[f"{path}.weight"] + scales[path] * torch.einsum("or,r...->o...", up.flatten(1), down)
        for path, (down, up) in pairs.items()
    }


def file(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    place = folder / "REPO" / "case"
    place.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, place / name, dict(metadata or {}))


def short(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that cases of kohya and cloneofsimo have."""
    return {"x": inputs["sample"], "timesteps": inputs["timestep"], "context": inputs["encoder_hidden_states"]}


# ---------------------------------------------------------------------- one layer


def test_merging_a_convolution_alone(tmp_path):
    down, up, w = normal(1, 2, 3, 3, 3), normal(2, 4, 2, 1, 1), normal(3, 4, 3, 3, 3)
    io = {"conv_W": w, "conv_down": down, "conv_up": up, "alpha": torch.tensor(3.0), "multiplier": torch.tensor(2.0)}
    io["conv_merged"] = w + 3 * torch.einsum("or,r...->o...", up.flatten(1), down)
    check(tmp_path, Record({"kind": "lora/worked_merge"}, io), {})


@pytest.mark.parametrize(("rank", "kernel", "numbers"), [(1, (1, 1), (3.0, -0.6)), (5, (3, 3), (0.5, 1.4))])
def test_merging_one_layer(tmp_path, rank, kernel, numbers):
    """The convolution has its own alpha and multiplier in the second."""
    alpha, multiplier = numbers
    io = {"alpha": torch.tensor(alpha), "multiplier": torch.tensor(multiplier)}
    own = (alpha, multiplier) if rank == 1 else (7.0, -0.25)
    if rank > 1:
        io |= {"conv_alpha": torch.tensor(own[0]), "conv_multiplier": torch.tensor(own[1])}
    for prefix, sides, (a, m) in (("", (), (alpha, multiplier)), ("conv_", kernel, own)):
        down, up = normal(1, rank, 4, *sides), normal(2, 7, rank, *(1,) * len(sides))
        w = normal(3, 7, 4, *sides)
        sum_ = w + m * a / rank * torch.einsum("or,r...->o...", up.flatten(1), down)
        io |= {f"{prefix}W": w, f"{prefix}down": down, f"{prefix}up": up, f"{prefix}merged": sum_}
    record = Record({"kind": "lora/worked_merge"}, io)
    check(tmp_path, record, {})
    for name in ("alpha", "multiplier", "conv_down", "up"):
        lines = failures(tmp_path, record._replace(io=io | {name: io[name] + 0.5}))
        assert any(("conv_merged" if "conv" in name else "  merged") in line for line in lines), name


# ---------------------------------------------------------------------- kohya


@pytest.mark.parametrize(("name", "arguments", "with_text"), [
    ("linear", {"lora_dim": 3, "alpha": 7.5, "conv_lora_dim": 2, "conv_alpha": 0.5, "multiplier": -0.6}, True),
    ("deep", {"lora_dim": 2, "alpha": 0, "conv_lora_dim": None, "conv_alpha": None, "multiplier": 1.3}, False),
])  # fmt: skip
def test_files_of_kohya(tmp_path, name, arguments, with_text):
    bases = {"unet": unet(UNETS[name])} | ({"te": text_encoder(TEXT)} if with_text else {})
    convolutions = arguments["conv_lora_dim"] is not None
    classes = {"Transformer2DModel"} | ({"ResnetBlock2D", "Downsample2D", "Upsample2D"} if convolutions else set())
    io, tensors, weights, counts = short(bases["unet"].inputs), {}, {}, {}
    for part, base in bases.items():
        pairs, scales = {}, {}
        for path, layer in base.layers(classes if part == "unet" else {"CLIPAttention", "CLIPMLP"}).items():
            wide = layer.get_parameter("weight").shape[2:] == (3, 3)
            rank, alpha = (arguments[f"{'conv_' if wide else ''}{key}"] for key in ("lora_dim", "alpha"))
            pairs[path] = pair(path, layer, rank)
            scales[path] = arguments["multiplier"] * (alpha or rank) / rank
            published = path if part == "unet" else f"text_model.{path.removeprefix('text_model.')}"
            stem = f"lora_{part}_{published.replace('.', '_')}"
            ends = {"lora_down.weight": pairs[path][0], "lora_up.weight": pairs[path][1]}
            ends["alpha"] = torch.tensor(float(alpha or rank))
            tensors |= {f"{stem}.{end}": value for end, value in ends.items()}
        replaced, out = merged(base, pairs, scales), "out" if part == "unet" else "te"
        io |= {f"{out}_base": base.output({}), f"{out}_lora": base.output(replaced)}
        prefix = "unet" if part == "unet" else "text_encoder"
        weights |= {f"{prefix}.{key}": value for key, value in base.weights.items()}
        counts[part] = len(pairs)
        if part == "unet":
            io |= {f"merged.{key}": value for key, value in list(replaced.items())[::9]}
    named: Made = {"unet": "diffusers UNet2DConditionModel", "unet_arguments": UNETS[name]}
    if with_text:
        io["input_ids"] = bases["te"].inputs["input_ids"]
        named |= {"text_encoder": "transformers CLIPTextModel", "text_arguments": TEXT}
    file(tmp_path, "lora.safetensors", tensors)
    meta = {"kind": "lora/kohya", "arguments": arguments, "base": named, "n_lora_modules": counts}
    changes: dict[tuple[str | int, ...], Any] = {
        ("arguments", "multiplier"): 1.0, ("arguments", "alpha"): 3.5, ("arguments", "lora_dim"): 4,
        ("n_lora_modules", "unet"): 5, ("base", "unet_arguments", "norm_num_groups"): 2,
    }  # fmt: skip
    if convolutions:
        changes |= {("arguments", "conv_alpha"): 1.0, ("base", "text_arguments", "num_attention_heads"): 2}
    check(tmp_path, Record(meta, io, weights), changes)


# ---------------------------------------------------------------------- cloneofsimo


@pytest.mark.parametrize(("name", "classes", "rank", "scale"), [
    ("linear", ["Attention", "CrossAttention"], 2, -1.5),
    ("deep", ["GEGLU"], 3, 2.5),
    ("deep", ["FeedForward", "CrossAttention", "Attention"], 1, 0.3),
])  # fmt: skip
def test_files_of_cloneofsimo(tmp_path, name, classes, rank, scale):
    base = unet(UNETS[name])
    layers = {path: part for path, part in base.layers(set(classes)).items() if isinstance(part, nn.Linear)}
    pairs = {path: pair(path, layer, rank) for path, layer in layers.items()}
    sides = {f"unet:{i}:{('down', 'up')[side]}": both[side] for i, both in enumerate(pairs.values()) for side in (0, 1)}
    file(tmp_path, "lora.safetensors", sides, {"unet": json.dumps(classes)})
    replaced = merged(base, pairs, dict.fromkeys(pairs, scale))
    io = short(base.inputs) | {"out_base": base.output({}), "out_lora": base.output(replaced)}
    named = {"unet": "diffusers UNet2DConditionModel", "unet_arguments": UNETS[name]}
    meta = {
        "kind": "lora/cloneofsimo", "arguments": {"r": rank, "scale": scale, "target_replace": classes}, "base": named,
        "module_order_named_modules": list(pairs),
    }  # fmt: skip
    changes = {("arguments", "r"): 4, ("arguments", "scale"): 1.0, ("module_order_named_modules",): list(pairs)[::-1]}
    check(tmp_path, Record(meta, io, {f"unet.{key}": value for key, value in base.weights.items()}), changes)


# ---------------------------------------------------------------------- peft


def first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """peft's pattern of a path: the first whose end it has."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)


CONFIGS: dict[str, Made] = {
    "rank-stabilised": {"r": 9, "lora_alpha": 4, "use_rslora": True, "target_modules": ["to_q", "proj_out", "conv1"]},
    "patterns": {
        "r": 2, "lora_alpha": 5, "target_modules": ["to_k", "to_v", "ff.net.2"], "rank_pattern": {"attn2.to_v": 4},
        "alpha_pattern": {"to_v": 1, "attn2.to_v": 12, "ff.net.2": 3}, "lora_dropout": 0.1, "bias": "none",
        "init_lora_weights": False,
    },
    "plain": {"r": 2, "lora_alpha": 7, "use_rslora": False, "target_modules": ["to_v", "ff.net.0.proj", "linear_2"]},
}  # fmt: skip


@pytest.mark.parametrize(("base", "config", "files"), [
    ("linear", "rank-stabilised", "published"), ("deep", "patterns", "beside"), ("dit", "plain", "published"),
    ("dit", "rank-stabilised", "beside"), ("dit", "patterns", "published"),
])  # fmt: skip
def test_files_of_peft(tmp_path, base, config, files):
    made, settings = DIT if base == "dit" else UNETS[base], CONFIGS[config]
    network, part = (dit(made), "transformer") if base == "dit" else (unet(made), "unet")
    ends = tuple(f".{name}" for name in settings["target_modules"])
    layers = {path: layer for path, layer in network.network.named_modules() if path.endswith(ends)}
    ranks = {path: first(settings.get("rank_pattern", {}), path, settings["r"]) for path in layers}
    alphas = {path: first(settings.get("alpha_pattern", {}), path, settings["lora_alpha"]) for path in layers}
    stable = settings.get("use_rslora", False)
    scales = {path: alphas[path] / (math.sqrt(ranks[path]) if stable else ranks[path]) for path in layers}
    pairs = {path: pair(path, layer, ranks[path]) for path, layer in layers.items()}
    prefix = f"{part}." if files == "published" else "base_model.model."
    both = {f"{prefix}{path}.lora_{'AB'[side]}.weight": two[side] for path, two in pairs.items() for side in (0, 1)}
    if files == "published":
        stored = {"lora_adapter_metadata": json.dumps({f"{part}.{key}": value for key, value in settings.items()})}
        file(tmp_path, "lora_peft.safetensors", both, stored)
        old = {f"{part}.{path}.lora.{('down', 'up')[side]}.weight": two[side] for path, two in pairs.items()
               for side in (0, 1)}  # fmt: skip
        file(tmp_path, "lora_diffusers_old.safetensors", old)
    else:
        file(tmp_path, "adapter_model.safetensors", both)
        (tmp_path / "REPO" / "case" / "adapter_config.json").write_text(json.dumps(settings))
    replaced = merged(network, pairs, scales)
    half = merged(network, pairs, {path: scale / 2 for path, scale in scales.items()})
    io = dict(network.inputs) | {"out_base": network.output({}), "out_lora": network.output(replaced)}
    io |= {"out_lora_half": network.output(half)} | {f"merged.{key}": value for key, value in replaced.items()}
    klass = "DiTTransformer2DModel" if base == "dit" else "UNet2DConditionModel"
    meta = {"kind": "lora/peft", "klass": klass, "arguments": made, "lora_config": settings}
    changes: dict[tuple[str | int, ...], Any] = {
        ("lora_config", "r"): 3, ("lora_config", "lora_alpha"): 6, ("lora_config", "use_rslora"): not stable,
        ("lora_config", "strange"): 1,
    }  # fmt: skip
    if base == "dit":
        changes |= {("arguments", "norm_eps"): 1e-5, ("arguments", "num_attention_heads"): 4,
                    ("arguments", "attention_bias"): False, ("arguments", "num_embeds_ada_norm"): 6}  # fmt: skip
    weights = network.weights
    check(
        tmp_path, Record(meta, io, weights if base == "dit" else {f"unet.{k}": v for k, v in weights.items()}), changes
    )
