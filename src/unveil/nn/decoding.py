"""Decoding of next-token models: greedy, sampled, and beam search.

Letters of shapes: B sequences, V words of the vocabulary, K beams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, ShapeError


class NextToken(Protocol):
    """State of sequences that are decoded, such as `transformer.DecoderState`. It contains the tokens so far."""

    def next(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of the next token, after appending tokens (B, n) to the sequences."""
        ...

    def select(self, rows: Tensor) -> None:
        """Continue with the sequences of the given indices, in this order; a sequence may be selected several times."""
        ...


class Decoded(NamedTuple):
    """Continuation of each of B sequences.

    Attributes:
        tokens: New tokens of each sequence, without the start and without the end token.
        log_probability: Natural logarithm of the probability of the new tokens, the end token included, (B,) float64.
        ended: Flag (B,), False for a sequence that was cut off at the limit.
    """

    tokens: list[list[int]]
    log_probability: Tensor
    ended: Tensor


# log-probabilities (B, V) of sequences `rows` (B,) at a step -> a token for each (B,)
Choose = Callable[[Tensor, Tensor, int], Tensor]


@torch.no_grad()
def greedy(model: NextToken, start: Tensor, *, end: int, limit: int) -> Decoded:
    """Decode greedily: the likeliest token at each position after start (B, n), until `end` or `limit` tokens.

    Raises:
        ShapeError, RecipeError: `start` is not (B, n) with n at least 1, or `limit` is below 1.
    """
    return _token_by_token(model, start, end, limit, lambda logp, rows, step: logp.argmax(dim=1))


@torch.no_grad()
def sampled(
    model: NextToken,
    start: Tensor,
    *,
    end: int,
    limit: int,
    streams: SampleRNG,
    temperature: float = 1.0,
    top: int | None = None,
    mass: float = 1.0,
) -> Decoded:
    """Sample tokens with the model's probabilities, after start (B, n), until `end` or `limit` tokens.

    Args:
        streams: Random streams, one per sequence; the draws do not depend on the other sequences of the batch.
        temperature: Divisor of the logits; values below 1 favour likely tokens.
        top: Number of likeliest tokens that are sampled from; None: all.
        mass: Sum of probabilities of the tokens that are sampled from, likeliest first.

    Returns:
        Sequences with the log-probabilities that the model assigns to them at temperature 1.

    Raises:
        ShapeError, RecipeError: A condition of `greedy` is violated, or a setting is outside its range.

    Source: mass: Holtzman et al. 2019, section 3.1 (arXiv:1904.09751).
    """
    if not temperature > 0 or not 0 < mass <= 1 or (top is not None and top < 1):
        raise RecipeError(
            f"temperature {temperature}, top {top}, mass {mass}: must be above 0, at least 1, and in (0, 1]"
        )
    if len(streams.samples) != len(start):
        raise ShapeError(f"{len(streams.samples)} streams for {len(start)} sequences: must be as many")

    def choose(logp: Tensor, rows: Tensor, step: int) -> Tensor:
        likely, order = torch.softmax(logp.double() / temperature, dim=1).sort(dim=1, descending=True, stable=True)
        before = likely.cumsum(dim=1) - likely  # the mass of all likelier tokens
        likely = likely.masked_fill(before >= mass, 0)
        if top is not None:
            likely[:, top:] = 0
        reached = likely.cumsum(dim=1)
        at = streams.uniform(step)[rows, None] * reached[:, -1:]
        place = (reached <= at).sum(dim=1, keepdim=True).clamp(max=logp.shape[1] - 1)
        return order.gather(1, place)[:, 0]

    return _token_by_token(model, start, end, limit, choose)


