"""Text encoders of folders of diffusers and transformers, or of a file of a whole model; read and written.

Only settings, safetensors and vocabularies are read. A folder that asks for code to be run, or that contains a pickle
in place of its weights, is refused by name.

Facts: config.json, tokenizer_config.json and merges.txt of transformers; `text_encoder*` and `tokenizer*` of diffusers'
folders of Stable Diffusion 1 and 2 and XL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints import text_encoder_keys
from unveil.checkpoints.format import Format, Signature
from unveil.checkpoints.hf_files import read_json, read_weights
from unveil.checkpoints.overrides import in_float, shapes_of
from unveil.conditioning import clip_tokenizer
from unveil.conditioning.text_encoder import FileTokenizer, TextEncoder
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_state, write_tensors
from unveil.model import Model
from unveil.model.config.text import TextSection
from unveil.nn.layers import EmptyParameters
from unveil.nn.text_encoders import ACTIVATIONS, CLIPEncoderConfig, T5EncoderConfig, TextEncoderConfig

WEIGHTS = "model"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt")  # one whose safetensors stands beside it may have a .bin
SETTINGS = ("config.json", "tokenizer_config.json")
OLD_END = 2  # CLIP's end token in config.json before it was corrected; it was never used
MERGES = "merges.txt"
LONGEST = 4096  # a tokenizer without a limit says a number far beyond it


class LoadedTextEncoder(NamedTuple):
    """A text encoder as it was found.

    Attributes:
        config: Its architecture.
        state: Its weights, in our names.
        tokenizer: Content of its tokenizer.json; None: CLIP's vocabulary, which comes with the package.
        rest: Other tensors of the file, in the file's names.
    """

    config: TextEncoderConfig
    state: dict[str, Tensor]
    tokenizer: str | None = None
    rest: Mapping[str, Tensor] = {}

    def describe(self) -> dict[str, Any]:
        """The architecture as a recipe's section says it; key, drop and the like are added by whoever knows them."""
        kind = "clip" if isinstance(self.config, CLIPEncoderConfig) else "t5"
        return {
            "kind": "text",
            "encoder": {"kind": kind, **asdict(self.config)},
            "tokenizer": "clip" if self.tokenizer is None else "file",
        }

    def fill(self, conditioner: TextEncoder) -> TextEncoder:
        """Gives a conditioner that was built for this architecture its weights, in float32, and its vocabulary.

        Raises:
            WeightsError: It was built for another architecture.
        """
        if conditioner.tower.config != self.config:
            raise WeightsError(
                f"{conditioner.key}: the weights are of {self.config}, but the recipe says {conditioner.tower.config}; "
                "set encoder to the former"
            )
        conditioner.tower.load_state_dict(in_float(self.state), assign=True)
        conditioner.tower.requires_grad_(False)
        if self.tokenizer is not None:
            conditioner.restore_files({"tokenizer.json": self.tokenizer})
        return conditioner

    def conditioner(self, section: TextSection) -> TextEncoder:
        """The conditioner of a section that was made from `described`."""
        with EmptyParameters():  # nothing is drawn that the file replaces
            built = section.build()
        return self.fill(built)


def read_text_encoder(path: Path, *, number: int = 1, settings: Mapping[str, Any] | None = None) -> LoadedTextEncoder:
    """The text encoder of a folder or a file.

    Args:
        path: diffusers' folder of a whole model, transformers' folder of one encoder, or a file with a whole model.
        number: Number of the one that is read, if there are several.
        settings: Settings of a file's encoder, see `read_state_of`; a folder determines them itself.

    Raises:
        WeightsError: None there, damaged, or something that is not opened.
    """
    if path.is_dir():
        return read_folder(path, number=number)
    return read_state_dict(read_state(path), number=number, settings=settings)


