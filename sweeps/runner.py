"""Runs a sweep: the only place that builds a `Tuner`. Reads top-down from `main`."""

import contextlib
import dataclasses
import datetime
import errno
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from sweeps.flags import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TRIALS_FAILED,
    EXIT_USAGE,
    Flags,
    UsageError,
    command_line,
    parse,
    parse_overrides,
)
from sweeps.space import Choice, Point, Space, grid_points, random_points

# A searcher needs to hear of results before it suggests more; this many seeds of failures of machines are forgiven.
MAX_MACHINE_FAILURES = 3
SEARCH_STAGE, CONFIRM_STAGE = "trials", "confirm"
_SMOKE = {"embed_dim": 16, "depth": 1, "num_heads": 2, "batch_size": 64, "reports": 2, "images": 640, "compile": False}
_SMOKE_PICTURES = 640


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question put to the trials.

    factor: the setting that the question is about; each of its levels gets a finalist.
    grid: the choices that `--search grid` combines; `--search random` and `optuna` draw from these and `search`.
    base: fields of the model and the training that all trials share (see `sweeps.trial.SETTABLE_FIELDS`).
    budget: training FLOPs of a trial where the user gives none.
    answer: one or two sentences from the summary of `sweeps.results.level_summary`.
    """

    name: str
    question: str
    factor: str
    grid: Mapping[str, Choice]
    answer: Callable[[pd.DataFrame, pd.DataFrame], str]
    search: Space = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    budget: float
    seeds: int = 2
    default_search: str = "grid"
    description: str = ""


def main(sweep: Sweep) -> int:
    """Run the sweep as the command line says; returns the exit code.

    0: every trial ended well. 1: some trials failed, the rest is there. 2: it could not start. 130: interrupted.
    """
    console = Console(soft_wrap=False, highlight=False)
    folder: Path | None = None
    try:
        flags = parse(sweep.description or sweep.question, f"python sweeps/{sweep.name}.py")
        run = _Run.resume(sweep, flags, console) if flags.resume else _Run.start(sweep, flags, console)
        folder = run.folder
        return run.execute()
    except UsageError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_USAGE
    except KeyboardInterrupt:
        _say_how_to_resume(console, sweep, folder, "interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say_how_to_resume(console, sweep, folder, "the disk is full")
        return EXIT_TRIALS_FAILED


def _say_how_to_resume(console: Console, sweep: Sweep, folder: Path | None, why: str) -> None:
    console.print(f"\n{why}.", markup=False)
    if folder is not None:
        console.print("What was done is kept. Go on with:", markup=False)
        console.print(f"  python sweeps/{sweep.name}.py --resume {folder}", markup=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One sweep with its flags resolved and its folder made."""

    sweep: Sweep
    flags: Flags
    folder: Path
    record: dict[str, Any]
    console: Console

    @classmethod
    def start(cls, sweep: Sweep, flags: Flags, console: Console) -> "_Run":
        name = flags.name or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        parent = _local_root(flags.storage) / sweep.name
        folder = parent / name
        if folder.exists():
            raise UsageError(f"{folder} exists; go on with it by --resume {folder}, or choose another --name")
        flags = dataclasses.replace(
            flags,
            name=name,
            search=flags.search or sweep.default_search,
            seeds=flags.seeds or (1 if flags.smoke else sweep.seeds),
            budget=flags.budget or (None if flags.epochs or flags.smoke else sweep.budget),
        )
        record = {
            "sweep": sweep.name,
            "question": sweep.question,
            "command": command_line(),
            "status": "running",
            "started": _now(),
            "flags": dataclasses.asdict(flags),
        }
        run = cls(sweep=sweep, flags=flags, folder=folder, record=record, console=console)
        run.check_storage()
        return run

    @classmethod
    def resume(cls, sweep: Sweep, flags: Flags, console: Console) -> "_Run":
        folder = _find_run(sweep, flags)
        try:
            record = json.loads((folder / "sweep.json").read_text())
            kept = record["flags"]
        except OSError as error:
            raise UsageError(f"{folder} is not the folder of a sweep: it has no sweep.json") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / 'sweep.json'} is damaged: {error}") from error
        if record["sweep"] != sweep.name:
            raise UsageError(f"{folder} is a run of sweeps/{record['sweep']}.py, not of {sweep.name}.py")
        # Where it runs may change between attempts; what it computes may not.
        places = {k: getattr(flags, k) for k in ("address", "data_root", "storage") if getattr(flags, k)}
        resumed = Flags(**{**kept, **places, "set": tuple(kept["set"]), "resume": str(folder)})
        return cls(sweep=sweep, flags=resumed, folder=folder, record=record, console=console)

    def check_storage(self) -> None:
        try:
            self.folder.mkdir(parents=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"0" * 4096)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise UsageError(f"results cannot be written to {self.folder}: {error.strerror}; see --storage") from error

    # --- the run ------------------------------------------------------------------------------------------------------

    def execute(self) -> int:
        from sweeps import cluster
        from sweeps.results import finalists, to_frames

        data = self._load_data()
        base = self._base()
        points = self._points()
        plans = self._plan(points, base, data)
        self._check_space(plans)
        cluster.connect(self.flags.address)
        gpus = self._gpus()
        cluster.check_fits(self.flags.cpus_per_trial, gpus)
        self._open_record(base, data)
        self._announce(points, plans, data)

        import ray

        stored = ray.put(data)
        records = self._stage(SEARCH_STAGE, points, base, stored, gpus)
        trials, epochs = to_frames(records)
        extra = self._confirmation_points(trials)
        if extra:
            records = [*records, *self._stage(CONFIRM_STAGE, extra, base, stored, gpus, earlier=records)]
            trials, epochs = to_frames(records)

        unfinished = int((trials["status"] == "unfinished").sum())
        if unfinished:
            self._write(trials, epochs, status="interrupted")
            _say_how_to_resume(self.console, self.sweep, self.folder, f"{unfinished} trials have not ended")
            return EXIT_INTERRUPTED
        chosen = finalists(trials, self.sweep.factor)
        self._measure_test_accuracy(trials, chosen, stored, gpus)
        if len(chosen):
            winner = trials.loc[chosen].sort_values("val_accuracy", ascending=False).iloc[0]
            self._keep_best(winner)
        failed = int((trials["status"] == "failed").sum())
        self._write(trials, epochs, status="completed" if not failed else "completed with failures")
        self._finish(failed)
        return EXIT_TRIALS_FAILED if failed else EXIT_OK

    def _load_data(self) -> Any:
        from core.data import DataError, subset
        from core.readers import load_dataset

        root = Path(self.flags.data_root).expanduser() if self.flags.data_root else None
        try:
            data = load_dataset(self.flags.dataset, root)
        except DataError as error:
            raise UsageError(str(error)) from error
        if not self.flags.smoke:
            return data
        parts = {part: subset(getattr(data, part), _SMOKE_PICTURES) for part in ("train", "val", "test")}
        return dataclasses.replace(data, **parts)

    def _base(self) -> dict[str, Any]:
        """Fields shared by all trials, in rising precedence: the sweep's, the flags', `--set`."""
        flags = self.flags
        base: dict[str, Any] = {"reports": 8, **self.sweep.base}
        if flags.smoke:
            base |= _SMOKE
        if flags.epochs:
            base |= {"epochs": flags.epochs, "images": None, "reports": None}
        elif flags.budget:
            base |= {"flops": flags.budget, "images": None}
        if flags.scheduler == "asha":
            base["schedule"] = "trapezoid"
        return base | self._overrides()

    def _overrides(self) -> dict[str, Any]:
        from sweeps.trial import SETTABLE_FIELDS

        overrides = parse_overrides(self.flags.set)
        for name in overrides:
            if name in (*self.sweep.grid, "seed", "flops", "epochs", "images"):
                raise UsageError(f"--set {name}: this sweep or another flag decides it")
            if name not in SETTABLE_FIELDS:
                raise UsageError(f"--set {name}: unknown; there are: {', '.join(sorted(SETTABLE_FIELDS))}")
        return overrides

    def _space(self) -> dict[str, Any]:
        """What random search and Optuna draw from: all that `--set` has not fixed."""
        overrides = parse_overrides(self.flags.set)
        return {k: v for k, v in {**self.sweep.grid, **self.sweep.search}.items() if k not in overrides}

    def _points(self) -> list[Point]:
        """The trials of the first stage; for Optuna a stand-in with every level of the factor, as it chooses later."""
        flags = self.flags
        if flags.search == "grid":
            return grid_points(self.sweep.grid, flags.seeds)
        if flags.search == "random":
            return random_points(self._space(), flags.num_samples, flags.seeds)
        middle = {name: random_points({name: domain}, 1, 1)[0][name] for name, domain in self._space().items()}
        levels = self.sweep.grid[self.sweep.factor].values
        return [middle | {self.sweep.factor: level, "seed": 0} for level in levels]

    def _plan(self, points: Sequence[Point], base: Mapping[str, Any], data: Any) -> dict[Any, Any]:
        """Cost of the first setting of each level; a level that cannot be built is None and will be a failed row.

        Raises:
            UsageError: no level can be built, so that not one trial would train.
        """
        import warnings

        from core.models import WastefulModelWarning
        from core.train import plan
        from sweeps.trial import configure

        plans: dict[Any, Any] = {}
        problem: ValueError | None = None
        for point in points:
            level = point[self.sweep.factor]
            if level in plans:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", WastefulModelWarning)
                    plans[level] = plan(configure({**base, **point}, data), len(data.train))
            except (ValueError, TypeError) as error:
                plans[level] = None
                problem = ValueError(str(error))
        if problem is not None and not any(plans.values()):
            raise UsageError(f"no trial can be trained: {problem}")
        return plans

    def _check_space(self, plans: Mapping[Any, Any]) -> None:
        """Weights, their average and AdamW's two moments, in float32, two checkpoints a trial."""
        params = max(plan.num_params for plan in plans.values() if plan)
        count = self.flags.num_samples if self.flags.search == "optuna" else len(self._points())
        needed = count * params * 4 * 5 * 2
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UsageError(
                f"the checkpoints of {count} trials need about {needed / 2**20:,.0f} MiB and {self.folder} "
                f"has {free / 2**20:,.0f} MiB free; make room or name another --storage"
            )

    def _gpus(self) -> float:
        from sweeps import cluster

        if self.flags.gpus_per_trial is not None:
            return self.flags.gpus_per_trial
        return 1.0 if cluster.has_gpus() else 0.0

    # --- stages -------------------------------------------------------------------------------------------------------

    def _stage(
        self,
        stage: str,
        points: list[Point],
        base: Mapping[str, Any],
        data: Any,
        gpus: float,
        earlier: Sequence[Any] = (),
    ) -> list[Any]:
        """Run or go on with one Tune experiment; the records of its trials, also of those that were interrupted."""
        from ray import tune

        from sweeps.observer import Observer
        from sweeps.progress import ProgressView
        from sweeps.results import to_frames
        from sweeps.study import StudyWriter, distributions
        from sweeps.trial import TrialSettings, run_trial

        searching = stage == SEARCH_STAGE and self.flags.search == "optuna"
        total = self.flags.num_samples if searching else len(points)
        location = f"{self._storage()}/{stage}"
        # Tune writes the whole state at each snapshot, so that many trials want fewer of them.
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(max(1, total // 100))
        study = StudyWriter(
            self.flags.study_url or f"sqlite:///{self.folder.resolve() / 'study.db'}",
            f"{self.sweep.name}/{self.flags.name}",
            distributions(self._space() if searching else {}, points),
        )

        def on_records(records: list[Any]) -> None:
            study.add(records)
            self._write(*to_frames([*earlier, *records]), status="running")

        settings = TrialSettings(base=base, folder=location, num_threads=self.flags.cpus_per_trial)
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, data=data, settings=settings),
            {"CPU": self.flags.cpus_per_trial, "GPU": gpus},
        )
        with ProgressView(self.console, total) as view:
            observer = Observer(view, on_records, stage)
            if tune.Tuner.can_restore(location):
                tuner = tune.Tuner.restore(location, trainable, resume_errored=True)
            else:
                tuner = self._new_tuner(stage, trainable, points, total, searching, gpus)
            tuner.fit()
        return observer.records

    def _new_tuner(
        self, stage: str, trainable: Any, points: list[Point], total: int, searching: bool, gpus: float
    ) -> Any:
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        from sweeps import cluster
        from sweeps.trial import trial_name

        space: dict[str, Any]
        if searching:
            space, search_alg = {"seed": 0}, self._optuna()
        else:
            # Every sample is one of the given points; the choices only tell Tune which names there are.
            space = {name: tune.choice([point[name] for point in points]) for name in points[0]}
            search_alg = BasicVariantGenerator(points_to_evaluate=[dict(point) for point in points])
        concurrent = cluster.concurrent_trials(self.flags.cpus_per_trial, gpus)

        def folder_name(trial: Any) -> str:
            # A searcher may suggest a setting twice; a grid never holds one twice and finds its folder by its setting.
            name = trial_name(trial.config)
            return f"{name},{trial.trial_id}" if searching else name

        return tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                num_samples=total,
                search_alg=search_alg,
                scheduler=self._scheduler() if stage == SEARCH_STAGE else None,
                max_concurrent_trials=concurrent if searching else None,
                reuse_actors=True,
                trial_dirname_creator=folder_name,
            ),
            run_config=tune.RunConfig(
                name=stage,
                storage_path=self._storage(),
                verbose=0,
                callbacks=self._callbacks(),
                failure_config=tune.FailureConfig(max_failures=MAX_MACHINE_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            ),
        )

    def _callbacks(self) -> list[Any]:
        from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

        from sweeps.observer import Observer

        callbacks: list[Any] = [Observer.current, JsonLoggerCallback(), TBXLoggerCallback()]
        if self.flags.mlflow_url:
            try:
                import mlflow  # noqa: F401
            except ImportError as error:
                raise UsageError("--mlflow-url needs MLflow: pip install 'patchwork-vision[mlflow]'") from error
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callbacks.append(MLflowLoggerCallback(tracking_uri=self.flags.mlflow_url, experiment_name=self.sweep.name))
        return callbacks

    def _optuna(self) -> Any:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        from sweeps.study import to_distribution

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return OptunaSearch(
            {name: to_distribution(domain) for name, domain in self._space().items()},
            metric="val_accuracy",
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=0, constant_liar=True),
        )

    def _scheduler(self) -> Any:
        if self.flags.scheduler == "none":
            return None
        from ray.tune.schedulers import ASHAScheduler

        # By our own count of evaluations, which a resumed trial keeps; Tune's starts again.
        reports = self._base()["reports"] or math.ceil(self.flags.epochs or 1)
        return ASHAScheduler(time_attr="epoch", max_t=max(2, reports), grace_period=1, reduction_factor=3)

    def _confirmation_points(self, trials: pd.DataFrame) -> list[Point]:
        """After Optuna, which trains each setting once: the finalists with the seeds they have not had."""
        from sweeps.results import finalists

        if self.flags.search != "optuna" or self.flags.seeds == 1 or (trials["status"] == "unfinished").any():
            return []
        names = [c for c in trials.columns if c.startswith("config/")]
        chosen = trials.loc[finalists(trials, self.sweep.factor), names].rename(columns=lambda c: c.removeprefix("config/"))
        return [
            {**setting, "seed": seed}
            for setting in chosen.to_dict("records")
            for seed in range(self.flags.seeds)
            if seed != setting["seed"]
        ]

    # --- what is left behind ------------------------------------------------------------------------------------------

    def _measure_test_accuracy(self, trials: pd.DataFrame, chosen: pd.Index, data: Any, gpus: float) -> None:
        import ray

        from sweeps.trial import test_accuracy

        measure = ray.remote(test_accuracy).options(num_cpus=self.flags.cpus_per_trial, num_gpus=gpus)
        running = {
            row: measure.remote(f"{self._storage()}/{trials.at[row, 'checkpoint']}", data, self.flags.cpus_per_trial)
            for row in chosen
        }
        for row, accuracy in running.items():
            trials.at[row, "test_accuracy"] = ray.get(accuracy)

    def _keep_best(self, winner: pd.Series) -> None:
        from sweeps.trial import copy_checkpoint

        best = self.folder / "best"
        with tempfile.TemporaryDirectory(dir=self.folder) as fresh:
            copy_checkpoint(f"{self._storage()}/{winner['checkpoint']}", Path(fresh) / "best", float(winner["test_accuracy"]))
            shutil.rmtree(best, ignore_errors=True)
            (Path(fresh) / "best").rename(best)

    def _open_record(self, base: Mapping[str, Any], data: Any) -> None:
        from core.runtime import describe_machine, source_commit

        self.record.update(
            base=dict(base),
            factor=self.sweep.factor,
            space={name: dataclasses.asdict(domain) for name, domain in self._space().items()}
            if self.flags.search != "grid"
            else {name: dataclasses.asdict(domain) for name, domain in self.sweep.grid.items()},
            dataset={
                "name": data.name,
                "source": data.source,
                "train": len(data.train),
                "val": len(data.val),
                "test": len(data.test),
                "classes": list(data.class_names),
            },
            machine=describe_machine(),
            commit=source_commit(),
        )
        self._write_record("running")
        latest = self.folder.parent / "latest"
        with contextlib.suppress(FileNotFoundError):
            latest.unlink()
        latest.symlink_to(self.folder.name)

    def _write(self, trials: pd.DataFrame, epochs: pd.DataFrame, status: str) -> None:
        from sweeps.results import EPOCHS_FILE, TRIALS_FILE, write_frame

        write_frame(trials, self.folder / TRIALS_FILE)
        write_frame(epochs, self.folder / EPOCHS_FILE)
        self._write_record(status)

    def _write_record(self, status: str) -> None:
        from sweeps.results import write_json

        self.record["status"] = status
        if status.startswith("completed"):
            self.record["finished"] = _now()
        write_json(self.record, self.folder / "sweep.json")

    def _announce(self, points: Sequence[Point], plans: Mapping[Any, Any], data: Any) -> None:
        from rich.table import Table

        from sweeps.progress import format_count

        say = self.console.print
        count = self.flags.num_samples if self.flags.search == "optuna" else len(points)
        say(f"[bold]{self.sweep.question}[/bold]")
        say(
            f"{count} trials ({self.flags.search} search) on {data.name}: {len(data.train):,} training, {len(data.val):,} validation, "
            f"{len(data.test):,} test pictures ({data.source})"
        )
        table = Table(box=None, title="Cost of a trial", title_justify="left")
        for heading in (self.sweep.factor, "GFLOPs a picture", "pictures", "passes", "total FLOPs", "parameters"):
            table.add_column(heading, justify="right")
        batch = self._base().get("batch_size", 256)
        for level, plan in plans.items():
            if plan is None:
                table.add_row(str(level), "cannot be built")
                continue
            images = plan.num_steps * batch
            table.add_row(
                str(level),
                f"{plan.flops_per_image / 1e9:.3f}",
                f"{images:,}",
                f"{images / len(data.train):.1f}",
                f"{images * plan.flops_per_image:.2g}",
                format_count(plan.num_params),
            )
        say(table)
        say(f"results: {self.folder}\n", markup=False, soft_wrap=True)

    def _finish(self, failed: int) -> None:
        from sweeps.report import answer_of, render, summary_table
        from sweeps.results import load

        results = load(self.folder)
        render(results, self.sweep.answer)
        self._publish()
        say = self.console.print
        if failed:
            errors = results.trials.loc[results.trials["status"] == "failed", ["trial", "error"]]
            say(f"\n{failed} of {len(results.trials)} trials failed:", markup=False)
            for trial, error in errors.itertuples(index=False):
                say(f"  {trial}: {error}", markup=False, soft_wrap=True)
        if (self.folder / "best").is_dir():
            say("")
            say(summary_table(results))
            say(answer_of(results, self.sweep.answer), markup=False)
        say("")
        say(f"results: {self.folder} (report.html, report.md, trials.parquet, epochs.parquet)", markup=False, soft_wrap=True)
        if (self.folder / "best").is_dir():
            say(f"serve the winner: serve run serve.config classifier={self.folder / 'best'}", markup=False, soft_wrap=True)

    # --- storage ------------------------------------------------------------------------------------------------------

    def _storage(self) -> str:
        """Where Tune keeps the stages: the results folder itself, or its twin under a URI."""
        if "://" in self.flags.storage:
            return f"{self.flags.storage.rstrip('/')}/{self.sweep.name}/{self.folder.name}"
        return str(self.folder.resolve())

    def _publish(self) -> None:
        """Copy frames, reports and figures beside the trials where those are kept under a URI."""
        if "://" not in self.flags.storage:
            return
        from sweeps.trial import upload

        upload(self.folder, self._storage())


def _local_root(storage: str) -> Path:
    return Path("results" if "://" in storage else storage).expanduser()


def _find_run(sweep: Sweep, flags: Flags) -> Path:
    if flags.resume != "latest":
        folder = Path(str(flags.resume)).expanduser()
    else:
        folder = _local_root(flags.storage) / sweep.name / "latest"
    if not folder.is_dir():
        raise UsageError(f"there is nothing to resume: {folder} is not a folder")
    resolved = folder.resolve()
    # The plain path where there is one reads better in messages than an absolute one.
    return folder.parent / resolved.name if folder.is_symlink() else folder


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run_and_exit(sweep: Sweep) -> None:
    """What a sweep file calls when it is run as a program."""
    sys.exit(main(sweep))
