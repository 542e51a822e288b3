"""Reports: what they find in samples whose faults are known, what they state, and what they refuse to compare."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil import data
from unveil.errors import DataError, OutputError, RecipeError, ShapeError
from unveil.evaluate import EvaluationSettings, Report, SampleProvenance, compare, evaluate, features, plots
from unveil.evaluate.image_set import collect_images
from unveil.evaluate.metrics import Interval
from unveil.evaluate.report_page import page, summary, write_report

QUICK = EvaluationSettings(floor_splits=4, draws=20, kid_subsets=3)
PARTS = data.digits("train"), data.digits("held-out")
SAMPLING = {"sampler": "ddim", "steps": 20, "seed": 0}


@pytest.fixture(scope="module")
def network() -> features.FeatureNetwork:
    return features.load("digits")


@pytest.fixture(scope="module")
def fresh(network: features.FeatureNetwork) -> Report:
    """Half of the held-out images, judged as if they were samples: as good as a model can be."""
    half = torch.arange(0, 450, 2)
    samples, rest = PARTS[1].pixels[half], data.ImageTensorDataset(PARTS[1].pixels[half + 1], PARTS[1].labels[half + 1])
    bits = {"bits_per_dim": {**Interval(2.0, 1.9, 2.1)._asdict(), "images": 8, "steps": 10}}
    origin = SampleProvenance("digits", SAMPLING, bits, {"command": "unveil evaluate x <now>"})
    return evaluate(samples, PARTS[1].labels[half], PARTS[0], rest, network, QUICK, provenance=origin)


@pytest.fixture(scope="module")
def copied(network: features.FeatureNetwork) -> Report:
    """Training images with some noise: a model that memorised."""
    noise = 12 * torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = (PARTS[0].pixels[:300] + noise).clamp(0, 255).round().to(torch.uint8)
    return evaluate(
        samples, PARTS[0].labels[:300], *PARTS, network, QUICK, provenance=SampleProvenance("digits", SAMPLING)
    )


def test_real_images_pass_every_metric(fresh: Report):
    found = fresh.results
    assert found["read"]["value"] > 0.97
    assert found["fid"]["ratio"] < 2
    assert found["fid"]["floor"]["least"] <= found["fid"]["floor"]["mean"] <= found["fid"]["floor"]["most"]
    assert found["precision"]["value"] > 0.8
    assert found["recall"]["value"] > 0.8
    assert found["nearest"]["ratio"]["value"] > 0.9
    assert not fresh.memorised
    assert fresh.missing == {}
    for metric in ("read", "fid", "kid", "precision", "recall", "bits_per_dim"):
        assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"], metric


def test_copies_are_called_memorised(copied: Report):
    assert copied.memorised
    assert "memorised" in "\n".join(summary(copied))
    assert "Memorised." in page(copied)


def test_noise_scores_badly_everywhere(network: features.FeatureNetwork, copied: Report):
    samples = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise = evaluate(samples, torch.arange(300) % 10, *PARTS, network, QUICK).results
    assert noise["read"]["value"] < 0.3
    assert noise["fid"]["ratio"] > 5
    assert noise["kid"]["value"] > copied.results["kid"]["value"]
    assert noise["precision"]["value"] < copied.results["precision"]["value"]


def test_both_sides_and_the_floor_have_the_same_number(copied: Report, network: features.FeatureNetwork):
    assert copied.protocol["count"] == 300  # 450 are held out, 300 samples were given
    assert copied.protocol["floor_from"] == "training and held-out images"
    few = evaluate(PARTS[0].pixels[:300], None, *PARTS, network, replace(QUICK, count=100))
    assert few.protocol["floor_from"] == "held-out images"  # 450 hold two disjoint sets of 100
    assert few.missing["read"] == "the samples have no labels"


def test_at_most_train_limit_training_images_are_used(network: features.FeatureNetwork):
    report = evaluate(PARTS[0].pixels[:64], None, *PARTS, network, replace(QUICK, train_limit=50))
    assert report.protocol["train"]["count"] == 50
    assert report.protocol["held_out"]["count"] == 450


def test_fid_is_not_given_without_more_images_than_features(network: features.FeatureNetwork):
    report = evaluate(PARTS[0].pixels[:64], None, *PARTS, network, QUICK)
    assert "fid" not in report.results
    assert "64 images on either side, 64 features" in report.missing["fid"]
    assert "64 images on either side" in page(report)


def test_any_features_will_do_and_only_a_classifier_reads(copied: Report):
    pixels = features.load("pixels", shape=(1, 8, 8))
    report = evaluate(PARTS[0].pixels[:300], PARTS[0].labels[:300], *PARTS, pixels, QUICK)
    assert "does not classify these data" in report.missing["read"]
    assert "no classes" in report.missing["inception_score"]
    assert report.protocol_sha256 != copied.protocol_sha256


def test_the_same_again_is_the_same(copied: Report, network: features.FeatureNetwork):
    samples = data.ImageTensorDataset(*_noisy())
    again = evaluate(
        samples.pixels, samples.labels, *PARTS, network, QUICK, provenance=SampleProvenance("digits", SAMPLING)
    )
    assert again.results == copied.results
    assert again.protocol_sha256 == copied.protocol_sha256


def test_every_setting_changes_the_hash(network: features.FeatureNetwork):
    train, held_out = (data.ImageTensorDataset(part.pixels[:60], part.labels[:60]) for part in PARTS)
    settings = EvaluationSettings(count=20, floor_splits=2, draws=2, kid_subsets=2, kid_size=5)

    def protocol(settings: EvaluationSettings, network: features.FeatureNetwork = network, **sampling: object) -> str:
        origin = SampleProvenance(sampling=sampling)
        report = evaluate(train.pixels[:30], None, train, held_out, network, settings, provenance=origin)
        return report.protocol_sha256

    changes = {"count": 21, "floor_splits": 3, "draws": 3, "kid_subsets": 3, "kid_size": 6, "splits": 9}
    changes |= {"neighbours": 4, "train_limit": 50, "seed": 1}
    assert set(changes) == {field.name for field in fields(EvaluationSettings)}
    hashes = [protocol(replace(settings, **{name: value})) for name, value in changes.items()]
    hashes += [protocol(settings), protocol(settings, steps=20), protocol(settings, replace(network, sha256="other"))]
    assert len(set(hashes)) == len(hashes)
    assert protocol(settings) == protocol(settings)


def test_reports_come_back_and_are_never_overwritten(fresh: Report, tmp_path: Path):
    written = write_report(fresh, tmp_path / "run")
    back = Report.load(tmp_path / "run")
    assert back.protocol_sha256 == fresh.protocol_sha256
    assert back.results == json.loads(json.dumps(fresh.results))
    with pytest.raises(OutputError, match="exists already"):
        write_report(fresh, tmp_path / "run")
    write_report(fresh, tmp_path / "run", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_report(fresh, tmp_path / "file" / "run")
    assert written.name == "report.html"


def test_the_page_holds_everything_itself(fresh: Report):
    html = page(fresh)
    linked = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html)
    assert all(target.startswith("data:image/png;base64,") for target in linked)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert len(linked) == 6
    assert fresh.protocol_sha256 in html
    assert "&lt;now&gt;" in html  # what users give is shown, not run
    assert "2.000 (1.900 to 2.100)" in html


def test_reports_of_one_protocol_are_compared(copied: Report):
    better = replace(copied, results={**copied.results, "fid": {**copied.results["fid"], "value": 0.5}})
    changes = {change.name: change for change in compare(copied, better)}
    assert changes["fid"].difference == pytest.approx(0.5 - copied.results["fid"]["value"])
    assert changes["read"].difference == 0


def test_likelihoods_are_compared_where_they_were_measured_alike(fresh: Report):
    def measured(**settings: int) -> Report:
        return replace(fresh, results={**fresh.results, "ode_bits_per_dim": {"value": 3.0, "calls": 90, **settings}})

    assert "bits/dim, ODE" in [c.name for c in compare(measured(pictures=8), measured(pictures=8, calls=100))]
    assert "bits/dim, ODE" not in [c.name for c in compare(measured(pictures=8), measured(pictures=9))]


def test_reports_of_different_protocols_are_refused_and_the_difference_is_named(copied: Report, fresh: Report):
    other = replace(copied, protocol={**copied.protocol, "sampling": {**SAMPLING, "steps": 50}})
    with pytest.raises(RecipeError, match=r"sampling\.steps: 20 and 50; evaluate both alike"):
        compare(copied, other)
    assert compare(copied, other, varying=["sampling"])
    assert compare(copied, other, varying=["sampling.steps"])
    with pytest.raises(RecipeError, match="cannot be compared"):
        compare(copied, fresh, varying=["sampling"])


def test_a_report_that_was_edited_or_is_none_is_refused(fresh: Report, tmp_path: Path):
    write_report(fresh, tmp_path)
    path = tmp_path / "report.json"
    path.write_text(path.read_text().replace('"steps": 20', '"steps": 19'))
    with pytest.raises(DataError, match="evaluate again"):
        Report.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a report"):
        Report.load(path)


def test_mistakes_are_named(network: features.FeatureNetwork):
    with pytest.raises(RecipeError, match=r"500 images to compare: must be in \[4, 300\]"):
        evaluate(PARTS[0].pixels[:300], None, *PARTS, network, EvaluationSettings(count=500))
    with pytest.raises(ShapeError, match="must be uint8"):
        evaluate(torch.zeros(9, 1, 8, 8), None, *PARTS, network)
    with pytest.raises(ShapeError, match="3 labels for 9 samples"):
        evaluate(PARTS[0].pixels[:9], torch.zeros(3), *PARTS, network)
    with pytest.raises(RecipeError, match="numbers, words, lists"):
        replace(_empty(), protocol={"sampling": {"when": object()}}).protocol_sha256  # noqa: B018


def test_data_sets_of_any_kind_are_gathered():
    class Own:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> dict:
            return {"pixels": torch.full((3, 2, 2), index, dtype=torch.uint8), "label": index}

    found = collect_images(Own(), limit=3)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 4]
    with pytest.raises(ShapeError, match="all must be uint8 of one size"):
        collect_images([{"pixels": torch.zeros(3, 2, 2)}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="without images"):
        collect_images([])  # pyright: ignore[reportArgumentType]


def _noisy() -> tuple[torch.Tensor, torch.Tensor]:
    noise = 12 * torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return (PARTS[0].pixels[:300] + noise).clamp(0, 255).round().to(torch.uint8), PARTS[0].labels[:300]


def _empty() -> Report:
    return Report({}, {})


def test_images_are_enlarged_without_smoothing_and_pairs_stay_together():
    black, white = (torch.full((2, 1, 8, 8), value, dtype=torch.uint8) for value in (0, 255))
    drawn = np.asarray(Image.open(io.BytesIO(plots.make_grid(black, 10))))
    row = drawn[len(drawn) // 2] < 128
    assert set(np.unique(drawn)) == {0, 255}
    assert row.sum() == 2 * 96  # 8 pixels a side are drawn 96 wide
    row = np.asarray(Image.open(io.BytesIO(plots.pair_grid(black, black))))[20] < 128
    edges = np.flatnonzero(np.diff(row.astype(int)))  # a pair, a pair: each of two dark runs
    assert len(edges) == 8
    assert edges[4] - edges[3] > 2 * (edges[2] - edges[1])
    assert (np.asarray(Image.open(io.BytesIO(plots.pair_grid(white, white)))) == 255).all()
