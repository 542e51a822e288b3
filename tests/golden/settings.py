"""Settings of a recorded case that remember which of them were read, and the keys that are not settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[str | int, ...]

# Keys at the top, with everything below them, that describe the record.
DESCRIPTIVE = frozenset({
    # where the record comes from
    "kind", "repository", "commit", "torch", "device", "device_dtype", "file", "source", "case", "seed", "init",
    "version", "files", "weights", "weights_storage", "extra_weights",
    # remarks
    "flags", "note", "notes_by_prefix", "weights_note", "weights_rule", "kohya_export_warning", "tensor_name_patterns",
    "cond_formula",
    # tolerances: `compare` is used when a comparison is judged
    "tolerance", "compare",
    # facts of the record: shapes and sensitivities
    "tensors", "sensitivity", "verification", "absmax", "n_params", "n_keys",
})  # fmt: skip

# Keys at the top that are remarks where they are text, and settings where they are structured.
PROSE = frozenset({"model", "classifier", "inner", "inner_model", "args", "arguments", "sde_args", "schedule", "betas",
                   "cond_fn", "klass", "combinations", "classes", "function", "functions"})  # fmt: skip

# Keys at any depth: remarks beside the numbers, and numbers of calls and draws that were counted.
EVERYWHERE = frozenset({"formula", "like_case", "nfe", "noise_draws", "model_calls", "net_calls", "fevals", "info",
                        "kid_rng", "kid_kernel"})  # fmt: skip

AUTOENCODER_TRAINING = tuple(
    f"arguments.{name}"
    for name in ("lossconfig", "monitor", "image_key", "ckpt_path", "ignore_keys", "colorize_nlabels")
)

# Settings without effect on anything that is recorded, by kind: their place, where * is any key.
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    # what the training adds to the network, and where it starts
    "latent-diffusion/autoencoder_kl": AUTOENCODER_TRAINING,
    "latent-diffusion/vqmodel": (
        *AUTOENCODER_TRAINING, "arguments.batch_resize_range", "arguments.scheduler_config", "arguments.lr_g_factor",
        "arguments.use_ema",
    ),
    # the last hidden state comes before the projection, and no token is searched for
    "latent-diffusion/sd1_tiny_pipeline": (
        "vae_arguments.lossconfig", "text_arguments.projection_dim", "text_arguments.bos_token_id",
        "text_arguments.eos_token_id",
    ),
    # of the process and the training; what the weights hold; the filter where none is used
    "score_sde_pytorch/ncsnpp": (
        *(f"arguments.model.{name}" for name in (
            "sigma_min", "sigma_max", "num_scales", "beta_min", "beta_max", "init_scale", "fourier_scale", "fir_kernel",
            "name", "ema_rate",
        )),
        *(f"arguments.data.{name}" for name in ("dataset", "random_flip", "uniform_dequantization")),
        "arguments.training",
    ),
    # which layers a file is on, the file shows; how a LoRA begins and is trained; a DiT has no groups
    "lora/cloneofsimo": ("arguments.target_replace",),
    "lora/peft": (
        *(f"lora_config.{name}" for name in (
            "target_modules", "init_lora_weights", "lora_dropout", "bias", "task_type", "peft_type", "inference_mode",
        )),
        "arguments.norm_num_groups", "arguments.dropout",
    ),
    # the recorded scale of the formula, which `settings` has as well
    "guided-diffusion/guidance": ("cond_scale",),
    # a network does not use the length of its schedule
    "ddim/unet": ("arguments.diffusion",),
    # the scalings depend on the data's deviation and the boundary alone
    "consistency_models/scalings": ("specs.*.sigma_max", "specs.*.rho"),
    # the range of levels is that of the run; `denoiser` at the top is what was passed, `settings.denoiser` all of it
    "consistency_models/karras_sample_toy_net": ("settings.denoiser.sigma_max", "denoiser"),
}  # fmt: skip


class Settings(Mapping[str, Any]):
    """A JSON object; a value counts as read when it is taken out, and an object or a list of objects when all is.

    The test for a key reads nothing.
    """

    def __init__(self, values: Mapping[str, Any], place: Place = (), seen: set[Place] | None = None) -> None:
        self._values = values
        self._place = place
        self._seen: set[Place] = set() if seen is None else seen

    def __getitem__(self, key: str) -> Any:
        return self._taken(self._values[key], (*self._place, key))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def skip(self) -> None:
        """Count everything below as read, where it was recorded that the original fails."""
        self._seen.update(place for place, _ in _leaves(self._values, self._place))

    def unread(self) -> Iterator[Place]:
        """The places of values that were never taken out."""
        return (place for place, _ in _leaves(self._values, self._place) if place not in self._seen)

    def _taken(self, value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            return Settings(value, place, self._seen)
        if isinstance(value, list) and _has_objects(value):
            return [self._taken(entry, (*place, number)) for number, entry in enumerate(value)]
        self._seen.add(place)
        return value


def unread(meta: Settings) -> list[str]:
    """The settings of a case that were never read, as dotted places."""
    kind = str(meta["kind"])
    return [
        ".".join(map(str, place))
        for place in meta.unread()
        if place[0] not in DESCRIPTIVE
        and not EVERYWHERE.intersection(place)
        and not (len(place) == 1 and place[0] in PROSE and isinstance(meta[str(place[0])], str))
        and not any(_matches(place, pattern) for pattern in WITHOUT_EFFECT.get(kind, ()))
    ]


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, (*place, key))
    elif isinstance(value, list) and _has_objects(value):
        for number, below in enumerate(value):
            yield from _leaves(below, (*place, number))
    else:
        yield place, value


def _has_objects(value: list[Any]) -> bool:
    return any(isinstance(entry, Mapping) or (isinstance(entry, list) and _has_objects(entry)) for entry in value)


def _matches(place: Place, pattern: str) -> bool:
    parts = pattern.split(".")
    return len(parts) <= len(place) and all(a in ("*", str(b)) for a, b in zip(parts, place, strict=False))
