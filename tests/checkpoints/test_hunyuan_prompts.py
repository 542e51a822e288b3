"""HunyuanVideo's text encoders: the videos are those of diffusers' pipeline that runs them itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

import unveil
from tests.checkpoints import tiny_hf, tiny_video
from tests.checkpoints.test_video import PROMPTS, WRITTEN, ours, psnr, theirs
from unveil.checkpoints.hf.video_pipelines import write_prompts
from unveil.errors import UnsupportedFormat, WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = tiny_video.size_of("hunyuan")


def words() -> Any:
    """A tokenizer of words and signs, of which the template has more before the prompt than are left out."""
    pieces = ["<pad>", "<unk>", *tiny_hf.WORDS, *tiny_hf.ALPHABET]
    made = tokenizers.Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> tuple[Any, Path]:
    """A pipeline with encoders, and its folder."""
    language = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
    )
    tokenizer = tiny_hf.clip_tokenizer(77)
    pipeline = tiny_video.hunyuan()
    pipeline.register_modules(
        tokenizer=words(),
        text_encoder=tiny_hf.drawn(transformers.LlamaModel(language), 5),
        tokenizer_2=tokenizer,
        text_encoder_2=tiny_hf.clip(tokenizer, 6, width=8),
    )
    return pipeline, tiny_hf.saved(pipeline, tmp_path_factory.mktemp("hunyuan") / "hunyuan")


def test_clips_are_those_of_the_pipeline(saved):
    pipeline, path = saved
    model = unveil.load(path)
    want = theirs(pipeline, model, PROMPTS, SIZE, guidance_scale=4.0)
    got = ours(model, PROMPTS, SIZE, cond={"guidance": 4.0})
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40, "the prompts matter"


def test_the_condition_is_that_of_the_pipeline_and_of_written_prompts(saved, tmp_path):
    pipeline, path = saved
    model = unveil.load(path)
    prompts = [*PROMPTS, "the {moon}", ""]
    condition = model.conditioners["prompt"].encode(prompts)  # type: ignore[operator]
    tokens, vector, mask = pipeline.encode_prompt(prompts)
    torch.testing.assert_close(condition.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(condition.vector[:, :-1], vector, atol=1e-5, rtol=1e-5)
    assert torch.equal(condition.mask, mask.bool())
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    write_prompts(model, prompts, copy / WRITTEN)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(copy / name)
    again = unveil.load(copy).conditioners["prompt"].encode(prompts)  # type: ignore[operator]
    assert torch.equal(again.tokens, condition.tokens)
    assert torch.equal(again.vector, condition.vector)


def test_a_negative_prompt_guides_as_in_the_pipeline(saved):
    pipeline, path = saved
    model = unveil.load(path)
    negative = ["moon"] * 2
    want = theirs(pipeline, model, PROMPTS, SIZE, guidance_scale=4.0, true_cfg_scale=2.0, negative_prompt=negative)
    got = ours(
        model,
        PROMPTS,
        SIZE,
        cond={"guidance": 4.0},
        guidance_scale=2.0,
        negative_cond={"prompt": negative, "guidance": 4.0},
    )
    assert psnr(got, want) > 60


def test_another_language_model_or_a_missing_encoder_is_named(saved, tmp_path):
    copy = Path(shutil.copytree(saved[1], tmp_path / "copy"))
    config = copy / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["MistralModel"]}))
    with pytest.raises(
        UnsupportedFormat, match="a MistralModel; of a HunyuanVideoPipeline it must be one of LlamaModel"
    ):
        unveil.load(copy)
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(WeightsError, match=f"no text_encoder_2, which HunyuanVideoPipeline needs.* as {WRITTEN}"):
        unveil.load(copy)
