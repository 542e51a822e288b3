"""The models that a worker keeps in memory, the ones that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from unveil.cli import controlnet, lora
from unveil.cli.console import Console
from unveil.cli.generation_options import GenerationOptions, opened
from unveil.model import Model
from unveil.tasks.generate import Source

MOST = 2  # models at a time, unless they are smaller than `BYTES` all together
BYTES = 2 << 30


class Opened(NamedTuple):
    """A model, and which one it is."""

    model: Model
    source: Source


class Models:
    """Keeps what was opened; what was not used for longest goes first.

    Args:
        most: models that stay whatever their size. bytes: up to which more of them stay.
    """

    def __init__(self, most: int = MOST, bytes: int = BYTES) -> None:
        self._most, self._bytes = most, bytes
        self._kept: OrderedDict[Hashable, Opened] = OrderedDict()

    def get(self, key: Hashable, open: Callable[[], tuple[Model, Source]]) -> Opened:
        """The model of a key, opened if it is not there.

        Args:
            key: all that the opened model depends on.
            open: opens it; what it raises is raised here, and nothing is kept.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while self._kept and len(self._kept) >= self._most and self._size() >= self._bytes:
            self._kept.popitem(last=False)  # before the new one is read: two large ones may not fit
        found = Opened(*open())
        self._kept[key] = found
        while len(self._kept) > self._most and self._size() > self._bytes:
            self._kept.popitem(last=False)
        return found

    def opener(
        self,
        wish: GenerationOptions,
        name: str,
        console: Console,
        *,
        shown: Sequence[str] = (),
        makes: Literal["pictures", "clips"] = "pictures",
    ) -> Opened:
        """The model of a wish, as `app.wish.opened` opens it; opened again where its files are others by now."""
        added = (wish.loras, wish.controls, wish.control_mode)
        nets = [controlnet.parse_controlnet(one).network for one in wish.controls]
        places = [
            Path(name),
            *(lora.parse_lora(one).path for one in wish.loras),
            *(net for net in nets if net is not None),
        ]
        key = (name, *added, wish.dtype, wish.device, tuple(shown), makes, tuple(_stamp(one) for one in places))
        return self.get(key, lambda: opened(wish, name, console, shown=shown, makes=makes))

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def _size(self) -> int:
        return sum(tensor.nbytes for one in self._kept.values() for tensor in one.model.state_dict().values())


def _stamp(path: Path) -> tuple[object, ...]:
    """What changes with the files of a model: when each was written, or when its run wrote a checkpoint."""
    places = (path, path / "manifest.json", path / "checkpoints")
    if not places[-1].exists():  # a folder's own time does not change with a file that is written over
        places = (path, *sorted(path.glob("*")), *sorted(path.glob("*/*")))
    return tuple((one.stat().st_mtime_ns, one.stat().st_size) for one in places if one.exists())
