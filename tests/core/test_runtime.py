import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.runtime import (
    can_compile,
    describe_machine,
    import_torchvision,
    multiplies_bf16,
    resolve_device,
    resolve_precision,
    source_commit,
)

ROOT = Path(__file__).parents[2]


def printed(code: str, **environment: str) -> str:
    """By a Python of its own, with these variables besides ours."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stdout


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_compiling_needs_a_compiler_and_pythons_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert not can_compile(cpu)
    (tmp_path / "Python.h").touch()
    assert can_compile(cpu)
    compiler.unlink()
    assert not can_compile(cpu)


def test_precisions() -> None:
    cpu = torch.device("cpu")
    assert [resolve_precision(cpu, name) for name in ("bf16", "float32")] == ["bf16", "float32"]
    assert resolve_precision(cpu, "auto") == ("bf16" if describe_machine()["bf16"] else "float32")


def test_the_compiler_is_left_out_until_something_trains() -> None:
    """It takes a second and a half, and replicas have no use for it."""
    code = "import sys, sweeps.runner, serve.segmenter; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ValueError, match="device='cuda', but PyTorch sees no CUDA device"):
        resolve_device("cuda")


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["versions"]["torch"] == torch.__version__
    commit = source_commit()
    assert commit is None or len(commit.removesuffix("+dirty")) == 12


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_free_memory_between_what_is_used_goes_back_to_the_system() -> None:
    code = (
        "from core.runtime import return_free_memory\n"
        "from pathlib import Path\n"
        "held_mb = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 1e6\n"
        "blocks = [bytes(10_000) for _ in range(20_000)]\n"
        "kept = blocks[::500]\n"
        "del blocks\n"
        "before = held_mb()\n"
        "return_free_memory()\n"
        "print(before - held_mb())"
    )
    assert float(printed(code)) > 150


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(("chosen", "kept"), [({}, 512), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}, 16)])
def test_a_long_row_of_shapes_leaves_a_bounded_number_of_kernels(chosen: dict[str, str], kept: int) -> None:
    code = (
        "import torch\n"
        "from core.runtime import bound_kernel_caches\n"
        "bound_kernel_caches()\n"
        "layer = torch.nn.Conv2d(8, 8, 3)\n"
        "def run(*widths):\n"
        "    with torch.inference_mode(), torch.backends.mkldnn.verbose(2):\n"
        "        for width in widths: layer(torch.zeros(4, 8, 8, width))\n"
        "    print('---', flush=True)\n"
        f"run(8); run(8); run(*range(9, {9 + kept})); run(8)\n"
    )
    made = [part.count("create:cache_miss,cpu,convolution") for part in printed(code, **chosen).split("---")[:4]]
    assert made == [1, 0, kept, 1]


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="there oneDNN multiplies no matrices")
def test_a_long_row_of_shapes_leaves_little_behind() -> None:
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from core.runtime import bound_kernel_caches, return_free_memory\n"
        "bound_kernel_caches()\n"
        "layer = torch.nn.Linear(128, 512, dtype=torch.bfloat16)\n"
        "def held_mb():\n"
        "    return_free_memory()\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 1e6\n"
        "def run(*rows):\n"
        "    with torch.inference_mode():\n"
        "        for number in rows: layer(torch.zeros(number, 128, dtype=torch.bfloat16))\n"
        "run(*range(8, 400, 8)); before = held_mb(); run(*range(400, 2000, 8)); print(held_mb() - before)\n"
    )
    assert float(printed(code, ONEDNN_PRIMITIVE_CACHE_CAPACITY="16")) < 10


def test_torchvisions_python_parts_import() -> None:
    assert import_torchvision().datasets.CIFAR10


def test_the_segmentation_libraries_import_beside_this_torch() -> None:
    """Both import torchvision, which needs help beside a CPU-only PyTorch; sam2 was built against this one."""
    code = (
        "from core.runtime import import_torchvision; import_torchvision()\n"
        "import sam2.build_sam, sam2.sam2_image_predictor\n"
        "from transformers import CLIPSegForImageSegmentation"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
