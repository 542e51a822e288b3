"""Pairs of sequences: what they say, and that the parts share nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unveil.data.tensor_dataset import is_held_out
from unveil.errors import DataError, RecipeError
from unveil.playground.scene_captions import SceneObject, chinese_caption, english_caption
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.text_pairs import (
    PairsConfig,
    ScenePairsConfig,
    TaskConfig,
    open_pairs,
)

FEW = TaskConfig(count=300, num_val=60)
SCENES = ScenePairsConfig(count=3000, num_val=300)


def test_tasks_are_done_right_at_every_length():
    pairs = [*open_pairs(FEW).pairs, *open_pairs(FEW, "held-out").pairs]
    lengths = set()
    for source, target in pairs:
        task, *letters = source.split()
        wanted = {"copy": letters, "reverse": letters[::-1], "sort": sorted(letters)}[task]
        assert target.split() == wanted
        lengths.add(len(letters))
    assert lengths == set(range(1, 13))
    assert {pair.source.split()[0] for pair in pairs[:3]} == {"copy", "reverse", "sort"}


def test_the_parts_share_no_sequence_whatever_the_seed():
    train = {pair.source for pair in open_pairs(replace(FEW, seed=5)).pairs}
    held_out = {pair.source for pair in open_pairs(FEW, "held-out").pairs}
    assert not train & held_out
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, held_out))


def test_more_pairs_begin_like_fewer():
    assert open_pairs(replace(FEW, count=40)).pairs == open_pairs(FEW).pairs[:40]
    assert open_pairs(FEW)[0] == {"source": open_pairs(FEW).pairs[0].source, "target": open_pairs(FEW).pairs[0].target}


def combination(english: str) -> frozenset[tuple[str, str]]:
    words = english.replace(",", "").split()
    return frozenset((words[i - 1], word) for i, word in enumerate(words) if word in KINDS)


def test_held_out_combinations_of_shapes_never_train():
    train, held_out = (open_pairs(SCENES, part).pairs for part in ("train", "held-out"))  # type: ignore[arg-type]
    assert (len(set(train)), len(set(held_out))) == (3000, 300)
    seen = {combination(pair.source) for pair in train}
    assert not seen & {combination(pair.source) for pair in held_out}
    # but each shape of each colour is known
    assert {one for scene in seen for one in scene} == {(colour, kind) for colour in COLOURS for kind in KINDS}


@pytest.mark.slow
def test_there_are_twenty_thousand_pairs():
    pairs = open_pairs(ScenePairsConfig()).pairs
    assert len(set(pairs)) >= 20_000
    assert len({pair.source for pair in pairs}) == len({pair.target for pair in pairs}) == len(set(pairs))


def test_both_languages_say_the_same():
    ring, cross = SceneObject("ring", "red", "small", 0.2, 0.5), SceneObject("cross", "blue", "large", 0.8, 0.4)
    small_red_ring = "\u4e00\u4e2a\u5c0f\u7684\u7ea2\u8272\u5706\u73af"
    large_blue_cross = "\u4e00\u4e2a\u5927\u7684\u84dd\u8272\u5341\u5b57"
    assert english_caption([ring, cross], relation=True) == "a small red ring to the left of a large blue cross"
    assert (
        chinese_caption([ring, cross], relation=True) == f"{small_red_ring}\u5728{large_blue_cross}\u7684\u5de6\u8fb9"
    )
    assert chinese_caption([ring]) == small_red_ring
    assert chinese_caption([ring, cross]) == f"{small_red_ring}\u548c{large_blue_cross}"
    assert chinese_caption([ring, cross, ring]) == f"{small_red_ring}\u3001{large_blue_cross}\u548c{small_red_ring}"
    there = open_pairs(replace(SCENES, count=5)).pairs
    back = open_pairs(replace(SCENES, count=5, direction="zh-en")).pairs
    assert [pair[::-1] for pair in back] == [tuple(pair) for pair in there]


def test_a_users_file(tmp_path):
    path = tmp_path / "pairs.tsv"
    odd = "\u2028\u0085\x0c"  # ends of lines for Python, and signs within a sentence
    path.write_text("".join(f"word{odd} {i}\t\u8bcd {i}\r\n" for i in range(100)) + "\n", "utf-8", newline="")
    train, held_out = (open_pairs(PairsConfig(str(path)), part).pairs for part in ("train", "held-out"))  # type: ignore[arg-type]
    assert len(train) + len(held_out) == 100
    assert 3 < len(held_out) < 25
    assert all(is_held_out(pair.source) for pair in held_out)
    assert (f"word{odd} 0", "\u8bcd 0") in {*train, *held_out}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ttwo\nthree\n", "line 2: 1 columns"),
        (b"one\t\n", "line 1: 2 columns"),
        (b"a\tb\tc\n", "3 columns"),
        (b"one\t" + b"x" * 10_001, "at most 10000 characters"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
        (b"", "none of them for the train part"),
    ],
)
def test_files_that_are_no_pairs(tmp_path, content: bytes, message: str):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_pairs(PairsConfig(str(path)))
    with pytest.raises(DataError, match="cannot be read"):
        open_pairs(PairsConfig(str(tmp_path / "none.tsv")))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TaskConfig(tasks=("sorted",)), "nearest: 'sort'"),  # type: ignore[arg-type]
        (lambda: TaskConfig(tasks=()), "at least 1 task"),
        (lambda: TaskConfig(symbols=27), "27 symbols"),
        (lambda: TaskConfig(min_length=5, max_length=4), "lengths 5 to 4"),
        (lambda: TaskConfig(count=0), "count 0"),
        (lambda: ScenePairsConfig(direction="en-cn"), "must be one of en-zh, zh-en"),  # type: ignore[arg-type]
        (lambda: ScenePairsConfig(seed=-1), "seed -1"),
    ],
)
def test_settings_that_cannot_work(build, message: str):
    with pytest.raises(RecipeError, match=message):
        build()


def test_more_pairs_than_there_are_is_an_error():
    config = TaskConfig(tasks=("sort",), symbols=4, max_length=1, num_val=4)
    assert not any(is_held_out(f"sort {letter}") for letter in "abcd")
    with pytest.raises(RecipeError, match="in 1,000 tries"):
        open_pairs(config, "held-out")