def read_state_dict(
    theirs: Mapping[str, Tensor], *, number: int = 1, settings: Mapping[str, Any] | None = None
) -> LoadedTextEncoder:
    """The text encoder in a state dict; such files hold no vocabulary, so it is CLIP's.

    Args:
        theirs: Names and tensors, those of other parts too.
        number: Number of the one that is read, if there are several.
        settings: `heads` and `activation`, if the width is that of no published encoder.

    Raises:
        WeightsError: None there, or one that is not whole.
    """
    locations = text_encoder_keys.find_text_encoders(theirs)
    if not 1 <= number <= len(locations):
        raise WeightsError(f"text encoder {number}: the file holds {len(locations)}")
    place = locations[number - 1]
    if place.layout == "t5":
        raise WeightsError(f"{place.prefix}: a T5 without its vocabulary; give the folder with its tokenizer.json")
    settings = settings or {}
    config = text_encoder_keys.config_from_keys(
        shapes_of(theirs), place, heads=settings.get("heads"), activation=settings.get("activation")
    )
    loaded = text_encoder_keys.convert_state_dict(theirs, config, place)
    return LoadedTextEncoder(config, loaded.state, None, loaded.rest)


def read_folder(path: Path, *, number: int = 1) -> LoadedTextEncoder:
    """The text encoder of diffusers' folder of a whole model, or of transformers' folder of one.

    Raises:
        WeightsError: None there, damaged, of another kind, or a folder that wants code or a pickle to be run.
    """
    end = "" if number == 1 else f"_{number}"
    home, words = path / f"text_encoder{end}", path / f"tokenizer{end}"
    if not home.is_dir():
        if not (path / "config.json").is_file() or number != 1:
            raise WeightsError(f"{path}: no text encoder: there is neither text_encoder{end}/ nor config.json")
        home = words = path
        beside = path.parent / path.name.replace("text_encoder", "tokenizer")
        if path.name.startswith("text_encoder") and beside.is_dir():
            words = beside
    for place in {home, words}:
        check_folder(place)
    settings = read_json(home / "config.json")
    theirs = read_weights(home, WEIGHTS)
    locations = text_encoder_keys.find_text_encoders(theirs)
    if not locations:
        raise WeightsError(f"{home}: no text encoder of a known kind, by its keys; CLIP's and T5's are known")
    place = locations[0]
    settings = settings.get("text_config") or settings
    if place.layout == "t5":
        config = _read_t5_config(text_encoder_keys.config_from_keys(shapes_of(theirs), place), settings, words)
        return LoadedTextEncoder(
            config, text_encoder_keys.convert_state_dict(theirs, config, place).state, _read_tokenizer(words)
        )
    config, vocabulary = _read_clip_config(theirs, place, settings, words)
    loaded = text_encoder_keys.convert_state_dict(theirs, config, place)
    return LoadedTextEncoder(config, loaded.state, vocabulary, loaded.rest)


def fill(model: Model, base: Path = Path()) -> Model:
    """Gives a freshly built model the text encoders that its config names by `weights`; returns it.

    Args:
        base: Folder that their paths are relative to.

    Raises:
        WeightsError: Not there, damaged, or of another architecture than the config says.
        RecipeError: A text encoder without `weights`, which nobody has trained.
    """
    for section in model.config.condition if model.config is not None else ():
        if isinstance(section, TextSection):
            if section.weights is None:
                raise RecipeError(f"{section.key}: the text encoder needs its weights; set weights to a folder or file")
            expected = section.encoder.build()
            shape = (
                {"heads": expected.heads, "activation": expected.activation}
                if isinstance(expected, CLIPEncoderConfig)
                else None
            )
            loaded = read_text_encoder(base / section.weights, settings=shape)
            if isinstance(expected, CLIPEncoderConfig) and isinstance(
                loaded.config, CLIPEncoderConfig
            ):  # what no weight depends on
                free = {"skip": expected.skip, "norm": expected.norm, "padding": expected.padding}
                loaded = loaded._replace(config=replace(loaded.config, **free))
            if isinstance(expected, T5EncoderConfig) and isinstance(loaded.config, T5EncoderConfig):
                loaded = loaded._replace(
                    config=replace(loaded.config, max_length=expected.max_length, attend=expected.attend)
                )
            conditioner = model.conditioners[section.key]
            assert isinstance(conditioner, TextEncoder)  # as its section built it
            loaded.fill(conditioner)
    return model


