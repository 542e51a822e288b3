"""Evaluation of samples against real images under a stated protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil import __version__
from unveil.errors import RecipeError, ShapeError
from unveil.evaluate import metrics, plots
from unveil.evaluate.features import FeatureNetwork, FeatureOutput
from unveil.evaluate.findings import Figure, Finding, interval_of
from unveil.evaluate.frechet import fid
from unveil.evaluate.image_set import ImageDataset, ImageSet, collect_images
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.page_writer import Block, Heading, Paragraph, Table
from unveil.evaluate.report import Report

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
MEMORISED = 0.8  # samples this much nearer to the training images than held-out ones are copies
_COSTLY = 256  # features from which on a Frechet distance takes long enough to draw a fifth of the bootstrap


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation; all of them are part of its protocol.

    Attributes:
        count: Number of images on either side of FID, its floor, KID, precision and recall; None: all.
        floor_splits: Number of disjoint pairs of real sets over which the floor is averaged.
        draws: Number of bootstrap draws of an interval; FID above 256 features has a fifth of them.
        kid_subsets: Number of KID subsets.
        kid_size: Number of rows of a KID subset; at most half of the images.
        splits: Number of splits of the Inception score.
        neighbours: Number of neighbours k of precision and recall.
        train_limit: Maximum number of training images, spaced evenly, for nearest neighbours and the floor.
        seed: Seed of every random choice.
    """

    count: int | None = None
    floor_splits: int = 20
    draws: int = 200
    kid_subsets: int = 20
    kid_size: int = 1000
    splits: int = 10
    neighbours: int = 3
    train_limit: int = 60_000
    seed: int = 0


