"""Kinds of prompts: real clips are right by every kind, others are not, and a study of a model says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unveil import load
from unveil.analysis.pages import prompts_page
from unveil.analysis.prompt_benchmark import (
    KINDS,
    NEGATION,
    PromptBenchmarkSettings,
    items_of,
    prompt_of,
    study_kind,
    study_negation,
    study_prompts,
)
from unveil.analysis.video_study import StudyContext
from unveil.errors import RecipeError
from unveil.playground.caption_parser import parse, unparsed
from unveil.playground.shapes import COLOURS

COUNT = 12


def bench(made=None, expand=True):
    """What clips are chosen for: the score world's size and length."""
    found = StudyContext(SimpleNamespace(shape=(3, 16, 32, 32)), PromptBenchmarkSettings(count=COUNT, expand=expand))
    if made is not None:
        found.generate = made
    return found


@pytest.mark.parametrize("name", KINDS)
def test_real_clips_are_right_and_others_are_not(name):
    kind = KINDS[name]
    items = items_of(bench(), kind)
    assert len(items) == COUNT
    right = [kind.is_correct(item, item["pixels"]) for item in items]
    assert sum(right) >= COUNT - 1
    others = [kind.is_correct(item, items[n - 5]["pixels"]) for n, item in enumerate(items)]
    assert sum(others) <= 0.75 * COUNT
    assert not kind.is_correct(items[0], torch.zeros(3, 16, 32, 32, dtype=torch.uint8)) or name == "ground"


def test_every_number_of_objects_is_equally_frequent_and_an_extra_one_is_detected():
    kind = KINDS["count"]
    items = items_of(bench(), kind)
    counts = [len(item["attributes"]["objects"]) for item in items]
    assert [counts.count(number) for number in (1, 2, 3)] == [COUNT // 3] * 3
    item = items[2]
    clip = item["pixels"].clone()
    still = (clip == clip[:, :1, :1, :1]).all(0).all(0)  # where the ground is in every frame
    place = next((y, x) for y in range(24) for x in range(24) if still[y : y + 8, x : x + 8].all())
    unused = set(COLOURS) - {one["colour"] for one in item["attributes"]["objects"]}
    colour = torch.tensor(COLOURS[min(unused)], dtype=torch.uint8)
    clip[:, :, place[0] + 1 : place[0] + 7, place[1] + 1 : place[1] + 7] = colour[:, None, None, None]
    assert kind.is_correct(item, item["pixels"])
    assert not kind.is_correct(item, clip)
    assert KINDS["long"].is_correct(item, item["pixels"])
    assert not KINDS["long"].is_correct(item, clip)


@pytest.mark.parametrize("name", KINDS)
def test_prompts_state_the_attributes_of_their_items(name):
    kind = KINDS[name]
    for number, item in enumerate(items_of(bench(), kind)):
        text = prompt_of(item, kind, number)
        assert not unparsed(text), text
        parsed = parse(text)["objects"]
        wanted = item["attributes"]["objects"]
        assert [one["colour"] for one in parsed] == [one["colour"] for one in wanted]
        assert [one["shape"] for one in parsed] == [one["shape"] for one in wanted]
        assert text.isascii() == (kind.language == "en")
        assert item["unseen"] == (name == "rare")


def test_a_kind_is_scored_by_what_is_made():
    kind, items = KINDS["colour"], items_of(bench(), KINDS["colour"])
    real = torch.stack([item["pixels"] for item in items])
    half = torch.where(torch.arange(COUNT).view(-1, 1, 1, 1, 1) < COUNT // 2, real, torch.zeros_like(real))
    prompts = []

    def made(texts, **how):
        prompts.append(texts)
        return half

    found = study_kind(kind, bench(made=made))
    plain, expanded = found.findings
    assert (plain.value, plain.ceiling) == (0.5, 1.0)
    others = [items[n - by]["attributes"]["objects"][0]["colour"] for by in (1, 2, 3, 4) for n in range(COUNT)]
    alike = [one == items[n % COUNT]["attributes"]["objects"][0]["colour"] for n, one in enumerate(others)]
    assert plain.baselines["others"] == pytest.approx(sum(alike) / len(alike))
    assert expanded.name == "the colour, expanded by the rules"
    assert all("camera static" in text for text in prompts[1])
    assert not any("camera static" in text for text in prompts[0])
    assert len(study_kind(KINDS["position"], bench(made=made)).findings) == 1  # dense already
    assert len(study_kind(kind, bench(made=made, expand=False)).findings) == 1


def test_negation_names_the_colour_that_a_video_has_without_it():
    negatives: list[list[str]] = []

    def made(texts, first=0, negative=None):
        assert not any(f" {colour} " in f" {text} " for text in texts for colour in COLOURS)
        items = items_of(bench(), KINDS["colour"])  # some clips of all colours
        if negative is None:
            return torch.stack([items[n - (first > 0)]["pixels"] for n in range(COUNT)])
        negatives.append(negative)
        obeyed = [n for n, item in enumerate(items) if item["attributes"]["objects"][0]["colour"] != negative[0]]
        return torch.stack([items[obeyed[0] if n == 0 else n]["pixels"] for n in range(COUNT)])

    items = items_of(bench(), KINDS["colour"])
    colours = [item["attributes"]["objects"][0]["colour"] for item in items]
    (row,) = study_negation(bench(made=made)).findings
    assert negatives == [colours]
    assert row.value == pytest.approx(1 / COUNT)  # the first alone has another colour than the one named
    differ = sum(one != colours[n - 1] for n, one in enumerate(colours))
    assert row.baselines["other noise, no negative prompt"] == pytest.approx(differ / COUNT)


@pytest.mark.slow
def test_a_study_of_a_model_has_a_page(tmp_path):
    model = load("playground-video")
    settings = PromptBenchmarkSettings(count=2, sampling={"steps": 1}, only=("colour", "several", NEGATION))
    study = study_prompts(model, settings)
    record = {"model": {"name": "tiny"}, "about": {}, **study.record()}
    assert list(record["tasks"]) == ["colour", "several", NEGATION]
    page = prompts_page(study, record)
    assert "Prompts that tiny follows" in page
    assert page.count("data:image/webp") >= 3
    assert "<h2>Bars</h2>" not in page


def test_kinds_that_need_another_video_size_are_reported_before_sampling():
    small = SimpleNamespace(shape=(3, 8, 16, 16), conditioners={"prompt": None})
    with pytest.raises(RecipeError, match=r"only 0 such videos of 16x16x8, objects \(3,\)"):
        study_prompts(small, PromptBenchmarkSettings(only=("colour", "long")))


def test_what_cannot_be():
    with pytest.raises(RecipeError, match=r"task 'colours': must be one of colour, .*nearest: 'colour'"):
        study_prompts(load("playground-video"), PromptBenchmarkSettings(only=("colours",)))
    with pytest.raises(RecipeError, match="count = 1"):
        PromptBenchmarkSettings(count=1)
    with pytest.raises(RecipeError, match="needs a text-to-video model"):
        study_prompts(load("ddpm-digits"), PromptBenchmarkSettings())
