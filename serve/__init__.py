"""The trained models over HTTP, on Ray Serve: `serve run serve.config classifier=FOLDER`."""

# `serve run serve.config` imports this package and takes its attribute `config`, which must be a function with exactly
# one parameter annotated with a pydantic class: a module `serve/config.py`, or annotations kept as strings, break that.
from serve.app import build as config

__all__ = ["config"]
