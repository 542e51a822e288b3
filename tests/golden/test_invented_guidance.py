"""ADM's classifier guidance under settings that no record has: by a formula, and by noisy classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import reference_unet
from tests.golden.invented import Record, check, normal, spread
from tests.golden.invented_chain import Chain, Published, cosine, linear, toy
from tests.golden.reference_layers import Weights

NET = {"a": 0.5, "b": 0.3, "c": 0.02, "d": 0.2, "e": 0.8}
Push = Callable[[Tensor, Tensor], Tensor]


class Guided:
    """The published guided steps: the mean is shifted by variance times gradient, or DDIM's eps by sigma times it."""

    def __init__(self, published: Published, push: Push) -> None:
        self.published, self.chain, self.push = published, published.chain, push

    def shifted(self, x: Tensor, t: Tensor) -> Tensor:
        """The mean."""
        step = self.published.step(x, t, clip=True)
        return step.mean + step.variance * self.push(x, t)

    def sampled(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """An ancestral step."""
        deviation = (0.5 * self.published.step(x, t, clip=True).log).exp()
        return self.shifted(x, t) + spread((t > 0).double(), x) * deviation * noise

    def score(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps of the shifted score, which are not clamped again."""
        eps = self.chain.eps(self.published.step(x, t, clip=True).x0, x, t)
        eps = eps - spread((1 - self.chain.bar[t]).sqrt(), x) * self.push(x, t)
        return self.chain.x0(eps, x, t), eps

    def ddim(self, x: Tensor, t: Tensor, noise: Tensor, eta: float) -> Tensor:
        """A step of DDIM."""
        return self.published.ddim_from(*self.score(x, t), t, noise, eta)

    def looped(self, noises: Tensor, eta: float | None) -> Tensor:
        """A whole run; without an eta it is ancestral."""
        x, count = noises[0].double(), len(noises) - 1
        for step in range(count):
            t, noise = torch.full((len(x),), count - 1 - step), noises[1 + step]
            x = self.sampled(x, t, noise) if eta is None else self.ddim(x, t, noise, eta)
        return x

    def tensors(self, x: Tensor, t: Tensor, y: Tensor, etas: tuple[float, float]) -> dict[str, Tensor]:
        """Inputs and outputs of a case, in float32."""
        noise, step, push = normal(3, *x.shape), self.published.step(x, t, clip=True), self.push(x, t)
        x0, _ = self.score(x, t)
        got = {
            "p_mean_variance.mean": step.mean, "p_mean_variance.variance": step.variance,
            "p_mean_variance.log_variance": step.log, "p_mean_variance.pred_xstart": step.x0,
            "cond_fn_grad_at_mapped_t": push, "condition_mean": step.mean + step.variance * push,
            "condition_score.pred_xstart": x0, "condition_score.mean": self.chain.mean(x0, x, t),
            "p_sample": self.sampled(x, t, noise), "p_sample.noise": noise,
        } | {f"ddim_sample.eta{eta}": self.ddim(x, t, noise, eta) for eta in etas}  # fmt: skip
        io = {f"output.{name}": value.float() for name, value in got.items()}
        for number, eta in enumerate((None, etas[-1])):
            name = "loop.p_sample_loop" if eta is None else f"loop.ddim_loop_eta{eta}"
            noises = normal(5 + number, len(self.chain.bar) + 1, *x.shape)
            io |= {f"{name}.noises": noises, f"{name}.sample": self.looped(noises, eta).float()}
        return io | {"input.x_t": x, "input.t": t, "input.y": y}


@pytest.mark.parametrize(
    ("numbers", "constructor", "indices"),
    [
        ((3.0, 0.2, 0.1, 0.002), {"steps": 30, "timestep_respacing": "4"}, [0, 10, 19, 29]),
        (
            (1.2, -0.1, 0.3, 0.001),
            {"steps": 24, "timestep_respacing": "ddim6", "noise_schedule": "cosine", "learn_sigma": True,
             "predict_xstart": True, "rescale_timesteps": True},
            list(range(0, 24, 4)),
        ),
        ((0.6, 0.3, 0.2, 0.003), {"steps": 20, "timestep_respacing": "2,1", "sigma_small": True}, [0, 9, 10]),
    ],
    ids=["fixed-large", "learned-x0-rescaled", "fixed-small"],
)  # fmt: skip
def test_guidance_by_a_formula(tmp_path, numbers, constructor, indices):
    scale, a, b, c = numbers
    beta = (cosine if constructor.get("noise_schedule") == "cosine" else linear)(constructor["steps"])
    chain = Chain(beta, indices, rescale=constructor.get("rescale_timesteps", False))
    t, y = torch.tensor([0, 1, len(indices) - 1]), torch.tensor([1, 5, 2])
    learns = constructor.get("learn_sigma", False)
    fixed = "FIXED_SMALL" if constructor.get("sigma_small") else "FIXED_LARGE"
    predicts = "START_X" if constructor.get("predict_xstart") else "EPSILON"
    published = Published(chain, toy(NET, two_heads=learns), predicts, "LEARNED_RANGE" if learns else fixed)

    def push(x: Tensor, t: Tensor) -> Tensor:
        return scale * (spread(a * y - b, x) - x) * (1 + c * spread(chain.times(t), x))

    io = Guided(published, push).tensors(normal(1, 3, 2, 2, 2), t, y, (0.3, 1.0))
    meta = {
        "kind": "guided-diffusion/guidance", "timestep_map": indices, "model": {"two_heads": learns, **NET},
        "constructor": constructor, "settings": {"cond": {"scale": scale, "a": a, "b": b, "c": c}},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {
        ("settings", "cond", name): 0.77 for name in ("scale", "a", "b", "c")
    } | {
        ("constructor", "predict_xstart"): predicts == "EPSILON", ("constructor", "learn_sigma"): not learns,
        ("constructor", "rescale_timesteps"): not constructor.get("rescale_timesteps", False),
        ("timestep_map",): indices[:-1],
    }  # fmt: skip
    if not learns:
        changes[("constructor", "sigma_small")] = fixed == "FIXED_LARGE"
    check(tmp_path, Record(meta, io), changes)


UNET = {
    "image_size": 4, "in_channels": 2, "model_channels": 32, "num_res_blocks": 1, "num_head_channels": 16,
    "use_scale_shift_norm": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("constructor", "indices", "network", "classifier", "scale"),
    [
        (
            {"steps": 40, "timestep_respacing": "3", "sigma_small": True, "rescale_timesteps": True},
            [0, 20, 39],
            {"out_channels": 2, "attention_resolutions": [], "channel_mult": [1, 1]},
            {"out_channels": 4, "attention_resolutions": [1], "channel_mult": [1, 1], "pool": "adaptive"},
            2.5,
        ),
        (
            {"steps": 18, "timestep_respacing": "ddim3", "learn_sigma": True, "noise_schedule": "cosine",
             "predict_xstart": True},
            [0, 6, 12],
            {"out_channels": 4, "attention_resolutions": [1], "channel_mult": [1], "num_classes": 6,
             "use_new_attention_order": True},
            {"out_channels": 6, "attention_resolutions": [1], "channel_mult": [1], "pool": "spatial_v2",
             "use_scale_shift_norm": False},
            0.7,
        ),
    ],
    ids=["unconditional-adaptive", "of-classes-spatial"],
)  # fmt: skip
def test_guidance_by_a_noisy_classifier(tmp_path, constructor, indices, network, classifier, scale):
    network, classifier = UNET | network, UNET | classifier
    w, weights = Weights(3), Weights(4)
    unet, learns = reference_unet.UNet(w, network, "guided"), constructor.get("learn_sigma", False)
    beta = (cosine if constructor.get("noise_schedule") == "cosine" else linear)(constructor["steps"])
    chain = Chain(beta, indices, rescale=constructor.get("rescale_timesteps", False))
    t, y = torch.tensor([1, 2]), torch.tensor([3, 1])
    predicts = "START_X" if constructor.get("predict_xstart") else "EPSILON"
    classes = y if "num_classes" in network else None
    published = Published(
        chain, lambda x, time: unet(x.double(), time, y=classes), predicts, "LEARNED_RANGE" if learns else "FIXED_SMALL"
    )

    def push(x: Tensor, t: Tensor) -> Tensor:
        x = x.double().requires_grad_()
        logits = reference_unet.classifier(weights, classifier, x, chain.times(t))
        (gradient,) = torch.autograd.grad(torch.log_softmax(logits, -1).gather(1, y[:, None]).sum(), x)
        return scale * gradient

    io = Guided(published, push).tensors(normal(1, 2, 2, 4, 4), t, y, (0.0, 0.4))
    meta = {
        "kind": "guided-diffusion/guidance", "timestep_map": indices, "constructor": constructor,
        "model": {"cls": "UNetModel", "constructor": network, "weights": "weights.safetensors"},
        "classifier": {
            "cls": "EncoderUNetModel", "constructor": classifier, "weights": "classifier.safetensors", "scale": scale,
        },
    }  # fmt: skip
    (tmp_path / "REPO" / "case").mkdir(parents=True)
    save_file(weights.tensors, tmp_path / "REPO" / "case" / "classifier.safetensors")
    changes: dict[tuple[str | int, ...], Any] = {
        ("classifier", "scale"): 1.1, ("classifier", "constructor", "num_head_channels"): 32,
        ("constructor", "rescale_timesteps"): not constructor.get("rescale_timesteps", False),
        ("classifier", "weights"): "weights.safetensors",
    }  # fmt: skip
    check(tmp_path, Record(meta, io, w.tensors), changes)