def check_folder(path: Path) -> None:
    """Refuses a folder that wants more than to be read.

    Raises:
        WeightsError: Names the file: Python code, a setting that asks for it, or a pickled tokenizer.
    """
    for file in sorted(path.iterdir()):
        if file.suffix == ".py":
            raise WeightsError(f"{file}: the folder brings its own code, which is never run; use a folder without it")
        if file.suffix in PICKLES:
            raise WeightsError(f"{file}: a pickle, which can run code and was not opened; use a folder without it")
    for name in SETTINGS:
        if (path / name).is_file() and "auto_map" in read_json(path / name):
            raise WeightsError(f"{path / name}: auto_map asks for the folder's own code, which is never run")


def _read_clip_config(
    theirs: Mapping[str, Tensor], place: text_encoder_keys.TextEncoderLocation, settings: Mapping[str, Any], words: Path
) -> tuple[CLIPEncoderConfig, str | None]:
    """The architecture, and the content of the tokenizer's file where it is not CLIP's vocabulary."""
    acts = {their: our for our, their in ACTIVATIONS.items()}
    act = str(settings.get("hidden_act", "quick_gelu"))
    if act not in acts:
        raise WeightsError(f"config.json: hidden_act = {act!r}: known are {', '.join(acts)}")
    heads = settings.get("num_attention_heads")
    config = text_encoder_keys.config_from_keys(shapes_of(theirs), place, heads=heads, activation=acts[act])
    assert isinstance(config, CLIPEncoderConfig)  # by its place
    end = int(settings.get("eos_token_id", config.end))
    vocabulary = _vocabulary(words)
    config = replace(
        config,
        norm_eps=float(settings.get("layer_norm_eps", config.norm_eps)),
        begin=int(settings.get("bos_token_id", config.begin)) if end != OLD_END else config.begin,
        end=end if end != OLD_END else config.end,
    )
    return replace(config, padding=_padding_token(words, vocabulary, config)), vocabulary


def _padding_token(words: Path, vocabulary: str | None, config: CLIPEncoderConfig) -> int:
    """The token that rows are filled up with, which the tokenizer's settings name."""
    file = words / "tokenizer_config.json"
    token = read_json(file).get("pad_token") if file.is_file() else None
    name = token.get("content") if isinstance(token, dict) else token
    if name is None or name == clip_tokenizer.END:
        return config.end
    if vocabulary is None:
        pieces = clip_tokenizer.clip_tokenizer().pieces
        return pieces.index(str(name)) if name in pieces else config.end
    number = FileTokenizer(vocabulary).number(str(name))
    return config.end if number is None else number


def _vocabulary(words: Path) -> str | None:
    """The content of the tokenizer's file; None if its merges are the published ones, or there is none."""
    file = words / MERGES
    if file.is_file():
        lines = [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith("#version")]
        if lines == [" ".join(pair) for pair in clip_tokenizer.clip_merges()]:
            return None
    elif not (words / "tokenizer.json").is_file():
        return None
    content = _read_tokenizer(words)
    return None if FileTokenizer(content, str(words)).merges() == clip_tokenizer.clip_merges() else content


def _read_tokenizer(words: Path) -> str:
    file = words / "tokenizer.json"
    if not file.is_file():
        raise WeightsError(
            f"{words}: no tokenizer.json; save the tokenizer with transformers' save_pretrained, which writes one"
        )
    return file.read_text("utf-8")


def _read_t5_config(config: TextEncoderConfig, settings: Mapping[str, Any], words: Path) -> T5EncoderConfig:
    assert isinstance(config, T5EncoderConfig)  # by its place
    file = words / "tokenizer_config.json"
    longest = (read_json(file) if file.is_file() else {}).get("model_max_length", config.max_length)
    return replace(
        config,
        max_length=int(longest) if longest <= LONGEST else config.max_length,
        distance=int(settings.get("relative_attention_max_distance", config.distance)),
        norm_eps=float(settings.get("layer_norm_epsilon", config.norm_eps)),
        end=int(settings.get("eos_token_id", config.end)),
        padding=int(settings.get("pad_token_id", config.padding)),
    )


