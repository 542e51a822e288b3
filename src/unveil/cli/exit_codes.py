"""Messages and exit codes of errors."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from unveil.errors import OUR_FAULT, Error, PromptTruncated, out_of_memory
from unveil.io.console import Terminated, signals_raised

_log = logging.getLogger("unveil")

FAILED, USAGE, RESOURCES, INTERRUPTED, TERMINATED = 1, 2, 5, 130, 143


def guarded(app: Callable[..., Any], arguments: list[str]) -> int:
    """Run the app; each error becomes one message on stderr (with --json also in the JSON) and an exit code."""
    debug = "--debug" in arguments or bool(os.environ.get("UNVEIL_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    shown, level = warnings.showwarning, _log.level
    warnings.showwarning = _plainly(shown)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    _log.setLevel(logging.ERROR if _has(arguments, "--quiet", "-q") else logging.INFO)
    try:
        with signals_raised():
            code = app(args=arguments, prog_name="unveil", standalone_mode=False)
        # typer returns this code for Ctrl-C, without a message
        return _explained(KeyboardInterrupt(), "--json" in arguments) if code == INTERRUPTED else code or 0
    except BaseException as problem:
        if debug and not isinstance(problem, SystemExit):
            traceback.print_exc()
        return _explained(problem, "--json" in arguments)
    finally:
        warnings.showwarning = shown
        _log.setLevel(level)


def _plainly(others: Callable[..., None]) -> Callable[..., None]:
    """Return a function that shows warnings for the user as one line, and others with their place in the code."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if issubclass(category, PromptTruncated):
            print(f"warning: {message}", file=sys.stderr, flush=True)
        else:
            others(message, category, *place, **rest)

    return show


def _explained(problem: BaseException, as_json: bool) -> int:
    if type(problem).__name__ == "NoArgsIsHelpError":  # click's: a group of commands without a command
        print(problem.format_message(), file=sys.stderr, flush=True)  # type: ignore[attr-defined]
        return USAGE
    code, message = outcome(problem)
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False), flush=True)
    return code


def outcome(problem: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and its message."""
    if isinstance(problem, SystemExit):
        return problem.code if isinstance(problem.code, int) else FAILED, ""
    if isinstance(problem, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    if isinstance(problem, Terminated):
        return TERMINATED, "terminated"
    if isinstance(problem, Error):
        return problem.exit_code, str(problem)
    if hasattr(problem, "format_message"):  # click's error: a missing argument, an unknown option
        return USAGE, f"{problem.format_message()}\nunveil --help, and unveil COMMAND --help, show what is possible"  # type: ignore[attr-defined]
    if out_of_memory(problem):
        return RESOURCES, "out of memory; lower the batch size (train.batch_size, --batch-size), or the image size"
    if isinstance(problem, OSError):
        return RESOURCES, f"{problem.filename or 'a file'}: {problem.strerror or problem}; choose another path"
    name = type(problem).__name__
    return FAILED, f"unexpected {name}: {problem}\n{OUR_FAULT}; --debug shows where"


def _has(arguments: Sequence[str], *names: str) -> bool:
    return any(name in arguments for name in names)
