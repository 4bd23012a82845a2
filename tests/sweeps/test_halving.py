import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from sweeps.halving import SuccessiveHalving

REPORTS = 8


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # of a run that is cut short they leave files open
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def train(config: dict[str, Any]) -> None:
    """A trial whose accuracy grows by its quality at every report, and which goes on from its checkpoint."""
    epoch = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            epoch = json.loads((Path(folder) / "epoch.json").read_text())
    while epoch < config["reports"]:
        epoch += 1
        with (Path(config["log"]) / f"{config['quality']}").open("a") as log:
            log.write(f"{epoch}\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "epoch.json").write_text(json.dumps(epoch))
            if epoch == config["fails_at"]:
                tune.report({"epoch": -1, "val_accuracy": float("nan"), "error": "the loss is nan"})
                return
            metrics = {"epoch": epoch, "val_accuracy": epoch * config["quality"], "progress": epoch / config["reports"]}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


class Interruption(tune.Callback):
    """Ctrl-C, the first time that the best trial has come so far."""

    def __init__(self, report: int | None) -> None:
        self._report = report

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        done = Path(trial.config["log"]) / "interrupted"  # Tune restores this object as it was in the beginning
        if trial.config["quality"] == 9 and result["epoch"] == self._report and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGINT)


def tuner(folder: Path, points: list[dict[str, Any]], interrupt_at: int | None = None) -> tune.Tuner:
    (folder / "log").mkdir()
    points = [{"reports": REPORTS, "fails_at": 0, "log": str(folder / "log"), **point} for point in points]
    return tune.Tuner(
        train,
        param_space={name: tune.choice([point[name] for point in points]) for name in points[0]},
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            num_samples=len(points),
            search_alg=BasicVariantGenerator(points_to_evaluate=points),
            scheduler=SuccessiveHalving(REPORTS),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="halving",
            storage_path=str(folder),
            verbose=0,
            callbacks=[Interruption(interrupt_at)],
        ),
    )


def reports_by_quality(folder: Path) -> dict[int, list[int]]:
    """What was trained: the reports of every trial, in their order."""
    return {int(file.name): list(map(int, file.read_text().split())) for file in (folder / "log").glob("[0-9]*")}


@pytest.mark.usefixtures("two_cpus")
def test_the_best_third_goes_on_at_every_rung_whenever_it_comes(tmp_path: Path) -> None:
    results = tuner(tmp_path, [{"quality": quality} for quality in range(1, 19)]).fit()  # the best come last
    trained = {quality: len(reports) for quality, reports in reports_by_quality(tmp_path).items()}
    assert trained == {**dict.fromkeys(range(1, 13), 1), **dict.fromkeys(range(13, 17), 3), 17: 8, 18: 8}
    assert results.num_terminated == 18 and not results.errors
    assert sum(trained.values()) == REPORTS * SuccessiveHalving(REPORTS).work(18)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_comes_to_the_end_however_few_there_are(tmp_path: Path, count: int) -> None:
    tuner(tmp_path, [{"quality": quality} for quality in range(count, 0, -1)]).fit()
    trained = reports_by_quality(tmp_path)
    assert trained.pop(count) == list(range(1, REPORTS + 1))
    assert all(reports == [1] for reports in trained.values())


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_in_place_of_a_trial_that_fails_another_comes_to_the_end(tmp_path: Path, fails_at: int) -> None:
    points = [{"quality": quality, "fails_at": fails_at if quality == 9 else 0} for quality in range(9, 0, -1)]
    tuner(tmp_path, points).fit()
    trained = {quality: len(reports) for quality, reports in reports_by_quality(tmp_path).items()}
    assert trained[9] == fails_at and trained[8] == REPORTS


@pytest.mark.usefixtures("two_cpus")
def test_a_trial_that_is_shorter_ends_at_its_end(tmp_path: Path) -> None:
    points = [{"quality": 9, "reports": 3}, *({"quality": quality} for quality in range(1, 9))]
    results = tuner(tmp_path, points).fit()
    assert reports_by_quality(tmp_path)[9] == [1, 2, 3]
    assert results.num_terminated == 9 and not results.errors


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("report", [1, 2, 3, 5])
def test_a_restored_run_trains_nothing_twice_and_lets_the_same_ones_on(tmp_path: Path, report: int) -> None:
    tuner(tmp_path, [{"quality": quality} for quality in range(1, 10)], interrupt_at=report).fit()
    assert reports_by_quality(tmp_path)[9][-1] < REPORTS
    tune.Tuner.restore(str(tmp_path / "halving"), train).fit()
    trained = reports_by_quality(tmp_path)
    assert {quality: max(reports) for quality, reports in trained.items()} == {
        **dict.fromkeys(range(1, 7), 1),
        **dict.fromkeys((7, 8), 3),
        9: 8,
    }
    again = sum(len(reports) - len(set(reports)) for reports in trained.values())
    assert again <= 2  # what ran when the run was cut short
