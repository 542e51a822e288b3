"""Texts to numbers and back."""

from __future__ import annotations

import pytest

from unveil.errors import RecipeError, ShapeError
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN, Vocabulary, pad_sequences


def test_words_by_frequency_then_alphabet():
    words = Vocabulary.build(["a red ring, a ring.", "a blue ring"], "words")
    assert words.tokens == ("a", "ring", ",", ".", "blue", "red")
    assert len(words) == 10
    assert words.encode("a red cow") == [4, 9, UNKNOWN]
    assert words.decode([BEGIN, *words.encode("a red ring, a blue ring."), END, PADDING]) == "a red ring, a blue ring."
    assert words.split("don't stop") == ["don", "'", "t", "stop"]


@pytest.mark.parametrize("text", ["turns counter-clockwise.", "a blue-green-ish ring; slow", "- a ring"])
def test_words_are_put_together_as_they_were(text: str):
    words = Vocabulary.build([text], "words")
    assert words.decode(words.encode(text)) == text


def test_characters_keep_every_sign():
    text = "\u4e00\u4e2a\u7ea2 x"
    signs = Vocabulary.build([text], "characters")
    assert signs.decode(signs.encode(text)) == text
    assert signs.encode("y") == [UNKNOWN]
    assert Vocabulary.from_plain(signs.plain()) == signs


def test_terms_are_words_in_lower_case_and_chinese_characters_without_other_signs():
    sentence = (
        "A RED ring, \u4e00\u4e2a\u7ea2 ring2; \uff32\uff25\uff24!"  # the last are letters as wide as Chinese ones
    )
    terms = Vocabulary.build([sentence], "terms")
    assert terms.split(sentence) == ["a", "red", "ring", "\u4e00", "\u4e2a", "\u7ea2", "ring2", "red"]
    assert terms.tokens[0] == "red"


def test_a_limit_keeps_the_most_frequent():
    words = Vocabulary.build(["b b a c"], "words", limit=6)
    assert words.tokens == ("b", "a")


def test_padding_fills_up_to_the_longest():
    assert pad_sequences([[5, 6], [7], []]).tolist() == [[5, 6], [7, PADDING], [PADDING, PADDING]]


def test_what_cannot_be():
    with pytest.raises(RecipeError, match="nearest: 'words'"):
        Vocabulary("word", ())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="'a': is in the vocabulary twice"):
        Vocabulary("words", ("a", "b", "a"))
    with pytest.raises(ShapeError, match="has 0 to 4"):
        Vocabulary("words", ("a",)).decode([5])
