"""How `serve run serve.config` ends: what is in hand is answered first, and a failure is told by the exit code."""

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

import click
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus


def end_well(timeout_s: float) -> None:
    """Under `serve run`, change how it ends; elsewhere nothing.

    By itself it kills the proxy on Ctrl-C, with all requests that are at work, and exits with 0 where a replica cannot
    start.

    Args:
        timeout_s: how long a request may take, and so its end.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run":
        return
    context.call_on_close(_replace_exit_code)
    if threading.current_thread() is threading.main_thread():
        name = context.params.get("name", "default")

        def interrupted(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
            _drain(name, timeout_s)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupted)


def _drain(name: str, timeout_s: float) -> None:
    if not ray.is_initialized():
        return
    with suppress(RayError, RayServeException, TimeoutError):
        application = serve.status().applications.get(name)
        if application is not None and application.status == ApplicationStatus.RUNNING:
            click.echo("Answering what is in hand; Ctrl-C again to stop at once.", err=True)
            # `serve run serve.config` has one replica of the ingress.
            serve.get_app_handle(name).close.remote().result(timeout_s=timeout_s)


def _replace_exit_code() -> None:
    ending = sys.exc_info()[1]
    if isinstance(ending, SystemExit) and ending.code is None and isinstance(ending.__context__, Exception):
        click.echo("Error: the service did not start, or stopped: see the message above.", err=True)
        raise SystemExit(1)
