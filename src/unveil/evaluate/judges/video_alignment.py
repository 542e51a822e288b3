"""Prompt alignment of playground videos and images: colour, shape, motion and visibility."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.errors import PromptTruncated, RecipeError
from unveil.evaluate import plots
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.image_set import ImageDataset, digest_of
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import proportion
from unveil.evaluate.page_writer import Block, Heading, Table
from unveil.evaluate.report import Report
from unveil.evaluate.sampling import SamplingOptions, generate_for
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.playground.detector import detect_objects
from unveil.playground.eval_prompts import EvalPrompt, PromptSet, eval_prompts, eval_videos
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.caption_templates import REGISTERS, Language
from unveil.playground.world.motion import TEN
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SIZE, RATE = (16, 32, 32), 8  # of the evaluation split: frames, height, width; frames per second
PROMPT_ATTRIBUTES = ("colour", "shape", "motion")  # stated by every prompt, and scored
OPTIONAL_ATTRIBUTES = ("size", "turn")  # stated by some prompts
SHOWN, MISSED = 20, 40  # videos of the animation; entries in the list of errors
_VISIBLE = "visible"  # in every frame
# of a video that shows anything whatever of the evaluation split
_CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(KINDS), "motion": 1 / len(TEN)}
VIDEO_METRICS = {
    "colour": "colour as in the prompt",
    "shape": "shape as in the prompt",
    "motion": "motion as in the prompt",
    "all": "all as in the prompt",
    "visible": "seen in every frame",
}  # names of the measures of videos of one object; recipes state expected values under them
_STILL = "images do not move, and only combinations with a motion are held out"


class Detection(NamedTuple):
    """Attributes of the only object of a video, None if undetected, and True if every frame shows it."""

    attributes: Mapping[str, str | None]
    visible: bool


def detect(pixels: Tensor, rate: int = RATE) -> Detection:
    """Detect the object of a video uint8 (3, T, H, W) with the most frequent colour.

    Raises:
        ShapeError: The video has another type or shape.
    """
    for detected in detect_objects(pixels, fps=rate, max_objects=1):
        turn = None if detected.motion is None else detected.motion.turn
        attributes = {
            "colour": detected.colour,
            "shape": detected.shape,
            "size": detected.size,
            "motion": detected.motion_name,
            "turn": turn,
        }
        return Detection(attributes, bool(detected.visible.all()))
    return Detection(dict.fromkeys((*PROMPT_ATTRIBUTES, *OPTIONAL_ATTRIBUTES)), False)


def evaluate_videos(
    model: Model,
    how: SamplingOptions,
    lists: Sequence[PromptSet] = ("seen", "held-out"),
    *,
    count: int = 500,
    language: Language = "en",
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluate one sample for each prompt of the evaluation split by the detector, without compression.

    Each share is compared with the ceiling of the detector, the share of the real videos which the prompts describe,
    and with chance, the share of unrelated videos.

    Args:
        model: Text-to-video or text-to-image model; it samples at the size of the evaluation split. Images are
            evaluated by colour and shape.
        how: Options of sampling.
        lists: Prompt sets, see `playground.eval_prompts.eval_prompts`.
        count: Number of prompts per set.
        language: Language of the prompts.
        about: Metadata outside of the protocol: command, commit, CPU minutes.

    Raises:
        RecipeError: The model has another shape, or a prompt set is unknown.
    """
    model = _at_evaluation_size(model)
    frames = SIZE[0] if len(model.shape) == 4 else 1
    missing = {"held-out": _STILL} if frames == 1 and "held-out" in lists else {}
    lists = [prompt_set for prompt_set in lists if prompt_set not in missing]
    results: dict[str, Any] = {}
    images: dict[str, bytes] = {}
    texts: list[Item] = []
    for number, prompt_set in enumerate(lists):
        prompts = eval_prompts(prompt_set, language=language, count=count, frames=frames)
        items: list[Item] = [{"text": prompt.text} for prompt in prompts]
        pixels = _sample(model, items, how, number * count)
        detections, real = (
            [detect(video) for video in videos] for videos in (pixels, _real(prompt_set, prompts, frames))
        )
        results[prompt_set] = _set_results(prompts, detections, real)
        images |= _example_images(prompt_set, prompts, pixels, detections)
        texts += items
    protocol = {
        "version": VERSION,
        "prompts": count,
        "lists": list(lists),
        "language": language,
        "size": list(model.shape[1:]),
        "rule": "of the object of the most frequent colour; the detector on frames as they are drawn",
        "seed": how.seed,
        "batch": how.batch,
        "precision": str(model.precision).removeprefix("torch."),
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "prompts_sha256": digest_of(texts, ("text",)),
    }
    provenance = {"data": "playground", "unveil": __version__, **(about or {})}
    return Report(protocol, {"clips": results}, missing, provenance, images)


