"""Text encoders from single files and folders, back into them, in saved models, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import unveil
from tests.conditioning.test_text_encoder import CLIP, T5, drawn, tokens_of, words_file
from unveil.checkpoints import text_encoder_keys
from unveil.checkpoints.formats import text_encoder
from unveil.checkpoints.overrides import shapes_of
from unveil.conditioning import clip_tokenizer
from unveil.conditioning.text_encoder import FileTokenizer, TextEncoder
from unveil.errors import PromptTruncated, RecipeError, WeightsError
from unveil.model.config import ModelConfig, validate
from unveil.model.config.text import TextSection
from unveil.nn.layers import meta_device
from unveil.nn.text_encoders import SIZES, CLIPEncoderConfig, build

OPENCLIP = replace(CLIP, activation="gelu", projection=24, skip=1, padding=0)
PLACES = {
    "sd1": (CLIP, text_encoder_keys.TextEncoderLocation("clip", text_encoder_keys.SD1)),
    "projected": (
        replace(CLIP, projection=24),
        text_encoder_keys.TextEncoderLocation("clip", "conditioner.embedders.0.transformer.text_model."),
    ),
    "transformers-5": (CLIP, text_encoder_keys.TextEncoderLocation("clip")),
    "sd2": (OPENCLIP, text_encoder_keys.TextEncoderLocation("openclip", text_encoder_keys.SD2)),
    "openclip": (replace(OPENCLIP, projection=0), text_encoder_keys.TextEncoderLocation("openclip")),
    "t5": (T5, text_encoder_keys.TextEncoderLocation("t5")),
    "t5-relu": (
        replace(T5, feed="relu"),
        text_encoder_keys.TextEncoderLocation("t5", "text_encoders.t5xxl.transformer."),
    ),
}
SETTINGS = {"heads": 2, "activation": "quick-gelu"}


def section(**changes: Any) -> TextSection:
    plain = {"kind": "text", "encoder": {"kind": "clip", **asdict(CLIP)}, "drop_prob": 0.1}
    return validate(TextSection, plain | changes, "test")


def merges_files(folder: Path, merges: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    (folder / "merges.txt").write_text(lines + "\n", "utf-8")


def clip_folder(root: Path, config: CLIPEncoderConfig = CLIP) -> tuple[Path, Any]:
    """Diffusers' folder with an encoder that transformers itself wrote, and that encoder."""
    import transformers

    torch.manual_seed(1)
    made = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=64,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        hidden_act="quick_gelu",
        eos_token_id=2,
        bos_token_id=0,
    )
    theirs = transformers.CLIPTextModel(made).eval()
    theirs.save_pretrained(root / "text_encoder")
    merges_files(root / "tokenizer", clip_tokenizer.clip_merges())
    (root / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>"}')
    return root, theirs


def t5_folder(root: Path) -> tuple[Path, Any]:
    """Transformers' folder with a T5, and that T5."""
    import transformers

    torch.manual_seed(2)
    made = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    theirs = transformers.T5EncoderModel(made).eval()
    theirs.save_pretrained(root)
    (root / "tokenizer.json").write_text(words_file())
    return root, theirs


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("case", PLACES)
def test_a_state_goes_into_every_layout_and_comes_back(case):
    config, place = PLACES[case]
    state = drawn(config).state_dict()
    theirs = text_encoder_keys.published_state_dict(state, config, place)
    assert text_encoder_keys.find_text_encoders(theirs) == [place]
    shapes = shapes_of(theirs)
    seen = text_encoder_keys.config_from_keys(shapes, place, heads=2, activation=getattr(config, "activation", None))
    assert seen == (replace(config, max_length=seen.max_length) if place.layout == "t5" else config)
    other = {"first_stage_model.x": torch.zeros(1), "visual.proj": torch.zeros(1)}
    found = text_encoder_keys.convert_state_dict(theirs | (other if place.prefix else {}), config, place)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], state[key]) for key in state)
    again = text_encoder_keys.published_state_dict(found.state, config, place, found.rest)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


