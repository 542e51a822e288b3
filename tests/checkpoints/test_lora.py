"""LoRA files: every naming there and back, the rules of alpha, and files of another base."""

from __future__ import annotations

import copy
import json
import logging
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unveil.checkpoints import diffusers_unet, lora, lora_export
from unveil.checkpoints.formats.lora import METADATA, NAMINGS, naming_of, parse
from unveil.checkpoints.lora import LoraNetwork, denoiser, native_layers, text_encoder
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import write_tensors
from unveil.nn import lora as layers
from unveil.nn.dit import DiT, DiTConfig
from unveil.nn.layers import meta_device
from unveil.nn.lora import LoraDelta
from unveil.nn.unet import UNet, UNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
BLOCK = "transformer_blocks.0"


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain = DiTConfig(4, 4, size=8, patch=2, depth=2, hidden_size=32, heads=4)
    return {
        "dit": DiT(plain),
        "unet": UNet(UNetConfig(1, 1, model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention=(2,))),
        "latent": UNet(
            UNetConfig(4, 4, 64, (1, 2), 1, (1,), heads=2, transformer_depth=(1,), cross_attention_dim=16, groups=8)
        ),
        "own": UNet(UNetConfig(1, 1, model_channels=64, channel_mult=(1,), num_res_blocks=1, attention=(1,), patch=2)),
    }


def part(name: str) -> dict[str, LoraNetwork]:
    return {"denoiser": denoiser(copy.deepcopy(networks()[name]).requires_grad_(False))}


def added(name: str) -> list[LoraDelta]:
    """Return a LoRA of a fused layer by rows with different ranks and alphas, of whole layers, and of convolutions."""
    if name == "dit":
        qkv, width = "blocks.1.attention.qkv", 32
        parts = [
            LoraDelta(qkv, drawn(rank, width, seed=rank), drawn(width, rank, seed=9), alpha, start)
            for rank, alpha, start in ((2, 1.0, 0), (5, 10.0, 2 * width))
        ]
        whole = LoraDelta("blocks.0.attention.qkv", drawn(3, width, seed=1), drawn(3 * width, 3, seed=2), 3.0)
        return [whole, *parts, LoraDelta("blocks.0.mlp.up", drawn(4, width, seed=3), drawn(128, 4, seed=4), 2.0)]
    places = ("*",) if name == "latent" else ("down.*.blocks.*", "*.attention.*")
    made = layers.init_lora(networks()[name], layers.LoraConfig(places, rank=3, alpha=2.0))
    return [LoraDelta(m.layer, m.down, drawn(*m.up.shape, seed=n), m.alpha) for n, m in enumerate(made)]


def changes(network: nn.Module, listed: list[LoraDelta]) -> dict[str, Tensor]:
    """What every layer's weight gains."""
    found: dict[str, Tensor] = {}
    for one in listed:
        gained = found.setdefault(
            one.layer, torch.zeros_like(layers.layers_of(network)[one.layer].get_parameter("weight"))
        )
        gained[one.start : one.stop] += one.delta()
    return {path: gained for path, gained in found.items() if gained.any()}


def kohya(path: str, rank: int = 2, width: int = 32, rows: int = 32) -> dict[str, Tensor]:
    flat = f"lora_unet_{path.replace('.', '_')}"
    return {f"{flat}.lora_down.weight": torch.ones(rank, width), f"{flat}.lora_up.weight": torch.ones(rows, rank)}


# -- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", ["dit", "unet", "latent", "own"])
def test_a_lora_comes_back_from_every_naming(name: str, naming: str, tmp_path: Path):
    parts, listed = part(name), added(name)
    network = parts["denoiser"].network
    if naming == "cloneofsimo" and name != "dit":
        with pytest.raises(RecipeError, match="which that naming numbers"):
            lora_export.to_lora_file({"denoiser": listed}, parts, naming)
        return
    written = lora_export.to_lora_file({"denoiser": listed}, parts, naming)  # pyright: ignore[reportArgumentType]
    place = tmp_path / ("folder" if written.config else "lora.safetensors")
    lora_export.write(place, written)
    file = lora.read_lora(place)
    assert file.naming == naming
    found, report = lora.match(file, parts)
    assert not report.unmatched
    before, after = changes(network, listed), changes(network, found["denoiser"])
    assert before.keys() == after.keys()
    for path, gained in before.items():
        torch.testing.assert_close(after[path], gained, rtol=1e-5, atol=1e-5)


