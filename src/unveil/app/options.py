"""Options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", metavar="DEVICE")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.", metavar="DTYPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes such as train.steps=100.", metavar="[KEY=VALUE]...")
]
Small = Annotated[bool, typer.Option("--small", help="The recipe's small mode, a run of seconds.")]
RecipeName = Annotated[str, typer.Argument(help="A shipped recipe, a YAML file or a run's folder.", metavar="RECIPE")]
ModelName = Annotated[
    str, typer.Argument(help="A shipped model, or a folder: a saved model or a run.", metavar="MODEL")
]
