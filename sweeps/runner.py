"""Runs a sweep: the only place that builds a `Tuner`. Reads top-down from `run_and_exit`."""

import dataclasses
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
from ray import ObjectRef, tune
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

from core.data import DataError, Dataset, subset
from core.distill import WeakTeacherWarning
from core.readers import load_dataset
from core.train_config import Plan
from nodes import command
from nodes.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UsageError, say_error
from nodes.growth import check_fits, has_gpus
from sweeps import cluster, console, run_folder
from sweeps.flags import Flags, parse
from sweeps.halving import SuccessiveHalving
from sweeps.mlflow_logger import mlflow_logger
from sweeps.observer import Observer
from sweeps.progress import ProgressView
from sweeps.question import SMOKE_PICTURES, Sweep, plans_by_level, resolve, seeds_of
from sweeps.report import render
from sweeps.results import ResultsError, TrialRecord, finalists, levels, load, to_frames
from sweeps.run_folder import RunFolder
from sweeps.searcher import DistinctOptunaSearch
from sweeps.space import Point
from sweeps.storage import has_whole_snapshot, patiently, storage_failure
from sweeps.study import StudyWriter, distributions
from sweeps.teacher import with_teacher
from sweeps.trial import TrialSettings, folder_name, measure_test_accuracy, run_trial

# How often a trial is tried again, from its last checkpoint, when its machine or process dies; `Observer` counts anew
# with every epoch that the trial gets on.
MAX_MACHINE_FAILURES = 3
SEARCH_STAGE, CONFIRM_STAGE = "trials", "confirm"


def run_and_exit(sweep: Sweep) -> None:
    """What a sweep file calls when it is run as a program."""
    command.tell_plainly(WeakTeacherWarning)
    sys.exit(main(sweep, parse(sweep.description, f"python sweeps/{sweep.name}.py")))


