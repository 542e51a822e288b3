"""Diffusers' folders of SDXL, Stable Diffusion 3 and FLUX.1: the images of its pipelines, on our samplers."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import unveil
from tests.checkpoints import tiny_hf
from tests.checkpoints.pipeline_tasks import check_edits, runs
from unveil.checkpoints import hf
from unveil.checkpoints.hf.components import ProcessSettings
from unveil.checkpoints.hf.pipelines import FAMILIES, PIPELINES
from unveil.checkpoints.scheduler import NOT_TO_THE_DATA, SOLVERS, scheduler_of, settings_of
from unveil.core.rng import START, SampleRNG
from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.generation.generate import Request, generate
from unveil.generation.img2img import img2img
from unveil.generation.inpaint import inpaint
from unveil.io.files import read_tensors, write_tensors
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import ModelConfig, validate

# diffusers' own, of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a cat on the moon", "red dog 7"]
STEPS, SEED, SIZE = 10, 7, (16, 24)
DDIM = tiny_hf.DISCRETE | {"set_alpha_to_one": False, "clip_sample": False}
SCHEDULERS = {
    "euler": lambda: diffusers.EulerDiscreteScheduler(**tiny_hf.EULER),
    "ddim": lambda: diffusers.DDIMScheduler(**DDIM),
    "v": lambda: diffusers.DDIMScheduler(**DDIM | {"prediction_type": "v_prediction"}),
    "both-ends": lambda: diffusers.EulerDiscreteScheduler(**tiny_hf.DISCRETE),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("folders")

    @cache
    def made(name: str) -> tuple[Any, Path]:
        pipeline = getattr(tiny_hf, name)()
        return pipeline, tiny_hf.saved(pipeline, place / name)

    return made


@pytest.fixture
def copied(folders: Any, tmp_path: Path) -> Any:
    """A folder that a test may spoil."""

    def made(name: str) -> Path:
        return Path(shutil.copytree(folders(name)[1], tmp_path / name))

    return made


def theirs(pipeline: Any, model: Model, prompts: list[str], **how: Any) -> Tensor:
    """The pipeline's images from our noise, in [0, 1]."""
    shape = model.autoencoder.latent_shape((3, *SIZE))
    x = SampleRNG(SEED, range(len(prompts))).normal(shape, START)
    if isinstance(pipeline, diffusers.FluxPipeline):
        x = pipeline._pack_latents(x, len(prompts), *shape)
    height, width = SIZE
    how = {"num_inference_steps": STEPS, "output_type": "pt", "height": height, "width": width, **how}
    return pipeline(prompt=prompts, latents=x, **how).images


def ours(model: Model, prompts: list[str], **how: Any) -> Tensor:
    given = {"prompt": prompts, **how.pop("cond", {})}
    samples = model.generate(cond=given, count=len(prompts), seed=SEED, steps=STEPS, size=SIZE, **how)
    return (samples / 2 + 0.5).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean()))


