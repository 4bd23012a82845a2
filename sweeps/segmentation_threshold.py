"""Which threshold rule, and which weights of presence and candidates, suit these models and these pictures?

Tunes the numbers of `core.segment.calibration` on a few labelled pictures: generated scenes, or a folder in COCO's
instance format, whose category names are the prompts. Optuna draws settings, Ray Tune tries them side by side, presence
is fitted by logistic regression within each trial; the best setting is then scored on pictures that it was not chosen
on, fitted to all of them, and written to a file that `Calibration.load`, the service and batch jobs read.

    python sweeps/segmentation_threshold.py                                             # demo weights, generated scenes
    python sweeps/segmentation_threshold.py --labels instances.json --images photos/ --preset tiny
    python sweeps/segmentation_threshold.py --clipseg FOLDER --sam2 FOLDER --num-samples 80
    python sweeps/segmentation_threshold.py --damage-weight 0.3                         # bear poor heatmaps as well
    python sweeps/segmentation_threshold.py --scenes 6 --num-samples 3                  # does it run here?
    python sweeps/segmentation_threshold.py --resume results/segmentation_threshold/NAME
"""

import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch
import tyro
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from core.runtime import describe_machine, source_commit
from core.segment.calibration import Calibration
from core.segment.evaluation import calibrate, damaged_iou, score
from core.segment.labelled import Labelled, labelled_scene, read_coco
from core.segment.pipeline import Segmenter
from core.segment.presets import PRESETS, checkpoints_of
from nodes.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    UsageError,
    command_line,
    say,
    say_error,
)
from nodes.growth import check_fits
from sweeps import cluster, console
from sweeps.results import write_frame, write_json

