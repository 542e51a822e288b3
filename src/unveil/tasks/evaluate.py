"""Evaluation of a model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from unveil.tasks.fields import Fields, LocalFile, ModelName, Name, RecipeChanges, RecipeName, info
from unveil.tasks.task import Task, TaskContext, TaskResult

FeatureWeights = Annotated[
    LocalFile | None,
    info("Weights of the feature network: published Inception, or a classifier.", metavar="PATH", advanced=True),
]


class EvaluationFields(Fields):
    """The model that is evaluated, and the recipe that names the data that it is compared with."""

    group: ClassVar[str] = "Evaluation"

    model: Annotated[ModelName, info("Bundled model, or a folder: a saved model or a run.", metavar="MODEL")]
    recipe: Annotated[RecipeName | None, info("Recipe of the evaluation; the run's own when left out.")] = None
    settings: Annotated[
        RecipeChanges,
        info(
            "Change of the recipe, such as evaluate.samples=100; may repeat.",
            title="Changes of the recipe",
            flags=["--set"],
        ),
    ] = Field(default_factory=dict)

    def evaluation_values(self) -> dict[str, Any]:
        """Return the values of fields that replace those of the recipe's section `evaluate`, by field."""
        return {}


class Evaluate(EvaluationFields, Task):
    """Evaluate a model: metrics with their protocol, images and plots, as report.json and report.html.

    Example: unveil evaluate runs/ddpm-digits --set sample.steps=50

    Example: unveil evaluate runs/playground-video --prompt-set validation -n 48 --dtype bfloat16
    """

    name: ClassVar[str] = "evaluate"
    section: ClassVar[str] = "Evaluate"
    arguments: ClassVar[tuple[str, ...]] = ("model",)
    out: ClassVar[str] = "report"
    out_optional: ClassVar[bool] = True
    out_help: ClassVar[str] = "Output folder of the report; the run's folder when left out."
    makes: ClassVar[str] = "report"
    separate_process: ClassVar[bool] = True

    feature_weights: FeatureWeights = None
    num_samples: Annotated[
        int | None,
        info(
            "Number of samples, or of those per prompt set; the recipe's when left out.",
            title="Samples",
            flags=["--num-samples", "-n"],
            ge=1,
            le=100_000,
        ),
    ] = None
    prompt_set: Annotated[
        tuple[Name, ...],
        info("Prompt set of the playground: validation, seen or held-out; repeat for several.", advanced=True),
    ] = ()
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        info("Number format: float32, bfloat16 or float16.", title="Number format", metavar="DTYPE", advanced=True),
    ] = None

    def evaluation_values(self) -> dict[str, Any]:
        """Return the number of samples, the prompt sets and the number format, if they are given."""
        values = {"num_samples": self.num_samples, "prompt_set": list(self.prompt_set) or None, "dtype": self.dtype}
        return {name: value for name, value in values.items() if value is not None}

    def run(self, context: TaskContext) -> TaskResult:
        """Measure, and write the report."""
        from unveil.tasks.evaluate_run import evaluate_model

        return evaluate_model(self, context)
