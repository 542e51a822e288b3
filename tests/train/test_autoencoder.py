"""Training of autoencoders: the loss by hand, a discriminator that starts late, runs that go on to the bit."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.core.rng import SampleRNG
from unveil.errors import Cancelled, NonFinite, RecipeError, WeightsError
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import AutoencoderRecipe, parse_recipe
from unveil.train import callbacks
from unveil.train.autoencoder import AutoencoderLearner, fit_autoencoder, learner_of, measure_latent_scaling
from unveil.train.batch_preparation import to_float
from unveil.train.data_order import Batch

STEPS, START = 8, 4
CRITIC = {"start": START, "layers": 1, "width": 4}


class Images:
    """Random images uint8 (1, 8, 8), each a square on a ground; `spoiled` ones are NaN."""

    def __init__(self, count: int = 20, spoiled: tuple[int, ...] = ()) -> None:
        chosen = torch.Generator().manual_seed(2)
        self.pixels = torch.randint(0, 256, (count, 1, 2, 2), generator=chosen).repeat_interleave(4, 2)
        self.pixels = self.pixels.repeat_interleave(4, 3).to(torch.uint8)
        self.spoiled = spoiled

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.spoiled:
            pixels = self.pixels[index] / 127.5 - 1
            return {"pixels": pixels * float("nan") if index in self.spoiled else pixels}
        return {"pixels": self.pixels[index]}


def recipe(kind: str = "kl", **changes: Any) -> AutoencoderRecipe:
    """A recipe of milliseconds; `changes` by section."""
    codec = {"kind": kind, "model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "z_channels": 2, "patch": 2}
    codec |= {"norm": "pixel", "middle": "blocks"} | ({"codebook_size": 8} if kind == "vq" else {})
    train = {"batch": 4, "steps": STEPS, "lr": 1e-2, "ema": 0.9, "precision": "float32", "flip": True}
    train |= {"accumulate": 2, "save_every": 0, "sample_every": 0, "validate_every": 0}
    raw: dict[str, Any] = {
        "kind": "autoencoder", "name": "tiny", "paper": "none", "data": {"kind": "digits"}, "shape": [1, 8, 8],
        "autoencoder": codec | changes.pop("autoencoder", {}), "train": train | changes.pop("train", {}),
        "loss": {"distance": "l2"} | changes.pop("loss", {}), **changes,
    }  # fmt: skip
    found = parse_recipe(raw, "test")
    assert isinstance(found, AutoencoderRecipe)
    return found


def codec(config: AutoencoderRecipe) -> AutoencoderKL | VQModel:
    torch.manual_seed(0)
    return config.build()


def fit(run: Path, config: AutoencoderRecipe, dataset: Any = None, held_out: Any = None) -> AutoencoderKL | VQModel:
    made = codec(config)
    fit_autoencoder(config, made, Images() if dataset is None else dataset, run=run, held_out=held_out)
    return made


def batch(count: int = 4) -> Batch:
    return Batch(list(range(count)), torch.stack([Images()[n]["pixels"] for n in range(count)]), {})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    folder = run / "checkpoints" / checkpoint_store.step_name(step)
    files = sorted(folder.rglob("*.safetensors"))
    assert [str(path.relative_to(folder)) for path in files] == [
        "autoencoder.safetensors", "ema/autoencoder.safetensors", "train_state.safetensors",
    ]  # fmt: skip
    return {f"{path.relative_to(folder)}:{k}": v.clone() for path in files for k, v in read_tensors(path).items()}


# ---------------------------------------------------------------------- the loss


def test_the_loss_of_a_kl_codec_is_what_the_formula_says():
    config = recipe(loss={"distance": "l1", "kl": 0.3, "log_scale": -0.5, "perceptual": {"network": "digits"}})
    learner = learner_of(config, codec(config))
    found = learner.loss(batch(), SampleRNG(0, range(4)), 5, False)

    x = to_float(batch().data)
    posterior = learner.model.posterior(x)
    noise = SampleRNG(0, range(4)).normal((2, 4, 4), 5, 0)
    y = learner.model.decoded(posterior.mean + (0.5 * posterior.logvar).exp() * noise)
    assert learner.judge is not None
    error = (x - y).abs().flatten(1).mean(1) + learner.judge(x, y)
    divergence = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).sum((1, 2, 3)) / 64
    expected = error / math.exp(-0.5) - 0.5
    torch.testing.assert_close(found.per_sample, expected.detach())
    torch.testing.assert_close(found.value, expected.mean() + 0.3 * divergence.mean())
    torch.testing.assert_close(found.terms["kl"], divergence.detach())
    assert bool(found.t.isnan().all())


def test_the_loss_of_a_vq_codec_has_the_codebooks_own():
    config = recipe("vq", loss={"distance": "l2", "codebook": 2.0})
    learner = learner_of(config, codec(config))
    found = learner.loss(batch(), SampleRNG(0, range(4)), 0, False)
    x = to_float(batch().data)
    assert isinstance(learner.model, VQModel)
    quantised = learner.model.quantise(learner.model.encoded(x))
    error = (x - learner.model.decoded(quantised.latents)).square().mean()
    torch.testing.assert_close(found.value, error + 2 * quantised.loss)


def test_noise_on_the_latents_has_the_configured_standard_deviation():
    config = recipe(loss={"latent_noise": 0.5, "kl": 0.0})
    learner = learner_of(config, codec(config))
    seen: list[Tensor] = []
    learner.model.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    x = to_float(batch().data)
    learner.reconstruct(learner.model, x, SampleRNG(0, range(4)), 1)
    quiet = recipe(loss={"kl": 0.0})
    learner.settings = quiet.loss
    learner.reconstruct(learner.model, x, SampleRNG(0, range(4)), 1)
    noise = SampleRNG(0, range(4)).normal((2, 4, 4), 1, 1)
    torch.testing.assert_close(seen[0] - seen[1], 0.5 * seen[1].std() * noise, rtol=1e-4, atol=1e-5)


def adversarial(step: int, kind: str = "hinge") -> tuple[AutoencoderLearner, Any]:
    config = recipe(loss={"discriminator": {**CRITIC, "kind": kind, "weight": 0.7}, "kl": 0.0})
    learner = learner_of(config, codec(config))
    return learner, learner.loss(batch(), SampleRNG(0, range(4)), step, False)


def test_a_discriminator_counts_from_its_start_on():
    learner, before = adversarial(START - 1)
    assert "weight" not in before.terms
    before.value.backward()
    assert all(p.grad is None for p in learner.auxiliary.parameters())
    _, after = adversarial(START)
    assert {"weight", "generator", "discriminator"} <= after.terms.keys()
    assert set(learner.logged) == {"error", "kl", "weight", "generator", "discriminator"}


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_one_loss_has_the_gradients_of_two_optimisers(kind):
    """Those of the decoder's loss at a discriminator that is held still, and of the discriminator's own."""
    learner, found = adversarial(START, kind)
    found.value.backward()
    critic, model = learner.auxiliary.discriminator, learner.model
    assert critic is not None
    theirs = {name: p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}
    mine = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert theirs
    assert all(p.requires_grad for p in critic.parameters())

    x = to_float(batch().data)
    y = model.decoded(model.posterior(x).sample(SampleRNG(0, range(4)).normal((2, 4, 4), START, 0)))
    for part in (critic, model):
        part.zero_grad()
    real, made = critic(x), critic(y.detach())
    if kind == "hinge":
        own = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean())
    else:
        own = -0.5 * (nn.functional.logsigmoid(real).mean() + nn.functional.logsigmoid(-made).mean())
    own.backward()
    for name, p in critic.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name], msg=name)
    rebuilt, generator = (x - y).square().mean(), -critic(y).mean()
    last = model.last_layer
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rebuilt, generator)]
    model.zero_grad()
    (rebuilt + 0.7 * (norms[0] / (norms[1] + 1e-4)).detach() * generator).backward()
    for name, gradient in mine.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-7, msg=name)


# ---------------------------------------------------------------------- runs

FULL = {"discriminator": CRITIC, "perceptual": {"network": "digits", "weight": 0.1}, "log_scale": 0.0}


@pytest.fixture(scope="module", autouse=True)
def three_steps_a_line():
    """So that every cut falls between two lines of the log, whose sums then have to survive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "LINES", 3)
        yield


