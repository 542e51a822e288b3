"""Every claim runs from the command to its page; the experiments see an arm that is broken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.needs import needs_fashion
from tests.reproduce.untrained import Untrained
from unveil.cli.commands import run
from unveil.core.samplers import ddim
from unveil.core.schedules import Schedule
from unveil.errors import OutputError, RecipeError
from unveil.evaluate.verdict import PublishedResult
from unveil.io.console import Console
from unveil.reproduce import all_claims, reproduce, runner
from unveil.reproduce.claim_page import MARK, index
from unveil.reproduce.claims import adm as adm_claims
from unveil.reproduce.claims import cfg as cfg_claims
from unveil.reproduce.claims import ddim as ddim_claims
from unveil.reproduce.claims import iddpm as iddpm_claims
from unveil.reproduce.claims import ncsn as ncsn_claims
from unveil.reproduce.experiment import QUICK, ExperimentContext, ExperimentResults, compare

QUIET = Console(quiet=True)
EXPECTED = {
    "controlnet-edges",
    "ddpm-objective",
    "iddpm-schedule",
    "iddpm-variance",
    "iddpm-objective",
    "iddpm-importance",
    "ddim-steps",
    "ddim-consistency",
    "ddim-encode",
    "ncsn-annealing",
    "score-sde-corrector",
    "edm-heun",
    "dpm-solver-few",
    "adm-guidance",
    "adm-norm",
    "cfg-scale",
    "imagen-threshold",
    "sd3-times",
    "dit-blocks",
    "dit-zero",
    "dit-scaling",
    "dit-flow",
    "ldm-pixels",
    "lora-style",
    "video-scaling",
    "video-captions",
    "prompt-expansion",
    "text-encoder",
    "video-forcing",
    "video-recaptions",
    "video-native",
}


# Trained for real with every change: arms of digits with labels, recipes of several sizes, and clips with captions.
# What they measure has no value on networks that nobody trained, or it is all the same. A release trains every arm.
REAL = {"imagen-threshold", "dit-scaling", "video-forcing"}
OF_CLOTHES = {"controlnet-edges", "lora-style"}
# Claims whose shares do not depend on the seed: its clips are plain after three steps, and nothing is at their edges
PLAIN = {"video-native"}
# The same where nobody trained the base: the judge reads its samples as one class, so nine tenths are always misread
UNTRAINED_PLAIN = PLAIN | {"lora-style"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that arms are shared as in a full run."""
    return tmp_path_factory.mktemp("arms")


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_the_claims_are_those_that_were_promised():
    assert set(all_claims()) == EXPECTED
    assert all(
        name == claim.name and claim.claim and claim.paper and claim.method for name, claim in all_claims().items()
    )


def claims(*others: pytest.MarkDecorator) -> list[Any]:
    """Every claim as a case; those that are not REAL with these marks too."""
    clothes = {name: [needs_fashion] for name in OF_CLOTHES}
    marks = {name: [*clothes.get(name, []), *(others if name not in REAL else [])] for name in sorted(EXPECTED)}
    return [pytest.param(name, marks=some) for name, some in marks.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", claims(pytest.mark.release))
def test_the_quick_form_goes_from_training_to_a_page(name: str, tmp_path: Path, cache: Path):
    record = reproduce(name, quick=True, out=tmp_path, console=QUIET, cache=cache)
    whole(record, tmp_path, cache, equal_shares=name in PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case for case in claims() if case.values[0] not in REAL])
