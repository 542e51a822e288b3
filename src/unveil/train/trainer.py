"""Training from the first step, or from the step at which a run stopped, to the last.

`learn` trains any learner in a run folder, and `learn_in_memory` without one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import numpy as np
import torch

from unveil.core.denoiser import Denoiser
from unveil.core.prediction import fixed_small
from unveil.data.training_items import training_items
from unveil.errors import Cancelled, Error, OutOfResources, OutputError, RecipeError, did_you_mean, out_of_memory
from unveil.io.files import write_atomically
from unveil.io.provenance import cpu_seconds
from unveil.model import Model, checkpoint_store
from unveil.model.config import Recipe, TrainConfig
from unveil.train.batch_preparation import shape_of
from unveil.train.data_order import BatchPlan, EpochShuffle, FixedBatch, IndexableItems, TokenBudget, check_items
from unveil.train.diffusion import DiffusionLearner
from unveil.train.learner import Learner
from unveil.train.metrics_logger import duration, guarded, log
from unveil.train.observers import Observers, checked_observers
from unveil.train.precision import resolve_precision
from unveil.train.run_folder import RunFolder, environment
from unveil.train.signals import INTERRUPTED, Stop
from unveil.train.variable_size import check_sizes, token_counts
from unveil.train.vocabulary import build_vocabulary

if TYPE_CHECKING:  # importing Lightning takes seconds; only a run that trains pays for it
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from unveil.train.callbacks import TrainingCallback
    from unveil.train.data_module import TrainingData
    from unveil.train.lightning_module import Objective, StepOutput, TrainingModule


class FitOptions(TypedDict, total=False):
    """Further keywords of `fit`; each is optional.

    Attributes:
        callbacks: Lightning callbacks, or one. They run beside those of the run; `global_step` of their Trainer counts
            the steps of the whole run. A callback that sets its `should_stop` ends the run after saving. Checkpoints
            contain what `state_dict()` returns. Other hooks of Lightning's checkpoints are not called.
        loggers: Lightning loggers, or one, such as those of W&B, MLflow, TensorBoard and CSV files. They get the
            settings, the numbers of `metrics.jsonl` and, where they take images, the sample sheets. An exception of a
            logger is reported once and does not stop the run.
        value_range: Lowest and highest value of floating-point data, such as (0, 255), which are scaled to [-1, 1];
            None: they are used as they are.
    """

    callbacks: Iterable[Callback] | Callback | None
    loggers: Iterable[Logger] | Logger | None
    value_range: tuple[float, float] | None


def fit(
    model: Model | Denoiser,
    dataset: IndexableItems | Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    objective: Objective,
    config: TrainConfig,
    run: Path | str,
    held_out: IndexableItems | Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    key: str | None = None,
    recipe: Recipe | None = None,
    **options: Unpack[FitOptions],
) -> Path:
    """Train a model in a run folder, or resume the run in it; return the folder.

    Training takes place on the device of the model, in one process, or in the processes that `torchrun` started. At the
    end the model has the EMA weights. The same seed gives the same weights bit for bit, however often a run was
    interrupted and whatever the number of data workers.

    Args:
        model: Model, or only a denoiser with any network.
        dataset: Items by index, an iterable, or a function that returns one. Iterables are read once into memory, and
            must yield the same items when a run resumes. An item is a dict with the training data under `key`, a tuple
            (data, value of each condition of the model), or only the data. Data are tensors (C, H, W), arrays
            (H, W, C) or PIL images. uint8 data are pixels and are scaled to [-1, 1]. Floating-point data of any shape
            are unchanged, or scaled from `value_range`; images of floats without values below 0 need `value_range`.
        objective: Loss that is minimised, such as `core.objective.DiffusionLoss`.
        config: Settings of training.
        run: Run folder, which is new or contains a run of the same recipe.
        held_out: Items for the held-out loss, which are not trained on.
        key: Key of the item's training data; None: the model's, or "pixels" if it has none.
        recipe: Recipe that the folder records; None: the settings of this call are recorded.
        options: Further keywords, those of `FitOptions`: callbacks, loggers, value_range.

    Raises:
        RecipeError: A setting or the data set is invalid, or the folder contains a run of another recipe.
        ShapeError: The model does not take the data, or their range is not clear.
        OutputError: The folder cannot be written.
        NonFinite: Too many steps in a row were not finite.
        OutOfResources: Memory ran out, the disk stayed full, or `compile` is set and there is not a compiler.
        Cancelled: Ctrl-C or SIGTERM stopped the run after saving; `exit_code` is 130 or 143.
    """
    key = key or _key_of(model)
    read = partial(_items, model, key=key, options=options, recipe=recipe)
    dataset, held_out = read(dataset), None if held_out is None else read(held_out)
    whole = _whole(model, dataset, objective, key)
    learner = DiffusionLearner(whole, objective, key, config.batching)
    check_items(dataset, key, learner.raw_keys, None if config.batching else shape_of(dataset, whole))
    if config.batching is not None:
        check_sizes(whole, dataset)
    build_vocabulary(whole, dataset)
    recorded = _recorded(whole, objective, config, recipe, len(dataset))
    if (value_range := options.get("value_range")) is not None:
        recorded["value_range"] = list(value_range)
    return learn(
        learner, dataset, config=config, run=run, held_out=held_out, recorded=recorded,
        observers=checked_observers(options.get("callbacks"), options.get("loggers"), recorded),
        lengths=None if config.tokens is None else token_counts(whole, dataset),
    )  # fmt: skip


def learn(
    learner: Learner,
    dataset: IndexableItems,
    *,
    config: TrainConfig,
    run: Path | str,
    held_out: IndexableItems | None,
    recorded: Mapping[str, Any],
    lengths: torch.Tensor | None = None,
    observers: Observers = Observers(),  # noqa: B008 - a constant
) -> Path:
    """Train the model of a learner, as `fit` does; at the end it has the EMA weights.

    Args:
        recorded: Settings that the folder records, as plain values; a run in the same folder must have the same.
        lengths: Number of tokens of each item, for steps of a number of tokens.
        observers: Callbacks and loggers of the caller.

    Raises:
        RecipeError, OutputError, NonFinite, OutOfResources, Cancelled: Training fails or stops, as in `fit`.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    steps = _steps(config, lengths, len(dataset), world)
    precision = resolve_precision(config.precision, learner.device)
    if config.compile:
        learner.compile()
    folder = RunFolder(Path(run), recorded, writes=rank == 0)
    try:
        newest = _Job(learner, dataset, config, held_out, folder, precision, rank, world, steps, observers).finish()
        learner.load(learner.model, newest, "ema")
        learner.model.eval()
    finally:
        folder.close()
    return folder.path


