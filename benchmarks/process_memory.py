"""What processes hold in memory, by the kernel's own account (Linux)."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process holds, in MB."""

    rss: float
    pss: float
    private: float
    shared: float
    shm: float
    pss_shm: float


def usage_of(pid: int) -> Usage:
    """Read the kernel's account of a process of ours; raises OSError if it has ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    status = Path(f"/proc/{pid}/status").read_text()
    shm = re.search(r"^RssShmem:\s+(\d+) kB", status, re.MULTILINE)
    if "Pss" not in kilobytes or shm is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return Usage(
        rss=kilobytes["Rss"] * 1024 / MEGABYTE,
        pss=kilobytes["Pss"] * 1024 / MEGABYTE,
        private=(kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) * 1024 / MEGABYTE,
        shared=(kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"]) * 1024 / MEGABYTE,
        shm=int(shm[1]) * 1024 / MEGABYTE,
        pss_shm=kilobytes["Pss_Shmem"] * 1024 / MEGABYTE,
    )


def family(root: int | None = None) -> dict[int, str]:
    """A process, this one by default, and all its descendants, with their command lines."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            # The name, in brackets, may itself hold blanks and brackets.
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(after_name[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
    found = {os.getpid() if root is None else root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: commands.get(pid, "") for pid in found}
