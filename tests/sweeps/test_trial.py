"""What a trial leaves behind in the process that runs the next one."""

import re
import threading
from pathlib import Path

from sweeps.trial import _give_back_freed_memory


def kilobytes_of_its_own() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_what_a_trials_thread_has_freed_goes_back_to_the_machine() -> None:
    kept = []

    def work() -> None:
        blocks = [bytearray(50_000) for _ in range(4000)]
        kept.append(blocks[-1])  # what lies behind it the C library does not give back of its own accord

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    held = kilobytes_of_its_own()
    _give_back_freed_memory()
    assert held - kilobytes_of_its_own() > 150_000