@torch.no_grad()
def beam(
    model: NextToken, start: Tensor, *, end: int, limit: int, beams: int = 4, length_power: float = 0.6
) -> Decoded:
    """Beam search with `beams` beams: the best sequence found after start (B, n).

    Sequences are ranked by log-probability / ((5 + length) / 6)^length_power; the length includes the end token.

    Args:
        length_power: Exponent of the length; 0 favours short sequences, 1 nearly compares the mean per token.

    Raises:
        ShapeError, RecipeError: A condition of `greedy` is violated, or a setting is outside its range.

    Source: Wu et al. 2016, eq. 14 without coverage (arXiv:1609.08144); 4 and 0.6: Vaswani et al. 2017, section 6.1.
    """
    _check(start, limit)
    if beams < 1 or length_power < 0:
        raise RecipeError(f"beams {beams}, length_power {length_power}: must be at least 1, and at least 0")
    search = _Search(len(start), beams, end, [((5 + n) / 6) ** length_power for n in range(1, limit + 1)])
    rows = torch.arange(len(start))
    logp = _log_softmax(model.next(start))  # (B, V)
    model.select(rows.repeat_interleave(beams).to(start.device))
    live = torch.full((len(start), beams), -math.inf, dtype=torch.float64)
    live[:, 0] = 0  # the beams begin as one
    history = torch.empty(len(start), beams, 0, dtype=torch.long)
    logp = logp.repeat_interleave(beams, dim=0)
    for step in range(limit):
        live, parents, tokens = search.step(step, rows, live, logp.view(len(rows), beams, -1), history)
        history = torch.cat([history.gather(1, parents[..., None].expand_as(history)), tokens[..., None]], dim=2)
        open_rows = search.open(rows, live)
        rows, live, history = rows[open_rows], live[open_rows], history[open_rows]
        if not len(rows) or step == limit - 1:
            break
        model.select((open_rows[:, None] * beams + parents[open_rows]).flatten().to(start.device))
        logp = _log_softmax(model.next(history[:, :, -1].reshape(-1, 1).to(start.device)))
    return search.result(rows, live, history)


class _Search:
    """State of a beam search: the best finished sequence of each row."""

    def __init__(self, count: int, beams: int, end: int, norms: list[float]) -> None:
        self.beams, self.end, self.norms = beams, end, norms
        self.score = [-math.inf] * count
        self.logp = [-math.inf] * count
        self.tokens: list[list[int]] = [[] for _ in range(count)]

    def step(
        self, step: int, rows: Tensor, live: Tensor, logp: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, parents and last tokens (B, K) of the next beams; finished sequences are recorded."""
        words = logp.shape[2]
        # as many candidates again as beams: should all the best end, there are others to go on with
        best, place = (live[..., None] + logp).flatten(1).topk(min(2 * self.beams, self.beams * words), dim=1)
        parents, tokens = place // words, place % words
        ended = (tokens == self.end) & best.isfinite()
        for i, j in ended.nonzero().tolist():
            row, score = int(rows[i]), float(best[i, j]) / self.norms[step]
            if score > self.score[row]:
                self.score[row], self.logp[row] = score, float(best[i, j])
                self.tokens[row] = history[i, parents[i, j]].tolist()
        live, places = best.masked_fill(tokens == self.end, -math.inf).topk(self.beams, dim=1)
        return live, parents.gather(1, places), tokens.gather(1, places)

    def open(self, rows: Tensor, live: Tensor) -> Tensor:
        """Positions in `rows` of the sequences of which a beam may still exceed the best finished sequence."""
        # log-probabilities only fall, and no norm is larger than the last one
        hope = live[:, 0] / self.norms[-1]
        best = torch.tensor([self.score[row] for row in rows.tolist()], dtype=hope.dtype)
        return ((hope > best) & hope.isfinite()).nonzero()[:, 0]

    def result(self, rows: Tensor, live: Tensor, history: Tensor) -> Decoded:
        ended = torch.tensor([score > -math.inf for score in self.score])
        for i, row in enumerate(rows.tolist()):
            if not ended[row]:  # the limit came first: the likeliest beam, cut off
                self.tokens[row], self.logp[row] = history[i, 0].tolist(), float(live[i, 0])
        return Decoded(self.tokens, torch.tensor(self.logp, dtype=torch.float64), ended)


def _token_by_token(model: NextToken, start: Tensor, end: int, limit: int, choose: Choose) -> Decoded:
    """Decode token by token; finished sequences leave the batch."""
    _check(start, limit)
    sequences: list[list[int]] = [[] for _ in range(len(start))]
    total = torch.zeros(len(start), dtype=torch.float64)
    ended = torch.zeros(len(start), dtype=torch.bool)
    rows, tokens = torch.arange(len(start)), start
    for step in range(limit):
        logp = _log_softmax(model.next(tokens))
        chosen = choose(logp, rows, step)
        total[rows] += logp.gather(1, chosen[:, None])[:, 0]
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            if token == end:
                ended[row] = True
            else:
                sequences[row].append(token)
        going = (chosen != end).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            model.select(going.to(start.device))
        rows, tokens = rows[going], chosen[going, None].to(start.device)
    return Decoded(sequences, total, ended)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.cpu().double(), dim=1)  # the books are kept on the CPU, whatever the device


def _check(start: Tensor, limit: int) -> None:
    if start.ndim != 2 or not start.shape[1]:
        raise ShapeError(f"start {tuple(start.shape)}: must be tokens (B, n), at least 1 for each sequence")
    if limit < 1:
        raise RecipeError(f"limit {limit}: at least 1 token")