def learn_in_memory(
    learner: Learner,
    dataset: IndexableItems,
    *,
    config: TrainConfig,
    on_step: Callable[[StepOutput], object] | None = None,
) -> None:
    """Train the model of a learner in this process without writing anything; at the end it has the EMA weights.

    Args:
        on_step: Function called after each step; it may raise `errors.Cancelled` to stop.

    Raises:
        RecipeError: A setting is invalid.
        NonFinite: More than `config.nonfinite_limit` steps in a row are not finite.
        OutOfResources: Memory ran out.
        Cancelled: Ctrl-C or SIGTERM stopped the training; `exit_code` is 130 or 143.
    """
    precision = resolve_precision(config.precision, learner.device)
    steps = _steps(config, None, len(dataset), 1)
    with Stop(answer="leaving") as stop, _quiet_lightning(), _own_generators(learner.device):
        from unveil.train.callbacks import StepCallback
        from unveil.train.data_module import TrainingData
        from unveil.train.lightning_module import TrainingModule

        module = TrainingModule(learner, config, stop_signals=stop, steps=steps)
        trainer = _trainer(config, precision, learner, [StepCallback(config, stop, on_step)])
        _run(trainer, module, TrainingData(learner.dataset(dataset, config), config, 0, steps))
    learner.model.load_state_dict(module.average.model.state_dict())
    learner.model.eval()


