"""What sweeps and batch jobs say to Ray when they start it or join a cluster."""

import os
import socket
from pathlib import Path
from typing import Any

_SECONDS_TO_CONNECT = 10.0
_PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Ray on this machine alone; on the loopback address only: whoever reaches Ray's ports can run code.
HERE: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}


def check_reachable(address: str) -> None:
    """Ray would wait for minutes for a host that does not answer.

    Raises:
        OSError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # else `auto`, or a form that Ray judges itself
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()


def packages(room: str) -> list[str]:
    """Folders of the project that workers of a cluster need for what `room` runs there."""
    return [str(_PROJECT_ROOT / package) for package in ("core", "nodes", room)]


def python_path() -> str:
    """`PYTHONPATH` under which workers on this machine find the project, before what it is here."""
    rest = os.environ.get("PYTHONPATH")
    return f"{_PROJECT_ROOT}{os.pathsep}{rest}" if rest else str(_PROJECT_ROOT)
