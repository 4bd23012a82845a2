"""The arrows between the rooms, and what importing one may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "core": {"ray", "fastapi", "starlette", "httpx", "requests", "tyro", "argparse", "nodes", "sweeps", "serve"},
    "nodes": {"core", "sweeps", "serve"},
    "sweeps": {"serve", "fastapi", "starlette"},
    "serve": {"sweeps"},
}


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file} imports relatively"
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): hit for f in files if (hit := imported_modules(f) & FORBIDDEN[room])}
    assert not wrong


def test_core_loads_neither_ray_nor_http() -> None:
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in (ROOT / "core").rglob("*.py")
    ]
    assert loaded(modules, {"ray", "fastapi", "starlette", "httpx"}) == "[]"


def test_batch_jobs_load_no_http() -> None:
    modules = [f"serve.{f.stem}" for f in (ROOT / "serve").glob("batch*.py") if f.stem != "batcher"]
    assert "serve.batch_worker" in modules
    assert loaded(modules, {"fastapi", "starlette", "uvicorn"}) == "[]"


def loaded(modules: list[str], of: set[str]) -> str:
    """Which of some packages a fresh process has loaded after it imported the modules."""
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted({{m.partition('.')[0] for m in sys.modules}} & {of!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()