@dataclass(frozen=True)
class SampleProvenance:
    """Provenance of the samples and the data beyond their pixels.

    Attributes:
        data: Name of the data set; the protocol contains the hash of its pixels.
        sampling: Sampling settings as plain values, such as sampler, steps and seed; part of the protocol.
        bits: Likelihoods of held-out images, by metric ("bits_per_dim" by the chain's bound,
            "ode_bits_per_dim"): value, low, high, and the settings that they hold under.
        about: Metadata outside of the protocol: command, commit, CPU minutes.
    """

    data: str = "unnamed"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    bits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    samples: Tensor,
    labels: Tensor | None,
    train: ImageDataset,
    held_out: ImageDataset,
    features: FeatureNetwork,
    settings: EvaluationSettings | None = None,
    *,
    provenance: SampleProvenance | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Evaluate samples by all metrics of this package.

    FID and its kin compare `count` samples with as many held-out images; the floor compares as many real images
    with as many other real ones, taken from the held-out part where it is large enough, else from both parts.

    Args:
        samples: All generated samples, uint8 (N, C, H, W); a selection would bias every metric.
        labels: Classes that the samples were conditioned on, (N,); None for unconditional samples.
        train: Training set of the model.
        held_out: Held-out set.
        features: Feature network, see `features.load`.
        settings: Settings of the metrics.
        provenance: Provenance of the samples.
        on_progress: Function of the name of the current measurement, called before each.

    Raises:
        ShapeError: The samples are not uint8, or their size differs from the data.
        RecipeError: There are too few images for a comparison.
    """
    settings, provenance = settings or EvaluationSettings(), provenance or SampleProvenance()
    log = on_progress or (lambda _: None)
    real = collect_images(train, settings.train_limit), collect_images(held_out)
    _check(samples, labels, real[1])
    plan = _Plan.of(samples, real, settings)
    log("features")
    output = features.extract(samples)
    rows = plan.choose(len(samples), plan.count, 0)
    pool = plan.pool(*real)
    reference = pool.subset(torch.arange(plan.count))
    results: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if reason := _classification_obstacle(labels, features, output, real[1]):
        missing["read"] = reason
    else:
        assert labels is not None
        results["read"] = _class_accuracy(output, labels, features, real[1])
    _compare(output, features.extract(pool.pixels), rows, features, plan, results, missing, log)
    results["nearest"], closest = _nearest(samples[rows], reference.pixels, real[0].pixels, settings)
    images = _images(samples, labels, reference.pixels, closest) if samples.shape[1] in (1, 3) else {}
    results |= {metric: dict(bits) for metric, bits in provenance.bits.items()}
    if not provenance.bits:
        missing["bits_per_dim"] = "not measured"
    protocol = _protocol(samples, labels, real, features, plan) | {"sampling": dict(provenance.sampling)}
    about = {"data": provenance.data, "unveil": __version__, **provenance.about}
    return Report(protocol, results, missing, about, images)


def _compare(
    output: FeatureOutput,
    pool: FeatureOutput,
    rows: Tensor,
    features: FeatureNetwork,
    plan: _Plan,
    results: dict[str, Any],
    missing: dict[str, str],
    log: Callable[[str], object],
) -> None:
    """Add the metrics that compare the distributions of features of these rows and of the real images."""
    generated, reference = output.features[rows], pool.features[: plan.count]
    if plan.count <= features.dim:
        missing["fid"] = (
            f"{plan.count} images on either side, {features.dim} features: FID needs more images than features"
        )
    else:
        log("FID and its floor")
        results["fid"] = _fid(generated, reference, pool.features, plan)
    log("KID, precision and recall, nearest images")
    results |= _kid_precision_recall(generated, reference, plan.settings)
    if output.logits is None or pool.logits is None:
        missing["inception_score"] = f"the feature network {features.name!r} has no classes"
    else:
        results["inception_score"] = _inception_score(output.logits[rows], pool.logits[: plan.count], plan.settings)


def comparison_size(samples: int, train: int, held_out: int, settings: EvaluationSettings) -> int:
    """Return the number of samples that are compared with as many real images; call it before sampling.

    Raises:
        RecipeError: There are too few images or samples, or fewer than `count`.
    """
    min_count, max_count = max(settings.neighbours + 1, 4), min(samples, held_out, (train + held_out) // 2)
    count = max_count if settings.count is None else settings.count
    if not min_count <= count <= max_count:
        few = "use more held-out images, such as data.val_fraction=0.2" if held_out < min_count else "draw more samples"
        raise RecipeError(
            f"{count} images to compare: must be in [{min_count}, {max_count}] with {samples} samples, "
            f"{held_out} held-out and {train} training images; {few}"
        )
    return count


@dataclass(frozen=True)
class _Plan:
    """Choice of the images that are compared with each other."""

    count: int
    from_both: bool  # the floor's images come from both parts
    settings: EvaluationSettings

    @classmethod
    def of(cls, samples: Tensor, real: tuple[ImageSet, ImageSet], settings: EvaluationSettings) -> _Plan:
        train, held_out = (len(part.pixels) for part in real)
        count = comparison_size(len(samples), train, held_out, settings)
        return cls(count, 2 * count > held_out, settings)

    def choose(self, among: int, count: int, stream: int) -> Tensor:
        """Return `count` of `among` rows in random order without repetition, equal for equal seeds."""
        random = np.random.default_rng([self.settings.seed, stream])
        return torch.from_numpy(random.permutation(among)[:count])

    def pool(self, train: ImageSet, held_out: ImageSet) -> ImageSet:
        """Return up to four times `count` real images in random order; the first `count` are held-out images."""
        first = held_out.subset(self.choose(len(held_out.pixels), 4 * self.count, 1))
        if not self.from_both:
            return first
        wanted = 4 * self.count - len(first.pixels)
        second = train.subset(self.choose(len(train.pixels), wanted, 2))
        return ImageSet(torch.cat([first.pixels, second.pixels]))

    def splits(self, among: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield disjoint pairs of `count` rows."""
        for i in range(self.settings.floor_splits):
            rows = self.choose(among, 2 * self.count, 100 + i)
            yield rows[: self.count], rows[self.count :]


