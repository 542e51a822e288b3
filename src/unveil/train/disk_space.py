"""Space on the disk that a run needs for its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unveil.io.console import size
from unveil.io.system_resources import free_disk
from unveil.train.lightning_module import TrainingModule
from unveil.train.metrics_logger import log

MARGIN = 1.5  # a warning is given below this multiple of the estimate


def checkpoint_size(module: TrainingModule) -> int:
    """Return the bytes of the tensors of a training checkpoint, once training has started.

    They are the saved weights, their average, two moments of each trained weight, and the auxiliary modules.
    """
    learner = module.learner
    contents = [*learner.files("").values(), *learner.ema_tensors(module.average.model).values()]
    contents += [module.auxiliary.state_dict(), learner.state()]
    saved = [value for content in contents if isinstance(content, Mapping) for value in content.values()]
    trained = [p for part in (module.model, module.auxiliary) for p in part.parameters() if p.requires_grad]
    return sum(value.nbytes for value in saved if isinstance(value, Tensor)) + 2 * sum(p.nbytes for p in trained)


def space_needed(bytes_each: int, *, existing: int, future: int, keep: int) -> int:
    """Return the bytes that the next checkpoints add at most.

    Args:
        bytes_each: Bytes of one checkpoint.
        existing: Number of checkpoints on the disk.
        future: Number of checkpoints that are still to be written.
        keep: Number of checkpoints that are kept; one more exists while the newest is published.
    """
    if not future:
        return 0
    return bytes_each * max(min(keep + 1, existing + future) - existing, 1)


def warn_if_low(folder: Path, needed: int) -> bool:
    """Warn if the disk of a folder has less free space than `MARGIN` times what is needed; return True then."""
    free = free_disk(folder)
    if free is None or free >= MARGIN * needed:
        return False
    log.warning(
        "%s: %s are free on its disk, the checkpoints need about %s; free some space, or choose a run folder on "
        "another disk. A save that fails is repeated at the next one", folder, size(free), size(needed),
    )  # fmt: skip
    return True