def changed(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# -- the same images --------------------------------------------------------------------------------------------


@runs("sample", of=["StableDiffusionXLPipeline"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sdxl_generates_the_images_of_its_pipeline(folders, copied, scheduler):
    pipeline, path = folders("sdxl")
    if scheduler != "euler":
        path = copied("sdxl")
        SCHEDULERS[scheduler]().save_pretrained(path / "scheduler")
    model = unveil.load(path)
    before, pipeline.scheduler = pipeline.scheduler, SCHEDULERS[scheduler]()
    try:
        want = theirs(pipeline, model, PROMPTS, guidance_scale=4.0)
    finally:
        pipeline.scheduler = before
    got = ours(model, PROMPTS, guidance_scale=4.0)
    assert 0.05 < want.std() < 0.3
    # Euler from both ends begins at sigma times the noise there, which the variance-preserving x rounds to 1
    assert psnr(got, want) > (40 if scheduler == "both-ends" else 60)
    assert psnr(got, want.roll(1, 0)) < 30  # the prompts matter


def test_sdxl_is_conditioned_on_sizes_and_a_negative_prompt(folders):
    pipeline, path = folders("sdxl")
    model = unveil.load(path)
    options = {"original_size": (64, 48), "crops_coords_top_left": (8, 4), "guidance_scale": 4.0}
    same = {"negative_original_size": (64, 48), "negative_crops_coords_top_left": (8, 4), "negative_target_size": SIZE}
    want = theirs(pipeline, model, PROMPTS, negative_prompt=["the dog"] * 2, **options, **same)
    got = ours(model, PROMPTS, guidance_scale=4.0, negative_cond={"prompt": "the dog"}, cond={"size": "48x64+4+8"})
    assert psnr(got, want) > 60
    assert psnr(ours(model, PROMPTS, guidance_scale=4.0, negative_cond={"prompt": "the dog"}), want) < 50
    # an empty prompt is encoded where it is given, and zeros where none is
    empty = theirs(pipeline, model, PROMPTS, negative_prompt=[""] * 2, guidance_scale=4.0)
    assert psnr(ours(model, PROMPTS, guidance_scale=4.0, negative_cond={"prompt": ""}), empty) > 60
    assert psnr(ours(model, PROMPTS, guidance_scale=4.0), empty) < 50


@runs("sample", of=["StableDiffusion3Pipeline"])
def test_stable_diffusion_3_generates_the_images_of_its_pipeline(folders):
    pipeline, path = folders("sd3")
    model = unveil.load(path)
    want = theirs(pipeline, model, PROMPTS, guidance_scale=4.0)
    got = ours(model, PROMPTS, guidance_scale=4.0)
    assert 0.05 < want.std() < 0.3
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 30
    avoided = theirs(pipeline, model, PROMPTS, guidance_scale=4.0, negative_prompt=["the dog"] * 2)
    assert psnr(ours(model, PROMPTS, guidance_scale=4.0, negative_cond={"prompt": "the dog"}), avoided) > 60


def test_stable_diffusion_3_without_t5(tmp_path):
    pipeline = tiny_hf.sd3(with_t5=False)
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / "sd3"))
    want = theirs(pipeline, model, PROMPTS, guidance_scale=4.0)
    assert psnr(ours(model, PROMPTS, guidance_scale=4.0), want) > 60


@runs("sample", of=["FluxPipeline"])
def test_flux_generates_the_images_of_its_pipeline(folders):
    pipeline, path = folders("flux")
    model = unveil.load(path)
    how = {"true_cfg_scale": 3.0, "negative_prompt": ["the moon"] * 2, "guidance_scale": 2.5}
    want = theirs(pipeline, model, PROMPTS, **how)
    got = ours(model, PROMPTS, guidance_scale=3.0, negative_cond={"prompt": "the moon"}, cond={"guidance": 2.5})
    assert 0.05 < want.std() < 0.3
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 30
    plain = theirs(pipeline, model, PROMPTS)
    assert psnr(ours(model, PROMPTS), plain) > 60  # a guidance of 3.5, and none of ours


def test_flux_of_few_steps_gets_no_guidance(tmp_path):
    pipeline = tiny_hf.flux(distilled=False)
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / "flux"))
    assert list(model.conditioners) == ["prompt"]
    assert model.sampling.steps == 4
    want = theirs(pipeline, model, PROMPTS, max_sequence_length=256)
    assert psnr(ours(model, PROMPTS), want) > 60


# -- sizes, tasks, types ------------------------------------------------------------------------------------------


@runs("img2img", "inpaint", of=["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_images_are_edited(folders, name):
    check_edits(unveil.load(folders(name)[1]), PROMPTS[:1], SIZE)


def gradient() -> Tensor:
    x, y = torch.linspace(0, 255, SIZE[1]), torch.linspace(0, 255, SIZE[0])[:, None]
    return torch.stack([x + 0 * y, y + 0 * x, (x + y) / 2]).round().to(torch.uint8)[None]


def edited(model: Model, edit: Any) -> Tensor:
    sampling = {"steps": STEPS, "guidance_scale": 4.0}
    request = Request({"prompt": PROMPTS[:1]}, seed=SEED, sampling=sampling)
    return next(iter(generate(model, request, edit=edit))).pixels[None]


def test_the_refiner_makes_the_images_of_its_pipeline(tmp_path, monkeypatch):
    """Theirs draws latents from the autoencoder's distribution and noise from a generator, which are given here."""
    pipeline = tiny_hf.refiner()
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / "refiner"))
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
    noise = SampleRNG(SEED, range(1)).normal(model.autoencoder.latent_shape((3, *SIZE)), START)
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise)
    with torch.no_grad():
        latents = model.autoencoder.encode(gradient() / 127.5 - 1)
    how = {"image": latents, "strength": 0.6, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "pt"}
    want = to_pixels(2 * pipeline(prompt=PROMPTS[:1], **how).images - 1)
    got = edited(model, img2img(model, gradient(), strength=0.6))
    assert psnr(got / 255, want / 255) > 60
    other = to_pixels(2 * pipeline(prompt=PROMPTS[:1], aesthetic_score=2.0, **how).images - 1)
    assert psnr(got / 255, other / 255) < 50  # the score matters


