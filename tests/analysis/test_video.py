"""The study of clips on answers that are known: real clips, frozen ones, cross-fades, in the place of a model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.generation.tiny import tiny_clips
from unveil.analysis import video_benchmark as study
from unveil.analysis.video_context_tasks import BETWEEN, ENDS, OPEN
from unveil.analysis.video_edit_tasks import DOUBLE_SIZE
from unveil.analysis.video_study import (
    MOVING,
    StudyContext,
    StudyResult,
    VideoTaskSettings,
    caption_of,
    object_of,
    stack_videos,
)
from unveil.errors import RecipeError
from unveil.evaluate.findings import Finding
from unveil.generation.long_video import VideoSpec
from unveil.playground import temporal_consistency
from unveil.playground.world.rendering import TONES
from unveil.types import Condition

COUNT = 6


class Known(StudyContext):
    """A bench whose videos come from a function of the number of the request and the prompts."""

    def __init__(self, answer: Callable[[int, Sequence[str]], Tensor], **changes: Any) -> None:
        super().__init__(tiny_clips(), VideoTaskSettings(count=COUNT, strengths=(0.5, 0.7), **changes))
        self.answer, self.requests = answer, 0

    def generate(self, texts: Sequence[str], *_: Any, **__: Any) -> Tensor:
        self.requests += 1
        return self.answer(self.requests - 1, texts)

    generate_long = generate


def rows(found: StudyResult) -> dict[str, Finding]:
    return {row.name: row for row in found.findings}


def chosen(motions: Sequence[str] | None = None) -> Tensor:
    bench = Known(lambda *_: torch.empty(0))
    return stack_videos(bench.items(motions) if motions else bench.items())


def test_texts_say_what_is_true_and_what_is_to_be_changed():
    for item in Known(lambda *_: torch.empty(0)).items():
        own, ground = object_of(item), item["attributes"]["ground"]
        words = caption_of(item)
        assert all(own[name] in words for name in ("colour", "shape", "size"))
        assert f"on {ground}" in words
        assert "on purple" in caption_of(item, ground="purple")
        assert "white" in caption_of(item, colour="white")


def test_pairs_are_of_one_ground_and_two_colours_and_no_clip_is_there_twice():
    pairs = Known(lambda *_: torch.empty(0)).pairs()
    assert len(pairs) == COUNT
    for one, other in pairs:
        assert one["attributes"]["ground"] == other["attributes"]["ground"]
        assert object_of(one)["colour"] != object_of(other)["colour"]
        assert {object_of(one)["motion"], object_of(other)["motion"]} <= set(MOVING)
    every = [item["pixels"] for pair in pairs for item in pair]
    assert not any(torch.equal(a, b) for n, a in enumerate(every) for b in every[n + 1 :])


def test_image_to_video_scores_real_videos_high_and_frozen_ones_low():
    real = chosen()
    good = rows(study.TASKS["image"](Known(lambda *_: real)))
    assert good["colour kept"].value == good["colour kept"].ceiling == 1
    assert good["motion as in the prompt"].value == good["motion as in the prompt"].ceiling
    assert good["the image is reproduced to the bit"].value == 1
    still = real[:, :, :1].repeat(1, 1, 16, 1, 1)
    frozen = rows(study.TASKS["image"](Known(lambda *_: still)))
    assert frozen["colour kept"].met
    assert (
        frozen["motion as in the prompt"].value
        < 0.5
        == frozen["motion as in the prompt"].baselines["freeze"] + (0.5 - frozen["motion as in the prompt"].value)
    )
    other = rows(study.TASKS["image"](Known(lambda *_: real.roll(1, 0))))
    assert other["the image is reproduced to the bit"].value == 0
    assert not other["colour, shape and motion"].value > 0.3


def test_extensions_are_measured_on_what_was_made_against_freezing():
    real = chosen(MOVING)
    true = rows(study.TASKS["extend"](Known(lambda *_: real)))
    for way in ("forward", "backward"):
        row = true[f"{way}: position error over that of freezing"]
        assert row.value < 0.02
        assert row.met
        assert row.ceiling is not None
        assert row.ceiling < 0.15
        assert true[f"{way}: colour and shape kept"].value == 1

    def frozen(number: int, _: Sequence[str]) -> Tensor:
        ahead = torch.cat([real[:, :, :8], real[:, :, 7:8].repeat(1, 1, 8, 1, 1)], dim=2)
        back = torch.cat([real[:, :, 8:9].repeat(1, 1, 8, 1, 1), real[:, :, 8:]], dim=2)
        return back if number else ahead

    still = rows(study.TASKS["extend"](Known(frozen)))
    for way in ("forward", "backward"):
        row = still[f"{way}: position error over that of freezing"]
        assert row.value == pytest.approx(1, abs=0.05)
        assert not row.met
        assert still[f"{way}: position error"].value > 1


def test_a_circle_has_no_seam_and_a_clip_that_begins_again_has_one():
    real = chosen(("bounce", "orbit"))
    there_and_back = torch.cat([real[:, :, :8], real[:, :, 1:8].flip(2), real[:, :, :1]], dim=2)

    def closing(number: int, _: Sequence[str]) -> Tensor:
        if number == 0:
            return there_and_back
        part = real[:, :, :OPEN]
        held = part[:, :, -1:].repeat(1, 1, BETWEEN, 1, 1)
        return torch.cat([part[:, :, -ENDS:], held, part[:, :, :ENDS]], dim=2) if number == 2 else real

    found = rows(study.TASKS["loop"](Known(closing)))
    ring, bridge = (row for name, row in found.items() if "over the median step" in name)
    assert ring.value < 1.01
    assert ring.met
    assert ring.ceiling is not None
    assert ring.ceiling < 1.6
    assert ring.baselines["same model, no ring"] == ring.baselines["real video again"]
    cut = bridge.baselines["hard cut"]
    assert cut > 3
    assert bridge.value == pytest.approx(cut), "standing still and then jumping is a cut, a little later"
    assert not bridge.met
    whole = torch.cat([real[:, :, OPEN - ENDS :], real[:, :, :2], real[:, :, :ENDS]], dim=2)
    goes_on = rows(study.TASKS["loop"](Known(lambda number, _: whole if number == 2 else real)))
    way = goes_on["bridge: largest step of the closing frames over the median step"]
    assert way.value < cut / 2


@pytest.mark.parametrize("made", ["nothing", "still", "noise"])
def test_what_does_not_go_round_is_no_ring(made):
    real = chosen(("bounce", "orbit"))
    clips = {
        "nothing": torch.zeros_like(real),
        "still": real[:, :, :1].expand_as(real),
        "noise": torch.randint(0, 256, real.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
    }[made]
    found = rows(study.TASKS["loop"](Known(lambda number, _: clips if number == 0 else real)))
    ring = found["ring: step at the seam over the median step"]
    assert not ring.met
    assert ring.value >= ring.baselines["a frozen frame"] > 3
    assert found["ring: videos whose seam is within the bar"].value < 0.1


def test_cuts_and_fades_connect_as_the_table_says():
    pairs = Known(lambda *_: torch.empty(0)).pairs()
    first, last = (stack_videos([pair[side] for pair in pairs]) for side in (0, 1))

    def cut(number: int, _: Sequence[str]) -> Tensor:
        parts = (first[:, :, :8], last[:, :, 8:]) if number else (first[:, :, -ENDS:], last[:, :, :ENDS])
        if number:
            return torch.cat(parts, dim=2)
        return torch.cat([parts[0], first[:, :, -1:].repeat(1, 1, BETWEEN, 1, 1), parts[1]], dim=2)

    found = rows(study.TASKS["connect"](Known(cut)))
    for name in ("bridge", "blend"):
        assert found[f"{name}: ends equal the conditioning frames to the bit"].value == 1
        change = found[f"{name}: largest change between frames over the median change"]
        assert change.value > 2
        assert not change.met
        assert change.ceiling is not None
        assert change.ceiling < 1.2
        assert change.baselines["cross-fade"] < change.baselines["hard cut"] or name == "bridge"
        things = found[f"{name}: frames between with one object"]
        assert things.baselines["cross-fade"] < things.value == 1
    wrong = rows(study.TASKS["connect"](Known(lambda number, _: cut(number, _).flip(0))))
    assert wrong["bridge: ends equal the conditioning frames to the bit"].value < 1


def test_an_edit_that_changes_nothing_keeps_all_and_one_that_recolours_applies():
    real = chosen(MOVING)
    same = rows(study.TASKS["edit"](Known(lambda *_: real)))
    assert same["new colour"].value == 0
    assert same["shape kept"].value == same["shape kept"].ceiling
    assert same["background kept"].value == 1
    assert same["position error"].value == 0
    assert same["new colour falls by, from strength to strength"].value == 0

    def grounded(number: int, _: Sequence[str]) -> Tensor:
        ahead = torch.stack([temporal_consistency.object_mask(clip, 0) for clip in real])
        items = Known(lambda *_: torch.empty(0)).items(MOVING)
        names = list(TONES)
        tones = [TONES[names[(names.index(one["attributes"]["ground"]) + 2) % len(names)]] for one in items]
        new = torch.tensor(tones, dtype=torch.uint8).view(-1, 3, 1, 1, 1)
        return torch.where(ahead, real, new) if number else real

    applied = rows(study.TASKS["ground"](Known(grounded)))
    assert applied["new background"].value == 1
    assert applied["new background"].met
    assert applied["colour kept"].value > 0.8
    fallen = rows(study.TASKS["ground"](Known(lambda number, texts: grounded(1 - number, texts))))
    row = fallen["new background falls by, from strength to strength"]
    assert row.value == 1
    assert not row.met


def test_other_sizes_have_their_own_videos_and_prompts():
    sizes = ((12, 24, 48), (1, 32, 32))
    bench = Known(lambda *_: torch.empty(0), sizes=sizes)
    for size in (*sizes, DOUBLE_SIZE):
        items = bench.items_of_size(size)
        assert len(items) == COUNT
        assert all(tuple(item["pixels"].shape) == (3, *size) for item in items)
        assert not any(item["unseen"] for item in items)
    answers = [stack_videos(bench.items_of_size(size)) for size in sizes]
    found = rows(study.TASKS["sizes"](Known(lambda number, _: answers[number], sizes=sizes)))
    assert found["12 frames of 48x24: colour, shape and motion"].value > 0.8
    assert found["12 frames of 48x24: one object in every frame"].value == 1
    assert found["images of 32x32: colour and shape"].value > 0.8
    fine = stack_videos(bench.items_of_size(DOUBLE_SIZE))
    tiled = torch.nn.functional.interpolate(fine.flatten(0, 1).float(), scale_factor=0.5).to(torch.uint8)
    tiled = tiled.view(COUNT, 3, 16, 32, 32).repeat(1, 1, 1, 2, 2)
    found = rows(study.TASKS["twice"](Known(lambda number, _: tiled if number else fine)))
    assert found["positions scaled: one object in every frame"].met
    assert found["positions unchanged: one object in every frame"].value == 0, "four instead of one"


def test_places_of_a_finer_grid_lie_in_the_trained_one(monkeypatch: pytest.MonkeyPatch):
    model, conditions = tiny_clips(), list[Condition]()
    network: Any = model.denoiser.network
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda x, t, c: conditions.append(c) or forward(x, t, c))
    bench = StudyContext(model, VideoTaskSettings(count=2))
    frames, height, width = model.shape[1:]
    shot = VideoSpec(frames, (2 * height, 2 * width), window=frames, spacing=0.5)
    bench.generate_long(["a red circle", "a blue square"], lambda rows: shot)
    places = conditions[0].positions
    assert places is not None
    assert places[0].tolist() == [[0, -0.25, -0.25], [1, 0.5, 0.5]]
    # the mean place of the finer grid is that of the model's own
    assert np.mean([-0.25 + 0.5 * n for n in range(8)]) == np.mean(range(4))


def test_settings_and_models_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="task 'extnd': must be one of image, extend"):
        study.study_video(tiny_clips(), VideoTaskSettings(count=2, only=("extnd",)))
    with pytest.raises(RecipeError, match="strengths"):
        VideoTaskSettings(strengths=(0.5, 0.4), strength=0.5)
    with pytest.raises(RecipeError, match="at least 2 videos"):
        VideoTaskSettings(count=1)
    with pytest.raises(RecipeError, match="choose a smaller count"):
        Known(lambda *_: torch.empty(0)).items(("orbit",), 500)
