"""Text as a condition: limits, weights of words, nothing, masks; with tiny encoders of random weights."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.conditioning.clip_tokenizer import clip_tokenizer
from unveil.conditioning.text_encoder import FileTokenizer, MultiTextEncoder, TextEncoder, apply_token_weights
from unveil.errors import PromptTooLong, PromptTruncated, RecipeError, ShapeError, WeightsError
from unveil.nn import lora
from unveil.nn.text_encoders import CLIPEncoderConfig, T5EncoderConfig, build
from unveil.types import Condition

CLIP = CLIPEncoderConfig(16, 3, 2, max_length=12)
T5 = T5EncoderConfig(16, 2, 2, 8, 32, vocab_size=60, max_length=9)


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    return drawn(CLIP)


def drawn(config: CLIPEncoderConfig | T5EncoderConfig, seed: int = 0) -> Any:
    """A tower all of whose weights say something."""
    torch.manual_seed(seed)
    made = build(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def words_file() -> str:
    """A tokenizer of whole words, as its file."""
    import tokenizers

    known = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made.to_str()


def tokens_of(condition: Condition) -> Tensor:
    assert condition.tokens is not None
    return condition.tokens


def test_prompts_become_tokens_without_a_mask_or_a_gradient(tower):
    text = TextEncoder(tower, clip_tokenizer())
    found = text.encode(["a cat", "a dog"])
    assert tokens_of(found).shape == (2, 12, 16)
    assert (found.mask, found.vector, found.concat) == (None, None, None)
    assert not tokens_of(found).requires_grad
    assert not any(parameter.requires_grad for parameter in text.parameters())
    assert not torch.equal(tokens_of(found)[0], tokens_of(found)[1])
    assert not text.train().tower.training


def test_a_prompt_is_the_same_in_any_company_and_again(tower):
    text = TextEncoder(tower, clip_tokenizer())
    together = tokens_of(text.encode(["a cat", "a red dog", "a cat", ""]))
    assert torch.equal(together, tokens_of(text.encode(["a cat", "a red dog", "a cat", ""])))
    assert torch.equal(together[0], together[2])
    for place, prompt in ((0, "a cat"), (1, "a red dog"), (3, "")):
        torch.testing.assert_close(together[place], tokens_of(text.encode([prompt]))[0], rtol=1e-5, atol=1e-5)


class Counted(nn.Module):
    """A tower that counts the prompts it is given."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.inner, self.config, self.count = tower, tower.config, 0

    def forward(self, numbers: Tensor, used: Tensor) -> Any:
        self.count += len(numbers)
        return self.inner(numbers, used)


@pytest.mark.parametrize("config", [CLIP, T5])
def test_what_a_prompt_was_encoded_to_is_kept(config):
    tower = Counted(drawn(config))
    tokenizer = FileTokenizer(words_file()) if config is T5 else clip_tokenizer()
    kept, plain = TextEncoder(tower, tokenizer).set_cache_size(1), TextEncoder(tower, tokenizer)
    first = kept.encode(["a cat", "a red dog", "a cat"])
    assert tower.count == 2
    again = kept.encode(["a red dog", "a dog", "a cat"])
    assert tower.count == 3
    assert torch.equal(tokens_of(first)[0], tokens_of(again)[2])  # to the bit, in other company
    assert torch.equal(tokens_of(first)[1], tokens_of(again)[0])
    found = plain.encode(["a red dog", "a dog", "a cat"])
    torch.testing.assert_close(tokens_of(again), tokens_of(found), rtol=1e-5, atol=1e-5)
    assert (again.mask is None) == (found.mask is None) == (config is CLIP)
    assert again.mask is None or torch.equal(again.mask, found.mask)
    with torch.autocast("cpu", torch.bfloat16):  # another precision is another result
        kept.encode(["a cat"])
    assert tower.count == 3 + 3 + 1