def _check(samples: Tensor, labels: Tensor | None, held_out: ImageSet) -> None:
    wanted = tuple(held_out.pixels.shape[1:])
    if samples.dtype != torch.uint8 or tuple(samples.shape[1:]) != wanted:
        raise ShapeError(
            f"samples {tuple(samples.shape)} {samples.dtype}: must be uint8 (N, {', '.join(map(str, wanted))}), "
            "like the held-out images"
        )
    if labels is not None and len(labels) != len(samples):
        raise ShapeError(f"{len(labels)} labels for {len(samples)} samples: one each, or None")


def _classification_obstacle(
    labels: Tensor | None, features: FeatureNetwork, output: FeatureOutput, held_out: ImageSet
) -> str | None:
    """Return the reason why samples cannot be classified, or None."""
    if labels is None:
        return "the samples have no labels"
    if output.logits is None or features.accuracy is None:
        return f"the feature network {features.name!r} does not classify these data"
    if held_out.labels is None:
        return "the held-out images have no labels, so the classifier's accuracy cannot be stated"
    assert features.classes is not None
    if int(torch.cat([labels, held_out.labels]).max()) >= features.classes:
        return f"labels above {features.classes - 1}: the feature network {features.name!r} has fewer classes"
    return None


def _class_accuracy(
    output: FeatureOutput, labels: Tensor, features: FeatureNetwork, held_out: ImageSet
) -> dict[str, Any]:
    assert output.logits is not None
    hits = output.logits.argmax(1) == labels
    classes = []
    for label in labels.unique().tolist():
        class_hits = hits[labels == label]
        name = str(label) if held_out.classes is None else held_out.classes[label]
        classes.append(
            {"label": label, "name": name, "count": len(class_hits), **metrics.proportion(class_hits)._asdict()}
        )
    own_accuracy = (features.logits(held_out.pixels).argmax(1) == held_out.labels).double().mean()
    overall = metrics.proportion(hits)._asdict()
    return {**overall, "count": len(hits), "accuracy": float(own_accuracy), "per_class": classes}


