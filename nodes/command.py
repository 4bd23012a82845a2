"""What the commands of sweeps and batch jobs have in common: exit codes, how flags are told, and how they speak."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import tyro
from rich.console import Console

from nodes.passwords import without_passwords

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)


class UsageError(Exception):
    """Something the user asked for cannot be done; the message says what and how to go on. Exit code 2."""


def optional(metavar: str, default: str) -> Any:
    """How a flag that may be left out is shown in the help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def command_line() -> str:
    """What the user typed, for the record, without passwords; the program by its place in the project."""
    program = Path(sys.argv[0])
    words = [without_passwords(word) for word in sys.argv[1:]]
    return shlex.join(["python", f"{program.parent.name}/{program.name}", *words])


def say(text: str = "") -> None:
    """A line as it is: not wrapped, so that a path or command can be copied whole."""
    OUT.print(text, markup=False, soft_wrap=True)


def say_error(message: str) -> None:
    """One sentence to standard error, without the passwords that it may repeat."""
    _ERR.print(f"error: {without_passwords(message)}", markup=False, soft_wrap=True)


def tell_plainly(*categories: type[Warning]) -> None:
    """From now on show warnings of these kinds as one sentence to standard error, without the line of code."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, categories):
            _ERR.print(f"warning: {without_passwords(str(message))}", markup=False, soft_wrap=True)
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