def test_what_is_kept_is_that_of_the_encoder_as_it_is_now():
    tower = drawn(CLIP)
    text, plain = TextEncoder(tower, clip_tokenizer()).set_cache_size(1), TextEncoder(tower, clip_tokenizer())

    def pooled(conditions: list[Condition]) -> Condition:
        return Condition(vector=tokens_of(conditions[0])[:, 0], tokens=tokens_of(conditions[0]))

    both = MultiTextEncoder([text], pooled)

    def check() -> None:
        torch.testing.assert_close(tokens_of(text.encode(["a cat"])), tokens_of(plain.encode(["a cat"])))
        torch.testing.assert_close(tokens_of(both.null(1)), tokens_of(both.encode([""])))

    check()
    first = tokens_of(text.encode(["a cat"]))
    tower.load_state_dict(drawn(CLIP, seed=1).state_dict())
    check()
    assert not torch.allclose(tokens_of(text.encode(["a cat"])), first, atol=1e-3)
    config = lora.LoraConfig(("*",))
    made = [replace(one, up=torch.ones_like(one.up)) for one in lora.init_lora(tower, config)]
    lora.attach(tower, "style", made)
    check()
    second = tokens_of(text.encode(["a cat"]))
    lora.set_weights(tower, {"style": 0.2})
    check()
    assert not torch.allclose(tokens_of(text.encode(["a cat"])), second, atol=1e-4)
    with lora.disable_adapters(tower):
        check()
    check()


def test_a_prompt_that_is_too_long_is_reported_again_where_it_is_cached(tower):
    text = TextEncoder(tower, clip_tokenizer()).set_cache_size(1).train(False)
    for _ in range(2):
        with pytest.warns(PromptTooLong):
            text.encode(["a red cat " * 40])


def test_the_prompts_that_were_used_last_are_kept(tower):
    counted = Counted(tower)
    text = TextEncoder(counted, clip_tokenizer()).set_cache_size(1)
    text._cache.room = 3 * 12 * 16 * 4  # of three prompts
    for prompt in ("a", "b", "c", "a", "d"):
        text.encode([prompt])
    assert counted.count == 4
    text.encode(["a", "c", "d"])
    assert counted.count == 4
    text.encode(["b"])  # the one that was used longest ago had gone
    assert counted.count == 5


