"""Output of the commands, the signals that end them, and their exit codes.

Results are written to stdout, progress and errors to stderr; with --json, stdout holds one JSON document.

Ctrl-C and SIGTERM become exceptions, also where a library swallows them: some libraries catch every exception while
they are imported, and Python ignores exceptions in finalizers. The signal is recorded, and `check_signal` raises it
again at the next point where work can stop.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from unveil.errors import OUR_FAULT, Error, PromptTruncated, out_of_memory

# What a terminal obeys, or what reorders a line: controls except tab and line feed, bidirectional marks, surrogates
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

Listener = Callable[[int, int], object]  # completed steps, and their total, 0 if unknown

_listeners: list[Listener] = []
_pending: int | None = None  # the last signal whose exception has not reached the end of `signals_raised`


def printable(text: str) -> str:
    r"""Return a text with every character that could control a terminal as its escape, such as \x1b or \u202e.

    Names and texts of files are printed as they are stored; this is their way to a terminal or a log. Tabs and line
    feeds stay.
    """
    return _UNSAFE.sub(lambda match: _escaped(match[0]), text)


def one_line(text: str) -> str:
    """Return a text as `printable`, with tabs and line feeds escaped too, so that a name cannot add a line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def json_for_terminal(facts: Any) -> str:
    """Return JSON for a terminal, with escapes in the place of control characters; it is read back as `facts`."""
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class PrintableFormatter(logging.Formatter):
    """Lines of a log, as `printable`; a line feed of a message cannot begin another record."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; only the lines of a traceback and the further lines of a message, indented, follow it."""
        return printable(super().format(record)).replace("\n", "\n  ")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@dataclass(frozen=True)
class Console:
    """Verbosity of a command.

    Attributes:
        as_json: Stdout holds one JSON document, the result, and nothing else.
        quiet: Stdout holds nothing; errors still reach stderr.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def silent(self) -> bool:
        """Return True if plain text on the way is unwanted."""
        return self.as_json or self.quiet

    def say(self, text: str) -> None:
        """A line for a person."""
        if not self.silent:
            print(printable(text), flush=True)

    def note(self, text: str) -> None:
        """A line for a person about a choice that was made for them; it is a message of a job, too."""
        self.say(text)

    def warn(self, text: str) -> None:
        """A line that matters even when quiet; it never mixes with JSON."""
        _warnings.show(text, _form(text))

    def explain(self, text: str) -> None:
        """Text for a person before a question; it never mixes with JSON."""
        print(printable(text), file=sys.stderr, flush=True)

    def ask(self, question: str) -> bool | None:
        """Ask a person to answer yes or no; without an answer, no counts.

        Returns:
            The answer; None: without a terminal.
        """
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """Result of the command: `facts` as JSON, or `text` for a person."""
        if self.as_json:
            print(json_for_terminal(facts), flush=True)
        elif not self.quiet:
            print(printable(text), flush=True)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        """A counter with speed and time left: a line that renews itself on a terminal, plain lines elsewhere.

        A total of 0 stands for one that is not known.
        """
        counter = Progress(what, total, shown=not self.silent, terminal=sys.stderr.isatty())
        try:
            yield counter
        finally:
            counter.close()


class Progress:
    """Counts to a total; `advance` may be called as often as one likes."""

    def __init__(self, what: str, total: int, *, shown: bool, terminal: bool) -> None:
        self._what, self._total, self._shown, self._terminal = one_line(what), total, shown, terminal
        self._done, self._begun = 0, time.monotonic()
        self._every = 0.1 if terminal else 10.0  # a log file is not a terminal: one line in ten seconds
        self._next = self._begun + self._every

    def advance(self, by: int = 1) -> None:
        """Advance the count, and show it now and then.

        Raises:
            KeyboardInterrupt, Terminated: A signal was received, and a library has swallowed its exception.
        """
        check_signal()
        self._done += by
        report_progress(self._done, self._total)
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + self._every
            self._show(now)

    def reach(self, done: int, total: int) -> None:
        """Counts to a place, of a total that is known only now."""
        self._total = total
        self.advance(done - self._done)

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._shown and self._terminal:
            self._show(time.monotonic())
            print(file=sys.stderr, flush=True)

    def _show(self, now: float) -> None:
        speed = self._done / max(now - self._begun, 1e-9)
        left = max(self._total - self._done, 0) / speed if speed else float("inf")
        text = f"{self._what} {self._done}, {speed:.3g}/s"  # the length of this run is unknown
        if self._total:
            text = f"{self._what} {self._done}/{self._total}, {speed:.3g}/s, {duration(left)} left"
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 3 min 10 s, 2 h 5 min."""
    if seconds != seconds or seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def size(count: float) -> str:
    """Bytes for a person, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def report_progress(completed: int, total: int) -> None:
    """Tell all listeners the completed steps and their total, 0 if unknown."""
    for listener in _listeners:
        listener(completed, total)


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call a function with the progress of every counter of this process until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Terminated(BaseException):
    """SIGTERM, as an exception that unwinds like Ctrl-C does."""


@contextmanager
def signals_raised() -> Iterator[None]:
    """Turn SIGINT into KeyboardInterrupt and SIGTERM into Terminated, and record them, until the block ends.

    Outside the main thread, where Python allows no signal handlers, nothing changes.
    """
    global _pending
    try:
        before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        _pending = None
        for number, handler in before.items():
            signal.signal(number, handler)


def pending_signal() -> int | None:
    """Return the number of a recorded signal that has not ended the command; None without one."""
    return _pending


def check_signal() -> None:
    """Raise the exception of a recorded signal again.

    Raises:
        KeyboardInterrupt: SIGINT was received.
        Terminated: SIGTERM was received.
    """
    if _pending is not None:
        _raise(_pending)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _pending
    del frame
    _pending = number
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


_log = logging.getLogger("unveil")
MAX_OF_A_KIND = 3  # warnings of one kind that are printed; the others are counted
_VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")  # what differs between warnings of one kind


class WarningPrinter:
    """Prints the warnings of one command to stderr: each text once, and the first few of each kind.

    Args:
        verbose: True if all are printed.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._texts: set[str] = set()
        self._counts: dict[str, int] = {}

    def takes(self, text: str, kind: str) -> bool:
        """Count a warning; return True if it is to be printed."""
        if text in self._texts:
            return False
        self._texts.add(text)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self.verbose or self._counts[kind] <= MAX_OF_A_KIND

    def show(self, text: str, kind: str) -> None:
        """Print a warning in one line, if `takes` accepts it."""
        if self.takes(text, kind):
            print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print the number of warnings that were not printed, and begin again."""
        left = 0 if self.verbose else sum(max(count - MAX_OF_A_KIND, 0) for count in self._counts.values())
        if left:
            print(f"warning: {left} more of the same kind; --verbose lists them", file=sys.stderr, flush=True)
        self._texts, self._counts = set(), {}


class _OnceFilter(logging.Filter):
    """Passes a warning of the log if the printer of the command takes it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno != logging.WARNING or _warnings.takes(record.getMessage(), str(record.msg))