# Neither the seeds trained on nor those of the benchmark.
CALIBRATION_SEED = 20_000_000
OBJECTIVE = "objective"
DAMAGED_IOU = "damaged_iou"
_EVERY = {"absent": 1.0, "ap50": 1.0, "boundary_f": 0.5, "found": 1.0, "mean_iou": 2.0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the sweep."""

    preset: str = "demo"
    """Models to calibrate: demo, tiny, small, base or large."""
    clipseg: str | None = None
    """CLIPSeg checkpoint instead of the preset's: a name on the hub or a folder."""
    sam2: str | None = None
    """SAM 2 checkpoint instead of the preset's."""
    start: Path | None = None
    """Calibration to start from: its numbers are tried first and its rivals kept. The preset's own if not given."""
    labels: Path | None = None
    """Labelled pictures: a JSON file in COCO's instance format. Generated scenes if it is not given."""
    images: Path | None = None
    """Folder that the pictures of --labels are in; the JSON file's own if it is not given."""
    scenes: int = 120
    """Generated scenes, where there are no labels. Half of all pictures choose the setting, the others judge it."""
    num_samples: int = 40
    """Settings drawn by Optuna; the first is the calibration to start from."""
    damage_weight: float = 0.0
    """How much the answers to blurred, shifted, shrunken, noisy and spotted heatmaps count beside those to whole ones,
    from 0 for not at all (a sixth of the work) to 1."""
    cpus_per_trial: int = 1
    """CPUs of a trial."""
    gpus_per_trial: float = 0
    """GPUs of a trial, fractions allowed."""
    address: str | None = None
    """Ray cluster to run on; started here if neither this nor RAY_ADDRESS is given."""
    storage: Path = Path("results")
    """Folder for results."""
    name: str | None = None
    """Name of this run's folder; the time of the start if it is not given."""
    resume: Path | None = None
    """Go on with a run that was interrupted: its folder. Its own flags hold, but for --address."""
    output: Path | None = None
    """Copy the calibration here as well."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"--preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for flag, low in (("scenes", 4), ("num_samples", 1), ("cpus_per_trial", 1), ("gpus_per_trial", 0)):
            if getattr(self, flag) < low:
                raise UsageError(f"--{flag.replace('_', '-')} must be at least {low}, got {getattr(self, flag)}")
        if not 0 <= self.damage_weight <= 1:
            raise UsageError(f"--damage-weight must be from 0 to 1, got {self.damage_weight}")
        for flag in ("labels", "start"):
            file = getattr(self, flag)
            if file is not None and not file.is_file():
                raise UsageError(f"--{flag} {file} is no file")
        if str(self.storage).startswith(("s3:/", "gs:/")):
            raise UsageError(f"--storage {self.storage}: this sweep keeps its results in a folder that all nodes reach")
        # Trials may run in another folder than this one.
        for flag in ("labels", "images"):
            if (path := getattr(self, flag)) is not None:
                object.__setattr__(self, flag, path.resolve())
        for flag in ("clipseg", "sam2"):
            if (name := getattr(self, flag)) is not None and Path(name).exists():
                object.__setattr__(self, flag, str(Path(name).resolve()))

    def load_models(self, calibration: Calibration | None = None) -> Segmenter:
        """The models to calibrate."""
        return Segmenter.from_preset(self.preset, clipseg=self.clipseg, sam2=self.sam2, calibration=calibration)

    def load_start(self) -> Calibration:
        """The calibration to start from."""
        if self.start is not None:
            return Calibration.load(self.start)
        return checkpoints_of(self.preset, self.clipseg, self.sam2).calibration()

    def load_pictures(self) -> list[Labelled]:
        """The labelled pictures, those to choose on and those to judge on mixed."""
        if self.labels is not None:
            return read_coco(self.labels, self.images or self.labels.parent)
        return [labelled_scene(seed) for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + self.scenes)]


def search_space() -> dict[str, Any]:
    """Ranges of what is tuned; presence is fitted within each trial."""
    return {
        "temperature": tune.loguniform(0.5, 2.0),
        "floor": tune.uniform(0.05, 0.4),
        "seed": tune.uniform(0.2, 0.8),
        "faint": tune.loguniform(1e-5, 0.1),
        "min_area": tune.loguniform(0.01, 0.4),
        "neck": tune.uniform(0.3, 0.8),
        "zoom_below": tune.uniform(0.0, 0.8),
        "zoom_context": tune.uniform(1.4, 2.6),
        "closer_weight": tune.uniform(0.2, 1.0),
        "predicted_iou_power": tune.uniform(0.0, 4.0),
        "stability_power": tune.uniform(0.0, 2.0),
        "leakage_weight": tune.uniform(0.0, 1.0),
        "offset_tolerance": tune.uniform(0.1, 0.8),
        "size_tolerance": tune.uniform(0.1, 0.8),
        "min_ratio": tune.uniform(0.1, 0.95),
        "min_iou": tune.uniform(0.1, 0.8),
        "blend": tune.uniform(0.0, 1.0),
        "rounds": tune.randint(0, 3),
    }


def objective(scores: dict[str, Any]) -> float:
    """What is maximised where heatmaps are whole: a weighted mean of the five scores, in [0, 1]."""
    return sum(weight * scores[name] for name, weight in _EVERY.items()) / sum(_EVERY.values())


def make_trial(settings: Settings, num_threads: int) -> Any:
    """A trial that keeps models, pictures and their encodings for the next one in the same process."""

    start = settings.load_start()

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            torch.set_num_threads(num_threads)
            self.numbers = config
            self.segmenter = settings.load_models()
            self.labelled = settings.load_pictures()[::2]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.numbers = new_config
            return True

        def step(self) -> dict[str, Any]:
            tried = dataclasses.replace(start, **_rounded(self.numbers))
            fitted, scores = calibrate(self.segmenter, self.labelled, tried)
            numbers = dataclasses.asdict(scores)
            value = objective(numbers)
            if settings.damage_weight:
                numbers[DAMAGED_IOU] = damaged_iou(self.segmenter, self.labelled, fitted)
                value += settings.damage_weight * (numbers[DAMAGED_IOU] - value)
            return {**numbers, OBJECTIVE: value, "calibration": dataclasses.asdict(fitted), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """A trial is one step: there is nothing to keep."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """See `save_checkpoint`."""

    return Trial


def run(settings: Settings) -> int:
    """Search, judge, write the calibration; returns the exit code."""
    folder = settings.resume or settings.storage / "segmentation_threshold" / (settings.name or _now())
    if settings.resume is None:
        if folder.exists():
            raise UsageError(f"{folder} exists; give another --name, or --resume {folder}")
        labelled = settings.load_pictures()
        if len(labelled) < 4:
            raise UsageError(f"{len(labelled)} labelled pictures are too few: at least 4 are needed")
        settings.load_models()  # what cannot be loaded is said now, not by every trial
    else:
        settings = _settings_of(folder, settings.address)
        labelled = settings.load_pictures()
    cluster.connect(settings.address)
    try:
        check_fits("trial", settings.cpus_per_trial, settings.gpus_per_trial)
        if settings.resume is None:
            folder.mkdir(parents=True)
            write_json(_plain(settings), folder / "settings.json")
        trial = tune.with_resources(
            make_trial(settings, settings.cpus_per_trial),
            {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial},
        )
        tune_folder = str((folder / "tune").resolve())
        if settings.resume is not None and tune.Tuner.can_restore(tune_folder):
            tuner = tune.Tuner.restore(tune_folder, trainable=trial, restart_errored=True)
        else:
            start = dataclasses.asdict(settings.load_start())
            first = {name: start[name] for name in search_space()}
            tuner = tune.Tuner(
                trial,
                param_space=search_space(),
                tune_config=tune.TuneConfig(
                    metric=OBJECTIVE,
                    mode="max",
                    num_samples=settings.num_samples,
                    search_alg=OptunaSearch(points_to_evaluate=[first], seed=0),
                    max_concurrent_trials=cluster.concurrent_trials(settings.cpus_per_trial, settings.gpus_per_trial),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(folder.resolve()),
                    verbose=0,
                    callbacks=[_Progress(settings.num_samples)],
                ),
            )
        say(f"{len(labelled)} pictures, {settings.num_samples} settings, results: {folder}")
        results = tuner.fit()
    finally:
        ray.shutdown()
    ended = [result for result in results if result.error or OBJECTIVE in (result.metrics or {})]
    if len(ended) < settings.num_samples:  # Tune takes Ctrl-C for an end
        console.say_how_to_resume("segmentation_threshold", folder, "interrupted")
        return EXIT_INTERRUPTED
    tried = [result.metrics for result in results if result.metrics and OBJECTIVE in result.metrics]
    if not tried:
        raise UsageError(f"no setting could be tried: {results.errors[0] if results.errors else 'no error is known'}")
    best = max(tried, key=lambda metrics: metrics[OBJECTIVE])
    rows = [
        {OBJECTIVE: one[OBJECTIVE], **{name: one.get(name) for name in (*_EVERY, DAMAGED_IOU)}, **one["config"]}
        for one in tried
    ]
    write_frame(pd.DataFrame(rows).sort_values(OBJECTIVE, ascending=False), folder / "trials.parquet")
    chosen = Calibration.from_dict(best["calibration"])
    _judge(settings, labelled[1::2], chosen, folder)
    # With the numbers settled, presence is fitted once more, on all pictures there are.
    final, _ = calibrate(settings.load_models(), labelled, chosen)
    for file in (folder / "calibration.json", settings.output):
        if file is not None:
            final.save(file)
    say(f"calibration: {settings.output or folder / 'calibration.json'}")
    return EXIT_FAILED if results.errors else EXIT_OK


def _judge(settings: Settings, labelled: Sequence[Labelled], chosen: Calibration, folder: Path) -> None:
    """The chosen calibration beside the one that the search started from, on pictures that the search did not see.

    The start may have: the demo weights' own was fitted to generated scenes from the same seeds on.
    """
    scores = {}
    for name, calibration in (("start", settings.load_start()), ("tuned", chosen)):
        answers = settings.load_models(calibration).segment([p.image for p in labelled], [p.prompts for p in labelled])
        scores[name] = dataclasses.asdict(score(labelled, answers))
    say(f"\non {len(labelled)} pictures that the search did not see:")
    say(f"{'':10}" + "".join(f"{name:>12}" for name in _EVERY))
    for name, row in scores.items():
        say(f"{name:10}" + "".join(f"{row[column]:12.3f}" for column in _EVERY))
    record = {"command": command_line(), "scores": scores, "machine": describe_machine(), "commit": source_commit()}
    write_json(record, folder / "record.json")


_PATHS = ("start", "labels", "images", "storage", "output")


class _Progress(tune.Callback):
    """A line for every setting that has been tried."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.best = total, 0, 0.0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        value = float(trial.last_result.get(OBJECTIVE, float("nan")))
        self.best = max(self.best, value)
        say(f"{self.done}/{self.total} tried: {value:.4f}, best {self.best:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        say_error(f"a setting failed: {trial.error_file or trial.trial_id}")


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in numbers.items()}


def _plain(settings: Settings) -> dict[str, Any]:
    return {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()}


def _settings_of(folder: Path, address: str | None) -> Settings:
    try:
        kept = json.loads((folder / "settings.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"--resume {folder}: no run of this sweep is kept there ({error})") from error
    paths = {name: Path(kept[name]) for name in _PATHS if kept[name] is not None}
    return Settings(**{**kept, **paths, "address": address, "resume": folder})


def _now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def main() -> int:
    """Parse the flags and run; errors are sentences."""
    try:
        return run(tyro.cli(Settings, description=__doc__))
    except (UsageError, ValueError) as error:
        say_error(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        say_error("interrupted; go on with --resume and the folder named above")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