def test_tokens_see_only_those_before_them(tower):
    first, second = tokens_of(TextEncoder(tower, clip_tokenizer()).encode(["a red cat", "a red dog"]))
    torch.testing.assert_close(first[:3], second[:3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first[3], second[3], atol=1e-3)


def test_nothing_is_the_empty_prompt_or_the_one_given(tower):
    plain, other = TextEncoder(tower, clip_tokenizer(), 0.1), TextEncoder(tower, clip_tokenizer(), uncond="blurred")
    assert torch.equal(tokens_of(plain.null(2)), tokens_of(plain.encode([""])).expand(2, -1, -1))
    assert torch.equal(tokens_of(other.null(1)), tokens_of(other.encode(["blurred"])))
    kept = plain.encode(["a cat", "a dog"]).where(torch.tensor([True, False]), plain.null(2))
    assert torch.equal(tokens_of(kept)[1], tokens_of(plain.null(1))[0])


def test_the_vector_is_that_of_the_first_end_token(tower):
    text = TextEncoder(tower, clip_tokenizer(), output="both")
    found = text.encode(["a cat"])
    assert found.vector is not None
    torch.testing.assert_close(found.vector[0], tokens_of(found)[0, 3])
    only = TextEncoder(tower, clip_tokenizer(), output="vector").encode(["a cat"])
    assert only.tokens is None
    assert torch.equal(only.vector, found.vector)  # pyright: ignore[reportArgumentType]
    wide = TextEncoder(drawn(replace(CLIP, projection=5)), clip_tokenizer(), output="vector").encode(["a cat"])
    assert wide.vector is not None
    assert wide.vector.shape == (1, 5)


def test_an_earlier_layer_is_taken_with_and_without_the_last_normalisation(tower):
    plain = TextEncoder(tower, clip_tokenizer()).tokenize(["a cat"])
    numbers, used = plain.numbers[:, 0], plain.used[:, 0]
    hidden: list[Tensor] = []
    layers = tower.model.encoder.layers
    hooks = [layer.register_forward_hook(lambda _m, _i, out: hidden.append(out)) for layer in layers]
    last = tower(numbers, used).tokens
    for hook in hooks:
        hook.remove()
    after = [layer if isinstance(layer, Tensor) else layer[0] for layer in hidden]
    norm = tower.model.final_layer_norm
    for config, want in (
        (CLIP, norm(after[2])),
        (replace(CLIP, skip=1), norm(after[1])),
        (replace(CLIP, skip=1, norm="none"), after[1]),
        (replace(CLIP, skip=2, norm="none"), after[0]),
        (replace(CLIP, norm="none"), after[2]),
    ):
        other = build(config)
        other.load_state_dict(tower.state_dict())
        torch.testing.assert_close(other.eval()(numbers, used).tokens, want)
    torch.testing.assert_close(last, norm(after[2]))


# ---------------------------------------------------------------------- limits


def test_what_is_left_out_is_warned_of_with_its_words(tower):
    text = TextEncoder(tower, clip_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode(["a " * 10])
    message = r"prompt 'a a a .*': 2 tokens more than the 10 that fit, left out: 'red cat'"
    with pytest.warns(PromptTruncated, match=message):
        cut = text.encode(["a " * 10 + "red cat"])
    assert torch.equal(tokens_of(cut), tokens_of(text.encode(["a " * 10])))
    assert text.report(["a cat"]) == []
    assert len(text.report(["a " * 10 + "red cat", "a cat", "b " * 30])) == 2


def test_training_warns_once(tower):
    text = TextEncoder(tower, clip_tokenizer())
    text.train()
    long = ["a " * 20, "b " * 20]
    with pytest.warns(PromptTruncated) as caught:
        text.encode(long)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode(long)
    text.eval()
    with pytest.warns(PromptTruncated) as caught:
        text.encode(long)
    assert len(caught) == 2


def test_chunks_hold_longer_prompts_and_every_prompt_has_them(tower):
    text = TextEncoder(tower, clip_tokenizer(), num_chunks=2)
    long = "a " * 10 + "red cat"
    found = tokens_of(text.encode([long, "a cat"]))
    assert found.shape == (2, 24, 16)
    assert tokens_of(text.null(2)).shape == found.shape
    one = TextEncoder(tower, clip_tokenizer())
    torch.testing.assert_close(found[0, 12:], tokens_of(one.encode(["red cat"]))[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, 12:], tokens_of(one.encode([""]))[0], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- weights


def test_weights_of_one_change_nothing_to_the_bit(tower):
    text = TextEncoder(tower, clip_tokenizer(), prompt_weighting="brackets")
    plain = tokens_of(text.encode(["a red cat"]))
    for same in ("a (red:1) cat", "(a red cat:1.0)", "a (red:1.00) (cat:1)"):
        assert torch.equal(plain, tokens_of(text.encode([same])))
    beside = tokens_of(text.encode(["a (red:2) cat", "a red cat"]))
    torch.testing.assert_close(plain[0], beside[1], rtol=1e-5, atol=1e-5)


def test_a_weight_scales_the_named_words_and_keeps_the_mean(tower):
    text = TextEncoder(tower, clip_tokenizer(), prompt_weighting="brackets")
    plain = tokens_of(text.encode(["a red cat"]))[0]
    shares = []
    for weight in (0.5, 0.8, 1.2, 1.5):
        found = tokens_of(text.encode([f"a (red:{weight}) cat"]))[0]
        torch.testing.assert_close(found.mean(), plain.mean())
        factor = found / plain
        torch.testing.assert_close(factor[2] / factor[1], torch.full((16,), weight), rtol=1e-4, atol=1e-4)
        others = factor[[0, 1, *range(3, 12)]]
        torch.testing.assert_close(others, others[0, 0].expand_as(others), rtol=1e-4, atol=1e-4)
        shares.append(float(found[2].norm() / found[[0, 1, *range(3, 12)]].norm()))
    assert shares == sorted(shares)


def test_brackets_are_text_without_prompt_weighting(tower):
    plain = TextEncoder(tower, clip_tokenizer())
    assert torch.equal(
        tokens_of(plain.encode([r"a (red) cat"])),
        tokens_of(TextEncoder(tower, clip_tokenizer(), prompt_weighting="brackets").encode([r"a \(red\) cat"])),
    )


def test_a_mean_of_zero_is_not_scaled_to():
    tokens = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    weighted = apply_token_weights(tokens, torch.tensor([[1.0, 3.0]]))
    assert torch.equal(weighted, torch.tensor([[[1.0, -1.0], [6.0, -6.0]]]))


# ---------------------------------------------------------------------- T5


def test_t5_masks_its_padding_and_does_not_read_it():
    text = TextEncoder(drawn(T5), FileTokenizer(words_file()))
    found = text.encode(["a cat", "a red dog"])
    assert found.mask is not None
    assert found.mask.tolist() == [[True] * 3 + [False] * 6, [True] * 4 + [False] * 5]
    rows = text.tokenize(["a cat"])
    assert rows.numbers.tolist() == [[[3, 4, 1, 0, 0, 0, 0, 0, 0]]]
    other = rows._replace(numbers=rows.numbers.masked_fill(~rows.used, 5))
    read = [tokens_of(text.condition(one))[0, :3] for one in (rows, other)]
    torch.testing.assert_close(*read, rtol=1e-5, atol=1e-6)
    null = text.null(2)
    assert null.mask is not None
    assert null.mask[:, :2].tolist() == [[True, False]] * 2
    kept = found.where(torch.tensor([False, True]), null)
    assert kept.mask is not None
    assert kept.mask[0].sum() == 1


def test_t5_may_read_its_padding_too():
    text = TextEncoder(drawn(replace(T5, attend="all")), FileTokenizer(words_file()))
    rows = text.tokenize(["a cat"])
    other = rows._replace(numbers=rows.numbers.masked_fill(~rows.used, 5))
    first, second = (text.condition(one) for one in (rows, other))
    assert first.mask is None
    assert not torch.allclose(tokens_of(first)[0, :3], tokens_of(second)[0, :3], atol=1e-3)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a cat", "prompt: str given; needs a list of texts"),
        (torch.zeros(2), "prompt: Tensor given"),
        (["a", 3], "prompt: int given"),
    ],
)
def test_values_that_are_not_text_are_refused(tower, raw, message):
    with pytest.raises(RecipeError, match=message):
        TextEncoder(tower, clip_tokenizer()).encode(raw)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 1.0}, r"drop = 1.0: must lie in \[0, 1\)"),
        ({"output": "token"}, "output = 'token': must be one of tokens, vector, both; nearest: 'tokens'"),
        (
            {"prompt_weighting": "bracket"},
            "prompt_weighting = 'bracket': must be one of none, brackets; nearest: 'brackets'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tower, settings, message):
    with pytest.raises(RecipeError, match=message):
        TextEncoder(tower, clip_tokenizer(), **settings)


def test_settings_of_encoders_that_cannot_work_are_refused():
    with pytest.raises(RecipeError, match="skip = 3: must be 0 to 2, below the depth"):
        replace(CLIP, skip=3)
    with pytest.raises(RecipeError, match="width 16 with 3 heads"):
        replace(CLIP, heads=3)
    with pytest.raises(RecipeError, match="padding = 60: the vocabulary has 0 to 59"):
        replace(T5, padding=60)
    with pytest.raises(RecipeError, match="chunks = 2: T5 takes rows of any length; raise max_length"):
        T5.frame(2)
    with pytest.raises(RecipeError, match="T5 has no vector"):
        TextEncoder(build(T5), None, output="both")


def test_a_vocabulary_of_another_encoder_is_reported():
    small = TextEncoder(
        build(CLIPEncoderConfig(16, 1, 2, vocab_size=40, max_length=12, begin=38, end=39, padding=39)), clip_tokenizer()
    )
    with pytest.raises(ShapeError, match=r"token \d+: this encoder has 40"):
        small.encode(["a cat"])
    with pytest.raises(ShapeError, match="token -1: this encoder has 40"):
        small.tower(torch.tensor([[38, -1, 39]]), torch.ones(1, 3))


def test_a_missing_or_invalid_tokenizer_is_reported(tower):
    with pytest.raises(RecipeError, match="prompt: this encoder has no tokenizer yet"):
        TextEncoder(tower, None).encode(["a"])
    with pytest.raises(WeightsError, match=r"words.json: not a tokenizer that can be read"):
        FileTokenizer("{}", "words.json")


@pytest.mark.parametrize("config", [CLIP, T5])
def test_missing_libraries_are_named_with_what_to_install(monkeypatch, config):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = r"a text encoder needs {}, which is not installed: pip install 'unveil\[hf\]'"
    with pytest.raises(RecipeError, match=message.format("transformers")):
        build(config)
    with pytest.raises(RecipeError, match=message.format("tokenizers")):
        FileTokenizer("{}")
