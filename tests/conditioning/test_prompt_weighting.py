"""Prompts in rows: weights in brackets, limits, chunks."""

from __future__ import annotations

import pytest

from unveil.conditioning.prompt_weighting import PromptChunk, TokenLayout, chunk_prompt, parse_weights


class Letters:
    """A token for every letter, without spaces."""

    def encode(self, text):
        return [ord(letter) for letter in text if letter != " "]

    def decode(self, numbers):
        return "".join(map(chr, numbers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("a [cat]", [("a ", 1), ("cat", 1 / 1.1)]),
        ("((cat))", [("cat", 1.1 * 1.1)]),
        ("(a (cat:2) b:0.5)", [("a ", 0.5), ("cat", 1.0), (" b", 0.5)]),
        ("(cat:1)", [("cat", 1)]),
        ("a (cat:1.0) b", [("a cat b", 1)]),
        (r"a \(b\) \[c\] \\", [("a (b) [c] \\", 1)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("time: 12:30", [("time: 12:30", 1)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
        ("C:\\x", [("C:\\x", 1)]),
        ("", []),
    ],
)
def test_brackets_give_weights(text, expected):
    found = parse_weights(text)
    assert [span.text for span in found] == [text for text, _ in expected]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in expected])


def test_a_row_begins_ends_and_is_filled_up():
    laid = chunk_prompt([PromptChunk("ab"), PromptChunk("c", 1.5)], Letters(), TokenLayout(7, 1, 1, 2, 0))
    assert laid.numbers == [[1, 97, 98, 99, 2, 0, 0]]
    assert laid.weights == [[1, 1, 1, 1.5, 1, 1, 1]]
    assert laid.used == [[True] * 5 + [False] * 2]
    assert (laid.left_out, laid.lost) == ("", 0)


def test_what_does_not_fit_is_left_out_and_counted():
    full = chunk_prompt([PromptChunk("abcde")], Letters(), TokenLayout(7, 1, 1, 2, 0))
    assert full.lost == 0
    laid = chunk_prompt([PromptChunk("abcdef g")], Letters(), TokenLayout(7, 1, 1, 2, 0))
    assert laid.numbers == [[1, *map(ord, "abcde"), 2]]
    assert (laid.left_out, laid.lost) == ("fg", 2)


def test_further_rows_hold_what_one_does_not_and_short_prompts_have_them_too():
    frame = TokenLayout(5, 2, 1, 2, 0)
    assert chunk_prompt([PromptChunk("abcd")], Letters(), frame).numbers == [[1, 97, 98, 99, 2], [1, 100, 2, 0, 0]]
    assert chunk_prompt([PromptChunk("")], Letters(), frame).numbers == [[1, 2, 0, 0, 0]] * 2
    assert chunk_prompt([PromptChunk("abcdefgh")], Letters(), frame).lost == 2


def test_a_row_without_a_beginning_has_one_place_more():
    assert chunk_prompt([PromptChunk("abc")], Letters(), TokenLayout(4, 1, None, 2, 0)).numbers == [[97, 98, 99, 2]]
