"""The work of `tasks.translate`: translations of a sequence-to-sequence model, and the attention maps of its heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unveil.errors import DataError, RecipeError
from unveil.generation.model_loading import resolve_device
from unveil.io.files import refuse_overwrite, tensor_bytes, write_atomically
from unveil.model.seq2seq import TranslationAttention, attention_maps, translate, unknown_tokens
from unveil.model.seq2seq_folder import SequenceModel, load_sequence
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unveil.tasks.translate import Translate

# Fonts that draw Chinese, where one of them is installed
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")
_PARTS = {"encoder": "source on source", "decoder": "target on target", "crossed": "target on source"}


def translate_texts(task: Translate, context: TaskContext) -> TaskResult:
    """Translate each text, and draw the attention maps if a folder for them is named.

    Raises:
        RecipeError: No text, or one that is too long.
        DataError: The file of texts cannot be read.
    """
    texts = _texts(task)
    maps = None if task.save_attention is None else Path(task.save_attention)
    if maps is not None:
        refuse_overwrite(maps / "attention.json", context.output.force)
    model = load_sequence(context.resolver.path(task.model, CatalogName("sequence")), resolve_device(context.device))
    for text in texts:
        if missing := unknown_tokens(model, text):
            context.console.warn(f"{text!r}: the model has no token for {', '.join(map(repr, missing))}")
    defaults = model.facts.get("decode", {})
    beams = int(defaults.get("num_beams", 1)) if task.num_beams is None else task.num_beams
    power = float(defaults.get("length_penalty", 0.6)) if task.length_penalty is None else task.length_penalty
    translations = translate(model, texts, beams=beams, length_power=power)
    pairs = list(zip(texts, translations, strict=True))
    for text, translation in pairs:
        if not translation.ended:
            limit = model.network.config.max_length
            context.console.warn(f"{text!r}: cut off at the model's limit of {limit} tokens")
    listed = [
        {
            "source": text,
            "text": translation.text,
            "log_probability": round(translation.log_probability, 4),
            "ended": translation.ended,
        }
        for text, translation in pairs
    ]
    facts: dict[str, Any] = {"model": task.model, "beams": beams, "texts": listed}
    if maps is not None:
        _write_attention(model, [(text, translation.text) for text, translation in pairs], maps)
        facts["attention"] = str(maps)
    return TaskResult(facts, "\n".join(translation.text for translation in translations))


def _texts(task: Translate) -> list[str]:
    texts = list(task.texts)
    if task.file is not None:
        try:
            lines = Path(task.file).read_text("utf-8-sig").splitlines()
        except OSError as problem:
            raise DataError(f"{task.file}: cannot be read ({problem.strerror})") from problem
        except UnicodeDecodeError as problem:
            raise DataError(f"{task.file}: not UTF-8 text at byte {problem.start}; save it as UTF-8") from problem
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise RecipeError('nothing to translate: give a text, such as "a small red circle", or --file')
    return texts


def _write_attention(model: SequenceModel, pairs: Sequence[tuple[str, str]], folder: Path) -> None:
    """Write a folder per text with an image per block and kind of attention; weights and tokens of all beside them."""
    weights: dict[str, Any] = {}
    tokens: list[dict[str, Any]] = []
    for number, (source, target) in enumerate(pairs):
        maps = attention_maps(model, source, target)
        tokens.append({"source": maps.source, "target": maps.target})
        for name, block in maps.weights.items():
            weights[f"{number}.{name}"] = block
            write_atomically(folder / str(number) / f"{name.replace('.', '_')}.png", _plot_heads(maps, name))
    write_atomically(folder / "attention.safetensors", tensor_bytes(weights))
    write_atomically(folder / "attention.json", json.dumps(tokens, ensure_ascii=False, indent=1))


def _plot_heads(maps: TranslationAttention, name: str) -> bytes:
    """Plot the weights of a block's heads side by side as PNG; each row is a token that attends."""
    import io

    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    part, block = name.split(".")
    rows = maps.source if part == "encoder" else maps.target
    columns = maps.target if part == "decoder" else maps.source
    heads = maps.weights[name]
    installed = {font.name for font in font_manager.fontManager.ttflist}
    chinese = [font for font in _CHINESE if font in installed]
    with matplotlib.rc_context({"font.family": [*chinese[:1], "DejaVu Sans"], "font.size": 7}):
        width, height = max(1.5, 0.16 * len(columns)), max(1.5, 0.16 * len(rows))
        figure = Figure(figsize=(len(heads) * (width + 0.5) + 0.6, height + 1.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        panels: Any = figure.subplots(1, len(heads), squeeze=False)[0]
        for head, (axes, weights) in enumerate(zip(panels, heads, strict=True)):
            axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"head {head}")
            _label(axes, rows if head == 0 else [], columns, has_font=bool(chinese))
        figure.suptitle(f"block {block}, {_PARTS[part]}")
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _label(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, has_font: bool) -> None:
    """Label both axes with tokens, or with their positions where no font has them; `attention.json` lists them."""
    shown = lambda words: [word if has_font or word.isascii() else str(i) for i, word in enumerate(words)]  # noqa: E731
    axes.set_xticks(range(len(columns)), shown(columns), rotation=90)
    axes.set_yticks(range(len(rows)), shown(rows))
