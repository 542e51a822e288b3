"""ControlNets for commands: found, checked against the model, put on it with the pictures that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from unveil.checkpoints import controlnet_loader
from unveil.conditioning.controlnet import Control, Mode
from unveil.errors import DataError, RecipeError, WeightsError
from unveil.generation import inputs
from unveil.generation.task_spec import SourceFile
from unveil.io.console import Console
from unveil.model import Model
from unveil.nn.unet import UNet
from unveil.types import ControlNetInfo


class ControlNetOption(NamedTuple):
    """A ControlNet as it is typed: its file or run (None: the model's own), the picture, weight and part of the run."""

    network: Path | None
    picture: Path
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0


def put_on(model: Model, wanted: Sequence[ControlNetOption], mode: str, console: Console) -> tuple[ControlNetInfo, ...]:
    """Puts ControlNets on a model; those that it has already are given their pictures, weights and parts of the run.

    Args:
        wanted: in order.
        mode: `balanced` or `guess`.

    Returns:
        what a picture's record holds of them.

    Raises:
        WeightsError: a file that is none, or of another base.
        DataError: a picture that cannot be read.
        RecipeError: a range or a mode that is none.
    """
    if not wanted and not model.controlnet_infos:
        return ()
    own = {one.sha256: one for one in model.controlnet_infos}
    there = {} if model.controls is None else {one.key: one for one in model.controls.controls}
    base = model.denoiser.network
    controls: list[Control] = []
    steering: list[ControlNetInfo] = []
    for one in wanted:
        mine = _own(one, own)
        if mine is None:
            assert one.network is not None
            found = controlnet_loader.read(one.network, base.config if isinstance(base, UNet) else None)
            network, name, digest = found.network.to(model.device), one.network.resolve().name, found.sha256
            key = f"control{len(controls) + 1}"
            if found.base is not None:
                console.say(f"{one.network}: a ControlNet that was trained on {found.base.name!r}")
        else:
            network, key, name, digest = there[mine.key].network, mine.key, mine.name, mine.sha256
        channels = network.hint_channels
        if channels not in (1, 3):
            raise WeightsError(f"{name}: takes control images of {channels} channels, which no image file has")
        picture = inputs.open_input("picture", one.picture, channels)
        controls.append(Control(key, network, one.weight, one.start, one.stop))
        file = picture.input
        steering.append(
            ControlNetInfo(key, name, digest, one.weight, one.start, one.stop, file.name, file.sha256, picture.content)
        )
    if left := [one.name for one in own.values() if one.key not in {each.key for each in controls}]:
        raise RecipeError(
            f"this model is the ControlNet {left[0]!r} on its base; give its control image: --controlnet IMAGE"
        )
    model.with_controlnets(*controls, mode=cast(Mode, mode))
    model.controlnet_infos = tuple(steering)
    return model.controlnet_infos


def again(
    facts: Mapping[str, Any], given: Sequence[ControlNetOption], model: Model, places: Sequence[Path]
) -> tuple[list[ControlNetOption], str]:
    """The ControlNets and the mode of a picture's record; files are found by hash among those given, or by name here.

    Args:
        facts: the record.
        given: as typed.
        model: which may have one of its own.
        places: files and folders where pictures may lie.

    Raises:
        WeightsError: a ControlNet that was not given.
        DataError: a picture that is not there, or a damaged record.
    """
    recorded = facts.get("controls") or []
    try:
        told = [SourceFile(str(one["name"]), str(one["sha256"])) for one in recorded]
        pictures = [SourceFile(str(one["picture"]), str(one["picture_sha256"])) for one in recorded]
        ranges = [(float(one["weight"]), float(one["start"]), float(one["stop"])) for one in recorded]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"the image's metadata of its ControlNets lack {problem}; use it as it was written"
        ) from problem
    paths = inputs.find_inputs(pictures, [*(one.picture for one in given), *places])
    own: dict[str, Path | None] = {one.sha256: None for one in model.controlnet_infos}
    own |= (
        {controlnet_loader.digest(one.network): one.network for one in given if one.network is not None} if told else {}
    )
    options = [
        ControlNetOption(_found(one, own), path, *numbers)
        for one, path, numbers in zip(told, paths, ranges, strict=True)
    ]
    return options, str(facts.get("control_mode", "balanced"))


def _own(one: ControlNetOption, own: Mapping[str, ControlNetInfo]) -> ControlNetInfo | None:
    """Which of the model's own ControlNets is meant, if one is."""
    if one.network is not None:
        return own.get(controlnet_loader.digest(one.network)) if own else None
    if not own:
        raise RecipeError(
            f"--controlnet {one.picture}: names no ControlNet; give it with its control image: --controlnet "
            f"FILE={one.picture}"
        )
    return next(iter(own.values()))


def _found(one: SourceFile, known: Mapping[str, Path | None]) -> Path | None:
    """The path of a ControlNet of a record; None for the model's own."""
    if one.sha256 in known:
        return known[one.sha256]
    here = Path(one.name)
    if here.exists() and controlnet_loader.digest(here) == one.sha256:
        return here
    raise WeightsError(
        f"the image was generated with the ControlNet {one.name!r} (sha256 {one.sha256[:12]}...); give it with "
        "--controlnet FILE=IMAGE"
    )
