"""One trial: a setting turned into a `TrainConfig`, trained by `core.train`, reported to Tune. Runs on a worker."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import torch
from ray import tune

from core.checkpoint import CheckpointError, load, save
from core.data import Dataset
from core.distill import WeakTeacherWarning
from core.evaluate import evaluate
from core.models import MODEL_CONFIGS, WastefulModelWarning, model_config
from core.runtime import resolve_device, return_free_memory
from core.train import EpochReport, ResumeError, train
from core.train_config import TrainConfig
from sweeps.storage import check_there, download, filesystem_of, patiently

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.json"
# A file system takes 255 bytes; the runner and Tune add to the name what makes it unique.
_LONGEST_FOLDER_NAME = 240

_DATA_FIELDS = frozenset({"image_size", "in_channels", "num_classes"})
_MODEL_FIELDS = {
    kind: frozenset(field.name for field in dataclasses.fields(config_class)) - _DATA_FIELDS
    for kind, config_class in MODEL_CONFIGS.items()
}
_TRAIN_FIELDS = frozenset(field.name for field in dataclasses.fields(TrainConfig)) - {"model"}
MODEL_FIELDS = frozenset[str]().union(*_MODEL_FIELDS.values())
SETTABLE_FIELDS = frozenset({"model"}) | _TRAIN_FIELDS | MODEL_FIELDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the settings of a trial come together from what is shared and what is its own.

    base: fields of the model and the training that all trials share.
    factor, bundles: what each level of the factor stands for, where it is no field itself but the name of several.
    """

    base: Mapping[str, Any]
    factor: str
    bundles: Mapping[Any, Mapping[str, Any]]

    def configure(self, point: Mapping[str, Any], data: Dataset) -> TrainConfig:
        """The config of a trial: the point's own settings before its level's, and those before the shared ones.

        Raises:
            ValueError: a name is unknown or a value is not allowed.
        """
        own = self._own(point)
        return configure({**self.base, **own}, data, shared=frozenset(self.base) - frozenset(own))

    def fields(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """All that is set for a trial; of the shared ones also those that its model does not have."""
        return {**self.base, **self._own(point)}

    def _own(self, point: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(point)
        if not self.bundles:
            return own
        level = own.pop(self.factor)
        return {**self.bundles[level], **own}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials of a stage share.

    folder: where Tune keeps the stage: a path or a URI.
    start_folder: where the sweep was started; relative paths in settings mean it.
    """

    recipe: Recipe
    folder: str
    start_folder: str
    num_threads: int


def model_fields(fields: Mapping[str, Any]) -> frozenset[str] | None:
    """What can be set of the kind of model that a trial's fields ask for; None if there is no such kind."""
    return _MODEL_FIELDS.get(fields.get("model", "vit"))


def configure(fields: Mapping[str, Any], data: Dataset, shared: frozenset[str] = frozenset()) -> TrainConfig:
    """A `TrainConfig` from flat field names; the shape of the pictures and the number of classes come from the data.

    Args:
        fields: of the training, of the model, and `model`, its kind (`vit` if it is left out).
        shared: names that are passed over where another kind of model than this one has them.

    Raises:
        ValueError: a name is unknown or a value is not allowed.
    """
    if unknown := sorted(set(fields) - SETTABLE_FIELDS):
        raise ValueError(f"unknown field {', '.join(unknown)}; there are: {', '.join(sorted(SETTABLE_FIELDS))}")
    _, height, width, channels = data.train.images.shape
    if height != width:
        raise ValueError(f"pictures must be square, {data.name} has {height}x{width}")
    shape = {"image_size": height, "in_channels": channels, "num_classes": len(data.class_names)}
    kind = fields.get("model", "vit")
    known = model_fields(fields) or frozenset()
    passed_over = {name for name in shared if name not in known}
    for_model = {k: v for k, v in fields.items() if k not in _TRAIN_FIELDS | passed_over | {"model"}}
    model = model_config(kind, {**for_model, **shape})
    return TrainConfig(model=model, **{k: v for k, v in fields.items() if k in _TRAIN_FIELDS})


def trial_name(point: Mapping[str, Any]) -> str:
    """A name that tells a setting, the same for the same setting: `learning_rate=0.002,patch_size=4,seed=1`."""
    settings = sorted((k, v) for k, v in point.items() if k != "seed")
    return ",".join([*(f"{name}={value}" for name, value in settings), f"seed={point['seed']}"])


def folder_name(point: Mapping[str, Any]) -> str:
    """The trial's name; one that is too long for a folder, or has a slash, is mended and ends with a hash of itself."""
    name = trial_name(point)
    if "/" not in name and len(name.encode()) <= _LONGEST_FOLDER_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    kept = name.replace("/", "_").encode()[: _LONGEST_FOLDER_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{kept},{digest}"


def run_trial(point: dict[str, Any], data: Dataset, settings: TrialSettings) -> None:
    """Tune's trainable. What goes wrong inside a trial is its result, not an exception.

    An exception would make Tune try again, which is right for a lost machine or storage that fails for a while, and
    futile for a setting that diverges.
    """
    torch.set_num_threads(settings.num_threads)
    for category in (WastefulModelWarning, WeakTeacherWarning):  # the driver has shown them
        warnings.filterwarnings("ignore", category=category)
    if Path(settings.start_folder).is_dir():  # Tune has put us elsewhere; another machine may not have it
        os.chdir(settings.start_folder)
    try:
        _train(point, data, settings)
    except OSError:
        raise
    except Exception as error:
        logger.exception("trial failed")
        tune.report({"val_accuracy": float("nan"), "epoch": -1, "error": _describe(error)})
    finally:
        return_free_memory()  # Tune runs every trial of a process in a new thread, which would have an arena of its own


def _train(point: dict[str, Any], data: Dataset, settings: TrialSettings) -> None:
    config = settings.recipe.configure(point, data)
    if config.device == "auto":
        _check_gpu()

    reported = 0

    def report(epoch: EpochReport) -> None:
        nonlocal reported
        with tempfile.TemporaryDirectory() as folder:
            epoch.save(Path(folder))
            (Path(folder) / HISTORY_FILE).write_text(json.dumps(epoch.history))
            patiently(lambda: _hand_over(epoch.metrics, folder))
        reported += 1

    with tempfile.TemporaryDirectory() as folder:
        result = None
        starts = patiently(lambda: _saved_states(settings.folder, Path(folder)))
        if starts and (missed := _missed(starts[0])):
            patiently(lambda: _hand_over(missed, str(starts[0])))
            reported += 1
        for start in starts:
            try:
                result = train(config, data, report, resume_from=start)
                break
            except (ResumeError, CheckpointError) as error:
                logger.warning("%s cannot be resumed, trying the one before it: %s", start, error)
        if result is None:
            result = train(config, data, report)
    if not reported:  # it had ended already, and only Tune did not know yet
        report(EpochReport(metrics=result.history[-1], history=result.history, save=result.save))


def _missed(newest: Path) -> dict[str, Any] | None:
    """The last epoch in storage, if Tune has no record of it, as when the driver died in between.

    A scheduler that compares trials at their reports must not take a later one for it.
    """
    history = _history_of(newest)
    if (known := tune.get_checkpoint()) is not None:
        with contextlib.suppress(FileNotFoundError), known.as_directory() as folder:
            if len(_history_of(Path(folder))) >= len(history):
                return None
    return history[-1]


def _history_of(checkpoint_folder: Path) -> list[dict[str, Any]]:
    return json.loads((checkpoint_folder / HISTORY_FILE).read_text())


def _check_gpu() -> None:
    """
    Raises:
        RuntimeError: Ray has given this worker a GPU that PyTorch cannot use; hours on the CPU are not what was meant.
    """
    if (given := ray.get_gpu_ids()) and not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray has given this trial GPU {', '.join(map(str, given))} of {platform.node()}, where PyTorch "
            f"{torch.__version__} sees none: install a PyTorch that fits the driver, or pass --gpus-per-trial 0"
        )


def _hand_over(metrics: dict[str, Any], folder: str) -> None:
    """Give an epoch's numbers and checkpoint to Tune, which copies the folder to storage before it returns.

    Raises:
        OSError: storage fails; nothing has been handed over.
    """
    try:
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
    except RuntimeError as error:  # so Tune says that the stage's folder is not there
        raise OSError(str(error)) from error


def measure_test_accuracy(checkpoint_folder: str, data: Dataset, num_threads: int) -> float:
    """Single-view accuracy of a trial's last checkpoint on the test split, in [0, 1]."""
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as scratch:
        patiently(lambda: download(checkpoint_folder, Path(scratch)))
        loaded = load(Path(scratch))
    model = loaded.model.to(resolve_device(loaded.training["device"]))
    scores = evaluate(model, data.test, loaded.mean, loaded.std, precision=loaded.training["precision"])
    return scores["accuracy"]


def copy_checkpoint(checkpoint_folder: str, target: Path, test_accuracy: float) -> None:
    """A trial's checkpoint as a folder fit for serving: without the training state, with its test accuracy."""
    with tempfile.TemporaryDirectory() as scratch:
        download(checkpoint_folder, Path(scratch))
        loaded = load(Path(scratch))
    save(target, dataclasses.replace(loaded, metrics={**loaded.metrics, "test_accuracy": test_accuracy}))


def _saved_states(stage_folder: str, scratch: Path) -> list[Path]:
    """Local copies of this trial's checkpoints in storage, the one with the most epochs first.

    Storage itself is asked, not Tune's record of it: the record is written about once a second, so after a crash it can
    be older than the newest checkpoint, or lack the trial; and Tune's numbers then start again below those on disk.

    Raises:
        OSError: storage fails, which must not be taken for a trial that has nothing yet.
    """
    trial = Path(tune.get_context().get_trial_dir()).name
    filesystem, root = filesystem_of(stage_folder)
    check_there(stage_folder)
    selector = pyarrow.fs.FileSelector(f"{root}/{trial}", allow_not_found=True)
    found: list[tuple[int, Path]] = []
    for entry in filesystem.get_file_info(selector):
        if not entry.base_name.startswith("checkpoint_"):
            continue
        copy = scratch / entry.base_name
        copy.mkdir(exist_ok=True)
        try:
            download(f"{stage_folder}/{trial}/{entry.base_name}", copy)
            found.append((len(_history_of(copy)), copy))
        except (FileNotFoundError, ValueError) as error:  # half-written when the machine died
            check_there(stage_folder)
            logger.warning("%s is not whole: %s", entry.path, error)
    check_there(stage_folder)
    return [copy for _, copy in sorted(found, reverse=True)]


def _describe(error: Exception) -> str:
    """The exception in one line, with the place in our code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