def _at_evaluation_size(model: Model) -> Model:
    """Return the model for the size of the evaluation split."""
    if len(model.shape) not in (3, 4) or model.shape[0] != 3:
        raise RecipeError(f"a model of {tuple(model.shape)}: the score is of videos (3, T, H, W) and images (3, H, W)")
    size = SIZE if len(model.shape) == 4 else SIZE[1:]
    return model if tuple(model.shape[1:]) == size else model.resized(size)


def _sample(model: Model, items: Sequence[Item], how: SamplingOptions, before: int) -> Tensor:
    """Generate a sample for each text, uint8; progress continues after the `before` earlier ones."""
    on_batch = how.on_batch
    options = how if on_batch is None else how._replace(on_batch=lambda done: on_batch(before + done))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)  # raw texts hold numbers outside the vocabulary
        return to_pixels(generate_for(model, items, options))


def _real(prompt_set: PromptSet, prompts: Sequence[EvalPrompt], frames: int) -> list[Tensor]:
    return [item["pixels"] for item in eval_videos(prompt_set, prompts, frames=frames)]


def matches_prompt(prompt: EvalPrompt, seen: Detection) -> dict[str, bool]:
    """Compare a detection with its prompt, by attribute; "all" combines colour, shape and motion."""
    matches = {
        name: seen.attributes[name] == prompt.attributes[name]
        for name in (*PROMPT_ATTRIBUTES, *OPTIONAL_ATTRIBUTES)
        if name in prompt.attributes
    }
    return {
        **matches,
        "all": all(matches[name] for name in PROMPT_ATTRIBUTES if name in matches),
        _VISIBLE: seen.visible,
    }


def _set_results(
    prompts: Sequence[EvalPrompt], detections: Sequence[Detection], real: Sequence[Detection]
) -> dict[str, Any]:
    """Return the results of one prompt set, for generated and real videos."""
    hits = [matches_prompt(*pair) for pair in zip(prompts, detections, strict=True)]
    ceiling = [matches_prompt(*pair) for pair in zip(prompts, real, strict=True)]
    groups = {
        "register": [prompt.caption_style for prompt in prompts],
        "motion": [prompt.attributes.get("motion") for prompt in prompts],
        "shape": [prompt.attributes["shape"] for prompt in prompts],
    }
    orders = {"register": REGISTERS, "motion": TEN, "shape": KINDS}
    guessed = {name: chance for name, chance in _CHANCE.items() if name in prompts[0].attributes}
    wrong = [n for n, hit in enumerate(hits) if not (hit["all"] and hit[_VISIBLE])]
    return {
        "count": len(prompts),
        **_shares(hits),
        "real_clips": _values(_shares(ceiling)),
        "chance": {**guessed, "all": math.prod(guessed.values())},
        **{
            f"by_{name}": {
                value: {
                    "count": kind.count(value),
                    **_shares([hit for hit, label in zip(hits, kind, strict=True) if label == value]),
                }
                for value in orders[name]
                if value in kind
            }
            for name, kind in groups.items()
        },
        "motions_read": _motion_confusion(prompts, detections),
        "missed": [
            {"number": n, "prompt": prompts[n].text, "read": dict(detections[n].attributes)} for n in wrong[:MISSED]
        ],
    }


