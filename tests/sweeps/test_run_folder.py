"""A run is found again as it began, by one driver at a time; its record keeps no passwords."""

import dataclasses
import warnings
from pathlib import Path

import pytest

from core.data import Dataset, subset
from core.distill import WeakTeacherWarning
from nodes.command import UsageError, say_error, tell_plainly
from nodes.passwords import is_redacted, without_passwords
from sweeps import run_folder
from sweeps.flags import Flags
from sweeps.patch_size import SWEEP
from sweeps.question import resolve, with_defaults

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


def test_storage_with_a_query_is_refused() -> None:
    for flags, called in (
        (Flags(name="a", storage="s3://bucket/sweeps?region=eu-west-1"), run_folder.start),
        (Flags(resume="s3://bucket/sweeps/patch_size/a?region=eu-west-1"), run_folder.reopen),
    ):
        with pytest.raises(
            UsageError, match=r"takes no query \(region=eu-west-1\); .* AWS_REGION, and AWS_ENDPOINT_URL"
        ):
            called(SWEEP, flags)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://host/db?user=me&password=word&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("s3://bucket/a?access_key=ID&secret_key=word", "s3://bucket/a?access_key=ID&secret_key=***"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)
def test_passwords_are_hidden_wherever_a_url_has_them(url: str, kept: str) -> None:
    assert without_passwords(url) == kept
    assert is_redacted(without_passwords(url)) == (url != kept)
    assert not is_redacted(url)


def test_a_resumed_run_is_found_by_name_and_takes_no_other_flags() -> None:
    run = run_folder.start(SWEEP, Flags(name="a", budget=1e9))
    assert run_folder.reopen(SWEEP, Flags(resume="a", budget=1e9, seeds=SWEEP.seeds)).path == run.path
    with pytest.raises(UsageError, match=r"--budget: a resumed run goes on as it began \(with 1000000000.0\)"):
        run_folder.reopen(SWEEP, Flags(resume="a", budget=2e9))
    with pytest.raises(UsageError, match=r"--cpus-per-trial: .* only --address, --data-root, --study-url, "):
        run_folder.reopen(SWEEP, Flags(resume="a", cpus_per_trial=2))


def test_one_driver_at_a_time() -> None:
    run = run_folder.start(SWEEP, Flags(name="a"))
    again = run_folder.reopen(SWEEP, Flags(resume="a"))
    with (
        run.held(),
        pytest.raises(UsageError, match="another process is at work on results/patch_size/a"),
        again.held(),
    ):
        pass
    with again.held():
        pass


def test_what_would_compute_something_else_by_now_is_refused(shapes: Dataset) -> None:
    flags = with_defaults(Flags(name="a", dataset="shapes"), SWEEP)
    asked = resolve(SWEEP, flags)
    run_folder.start(SWEEP, flags).open(SWEEP, asked, shapes)
    run_folder.reopen(SWEEP, Flags(resume="a")).open(SWEEP, asked, shapes)
    deeper = dataclasses.replace(asked.recipe, base={**asked.base, "depth": 9})
    changed = {"base": (dataclasses.replace(asked, recipe=deeper), shapes, "depth: None there, 9 here")}
    fewer = dataclasses.replace(shapes, test=subset(shapes.test, 10))
    changed["dataset"] = (asked, fewer, f"test: {len(shapes.test)} there, 10 here")
    for name, (resolved, data, difference) in changed.items():
        with pytest.raises(UsageError, match=rf"began with another {name} \({difference}\), by the code of commit"):
            run_folder.reopen(SWEEP, Flags(resume="a")).open(SWEEP, resolved, data)


def test_errors_repeat_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(f"results cannot be written to {BUCKET}")
    assert capsys.readouterr().err == "error: results cannot be written to s3://KEY:***@bucket/sweeps\n"


def test_a_sweeps_own_warnings_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
        tell_plainly(WeakTeacherWarning)
        warnings.warn(f"the teacher in {BUCKET} reached 80.0%", WeakTeacherWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the teacher in s3://KEY:***@bucket/sweeps reached 80.0%\n"
    assert others == ["of a library"]
