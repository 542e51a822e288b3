"""CLIP's byte pairs: the published numbers, the cleaning, and what is missing."""

from __future__ import annotations

import sys

import pytest

from unveil.conditioning.clip_tokenizer import BPETokenizer, clean_text, clip_tokenizer, split_words
from unveil.errors import RecipeError, ShapeError

# Published numbers of some prompts
KNOWN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "an oil painting of a corgi": [550, 2870, 3086, 539, 320, 31320],
    "": [],
}


@pytest.mark.parametrize("prompt", KNOWN)
def test_prompts_have_their_published_numbers(prompt):
    assert clip_tokenizer().encode(prompt) == KNOWN[prompt]
    assert clip_tokenizer().decode(KNOWN[prompt]) == "".join(f"{word} " for word in prompt.split())


def test_the_vocabulary_is_whole_and_its_numbers_lead_back():
    vocabulary = clip_tokenizer()
    assert (len(vocabulary), vocabulary.begin, vocabulary.end) == (49408, 49406, 49407)
    assert len(set(vocabulary.pieces)) == 49408
    text = "caf\u00e9 \u5bcc\u58eb\u5c71 \U0001f642 12 o'clock, it's snake_case!?"
    assert vocabulary.decode(vocabulary.encode(text)).split() == list(split_words(clean_text(text)))


def test_a_special_token_written_out_is_that_token_but_not_inside_other_signs():
    begin = clip_tokenizer().begin
    assert clip_tokenizer().encode("<|startoftext|> <|endoftext|>") == [begin, begin + 1]
    assert begin not in clip_tokenizer().encode("!<|startoftext|>")


def test_words_are_letters_single_digits_signs_and_english_endings():
    assert list(split_words("we've 2 cats!? x1y '' <|endoftext|>")) == [
        "we", "'ve", "2", "cats", "!?", "x", "1", "y", "''", "<|endoftext|>"
    ]  # fmt: skip


def test_text_is_mended_and_html_is_resolved_twice():
    assert clean_text(" A&amp;amp;B \t \u201cQuote\u201d\n &lt;b&gt; ") == 'a&b "quote" <b>'
    assert clean_text("< &amp;lt;") == "< <"
    assert clean_text("caf\u00c3\u00a9") == "caf\u00e9"  # UTF-8 that was read as Latin-1


def test_merges_are_taken_by_rank():
    first = BPETokenizer([("a", "b"), ("ab", "c</w>")])
    second = BPETokenizer([("b", "c</w>"), ("ab", "c</w>")])
    assert first.encode("abc") == [513]
    assert [second.pieces[number] for number in second.encode("abc")] == ["a", "bc</w>"]


def test_every_occurrence_of_a_pair_is_merged_from_the_left():
    pairs = BPETokenizer([("a", "a"), ("aa", "aa"), ("aa", "b</w>")])
    assert [pairs.pieces[number] for number in pairs.encode("aaaaab")] == ["aaaa", "a", "b</w>"]


def test_a_number_beyond_the_vocabulary_is_reported():
    with pytest.raises(ShapeError, match=r"token 49408: the vocabulary has 0 to 49407"):
        clip_tokenizer().decode([320, 49408])


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(RecipeError, match=r"needs ftfy, which is not installed: pip install 'unveil\[hf\]'"):
        clip_tokenizer().encode("a cat")
