"""A port for a service of one's own."""

import socket


def free_port() -> int:
    """One of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
