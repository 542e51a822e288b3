"""State of training, besides the weights, for exact resume, as tensors and plain values.

Most learners key every random number by the step and the example, so that no state of a random generator is saved. The
others save the state of their generator among the learner's tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil.errors import WeightsError
from unveil.io.files import read_tensors, require_finite
from unveil.model import checkpoint_store
from unveil.train.lightning_module import TrainingModule

TENSORS, VALUES = "train_state.safetensors", "train_state.json"
AUXILIARY = "beside."  # before the names of auxiliary modules in the file


def save(module: TrainingModule, sums: Mapping[str, Any], parent: Path, *, items: int, about: str) -> Path:
    """Publish a training checkpoint; return its folder.

    Args:
        sums: State of the log: the sums since its last line (`window`) and the usual norm of the gradient.
        parent: The run's folder of checkpoints.
        items: Length of the data set, so that a change is noticed when resuming.
        about: Markdown for the end of the model card.

    Raises:
        NonFinite: A value of the state is not finite; nothing was written.
        OutOfResources: The disk is full; nothing was written.
        OutputError: The folder cannot be written.
    """
    state = _tensors(module)
    # A buffer may hold infinities on purpose (masks of attention); NaN is always an accident (running means).
    buffers = {k: b for k, b in module.model.named_buffers() if b.is_floating_point() and bool(b.isnan().any())}
    for what, tensors in (
        ("the model", {**dict(module.model.named_parameters()), **buffers}),
        ("the average of the weights", dict(module.average.model.named_parameters())),
        ("the state of the optimiser", state),
    ):
        require_finite(tensors, f"step {module.step}: {what}")
    values: dict[str, Any] = {
        "step": module.step,
        "ema_updates": module.average.updates,
        "skipped": module.skipped,
        "skipped_in_a_row": module.in_a_row,
        "rolled_back": module.rolled_back,
        **sums,
        "items": items,
        "grad_accum_steps": module.config.grad_accum_steps,
        "scaler": None if module.scaler is None else module.scaler.state_dict(),
    }
    learner = module.learner
    averaged = {f"ema/{name}": tensors for name, tensors in learner.ema_tensors(module.average.model).items()}
    files = {**learner.files(about), **averaged, TENSORS: state, VALUES: values}
    folder = parent / checkpoint_store.step_name(module.step)
    checkpoint_store.save(folder, files, kind="training", step=module.step, replace=True)
    return folder


def last_good(parent: Path) -> Path | None:
    """Return the newest valid checkpoint that was not saved after a skipped step, or None."""
    for folder in checkpoint_store.checkpoints(parent):
        try:
            if checkpoint_store.read_json(folder / VALUES).get("skipped_in_a_row") == 0:
                checkpoint_store.verify(folder)
                return folder
        except WeightsError:
            continue
    return None


def parts_of(folder: Path) -> int:
    """Return the number of parts of a step when a checkpoint was saved; 1 if it is not recorded.

    Raises:
        WeightsError: The state is damaged.
    """
    return int(checkpoint_store.read_json(folder / VALUES).get("grad_accum_steps", 1))


class TrainingState:
    """Verified checkpoint to resume from; its parts are restored when training has created the objects for them.

    Raises:
        WeightsError: The checkpoint is incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, Any] = checkpoint_store.read_json(folder / VALUES)
        self.tensors = read_tensors(folder / TENSORS)
        missing = {"step", "ema_updates", "skipped", "skipped_in_a_row", "window", "items", "scaler"} - set(self.values)
        if missing:
            raise WeightsError(f"{folder / VALUES}: lacks {', '.join(sorted(missing))}; use another checkpoint")
        self.step = int(self.values["step"])

    def into_weights(self, module: TrainingModule) -> None:
        """Restore the trained weights, the counters and the learner's state, before Lightning starts."""
        module.learner.load(module.model, self.folder, "trained")
        module.step = self.step
        module.skipped = int(self.values["skipped"])
        module.in_a_row = int(self.values["skipped_in_a_row"])
        module.rolled_back = int(self.values.get("rolled_back", 0))  # earlier versions did not roll back
        module.learner.restore(self.tensors)
        self._into_auxiliary(module)

    def roll_back(self, module: TrainingModule) -> None:
        """Restore weights, averages, moments and loss scale in a training that goes on with its next step.

        The order of the data and the statistics of the timestep sampling continue, so that the next steps have other
        examples than those that failed.
        """
        assert module.optimizer is not None
        module.learner.load(module.model, self.folder, "trained")
        self._into_auxiliary(module)
        module.optimizer.state.clear()
        self.into_training(module)
        module.in_a_row = 0
        module.rolled_back += 1

    def _into_auxiliary(self, module: TrainingModule) -> None:
        auxiliary = {k.removeprefix(AUXILIARY): v for k, v in self.tensors.items() if k.startswith(AUXILIARY)}
        if auxiliary.keys() != module.auxiliary.state_dict().keys():
            raise WeightsError(f"{self.folder / TENSORS}: holds another discriminator; use another checkpoint")
        module.auxiliary.load_state_dict(auxiliary)

    def into_training(self, module: TrainingModule) -> None:
        """Restore the average, the optimiser's moments and the loss scale, once they exist on their device."""
        module.learner.load(module.average.model, self.folder, "ema")
        module.average.updates = int(self.values["ema_updates"])
        optimizer = module.optimizer
        assert optimizer is not None
        fused = bool(optimizer.defaults["fused"])
        for name, parameter in _trained(module):
            moments = {
                k: self.tensors[f"optimizer.{name}.{k}"] for k in _MOMENTS if f"optimizer.{name}.{k}" in self.tensors
            }
            if not moments:
                continue
            fresh = {k: torch.empty_like(parameter).copy_(v) for k, v in moments.items() if k != "step"}
            step = moments["step"].clone()
            optimizer.state[parameter] = {"step": step.to(parameter.device) if fused else step, **fresh}
        if module.scaler is not None and self.values["scaler"]:
            module.scaler.load_state_dict(self.values["scaler"])


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's


def _tensors(module: TrainingModule) -> dict[str, Tensor]:
    optimizer = module.optimizer
    assert optimizer is not None
    state = {f"{AUXILIARY}{name}": value for name, value in module.auxiliary.state_dict().items()}
    for name, parameter in _trained(module):
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{name}.{key}"] = value
    return state | module.learner.state()


def _trained(module: TrainingModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every trained parameter with the name of its moments in the state."""
    yield from module.model.named_parameters()
    yield from module.auxiliary.named_parameters(prefix=AUXILIARY.removesuffix("."))