@dataclass(frozen=True)
class _Job:
    """Checked arguments of one call of `learn`, with its device and processes."""

    learner: Learner
    dataset: IndexableItems
    config: TrainConfig
    held_out: IndexableItems | None
    folder: RunFolder
    precision: str
    rank: int
    world: int
    steps: BatchPlan
    observers: Observers

    def finish(self) -> Path:
        """Train to the last step, in smaller parts of a step each time that memory runs out; return the checkpoint.

        Raises:
            MemoryExhausted: Memory runs out with the smallest parts, or in one of several processes.
        """
        from unveil.train.state import parts_of

        job, device, last = self, self.learner.device, self.config.steps
        while (newest := self.folder.newest()) is None or checkpoint_store.read_manifest(newest).step < last:
            if newest is not None and self.world == 1:
                job = job.in_parts(max(job.config.grad_accum_steps, parts_of(newest))) or job
            try:
                return job.train(newest)
            except MemoryExhausted as problem:
                smaller = job.in_parts(2 * job.config.grad_accum_steps)
                if smaller is None or not problem.can_continue:
                    raise
                job = smaller
                log.warning(
                    "%s: out of memory at step %d; goes on with train.grad_accum_steps = %d, the same batch in smaller "
                    "parts", self.folder.path, problem.step, job.config.grad_accum_steps,
                )  # fmt: skip
            # Behind the except, whose traceback would keep what was computed.
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            self.learner.model.to(device)  # Lightning has moved it to the CPU
            self.learner.auxiliary.to(device)
        return newest

    def in_parts(self, at_least: int) -> _Job | None:
        """Return the job with this number of parts of a step, or the next that is possible; None: there is none."""
        if isinstance(self.steps, TokenBudget):
            try:
                self.steps.split(at_least)
            except RecipeError:
                return None
            parts: int | None = at_least
        else:
            batch = self.config.batch_size
            parts = next((parts for parts in range(at_least, batch + 1) if batch % parts == 0), None)
        if parts is None:
            return None
        return replace(self, config=self.config.model_copy(update={"grad_accum_steps": parts}))

    def train(self, newest: Path | None) -> Path:
        """Train from a checkpoint, or from the start, to the last step; return the last checkpoint."""
        config, learner = self.config, self.learner
        with Stop(config.max_minutes) as stop, _quiet_lightning(), _own_generators(learner.device):
            from unveil.train.callbacks import TrainingCallback, TrainingStart
            from unveil.train.data_module import TrainingData
            from unveil.train.lightning_module import TrainingModule
            from unveil.train.state import TrainingState

            module = TrainingModule(learner, config, stop_signals=stop, steps=self.steps)
            module.observed = bool(self.observers)
            watch = TrainingCallback(self.folder, config, stop, self.dataset, self.observers)
            if newest is not None:
                watch.saved = TrainingState(newest)
                watch.saved.into_weights(module)
                _check_items_left(watch.saved.values["items"], len(self.dataset))
            begun = cpu_seconds()
            if self.rank == 0:
                guarded("environment.json", lambda: self.folder.record_start(environment(self._facts()), module.step))
                self._show_on(watch, stop)
            examples = learner.dataset(self.dataset, config)
            callbacks = [TrainingStart(watch), *self.observers.callbacks, watch]
            trainer = _trainer(
                config, self.precision, learner, callbacks, folder=self.folder.path, loggers=self.observers.loggers
            )
            _count_from(trainer, module.step)
            try:
                with _explained_by_peers(watch):
                    _run(trainer, module, TrainingData(examples, config, module.step, self.steps))
            except MemoryExhausted as problem:
                problem.can_continue = self.world == 1 and watch.keep_state(module)
                raise
            finally:
                watch.close()
                if self.rank == 0:
                    with contextlib.suppress(OutputError, OutOfResources):  # the run's own error says it better
                        self.folder.record_end(module.step, cpu_seconds() - begun)
        return self._end(watch, module.step)

    def _facts(self) -> dict[str, Any]:
        return {
            "device": str(self.learner.device),
            "precision": self.precision,
            "processes": self.world,
            "items": len(self.dataset),
            "grad_accum_steps": self.config.grad_accum_steps,
        }

    def _show_on(self, watch: TrainingCallback, stop: Stop) -> None:
        """Choose what the run shows during training: held-out items, and sample sheets of images."""
        config, held_out = self.config, self.held_out
        if held_out is not None and len(held_out):
            at_once = config.batch_size // (self.world * config.grad_accum_steps)
            watch.held_out = self.learner.validator(
                held_out, at_once, min(len(held_out), config.batch_size), config.seed
            )
        items = held_out if held_out is not None and len(held_out) else self.dataset
        if (drawn := self.learner.sample_sheets(items, config.seed, stop)) is not None:
            watch.samples, watch.columns = drawn

    def _end(self, watch: TrainingCallback, step: int) -> Path:
        """Return the last checkpoint, after writing the card; raise Cancelled if a signal ended the run."""
        path, config = self.folder.path, self.config
        if watch.ended:
            name = "Ctrl-C" if watch.ended == INTERRUPTED else "SIGTERM"
            stopped = Cancelled(
                f"{path}: stopped by {name} at step {step} of {config.steps} and saved; start it again to go on"
            )
            stopped.exit_code = watch.ended
            raise stopped
        if watch.stopped:
            log.warning("%s: stopped by a callback at step %d of %d; start it again to go on", path, step, config.steps)
        if watch.ended == 0:
            minutes = duration(60 * (config.max_minutes or 0))
            log.warning("%s: %s are over at step %d of %d; start it again to go on", path, minutes, step, config.steps)
        if self.rank == 0:
            shown = sorted(self.folder.samples.glob("step_*.png"))
            image = f"\n\n![samples](samples/{shown[-1].name})" if shown else ""
            about = f"## Training\n\n{step} of {config.steps} steps of {config.amount}, seed {config.seed}.{image}"
            guarded("card.md", lambda: write_atomically(path / "card.md", self.learner.card(about)))
        return self.folder.checkpoints / checkpoint_store.step_name(step)