_warnings = WarningPrinter(verbose=True)  # outside a command, as in a program, all are printed


def _form(text: str) -> str:
    """Return a warning without its quoted texts and numbers, which warnings of one kind share."""
    return _VARYING.sub("", text)


FAILED, USAGE, RESOURCES, INTERRUPTED, TERMINATED = 1, 2, 5, 130, 143


def run_with_exit_code(app: Callable[..., Any], arguments: list[str]) -> int:
    """Run the app; each error becomes one message on stderr (with --json also in the JSON) and an exit code.

    Each warning is printed once, and of many of one kind the first few and their number; `--verbose` prints all, and
    those that the libraries have for programmers.
    """
    global _warnings
    debug = "--debug" in arguments or bool(os.environ.get("UNVEIL_DEBUG"))
    verbose = debug or "--verbose" in arguments
    arguments = [argument for argument in arguments if argument not in ("--debug", "--verbose")]
    shown, level, printer = warnings.showwarning, _log.level, _warnings
    _warnings = WarningPrinter(verbose=verbose)
    warnings.showwarning = _plainly(shown if verbose else None)
    log_to_stderr("%(levelname)s: %(message)s", logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_OnceFilter())
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
        _warnings.close()
        _warnings, warnings.showwarning = printer, shown
        _log.setLevel(level)


def log_to_stderr(form: str, level: int) -> None:
    """Write the log of this process to stderr, in place of any other way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _plainly(others: Callable[..., None] | None) -> Callable[..., None]:
    """Return a function that shows warnings for the user as one line.

    Args:
        others: Function that shows warnings for programmers, with their place in the code; None: they are not shown.
    """

    def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if issubclass(category, PromptTruncated):
            _warnings.show(str(message), category.__name__)
        elif others is not None:
            others(message, category, *place, **rest)

    return show


def _explained(problem: BaseException, as_json: bool) -> int:
    if type(problem).__name__ == "NoArgsIsHelpError":  # click's: a group of commands without a command
        print(printable(problem.format_message()), file=sys.stderr, flush=True)  # type: ignore[attr-defined]
        return USAGE
    code, message = exit_code_and_message(problem)
    if message:
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
        if as_json:
            print(json_for_terminal({"error": message, "exit_code": code}), flush=True)
    return code


def exit_code_and_message(problem: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and its message."""
    if isinstance(problem, SystemExit):
        return problem.code if isinstance(problem.code, int) else FAILED, ""
    if isinstance(problem, KeyboardInterrupt) or type(problem).__name__ == "Abort":  # click's, for Ctrl-C
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