def main(sweep: Sweep, flags: Flags) -> int:
    """Run the sweep; returns the exit code.

    0: every trial ended well. 1: some trials failed, or storage did for too long; the rest is there. 2: it could not
    start. 130: interrupted; `--resume` goes on.
    """
    folder: Path | None = None
    try:
        run = run_folder.reopen(sweep, flags) if flags.resume else run_folder.start(sweep, flags)
        with run.held():
            try:
                runner = Runner(sweep, run, resuming=flags.resume is not None)
            except BaseException:
                if not flags.resume:
                    run.discard()
                raise
            folder = run.path
            return runner.finish() if flags.finish else runner.execute()
    except UsageError as error:
        say_error(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        console.say_how_to_resume(sweep.name, folder, "interrupted")
        if folder is not None:
            console.say_how_to_finish(sweep.name, folder)
        return EXIT_INTERRUPTED
    except Exception as error:
        why = storage_failure(error)
        if why is None:
            raise
        console.say_how_to_resume(sweep.name, folder, why)
        return EXIT_FAILED


class Runner:
    """One run of a sweep, from its flags to its report. Making one checks all that can be checked beforehand."""

    def __init__(self, sweep: Sweep, run: RunFolder, *, resuming: bool = False) -> None:
        """
        Raises:
            UsageError: the flags, the data, the disk, the cluster or a database rule the sweep out.
        """
        self.sweep, self.run, self.flags = sweep, run, run.flags
        self.data = _load_data(run.flags)
        self.resolved = with_teacher(resolve(sweep, run.flags), run.flags, self.data, run.path)
        self.plans = plans_by_level(sweep, self.resolved, self.data)
        if not resuming:  # else most of it is there already
            largest = max(plan.num_params for plan in self.plans.values() if plan)
            run.check_free_space(self.resolved.num_trials, largest)
        self.study = StudyWriter(
            self.flags.study_url or f"sqlite:///{run.path.resolve() / 'study.db'}",
            f"{sweep.name}/{self.flags.name}",
            distributions(self.resolved.space),
        )
        self.mlflow = mlflow_logger(self.flags.mlflow_url, sweep.name)
        run.share(is_new=not resuming)
        cluster.connect(self.flags.address)
        gpus = self.flags.gpus_per_trial
        self.gpus = gpus if gpus is not None else float(has_gpus())
        check_fits("trial", self.flags.cpus_per_trial, self.gpus)
        if run.keeps_trials_here:
            cluster.check_sees(run.path.resolve())

    def execute(self) -> int:
        self.run.open(self.sweep, self.resolved, self.data)
        console.announce(self.sweep, self.flags, self.resolved, self.plans, self.data, self.run.path)
        stored = ray.put(self.data)
        del self.data  # from here on there is one copy, in the object store
        records = self.stage(SEARCH_STAGE, self.resolved.points, stored)
        if confirming := self._confirmation_points(records):
            records = [*records, *self.stage(CONFIRM_STAGE, confirming, stored, earlier=records)]
        trials, epochs = to_frames(records)

        if self._is_unfinished(trials):
            patiently(lambda: self.run.write(trials, epochs, status="interrupted"))
            raise KeyboardInterrupt
        return self._conclude(trials, epochs, stored)

    def finish(self) -> int:
        """Train no more: conclude from the trials that have ended."""
        try:
            results = load(self.run.path)
        except ResultsError as error:
            raise UsageError(str(error)) from error
        self.run.check_same(self.sweep, self.resolved, self.data)
        if "completed" not in set(results.trials["status"]):
            raise UsageError("no trial has been trained to its end yet; go on with --resume, without --finish")
        return self._conclude(results.trials, results.epochs, ray.put(self.data))

    def _is_unfinished(self, trials: pd.DataFrame) -> bool:
        return "unfinished" in set(trials["status"]) or len(trials) < self.resolved.num_trials

    def _conclude(self, trials: pd.DataFrame, epochs: pd.DataFrame, data: ObjectRef[Dataset]) -> int:
        chosen = finalists(trials, self.sweep.factor)
        self._measure_test_accuracy(trials, chosen, data)
        if len(chosen):
            winner = levels(trials, self.sweep.factor)[0].value
            of_winner = trials.loc[chosen][trials.loc[chosen, f"config/{self.sweep.factor}"] == winner]
            best = of_winner.sort_values("val_accuracy", ascending=False).iloc[0].to_dict()
            patiently(lambda: self.run.keep_best(best))
        has_failures = "failed" in set(trials["status"])
        status = "completed with failures" if has_failures else "completed"
        if self._is_unfinished(trials):
            status = "finished early"
        patiently(lambda: self.run.write(trials, epochs, status))
        self._report()
        return EXIT_FAILED if has_failures else EXIT_OK

    def stage(
        self, stage: str, points: list[Point], data: ObjectRef[Dataset], earlier: Sequence[TrialRecord] = ()
    ) -> list[TrialRecord]:
        """Run or go on with one Tune experiment; the record of every trial, also of those that were interrupted."""
        searching = stage == SEARCH_STAGE and self.flags.search == "optuna"
        total = self.resolved.num_trials if stage == SEARCH_STAGE else len(points)
        location = f"{self.run.storage}/{stage}"
        # Tune forgets what came after its last snapshot. At each it writes all trials and copies all their small files:
        # many trials want fewer, and so does an object store, which bills each file.
        shortest = 1 if self.run.keeps_trials_here else 15
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(max(shortest, total // 100))
        os.environ.pop("TUNE_MAX_PENDING_TRIALS_PG", None)
        if searching:
            at_once = cluster.concurrent_trials(self.flags.cpus_per_trial, self.gpus)
            DistinctOptunaSearch.at_once = at_once  # of this cluster, also when the run goes on on another
            os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)  # else one trial at a time waits for a node

        def on_records(records: list[TrialRecord]) -> None:
            self.study.add(records)
            self.run.write(*to_frames([*earlier, *records]), status="running")

        settings = TrialSettings(
            recipe=self.resolved.recipe,
            folder=location,
            start_folder=str(Path.cwd()),
            num_threads=self.flags.cpus_per_trial,
        )
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, data=data, settings=settings),
            {"cpu": self.flags.cpus_per_trial, "gpu": self.gpus},
        )
        scheduler = scheduler_of(self.flags, self.plans.values()) if stage == SEARCH_STAGE else None
        with ProgressView(command.OUT, total, scheduler.work(total) if scheduler else None) as view:
            observer = Observer(view, on_records, location)
            if tune.Tuner.can_restore(location) and has_whole_snapshot(location):
                tuner = tune.Tuner.restore(location, trainable, resume_errored=True)
            else:
                tuner = self._new_tuner(stage, trainable, observer, points, total, searching, scheduler)
            tuner.fit()
        return observer.settle()

    def _new_tuner(
        self,
        stage: str,
        trainable: Any,
        observer: Observer,
        points: list[Point],
        total: int,
        searching: bool,
        scheduler: SuccessiveHalving | None,
    ) -> tune.Tuner:
        if searching:
            param_space, search_alg = {"seed": self.flags.first_seed}, self._optuna()
        else:
            # Every sample is one of the given points; the choices only tell Tune which names there are.
            param_space = {name: tune.choice([point[name] for point in points]) for name in points[0]}
            search_alg = BasicVariantGenerator(points_to_evaluate=[dict(point) for point in points])

        def name_folder(trial: Any) -> str:
            # A searcher may suggest a setting twice; a grid has each once and finds its folder again by the setting.
            name = folder_name(trial.config)
            return f"{name},{trial.trial_id}" if searching else name

        return tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                num_samples=total,
                search_alg=search_alg,
                scheduler=scheduler,
                reuse_actors=True,
                trial_dirname_creator=name_folder,
            ),
            run_config=tune.RunConfig(
                name=stage,
                storage_path=self.run.storage,
                verbose=0,
                callbacks=[observer, JsonLoggerCallback(), TBXLoggerCallback(), self.mlflow],
                failure_config=tune.FailureConfig(max_failures=MAX_MACHINE_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            ),
        )

    def _optuna(self) -> Any:
        logging.getLogger("optuna").setLevel(logging.ERROR)
        return DistinctOptunaSearch(
            self.resolved.space,
            by_first_report=self.flags.scheduler == "asha",
            metric="val_accuracy",
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=self.flags.search_seed, constant_liar=True),
        )

    def _confirmation_points(self, records: Sequence[TrialRecord]) -> list[Point]:
        """After Optuna, which trains each setting once: the finalists with the seeds they have not had."""
        trials, _ = to_frames(records)
        if self.flags.search != "optuna" or self._is_unfinished(trials):
            return []
        by_id = {record.trial_id: record.point for record in records}
        chosen = [by_id[i] for i in trials.loc[finalists(trials, self.sweep.factor), "trial_id"]]
        return [{**point, "seed": seed} for point in chosen for seed in seeds_of(self.flags) if seed != point["seed"]]

    def _measure_test_accuracy(self, trials: pd.DataFrame, chosen: pd.Index, data: ObjectRef[Dataset]) -> None:
        threads = self.flags.cpus_per_trial
        measure = ray.remote(measure_test_accuracy).options(num_cpus=threads, num_gpus=self.gpus)
        running = {
            row: measure.remote(f"{self.run.storage}/{trials.at[row, 'checkpoint']}", data, threads) for row in chosen
        }
        for row, accuracy in running.items():
            trials.at[row, "test_accuracy"] = ray.get(accuracy)

    def _report(self) -> None:
        results = load(self.run.path)
        try:
            render(results, self.sweep.answer)
        finally:  # a figure that cannot be drawn must not keep the results from where they belong
            patiently(self.run.publish)
        console.conclude(results, self.sweep.answer, self.run)


def scheduler_of(flags: Flags, plans: Iterable[Plan | None]) -> SuccessiveHalving | None:
    """What stops trials early, if the flags ask for it, on the way to the last report of the longest plan."""
    if flags.scheduler == "none":
        return None
    return SuccessiveHalving(max(len(plan.report_steps) for plan in plans if plan))


def _load_data(flags: Flags) -> Dataset:
    try:
        data = load_dataset(flags.dataset, Path(flags.data_root).expanduser() if flags.data_root else None)
    except DataError as error:
        raise UsageError(str(error)) from error
    if not flags.smoke:
        return data
    train, val, test = (subset(part, SMOKE_PICTURES) for part in (data.train, data.val, data.test))
    return dataclasses.replace(data, train=train, val=val, test=test)
