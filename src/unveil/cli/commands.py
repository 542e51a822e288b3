"""Commands and their options. The modules that run them are imported when a command runs.

This module does not import torch, so that help is printed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import unveil
from unveil.cli.analyze_options import analyze_app
from unveil.cli.command_names import resolve_command, resolve_options
from unveil.cli.options import (
    ALL_COMMANDS,
    Command,
    TaskCommand,
    with_options,
)
from unveil.io.console import guarded
from unveil.tasks import registry

# Commands in the order of help, by workflow
SECTIONS = {
    "Generate": ("sample", "video", "variations", "interpolate", "regenerate"),
    "Edit images": ("img2img", "inpaint", "outpaint", "upscale", "invert", "preprocess"),
    "Train": ("train", "recipes", "data", "caption"),
    "Evaluate": ("evaluate", "analyze", "reproduce"),
    "Models": ("inspect", "convert", "merge", "lora", "translate"),
    "Serve": ("studio", "serve"),
    "First steps": ("demo",),
}


class _CommandsByWorkflow(TyperGroup):
    """Group whose help lists the commands by the sections of `SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, self.commands))
        sections = {title: list(names) for title, names in SECTIONS.items()}
        listed = {name for names in sections.values() for name in names}
        for name in registry.entries():
            if name not in listed and name in self.commands:
                sections.setdefault(registry.described(name).section, []).append(name)
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


app = typer.Typer(
    name="unveil",
    cls=_CommandsByWorkflow,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time of help
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Diffusion models of images and video: generate, edit, train, evaluate.\n\n"
    'Example: unveil sample "a large blue square on green" -o square.png\n\n'
    "Example: unveil train ddpm-digits, then unveil sample runs/ddpm-digits --label 3 -n 8\n\n"
    "Every command takes --debug, which shows the traceback of an error.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, recipe or existing output, 3 non-finite numbers, 4 data, 5 resources, "
    "130 interrupted, 143 terminated.",
)
# Sub-command of a group that runs if no sub-command is typed
DEFAULT_SUBCOMMANDS = {"inspect": "model", "video": "generate"}
data_app = typer.Typer(no_args_is_help=True, help="Check, show and cache training data.")
video_app = typer.Typer(
    no_args_is_help=True,
    help="Generate, extend, join and edit videos.\n\n"
    'Example: unveil video "a small red circle moves left" -o out.mp4\n\n'
    "`unveil video PROMPT` runs `unveil video generate`.",
)
inspect_app = typer.Typer(
    no_args_is_help=True, help="Inspect a checkpoint, the models folder or a noise schedule; list the samplers."
)
lora_app = typer.Typer(
    no_args_is_help=True, help="Inspect LoRA files, convert them to other formats, merge them into a model."
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, show and cite the bundled recipes.")
preprocess_app = typer.Typer(
    no_args_is_help=True, help="Make control images for ControlNets: edges, lines, scribbles, segments, masks, boxes."
)
app.add_typer(data_app, name="data")
app.add_typer(preprocess_app, name="preprocess")
app.add_typer(inspect_app, name="inspect")
app.add_typer(recipes_app, name="recipes")
app.add_typer(analyze_app, name="analyze")
app.add_typer(lora_app, name="lora")
app.add_typer(video_app, name="video")


def _task_command(name: str, command_name: str) -> Callable[[], Command]:
    def build() -> Command:
        from unveil.cli.task_command import command_of

        return command_of(registry.task_class(name), command_name)

    return build


def command_words(task: str) -> tuple[str, ...]:
    """Return the words of the command of a task.

    If the name of a task begins with the name of a group, its command belongs to the group.
    """
    groups = (str(info.name) for info in app.registered_groups)
    group = next((name for name in groups if task.startswith(f"{name}-")), None)
    return (task,) if group is None else (group, task.removeprefix(f"{group}-"))


def _add_task(task: str) -> None:
    *groups, name = command_words(task)
    inner = [info.typer_instance for info in app.registered_groups if info.name in groups]
    home = app if not inner or inner[0] is None else inner[0]
    home.command(name, help=registry.described(task).summary)(
        TaskCommand(_task_command(task, " ".join([*groups, name])))
    )


for name in registry.entries():
    _add_task(name)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"unveil {unveil.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version


def command_tree() -> dict[str, tuple[str, ...]]:
    """Return the names of all commands, each with the names of its sub-commands."""
    tree: dict[str, tuple[str, ...]] = {str(info.name or _name(info.callback)): () for info in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inner = group.typer_instance.registered_commands
        tree[str(group.name)] = tuple(str(info.name or _name(info.callback)) for info in inner)
    return tree


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""

    def run_resolved(args: Sequence[str], **settings: Any) -> Any:
        words = resolve_command(args, command_tree(), DEFAULT_SUBCOMMANDS)
        root = typer.main.get_command(with_options(app, words))
        return root(args=resolve_options(words, root, all_commands), **settings)

    return guarded(run_resolved, list(arguments))


def all_commands() -> Any:
    """Return click's tree of all commands with all their options."""
    return typer.main.get_command(with_options(app, ALL_COMMANDS))


def _name(callback: Any) -> str:
    return callback.__name__.replace("_", "-")
