"""The claims about diffusion transformers: shared settings of their variants, stored curves, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy import stats
from torch import Tensor

from unveil.analysis.metrics import (
    interpolated,
    log2_mean,
    permutation_p_value,
    rank_correlation,
    rank_correlation_within,
)
from unveil.data.digits import digits
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.verdict import Comparison, overall
from unveil.io.console import Console
from unveil.reproduce import training_history as courses
from unveil.reproduce.claim_page import page, plot_curves
from unveil.reproduce.claims import dit
from unveil.reproduce.experiment import QUICK, Curve, ExperimentContext, ExperimentResults, Scale
from unveil.reproduce.fidelity import Fidelity, ScoredSamples
from unveil.reproduce.registry import get_claim
from unveil.reproduce.results_json import record_of
from unveil.reproduce.training_history import (
    RecipeVariant,
    TrainingHistory,
    cost_of,
    cycle_labels,
    eval_steps,
    init_recipe_model,
    train_and_track,
    train_schedule,
)

QUIET = Console(quiet=True)
WHOLE = replace(QUICK, samples=70, quick=False)
PLAIN = dit.DESIGNS["adaLN"]


@cache
def cost(variant: RecipeVariant) -> int:
    return cost_of(variant.recipe_config(quick=False))


# ---------------------------------------------------------------------- arms of a recipe


def weights(variant: RecipeVariant, seed: int = 0) -> dict[str, Tensor]:
    return dict(init_recipe_model(variant, seed, quick=True).named_parameters())


def test_designs_start_from_the_same_weights_wherever_these_have_the_same_size():
    zero = weights(dit.DESIGNS[dit.ZERO])
    for name, variant in dit.DESIGNS.items():
        if name == dit.ZERO:
            continue
        other = weights(variant)
        assert len(other) > 20
        inner = "plain.own" if name in ("in-context", "cross-attention") else "attention"
        block = "denoiser.network.blocks.1"
        mlp = f"{block}.plain.mlp" if inner == "plain.own" else f"{block}.mlp"
        pairs = [(key, key) for key in zero if key.startswith(("denoiser.network.patches", "denoiser.network.time"))]
        pairs += [(key, key.replace(f"{block}.attention", f"{block}.{inner}")) for key in zero if "1.attention" in key]
        pairs += [(key, key.replace(f"{block}.mlp", mlp)) for key in zero if f"{block}.mlp" in key]
        pairs.append(("conditioners.label.table.weight", "conditioners.label.table.weight"))
        assert len(pairs) > 8
        for one, two in pairs:
            assert torch.equal(zero[one], other[two]), (name, one)
    modulation = "denoiser.network.blocks.0.modulation.weight"
    assert not zero[modulation].any()
    assert weights(PLAIN)[modulation].any()  # what differs is not shared
    assert not torch.equal(
        zero["denoiser.network.patches.weight"], weights(PLAIN, 1)["denoiser.network.patches.weight"]
    )


def test_networks_of_one_size_share_their_blocks_whatever_the_patch():
    coarse, fine = (weights(dit.network_of("S", patch)) for patch in (4, 1))
    blocks = [key for key in coarse if "blocks" in key]
    assert blocks
    assert all(torch.equal(coarse[key], fine[key]) for key in blocks)
    assert coarse["denoiser.network.patches.weight"].shape != fine["denoiser.network.patches.weight"].shape


def test_flow_and_ddpm_start_from_equal_networks():
    one, two = weights(dit.DESIGNS[dit.ZERO]), weights(dit.FLOW)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one.keys() == two.keys()


def test_the_studies_train_as_their_recipes_say():
    for variant, points in ((dit.DESIGNS[dit.ZERO], [300, 600, 900, 1200, 1500]), (dit.network_of("XL", 1), None)):
        recipe = variant.recipe_config(quick=False)
        assert eval_steps(recipe) == (points or [400, 800, 1200, 1600, 2000])
        assert train_schedule(recipe).steps == recipe.train.steps
        assert recipe.evaluate.samples == 450
    every = replace(dit.network_of("S", 2), changes="train.sample_every=800").recipe_config(quick=False)
    assert eval_steps(every) == [800, 1600, 2000]
    with pytest.raises(RecipeError, match="trains no diffusion model"):
        RecipeVariant("vit-fashion").recipe_config(quick=True)


def test_sizes_and_patches_cost_what_they_should():
    costs = {key: cost(dit.network_of(*key)) for key in [("S", 2), ("S", 1), ("B", 2), ("XL", 1)]}
    assert 4 < costs["S", 1] / costs["S", 2] < 5  # four times the tokens, and attention between them
    assert 3.5 < costs["B", 2] / costs["S", 2] < 4  # twice as wide
    assert costs["XL", 1] == max(costs.values())


def test_a_course_is_kept_and_found_again(tmp_path: Path):
    variant = dit.network_of("S", 4)
    first = train_and_track(variant, True, 3, 12, tmp_path)
    again = train_and_track(variant, True, 3, 12, tmp_path)
    assert (first.cached, again.cached) == (False, True)
    assert first.steps == again.steps == [5, 10]
    assert first.pixels.shape == (2, 12, 1, 8, 8)
    assert first.losses == again.losses
    assert first.losses[1] < first.losses[0]
    assert torch.equal(first.pixels, again.pixels)
    assert again.cpu_seconds == pytest.approx(first.cpu_seconds, abs=0.01)
    for one, two in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    labels = cycle_labels(again.model, 12)
    assert labels == {"label": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]}
    drawn = again.model.generate(cond=labels, count=12, seed=3)
    assert torch.equal(courses.to_pixels(drawn), first.pixels[-1])  # the last point is what the model draws
    assert not train_and_track(variant, True, 4, 12, tmp_path).cached
    assert len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert not train_and_track(variant, True, 3, 12, tmp_path).cached


# ---------------------------------------------------------------------- rank correlations and bars


@pytest.mark.parametrize(
    "y", [[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1], [2.0, 2, 1, 7, 7], [0.3, -1, 5, 5, 2], [1.0, 1, 1, 1, 2]]
)
def test_rank_correlation_is_scipys(y: list[float]):
    x = [0.1, 1.0, 10.0, 10.0, 1000.0]
    assert rank_correlation(x, y) == pytest.approx(cast(Any, stats.spearmanr(x, y)).statistic, abs=1e-12)


def test_rank_correlation_of_a_constant_and_of_nonsense():
    assert rank_correlation([1, 2, 3], [4.0, 4.0, 4.0]) == 0
    with pytest.raises(RecipeError, match="equal numbers of both"):
        rank_correlation([1, 2, 3], [1, 2])
    with pytest.raises(NonFinite, match="a measure that is not finite"):
        rank_correlation([1, 2, 3], [1, 2, math.nan])


def test_within_groups_what_lies_between_them_does_not_count():
    # each group falls, though the second lies above the first throughout
    groups = [([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), ([4.0, 5.0, 6.0], [30.0, 20.0, 10.0])]
    assert rank_correlation_within(groups) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5, 6], [3, 2, 1, 30, 20, 10]) > 0.3
    half = [groups[0], ([1.0, 2.0], [1.0, 2.0])]
    assert rank_correlation_within(half) == pytest.approx(0)


def test_the_permutation_test_counts_orders():
    # of the 24 orders of four, one is as low as -1, and four are as low as -0.8
    assert permutation_p_value([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(1 / 24, rel=0.05)
    assert permutation_p_value([1, 2, 3, 4], [4, 3, 1, 2]) == pytest.approx(4 / 24, rel=0.05)
    assert permutation_p_value([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)


def test_means_of_logarithms_and_lines_between_points():
    assert log2_mean([1.0, 4.0, 16.0]) == 2
    assert interpolated([0.0, 1.0, 3.0], [0.0, 10.0, 30.0], 2.0) == pytest.approx(20)
    assert interpolated([0.0, 1.0], [0.0, 10.0], 1.0) == pytest.approx(10)
    assert interpolated([0.0, 1.0], [0.0, 10.0], 1.5) is None


def test_an_effect_that_misses_its_bar_is_not_shown():
    def one(bar: float | None, better: tuple[float, ...] = (-0.7, -0.75, -0.72)) -> Comparison:
        placebo = ((0.1, 0.0), (0.0, 0.1), (0.0, 0.0))
        return Comparison("falls", "rank correlation", ("a", "b"), better, (0.0, 0.0, 0.0), placebo, bar=bar)

    assert [one(bar).verdict for bar in (None, -0.7, -0.8)] == ["shown", "shown", "not shown"]
    assert one(-0.8, (0.7, 0.75, 0.72)).verdict == "reversed"  # the bar does not hide a wrong sign


# ---------------------------------------------------------------------- a wrong sign has the opposite verdict


def staged(
    quality: Callable[[RecipeVariant], float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scale: Scale = WHOLE
) -> ExperimentContext:
    """A bench whose trainings are played, noisier the higher the number and the earlier, and judged by that noise."""
    real = digits("held-out")
    assert real.labels is not None
    of_class = [real.pixels[real.labels == label].float() for label in range(10)]
    clean = torch.stack([of_class[n % 10][n // 10 % len(of_class[n % 10])] for n in range(70)])

    def played(
        variant: RecipeVariant, quick: bool, seed: int, count: int, folder: Path, *rest: object
    ) -> TrainingHistory:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(clean.shape, generator=generator)
        levels = [quality(variant) * factor for factor in (8, 5, 3, 2, 1)][
            -len(eval_steps(variant.recipe_config(quick))) :
        ]
        pixels = torch.stack([(clean + level * noise).clamp(0, 255).to(torch.uint8) for level in levels])
        steps = eval_steps(variant.recipe_config(quick))
        return TrainingHistory(cast(Any, None), steps, pixels[:, :count], [level / 100 for level in levels], 1.0, False)

    def judged(context: ExperimentContext, pixels: Tensor) -> ScoredSamples:
        return ScoredSamples(pixels, Fidelity(0.0, 0.0, 1.0, float((pixels - clean).abs().mean())))

    monkeypatch.setattr("unveil.reproduce.experiment.train_and_track", played)
    monkeypatch.setattr("unveil.reproduce.fidelity.score_pixels", judged)
    return ExperimentContext(scale, tmp_path, QUIET)


def verdicts(findings: ExperimentResults) -> set[str]:
    return {one.verdict for one in findings.comparisons if one.primary}


def test_designs_in_the_claimed_order_and_in_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def good(variant: RecipeVariant) -> float:
        return 10.0 if variant == dit.DESIGNS[dit.ZERO] else 20.0

    found = dit._blocks(staged(good, monkeypatch, tmp_path))
    assert verdicts(found) == {"shown"}
    assert [one.worse[0] > one.better[0] for one in found.comparisons] == [True] * 6
    assert len(found.comparisons) == 6
    assert all(one.placebo_verdict == "not shown" for one in found.comparisons)
    assert verdicts(dit._zero(staged(good, monkeypatch, tmp_path))) == {"shown"}
    bad = staged(lambda variant: 300 / good(variant), monkeypatch, tmp_path)
    assert verdicts(dit._blocks(bad)) == {"reversed"}
    slow = dit._zero(bad)
    assert verdicts(slow) == {"reversed"}
    assert slow.notes[0].endswith("none, none, none.")


def test_scaling_in_the_claimed_order_and_in_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    context = staged(lambda variant: 4e4 / cost(variant) ** 0.5, monkeypatch, tmp_path)
    found = dit._scaling(context)
    assert overall(found.comparisons) == "shown"
    first = found.comparisons[0]
    assert (first.bar, first.better) == (-0.8, pytest.approx((-1.0,) * 3, abs=0.01))
    assert len(found.comparisons) == 3 + 3 + 4
    assert found.sheets[0].pixels.shape == (12, 1, 8, 8)
    assert found.sheets[0].columns == 4
    assert "17 of 17 neighbours" in found.notes[0]
    assert "XL/1 at" in found.notes[2]
    assert [type(curve.x) for curve in found.curves] == [list, list, list, dict, dict]
    record: dict[str, Any] = {
        **record_of(get_claim("dit-scaling"), context, found, 1.0),
        "plots": ["plot.png"],
        "sheets": [],
    }
    text = page(record)
    assert "bar, at most -0.8, is met" in text
    assert "wherever those have the same size" in text
    assert "steps 2000, batch 32" in text
    assert len(record["settings"]["arms"]) == 12
    turned = dit._scaling(staged(lambda variant: 0.01 * cost(variant) ** 0.5, monkeypatch, tmp_path, QUICK))
    assert verdicts(turned) == {"reversed"}
    deaf = dit._scaling(staged(lambda variant: 20.0, monkeypatch, tmp_path, QUICK))
    assert "shown" not in verdicts(deaf)


def test_curves_may_have_places_of_their_own():
    shared = Curve("steps", "FID", [1, 2], {"a": [[2.0, 1.0]], "b": [[3.0, 2.0]]}, True, True)
    apart = replace(shared, x={"a": [1, 2], "b": [10, 20]})
    records = [
        {"x_label": c.x_label, "y_label": c.y_label, "x": c.x, "lines": c.lines, "log_x": True, "log_y": True}
        for c in (shared, apart)
    ]
    drawn = [plot_curves([record]) for record in records]
    assert all(one.startswith(b"\x89PNG") for one in drawn)
    assert drawn[0] != drawn[1]
