"""A report on samples: what was measured, how exactly, and a hash of how, without which numbers are not compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from unveil.errors import DataError, RecipeError
from unveil.model.migration import migrate_settings

MEMORISED = 0.8  # samples this much nearer to the training images than held-out ones are copies
BITS = {"": "bits_per_dim", ", ODE": "ode_bits_per_dim"}  # the forms of bits/dim by their metric
VIDEO_METRICS = {
    "colour": "colour as asked",
    "shape": "shape as asked",
    "motion": "motion as asked",
    "all": "all as asked",
    "visible": "seen in every frame",
}  # the measures of videos of one thing
CAPTION_METRICS = {
    "attributes": "attributes told right",
    "parse": "captions that can be read back",
    "whole": "captions right as a whole",
}  # the measures of captions
_FORMAT = 1


@dataclass(frozen=True)
class Report:
    """Results of an evaluation together with the protocol that produced them.

    Attributes:
        protocol: every setting that the numbers depend on, down to the hash of the feature network's weights.
        results: Results by metric; `summary` describes them in words.
        missing: Reason for each metric that is missing.
        about: Metadata outside the protocol: command, commit, CPU-minutes.
        images: PNGs of the HTML page: samples, held_out, nearest; empty in a loaded report.
        stored_sha256: Hash that a file with former keys states; empty where the protocol is written as it is hashed.
    """

    protocol: Mapping[str, Any]
    results: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    stored_sha256: str = ""

    @property
    def protocol_sha256(self) -> str:
        """The hash of the protocol, as the file states it. Numbers of equal hashes may be compared."""
        return self.stored_sha256 or _sha256(self.protocol)

    @property
    def memorised(self) -> bool:
        """True if the samples are closer to the training images than held-out images are."""
        return bool(self.results.get("nearest", {}).get("memorised", False))

    def to_json(self) -> str:
        """Everything but the images; numbers in full."""
        content = {
            "format": _FORMAT,
            "protocol_sha256": _sha256(self.protocol),
            "protocol": self.protocol,
            "results": self.results,
            "missing": self.missing,
            "about": self.about,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """A report from its report.json, or from the folder that holds it; without its images.

        Raises:
            DataError: no such file, not a report, or one whose protocol was changed after the fact.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text())
            report = cls(*(content[key] for key in ("protocol", "results", "missing", "about")))
            stated = content["protocol_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                f"{path}: not a report of unveil: {problem!r}; name the report.json, or its folder"
            ) from problem
        if stated != report.protocol_sha256:
            raise DataError(
                f"{path}: the protocol is not the one that its hash {stated[:12]} was made of; evaluate again"
            )
        if isinstance(settings := report.protocol.get("sampling"), Mapping):
            protocol = {**report.protocol, "sampling": migrate_settings(settings)}
            if protocol != report.protocol:
                report = replace(report, protocol=protocol, stored_sha256=stated)
        return report

    def summary(self) -> list[str]:
        """The findings, a line each."""
        return [f"{row.name}: {row.text}" for row in findings(self)]


class Finding(NamedTuple):
    """A line of a report: the metric, what was found, and a remark on how to read it."""

    name: str
    text: str
    remark: str