def test_sdxl_inpaints_the_hole_of_its_pipeline(tmp_path):
    pipeline = tiny_hf.sdxl_inpaint()
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / "inpaint"))
    hole = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    hole[..., 4:12, 2:10] = True
    pixels = gradient() / 127.5 - 1
    with torch.no_grad():
        masked = model.autoencoder.encode(pixels.masked_fill(hole, 0.0))
    noise = SampleRNG(SEED, range(1)).normal(model.autoencoder.latent_shape((3, *SIZE)), START)
    want = pipeline(
        prompt=PROMPTS[:1],
        image=(pixels + 1) / 2,
        mask_image=hole.float(),
        masked_image_latents=masked,
        latents=noise,
        height=SIZE[0],
        width=SIZE[1],
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        output_type="pt",
    ).images
    got = edited(model, inpaint(model, gradient(), hole))
    where = hole.expand_as(got)
    assert psnr(got[where] / 255, to_pixels(2 * want - 1)[where] / 255) > 60
    assert torch.equal(got[~where], gradient()[~where])


def test_the_shift_of_flux_follows_the_size(folders):
    model = unveil.load(folders("flux")[1])
    assert model.shape == (3, 256, 256)  # 128 latents of this codec's 2 pixels
    assert model.process.shift == pytest.approx(2.71828**1.15, rel=1e-4)  # type: ignore[attr-defined]
    assert model.resized((32, 32)).process.shift == pytest.approx(2.71828**0.4675, rel=1e-2)  # type: ignore[attr-defined]
    small = model.resized((32, 32))
    assert small.shape == (3, 32, 32)
    assert small.denoiser.network is model.denoiser.network
    with pytest.raises(ShapeError, match="multiples of 2"):
        model.generate(cond={"prompt": "cat"}, steps=1, size=(18, 20))


def test_sdxl_is_conditioned_on_the_generated_size(folders):
    model = unveil.load(folders("sdxl")[1])
    size = model.resized((32, 48)).conditioners["size"]
    assert size.null(1).vector[0, -6:].tolist() == [32, 48, 0, 0, 32, 48]
    assert size.encode(["32x64+2+1"]).vector[0, -6:].tolist() == [64, 32, 1, 2, 32, 48]
    assert size.encode([(1, 2, 3, 4, 5, 6)]).vector[0, -6:].tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(RecipeError, match="WIDTHxHEIGHT"):
        size.encode(["large"])


def test_the_codec_is_that_of_the_folder(folders):
    pipeline, path = folders("sd3")
    model = unveil.load(path)
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        z = pipeline.vae.encode(pixels).latent_dist.mode()
        want = (z - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
        assert torch.allclose(model.autoencoder.encode(pixels), want, atol=1e-5)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_half_precision_stays_near(folders, name):
    path = folders(name)[1]
    full = ours(unveil.load(path), PROMPTS)
    low = unveil.load(path, dtype=torch.bfloat16)
    norms = [one for one in low.denoiser.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm)]
    assert {parameter.dtype for one in norms for parameter in one.parameters()} <= {torch.float32}
    assert {tensor.dtype for tensor in low.denoiser.parameters()} >= {torch.bfloat16}
    assert 25 < psnr(ours(low, PROMPTS), full) < 80
    with pytest.raises(RecipeError, match="were converted"):
        low.to_inference_dtype(torch.float16)


def test_a_file_in_half_precision_is_not_widened_when_it_need_not_be(folders, tmp_path):
    pipeline = tiny_hf.sdxl()
    path = tiny_hf.saved(pipeline.to(torch.float16), tmp_path / "half")
    low = unveil.load(path, dtype=torch.float16)
    full = unveil.load(path)
    assert low.denoiser.network.state_dict()["net.conv_in.weight"].dtype == torch.float16
    assert full.denoiser.network.state_dict()["net.conv_in.weight"].dtype == torch.float32
    assert psnr(ours(low, PROMPTS), ours(full, PROMPTS)) > 30


# -- the folder's files -------------------------------------------------------------------------------------------


