"""The command line that all sweeps share."""

import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

EXIT_OK, EXIT_TRIALS_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """Something the user asked for cannot be done; the message says what and how to go on. Exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of a sweep; the defaults of what is None are the sweep's own."""

    dataset: Literal["cifar10", "cifar100", "shapes", "folder"] = "cifar10"
    """The pictures. `shapes` is generated here; the others are looked for under --data-root."""
    data_root: str | None = None
    """Folder with the pictures: torchvision's CIFAR folder, hub-layout parquet, or a folder of pictures a class.
    Default: $PATCHWORK_DATA, else ~/.local/share/patchwork, where CIFAR is downloaded to."""
    budget: float | None = None
    """Training FLOPs (forward and backward) of a trial, such as 2e14."""
    epochs: float | None = None
    """Passes over the training pictures of a trial, instead of --budget."""
    seeds: int | None = None
    """How many seeds (0, 1, ...) each setting is trained with."""
    search: Literal["grid", "random", "optuna"] | None = None
    """`grid` tries every combination; `random` and `optuna` draw --num-samples settings from a larger space."""
    num_samples: int = 20
    """Settings drawn by --search random or optuna."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops the trials that fall behind, and trains all with a schedule that is safe to stop early."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Fix a field of the model or the training for all trials, such as --set depth=9 (may be repeated)."""
    cpus_per_trial: int = 1
    """CPUs of a trial; its PyTorch uses as many threads."""
    gpus_per_trial: float | None = None
    """GPUs of a trial, fractions allowed. Default: 1 where the cluster has GPUs, else 0."""
    address: str | None = None
    """Ray cluster to run on, such as auto or 10.0.0.1:6379. Default: $RAY_ADDRESS, else Ray starts here."""
    storage: str = "results"
    """Folder for results: local, on NFS, or s3://bucket/folder. Several nodes need one that all of them reach."""
    name: str | None = None
    """Name of this run's folder under STORAGE/SWEEP/. Default: the time of the start."""
    resume: str | None = None
    """Go on with a run: its folder, or `latest`. The other flags are then those of the run."""
    study_url: str | None = None
    """Database for the Optuna study, such as postgresql://host/db. Default: study.db in the results folder."""
    mlflow_url: str | None = None
    """MLflow tracking server or folder to log trials to as well (needs the `mlflow` extra)."""
    smoke: bool = False
    """Everything tiny: proves within a minute that the sweep runs here."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise UsageError("--budget and --epochs are two ways to say the same; give one")
        for flag, low in (("seeds", 1), ("num_samples", 1), ("cpus_per_trial", 1), ("gpus_per_trial", 0)):
            value = getattr(self, flag)
            if value is not None and value < low:
                raise UsageError(f"--{flag.replace('_', '-')} must be at least {low}, got {value}")
        for flag in ("budget", "epochs"):
            value = getattr(self, flag)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{flag} must be a positive number, got {value}")
        if self.name is not None and (not self.name or "/" in self.name or self.name in (".", "..", "latest")):
            raise UsageError(f"--name must be a plain folder name, got {self.name!r}")


def parse(description: str, program: str) -> Flags:
    """Read `sys.argv`; `--help` and a mistaken flag end the program (exit codes 0 and 2)."""
    return tyro.cli(Flags, description=description, prog=program, config=(tyro.conf.FlagConversionOff,) * 0)


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--set name=value` pairs as a dict; numbers, true, false and none are read as such."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"--set takes NAME=VALUE, got {pair!r}")
        overrides[name.replace("-", "_")] = _parse_value(text)
    return overrides


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def command_line() -> str:
    """What the user typed, for the record."""
    return shlex.join(["python", *sys.argv])
