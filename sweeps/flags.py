"""The command line that all sweeps share."""

import dataclasses
import sys
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

import tyro

from nodes.command import EXIT_USAGE, UsageError, optional


def _repeatable(metavar: str) -> Any:
    """How a flag with any number of words is read that may be given more than once: as a tuple of them each time."""
    hint = "(default: none; may be repeated)"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint, constructor=tuple[tuple[str, ...], ...])


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of a sweep; the defaults of what is None are the sweep's own."""

    dataset: Literal["cifar10", "cifar100", "shapes", "folder"] = "cifar10"
    """The pictures. `shapes` is generated here; the others are looked for under --data-root."""
    data_root: Annotated[str | None, optional("DIR", "$PATCHWORK_DATA, else ~/.local/share/patchwork")] = None
    """Folder with the pictures: torchvision's CIFAR folder, hub-layout parquet, or a sub-folder of pictures for each
    class (or `train`, `test` and maybe `val`, each with such). CIFAR is downloaded there if it is missing."""
    budget: Annotated[float | None, optional("FLOPS", "the sweep's own")] = None
    """Training FLOPs (forward and backward) of a trial, such as 2e14."""
    epochs: Annotated[float | None, optional("PASSES", "none: see --budget")] = None
    """Passes over the training pictures of a trial, instead of --budget."""
    seeds: Annotated[int | None, optional("N", "the sweep's own")] = None
    """How many seeds each setting is trained with."""
    first_seed: int = 0
    """The first of them; the others follow it. `python -m sweeps.report` joins runs with different seeds."""
    search: Annotated[Literal["grid", "random", "optuna"] | None, optional("{grid,random,optuna}", "grid")] = None
    """`grid` tries every combination; `random` and `optuna` draw --num-samples settings from a larger space."""
    num_samples: int = 20
    """Settings drawn by --search random or optuna."""
    search_seed: int = 0
    """Another number draws other settings."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` lets the best third of the trials, whatever their level, go on at reports 1, 3, 9, ..., and trains all
    with a schedule that is safe to stop early."""
    set: Annotated[tuple[str, ...], _repeatable("NAME=VALUE ..."), tyro.conf.UseAppendAction] = ()
    """Fix fields of the model or the training for all trials, such as --set depth=9 batch_size=256."""
    vary: Annotated[tuple[str, ...], _repeatable("NAME=A,B,..."), tyro.conf.UseAppendAction] = ()
    """Give what is varied other values, or vary one more field, such as --vary patch_size=4,8 batch_size=128,256."""
    cpus_per_trial: int = 1
    """CPUs of a trial; its PyTorch uses as many threads."""
    gpus_per_trial: Annotated[float | None, optional("N", "1 where the cluster has GPUs, else 0")] = None
    """GPUs of a trial, fractions allowed."""
    address: Annotated[str | None, optional("HOST:PORT", "$RAY_ADDRESS, else Ray starts here")] = None
    """Ray cluster to run on; `auto` for the one of this machine."""
    storage: str = "results"
    """Folder for results: local, on NFS, or s3://bucket/folder. Several nodes need one that all of them reach."""
    name: Annotated[str | None, optional("NAME", "the time of the start")] = None
    """Name of this run's folder, STORAGE/SWEEP/NAME."""
    resume: Annotated[str | None, optional("NAME|FOLDER|URI", "none")] = None
    """Go on with a run: its name, folder or URI, or `latest`. It goes on as it began; only --address, --data-root,
    --study-url and --mlflow-url may be others. What held a password must be given again: records keep none."""
    finish: bool = False
    """With --resume: train no more; measure what has been trained to its end on the test pictures, and write the
    report."""
    study_url: Annotated[str | None, optional("URL", "study.db in the results folder")] = None
    """Database for the Optuna study, such as postgresql://host/db."""
    mlflow_url: Annotated[str | None, optional("URL", "none")] = None
    """MLflow server, http://HOST:PORT, to log trials to as well (needs the `mlflow` extra)."""
    smoke: bool = False
    """Everything tiny: proves within a minute that the sweep runs here."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise UsageError("--budget and --epochs are two ways to say the same; give one")
        if self.finish and self.resume is None:
            raise UsageError("--finish ends a run that was stopped: name it by --resume")
        least = {
            "seeds": 1,
            "first_seed": 0,
            "num_samples": 1,
            "search_seed": 0,
            "cpus_per_trial": 1,
            "gpus_per_trial": 0,
        }
        for flag, low in least.items():
            value = getattr(self, flag)
            if value is not None and value < low:
                raise UsageError(f"--{flag.replace('_', '-')} must be at least {low}, got {value}")
        for flag in ("budget", "epochs"):
            value = getattr(self, flag)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{flag} must be a positive number, got {value}")
        if self.name is not None and (not self.name or "/" in self.name or self.name in (".", "..", "latest")):
            raise UsageError(f"--name must be a plain folder name, got {self.name!r}")


def parse(description: str | None, program: str) -> Flags:
    """Read `sys.argv`; `--help` and a mistaken flag end the program (exit codes 0 and 2)."""
    try:
        flags = tyro.cli(Flags, description=description, prog=program, config=(tyro.conf.FlagCreatePairsOff,))
        return dataclasses.replace(
            flags, set=tuple(chain.from_iterable(flags.set)), vary=tuple(chain.from_iterable(flags.vary))
        )
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE)


def parse_choices(pairs: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """`--vary name=a,b` pairs as a dict of values, read as those of `--set`."""
    choices: dict[str, tuple[Any, ...]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        words = text.split(",")
        values = tuple(_parse_value(word) for word in words)
        # True and 1 are equal to Python, and two settings.
        if not equals or not name or not all(words) or len({(type(v) is bool, v) for v in values}) < len(values):
            raise UsageError(f"--vary takes NAME=A,B,... with different values, got {pair!r}")
        _add(choices, "--vary", name, values)
    return choices


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--set name=value` pairs as a dict; numbers, true, false and none are read as such."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"--set takes NAME=VALUE, got {pair!r}")
        _add(overrides, "--set", name, _parse_value(text))
    return overrides


def _add(known: dict[str, Any], flag: str, name: str, value: Any) -> None:
    name = name.replace("-", "_")
    if name in known:
        raise UsageError(f"{flag} {name} is given twice")
    known[name] = value


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
