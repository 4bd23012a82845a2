"""The trained models: over HTTP on Ray Serve (`serve run serve.config classifier=FOLDER`), and in batch jobs."""

from typing import TYPE_CHECKING, Any

# `serve run serve.config` imports this package and takes its attribute `config`, which must be a function with exactly
# one parameter annotated with a pydantic class: a module `serve/config.py`, or annotations kept as strings, break that.
if TYPE_CHECKING:
    from serve.app import build as config

__all__ = ["config"]


def __getattr__(name: str) -> Any:
    if name != "config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serve.app import build  # not for batch jobs and their workers, to which it is seconds and memory for nothing

    return build
