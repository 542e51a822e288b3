"""Merging of models."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from unveil.tasks.fields import CatalogName, ModelName, Name, NumberList, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Merge(Task):
    """Merge models of one architecture by a weighted average of their weights.

    Example: unveil merge runs/mine playground-video --merge-weights 0.7,0.3 -o mixed
    """

    name: ClassVar[str] = "merge"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("models",)
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Model"

    models: Annotated[
        tuple[ModelName, ...],
        info("Two or more models; the first gives the settings.", metavar="MODEL...", min_length=1, max_length=16),
    ]
    output: Annotated[
        Annotated[Name, CatalogName("new_model")],
        info("Output folder of the merged model; on a server the name of the new model.", flags=["--out", "-o"]),
    ]
    merge_weights: Annotated[
        tuple[float, ...],
        NumberList(),
        info("Weights of the average, such as 0.7,0.3; equal when left out.", metavar="NUMBER,..."),
    ] = ()
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        info("Number format: float32, bfloat16 or float16.", title="Number format", metavar="DTYPE"),
    ] = "float32"

    def run(self, context: TaskContext) -> TaskResult:
        """Average the weights, and save the model."""
        from unveil.tasks.merge_run import merge_models

        return merge_models(self, context)