class MetricDelta(NamedTuple):
    """One metric of two reports."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """The second less the first."""
        return self.second - self.first


def compare(first: Report, second: Report, *, varying: Sequence[str] = ()) -> list[MetricDelta]:
    """The metrics that two reports share, side by side.

    Args:
        varying: settings of the protocol that may differ, because they are what is compared: "sampling" or
            "sampling.steps".

    Raises:
        RecipeError: the protocols differ in anything else; such numbers are not comparable.
    """
    left, right = (flatten(json.loads(_canonical(report.protocol))) for report in (first, second))
    apart = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key) and not _named(key, varying)]
    if apart:
        named = "; ".join(f"{key}: {left.get(key, 'not set')} and {right.get(key, 'not set')}" for key in apart[:5])
        more = f"; and {len(apart) - 5} more" if len(apart) > 5 else ""
        raise RecipeError(
            f"reports of different protocols ({first.protocol_sha256[:12]} and {second.protocol_sha256[:12]}) cannot "
            f"be compared: {named}{more}; evaluate both alike, or name what is compared in varying="
        )
    ours, theirs = _numbers(first), _numbers(second)
    # likelihoods are on images and noise levels of their own, which are not part of the protocol of the samples
    unlike = {f"bits/dim{form}" for form, key in BITS.items() if _settings(first, key) != _settings(second, key)}
    shared = [name for name in ours if name in theirs and name not in unlike]
    return [MetricDelta(name, ours[name], theirs[name]) for name in shared]


def findings(report: Report) -> list[Finding]:
    """Return the lines that the HTML page and the command line show of a report."""
    lines, results = [], report.results
    if read := results.get("read"):
        remark = f"{read['count']} samples; the classifier reads {read['accuracy']:.1%} of held-out pictures correctly"
        lines.append(Finding("read as their class", _interval(read, percent=True), remark))
    if fid := results.get("fid"):
        floor, ratio = fid["floor"], fid["ratio"]
        text = _interval(fid) + (f"; {ratio:.2f} times the floor" if ratio is not None else "")
        remark = (
            f"floor {floor['mean']:.3f} ({floor['least']:.3f} to {floor['most']:.3f}): "
            f"real pictures from real pictures, {floor['splits']} random splits of the same number"
        )
        lines.append(Finding("FID", text, remark))
    if kid := results.get("kid"):
        remark = f"0 for equal sets; subsets: {kid['subsets_mean']:.5f}, standard deviation {kid['subsets_std']:.5f}"
        lines.append(Finding("KID", _interval(kid, digits=5), remark))
    for key, remark in (("precision", "samples among real pictures"), ("recall", "real pictures among samples")):
        if key in results:
            lines.append(Finding(key, _interval(results[key], percent=True), remark))
    if score := results.get("inception_score"):
        text = f"{score['mean']:.3f}, standard deviation {score['std']:.3f}"
        lines.append(Finding("Inception score", text, f"held-out pictures: {score['held_out_mean']:.3f}"))
    if near := results.get("nearest"):
        verdict = "memorised" if near["memorised"] else "not memorised"
        remark = (
            f"median distance to the nearest training picture {near['median']:.4f}, of held-out pictures "
            f"{near['held_out_median']:.4f}; below {MEMORISED} says memorised"
        )
        lines.append(
            Finding("nearness", f"{_interval(near['ratio'])} times as far as held-out pictures; {verdict}", remark)
        )
    if iou := results.get("iou"):
        remark = f"{iou['rule']}; against the truth of another picture: {iou['chance']:.3f}"
        lines.append(Finding("mean IoU", _interval(iou), remark))
    if bits := results.get("bits_per_dim"):
        lines.append(
            Finding("bits/dim", _interval(bits), "the variational bound on held-out pictures; lower is better")
        )
    if bits := results.get("ode_bits_per_dim"):
        remark = f"the probability-flow ODE on {bits['pictures']} held-out pictures; lower is better"
        if (error := bits.get("probe_error")) is not None:
            remark += f"; standard error of its {bits['probes']} probes {error:.4f}"
        lines.append(Finding("bits/dim, ODE", _interval(bits), remark))
    lines += _rebuilt(results) + _enlarged(results.get("enlarged", {})) + _prompted(results)
    return lines + _filmed(results.get("clips", {})) + _told(results.get("captions", {}))


def _told(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on captions."""
    if not results:
        return []
    parts = ", ".join(f"{name} {share:.1%}" for name, share in results["by_attribute"].items())
    remark = f"{parts}; of {results['count']} captions; captions of other clips {results['chance']:.1%}"
    remarks = {"attributes": remark, "parse": "no unknown word in them", "whole": "every attribute"}
    return [
        Finding(words, _interval(results[key], percent=True), remarks[key]) for key, words in CAPTION_METRICS.items()
    ]


