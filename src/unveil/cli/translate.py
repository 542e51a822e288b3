"""`unveil translate`: texts through a sequence model, and what its heads look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as save_bytes

from unveil.errors import DataError, RecipeError
from unveil.generation.model_loading import resolve_device as pick
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.model.seq2seq import TranslationAttention, attention_maps, translate, unknown_tokens
from unveil.model.seq2seq_folder import SequenceModel, load_sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Fonts that draw Chinese, where one of them is installed
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")
_PARTS = {"encoder": "source on source", "decoder": "target on target", "crossed": "target on source"}


@dataclass(frozen=True)
class TranslateRequest:
    """What is asked, as typed."""

    model: str
    texts: tuple[str, ...] = ()
    file: Path | None = None
    beams: int | None = None
    length_power: float | None = None
    attention: Path | None = None
    device: str = "auto"
    force: bool = False


def run(ask: TranslateRequest, console: Console) -> None:
    """Prints what the model writes for each text, a line each; draws its heads where that is asked."""
    texts = _texts(ask)
    if ask.attention is not None:
        refuse_overwrite(ask.attention / "attention.json", ask.force)
    model = load_sequence(ask.model, pick(ask.device))
    for text in texts:
        if missing := unknown_tokens(model, text):
            console.warn(f"{text!r}: the model has no token for {', '.join(map(repr, missing))}")
    own = model.facts.get("decode", {})
    beams = int(own.get("num_beams", 1)) if ask.beams is None else ask.beams
    power = float(own.get("length_penalty", 0.6)) if ask.length_power is None else ask.length_power
    written = translate(model, texts, beams=beams, length_power=power)
    for text, one in zip(texts, written, strict=True):
        if not one.ended:
            console.warn(f"{text!r}: cut off at the model's limit of {model.network.config.max_length} tokens")
    if ask.attention is not None:
        _write_looks(model, [(text, one.text) for text, one in zip(texts, written, strict=True)], ask.attention)
    found = [
        {"source": text, "text": one.text, "log_probability": round(one.log_probability, 4), "ended": one.ended}
        for text, one in zip(texts, written, strict=True)
    ]
    facts: dict[str, Any] = {"model": ask.model, "beams": beams, "texts": found}
    if ask.attention is not None:
        facts["attention"] = str(ask.attention)
    console.result(facts, "\n".join(one.text for one in written))


def _texts(ask: TranslateRequest) -> list[str]:
    texts = list(ask.texts)
    if ask.file is not None:
        try:
            lines = ask.file.read_text("utf-8-sig").splitlines()
        except OSError as problem:
            raise DataError(f"{ask.file}: cannot be read ({problem.strerror})") from problem
        except UnicodeDecodeError as problem:
            raise DataError(f"{ask.file}: not UTF-8 text at byte {problem.start}; save it as UTF-8") from problem
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise RecipeError('nothing to translate: give a text, such as "a small red circle", or --file')
    return texts


def _write_looks(model: SequenceModel, pairs: Sequence[tuple[str, str]], folder: Path) -> None:
    """A folder per text with a picture per block and kind of attention; weights and tokens of all beside them."""
    weights: dict[str, Any] = {}
    words: list[dict[str, Any]] = []
    for number, (source, target) in enumerate(pairs):
        found = attention_maps(model, source, target)
        words.append({"source": found.source, "target": found.target})
        for name, one in found.weights.items():
            weights[f"{number}.{name}"] = one.contiguous()
            write_atomically(folder / str(number) / f"{name.replace('.', '_')}.png", _heads(found, name))
    write_atomically(folder / "attention.safetensors", save_bytes(weights))
    write_atomically(folder / "attention.json", json.dumps(words, ensure_ascii=False, indent=1))


def _heads(found: TranslationAttention, name: str) -> bytes:
    """The weights of a block's heads side by side, each row a token that looks, as PNG."""
    import io

    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    part, block = name.split(".")
    rows = found.source if part == "encoder" else found.target
    columns = found.target if part == "decoder" else found.source
    heads = found.weights[name]
    known = {font.name for font in font_manager.fontManager.ttflist}
    chinese = [font for font in _CHINESE if font in known]
    with matplotlib.rc_context({"font.family": [*chinese[:1], "DejaVu Sans"], "font.size": 7}):
        wide, high = max(1.5, 0.16 * len(columns)), max(1.5, 0.16 * len(rows))
        figure = Figure(figsize=(len(heads) * (wide + 0.5) + 0.6, high + 1.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        panels: Any = figure.subplots(1, len(heads), squeeze=False)[0]
        for head, (axes, weights) in enumerate(zip(panels, heads, strict=True)):
            axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"head {head}")
            _label(axes, rows if head == 0 else [], columns, drawn=bool(chinese))
        figure.suptitle(f"block {block}, {_PARTS[part]}")
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _label(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, drawn: bool) -> None:
    """Tokens along both sides; by their place where no font draws them, `attention.json` then has the words."""
    shown = lambda words: [word if drawn or word.isascii() else str(i) for i, word in enumerate(words)]  # noqa: E731
    axes.set_xticks(range(len(columns)), shown(columns), rotation=90)
    axes.set_yticks(range(len(rows)), shown(rows))
