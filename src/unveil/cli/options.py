"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.io.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda or mps.", metavar="DEVICE")]
Dtype = Annotated[
    str, typer.Option(help="Number format of the network: float32, bfloat16 or float16.", metavar="DTYPE")
]
FromMetadata = Annotated[
    Path | None,
    typer.Option(
        "--from-metadata",
        help="Generated file that is generated once more, exactly, from its metadata.",
        metavar="FILE",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder or file.")]
VideoOut = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Output .mp4, .webm, .gif, .webp or .apng file; without a suffix, a folder of PNG."
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Output folder of the page; the run's folder when left out.")
]
Preview = Annotated[
    Path | None, typer.Option(help=".png file that shows the predicted image while it is sampled.", metavar="FILE")
]
PreviewEvery = Annotated[int, typer.Option("--preview-every", help="Number of steps from one preview to the next.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write the generation settings into each file.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change of the recipe, such as evaluate.samples=100; may repeat.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Run a smoke test of seconds that shows that everything works.")]
RecipeName = Annotated[str, typer.Argument(help="Bundled recipe, YAML file or run folder.", metavar="RECIPE")]
ModelName = Annotated[
    str, typer.Argument(help="Bundled model, or a folder: a saved model or a run; -m works too.", metavar="MODEL")
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option("--feature-weights", help="Weights of the feature network: published Inception, or a classifier."),
]


@dataclass(frozen=True)
class ReportOptions:
    """Options for the output of a command, and for overwriting files."""

    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def console(self) -> Console:
        """The console of these options."""
        return Console(self.as_json, self.quiet)