def test_the_quick_form_makes_a_page_of_networks_that_nobody_trained(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """All but the training of the arms, of which there are three loops: see REAL."""
    monkeypatch.setattr(runner, "ExperimentContext", Untrained)
    record = reproduce(name, quick=True, out=tmp_path, console=QUIET, cache=cache)
    whole(record, tmp_path, cache, equal_shares=name in UNTRAINED_PLAIN)


def whole(record: Any, tmp_path: Path, cache: Path, *, equal_shares: bool) -> None:
    """Check that the page, its numbers and its figures exist and agree."""
    name = record["name"]
    stored = json.loads((tmp_path / f"{name}.json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["quick"]
    assert finite(stored)
    for comparison in stored["comparisons"]:
        worse, better = comparison["worse"]["values"], comparison["better"]["values"]
        assert len(worse) == len(better) == len(comparison["placebo"]["values"]) == 3
        assert comparison["effects"] == [w - b for w, b in zip(worse, better, strict=True)]
        if not (equal_shares and comparison["measure"].startswith("share")):
            assert len(set(comparison["placebo"]["effects"])) > 1  # the placebo's arms do differ, by their seeds
    text = (tmp_path / f"{name}.md").read_text()
    assert text.startswith(MARK)
    assert "says nothing about the claim" in text
    files = [*stored["plots"], *(sheet["file"] for sheet in stored["sheets"])]
    assert files
    for file in files:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
        assert f"({file})" in text
    for comparison in stored["comparisons"]:
        assert comparison["name"] in text
    assert f"[{name}]({name}.md)" in (tmp_path / "index.md").read_text()
    assert str(cache) not in text + json.dumps(stored)  # whose machine it was
    assert not list(tmp_path.glob(".*"))  # no half file


def test_nothing_is_overwritten_without_force(tmp_path: Path, cache: Path):
    page = tmp_path / "ddim-consistency.md"
    page.write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache)
    assert [path.name for path in tmp_path.iterdir()] == [page.name]
    assert page.read_text() == "mine"
    reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache, force=True)
    for name in ("ddim-consistency.md", "ddim-consistency.json"):
        (tmp_path / name).rename(tmp_path / f"{name}.old")
    with pytest.raises(OutputError, match=r"ddim-consistency.*png: .*not overwritten"):
        reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache)
    (tmp_path / "edm-heun.json").write_text('{"a": 1}')
    with pytest.raises(RecipeError, match=r"edm-heun\.json: not the record of a claim"):
        reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache, force=True)
    (tmp_path / "edm-heun.json").unlink()
    reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache, force=True)
    assert page.read_text().startswith(MARK)


def test_an_index_that_is_not_ours_is_left_alone(tmp_path: Path, cache: Path):
    (tmp_path / "index.md").write_text("# my own pages")
    with pytest.raises(OutputError, match="not an index of claims"):
        reproduce("ddim-consistency", quick=True, out=tmp_path, console=QUIET, cache=cache)
    assert (tmp_path / "index.md").read_text() == "# my own pages"


def test_an_unknown_claim_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RecipeError, match="'ddim-encode'"):
        reproduce("ddim-encod", out=tmp_path / "pages", console=QUIET)
    assert run(["reproduce", "ddim-encod", "--out", str(tmp_path / "pages")]) == 2
    assert "nearest: 'ddim-encode'" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()


