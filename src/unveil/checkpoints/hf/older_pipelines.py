"""Models of diffusers' older folders: consistency models, and latent diffusion's text to image.

Facts: defaults of diffusers' `ConsistencyModelPipeline` and `LDMTextToImagePipeline`, and the settings of their
schedulers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints import diffusers_unet
from unveil.checkpoints.hf.components import assemble_model, build_module, image_codec, image_shape, scheduler_of
from unveil.checkpoints.hf.family import PipelineFamily
from unveil.checkpoints.hf.language_models import LanguageModelPrompts
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.weights import KeyMatchReport, fill
from unveil.checkpoints.hf_files import read_json
from unveil.conditioning.micro_conditioning import ScalarCondition
from unveil.core.denoiser import Denoiser
from unveil.core.preconditioning import ConsistencyPreconditioning
from unveil.core.ve import EDMProcess
from unveil.errors import UnsupportedFormat
from unveil.io.optional_deps import import_extra
from unveil.model import Model
from unveil.model.config import SampleConfig, validate
from unveil.nn.layers import EmptyParameters
from unveil.types import Condition

UNET, SCHEDULER = "UNet2DModel", "CMStochasticIterativeScheduler"
LDM_TOKENS = 77
BERT = "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion"


class LabelledUNet(nn.Module):
    """A `UNet2DModel` of diffusers, with classes or without; the class is the condition's vector.

    Args:
        net: The network.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.classes = net, net.config.num_class_embeds
        self.multiple = 2 ** (len(net.config.block_out_channels) - 1)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Output of the network at x (B, C, H, W) and times (B,)."""
        vector = None if condition is None else condition.vector
        labels = None if self.classes is None or vector is None else vector[:, 0].long()
        return self.net(x, t, class_labels=labels, return_dict=False)[0]


def consistency_model(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `ConsistencyModelPipeline`; its class is given as "label", as a number.

    Its pipeline's one step is the default; more steps are spaced as in `core.schedules`.

    Raises:
        UnsupportedFormat: Another scheduler than consistency models have.
    """
    settings = folder.settings("unet", [UNET])
    net = build_module(folder, UNET, settings)
    fill(net, folder.tensors("unet"), dtype, folder.path / "unet")
    place = folder.place("scheduler") / "scheduler_config.json"
    raw = read_json(place)
    if raw.get("_class_name") != SCHEDULER:
        raise UnsupportedFormat(f"{place}: a {raw.get('_class_name')}; a {folder.kind} has a {SCHEDULER}")
    low, high = float(raw.get("sigma_min", 0.002)), float(raw.get("sigma_max", 80.0))
    prediction = ConsistencyPreconditioning(float(raw.get("sigma_data", 0.5)), low)
    sample = {"sampler": "consistency", "steps": 1, "schedule": "uniform-log-snr"}
    clipped = {"threshold": "static" if raw.get("clip_denoised", True) else "none"}
    denoiser = Denoiser(LabelledUNet(net), EDMProcess(low, high), prediction=prediction)
    side = int(settings["sample_size"])
    classes = [] if net.config.num_class_embeds is None else [ScalarCondition((0.0,), 0, key="label")]
    how = validate(SampleConfig, sample | clipped, str(folder.path))
    return Model(denoiser, (int(settings["in_channels"]), side, side), conditioners=classes, sample=how)


def latent_text_to_image(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of an `LDMTextToImagePipeline`: its network and autoencoder are native, its text encoder diffusers'.

    Source: Rombach et al. 2022, section 4.3.1 (arXiv:2112.10752).
    """
    network = diffusers_unet.read_unet(folder.place("unet")).network
    codec = image_codec(folder, "vqvae")
    side = folder.settings("unet", [diffusers_unet.UNET]).get("sample_size") or 32
    prompt = LanguageModelPrompts(*_bert(folder, dtype), _words)
    sample = {"steps": 50, "eta": 0.0, "guidance": {"scale": 6.0}}
    scheduler = scheduler_of(folder)
    if scheduler.sample["sampler"] != "ddim":
        sample.pop("eta")
    return assemble_model(folder, network, scheduler, codec, image_shape(codec, side), (prompt,), sample)


def report(folder: PipelineFolder) -> dict[str, KeyMatchReport]:
    """Compare the weights of a text-to-image folder's network with its settings."""
    diffusers_unet.read_unet(folder.place("unet"))
    return {"unet": KeyMatchReport(tuple(folder.tensors("unet")))}


def _bert(folder: PipelineFolder, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    """The tokenizer and the text encoder, which diffusers itself defines."""
    library: Any = import_extra("transformers", f"a {folder.kind}")
    theirs: Any = import_extra(BERT, f"a {folder.kind}")
    place = folder.place("bert")
    settings = {key: value for key, value in read_json(place / "config.json").items() if not key.startswith("_")}
    with EmptyParameters():
        encoder = theirs.LDMBertModel(theirs.LDMBertConfig(**settings))
    fill(encoder.eval(), folder.tensors("bert"), dtype, place)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return library.AutoTokenizer.from_pretrained(folder.place("tokenizer"), **local), encoder


def _words(tokenizer: Any, encoder: Any, texts: Sequence[str], none: bool) -> tuple[Tensor, None]:
    """All tokens of the encoder, of one length; those after a prompt are seen too."""
    del none
    rows = tokenizer(
        list(texts), padding="max_length", max_length=LDM_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return encoder(rows.to(next(encoder.parameters()).device))[0], None


FAMILIES = (
    PipelineFamily(
        name="Consistency models",
        pipelines=("ConsistencyModelPipeline",),
        load=consistency_model,
        tasks=("sample",),
        networks=("unet",),
        report=lambda folder: {"unet": KeyMatchReport(tuple(folder.tensors("unet")))},
    ),
    PipelineFamily(
        name="LDM, text to image",
        pipelines=("LDMTextToImagePipeline",),
        load=latent_text_to_image,
        tasks=("sample",),
        networks=("unet",),
        report=report,
    ),
)
