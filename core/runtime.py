"""The machine a run happens on: device, threads, precision, and a description of it for the run record."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

RECORDED_PACKAGES = ("patchwork-vision", "torch", "torchvision", "ray", "optuna", "numpy", "pandas")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        ValueError: CUDA was asked for by name and this process sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}, but PyTorch sees no CUDA device here; use 'auto' or 'cpu'")
    return device


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: Python's headers and a compiler, and for CUDA Triton too.

    For the CPU the compiler is that of the variable CXX, or else the system's C++ compiler; Triton takes any for C.
    """
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return False
    if device.type == "cuda":
        compilers = [os.environ.get("CC") or "gcc", "clang"]
        return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")) is not None


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_precision(device: torch.device, precision: str) -> str:
    """`bf16` or `float32`, where `precision` may be `auto` too.

    `auto` is `bf16` where the device multiplies it at least as fast as float32; a CPU that has no instructions for it
    takes a hundred times longer.
    """
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(device) else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for `bf16`: matrix products in bfloat16, weights and reductions in float32; none for `float32`.

    What is compiled gives a resolved precision: what `auto` asks of the device cannot be traced.
    """
    if resolve_precision(device, precision) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def return_free_memory() -> None:
    """Give the system the pages that the C library keeps for later; nothing where it is not glibc.

    Its arenas, of which every thread may have one, only grow otherwise: free pages between used ones stay
    (malloc_trim(3)).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bound_kernel_caches() -> None:
    """Let fewer compiled kernels stay on a CPU than PyTorch keeps by itself, unless the environment says how many.

    There is one for every shape that a layer has met, in bfloat16 of half a megabyte and more, and requests that differ
    in their prompts and company bring new ones. oneDNN keeps 1024 for the process, of which a half holds what returns;
    PyTorch once more as many of each kind of layer for every thread, which saves 3 microseconds a call. To be called
    before the process runs a model: later it has no effect.

    Source: https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html and
        https://github.com/pytorch/pytorch/issues/29893
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")


def import_torchvision() -> ModuleType:
    """torchvision, also beside a CPU-only PyTorch, where the wheel for CUDA from PyPI fails to import.

    That wheel cannot load its operators there, and then trips over the declarations of two of them. Declared here, they
    let the parts in plain Python (datasets, transforms) be used; a torchvision that matches its PyTorch is left alone.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def hardware_name(device: torch.device) -> str:
    """The processor or GPU that a device is, as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def describe_machine() -> dict[str, object]:
    """What a reader needs to judge a speed or repeat a run: processor, memory, accelerator, versions."""
    versions = {}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "bf16": multiplies_bf16(resolve_device("auto")),
        "gpus": [hardware_name(torch.device("cuda", i)) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


@functools.cache  # asked at every checkpoint
def source_commit() -> str | None:
    """The commit of the code that runs, `+dirty` where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if changed else commit


def _git(root: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=20)
    return run.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
