"""The folder of one run of a sweep: made, found again, and filled with frames, record, winner and report."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from core.data import Dataset
from core.runtime import describe_machine, source_commit
from nodes.command import UsageError, command_line
from nodes.passwords import is_redacted, without_passwords
from sweeps.flags import Flags
from sweeps.question import Resolved, Sweep, with_defaults
from sweeps.results import EPOCHS_FILE, SWEEP_FILE, TRIALS_FILE, write_frame, write_json
from sweeps.storage import download, exists, remove, upload
from sweeps.trial import copy_checkpoint

# Flags that a resumed run may be given anew: where it finds things, not what it computes.
_PLACES = ("address", "data_root", "study_url", "mlflow_url")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run: its folder `STORAGE/SWEEP/NAME`, its flags with all defaults filled in, and its record `sweep.json`.

    Where STORAGE is a URI the trials are kept under it and the folder itself under `results/`. The record is there too
    from the beginning, so that `--resume URI` can begin from it on any machine; `publish` copies the rest at the end.
    `shared` names what a new run has put there before it started.
    """

    path: Path
    flags: Flags
    record: dict[str, Any]
    shared: list[str] = field(default_factory=list)

    @property
    def storage(self) -> str:
        """Where Tune keeps the trials: this folder's absolute path, or its twin under a URI."""
        if not self.keeps_trials_here:
            return f"{self.flags.storage.rstrip('/')}/{self.record['sweep']}/{self.path.name}"
        return str(self.path.resolve())

    @property
    def keeps_trials_here(self) -> bool:
        """Whether the trials are kept in this folder, not under a URI."""
        return not _is_uri(self.flags.storage)

    @property
    def best(self) -> Path:
        """The winner's checkpoint folder."""
        return self.path / "best"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other drivers out of this folder, where the file system can (NFS locks no folders).

        Raises:
            UsageError: one is at work in it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is at work on {self.path}: wait for it, or end it first") from error
        except OSError:
            pass
        try:
            yield
        finally:
            os.close(folder)

    def open(self, sweep: Sweep, resolved: Resolved, data: Dataset) -> None:
        """Write what is known before the first trial, and point `latest` here.

        Raises:
            UsageError: a resumed run would compute something else now than when it began.
        """
        self.record.update(
            **self.check_same(sweep, resolved, data),
            reference=sweep.reference,
            prototype=sweep.prototype,
            machine=describe_machine(),
            commit=source_commit(),
        )
        self._write_record("running")
        latest = self.path.parent / "latest"
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".latest-") as fresh:
            (Path(fresh) / "latest").symlink_to(self.path.name)
            (Path(fresh) / "latest").replace(latest)

    def check_same(self, sweep: Sweep, resolved: Resolved, data: Dataset) -> dict[str, Any]:
        """All that the results depend on, as the record keeps it.

        Raises:
            UsageError: the run began with something else.
        """
        asked = {
            "base": resolved.base,
            "factor": sweep.factor,
            "bundles": resolved.recipe.bundles,
            "space": {name: dataclasses.asdict(domain) for name, domain in resolved.space.items()},
            "dataset": {
                "name": data.name,
                "source": data.source,
                "train": len(data.train),
                "val": len(data.val),
                "test": len(data.test),
                "classes": list(data.class_names),
            },
        }
        for name, now in json.loads(json.dumps(asked, default=str)).items():
            if (before := self.record.get(name, now)) != now:
                raise UsageError(
                    f"{self.path} began with another {name} ({_differences(before, now)}), by the code of commit "
                    f"{self.record['commit']}; go on with that code and data, or start a new run"
                )
        return asked

    def write(self, trials: pd.DataFrame, epochs: pd.DataFrame, status: str) -> None:
        """Replace the frames and the record.

        Args:
            status: running, interrupted, finished early, completed or completed with failures.
        """
        write_frame(trials, self.path / TRIALS_FILE)
        write_frame(epochs, self.path / EPOCHS_FILE)
        self._write_record(status)

    def keep_best(self, winner: Mapping[str, Any]) -> None:
        """Copy the winner's checkpoint to `best/`."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".best-") as fresh:
            copy_checkpoint(
                f"{self.storage}/{winner['checkpoint']}", Path(fresh) / "best", float(winner["test_accuracy"])
            )
            shutil.rmtree(self.best, ignore_errors=True)
            (Path(fresh) / "best").rename(self.best)

    def publish(self) -> None:
        """Copy frames, reports, figures and winner beside the trials where those are kept under a URI."""
        if not self.keeps_trials_here:
            upload(self.path, self.storage)

    def share(self, *, is_new: bool) -> None:
        """Copy the record beside the trials where those are kept under a URI.

        Raises:
            UsageError: it cannot be written there, or another run's is there already and this one is new.
        """
        if self.keeps_trials_here:
            return
        file = f"{self.storage}/{SWEEP_FILE}"
        with tempfile.TemporaryDirectory() as alone:
            write_json(self.record, Path(alone) / SWEEP_FILE)
            try:
                if is_new:
                    if exists(file):
                        raise UsageError(
                            f"{self.storage} exists; go on with it by --resume {self.storage}, or choose another --name"
                        )
                    self.shared.append(file)
                upload(Path(alone), self.storage)
            except (OSError, ValueError) as error:
                raise UsageError(f"results cannot be written to {self.storage}: {error}; see --storage") from error

    def check_free_space(self, num_trials: int, num_params: int) -> None:
        """Refuse to start what cannot be kept.

        Raises:
            UsageError: the disk is too full for the trials' checkpoints.
        """
        if not self.keeps_trials_here:
            return
        # float32 weights, their average, AdamW's two moments and the served copy; two checkpoints a trial.
        needed = num_trials * num_params * 4 * 5 * 2
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UsageError(
                f"the checkpoints of {num_trials} trials need about {needed / 2**20:,.0f} MiB and {self.path} has "
                f"{free / 2**20:,.0f} MiB free; make room or name another --storage"
            )

    def discard(self) -> None:
        """Remove the folder of a run that did not start, and what it has shared."""
        shutil.rmtree(self.path, ignore_errors=True)
        for file in self.shared:
            with contextlib.suppress(OSError, ValueError):
                remove(file)

    def _write_record(self, status: str) -> None:
        self.record["status"] = status
        if status.startswith("completed"):
            self.record["finished"] = _now()
        write_json(self.record, self.path / SWEEP_FILE)


def start(sweep: Sweep, flags: Flags) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        UsageError: it exists, or cannot be written, or is a URI with a query.
    """
    _refuse_query("--storage", flags.storage)
    name = flags.name or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path = _local_root(flags.storage) / sweep.name / name
    if path.exists():
        raise UsageError(f"{path} exists; go on with it by --resume {path}, or choose another --name")
    try:
        path.mkdir(parents=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise UsageError(f"results cannot be written to {path}: {error.strerror}; see --storage") from error
    flags = dataclasses.replace(with_defaults(flags, sweep), name=name)
    record = {
        "sweep": sweep.name,
        "question": sweep.question,
        "command": command_line(),
        "started": _now(),
        "flags": {name: _kept(value) for name, value in dataclasses.asdict(flags).items()},
    }
    run = RunFolder(path=path, flags=flags, record=record)
    run._write_record("starting")
    return run


def reopen(sweep: Sweep, flags: Flags) -> RunFolder:
    """Find the run that `--resume` names. What it computes stays as it was; where it runs may change.

    Raises:
        UsageError: there is none, or it is of another sweep.
    """
    named = str(flags.resume)
    if _is_uri(named):
        _refuse_query("--resume", named)
        named = named.rstrip("/")
        path = _fetch(sweep, named)
    else:
        path = _find(sweep, flags)
    try:
        record = json.loads((path / SWEEP_FILE).read_text())
        if record["sweep"] != sweep.name:
            raise UsageError(f"{path} is a run of sweeps/{record['sweep']}.py, not of {sweep.name}.py")
        lists = {name: tuple(record["flags"].get(name, ())) for name in ("set", "vary")}
        kept = Flags(**{**record["flags"], **lists})
    except OSError as error:
        raise UsageError(f"{path} is not the folder of a sweep: it has no {SWEEP_FILE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path / SWEEP_FILE} is damaged: {error}") from error
    run = RunFolder(path=path, flags=kept, record=record)
    if _is_uri(named):
        if _kept(run.storage) != _kept(named):
            raise UsageError(
                f"{path} is of another run than {named}: its trials are at {run.storage}; move it away first"
            )
        kept = dataclasses.replace(kept, storage=named.removesuffix(f"/{sweep.name}/{path.name}"))
    _refuse_changes(flags, kept)
    given = {name: getattr(flags, name) for name in _PLACES if getattr(flags, name)}
    run = dataclasses.replace(run, flags=dataclasses.replace(kept, **given))
    for name in _PLACES:
        if is_redacted(getattr(run.flags, name)):
            raise UsageError(f"records keep no passwords: give --{name.replace('_', '-')} again, with its own")
    if is_redacted(run.flags.storage):
        raise UsageError(f"records keep no passwords: resume by the run's URI, {run.storage}, with its own")
    return run


def _refuse_changes(flags: Flags, kept: Flags) -> None:
    """Refuse flags that a resumed run would pass over without a word."""
    for given in dataclasses.fields(Flags):
        value = getattr(flags, given.name)
        of_this_start = given.name in ("resume", "finish", "storage", *_PLACES)
        if of_this_start or value in (given.default, getattr(kept, given.name)):
            continue
        raise UsageError(
            f"--{given.name.replace('_', '-')}: a resumed run goes on as it began "
            f"(with {getattr(kept, given.name)!r}); only --{', --'.join(_PLACES).replace('_', '-')} may change"
        )


def _refuse_query(flag: str, uri: str) -> None:
    """Refuse a URI that cannot be added to: what Tune and this module append would become a part of its query."""
    if _is_uri(uri) and "?" in uri:
        raise UsageError(
            f"{flag} takes no query ({uri.partition('?')[2]}); the environment names the place: AWS_REGION, and "
            "AWS_ENDPOINT_URL for a store of one's own"
        )


def _differences(before: Any, now: Any) -> str:
    """`patch_size: 4 there, 8 here`, for the entries of two mappings that differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{before} there, {now} here"
    names = [name for name in (before | now) if before.get(name) != now.get(name)]
    return ", ".join(f"{name}: {before.get(name)} there, {now.get(name)} here" for name in names)


def _kept(value: Any) -> Any:
    """As a record keeps it."""
    return without_passwords(value) if isinstance(value, str) else value


def _find(sweep: Sweep, flags: Flags) -> Path:
    named = str(flags.resume)
    path = Path(named).expanduser()
    if named == "latest" or ("/" not in named and not path.is_dir()):
        path = _local_root(flags.storage) / sweep.name / named
    if not path.is_dir():
        raise UsageError(f"there is nothing to resume: {path} is not a folder")
    # The run's own name reads better in messages, and stays right when `latest` moves on.
    return path.parent / path.resolve().name if path.is_symlink() else path


def _fetch(sweep: Sweep, uri: str) -> Path:
    """The local folder of a run whose trials are kept under a URI; made, on a machine that does not have it."""
    path = _local_root(uri) / sweep.name / uri.rpartition("/")[2]
    if not path.exists():
        path.mkdir(parents=True)
        try:
            download(f"{uri}/{SWEEP_FILE}", path / SWEEP_FILE)
        except (OSError, ValueError) as error:
            shutil.rmtree(path)
            raise UsageError(f"there is nothing to resume: {uri}/{SWEEP_FILE} cannot be read: {error}") from error
    return path


def _local_root(storage: str) -> Path:
    return Path("results" if _is_uri(storage) else storage).expanduser()


def _is_uri(storage: str) -> bool:
    return "://" in storage


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
