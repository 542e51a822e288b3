"""Models of released files: of Improved DDPM, ADM and consistency models here, of others by their own modules.

A state dict shows widths, levels and where attention stands, but not the side of the pictures, the heads of the
attention and the order of their rows, the schedule, whether indices are rescaled, or how the variance was learned.
For released files a table knows, by keys and shapes; for others it has to be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unveil.checkpoints import dit, dit_pipeline, edm_score_sde_models, formats, openai, single_file
from unveil.checkpoints.openai_flags import CLASSIFIER_FLAGS, FILES, FLAGS, from_classifier_flags, from_flags
from unveil.checkpoints.overrides import ModelOverrides, Shapes, in_float, shapes_of
from unveil.errors import WeightsError
from unveil.io.safetensors_io import read_state
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import UNetSection
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.meta_device import meta_device
from unveil.nn.unet_config import UNetConfig

# The published names of schedules, and ours
BETAS = {"linear": "linear-scaled", "cosine": "cosine"}
SMALL_PICTURE = "low"  # the raw key of what an upsampler enlarges
# How consistency models are drawn from (of two calls on this grid the second lies near the published one), and their
# teachers; and the calls of an ancestral chain that no script is known for.
CONSISTENCY = {"sampler": "consistency", "steps": 1, "schedule": "uniform-log-snr"}
TEACHER = {"sampler": "heun", "steps": 40, "schedule": "karras"}
CALLS = 250

ASKED = ("size", "heads|head_channels", "attention_order", "beta_schedule", "timesteps", "rescale_timesteps")


@dataclass(frozen=True)
class ReleasedModel:
    """What a state dict holds.

    Args:
        files: the released ones with these keys and shapes; none where the rest was said.
        network: its configuration.
        size: side of the pictures.
        classes: of the label table, or of a classifier; None: it knows no classes.
        process: as in a recipe; a classifier is given its index too.
        prediction, variance: as in a recipe; a classifier has no variance.
        calls: of the ancestral sampler, in the published script's commands; None: the whole chain.
    """

    files: tuple[str, ...]
    network: UNetConfig | NoisyClassifierConfig
    size: int
    classes: int | None
    process: Mapping[str, Any]
    prediction: Any = "eps"
    variance: str | None = None
    calls: int | None = None

    @property
    def sample(self) -> dict[str, Any]:
        """How the published scripts draw from it."""
        if self.process["kind"] == "discrete-vp":
            table = self.process.get("beta_schedule")
            total = (self.process.get("timesteps") or 1000) if table is None or isinstance(table, str) else len(table)
            steps = min(self.calls or total, total)
            return {"sampler": "ancestral", "steps": steps, "schedule": str(steps)}
        if isinstance(self.prediction, str):
            return {}
        kind = self.prediction["kind"] if isinstance(self.prediction, Mapping) else self.prediction.kind
        return CONSISTENCY if kind == "consistency" else TEACHER

    def model_config(self) -> ModelConfig:
        """The configuration of the model that the file is.

        Raises:
            WeightsError: it is a classifier.
        """
        if not isinstance(self.network, UNetConfig):
            raise WeightsError("this file is a noisy classifier, which guides a model and makes no pictures itself")
        network = {name: value for name, value in asdict(self.network).items() if name in UNetSection.model_fields}
        condition: list[dict[str, Any]] = []
        if self.classes is not None:
            condition.append({"kind": "class-label", "num_classes": self.classes})
        if self.network.concat_channels:
            condition.append({"kind": "concat", "key": SMALL_PICTURE, "channels": self.network.concat_channels})
        plain = {
            "shape": (self.network.in_channels, self.size, self.size),
            "network": {"kind": "unet", **network},
            "process": dict(self.process),
            "prediction": self.prediction,
            "variance": self.variance,
            "condition": condition,
            "sample": self.sample,
        }
        return validate(ModelConfig, plain, " or ".join(self.files) or "the file")


# -- which one it is ----------------------------------------------------------------------------------------------


def match(shapes: Shapes, said: ModelOverrides | None = None) -> ReleasedModel:
    """What a state dict with these keys and shapes is.

    Args:
        shapes: of the tensors, by published key.
        said: what no released file tells; where one matches, it goes before the table.

    Raises:
        WeightsError: the keys are not those of such a network, or they are those of no released file and something
            was not said; it is named.
    """
    said = said or ModelOverrides()
    found = released(shapes)
    if found is None:
        found = _seen(shapes, said)
    network, process = found.network, dict(found.process)
    if said.heads is not None or said.head_channels is not None:
        network = replace(network, heads=said.heads or 1, head_channels=said.head_channels)
    if said.attention_order is not None:
        network = replace(network, attention_order=said.attention_order)
    process |= {
        name: getattr(said, name)
        for name in ("beta_schedule", "timesteps", "rescale_timesteps")
        if name in said.model_fields_set
    }
    if said.process is not None:
        process = said.process.model_dump(mode="json")
    changed = {name: getattr(said, name) for name in ("size", "variance", "prediction") if getattr(said, name)}
    return replace(found, network=network, process=process, **changed)


def released(shapes: Shapes) -> ReleasedModel | None:
    """The released network with exactly these keys and shapes, if there is one."""
    given = {key: tuple(shape) for key, shape in shapes.items()}
    found = {
        "width": given.get("time_embed.0.weight", (0, 0))[-1],
        "classifier": "output_blocks.0.0.in_layers.0.weight" not in given,
        "labels": openai.LABEL in given,
        "inputs": given.get("input_blocks.0.0.weight", (0, 0))[1],
    }
    for files, flags in FILES.items():
        all_flags = FLAGS | CLASSIFIER_FLAGS | flags
        classifier = "classifier_depth" in flags
        here = {
            "width": all_flags["classifier_width" if classifier else "num_channels"],
            "classifier": classifier,
            "labels": all_flags["class_cond"],
            "inputs": 6 if "large_size" in flags else 3,
        }
        # only the few that are alike in these are built, which takes no memory but time
        if here == found and given == _shapes(files):
            return release(files)
    return None


@cache
def release(files: tuple[str, ...]) -> ReleasedModel:
    """The entry of the table under these names."""
    given = FLAGS | FILES[files]
    process = {
        "kind": "discrete-vp",
        "beta_schedule": BETAS[given["noise_schedule"]],
        "timesteps": given["diffusion_steps"],
        "rescale_timesteps": 1000.0 if given["rescale_timesteps"] else None,
    }
    if "classifier_depth" in given:
        classifier = from_classifier_flags(FILES[files])
        return ReleasedModel(files, classifier, classifier.size, classifier.num_classes, process)
    size = given.get("large_size", given["image_size"])
    classes = 1000 if given["class_cond"] else None
    network = from_flags(FILES[files])
    if "sigma_max" in given:
        ends = {"sigma_min": given["sigma_min"], "sigma_max": given["sigma_max"]}
        boundary = {"kind": "consistency", "sigma_min": given["sigma_min"]}
        return ReleasedModel(files, network, size, classes, {"kind": "edm", **ends}, boundary, "fixed-small")
    variance = "learned-range" if given["learn_sigma"] else "fixed-large"
    calls = given["timestep_respacing"]
    return ReleasedModel(files, network, size, classes, process, variance=variance, calls=calls)


@cache
def _shapes(files: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found = release(files)
    with meta_device():
        if isinstance(found.network, NoisyClassifierConfig):
            theirs = openai.dump_classifier(NoisyClassifier(found.network).state_dict(), found.network)
        else:
            rows = None if found.classes is None else torch.empty(found.classes, found.network.vector_dim)
            label = None if rows is None else {openai.OUR_LABEL: rows}
            ones = 2 if found.process["kind"] == "edm" else 1
            theirs = openai.dump(openai.UNet(found.network).state_dict(), found.network, label, ones=ones)
    return {key: tuple(tensor.shape) for key, tensor in theirs.items()}


def _seen(shapes: Shapes, said: ModelOverrides) -> ReleasedModel:
    """What the keys show and the rest says."""
    diffusion = any(key.startswith("output_blocks.") for key in shapes)
    if not diffusion and not {"time_embed.0.weight", "input_blocks.0.0.weight", "out.0.weight"} <= shapes.keys():
        raise WeightsError(formats.explain_unknown_format(shapes))
    network = openai.infer_config(shapes) if diffusion else None
    wanted = [*ASKED, "variance" if diffusion else "num_res_blocks"]
    if "out.2.positional_embedding" in shapes:
        wanted.remove("size")  # that pooling has a row for each position
    if missing := said.lacks(wanted):
        names = ", ".join(missing).replace("|", " or ")
        raise WeightsError(
            "the keys and shapes are those of no released file of Improved DDPM, ADM or consistency models, and do "
            f"not say everything: give {names}, named as in a recipe (on the command line file.timesteps=1000)"
        )
    if network is None:
        network = openai.infer_classifier_config(shapes, cast(int, said.num_res_blocks), said.size)
        return ReleasedModel((), network, network.size, network.num_classes, {"kind": "discrete-vp"})
    classes = shapes[openai.LABEL][0] if openai.LABEL in shapes else None
    return ReleasedModel((), network, cast(int, said.size), classes, {"kind": "discrete-vp"}, calls=CALLS)


# -- models -------------------------------------------------------------------------------------------------------


def model_of(theirs: Mapping[str, Tensor], said: ModelOverrides | None = None) -> Model:
    """The model of a published state dict, in evaluation mode; tensors of another type become float32.

    Raises:
        WeightsError: as `match`, or it is a classifier.
    """
    shapes = shapes_of(theirs)
    if is_latent(shapes):
        return single_file.read(theirs, said).model
    if dit.layout_of(shapes) is not None:
        return dit_pipeline.model_of(theirs, said)
    read = edm_score_sde_models.reader_of(shapes)
    if read is not None:
        return read(theirs, said or ModelOverrides())
    found = match(shapes, said)
    config = found.model_config()
    assert isinstance(found.network, UNetConfig)
    parts = openai.load(theirs, found.network)
    with meta_device():  # nothing is drawn that the file replaces
        model = build(config)
    model.denoiser.network.load_state_dict(in_float(parts.network), assign=True)
    for section in config.condition:
        conditioner = section.build(config, found.network.vector_dim)
        if parts.label is not None and section.kind == "class-label":
            conditioner.load_state_dict(in_float(parts.label))
        model.conditioners[section.key] = conditioner
    return model.eval()


def is_latent(shapes: Shapes) -> bool:
    """Whether these are the keys of a file of all parts of a latent diffusion model, see `whole`.

    Raises:
        WeightsError: they are those of something that is no model, or is read otherwise; says how.
    """
    layout = formats.detect_format(shapes)
    if layout is not None and layout.instead:
        raise WeightsError(f"{layout.what}: {layout.instead}")
    return single_file.is_whole(shapes)


def fit(path: Path, said: ModelOverrides | None = None) -> single_file.LoadedCheckpoint | None:
    """How a file of all parts of a latent diffusion model fits it, without reading its weights; None: another file.

    Raises:
        WeightsError: as `whole.read`, or something that is no model.
    """
    theirs = read_state(path)
    if not is_latent(shapes_of(theirs)):
        return None
    # the tables alone are numbers that say what the model is
    return single_file.read(
        {key: one if key in single_file.BESIDE else one.to("meta") for key, one in theirs.items()}, said
    )


def load(path: Path, said: ModelOverrides | None = None) -> Model:
    """The model of a published file of tensors.

    Raises:
        WeightsError: as `model_of`, or a file that holds more than tensors.
    """
    theirs = read_state(path)
    try:
        return model_of(theirs, said)
    except WeightsError as problem:
        raise WeightsError(f"{path}: {problem}") from problem


def classifier_of(theirs: Mapping[str, Tensor], said: ModelOverrides | None = None) -> NoisyClassifier:
    """The noisy classifier of a published state dict, in evaluation mode.

    Raises:
        WeightsError: as `match`, or it is no classifier.
    """
    found = match(shapes_of(theirs), said)
    if not isinstance(found.network, NoisyClassifierConfig):
        raise WeightsError("this file is a diffusion model, not a noisy classifier; give one such as 64x64_classifier")
    with meta_device():
        classifier = NoisyClassifier(found.network)
    classifier.load_state_dict(in_float(openai.load_classifier(theirs, found.network)), assign=True)
    return classifier.eval()