def test_shards_and_variants_are_found(folders, tmp_path):
    pipeline, path = folders("sd3")
    sharded = tiny_hf.saved(pipeline, tmp_path / "sharded", max_shard_size="40KB")
    variant = tiny_hf.saved(pipeline, tmp_path / "variant", variant="fp16")
    assert (sharded / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert (variant / "transformer" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    want = unveil.load(path).state_dict()
    for place in (sharded, variant):
        found = unveil.load(place).state_dict()
        assert found.keys() == want.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in want.items())
    next((sharded / "transformer").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(WeightsError, match=r"names the shard .*-00002-of-.* which is not beside it"):
        unveil.load(sharded)


def test_the_report_tells_what_fits(copied):
    path = copied("sdxl")
    (report,) = hf.report(path).values()
    assert report.fits
    assert report.text() == f"{len(report.matched)} matched"
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(file)
    tensors["more.weight"] = tensors.pop("conv_in.bias")
    tensors["conv_out.bias"] = torch.zeros(5)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    file.unlink()
    write_tensors(file, tensors)
    (report,) = hf.report(path).values()
    assert (report.missing, report.unknown) == (("conv_in.bias",), ("more.weight",))
    assert report.reshaped == ("conv_out.bias (5,) for (4,)",)
    with pytest.raises(WeightsError, match=r"missing: 1 \(conv_in.bias\); unknown: 1 \(more.weight\)"):
        unveil.load(path)


def test_saving_says_that_the_folder_is_the_model(folders, tmp_path):
    path = folders("sdxl")[1]
    with pytest.raises(RecipeError, match=f"the folder {path} itself is the model"):
        unveil.load(path).save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", ["StableDiffusionXLInpaintPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"])
def test_classes_for_images_open_as_their_family(folders, copied, kind):
    path = copied("sdxl")
    changed(path / "model_index.json", _class_name=kind)
    found, want = unveil.load(path).state_dict(), unveil.load(folders("sdxl")[1]).state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())


def test_a_class_of_pipeline_belongs_to_one_family():
    kinds = [kind for family in FAMILIES for kind in family.pipelines]
    assert len(set(kinds)) == len(kinds) == len(PIPELINES)
    assert all(hasattr(diffusers, kind) for kind in kinds)


def no_code(path: Path) -> str:
    (path / "unet" / "pipeline.py").write_text("")
    return "code in the folder of a model"


def no_map(path: Path) -> str:
    changed(path / "unet" / "config.json", auto_map={"AutoModel": "mine.Net"})
    return "auto_map names the folder"


def no_pipeline(path: Path) -> str:
    changed(path / "model_index.json", _class_name=["mine", "MyPipeline"])
    return "a custom pipeline"


def no_library(path: Path) -> str:
    changed(path / "model_index.json", unet=["mine", "MyUNet"])
    return "unet is of 'mine'"


def unknown_pipeline(path: Path) -> str:
    changed(path / "model_index.json", _class_name="StableDiffusionXLPipelin")
    return "a pipeline that can be read; .*nearest: 'StableDiffusionXLPipeline'"


def unknown_network(path: Path) -> str:
    changed(path / "unet" / "config.json", _class_name="UNet3DConditionModel")
    return "a UNet3DConditionModel; of a StableDiffusionXLPipeline it must be"


def unknown_scheduler(path: Path) -> str:
    changed(path / "scheduler" / "scheduler_config.json", _class_name="EulerDiscretScheduler")
    return "nearest: 'EulerDiscreteScheduler'"


def unsupported_scheduler(path: Path) -> str:
    changed(path / "scheduler" / "scheduler_config.json", final_sigmas_type="sigma_min")
    return "final_sigmas_type = 'sigma_min': only 'zero' is supported"


def no_component(path: Path) -> str:
    changed(path / "model_index.json", text_encoder_2=[None, None])
    return "lists no text_encoder_2, which StableDiffusionXLPipeline needs"


def no_folder(path: Path) -> str:
    shutil.rmtree(path / "vae")
    return "vae: is listed in model_index.json and not there"


def no_tokenizer(path: Path) -> str:
    shutil.rmtree(path / "tokenizer_2")
    return "tokenizer_2: is listed in model_index.json and not there"


def no_weights(path: Path) -> str:
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return "holds no diffusion_pytorch_model.safetensors, nor its shards"


def only_a_pickle(path: Path) -> str:
    no_weights(path)
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    return "only diffusion_pytorch_model.bin, a pickle, which is not opened"


def another_prediction(path: Path) -> str:
    changed(path / "unet" / "config.json", time_cond_proj_dim=8)
    return "networks that are conditioned on the guidance scale"


SPOILED = [
    no_code,
    no_map,
    no_pipeline,
    no_library,
    unknown_pipeline,
    unknown_network,
    unknown_scheduler,
    unsupported_scheduler,
    no_component,
    no_folder,
    no_tokenizer,
    no_weights,
    only_a_pickle,
    another_prediction,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda one: one.__name__)
def test_errors_of_a_folder_are_reported(copied, spoil):
    path = copied("sdxl")
    words = spoil(path)
    with pytest.raises((WeightsError, RecipeError), match=words):
        unveil.load(path)


# -- schedulers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 10, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_levels_are_those_of_the_scheduler(spacing, steps):
    scheduler = diffusers.EulerDiscreteScheduler(**tiny_hf.DISCRETE, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    read = scheduler_of(dict(scheduler.config) | {"_class_name": "EulerDiscreteScheduler"}, Path("settings"))
    process = ProcessSettings(process=read.process).process.build()
    schedule = unveil.schedules.get_schedule(process, read.sample["schedule"], steps)
    assert [process.timestep(level) for level in schedule[:-1]] == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)
    ratios = [level.sigma / level.alpha for level in schedule]
    assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=2e-3)