def test_rows_of_a_fused_layer_are_written_as_three_modules():
    parts = part("dit")
    listed = [LoraDelta("blocks.0.attention.qkv", drawn(3, 32, seed=1), drawn(96, 3, seed=2), 6.0)]
    written = lora_export.to_lora_file({"denoiser": listed}, parts, "diffusers")
    assert len(written.tensors) == 6
    for n, which in enumerate("qkv"):
        assert torch.equal(written.tensors[f"transformer.{BLOCK}.attn1.to_{which}.lora_A.weight"], listed[0].down)
        rows = written.tensors[f"transformer.{BLOCK}.attn1.to_{which}.lora_B.weight"]
        assert torch.equal(rows, listed[0].up[32 * n : 32 * (n + 1)])
    assert json.loads(written.metadata[METADATA])["transformer.lora_alpha"] == 6


def test_an_addition_to_some_rows_of_a_published_module_is_padded():
    parts = part("dit")
    listed = [LoraDelta("blocks.0.attention.qkv", drawn(3, 32, seed=1), drawn(40, 3, seed=2), 6.0, start=20)]
    file = parse(lora_export.to_lora_file({"denoiser": listed}, parts, "kohya").tensors)
    found, _ = lora.match(file, parts)
    network = parts["denoiser"].network
    (before,), (after,) = changes(network, listed).values(), changes(network, found["denoiser"]).values()
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


# -- what a file says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "naming"),
    [
        ("base_model.model.a.b.lora_A.weight base_model.model.a.b.lora_B.weight", "peft"),
        ("base_model.model.a.b.lora_A.default.weight base_model.model.a.b.lora_B.default.weight", "peft"),
        ("unet.a.lora_A.weight unet.a.lora_B.weight", "diffusers"),
        ("unet.a.lora.down.weight unet.a.lora.up.weight", "diffusers-old"),
        ("a.attn1.processor.to_q_lora.down.weight a.attn1.processor.to_q_lora.up.weight", "diffusers-old"),
        ("lora_te_a_b.lora_down.weight lora_te_a_b.lora_up.weight lora_te_a_b.alpha", "kohya"),
        ("unet:0:up unet:0:down", "cloneofsimo"),
        ("denoiser.a[0:3].lora_A.weight denoiser.a[0:3].alpha", "unveil"),
        ("x_embedder.proj.weight t_embedder.mlp.0.weight", None),
    ],
)
def test_a_naming_is_known_by_its_keys(keys: str, naming: str | None):
    assert naming_of(dict.fromkeys(keys.split())) == naming


def alpha_of(file_tensors: dict[str, Tensor], **file: dict[str, object]) -> float:
    """The scale that a file's one module gets."""
    metadata = {METADATA: json.dumps(file["metadata"])} if "metadata" in file else None
    found, _ = lora.match(parse(file_tensors, metadata, file.get("config")), part("dit"))
    return found["denoiser"][0].scale