def test_openclip_holds_queries_keys_and_values_in_one_and_projects_from_the_right():
    config, place = PLACES["sd2"]
    state = drawn(config).state_dict()
    theirs = text_encoder_keys.published_state_dict(state, config, place)
    block = "model.encoder.layers.1.self_attn."
    fused = theirs[f"{text_encoder_keys.SD2}transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(fused, torch.cat([state[f"{block}{part}_proj.weight"] for part in "qkv"]))
    assert torch.equal(theirs[f"{text_encoder_keys.SD2}text_projection"], state["projection.weight"].T)
    assert f"{text_encoder_keys.SD2}logit_scale" in theirs


def test_what_stands_beside_the_weights_is_given_back_as_it_was():
    config, place = PLACES["sd1"]
    state = drawn(config).state_dict()
    key = f"{text_encoder_keys.SD1}embeddings.position_ids"
    theirs = text_encoder_keys.published_state_dict(state, config, place)
    assert torch.equal(theirs[key], torch.arange(12)[None])
    theirs[key] = theirs[key].half()  # as some files have it
    found = text_encoder_keys.convert_state_dict(theirs, config, place)
    assert text_encoder_keys.published_state_dict(found.state, config, place, found.rest)[key].dtype == torch.float16
    del theirs[key]
    found = text_encoder_keys.convert_state_dict(theirs, config, place)
    assert key not in text_encoder_keys.published_state_dict(found.state, config, place, found.rest)


def test_a_t5_of_either_name_of_its_table_is_read():
    config, place = PLACES["t5"]
    state = drawn(config).state_dict()
    theirs = text_encoder_keys.published_state_dict(state, config, place)
    for missing in ("shared.weight", "encoder.embed_tokens.weight"):
        part = {key: tensor for key, tensor in theirs.items() if key != missing}
        assert text_encoder_keys.config_from_keys(shapes_of(part), place) == replace(config, max_length=77)
        assert torch.equal(
            text_encoder_keys.convert_state_dict(part, config, place).state["model.embed_tokens.weight"],
            theirs[missing],
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{text_encoder_keys.SD1}final_layer_norm.bias"),
            r"missing keys: 1 \(.*final_layer_norm.bias",
        ),
        (
            lambda t: t.update({f"{text_encoder_keys.SD1}encoder.more": torch.zeros(1)}),
            r"extra keys: 1 \(.*encoder.more",
        ),
        (
            lambda t: t.update({f"{text_encoder_keys.SD1}final_layer_norm.bias": torch.zeros(3)}),
            r"another shape: 1 \(.*final_layer_norm.bias: \(3,\), expected \(16,\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(change, message):
    config, place = PLACES["sd1"]
    theirs = text_encoder_keys.published_state_dict(drawn(config).state_dict(), config, place)
    change(theirs)
    with pytest.raises(WeightsError, match=message):
        text_encoder_keys.convert_state_dict(theirs, config, place)


def test_heads_and_activation_that_no_key_shows_are_required():
    config, place = PLACES["sd1"]
    shapes = shapes_of(text_encoder_keys.published_state_dict(drawn(config).state_dict(), config, place))
    with pytest.raises(WeightsError, match="width 16, whose heads and activation no key shows: give them"):
        text_encoder_keys.config_from_keys(shapes, place)


@pytest.mark.parametrize("name", SIZES)
def test_published_encoders_are_known_by_their_shapes(name):
    config = CLIPEncoderConfig(**SIZES[name])
    place = text_encoder_keys.TextEncoderLocation("openclip" if name.startswith("open") else "clip")
    with meta_device():
        theirs = text_encoder_keys.published_state_dict(build(config).state_dict(), config, place, {})
    assert text_encoder_keys.config_from_keys(shapes_of(theirs), place) == replace(
        config, skip=int(place.layout == "openclip")
    )


def test_a_published_stable_diffusion_1_has_its_keys_and_shapes():
    root = os.environ.get("UNVEIL_GOLDEN")
    if not root:
        pytest.skip("UNVEIL_GOLDEN names no folder of recorded cases")
    published = json.loads((Path(root) / "latent-diffusion" / "sd1_keys.json").read_text())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in published["keys"].items()}
    (place,) = text_encoder_keys.find_text_encoders(theirs)
    config = text_encoder_keys.config_from_keys(shapes_of(theirs), place)
    assert config == CLIPEncoderConfig(**SIZES["clip-l"])
    found = text_encoder_keys.convert_state_dict(theirs, config, place)
    written = text_encoder_keys.published_state_dict(found.state, config, place)
    assert len(written) == published["n_keys_per_part"]["cond_stage_model."]
    assert all(published["keys"][key] == list(tensor.shape) for key, tensor in written.items())


# ---------------------------------------------------------------------- folders and files


def test_a_folder_and_a_single_file_of_one_encoder_give_the_same(tmp_path):
    folder, theirs = clip_folder(tmp_path)
    found = text_encoder.read_text_encoder(folder)
    assert found.config == CLIP
    assert found.tokenizer is None
    one = found.conditioner(validate(TextSection, found.describe() | {"key": "text"}, "test"))
    assert one.key == "text"
    single = {f"{text_encoder_keys.SD1}{key}": tensor for key, tensor in theirs.state_dict().items()}
    single[f"{text_encoder_keys.SD1}embeddings.position_ids"] = torch.arange(12)[None]
    save_file(single | {"betas": torch.ones(3)}, tmp_path / "all.safetensors")
    other = text_encoder.read_text_encoder(tmp_path / "all.safetensors", settings=SETTINGS)
    two = other.conditioner(validate(TextSection, other.describe(), "test"))
    prompts = ["a red cat", "a dog, 2 cats"]
    with torch.no_grad():
        want = theirs(input_ids=one.tokenize(prompts).numbers[:, 0]).last_hidden_state
    assert torch.equal(tokens_of(one.encode(prompts)), want)
    assert torch.equal(tokens_of(two.encode(prompts)), want)


def test_a_folder_of_a_t5_gives_its_own_numbers_with_a_mask(tmp_path):
    folder, theirs = t5_folder(tmp_path)
    found = text_encoder.read_text_encoder(folder)
    assert found.config == replace(T5, max_length=77)
    one = found.conditioner(validate(TextSection, found.describe(), "test"))
    condition = one.encode(["a cat", "a red dog"])
    rows = one.tokenize(["a cat", "a red dog"])
    with torch.no_grad():
        want = theirs(input_ids=rows.numbers[:, 0], attention_mask=rows.used[:, 0].long()).last_hidden_state
    assert torch.equal(tokens_of(condition), want)
    assert condition.mask is not None
    assert torch.equal(condition.mask, rows.used[:, 0])


@pytest.mark.parametrize("changes", [{}, {"projection": 24, "padding": 0, "activation": "gelu"}])
def test_a_written_folder_is_opened_by_transformers_and_by_us(tmp_path, changes):
    import transformers

    config = replace(CLIP, **changes)
    one = TextEncoder(drawn(config), clip_tokenizer.clip_tokenizer())
    text_encoder.write_folder(one, tmp_path)
    kind = transformers.CLIPTextModelWithProjection if config.projection else transformers.CLIPTextModel
    theirs = kind.from_pretrained(tmp_path / "text_encoder", local_files_only=True).eval()
    words: Any = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    prompts = ["a red cat", "a dog, 2 cats and it's more than fits into one row of tokens"]
    given = words(prompts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with pytest.warns(PromptTruncated):
        rows = one.tokenize(prompts)
    assert torch.equal(given.input_ids, rows.numbers[:, 0])
    with torch.no_grad():
        want = theirs(input_ids=given.input_ids)
    torch.testing.assert_close(tokens_of(one.condition(rows)), want.last_hidden_state)
    found = text_encoder.read_text_encoder(tmp_path)
    assert (found.config, found.tokenizer) == (config, None)
    state = one.tower.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.state.items())


def test_a_folder_without_the_layers_behind_the_one_in_use_gives_the_same(tmp_path):
    one = TextEncoder(drawn(replace(CLIP, skip=1)), clip_tokenizer.clip_tokenizer())
    text_encoder.write_folder(one, tmp_path)
    found = text_encoder.read_text_encoder(tmp_path)
    assert found.config == replace(CLIP, depth=2)
    two = found.conditioner(validate(TextSection, found.describe(), "test"))
    assert torch.equal(tokens_of(one.encode(["a cat"])), tokens_of(two.encode(["a cat"])))


def test_a_written_t5_is_opened_again(tmp_path):
    one = TextEncoder(drawn(T5), FileTokenizer(words_file()))
    text_encoder.write_folder(one, tmp_path, number=3)
    found = text_encoder.read_text_encoder(tmp_path, number=3)
    assert (found.config, found.tokenizer) == (T5, words_file())
    two = found.conditioner(validate(TextSection, found.describe(), "test"))
    assert torch.equal(tokens_of(one.encode(["a cat"])), tokens_of(two.encode(["a cat"])))


def test_padding_is_what_the_tokenizers_settings_say(tmp_path):
    folder, _ = clip_folder(tmp_path)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    for content, padding in (
        ('{"pad_token": "!"}', 0),
        ('{"pad_token": {"content": "<|endoftext|>"}}', 49407),
        ("{}", 49407),
    ):
        settings.write_text(content)
        assert text_encoder.read_text_encoder(folder).config.padding == padding


def test_another_vocabulary_is_the_folders_own(tmp_path):
    folder, _ = clip_folder(tmp_path)
    merges_files(folder / "tokenizer", [("a", "b")])
    with pytest.raises(WeightsError, match=r"no tokenizer.json; save the tokenizer with transformers"):
        text_encoder.read_text_encoder(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text(words_file())
    found = text_encoder.read_text_encoder(folder)
    assert found.tokenizer == words_file()
    assert found.describe()["tokenizer"] == "file"


def test_clips_vocabulary_is_recognised_in_a_tokenizer_json_too(tmp_path):
    import tokenizers

    folder, _ = clip_folder(tmp_path)
    vocabulary = clip_tokenizer.clip_tokenizer()
    numbers = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    model = tokenizers.models.BPE(numbers, clip_tokenizer.clip_merges(), end_of_word_suffix="</w>")
    (folder / "tokenizer" / "merges.txt").unlink()
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizers.Tokenizer(model).to_str())
    assert text_encoder.read_text_encoder(folder).tokenizer is None


def spoil_code(folder: Path) -> None:
    (folder / "text_encoder" / "modeling.py").write_text("raise SystemExit")


def spoil_map(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.X"}}')


def spoil_pickle(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.pkl").write_bytes(b"\x80\x04")


def spoil_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def spoil_config(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text("{")


def spoil_activation(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))


def spoil_kind(folder: Path) -> None:
    save_file({"bert.weight": torch.zeros(1)}, folder / "text_encoder" / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_code, r"modeling.py: the folder brings its own code, which is never run"),
        (spoil_map, r"tokenizer_config.json: auto_map asks for the folder's own code, which is never run"),
        (spoil_pickle, r"tokenizer.pkl: a pickle, which can run code and was not opened"),
        (spoil_weights, r"only pytorch_model.bin, a pickle, which is not opened; save it as safetensors"),
        (spoil_config, r"config.json: cannot be read as JSON"),
        (spoil_activation, r"hidden_act = 'relu': known are quick_gelu, gelu"),
        (spoil_kind, r"no text encoder of a known kind"),
    ],
)
def test_a_folder_that_wants_more_than_to_be_read_or_is_damaged_is_refused(tmp_path, spoil, message):
    folder, _ = clip_folder(tmp_path)
    assert text_encoder.read_text_encoder(folder).config == CLIP  # the control
    spoil(folder)
    with pytest.raises(WeightsError, match=message):
        text_encoder.read_text_encoder(folder)


def test_a_slot_without_an_encoder_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"there is neither text_encoder/ nor config.json"):
        text_encoder.read_text_encoder(tmp_path)
    save_file({"betas": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="text encoder 1: the file holds 0"):
        text_encoder.read_text_encoder(tmp_path / "x.safetensors")


# ---------------------------------------------------------------------- models


def model_config(**changes: Any) -> ModelConfig:
    raw = {
        "shape": [1, 4, 4],
        "network": {"kind": "unet", "model_channels": 4, "channel_mult": [1, 2], "num_res_blocks": 1, "groups": 4},
        "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 20},
        "condition": [section(output="vector", **changes).model_dump(mode="json")],
        "sample": {"steps": 3, "guidance": {"scale": 3.0}},
    }
    return validate(ModelConfig, raw, "test")


def model(tmp_path: Path) -> Any:
    folder, _ = clip_folder(tmp_path / "source")
    torch.manual_seed(0)
    made = text_encoder.fill(unveil.build(model_config(weights=str(folder))))
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def test_a_text_to_image_model_is_saved_complete_and_samples_the_same(tmp_path):
    made = model(tmp_path)
    saved = made.save(tmp_path / "model")
    assert sorted(path.name for path in saved.iterdir()) == [
        "card.md", "denoiser.safetensors", "manifest.json", "model.yaml", "prompt.safetensors"
    ]  # fmt: skip
    again = unveil.load(saved)
    assert not any(parameter.requires_grad for parameter in again.conditioners.parameters())
    raw = {"prompt": ["a cat", "a red dog"]}
    images = [one.generate(cond=raw, count=2, seed=1) for one in (made, again)]
    assert torch.equal(*images)
    assert not torch.equal(images[0], made.generate(cond={"prompt": "a cat"}, count=2, seed=1))


def test_a_negative_prompt_takes_the_place_of_nothing(tmp_path):
    made = model(tmp_path)
    plain, away, empty = (
        made.generate(cond={"prompt": "a cat"}, count=2, seed=1, negative_cond=negative)
        for negative in (None, {"prompt": "a dog"}, {"prompt": ""})
    )
    assert torch.equal(plain, empty)
    assert not torch.allclose(plain, away, atol=1e-4)
    same = made.generate(cond={"prompt": "a cat"}, count=2, seed=1, negative_cond={"prompt": "a cat"})
    torch.testing.assert_close(same, made.generate(cond={"prompt": "a cat"}, count=2, seed=1, guidance_scale=1.0))


def test_a_vocabulary_of_its_own_goes_with_the_model(tmp_path):
    t5_folder(tmp_path / "t5")
    found = text_encoder.read_text_encoder(tmp_path / "t5")
    config = model_config()
    described = found.describe() | {"drop": 0.1}
    config = validate(ModelConfig, config.model_dump(mode="json") | {"condition": [described]}, "test")
    made = unveil.build(config)
    one = made.conditioners["prompt"]
    assert isinstance(one, TextEncoder)
    found.fill(one)
    saved = made.save(tmp_path / "model")
    assert (saved / "prompt.tokenizer.json").read_text() == words_file()
    again: Any = unveil.load(saved).conditioners["prompt"]
    assert isinstance(again.tokenizer, FileTokenizer)
    assert torch.equal(tokens_of(again.encode(["a cat"])), tokens_of(one.encode(["a cat"])))


def test_weights_of_another_encoder_are_refused(tmp_path):
    folder, _ = clip_folder(tmp_path)
    other = {"kind": "clip", **asdict(replace(CLIP, depth=2))}
    with pytest.raises(
        WeightsError, match=r"prompt: the weights are of CLIPEncoderConfig\(.*depth=3.*but the recipe says"
    ):
        text_encoder.fill(unveil.build(model_config(weights=str(folder), encoder=other)))


def test_an_encoder_without_weights_is_refused_where_a_model_is_new():
    with pytest.raises(RecipeError, match="prompt: the text encoder needs its weights; set weights"):
        text_encoder.fill(unveil.build(model_config()))


def test_a_layer_or_a_padding_that_weights_do_not_hold_is_the_recipes(tmp_path):
    folder, _ = clip_folder(tmp_path)
    other = {"kind": "clip", **asdict(replace(CLIP, skip=1, norm="none", padding=0))}
    made = text_encoder.fill(unveil.build(model_config(weights=str(folder), encoder=other)))
    one: Any = made.conditioners["prompt"]
    assert one.tower.config == replace(CLIP, skip=1, norm="none", padding=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": {"kind": "clip", "name": "clip-m"}},
            "encoder name 'clip-m': known are .*; nearest: 'clip-l'",
        ),
        ({"encoder": {"kind": "t5", **asdict(T5)}}, "tokenizer = 'clip': T5 has its own in its folder"),
        (
            {"encoder": {"kind": "t5", **asdict(T5)}, "tokenizer": "file", "num_chunks": 2},
            "num_chunks = 2: T5 takes rows",
        ),
        ({"encoder": {"kind": "bert"}}, "encoder"),
        ({"prompt_weighting": "yes"}, "prompt_weighting"),
    ],
)
def test_sections_that_cannot_work_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        section(**changes)


def test_a_published_name_stands_for_its_settings():
    named = section(encoder={"kind": "clip", "name": "openclip-h", "skip": 1})
    assert named.encoder.build() == CLIPEncoderConfig(**SIZES["openclip-h"], skip=1)


def test_training_moves_the_network_and_leaves_the_encoder(tmp_path):
    from unveil import train
    from unveil.core.objective import DiffusionLoss

    made = model(tmp_path)
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    items = [
        {"pixels": torch.randint(0, 256, (1, 4, 4), generator=generator, dtype=torch.uint8), "prompt": word}
        for word in ("a cat", "a dog", "a red cat", "")
    ]
    settings: dict[str, Any] = {"batch_size": 4, "steps": 2, "precision": "float32", "save_every": 0, "sample_every": 0}
    config = unveil.model.config.TrainConfig(**settings, validate_every=0, ema_decay=0.5)
    train.fit(made, items, objective=DiffusionLoss(), config=config, run=tmp_path / "run")
    moved = {key for key, tensor in made.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved
    assert not [key for key in moved if key.startswith("conditioners.")]
    loaded = unveil.load(tmp_path / "run")
    assert torch.equal(*(one.generate(cond={"prompt": "a cat"}, seed=1) for one in (made, loaded)))
