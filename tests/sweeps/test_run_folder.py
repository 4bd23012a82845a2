"""The record of a run keeps no passwords, and the run goes on when they are given again."""

import dataclasses
from pathlib import Path

import pytest

from sweeps import console, run_folder
from sweeps.flags import Flags, UsageError
from sweeps.patch_size import SWEEP

DATABASE, TRACKING, BUCKET = (
    "postgresql://me:secret@host/db",
    "http://me:secret@host:5000",
    "s3://KEY:secret@bucket/sweeps",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sweeps/patch_size.py", "--study-url", DATABASE, f"--storage={BUCKET}"])


def test_what_held_a_password_is_asked_for_again() -> None:
    flags = Flags(name="a", study_url=DATABASE, mlflow_url=TRACKING)
    run = run_folder.start(SWEEP, flags)
    assert run.flags.study_url == DATABASE
    assert "secret" not in (run.path / "sweep.json").read_text()
    resumed = Flags(resume=str(run.path))
    for name in ("study_url", "mlflow_url"):
        with pytest.raises(UsageError, match=f"records keep no passwords: give --{name.replace('_', '-')} again"):
            run_folder.reopen(SWEEP, resumed)
        resumed = dataclasses.replace(resumed, **{name: getattr(flags, name)})
    found = run_folder.reopen(SWEEP, resumed).flags
    assert (found.study_url, found.mlflow_url) == (DATABASE, TRACKING)


def test_storage_that_needs_a_password_is_named_by_its_uri() -> None:
    run = run_folder.start(SWEEP, Flags(name="a", storage=BUCKET))
    assert "secret" not in (run.path / "sweep.json").read_text()
    with pytest.raises(UsageError, match=r"resume by the run's URI, s3://KEY:\*\*\*@bucket/sweeps/patch_size/a"):
        run_folder.reopen(SWEEP, Flags(resume=str(run.path)))
    assert run_folder.reopen(SWEEP, Flags(resume=f"{BUCKET}/patch_size/a/")).storage == run.storage
    with pytest.raises(UsageError, match="of another run"):
        run_folder.reopen(SWEEP, Flags(resume="s3://KEY:secret@other/sweeps/patch_size/a"))


def test_errors_repeat_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(f"results cannot be written to {BUCKET}")
    assert capsys.readouterr().err == "error: results cannot be written to s3://KEY:***@bucket/sweeps\n"