def _shares(hits: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Return the accuracy of each attribute over the prompts that name it, with its interval."""
    shares: dict[str, dict[str, float]] = {}
    for name in (*PROMPT_ATTRIBUTES, "all", _VISIBLE, *OPTIONAL_ATTRIBUTES):
        outcomes = torch.tensor([hit[name] for hit in hits if name in hit])
        if len(outcomes):
            shares[name] = {**proportion(outcomes)._asdict(), "count": len(outcomes)}
    return shares


def _values(shares: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: share["value"] for name, share in shares.items()}


def _motion_confusion(prompts: Sequence[EvalPrompt], detections: Sequence[Detection]) -> dict[str, dict[str, int]]:
    """Return the confusion matrix of motions."""
    pairs = Counter(
        (prompt.attributes["motion"], str(seen.attributes["motion"]))
        for prompt, seen in zip(prompts, detections, strict=True)
        if "motion" in prompt.attributes
    )
    names = [name for name in TEN if any(prompted == name for prompted, _ in pairs)]
    return {name: {read_as: n for (prompted, read_as), n in pairs.items() if prompted == name} for name in names}


def _example_images(
    prompt_set: PromptSet, prompts: Sequence[EvalPrompt], pixels: Tensor, detections: Sequence[Detection]
) -> dict[str, bytes]:
    """Animations of the first videos of each motion and of the first wrong ones, and frames of some videos.

    For images, grids of the first and of the first wrong ones.
    """
    wrong = [n for n, pair in enumerate(zip(prompts, detections, strict=True)) if not matches_prompt(*pair)["all"]][
        : SHOWN // 2
    ]
    if pixels.ndim == 4:
        sheets = {"clips": pixels[: 2 * SHOWN], "missed": pixels[wrong]}
        return {
            f"{name} {prompt_set}": plots.make_grid(group, SHOWN // 2) for name, group in sheets.items() if len(group)
        }
    first = [
        [n for n, prompt in enumerate(prompts) if prompt.attributes["motion"] == name][: SHOWN // len(TEN)]
        for name in TEN
    ]
    chosen = [n for group in first for n in group]
    images = {f"clips {prompt_set}": plots.animated_sheet(pixels[chosen], RATE, SHOWN // 2)}
    images[f"frames {prompt_set}"] = plots.frame_rows(pixels[[group[0] for group in first if group]])
    if wrong:
        images[f"missed {prompt_set}"] = plots.animated_sheet(pixels[wrong], RATE, SHOWN // 2)
    return images


def _findings(results: Results) -> list[Finding]:
    findings: list[Finding] = []
    for prompt_set, scores in results.get("clips", {}).items():
        for key, name in VIDEO_METRICS.items():
            if key not in scores:
                continue
            real, chance = scores["real_clips"][key], scores["chance"].get(key)
            remark = f"{scores['count']} prompts; real videos of them {real:.1%}"
            remark += "" if chance is None else f", chance {chance:.1%}"
            baselines = {} if chance is None else {"chance": chance}
            findings.append(
                Finding(
                    f"{name}, {prompt_set}", *interval_of(scores[key]), unit="%", ceiling=real, baselines=baselines,
                    remark=remark,
                )
            )  # fmt: skip
    return findings


def _details(report: Report) -> Iterable[Block]:
    """Yield the section of each prompt set: example videos, accuracies by group, and the prompts that were missed."""
    for prompt_set, scores in report.results.get("clips", {}).items():
        yield Heading(f"Prompts: {prompt_set}")
        yield from report.figure(f"clips {prompt_set}", "The first videos, of each motion if prompts name one.")
        yield from report.figure(f"frames {prompt_set}", "Frames of the first video of each motion, a row each.")
        measures = {key: name for key, name in VIDEO_METRICS.items() if key in scores}
        for kind in ("register", "motion", "shape"):
            rows = [
                (
                    name,
                    str(shares["count"]),
                    *(Finding("", *interval_of(shares[key]), unit="%").text for key in measures),
                )
                for name, shares in scores[f"by_{kind}"].items()
            ]
            if rows:
                yield Table((kind, "prompts", *measures.values()), rows)
        references = {"real_clips": "real videos of these prompts", "chance": "chance: any video of the world"}
        rows = [
            (name, "", *(f"{scores[key][row]:.1%}" if row in scores[key] else "" for row in measures))
            for key, name in references.items()
        ]
        yield Table(("for comparison", "", *measures.values()), rows)
        if scores["missed"]:
            yield from report.figure(f"missed {prompt_set}", "The first videos that do not show every attribute.")
            yield Table(
                ("prompt", "number", "detected"),
                [(row["prompt"], str(row["number"]), _attribute_text(row["read"])) for row in scores["missed"]],
            )


def _attribute_text(attributes: Mapping[str, str | None]) -> str:
    return ", ".join(str(value) for value in attributes.values() if value is not None) or "nothing"


def _applies(recipe: Recipe) -> bool:
    return recipe.data.kind == "playground" and [condition.key for condition in recipe.condition] == ["prompt"]


def _run(recipe: Recipe, model: Model, held_out: ImageDataset, options: SamplingOptions) -> Report:
    del held_out  # prompts have an evaluation split of their own
    settings = recipe.evaluate
    return evaluate_videos(model, options, settings.prompt_sets, count=settings.samples, language=settings.language)


JUDGE = Judge(
    key="clips",
    title="Playground videos from text",
    findings=_findings,
    metrics=lambda results: {
        f"{name}, {prompt_set}": f"clips.{prompt_set}.{key}.value"
        for prompt_set in results.get("clips", {})
        for key, name in VIDEO_METRICS.items()
    },
    details=_details,
    applies=_applies,
    run=_run,
    batch=16,  # a video has as many numbers as its frames
    unit="video",
)
