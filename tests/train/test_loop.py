"""Classifiers and sequence models under the common loop: former numbers, resume, EMA, precision, accumulation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import nn

from tests.former.environment import key
from tests.train import loop_numbers, tiny
from unveil.core.objective import DiffusionLoss
from unveil.core.timestep_sampling import SecondMoment
from unveil.errors import Cancelled, RecipeError, WeightsError
from unveil.evaluate.image_set import collect_images
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store
from unveil.model.config import TrainConfig
from unveil.train import precision, seq2seq
from unveil.train.classifier import ClassifierLearner
from unveil.train.diffusion import DiffusionLearner
from unveil.train.learner import Learner
from unveil.train.seq2seq import SequenceLearner, fit_sequence
from unveil.train.trainer import learn, learn_in_memory

STORED: dict[str, Any] = json.loads(loop_numbers.FILE.read_text())
DROPOUT = "transformer with dropout, sizes and bf16"


class Kind(NamedTuple):
    """A learner, and its settings of the loop with changes."""

    learner: Learner
    config: TrainConfig
    items: Any


def classifier_kind(name: str = DROPOUT, **changes: Any) -> Kind:
    config = replace(loop_numbers.CLASSIFIERS[name], epochs=1, batch_size=100, **changes)
    train = collect_images(loop_numbers.parts()[0])
    return Kind(ClassifierLearner(config, train), config.loop(len(train.pixels)), train.pixels)


def sequence_kind(**changes: Any) -> Kind:
    learner, _ = seq2seq._prepared(loop_numbers.sequence_recipe(steps=12, **changes))
    return Kind(learner, learner.loop(), learner.examples)


def diffusion_kind(**changes: Any) -> Kind:
    objective = DiffusionLoss(time=SecondMoment(tiny.STEPS, history=1))
    return Kind(DiffusionLearner(tiny.model(), objective, "pixels"), tiny.config(**changes), tiny.Images())


KINDS: dict[str, Callable[..., Kind]] = {"classifier": classifier_kind, "sequence": sequence_kind}
ALL = {**KINDS, "diffusion": diffusion_kind}


def fit(kind: Kind, run: Path) -> Path:
    return learn(kind.learner, kind.items, config=kind.config, run=run, held_out=None, recorded={"name": "test"})


def in_memory(kind: Kind) -> list[torch.Tensor]:
    learn_in_memory(kind.learner, kind.items, config=kind.config)
    return weights(kind.learner.model)


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in network.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# ---------------------------------------------------------------------- what it was before


@pytest.mark.parametrize("name", loop_numbers.cases())
def test_losses_and_weights_are_those_of_the_former_loops(name):
    now, then = loop_numbers.measured(name), STORED["cases"][name]
    if STORED["key"] == key():
        assert now == then
    assert now["steps"] == then["steps"]
    former = [float.fromhex(loss) for loss in then["losses"]]
    assert [float.fromhex(loss) for loss in now["losses"]] == pytest.approx(former, rel=1e-3)


# ---------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2])
def test_an_interrupted_run_ends_the_same_to_the_bit(kind, parts, tmp_path):
    settings = {"save_every": 5, "ema_decay": 0.9, "grad_accum_steps": parts}
    whole, cut = (fit(KINDS[kind](**settings), tmp_path / name) for name in ("whole", "cut"))
    last = max(checkpoint_store.checkpoints(cut / "checkpoints"))
    shutil.rmtree(last)  # as if killed after step 5 or 10
    assert len(checkpoint_store.checkpoints(cut / "checkpoints")) >= 1
    fit(KINDS[kind](**settings), cut)
    files = sorted(path.relative_to(last) for path in last.rglob("*.safetensors"))
    assert len(files) == 3  # trained and averaged weights, and the state of the training
    for file in files:
        one, other = (read_tensors(run / "checkpoints" / last.name / file) for run in (whole, cut))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_changes_no_number(kind, tmp_path):
    one, other = KINDS[kind](), KINDS[kind]()
    fit(one, tmp_path / "run")
    assert same(weights(one.learner.model), in_memory(other))


def test_a_stopped_command_is_resumed_and_a_finished_one_kept(tmp_path, monkeypatch):
    recipe = loop_numbers.sequence_recipe(steps=8, save_every=3)
    whole = fit_sequence(recipe, run=tmp_path / "whole")
    step = SequenceLearner.loss

    def interrupted(self: SequenceLearner, batch: Any, streams: Any, number: int, flip: bool) -> Any:
        if number == 4:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, streams, number, flip)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceLearner, "loss", interrupted)
        with pytest.raises(Cancelled) as stopped:
            fit_sequence(recipe, run=tmp_path / "cut")
    assert stopped.value.exit_code == 143
    again = fit_sequence(recipe, run=tmp_path / "cut")
    assert same(weights(whole.model.network), weights(again.model.network))
    assert whole.exact == again.exact
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    with pytest.raises(RecipeError, match="another recipe"):
        fit_sequence(loop_numbers.sequence_recipe(steps=9, save_every=3), run=tmp_path / "cut")


def test_a_sequence_run_does_not_resume_with_other_words(tmp_path, monkeypatch):
    recipe = loop_numbers.sequence_recipe(steps=2)
    fit_sequence(recipe, run=tmp_path / "run")
    plain = seq2seq.vocabularies
    monkeypatch.setattr(
        seq2seq, "vocabularies",
        lambda *given: tuple(replace(words, tokens=words.tokens[::-1]) for words in plain(*given)),
    )  # fmt: skip
    with pytest.raises(WeightsError, match="the texts have other words now"):
        fit_sequence(recipe, run=tmp_path / "run")


# ---------------------------------------------------------------------- EMA, precision, accumulation


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_average_of_the_weights(kind, tmp_path, monkeypatch):
    kinds = KINDS[kind](ema_decay=0.99)
    averages: list[list[torch.Tensor]] = [weights(kinds.learner.model)]
    plain = Learner.observe

    def follow(self: Learner, step: int, t: Any, per_sample: Any) -> None:
        decay = min(0.99, step / (9 + step))
        averages.append(
            [
                (a + (1 - decay) * (w - a)) if w.is_floating_point() else w
                for a, w in zip(averages[-1], weights(self.model), strict=True)
            ]
        )
        plain(self, step, t, per_sample)

    monkeypatch.setattr(Learner, "observe", follow)
    result = in_memory(kinds)
    buffers = {name for name, _ in kinds.learner.model.named_buffers()}
    for name, mine, theirs in zip(kinds.learner.model.state_dict(), result, averages[-1], strict=True):
        if name not in buffers:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not same(result, in_memory(KINDS[kind]()))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_another_training_near_the_first(kind, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)  # also on a CPU that is slow in it
    exact, rough = (KINDS[kind](precision=name) for name in ("float32", "bf16"))
    losses = []
    for each in (exact, rough):
        with loop_numbers.recorded() as seen:
            in_memory(each)
        losses.append(seen)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert all(weight.dtype == torch.float32 for weight in rough.learner.model.parameters())


@pytest.mark.parametrize("kind", ["convolutions", "noisy", "sequence"])
def test_how_a_batch_is_split_changes_only_rounding(kind, monkeypatch):
    """Without dropout, which is keyed by the part; and a normalisation over the batch sees the part alone."""
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x)

    def kinds(parts: int) -> Kind:
        if kind == "sequence":
            return sequence_kind(grad_accum_steps=parts, dropout=0.0)
        return classifier_kind(kind, grad_accum_steps=parts)

    losses: list[list[float]] = []
    for parts in (1, 2):
        with loop_numbers.recorded() as seen:
            in_memory(kinds(parts))
        losses.append([sum(seen[place : place + parts]) for place in range(0, len(seen), parts)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(RecipeError, match="cannot be split"):
        classifier_kind(grad_accum_steps=3)


# ---------------------------------------------------------------------- a Trainer of the caller


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
@pytest.mark.parametrize("kind", ALL)
def test_the_module_works_in_a_plain_trainer(kind, tmp_path):
    """With its own logger, checkpoints and resume; the weights are those of `learn`."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from unveil.train.data_module import TrainingData
    from unveil.train.lightning_module import TrainingModule

    def trained(steps: int, checkpoint: Path | None = None) -> TrainingModule:
        own = ALL[kind](ema_decay=0.9, grad_accum_steps=2)
        module = TrainingModule(own.learner, own.config)
        saver = ModelCheckpoint(tmp_path / kind, filename="{step}", save_top_k=-1, every_n_train_steps=5)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, accumulate_grad_batches=2, callbacks=[saver],
            precision=precision.resolve_precision(own.config.precision, torch.device("cpu")),
            logger=CSVLogger(tmp_path, name=f"log-{kind}-{steps}"), log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = TrainingData(own.learner.dataset(own.items, own.config), own.config)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        assert module.step == steps
        assert "loss" in trainer.logged_metrics
        return module

    own = ALL[kind](ema_decay=0.9, grad_accum_steps=2)
    steps = own.config.steps
    fit(own, tmp_path / "run")
    expected = weights(own.learner.model)
    whole = trained(steps)
    assert same(weights(whole.average.model), expected)
    assert not same(weights(whole.learner.model), expected)  # it keeps the trained weights apart from the average
    resumed = trained(steps, tmp_path / kind / "step=5.ckpt")
    assert same(weights(resumed.average.model), expected)
    assert same(weights(resumed.learner.model), weights(whole.learner.model))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_trainer_that_accumulates_other_parts_is_refused():
    from lightning.pytorch import Trainer

    from unveil.train.data_module import TrainingData
    from unveil.train.lightning_module import TrainingModule

    own = sequence_kind(grad_accum_steps=2)
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False)
    with pytest.raises(RecipeError, match="the Trainer has accumulate_grad_batches = 1; make them equal"):
        trainer.fit(TrainingModule(own.learner, own.config), datamodule=TrainingData(cast(Any, []), own.config))