def write_folder(conditioner: TextEncoder, path: Path, *, number: int = 1) -> None:
    """Writes `text_encoder` and `tokenizer` into a folder of diffusers, which transformers' `from_pretrained` opens.

    An encoder whose earlier layer is used, normalised, is written without the layers behind it, as Stable Diffusion
    2's folders are: they say nothing of a layer.

    Args:
        path: The folder of the whole model.
        number: Number of the encoder among the model's.

    Raises:
        RecipeError: A vocabulary that is not known.
    """
    end = "" if number == 1 else f"_{number}"
    home, words = path / f"text_encoder{end}", path / f"tokenizer{end}"
    config, state = conditioner.tower.config, conditioner.tower.state_dict()
    if isinstance(config, CLIPEncoderConfig):
        if without := left_out(conditioner):
            config = replace(config, depth=config.depth - config.skip, skip=0)
            state = {key: tensor for key, tensor in state.items() if key not in without}
        settings, location = _clip_settings(config), text_encoder_keys.TextEncoderLocation("clip", "text_model.")
    else:
        settings, location = _t5_settings(config), text_encoder_keys.TextEncoderLocation("t5")
    tensors = text_encoder_keys.published_state_dict(state, config, location, {})
    home.mkdir(parents=True, exist_ok=True)
    words.mkdir(parents=True, exist_ok=True)
    _write_json(home / "config.json", settings)
    with torch.no_grad():
        write_tensors(home / "model.safetensors", tensors)
    _write_tokenizer(conditioner, words)


def left_out(conditioner: TextEncoder) -> tuple[str, ...]:
    """Our keys of the layers behind the one that is used, which a folder does not hold; nobody reads them."""
    config = conditioner.tower.config
    if not isinstance(config, CLIPEncoderConfig) or not config.skip or config.norm != "final":
        return ()
    behind = tuple(f"model.encoder.layers.{layer}." for layer in range(config.depth - config.skip, config.depth))
    return tuple(key for key in conditioner.tower.state_dict() if key.startswith(behind))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _clip_settings(config: CLIPEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": round(config.hidden_size * config.mlp_ratio),
        "projection_dim": config.projection or config.hidden_size,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_length,
        "hidden_act": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
        "bos_token_id": config.begin,
        "eos_token_id": config.end,
        "pad_token_id": config.padding,
    }


def _t5_settings(config: T5EncoderConfig) -> dict[str, Any]:
    family = "T5" if config.positions == "shared" else "UMT5"
    return {
        "architectures": [f"{family}EncoderModel"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": config.feed,
        "is_encoder_decoder": False,
        "eos_token_id": config.end,
        "pad_token_id": config.padding,
    }


def _write_tokenizer(conditioner: TextEncoder, words: Path) -> None:
    config, tokenizer = conditioner.tower.config, conditioner.tokenizer
    if isinstance(tokenizer, FileTokenizer):
        (words / "tokenizer.json").write_text(tokenizer.content, "utf-8")
        _write_json(words / "tokenizer_config.json", {"model_max_length": config.max_length})
        return
    if not isinstance(tokenizer, clip_tokenizer.BPETokenizer):
        raise RecipeError(
            f"{conditioner.key}: a {type(tokenizer).__name__} is not a vocabulary that transformers reads"
        )
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    (words / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    _write_json(words / "vocab.json", {piece: number for number, piece in enumerate(tokenizer.pieces)})
    special = {"bos_token": clip_tokenizer.BEGIN, "eos_token": clip_tokenizer.END, "unk_token": clip_tokenizer.END}
    special["pad_token"] = tokenizer.pieces[config.padding]
    _write_json(words / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": config.max_length, "do_lower_case": True}
    _write_json(words / "tokenizer_config.json", settings | special)


FORMATS = (
    Format(
        name="transformers",
        kind="text encoder",
        signatures=(
            Signature(
                "a text encoder of transformers",
                {
                    "its table": "text_model.embeddings.token_embedding.weight",
                    "its blocks": "text_model.encoder.layers.0.",
                },
                "a text encoder, which makes no images by itself; give the whole folder or file that it is from",
            ),
        ),
    ),
)
