"""Schedules, losses, bounds, steps and loops of Improved DDPM and DiT under settings that no record has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden import reference_dit
from tests.golden.invented import Changes, Record, check, normal
from tests.golden.invented_chain import Chain, Published, cosine, linear, toy
from tests.golden.reference_layers import Weights
from tests.golden.reference_unet import UNet

NET = {"a": 0.5, "b": 0.3, "c": 0.02, "d": 0.2, "e": 0.8}
# of x0: far from it, the mass of a pixel's bin vanishes in float32
NEAR = {"a": 0.95, "b": 0.05, "c": 0.03, "d": 0.02, "e": 0.7}
TABLES = {"linear": linear, "cosine": cosine, "squaredcos_cap_v2": cosine}
STEP = {"mean": "mean", "variance": "variance", "log_variance": "log", "pred_xstart": "x0"}


def images(*shape: int) -> Tensor:
    """Images of a seed, some of whose pixels are at either end."""
    return (0.7 * normal(1, *shape)).clamp(-1, 1)


def single(got: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, as they are recorded."""
    return {name: value.float() for name, value in got.items()}


# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize("schedules", [[["linear", 37], ["cosine", 9]], [["cosine", 250], ["linear", 20]]])
def test_tables_of_improved_ddpm(tmp_path, schedules):
    """With 20 steps the last beta is 1."""
    io = {}
    for kind, steps in schedules:
        beta = TABLES[kind](steps)
        io |= {f"{kind}_{steps}.betas": beta, f"{kind}_{steps}.alphas_cumprod": torch.cumprod(1 - beta, 0)}
    meta = {"kind": "improved-diffusion/schedules", "schedules": schedules}
    other = [[schedules[0][0], schedules[0][1] + 1], schedules[1]]
    check(tmp_path, Record(meta, io), {("schedules",): other})