@contextlib.contextmanager
def _explained_by_peers(watch: TrainingCallback) -> Iterator[None]:
    """Context that ends the watch of the other processes.

    Raises:
        OutOfResources: The exchange with the other processes failed because one of them has ended.
    """
    try:
        yield
    except BaseException as problem:
        if watch.peers is not None:
            ours = isinstance(problem, Error) or not isinstance(problem, Exception)
            failure = None if ours else watch.peers.failure()
            watch.peers.close(problem)
            if failure is not None:
                raise failure from problem
        raise
    if watch.peers is not None:
        watch.peers.close()


class MemoryExhausted(OutOfResources):
    """Memory ran out in a training.

    Attributes:
        step: Number of complete steps.
        can_continue: True if the weights of the last complete step, or those of an earlier checkpoint, are there.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step, self.can_continue = step, False


def _run(trainer: Trainer, module: TrainingModule, data: TrainingData) -> None:
    try:
        trainer.fit(module, datamodule=data)
    except (RuntimeError, MemoryError) as problem:
        if isinstance(problem, Error) or not out_of_memory(problem):
            raise
        config = module.config
        more = f"set train.grad_accum_steps to {2 * config.grad_accum_steps}: the same batch in smaller parts; or "
        more = "" if config.tokens is None and config.grad_accum_steps == config.batch_size else more
        raise MemoryExhausted(
            f"out of memory ({problem}); {more}use train.precision bf16, or a smaller model", module.step
        ) from problem
    except SystemExit:  # Lightning's own answer to a SIGTERM that came before our handler was back in place
        if all(getattr(callback, "ended", None) is None for callback in cast(Any, trainer).callbacks):
            raise


# ---------------------------------------------------------------------- what Lightning is given


def _trainer(
    config: TrainConfig,
    precision: str,
    learner: Learner,
    callbacks: list[Callback],
    *,
    folder: Path | None = None,
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Create a Trainer without own logging and checkpoints; without a folder, it runs only in this process."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    device = learner.device
    # A discriminator has no gradients until it starts, which the exchange of gradients has to know. Without it,
    # torch also packs the gradients in another order after the first step of a start, and more than two processes
    # then add them in another order: a resumed run would not be equal to the bit, which is promised on a CPU.
    unused = device.type == "cpu" or any(True for _ in learner.auxiliary.parameters())
    ddp = "ddp_find_unused_parameters_true" if unused else "ddp"
    world, local = (
        (1, 1) if folder is None else (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    )
    return Trainer(
        accelerator=device.type,
        devices=local if world > 1 else [device.index or 0] if device.type == "cuda" else 1,
        num_nodes=max(world // local, 1),
        strategy=ddp if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]  # one of Lightning's names
        max_steps=config.steps,
        max_epochs=1,
        accumulate_grad_batches=config.grad_accum_steps,
        callbacks=callbacks,
        default_root_dir=None if folder is None else folder / "lightning",  # of the caller's callbacks
        # what Lightning would do by itself and we do: logging, checkpoints, the bar, the order of the data
        logger=list(loggers) or False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def _count_from(trainer: Trainer, step: int) -> None:
    """Let the Trainer count the steps before this start of a run, so that callbacks see those of the whole run."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    loop._batches_that_stepped = step


