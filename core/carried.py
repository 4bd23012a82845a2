"""Where the classifier lies that the project carries, and the word for it where a checkpoint folder is asked for."""

from pathlib import Path

CARRIED_CLASSIFIER = Path(__file__).resolve().parent / "weights" / "cifar10"
CARRIED = "carried"


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint: a path, or `carried`, which on every machine is where the project is installed."""
    return CARRIED_CLASSIFIER if name == CARRIED else Path(name).expanduser()