@pytest.mark.parametrize(
    ("schedule", "steps", "spacings"),
    [
        ("linear", 60, [("", range(60)), ("ddim9", range(0, 60, 7)), ("3,1,2", [0, 10, 19, 20, 40, 59])]),
        (
            "squaredcos_cap_v2",
            47,
            [("4", [0, 15, 31, 46]), ("2,3", [0, 23, 24, 35, 46]), ([3, 2], [0, 12, 23, 24, 46]), (None, range(47))],
        ),
    ],
)
def test_respaced_tables_of_dit(tmp_path, schedule, steps, spacings):
    io, respacings = {}, {}
    for number, (spacing, indices) in enumerate(spacings):
        io |= {
            f"{number}.{name}": value for name, value in Chain(TABLES[schedule](steps), list(indices)).arrays().items()
        }
        respacings[str(number)] = {"timestep_respacing": spacing, "num_timesteps": len(indices)}
    written = [spacing for spacing, _ in spacings]
    constructor = {"noise_schedule": schedule, "diffusion_steps": steps, "timestep_respacing": written}
    meta = {"kind": "DiT/schedule", "constructor": constructor, "respacings": respacings}
    changes: Changes = {
        ("constructor", "diffusion_steps"): steps - 1, ("constructor", "timestep_respacing"): [""],
        ("constructor", "noise_schedule"): "linear" if schedule != "linear" else "squaredcos_cap_v2",
        ("respacings", "1", "num_timesteps"): 3, ("respacings", "1", "timestep_respacing"): "5",
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


# ---------------------------------------------------------------------- methods of the diffusion object


def spreads_of(constructor: dict[str, Any]) -> str:
    """The variance of DiT's keywords."""
    if constructor.get("learn_sigma", True):
        return "LEARNED_RANGE"
    return "FIXED_SMALL" if constructor.get("sigma_small") else "FIXED_LARGE"


def dit_object(constructor: dict[str, Any], indices: list[int], net: dict[str, float]) -> Published:
    """DiT's `create_diffusion` over the toy network."""
    beta = TABLES[constructor.get("noise_schedule", "linear")](constructor["diffusion_steps"])
    spreads = spreads_of(constructor)
    predicts = "START_X" if constructor.get("predict_xstart") else "EPSILON"
    return Published(Chain(beta, indices), toy(net, two_heads=spreads == "LEARNED_RANGE"), predicts, spreads)


@pytest.mark.parametrize(
    ("constructor", "indices", "net"),
    [
        (
            {"timestep_respacing": "4", "diffusion_steps": 40, "use_kl": True, "rescale_learned_sigmas": True},
            [0, 13, 26, 39],
            NET,
        ),
        (
            {"timestep_respacing": "3,2", "diffusion_steps": 31, "noise_schedule": "squaredcos_cap_v2",
             "learn_sigma": False, "sigma_small": True, "use_kl": True, "predict_xstart": True},
            [0, 8, 15, 16, 30],
            NEAR,
        ),
        (
            {"timestep_respacing": "ddim7", "diffusion_steps": 49, "noise_schedule": "squaredcos_cap_v2",
             "learn_sigma": True, "rescale_learned_sigmas": False},
            list(range(0, 49, 7)),
            {"a": 0.8, "b": 0.1, "c": 0.03, "d": -0.1, "e": 0.6},
        ),
    ],
    ids=["bound-alone", "fixed-small-bound", "learned-cosine"],
)  # fmt: skip
def test_methods_of_dit(tmp_path, constructor, indices, net):
    published = dit_object(constructor, indices, net)
    chain, t = published.chain, torch.tensor([0, 1, 2, len(indices) - 1])
    x0, noise, drawn = images(4, 2, 2, 3), normal(2, 4, 2, 2, 3), normal(3, 4, 2, 2, 3)
    x = chain.noised(x0, noise, t)
    flat = torch.zeros_like(x)
    place = t.reshape(-1, 1, 1, 1)
    got = {
        "q_sample": x, "q_mean": chain.bar.sqrt()[place] * x0, "q_variance": (1 - chain.bar)[place] + flat,
        "q_log_variance": (1 - chain.bar).log()[place] + flat, "q_posterior_mean": chain.mean(x0, x, t),
        "q_posterior_variance": chain.variance[place] + flat,
        "q_posterior_log_variance_clipped": chain.floor[place] + flat,
        "p_sample.sample": published.sampled(x, t, drawn, clip=True), "p_sample.noise": drawn,
        "ddim_sample.eta0.3": published.ddim(x, t, drawn, eta=0.3, clip=True), "ddim_sample.noise": drawn,
        "ddim_reverse_sample.sample": published.reversed(x, t, clip=True),
        "ddim_reverse_sample.pred_xstart": published.step(x, t, clip=True).x0, "prior_bpd": chain.prior_bits(x0),
    }  # fmt: skip
    steps = {f"clip{clip}": published.step(x, t, clip=bool(clip)) for clip in (0, 1)}
    steps["denoised_fn_half"] = published.step(x, t, clip=True, change=lambda x0: 0.5 * x0)
    got |= {f"p_mean_variance.{key}.{name}": getattr(step, field) for key, step in steps.items()
            for name, field in STEP.items()}  # fmt: skip
    got |= {f"vb_terms_bpd.clip{clip}": published.bound(x0, x, t, clip=bool(clip)) for clip in (0, 1)}
    plain = "RESCALED_MSE" if constructor.get("rescale_learned_sigmas") else "MSE"
    losses = published.losses(x0, noise, t, "RESCALED_KL" if constructor.get("use_kl") else plain)
    got |= {f"training_losses.{name}": value for name, value in losses.items()}
    io = {"input.t": t, "input.x0": x0, "input.noise": noise} | single(
        {f"output.{name}": value for name, value in got.items()}
    )
    learns = spreads_of(constructor) == "LEARNED_RANGE"
    meta = {
        "kind": "DiT/diffusion", "constructor": constructor, "timestep_map": indices,
        "model": {"formula": "a x + ...", "two_heads": learns, **net},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {("model", name): 0.91 for name in ("abcde" if learns else "abcd")} | {
        ("constructor", "use_kl"): not constructor.get("use_kl", False),
        ("constructor", "learn_sigma"): not learns, ("timestep_map",): indices[:-1], ("model", "two_heads"): not learns,
        ("constructor", "predict_xstart"): not constructor.get("predict_xstart", False),
        ("constructor", "diffusion_steps"): constructor["diffusion_steps"] + 7,
    }  # fmt: skip
    if not learns:
        changes[("constructor", "sigma_small")] = False
    elif not constructor.get("use_kl"):
        changes[("constructor", "rescale_learned_sigmas")] = True
    check(tmp_path, Record(meta, io), changes)


def looped(published: Published, name: str, noises: Tensor) -> list[Tensor]:
    """x after each step of a whole run, whose name says which."""
    x, trajectory, clip = noises[0].double(), [], name.endswith("_clip")
    count = len(noises) - 1
    for step in range(count):
        t, noise = torch.full((len(x),), count - 1 - step), noises[1 + step]
        if name.startswith("p_sample"):
            x = published.sampled(x, t, noise, clip=clip)
        else:
            x = published.ddim(x, t, noise, eta=float(name.removeprefix("ddim_eta").removesuffix("_clip")), clip=clip)
        trajectory.append(x)
    return trajectory


def loops_of(published: Published, names: list[str], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of whole runs, and of DDIM's way back, in float32."""
    got, count = {}, len(published.chain.bar)
    for number, name in enumerate(names):
        noises = normal(10 + number, count + 1, *shape)
        trajectory = looped(published, name, noises)
        got |= {
            f"{name}.noises": noises,
            f"{name}.sample": trajectory[-1],
            f"{name}.trajectory": torch.stack(trajectory),
        }
    x0 = images(*shape)
    x, trajectory = x0.double(), []
    for place in range(count):
        x = published.reversed(x, torch.full((len(x),), place), clip=False)
        trajectory.append(x)
    return single(got | {"ddim_reverse.x0": x0, "ddim_reverse.trajectory": torch.stack(trajectory)})


@pytest.mark.parametrize(
    ("constructor", "indices", "names"),
    [
        (
            {"timestep_respacing": "ddim5", "diffusion_steps": 25, "learn_sigma": False},
            list(range(0, 25, 5)),
            ["p_sample_loop_clip", "ddim_eta0.5", "ddim_eta0.25_clip"],
        ),
        (
            {"timestep_respacing": [2, 3], "diffusion_steps": 33, "noise_schedule": "squaredcos_cap_v2",
             "predict_xstart": True},
            [0, 16, 17, 25, 32],
            ["p_sample_loop", "ddim_eta0", "ddim_eta1_clip"],
        ),
    ],
    ids=["fixed-large", "learned-x0-cosine"],
)  # fmt: skip
def test_loops_of_dit(tmp_path, constructor, indices, names):
    published = dit_object(constructor, indices, NET)
    io, learns = loops_of(published, names, (2, 2, 2, 3)), published.spreads == "LEARNED_RANGE"
    meta = {
        "kind": "DiT/sample_loops", "constructor": constructor, "timestep_map": indices,
        "model": {"formula": "a x + ...", "two_heads": learns, **NET},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {("model", name): 0.91 for name in ("abcde" if learns else "abcd")} | {
        ("constructor", "timestep_respacing"): "5", ("constructor", "diffusion_steps"): 40,
        ("timestep_map",): indices[1:], ("constructor", "learn_sigma"): not learns,
        ("constructor", "predict_xstart"): not constructor.get("predict_xstart", False),
    }  # fmt: skip
    if not learns:
        changes[("constructor", "sigma_small")] = True
    check(tmp_path, Record(meta, io), changes)


DIT = {
    "input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0,
    "class_dropout_prob": 0.1, "num_classes": 5, "learn_sigma": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "scale", "names"),
    [
        ({**DIT, "learn_sigma": False, "class_dropout_prob": 0.0}, None, ["p_sample_loop", "ddim_eta0.75"]),
        ({**DIT, "in_channels": 4, "depth": 2}, 1.75, ["p_sample_loop_clip", "ddim_eta0"]),
        ({**DIT, "num_heads": 4}, None, ["p_sample_loop"]),
    ],
    ids=["without-null", "guided", "learned-unguided"],
)
def test_loops_of_dit_over_its_network(tmp_path, network, scale, names):
    """The classes of a run without guidance may be any; with it, the second half has the row behind the last."""
    w, indices, classes = Weights(1), [0, 10, 21, 31], torch.tensor([3, 1, 5, 5] if scale else [3, 1, 4])

    def output(x: Tensor, time: Tensor) -> Tensor:
        if scale is None:
            return reference_dit.forward(w, network, x, time, classes)["forward"]
        return reference_dit.guided(w, network, (x, time, classes), scale)

    constructor = {"timestep_respacing": "4", "diffusion_steps": 32, "learn_sigma": network["learn_sigma"]}
    chain = Chain(linear(32), indices)
    published = Published(chain, output, "EPSILON", spreads_of(constructor))
    channels, side = network["in_channels"], network["input_size"]
    io = loops_of(published, names, (len(classes), channels, side, side)) | {"input.y": classes}
    meta = {
        "kind": "DiT/sample_loops", "constructor": constructor, "timestep_map": indices, "model": "a remark",
        "network": {"like_case": "a remark", "constructor": network}, "y": classes.tolist(),
    } | ({} if scale is None else {"cfg_scale": scale})  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {
        ("network", "constructor", "num_heads"): 8, ("y",): [2] * len(classes),
        ("constructor", "diffusion_steps"): 40, ("constructor", "predict_xstart"): True,
        ("cfg_scale",): 1.5,
    }  # fmt: skip
    check(tmp_path, Record(meta, io, w.tensors), changes)


@pytest.mark.parametrize(
    ("settings", "indices", "net"),
    [
        (
            {"schedule": "cosine", "steps": 30, "respacing": "ddim6", "rescale_timesteps": True},
            list(range(0, 30, 5)),
            NET,
        ),
        (
            {"schedule": "linear", "steps": 45, "respacing": [2, 3], "rescale_timesteps": False},
            [0, 22, 23, 33, 44],
            NEAR,
        ),
    ],
    ids=["cosine", "list-of-parts"],
)
def test_losses_of_improved_ddpm(tmp_path, settings, indices, net):
    chain = Chain(TABLES[settings["schedule"]](settings["steps"]), indices, rescale=settings["rescale_timesteps"])
    t = torch.tensor([0, 1, len(indices) - 1])
    x0, noise, drawn = images(3, 1, 2, 3), normal(2, 3, 1, 2, 3), normal(3, 3, 1, 2, 3)
    x = chain.noised(x0, noise, t)
    got = {"output.q_sample": x, "p_sample.noise": drawn}
    for predicts in ("PREVIOUS_X", "START_X", "EPSILON"):
        for spreads in ("LEARNED", "LEARNED_RANGE", "FIXED_SMALL", "FIXED_LARGE"):
            name, network = f"{predicts}.{spreads}", toy(net, two_heads=spreads.startswith("LEARNED"))
            published = Published(chain, network, predicts, spreads)
            for kind in ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL"):
                losses = published.losses(x0, noise, t, kind)
                got |= {f"loss.{name}.{kind}.{term}": value for term, value in losses.items()}
            for clip in (0, 1):
                step = published.step(x, t, clip=bool(clip))
                got |= {f"pmv.{name}.clip{clip}.{key}": getattr(step, field) for key, field in STEP.items()}
            got[f"p_sample.{name}"] = published.sampled(x, t, drawn, clip=True)
            got[f"ddim_sample_eta0.4.{name}"] = published.ddim(x, t, drawn, eta=0.4, clip=True)
            got[f"ddim_reverse.{name}"] = published.reversed(x, t, clip=True)
    io = {"input.t": t, "input.x0": x0, "input.noise": noise} | single(got)
    model = {"formula": "a x + ...", "two_heads": "True for LEARNED and LEARNED_RANGE", **net}
    meta = {"kind": "improved-diffusion/losses", "timestep_map": indices, "model": model, **settings}
    changes: dict[tuple[str | int, ...], Any] = {("model", name): 0.91 for name in "ae"} | {
        ("rescale_timesteps",): not settings["rescale_timesteps"], ("timestep_map",): indices[1:],
        ("schedule",): "linear" if settings["schedule"] == "cosine" else "cosine", ("respacing",): None,
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


# ---------------------------------------------------------------------- the whole bound


def whole_bound(published: Published, x0: Tensor, noises: Tensor, *, clip: bool) -> dict[str, Tensor]:
    """The tensors of `calc_bpd_loop`, from the last place of the chain to the first."""
    rows: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
    for noise, place in zip(noises, range(len(noises) - 1, -1, -1), strict=True):
        t = torch.full((len(x0),), place)
        x = published.chain.noised(x0, noise, t)
        estimate = published.step(x, t, clip=clip).x0
        rows["vb"].append(published.bound(x0, x, t, clip=clip))
        rows["xstart_mse"].append((estimate - x0).square().flatten(1).mean(1))
        rows["mse"].append((published.chain.eps(estimate, x, t) - noise).square().flatten(1).mean(1))
    got, prior = {name: torch.stack(values, 1) for name, values in rows.items()}, published.chain.prior_bits(x0)
    got |= {"prior_bpd": prior, "total_bpd": got["vb"].sum(1) + prior}
    return {"input.x0": x0, "noises": noises} | single({f"output.{name}": value for name, value in got.items()})


@pytest.mark.parametrize(
    ("constructor", "clip", "indices"),
    [
        ({"steps": 25, "timestep_respacing": "5", "rescale_timesteps": True, "predict_xstart": True, "use_kl": True},
         False, [0, 6, 12, 18, 24]),
        ({"steps": 36, "timestep_respacing": "2,2", "learn_sigma": True, "rescale_learned_sigmas": True,
          "noise_schedule": "cosine"}, True, [0, 17, 18, 35]),
        ({"steps": 6, "sigma_small": True, "noise_schedule": "cosine", "predict_xstart": True}, False, list(range(6))),
    ],
    ids=["fixed-large-of-x0", "learned-in-parts", "fixed-small-without-clip"],
)  # fmt: skip
def test_the_bound_of_improved_ddpm(tmp_path, constructor, clip, indices):
    beta = TABLES[constructor.get("noise_schedule", "linear")](constructor["steps"])
    chain = Chain(beta, indices, rescale=constructor.get("rescale_timesteps", False))
    learns = constructor.get("learn_sigma", False)
    fixed = "FIXED_SMALL" if constructor.get("sigma_small") else "FIXED_LARGE"
    predicts = "START_X" if constructor.get("predict_xstart") else "EPSILON"
    net = NET if predicts == "EPSILON" else NEAR
    published = Published(chain, toy(net, two_heads=learns), predicts, "LEARNED_RANGE" if learns else fixed)
    io = whole_bound(published, images(2, 1, 2, 3), normal(2, len(indices), 2, 1, 2, 3), clip=clip)
    meta = {
        "kind": "improved-diffusion/calc_bpd", "constructor": constructor, "clip_denoised": clip,
        "timestep_map": indices, "model": {"formula": "a x + ...", "two_heads": learns, **net},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {("model", name): 0.91 for name in ("abcde" if learns else "abcd")} | {
        ("clip_denoised",): not clip, ("constructor", "steps"): constructor["steps"] + 5,
        ("constructor", "learn_sigma"): not learns, ("constructor", "predict_xstart"): predicts == "EPSILON",
        ("constructor", "rescale_timesteps"): not constructor.get("rescale_timesteps", False),
        ("timestep_map",): [*indices[:-1], 999],
    }  # fmt: skip
    if not learns:
        changes[("constructor", "sigma_small")] = fixed == "FIXED_LARGE"
    check(tmp_path, Record(meta, io), changes)


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        ({"channel_mult": [1, 1], "attention_resolutions": [], "use_scale_shift_norm": False}, None),
        ({"channel_mult": [2], "attention_resolutions": [1], "num_heads": 2, "num_classes": 4}, [3]),
    ],
    ids=["unconditional", "of-classes"],
)
def test_the_bound_over_a_network(tmp_path, network, classes):
    w, indices, learns = Weights(2), [0, 8, 15], classes is not None
    arguments = {
        "in_channels": 1, "model_channels": 64, "out_channels": 2 if learns else 1, "num_res_blocks": 1, **network,
    }  # fmt: skip
    unet = UNet(w, arguments, "improved")
    rows = None if classes is None else torch.tensor(classes)
    spreads = "LEARNED_RANGE" if learns else "FIXED_LARGE"
    chain = Chain(cosine(16), indices, rescale=True)
    published = Published(chain, lambda x, time: unet(x.double(), time, y=rows), "EPSILON", spreads)
    constructor = {
        "steps": 16, "timestep_respacing": "3", "noise_schedule": "cosine", "rescale_timesteps": True,
        "learn_sigma": learns,
    }  # fmt: skip
    meta = {
        "kind": "improved-diffusion/calc_bpd", "constructor": constructor, "clip_denoised": True,
        "timestep_map": indices, "model": "a remark", "network": {"constructor": arguments},
    } | ({} if classes is None else {"y": classes})  # fmt: skip
    io = whole_bound(published, images(1, 1, 4, 4), normal(2, 3, 1, 1, 4, 4), clip=True)
    changes: dict[tuple[str | int, ...], Any] = {
        ("constructor", "rescale_timesteps"): False, ("constructor", "predict_xstart"): True, ("clip_denoised",): False,
        ("network", "constructor", "use_scale_shift_norm"): True,
    }  # fmt: skip
    if classes is not None:
        changes |= {("y",): [1], ("network", "constructor", "num_heads"): 4}
    check(tmp_path, Record(meta, io, w.tensors), changes)


# ---------------------------------------------------------------------- times by the second moment


@pytest.mark.parametrize(
    ("constructor", "updates", "seed"),
    [
        ({"num_timesteps": 4, "history_per_term": 2, "uniform_prob": 0.3}, 9, 3),
        ({"num_timesteps": 6, "history_per_term": 5}, 4, 8),
        ({"num_timesteps": 3}, 16, 5),
    ],
    ids=["warm", "not-warm", "defaults"],
)
def test_times_by_the_second_moment(tmp_path, constructor, updates, seed):
    """As published: 10 losses and 0.001 by default; histories are filled from the front, and then shifted."""
    steps, count = constructor["num_timesteps"], constructor.get("history_per_term", 10)
    uniform = constructor.get("uniform_prob", 0.001)
    draw = np.random.RandomState(seed)
    ts, losses = draw.randint(0, steps, (updates, 3)), draw.rand(updates, 3).astype(np.float32)
    history: list[list[float]] = [[] for _ in range(steps)]

    def weights() -> np.ndarray:
        if any(len(row) < count for row in history):
            return np.ones(steps)
        moment = np.sqrt(np.mean(np.square(history), axis=1))
        return moment / moment.sum() * (1 - uniform) + uniform / steps

    rows = [weights()]
    for places, values in zip(ts, losses, strict=True):
        for place, value in zip(places, values, strict=True):
            history[place] = [*history[place], float(value)][-count:]
        rows.append(weights())
    p = rows[-1] / rows[-1].sum()
    indices = np.random.RandomState(seed + 1).choice(steps, size=7, p=p)
    numbers = {
        "ts": ts, "losses": losses, "weights": np.stack(rows), "p": p,
        "warmed_up": np.array([abs(row.sum() - steps) > 1e-9 for row in rows]),
        "loss_counts": np.array([len(row) for row in history]),
        "loss_history": np.array([row + [0.0] * (count - len(row)) for row in history]),
        "sample.indices": indices, "sample.weights": (1 / (steps * p[indices])).astype(np.float32),
    }  # fmt: skip
    io = {name: torch.from_numpy(value) for name, value in numbers.items()}
    meta = {
        "kind": "improved-diffusion/loss_second_moment", "constructor": constructor, "numpy_seed_for_sample": seed + 1,
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {
        ("constructor", "num_timesteps"): steps + 1, ("constructor", "history_per_term"): count + 1,
        ("numpy_seed_for_sample",): seed + 2,
    }  # fmt: skip
    if io["warmed_up"][-1]:
        changes[("constructor", "uniform_prob")] = 0.7
    check(tmp_path, Record(meta, io), changes)