def test_the_rules_of_alpha():
    flat = kohya(f"{BLOCK}.attn1.to_q")
    name = next(iter(flat)).removesuffix(".lora_down.weight")
    assert alpha_of(flat) == 1  # missing: the rank
    assert alpha_of({**flat, f"{name}.alpha": torch.tensor(0.0)}) == 1
    assert alpha_of({**flat, f"{name}.alpha": torch.tensor(8.0)}) == 4
    raw = {f"base_model.model.{BLOCK}.attn1.to_q.lora_{k}.weight": v for k, v in zip("AB", flat.values(), strict=True)}
    assert alpha_of(raw) == 1
    assert alpha_of(raw, config={"r": 2, "lora_alpha": 6}) == 3
    assert alpha_of(raw, config={"lora_alpha": 6, "use_rslora": True}) == pytest.approx(6 / 2**0.5)
    assert alpha_of(raw, config={"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.0, "to_k": 7}}) == 0.5
    prefixed = {key.replace("base_model.model.", "transformer."): tensor for key, tensor in raw.items()}
    assert alpha_of(prefixed, metadata={"transformer.lora_alpha": 6}) == 3
    assert alpha_of(prefixed, metadata={"text_encoder.lora_alpha": 6}) == 1
    old = {
        f"transformer.{BLOCK}.attn1.to_q.lora.{k}.weight": v for k, v in zip(("down", "up"), flat.values(), strict=True)
    }
    assert alpha_of(old, config={"lora_alpha": 6}) == 1  # of another file in the folder


def test_diffusers_first_names_of_an_attention():
    tensors = {}
    for which in ("q", "out"):
        below = f"unet.{BLOCK}.attn1.processor.to_{which}_lora"
        tensors |= {f"{below}.down.weight": torch.ones(2, 32), f"{below}.up.weight": torch.ones(32, 2)}
    found, report = lora.match(parse(tensors), part("dit"))
    assert not report.unmatched
    assert [(one.layer, one.start, one.stop) for one in found["denoiser"]] == [
        ("blocks.0.attention.qkv", 0, 32),
        ("blocks.0.attention.out", 0, 32),
    ]


def test_a_text_encoder_is_named_as_published():
    inner = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
    network = nn.ModuleDict(
        {"encoder": nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": inner})])})}
    )
    parts = {"text_encoder": text_encoder(network)}
    for key in (
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_encoder_layers_0_self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ):
        tensors = {f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2)}
        found, _ = lora.match(parse(tensors), parts)
        assert found["text_encoder"][0].layer == "encoder.layers.0.self_attn.q_proj"
    written = lora_export.to_lora_file(found, parts, "kohya").tensors
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in written


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
def test_every_module_of_kohyas_stable_diffusion_is_found():
    from transformers import CLIPTextConfig, CLIPTextModel

    facts = json.loads((Path(ROOT or "") / "lora" / "kohya_sd1_keys.json").read_text())
    tensors = {}
    for name, (down, up) in facts["keys"].items():
        tensors |= {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    with meta_device():
        unet = UNet(diffusers_unet.config_from_settings({"cross_attention_dim": 768}))
        parts = {"denoiser": denoiser(unet), "text_encoder": text_encoder(CLIPTextModel(text))}
    found, report = lora.match(parse(tensors), parts)
    assert not report.unmatched
    assert (len(found["denoiser"]), len(found["text_encoder"])) == (facts["n_unet"], facts["n_te"])
    assert sum(parameter.numel() for parameter in unet.parameters()) == facts["unet_params"]
    fused = [one for one in found["denoiser"] if one.layer.endswith("own.qkv")]
    assert {one.start // one.up.shape[0] for one in fused} == {0, 1, 2}
    renamed = {key.replace("lora_te_text_model_", "lora_te_"): tensor for key, tensor in tensors.items()}
    assert not lora.match(parse(renamed), parts)[1].unmatched


# -- what does not fit --------------------------------------------------------------------------------------------


def test_a_file_of_another_base_is_an_error_that_says_which():
    sd = kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", width=768, rows=320)
    with pytest.raises(WeightsError, match=r"another base: none of its 1 modules.*Stable Diffusion 1\.x") as caught:
        lora.match(parse(sd), part("dit"))
    assert f"{BLOCK}." in str(caught.value)  # what would match
    with pytest.raises(WeightsError, match="like one for a DiT"):
        lora.match(parse(kohya(f"{BLOCK}.attn1.to_q")), part("own"))
    with pytest.raises(WeightsError, match=r"adds \(64, 64\), the layer is \(32, 32\)"):
        lora.match(parse(kohya(f"{BLOCK}.attn1.to_q", width=64, rows=64)), part("dit"))


def test_a_part_that_matches_is_put_on_with_a_warning(caplog: pytest.LogCaptureFixture):
    tensors = {
        **kohya(f"{BLOCK}.attn1.to_q"),
        **kohya("elsewhere.to_q"),
        **kohya("transformer_blocks.1.attn1.to_k", width=8),
    }
    parts = part("dit")
    with caplog.at_level(logging.WARNING):
        report = lora.attach(parts, "style", parse(tensors))
    assert report.matched == (f"lora_unet_{BLOCK}.attn1.to_q".replace(".", "_"),)
    assert len(report.unmatched) == 2
    assert "1 modules matched, 2 unmatched" in caplog.text
    assert "elsewhere_to_q: no such module" in caplog.text
    assert [one.layer for one in layers.lora_state(parts["denoiser"].network, "style")] == ["blocks.0.attention.qkv"]


@pytest.mark.parametrize(
    ("key", "word"),
    [("a.hada_w1_a", "LoHa"), ("a.dora_scale", "DoRA"), ("a.lora_mid.weight", "middle"), ("a.lora_B.bias", "bias")],
)
def test_relatives_of_lora_are_named(key: str, word: str):
    with pytest.raises(WeightsError, match=word):
        parse({**kohya(f"{BLOCK}.attn1.to_q"), key: torch.ones(2)})


def test_halves_and_other_files_are_named(tmp_path: Path):
    half = dict(list(kohya(f"{BLOCK}.attn1.to_q").items())[:1])
    with pytest.raises(WeightsError, match="1 modules lack one of their two matrices"):
        parse(half)
    write_tensors(tmp_path / "model.safetensors", {"conv.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match="no LoRA, by its keys"):
        lora.read_lora(tmp_path / "model.safetensors")


def test_a_layer_without_a_published_name_is_reported():
    parts = part("dit")
    del (sites := dict(parts["denoiser"].published_layers))[f"{BLOCK}.ff.net.0.proj"]
    one = LoraNetwork(
        "denoiser",
        "transformer",
        parts["denoiser"].network,
        {"some": sites, "unveil": native_layers(parts["denoiser"].network)},
    )
    with pytest.raises(RecipeError, match=r"blocks\.0\.mlp\.up: has no name in published files"):
        lora_export.to_lora_file({"denoiser": added("dit")}, {"denoiser": one}, "kohya")
