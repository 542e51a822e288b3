"""The namings of LoRA files: which keys hold the two matrices of which module, and what their scale is.

    peft          base_model.model.PATH.lora_A.weight, lora_B; alpha in adapter_config.json
    diffusers     unet.PATH.lora_A.weight, or transformer., text_encoder.; alpha in the metadata lora_adapter_metadata
    diffusers-old unet.PATH.lora.down.weight, lora.up, or PATH.processor.to_q_lora.down.weight; alpha = rank
    kohya         lora_unet_PATH.lora_down.weight, lora_up, alpha, with _ for the dots of PATH; lora_te_ for the text
    cloneofsimo   unet:3:down, unet:3:up: the layers of some classes by their number, without alpha
    unveil        denoiser.PATH.lora_A.weight, lora_B, alpha, PATH ours, such as blocks.0.attention.qkv[0:64]

Where a file has no alpha, it is the rank, which makes the scale 1; so is kohya's alpha of 0. peft files hold no alpha
among their tensors, and diffusers' export to kohya's naming writes the rank in its place.

Facts: files of these projects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from unveil.checkpoints.format import Format, Signature
from unveil.errors import WeightsError
from unveil.model.lora_state import DENOISER

Naming = Literal["peft", "diffusers", "diffusers-old", "kohya", "cloneofsimo", "unveil"]
NAMINGS: tuple[Naming, ...] = get_args(Naming)
METADATA = "lora_adapter_metadata"
RAW = "base_model.model."
# What precedes the path, and which part of a model it names
DOTTED = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "diffusion_model.": DENOISER,
    f"{DENOISER}.": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
FLAT = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "unet_": DENOISER,
    "transformer_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "text_encoder_": "text_encoder",
}
# The classes whose layers cloneofsimo's files number where the metadata do not say
CLASSES = {"unet": ("CrossAttention", "Attention", "GEGLU"), "text_encoder": ("CLIPAttention",)}
FORMS: tuple[tuple[Naming, re.Pattern[str]], ...] = (
    ("kohya", re.compile(r"(?P<path>.+)\.lora_(?P<side>down|up)\.weight")),
    ("diffusers-old", re.compile(r"(?P<path>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight")),
    ("diffusers-old", re.compile(
        r"(?P<path>.+?)(?P<old>(?:\.processor)?\.to_(?:q|k|v|out)_lora)\.(?P<side>down|up)\.weight"
    )),
    ("diffusers", re.compile(r"(?P<path>.+)\.lora_(?P<side>A|B)(?:\.\w+)?\.weight")),
    ("cloneofsimo", re.compile(r"(?P<path>(?:unet|text_encoder):\d+):(?P<side>down|up)")),
)  # fmt: skip
DOWN = ("down", "A")
# Relatives of LoRA that are not read, by patterns that their keys hold
OTHERS = {
    "hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "LoCon with a "
    "middle matrix", "oft_": "OFT", "lora_embedding_": "a LoRA of an embedding", "lora_B.bias": "LoRA with a bias",
    "lora_up.bias": "LoRA with a bias", "modules_to_save": "LoRA with whole modules",
    r"\.diff(_b)?$": "whole differences",
}  # fmt: skip


class LoraEntry(NamedTuple):
    """Update of one module in a file: its path there, the stored matrices, and alpha if there is one."""

    path: str
    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rank of the two matrices."""
        return self.down.shape[0]


class ParsedLora(NamedTuple):
    """A LoRA file that has been read.

    Attributes:
        rest: Keys that are not those of a LoRA.
        classes: Number of classes whose layers cloneofsimo's numbers count, by part.
    """

    naming: Naming
    entries: tuple[LoraEntry, ...]
    rest: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = CLASSES


