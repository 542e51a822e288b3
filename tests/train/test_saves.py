"""A checkpoint has the state of one step, and a reader of the folder never finds a part of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.train import tiny
from unveil.core.objective import DiffusionLoss
from unveil.errors import WeightsError
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store
from unveil.train import callbacks, state
from unveil.train.lightning_module import TrainingModule

SAVES = 50


class Reader:
    """What a process sees that looks at a folder of checkpoints every millisecond.

    Attributes:
        looks: Number of looks.
        incomplete: Reasons why a folder that has the name of a checkpoint is none.
        newest: Steps of the newest checkpoint, one for each change.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.incomplete: list[str] = []
        self.newest: list[int] = []

    def look(self, parent: Path) -> None:
        """Verify the newest checkpoint."""
        self.looks += 1
        for folder in checkpoint_store.checkpoints(parent)[:1]:
            try:
                step = checkpoint_store.verify(folder).step
            except WeightsError as problem:
                if folder.exists():  # not one that was deleted meanwhile
                    self.incomplete.append(str(problem))
            else:
                self.newest += [step] if self.newest[-1:] != [step] else []


@contextmanager
def reading(parent: Path) -> Iterator[Reader]:
    """Context in which a thread reads."""
    reader, over = Reader(), threading.Event()

    def read() -> None:
        while not over.wait(0.001):
            reader.look(parent)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield reader
    finally:
        over.set()
        thread.join()


def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Overwrite tensors, and return what they were."""
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_()
    return before


def test_weights_that_change_after_a_save_do_not_change_it_and_readers_find_whole_checkpoints(tmp_path, monkeypatch):
    real, before = state.save, {}

    def save(module: TrainingModule, *arguments: Any, **named: Any) -> Path:
        live = {f"denoiser.{key}": value for key, value in module.model.denoiser.network.named_parameters()}
        averaged = module.average.model.denoiser.network.named_parameters()
        now = {**live, **{f"average {key}": value for key, value in averaged}}
        folder = real(module, *arguments, **named)
        before[folder.name] = spoil(now)
        return folder

    monkeypatch.setattr(state, "save", save)
    monkeypatch.setattr(callbacks, "KEEP", SAVES)
    parent = tmp_path / "run" / "checkpoints"
    with reading(parent) as reader:
        tiny.fit(tmp_path / "run", objective=DiffusionLoss(), steps=SAVES, save_every=1, grad_accum_steps=1)
    assert len(before) == SAVES
    for name, tensors in before.items():
        live, averaged = (read_tensors(parent / name / part / "denoiser.safetensors") for part in ("", "ema"))
        for key, tensor in tensors.items():
            place = averaged if key.startswith("average") else live
            saved = place["network." + key.removeprefix("average ").removeprefix("denoiser.")]
            assert torch.equal(saved, tensor), (name, key)
    assert reader.incomplete == []
    assert reader.newest == sorted(reader.newest)
    assert len(reader.newest) > SAVES / 5, f"the reader saw too little in {reader.looks} looks"


def test_readers_find_whole_checkpoints_while_old_ones_are_deleted(tmp_path):
    values = {"weight": torch.zeros(2000)}
    with reading(tmp_path) as reader:
        for step in range(SAVES):
            values["weight"].fill_(step)
            folder = tmp_path / checkpoint_store.step_name(step)
            checkpoint_store.save(folder, {"a.safetensors": values}, step=step)
            values["weight"].fill_(-1)
            assert torch.equal(read_tensors(folder / "a.safetensors")["weight"], torch.full((2000,), float(step)))
            checkpoint_store.prune(tmp_path, 2)
    assert reader.incomplete == []
    assert len(reader.newest) > SAVES / 5


def test_a_naive_saver_in_the_background_is_detected(tmp_path):
    """Controls: a saver that returns before it has copied, and one that writes under the final name."""
    values, folder = {"weight": torch.zeros(200_000)}, tmp_path / "step_000001"

    def naive() -> None:
        folder.mkdir()
        time.sleep(0.02)
        torch.save(values, folder / "a.pt")

    with reading(tmp_path) as reader:
        thread = threading.Thread(target=naive)
        thread.start()
        before = spoil(values)
        thread.join()
    saved = torch.load(folder / "a.pt", weights_only=True)
    assert not torch.equal(saved["weight"], before["weight"])
    assert reader.incomplete
