"""Which checkpoints a preset stands for, and the calibration that goes with them."""

from dataclasses import dataclass
from pathlib import Path

from core.segment.calibration import Calibration

_WEIGHTS = Path(__file__).parent / "weights"
DEMO_CALIBRATION = _WEIGHTS / "calibration.json"
PRESETS = {
    "demo": (str(_WEIGHTS / "clipseg"), str(_WEIGHTS / "sam2")),
    "tiny": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-tiny"),
    "small": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-small"),
    "base": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-base-plus"),
    "large": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-large"),
}


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The two models that are meant: names on the hub, folders, or for SAM 2 a file.

    are_demo: both are the project's own, so that its calibration fits them and they know its words only.
    """

    clipseg: str
    sam2: str
    are_demo: bool

    def calibration(self) -> Calibration:
        """The one that the project carries for them, else the defaults."""
        return Calibration.load(DEMO_CALIBRATION) if self.are_demo else Calibration()


def checkpoints_of(preset: str, clipseg: str | None = None, sam2: str | None = None) -> Checkpoints:
    """The preset's checkpoints, but for those that are named.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    of_preset = PRESETS[preset]
    return Checkpoints(
        clipseg or of_preset[0], sam2 or of_preset[1], are_demo=preset == "demo" and clipseg is None and sam2 is None
    )