def _filmed(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on generated videos, by prompt set."""
    lines: list[Finding] = []
    for name, judged in results.items():
        for key, words in VIDEO_METRICS.items():
            if key not in judged:
                continue
            remark = f"{judged['count']} prompts; real clips of them {judged['real_clips'][key]:.1%}"
            if key in judged["chance"]:
                remark += f", chance {judged['chance'][key]:.1%}"
            lines.append(Finding(f"{words}, {name}", _interval(judged[key], percent=True), remark))
    return lines


def _enlarged(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on super-resolution, relative to bicubic upsampling."""
    lines: list[Finding] = []
    forms = (("psnr", "PSNR above bicubic", " dB", 2), ("ssim", "SSIM above bicubic", "", 4))
    for key, name, unit, digits in (*forms, ("perceptual", "perceptual distance below bicubic", "", 4)):
        if gain := results.get(key):
            remark = f"of each picture; {gain['model']:.{digits}f}{unit}, bicubic {gain['bicubic']:.{digits}f}{unit}"
            lines.append(Finding(name, f"{_interval(gain, digits=digits)}{unit}", remark))
    if consistency := results.get("kept"):
        text = f"{consistency['mean']:.4f} {consistency['rule']}"
        lines.append(Finding("made smaller again", text, "mean difference from the picture that was given"))
    return lines


def _prompted(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on prompts and negative prompts."""
    lines: list[Finding] = []
    if named := results.get("named"):
        parts = ", ".join(f"{name} {share:.1%}" for name, share in named["by_attribute"].items())
        spoken = ", ".join(f"{name} {share:.1%}" for name, share in named["by_language"].items())
        remark = (
            f"{parts}; {spoken}; all that is said of an object on one object {named['together']:.1%}; right number of "
            f"objects {named['right_number']:.1%}; against another caption {named['chance']:.1%}, real pictures "
            f"{named['real_pictures']:.1%}"
        )
        lines.append(Finding("named attributes seen", _interval(named, percent=True), remark))
    if negative := results.get("negative"):
        remark = (
            f"{negative['count']} pairs of the same noise: {negative['without']:.1%}, with it {negative['with']:.1%}"
        )
        text = f"{_interval(negative, percent=True)} less often seen"
        lines.append(Finding("what a negative prompt names", text, remark))
    return lines


def _rebuilt(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on reconstructions of an autoencoder."""
    lines: list[Finding] = []
    if psnr := results.get("psnr"):
        each = _interval(psnr["per_picture"], digits=2)
        remark = f"of the mean squared error over all {psnr['count']} pictures; mean of each picture's own: {each} dB"
        lines.append(Finding("PSNR", f"{_interval(psnr, digits=2)} dB", remark))
    if ssim := results.get("ssim"):
        lines.append(Finding("SSIM", _interval(ssim, digits=4), "1 for equal pictures"))
    if perceptual := results.get("perceptual"):
        remark = f"by {perceptual['network']}; 0 for equal pictures"
        lines.append(Finding("perceptual distance", _interval(perceptual, digits=4), remark))
    if rfid := results.get("rfid"):
        remark = f"rebuilt pictures from the {rfid['count']} that they were made of, by {rfid['features']}"
        lines.append(Finding("rFID", f"{rfid['value']:.3f}", remark))
    if codebook := results.get("codebook"):
        text = f"{codebook['used']:.1%} of {codebook['codes']} entries used"
        lines.append(Finding("codebook", text, f"perplexity {codebook['perplexity']:.0f}"))
    if seen := results.get("things"):
        parts = ", ".join(f"{name} {rate['value']:.1%}" for name, rate in seen.items() if name != "together")
        remark = f"{parts}; in the clips themselves all three {seen['together']['real']:.1%}"
        lines.append(Finding("colour, shape and motion seen", _interval(seen["together"], percent=True), remark))
    if latents := results.get("latents"):
        text = f"{latents['values']} values, {latents['share']:.3g} of the picture's"
        remark = f"of shape {tuple(latents['shape'])}; mean {latents['mean']:.3f}, deviation {latents['deviation']:.3f}"
        lines.append(Finding("latents", text, remark))
    return lines


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _canonical(tree: Mapping[str, Any]) -> str:
    try:
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise RecipeError(f"a protocol holds numbers, words, lists and mappings only: {problem}") from problem


def _sha256(protocol: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(protocol).encode()).hexdigest()


def _named(key: str, varying: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in varying)


def _settings(report: Report, metric: str) -> dict[str, Any]:
    """Return the settings of a likelihood without its results."""
    measured = ("value", "low", "high", "calls", "probe_error")
    return {key: value for key, value in report.results.get(metric, {}).items() if key not in measured}


def _numbers(report: Report) -> dict[str, float]:
    """One number per metric."""
    places = {
        "read": "read.value",
        "fid": "fid.value",
        "fid / floor": "fid.ratio",
        "kid": "kid.value",
        "precision": "precision.value",
        "recall": "recall.value",
        "inception score": "inception_score.mean",
        "nearness": "nearest.ratio.value",
        "mean IoU": "iou.value",
        "PSNR": "psnr.value",
        "SSIM": "ssim.value",
        "perceptual distance": "perceptual.value",
        "rFID": "rfid.value",
        "codebook used": "codebook.used",
        "colour, shape and motion seen": "things.together.value",
        "PSNR above bicubic": "enlarged.psnr.value",
        "SSIM above bicubic": "enlarged.ssim.value",
        "perceptual distance below bicubic": "enlarged.perceptual.value",
        "named attributes seen": "named.value",
        "fall by a negative prompt": "negative.value",
        **{words: f"captions.{key}.value" for key, words in CAPTION_METRICS.items()},
        **{f"bits/dim{form}": f"{key}.value" for form, key in BITS.items()},
        **{
            f"{words}, {prompt_set}": f"clips.{prompt_set}.{key}.value"
            for prompt_set in report.results.get("clips", {})
            for key, words in VIDEO_METRICS.items()
        },
    }
    flat = flatten(report.results)
    return {name: float(flat[place]) for name, place in places.items() if flat.get(place) is not None}


def _interval(interval: Mapping[str, Any], *, percent: bool = False, digits: int = 3) -> str:
    form = ".1%" if percent else f".{digits}f"
    return f"{interval['value']:{form}} ({interval['low']:{form}} to {interval['high']:{form}})"
