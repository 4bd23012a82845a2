from collections.abc import Iterator

import pytest
import support


@pytest.fixture(autouse=True)
def no_sweep_left_running() -> Iterator[None]:
    """A test that fails half-way must not leave its sweep to the next one."""
    yield
    for process in support.STARTED:
        if process.poll() is None:
            support.kill(process)
    support.STARTED.clear()