def naming_of(keys: Mapping[str, Any]) -> Naming | None:
    """The naming of a file's keys; None: they are not those of a LoRA."""
    there: dict[Naming, str] = {naming: key for key in keys for naming, form in FORMS if form.fullmatch(key)}
    naming: Naming | None = next((naming for naming, _ in FORMS if naming in there), None)
    if naming != "diffusers":
        return naming
    if all(key.startswith(RAW) for key in keys):
        return "peft"
    return "unveil" if there[naming].startswith(f"{DENOISER}.") else naming


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
) -> ParsedLora:
    """The additions of a file, with their alpha by the rules of its naming.

    Args:
        metadata: Metadata of the safetensors file.
        config: adapter_config.json, where one lies beside it.

    Raises:
        WeightsError: No LoRA, one of a kind that is not read, or half of a pair of matrices.
    """
    naming, metadata = naming_of(tensors), metadata or {}
    for mark, kind in OTHERS.items():
        if strange := next((key for key in tensors if re.search(mark, key)), None):
            raise WeightsError(f"{strange}: {kind}, which is not read; merge it with the program that made it")
    if naming is None:
        shown = ", ".join(list(tensors)[:3])
        raise WeightsError(f"no LoRA, by its keys ({shown}); known are those of {', '.join(NAMINGS)}")
    sides: dict[str, dict[str, Tensor]] = {}
    rest: list[str] = []
    for key, tensor in tensors.items():
        matched = next((match for _, form in FORMS if (match := form.fullmatch(key))), None)
        if matched is not None:
            sides.setdefault(_module_path(matched), {})["down" if matched["side"] in DOWN else "up"] = tensor
        elif not key.endswith(".alpha"):
            rest.append(key)
    if halves := [path for path, pair in sides.items() if len(pair) < 2]:
        raise WeightsError(f"{len(halves)} modules lack one of their two matrices ({halves[0]}); copy the file again")
    configured = naming in ("peft", "diffusers")  # the others take alpha from the file, or for the rank
    settings = _settings(metadata, config) if configured else {"": {}}
    entries = []
    for path, pair in sides.items():
        stored = tensors.get(f"{path}.alpha")
        alpha = _configured(path, pair["down"].shape[0], settings) if stored is None else float(stored)
        entries.append(LoraEntry(path, pair["down"], pair["up"], alpha or None))
    rest += [key for key in tensors if key.endswith(".alpha") and key.removesuffix(".alpha") not in sides]
    classes = {part: tuple(json.loads(metadata[part])) for part in CLASSES if part in metadata}
    return ParsedLora(naming, tuple(entries), tuple(rest), {**CLASSES, **classes})


def candidates(path: str) -> list[tuple[str, str]]:
    """The parts that a written path may be of, and the rest of it; "" where it does not say."""
    path = path.removeprefix(RAW)
    named = [
        (role, path.removeprefix(prefix))
        for prefix, role in (DOTTED if "." in path else FLAT).items()
        if path.startswith(prefix)
    ]
    return [*named, ("", path)]


def _module_path(match: re.Match[str]) -> str:
    """Return the path of a module; diffusers' first files name `.processor` of an attention in place of its layers."""
    path, old = match["path"], match.groupdict().get("old")
    if old is None:
        return path
    which = old.rpartition(".to_")[2].removesuffix("_lora")
    if path.endswith("self_attn"):
        return f"{path}.{which}_proj"
    return f"{path}.to_out.0" if which == "out" else f"{path}.to_{which}"


def _settings(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return peft's configurations by network; "" holds for all."""
    settings: dict[str, dict[str, Any]] = {"": dict(config or {})}
    try:
        stored = json.loads(metadata.get(METADATA, "{}"))
        for key, value in dict(stored).items():
            part, dot, name = str(key).partition(".")
            settings.setdefault(DOTTED.get(f"{part}.", part) if dot else "", {})[name or part] = value
    except (ValueError, TypeError) as problem:
        raise WeightsError(f"{METADATA}: damaged ({problem}); remove it, or copy the file again") from problem
    return settings


def _configured(path: str, rank: int, settings: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The alpha of a configuration, as that of a scale alpha / rank."""
    role, module = candidates(path)[0]
    config = settings.get(role) or settings[""]
    if config.get("use_dora"):
        raise WeightsError("use_dora: DoRA is not read; merge it with the program that made it")
    patterns: dict[str, Any] = dict(config.get("alpha_pattern") or {})  # the first that matches holds
    fitting = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module))
    alpha = next(fitting, config.get("lora_alpha"))
    if alpha is None:
        return None
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


FORMATS = (
    Format(
        name="lora",
        kind="LoRA",
        signatures=(
            Signature("a LoRA", {}, "give it beside the model that it is for: unveil sample MODEL --lora FILE"),
        ),
        recognise=lambda keys: naming_of(keys) is not None,
        priority=30,
    ),
)
