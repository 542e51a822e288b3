"""Translation of texts by a sequence-to-sequence model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import CatalogName, LocalFile, Name, Texts, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Translate(Task):
    """Translate texts by a trained sequence-to-sequence model.

    Example: unveil translate runs/transformer-translate "a red circle above a blue ring" --save-attention maps
    """

    name: ClassVar[str] = "translate"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("model", "texts")
    makes: ClassVar[str] = "text"
    group: ClassVar[str] = "Translation"

    model: Annotated[
        Annotated[Name, CatalogName("sequence")],
        info("Run folder, or card of a sequence-to-sequence model.", metavar="MODEL"),
    ]
    texts: Annotated[
        Texts, info("Text to translate; several are allowed.", metavar="[TEXT]...", widget="text", max_length=100)
    ] = ()
    file: Annotated[LocalFile | None, info("File of more texts, one per line.", metavar="FILE")] = None
    num_beams: Annotated[
        int | None,
        info(
            "Number of beams; 1 is greedy decoding; that of the recipe when left out.", title="Number of beams", le=100
        ),
    ] = None
    length_penalty: Annotated[
        float | None,
        info("Length penalty of beam search; 0 favours short texts; that of the recipe when left out.", advanced=True),
    ] = None
    save_attention: Annotated[
        LocalFile | None, info("Output folder of the attention maps of every head.", metavar="FOLDER")
    ] = None

    def run(self, context: TaskContext) -> TaskResult:
        """Translate the texts."""
        from unveil.tasks.translate_run import translate_texts

        return translate_texts(self, context)