@pytest.mark.parametrize("settings", [{"shift": 1.0}, {"shift": 3.0}])
def test_levels_are_those_of_the_flow_scheduler(settings):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    scheduler.set_timesteps(7)
    read = scheduler_of(dict(scheduler.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}, Path("settings"))
    process = ProcessSettings(process=read.process).process.build()
    schedule = unveil.schedules.get_schedule(process, read.sample["schedule"], 7)
    assert [level.sigma for level in schedule] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    assert [process.timestep(level) for level in schedule[:-1]] == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("made", "sampler"),
    [
        (("DPMSolverMultistepScheduler", {}), "dpmpp-2m"),
        (("DPMSolverMultistepScheduler", {"solver_type": "bh2"}), "dpmpp-2m"),
        (("DPMSolverMultistepScheduler", {"solver_type": "logrho"}), "dpmpp-2m"),
        (("DPMSolverMultistepScheduler", {"solver_order": 3}), "dpmpp-3m"),
        (("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}), "dpmpp-2m-sde"),
        (("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
         "dpmpp-2m-sde-heun"),
        (("DPMSolverMultistepScheduler", {"solver_type": "heun"}), None),
        (("UniPCMultistepScheduler", {}), "unipc-2"),
        (("UniPCMultistepScheduler", {"solver_type": "midpoint"}), "unipc-2"),
        (("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}), "unipc-3-b1"),
        (("UniPCMultistepScheduler", {"solver_order": 1, "solver_type": "bh1"}), None),
        (("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}), None),
    ],
)  # fmt: skip
def test_solvers_are_those_of_their_settings(made, sampler):
    kind, settings = made
    written = settings | {"_class_name": kind}  # as in a file: diffusers corrects what it builds
    if sampler is None:
        with pytest.raises(WeightsError, match="supported"):
            scheduler_of(written, Path("scheduler_config.json"))
        return
    assert scheduler_of(written, Path("scheduler_config.json")).sample["sampler"] == sampler
    built = dict(getattr(diffusers, kind)(**settings).config) | {"_class_name": kind}
    assert scheduler_of(built, Path("scheduler_config.json")).sample["sampler"] == sampler


@pytest.mark.parametrize("schedule", ["trailing", "karras"])
@pytest.mark.parametrize("sampler", [*sorted({way["sampler"] for way in SOLVERS.values()}), "dpmpp-2m-sde eta 0"])
def test_what_is_written_of_a_solver_samples_in_diffusers(sampler, schedule):
    name, _, eta = sampler.partition(" eta ")
    sample: dict[str, Any] = {"sampler": name, "schedule": schedule} | ({"eta": float(eta)} if eta else {})
    network = {"kind": "unet", "model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "groups": 4}
    levels = {"process": {"kind": "discrete-vp"}, "prediction": "eps", "sample": sample}
    config = validate(ModelConfig, {"shape": [3, 8, 8], "network": network, **levels}, "a test")
    written = settings_of(config, {"timestep_spacing": "leading"})
    again = scheduler_of(written, Path("again")).sample["sampler"]
    assert again == ("ddim" if name in NOT_TO_THE_DATA or eta else name)
    scheduler = getattr(diffusers, written["_class_name"]).from_config(written)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:  # the model of data that are 0.3 everywhere
        alpha = scheduler.alphas_cumprod[int(t)]
        eps = (x - alpha.sqrt() * 0.3) / (1 - alpha).sqrt()
        x = scheduler.step(eps, t, x).prev_sample
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=0.05)