@contextlib.contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Context that restores the global random generators at its end."""
    python, numpy = random.getstate(), np.random.get_state()
    index = torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index
    with torch.random.fork_rng(devices=[index] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Context without Lightning's hints about settings that are chosen on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\.")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
        import lightning.pytorch  # noqa: F401 - sets its loggers' levels when it is imported

        loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        before = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


# ---------------------------------------------------------------------- what is recorded and shown


def _steps(config: TrainConfig, lengths: torch.Tensor | None, items: int, world: int) -> BatchPlan:
    """Return the plan of the examples of each step; every part has at least one."""
    parts = world * config.grad_accum_steps
    if config.tokens is not None and lengths is not None:
        budget = TokenBudget(EpochShuffle(items, config.seed), lengths, config.tokens)
        budget.split(parts)
        return budget
    if config.batch_size % parts:
        near = max(round(config.batch_size / parts), 1) * parts
        raise RecipeError(
            f"train.batch_size = {config.batch_size}: must be a multiple of {world} processes x "
            f"grad_accum_steps {config.grad_accum_steps}; nearest: {near}"
        )
    return FixedBatch(config.batch_size)


def _key_of(model: Model | Denoiser) -> str:
    config = model.config if isinstance(model, Model) else None
    return config.key if config is not None else "pixels"


def _items(
    model: Model | Denoiser, dataset: Any, *, key: str, options: FitOptions, recipe: Recipe | None
) -> IndexableItems:
    """Return a data set of dicts with tensors, whatever the data set yields."""
    if unknown := [name for name in options if name not in FitOptions.__annotations__]:
        raise RecipeError(
            f"fit: {unknown[0]}: no such keyword{did_you_mean(unknown[0], list(FitOptions.__annotations__))}"
        )
    whole = model if isinstance(model, Model) else None
    return cast(
        IndexableItems,
        training_items(
            dataset,
            key,
            shape=None if whole is None else whole.shape,
            conditions=() if whole is None else [str(part) for part in whole.conditioners],
            value_range=options.get("value_range"),
            asks_range=recipe is None,  # the data of recipes have a stated range
        ),
    )


def _whole(model: Model | Denoiser, dataset: IndexableItems, objective: Objective, key: str) -> Model:
    if isinstance(model, Model):
        return model
    check_items(dataset, key, [], None)
    shape = torch.as_tensor(dataset[0][key]).shape
    return Model(model, shape, variance=getattr(objective, "variance", fixed_small))


def _recorded(
    model: Model, objective: Objective, config: TrainConfig, recipe: Recipe | None, items: int
) -> dict[str, Any]:
    """Return the recipe as plain values; without one, all settings that define the run."""
    train = config.model_dump(mode="json")
    if recipe is not None:
        return {**recipe.model_dump(mode="json"), "train": train}
    described = {
        "network": type(model.denoiser.network).__qualname__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": list(model.shape),
        "process": repr(model.process),
        "conditions": list(model.conditioners),
    }
    about = re.sub(
        r"<function (?:\w+\.<locals>\.)?([\w.<>]+) at 0x[0-9a-f]+>|<([\w.]+) object at 0x[0-9a-f]+>",
        r"\1\2",
        repr(objective),
    )
    return {"items": items, "model": described, "objective": about, "train": train}


def _check_items_left(before: int, now: int) -> None:
    if before != now:
        log.warning(
            "the data set had %d items and has %d now: the order of the examples changes from here on", before, now
        )