def _fid(generated: Tensor, reference: Tensor, pool: Tensor, plan: _Plan) -> dict[str, Any]:
    settings = plan.settings
    draws = settings.draws if generated.shape[1] <= _COSTLY else max(2, settings.draws // 5)
    distance = metrics.bootstrap(
        lambda left, right: fid(generated[left], reference[right]),
        len(generated),
        len(reference),
        draws=draws,
        seed=settings.seed,
    )
    floor = [fid(pool[left], pool[right]) for left, right in plan.splits(len(pool))]
    mean = float(np.mean(floor))
    summary = {"mean": mean, "least": min(floor), "most": max(floor), "splits": len(floor), "values": floor}
    return {**distance._asdict(), "floor": summary, "ratio": distance.value / mean if mean > 0 else None}


def _kid_precision_recall(generated: Tensor, reference: Tensor, settings: EvaluationSettings) -> dict[str, Any]:
    interval = metrics.kid_interval(generated, reference, draws=settings.draws, seed=settings.seed)
    size = _kid_size(len(generated), settings)
    subsets = metrics.kid_of_subsets(generated, reference, subsets=settings.kid_subsets, size=size, seed=settings.seed)
    coverage = metrics.precision_recall(generated, reference, neighbours=settings.neighbours)
    return {
        "kid": {**interval._asdict(), "subsets_mean": subsets.mean, "subsets_std": subsets.std, "subset_size": size},
        "precision": metrics.proportion(coverage.inside_real)._asdict(),
        "recall": metrics.proportion(coverage.covered)._asdict(),
    }


def _inception_score(generated: Tensor, reference: Tensor, settings: EvaluationSettings) -> dict[str, Any]:
    splits = min(settings.splits, len(generated))
    score, real = (metrics.inception_score(logits, splits=splits) for logits in (generated, reference))
    return {"mean": score.mean, "std": score.std, "held_out_mean": real.mean, "splits": splits}


def _nearest(
    samples: Tensor, held_out: Tensor, train: Tensor, settings: EvaluationSettings
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """Return the metrics, and the samples closest to a training image with those images."""
    generated, real = metrics.nearest_neighbours(samples, train), metrics.nearest_neighbours(held_out, train)

    def ratio(left: Tensor, right: Tensor) -> float:
        # 0 if the held-out images are copies of training images; no sample can be nearer
        reference = float(real.distance[right].median())
        return float(generated.distance[left].median()) / reference if reference > 0 else 1.0

    interval = metrics.bootstrap(ratio, len(samples), len(held_out), draws=settings.draws, seed=settings.seed)
    max_distance = float(torch.cat([generated.distance, real.distance]).max())
    edges = np.linspace(0, max_distance if max_distance > 0 else 1.0, 41)
    shares = [np.histogram(d.numpy(), edges)[0] / len(d) for d in (generated.distance, real.distance)]
    closest = generated.distance.argsort()[:48]
    numbers = {
        "median": float(generated.distance.median()),
        "held_out_median": float(real.distance.median()),
        "ratio": interval._asdict(),
        "memorised": interval.value < MEMORISED,
        "exact_copies": int((generated.distance == 0).sum()),
        "histogram": {"edges": edges.tolist(), "samples": shares[0].tolist(), "held_out": shares[1].tolist()},
    }
    return numbers, (samples[closest], train[generated.place[closest]])


def _protocol(
    samples: Tensor, labels: Tensor | None, real: tuple[ImageSet, ImageSet], features: FeatureNetwork, plan: _Plan
) -> dict[str, Any]:
    train, held_out = real
    return {
        "version": VERSION,
        "features": {
            "name": features.name,
            "sha256": features.sha256,
            "dim": features.dim,
            "preprocessing": features.preprocessing,
        },
        "samples": {"count": len(samples), "labelled": labels is not None},
        "count": plan.count,
        "shape": list(held_out.pixels.shape[1:]),
        "train": {"count": len(train.pixels), "sha256": train.sha256()},
        "held_out": {"count": len(held_out.pixels), "sha256": held_out.sha256()},
        "floor_from": "training and held-out images" if plan.from_both else "held-out images",
        "kid_subset_size": _kid_size(plan.count, plan.settings),
        "settings": {key: value for key, value in asdict(plan.settings).items() if key not in ("count", "kid_size")},
    }


def _kid_size(count: int, settings: EvaluationSettings) -> int:
    return min(settings.kid_size, count // 2)


def _images(
    samples: Tensor, labels: Tensor | None, held_out: Tensor, closest: tuple[Tensor, Tensor]
) -> dict[str, bytes]:
    """Return grids of samples: ten per class, or the first hundred without classes; and the closest pairs."""
    rows = torch.arange(min(100, len(samples)))
    if labels is not None:
        rows = torch.cat([(labels == label).nonzero().flatten()[:10] for label in labels.unique()[:20]])
    return {
        "samples": plots.make_grid(samples[rows], 10),
        "held_out": plots.make_grid(held_out[:50], 10),
        "nearest": plots.pair_grid(*closest),
    }


def _findings(results: Results) -> list[Finding]:
    findings: list[Finding] = []
    if read := results.get("read"):
        remark = f"{read['count']} samples; accuracy of the classifier on held-out images {read['accuracy']:.1%}"
        findings.append(Finding("read as their class", *interval_of(read), unit="%", remark=remark))
    if distance := results.get("fid"):
        floor, ratio = distance["floor"], distance["ratio"]
        note = f"; {ratio:.2f} times the floor" if ratio is not None else ""
        remark = (
            f"floor {floor['mean']:.3f} ({floor['least']:.3f} to {floor['most']:.3f}): "
            f"real images against real images, {floor['splits']} random splits of the same number"
        )
        baselines = {"floor": floor["mean"]}
        findings.append(
            Finding("FID", *interval_of(distance), form=".3f", baselines=baselines, note=note, remark=remark)
        )
    if kid := results.get("kid"):
        remark = f"0 for equal sets; subsets: {kid['subsets_mean']:.5f}, standard deviation {kid['subsets_std']:.5f}"
        findings.append(Finding("KID", *interval_of(kid), form=".5f", remark=remark))
    for key, remark in (("precision", "samples among real images"), ("recall", "real images among samples")):
        if key in results:
            findings.append(Finding(key, *interval_of(results[key]), unit="%", remark=remark))
    if score := results.get("inception_score"):
        note, real = f", standard deviation {score['std']:.3f}", score["held_out_mean"]
        baselines, remark = {"held-out images": real}, f"held-out images: {real:.3f}"
        findings.append(
            Finding("Inception score", score["mean"], form=".3f", baselines=baselines, note=note, remark=remark)
        )
    if nearest := results.get("nearest"):
        verdict = "memorised" if nearest["memorised"] else "not memorised"
        note = f" times the distance of held-out images; {verdict}"
        remark = (
            f"median distance to the nearest training image {nearest['median']:.4f}, of held-out images "
            f"{nearest['held_out_median']:.4f}; below {MEMORISED} is memorised"
        )
        findings.append(Finding("nearness", *interval_of(nearest["ratio"]), form=".3f", note=note, remark=remark))
    return findings + _likelihoods(results)


def _likelihoods(results: Results) -> list[Finding]:
    findings: list[Finding] = []
    if bits := results.get("bits_per_dim"):
        remark = "the variational bound on held-out images; lower is better"
        findings.append(Finding("bits/dim", *interval_of(bits), form=".3f", remark=remark))
    if bits := results.get("ode_bits_per_dim"):
        remark = f"the probability-flow ODE on {bits['images']} held-out images; lower is better"
        if (error := bits.get("probe_error")) is not None:
            remark += f"; standard error of its {bits['probes']} probes {error:.4f}"
        findings.append(Finding("bits/dim, ODE", *interval_of(bits), form=".3f", remark=remark))
    return findings


def _details(report: Report) -> Iterable[Block]:
    results = report.results
    if read := results.get("read"):
        rows = [
            (str(row["name"]), str(row["count"]), f"{row['value']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}")
            for row in read["per_class"]
        ]
        yield Heading("Read as their class")
        yield Figure(
            "Share of samples read as the class they are conditioned on.", plots.class_chart(read["per_class"])
        )
        yield Table(("class", "samples", "read as it", "95 % interval"), rows)
    if distance := results.get("fid"):
        yield Heading("Frechet distance and its floor")
        yield Figure(
            "Real images differ from other real images too: the floor is the score of a perfect model.",
            plots.floor_chart(distance["floor"]["values"], distance["value"]),
        )
    if nearest := results.get("nearest"):
        yield Heading("Nearest training images", anchor="nearest")
        yield Figure(
            "A model that copies has its samples left of the held-out images.",
            plots.nearest_chart(nearest["histogram"]),
        )
        caption = "The samples nearest to a training image (left of each pair) beside it (right)."
        yield from report.figure("nearest", caption)
    yield from report.figure("held_out", "Held-out images.")


def memorised_warning(report: Report) -> Iterable[Paragraph]:
    """Yield a warning if the samples are copies of training images."""
    if report.memorised:
        nearest = report.results["nearest"]
        yield Paragraph(
            "**Memorised.** The distance of the samples from their nearest training images is "
            f"{nearest['ratio']['value']:.2f} times that of new images. {nearest['exact_copies']} are exact copies.",
            "warning",
        )


JUDGE = Judge(
    key="kid",
    title="Samples",
    findings=_findings,
    metrics=lambda results: {
        "read": "read.value",
        "fid": "fid.value",
        "fid / floor": "fid.ratio",
        "kid": "kid.value",
        "precision": "precision.value",
        "recall": "recall.value",
        "inception score": "inception_score.mean",
        "nearness": "nearest.ratio.value",
        "bits/dim": "bits_per_dim.value",
        "bits/dim, ODE": "ode_bits_per_dim.value",
    },
    figures={"samples": "The first samples of each class."},
    details=_details,
    warnings=memorised_warning,
)