def test_the_command_lists_claims_and_runs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["reproduce", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["claims"]) == EXPECTED
    assert run(["reproduce", "ddim-consistency", "--quick", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert str(tmp_path / "ddim-consistency.md") in output.out
    assert "Traceback" not in output.err
    assert run(["reproduce", "ddim-consistency", "--quick", "--out", str(tmp_path)]) == 2


def test_a_run_without_power_is_repeated_at_four_times_the_seeds(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []

    def experiment(context: ExperimentContext) -> ExperimentResults:
        seen.append(context.scale.seeds)
        values = [1.0 + 0.1 * (seed % 2) for seed in context.seeds]
        other = [1.0 + 0.1 * (seed % 3 == 0) for seed in context.seeds]
        paper = PublishedResult(0.99, 1.0, "a small effect")
        return ExperimentResults(
            [compare("a is lower", "m", ("a", values), ("b", other), (values, other), paper=paper)]
        )

    monkeypatch.setitem(all_claims(), "ddim-steps", replace(all_claims()["ddim-steps"], run=experiment))
    record = reproduce("ddim-steps", out=tmp_path, console=QUIET, cache=cache)
    assert seen == [3, 12]
    assert len(record["comparisons"][0]["effects"]) == 3
    assert len(record["fourfold"]["comparisons"][0]["effects"]) == 12
    assert "four times the seeds" in (tmp_path / "ddim-steps.md").read_text()


def test_the_index_counts_each_placebo_once():
    placebo = {"values": [[1.0, 2.0]], "verdict": "shown"}
    comparison = {"placebo": placebo, "verdict": "shown", "primary": True}
    record = {"name": "n", "claim": "c", "verdict": "shown", "comparisons": [comparison, comparison]}
    assert "1 of 1 have a verdict other than" in index([record])


# ------------------------------------------------------------- would the experiments see that something is broken?

SOME = replace(QUICK, budget=replace(QUICK.budget, steps=40, batch=16, warmup=5, ema=0.9))


@pytest.mark.slow
def test_encoding_by_the_wrong_path_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    good = ddim_claims._encode(ExperimentContext(SOME, cache, QUIET))
    assert {one.verdict for one in good.comparisons} == {"shown"}
    # an encoder that forgets the image: every round trip fails alike
    monkeypatch.setattr(ddim_claims, "encode", lambda schedule: ddim(Schedule(schedule.process, list(schedule)[:-1])))
    broken = ddim_claims._encode(ExperimentContext(SOME, cache, QUIET))
    assert "shown" not in {one.verdict for one in broken.comparisons}


def test_a_sampler_that_ignores_its_noise_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    good = ddim_claims._consistency(ExperimentContext(SOME, cache, QUIET))
    assert {one.verdict for one in good.comparisons} == {"shown"}

    def deaf(plan, step, x, **rest):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(len(plan)))

    monkeypatch.setattr(ddim_claims, "run", deaf)
    broken = ddim_claims._consistency(ExperimentContext(SOME, cache, QUIET))
    assert "shown" not in {one.verdict for one in broken.comparisons}


def test_a_learned_variance_that_was_not_learned_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Channels pinned to -1 make the learned variance the fixed small one, and the claim's effect goes."""
    monkeypatch.setattr(
        iddpm_claims,
        "learned_range",
        lambda step, extra: iddpm_claims.fixed_small(step),
    )
    broken = iddpm_claims._variance(ExperimentContext(QUICK, cache, QUIET))
    large = [one for one in broken.comparisons if one.arms[1] == "fixed large"]
    assert large
    assert {one.verdict for one in large} <= {"reversed", "not shown"}


def test_importance_sampling_without_its_weights_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """A sampler that has seen nothing draws uniformly: no effect may be found."""
    monkeypatch.setattr(iddpm_claims, "warmed", lambda denoiser, *rest: iddpm_claims.SecondMoment(50))
    broken = iddpm_claims._importance(ExperimentContext(QUICK, cache, QUIET))
    assert broken.comparisons[0].effects == (0.0, 0.0, 0.0)
    assert [one.verdict for one in broken.comparisons] == ["not shown"]


def test_guidance_that_does_nothing_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cfg_claims, "cfg", lambda step, null, scale: step)
    broken = cfg_claims._scale(ExperimentContext(QUICK, cache, QUIET))
    assert {effect for one in broken.comparisons for effect in one.effects} == {0.0}
    assert {one.verdict for one in broken.comparisons} == {"not shown"}


def test_a_guide_without_a_gradient_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adm_claims, "gradient", lambda score, scale: lambda x, level: torch.zeros_like(x))
    broken = adm_claims._guidance(ExperimentContext(QUICK, cache, QUIET))
    assert {effect for one in broken.comparisons for effect in one.effects} == {0.0}


def test_annealing_that_stays_at_one_level_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch):
    good = ncsn_claims._annealing(ExperimentContext(QUICK, cache, QUIET))
    assert good.comparisons[0].verdict == "shown"
    monkeypatch.setattr(ncsn_claims, "_annealed", ncsn_claims._plain)
    broken = ncsn_claims._annealing(ExperimentContext(QUICK, cache, QUIET))
    assert broken.comparisons[0].effects == (0.0, 0.0, 0.0)