LOSSES = {
    "kl": {"kind": "kl", "loss": FULL},
    "vq": {
        "kind": "vq",
        "loss": {"discriminator": CRITIC},
        "autoencoder": {"learned": "ema", "restart": 0.5, "decay": 0.5},
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, three_steps_a_line) -> dict[str, Path]:
    runs = {name: tmp_path_factory.mktemp("whole") / name for name in LOSSES}
    for name, run in runs.items():
        fit(run, recipe(**LOSSES[name]))
    return runs


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cut", [1, START, START + 2])
def test_interrupted_anywhere_it_ends_the_same_to_the_bit(whole, tmp_path, monkeypatch, name, cut):
    given = AutoencoderLearner.loss

    def interrupted(self: AutoencoderLearner, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> Any:
        if step == cut:
            signal.raise_signal(signal.SIGTERM)
        return given(self, batch, streams, step, flip)

    run = tmp_path / "run"
    monkeypatch.setattr(AutoencoderLearner, "loss", interrupted)
    with pytest.raises(Cancelled) as stopped:
        fit(run, recipe(**LOSSES[name]))
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    assert checkpoint_store.latest_valid(run / "checkpoints") == run / "checkpoints" / checkpoint_store.step_name(
        cut + 1
    )
    fit(run, recipe(**LOSSES[name]))
    one, other = tensors(run), tensors(whole[name])
    assert one.keys() == other.keys()
    assert not [key for key in one if not torch.equal(one[key], other[key])]
    strip = lambda run: [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines(run)]  # noqa: E731
    assert strip(run) == strip(whole[name])


def test_the_state_holds_the_discriminator_and_its_moments(whole):
    found = tensors(whole["kl"])
    name = "beside.discriminator.main.0.weight"
    assert f"train_state.safetensors:{name}" in found
    moments = found[f"train_state.safetensors:optimizer.{name}.step"]
    assert moments.item() == STEPS - START, "it has moments from before its start"
    assert found["train_state.safetensors:optimizer.encoder.enter.weight.step"].item() == STEPS
    assert found["train_state.safetensors:beside.log_scale"].item() != 0


def test_the_log_names_the_terms_and_no_noise_level(whole):
    logged = lines(whole["kl"])
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    assert all({"loss", "error", "kl", "perceptual", "grad_norm", "lr"} <= line.keys() for line in logged)
    assert all("loss_by_t" not in line for line in logged)
    assert [line["step"] for line in logged if "weight" in line] == [6, 8]
    assert all(line["weight"] > 0 for line in logged if "weight" in line)
    assert "codebook" in lines(whole["vq"])[0]


def test_codes_that_were_never_taken_are_put_on_new_places(whole):
    config = recipe(**LOSSES["vq"])
    begun = codec(config).quantiser.codebook
    _, after = model_folder.load_autoencoder(whole["vq"])
    assert isinstance(after, VQModel)
    assert int((after.quantiser.codebook != begun).any(1).sum()) == 8
    assert not after.quantiser.codebook.requires_grad


@pytest.mark.parametrize("scale", ["one", "channel"])
def test_scale_and_shift_are_measured_and_stored(tmp_path, scale):
    config = recipe(scale=scale)
    left = fit(tmp_path / "run", config)
    described, loaded = model_folder.load_autoencoder(tmp_path / "run")
    assert described == config.model
    assert torch.equal(left.scale, loaded.scale)
    x = torch.stack([to_float(Images()[n]["pixels"]) for n in range(20)])
    latents = loaded.encode(x)
    over = (0, 2, 3) if scale == "channel" else (0, 1, 2, 3)
    assert latents.mean(over).abs().max() < 1e-4
    assert (latents.double().std(over, correction=0) - 1).abs().max() < 1e-4
    assert len(set(loaded.scale.tolist())) == (2 if scale == "channel" else 1)
    torch.testing.assert_close(loaded.decode(latents), loaded.decoded(loaded.posterior(x).mean))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert "| latents | of shape (2, 4, 4): 32 values, 0.5 of the image's |" in (tmp_path / "run/card.md").read_text()


def test_scale_does_not_depend_on_how_images_are_batched():
    config = recipe()
    model = codec(config)
    x = torch.stack([to_float(Images()[n]["pixels"]) for n in range(20)])
    whole, parts = (measure_latent_scaling(model, iter(x.split(size)), by_channel=True) for size in (20, 7))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    # measured again on a codec that is scaled already, it says the same
    model.scale.fill_(3.0)
    torch.testing.assert_close(measure_latent_scaling(model, iter([x]), by_channel=True), whole)


def test_a_run_shows_images_above_their_reconstructions(tmp_path):
    config = recipe(train={"steps": 4, "sample_every": 2, "validate_every": 2})
    fit(tmp_path / "run", config, held_out=Images(6))
    names = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert names == ["step_000002.png", "step_000004.png"]
    with Image.open(tmp_path / "run/samples/step_000004.png") as page:
        columns, rows, side, gap = 6, 2, 96, 6
        assert page.size == (columns * (side + gap) + gap, rows * (side + gap) + gap)
        first = page.getpixel((gap + 1, gap + 1))
    assert first == int(Images(6)[0]["pixels"][0, 0, 0])
    assert {p.name for p in (tmp_path / "run/plots").iterdir()} >= {"loss.png", "terms.png", "psnr.png"}
    held = [line for line in lines(tmp_path / "run") if "validation" in line]
    assert [line["step"] for line in held] == [2, 4]
    _, loaded = model_folder.load_autoencoder(tmp_path / "run")
    x = torch.stack([to_float(Images(6)[place * 6 // 4]["pixels"]) for place in range(4)])
    squared = ((loaded.decode(loaded.encode(x)).clamp(-1, 1) - x) / 2).square().mean().item()
    assert held[-1]["psnr"] == pytest.approx(-10 * math.log10(squared), abs=1e-3)


def test_it_learns():
    config = recipe(train={"steps": 60, "accumulate": 1, "flip": False, "batch": 10})
    learner = learner_of(config, codec(config))
    optimiser = torch.optim.AdamW(learner.model.parameters(), lr=1e-2)
    seen = []
    for step in range(60):
        loss = learner.loss(batch(10), SampleRNG(0, range(10)), step, False)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        seen.append(loss.value.item())
    assert seen[-1] < 0.25 * seen[0]


def test_images_that_are_not_finite_are_named_and_leave_nothing(tmp_path, caplog):
    config = recipe(**LOSSES["vq"], train={"nonfinite_limit": 1})
    with pytest.raises(NonFinite, match=r"the loss is not finite.*\(loss nan; examples \d"):
        fit(tmp_path / "run", config, Images(spoiled=tuple(range(20))))
    assert checkpoint_store.latest_valid(tmp_path / "run/checkpoints") is None
    some = recipe(**LOSSES["vq"], train={"nonfinite_limit": 8})
    fit(tmp_path / "some", some, Images(spoiled=(3,)))
    assert lines(tmp_path / "some")[-1]["skipped"] >= 1
    assert all(bool(v.isfinite().all()) for v in tensors(tmp_path / "some").values())


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "logged"),
    [
        ({"loss": {"discriminator": {**CRITIC, "start": STEPS}}}, r"start = 8: must be below train.steps = 8"),
        ({"loss": {"discriminator": {**CRITIC, "layers": 3}}}, r"layers = 3: shrinks images of 8 pixels to nothing"),
        ({"kind": "vq", "loss": {"kl": 0.1}}, r"loss.kl_weight: a vq autoencoder has no distribution"),
        ({"loss": {"codebook": 1.0}}, r"loss.codebook_weight: a kl autoencoder has no codebook"),
        ({"shape": [1, 9, 9]}, r"autoencoder: .*8 or 10"),
        ({"loss": {"distanse": "l1"}}, r"unknown key; nearest: 'distance'"),
        ({"autoencoder": {"kind": "vae"}}, r"autoencoder.*kl, vq, video"),
        ({"loss": {"discriminator": {"kind": "wasserstein"}}}, r"hinge"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, logged):
    with pytest.raises(RecipeError, match=logged):
        recipe(**changes)


def test_a_discriminator_of_another_size_is_not_gone_on_with(whole, tmp_path):
    config = recipe(loss={**FULL, "discriminator": {**CRITIC, "width": 8}})
    with pytest.raises(RecipeError, match=r"(?s)another recipe:\n  loss.discriminator.width: 4 there, 8 now"):
        fit(whole["kl"], config)


def test_a_diffusion_model_and_an_autoencoder_are_distinguished(whole):
    with pytest.raises(WeightsError, match=r"an autoencoder, which generates no images by itself; name it"):
        model_folder.load_model(whole["kl"])
    with pytest.raises(WeightsError, match="holds no autoencoder"):
        model_folder.load_autoencoder("ddpm-digits")


def test_a_codebook_that_follows_trains_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="set learned: gradient and restart_dead: 0"):
        fit(tmp_path / "run", recipe(**LOSSES["vq"]))
    assert not (tmp_path / "run").exists()
