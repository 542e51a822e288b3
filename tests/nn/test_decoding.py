"""Decoding of a model whose every sequence can be enumerated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, ShapeError
from unveil.nn.decoding import Decoded, beam, greedy, sampled

WORDS, END, LIMIT = 3, 2, 4


class Table:
    """Logits that are a fixed function of the whole sequence so far, and of each row's own number."""

    def __init__(self, rows: int, words: int = WORDS, seed: int = 0) -> None:
        self.words, self.seed = words, seed
        self.seen: list[list[int]] = [[number] for number in range(rows)]
        self.widths: list[int] = []

    def next(self, tokens: Tensor) -> Tensor:
        self.widths.append(len(tokens))
        assert len(tokens) == len(self.seen)
        for seen, new in zip(self.seen, tokens.tolist(), strict=True):
            seen.extend(new)
        return torch.stack([self.logits(seen) for seen in self.seen])

    def logits(self, seen: list[int]) -> Tensor:
        seed = self.seed + sum((word + 1) * 7**place for place, word in enumerate(seen))
        logits = 2 * torch.randn(self.words, generator=torch.Generator().manual_seed(seed))
        return logits - 1.5 * (torch.arange(self.words) == END)  # so that sequences are worth going on with

    def select(self, rows: Tensor) -> None:
        self.seen = [list(self.seen[row]) for row in rows.tolist()]


def score(row: int, words: tuple[int, ...]) -> float:
    """The log-probability of a whole sequence after the start."""
    model, seen, total = Table(1), [row, 0], 0.0
    for word in words:
        total += float(model.logits(seen).double().log_softmax(0)[word])
        seen.append(word)
    return total


def every() -> list[tuple[int, ...]]:
    free = [word for word in range(WORDS) if word != END]
    return [(*words, END) for n in range(LIMIT) for words in itertools.product(free, repeat=n)]


START = torch.zeros(5, 1, dtype=torch.long)


def test_greedy_takes_the_likeliest_word():
    model = Table(5)
    found = greedy(model, START, end=END, limit=LIMIT)
    for row in range(5):
        seen, words = [row, 0], []
        while len(words) < LIMIT and (not words or words[-1] != END):
            words.append(int(Table(1).logits(seen + words).argmax()))
        assert found.tokens[row] == [word for word in words if word != END]
        assert bool(found.ended[row]) == (words[-1] == END)
        assert float(found.log_probability[row]) == pytest.approx(score(row, tuple(words)), abs=1e-9)
    assert model.widths[0] == 5
    assert sorted(model.widths, reverse=True) == model.widths
    assert model.widths[-1] < 5, "what has ended is not computed any more"


def test_beams_that_hold_everything_find_the_best():
    written = []
    for power in (0.0, 0.6, 2.0):
        found = beam(Table(12), START[:1].expand(12, 1), end=END, limit=LIMIT, beams=30, length_power=power)
        for row in range(12):
            scores = {words: score(row, words) for words in every()}
            best = max(scores, key=lambda words: scores[words] / ((5 + len(words)) / 6) ** power)
            assert found.tokens[row] == list(best[:-1])
            assert float(found.log_probability[row]) == pytest.approx(scores[best], abs=1e-9)
        written.append(found.tokens)
    assert written[0] != written[1] != written[2], "the power matters"
    assert {len(words) for words in written[2]} == {0, 1, 2, 3}


def test_a_beam_is_never_worse_than_greedy_and_keeps_rows_apart():
    few = beam(Table(5), START, end=END, limit=LIMIT, beams=2, length_power=0.0)
    for row in range(5):
        words = tuple(few.tokens[row]) + ((END,) if few.ended[row] else ())
        assert float(few.log_probability[row]) == pytest.approx(score(row, words), abs=1e-9)
    whole, one = greedy(Table(5), START, end=END, limit=LIMIT), beam(Table(5), START, end=END, limit=1, beams=1)
    assert (few.log_probability >= whole.log_probability - 1e-9)[few.ended & whole.ended].all()
    assert all(len(words) <= 1 for words in one.tokens)


class Endless(Table):
    """Never ends."""

    def logits(self, seen: list[int]) -> Tensor:
        return super().logits(seen).index_fill(0, torch.tensor([END]), -math.inf)


def test_the_limit_cuts_off_what_does_not_end():
    for found in (
        greedy(Endless(5), START, end=END, limit=3),
        beam(Endless(5), START, end=END, limit=3, beams=2),
        sampled(Endless(5), START, end=END, limit=3, streams=SampleRNG(0, range(5))),
    ):
        assert [len(words) for words in found.tokens] == [3] * 5
        assert not found.ended.any()
        assert found.log_probability.isfinite().all()


def test_draws_follow_the_probabilities():
    count = 4000
    model = Table(count)
    model.seen = [[3] for _ in range(count)]
    found = sampled(model, START[:1].expand(count, 1), end=END, limit=LIMIT, streams=SampleRNG(1, range(count)))
    for words in every()[:5]:
        share = sum(found.tokens[i] == list(words[:-1]) and bool(found.ended[i]) for i in range(count)) / count
        chance = math.exp(score(3, words))
        assert share == pytest.approx(chance, abs=4 * math.sqrt(chance / count) + 1e-3)


def draw(count: int, **settings: float) -> Decoded:
    streams = SampleRNG(1, range(count))
    return sampled(Table(count), START[:1].expand(count, 1), end=END, limit=LIMIT, streams=streams, **settings)  # type: ignore[arg-type]


def test_a_draw_does_not_depend_on_the_batch():
    assert draw(9).tokens[:4] == draw(4).tokens


def test_narrow_draws_are_greedy():
    wanted = greedy(Table(9), START[:1].expand(9, 1), end=END, limit=LIMIT).tokens
    for settings in ({"top": 1}, {"mass": 1e-6}, {"temperature": 1e-3}):
        assert draw(9, **settings).tokens == wanted
    assert draw(9).tokens != wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: greedy(Table(1), START[:1, :0], end=END, limit=3), "at least 1 for each"),
        (lambda: greedy(Table(1), START[:1], end=END, limit=0), "limit 0"),
        (lambda: draw(2, temperature=0), "temperature 0"),
        (lambda: draw(2, mass=1.5), "mass 1.5"),
        (lambda: draw(2, top=0), "top 0"),
        (lambda: sampled(Table(5), START, end=END, limit=3, streams=SampleRNG(0, range(4))), "4 streams for 5"),
        (lambda: beam(Table(5), START, end=END, limit=3, beams=0), "beams 0"),
        (lambda: beam(Table(5), START, end=END, limit=3, length_power=-1), "length_power -1"),
    ],
)
def test_settings_that_cannot_work(call, message: str):
    with pytest.raises((RecipeError, ShapeError), match=message):
        call()
