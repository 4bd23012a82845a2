"""The few numbers that turn heatmaps into answers, tuned on labelled pictures and kept in a small file."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
EVIDENCE = ("peak", "first_look", "contrast", "relative", "closer_look", "agreement")


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Numbers that depend on the models in use; `sweeps/segmentation_threshold.py` tunes them.

    temperature: heatmap logits are divided by it before they are taken for probabilities.
    floor: no automatic threshold is below it. seed: a region must somewhere reach this share of the heatmap's peak.
    faint: where a prompt has no region, the place of the heatmap's peak is looked at more closely if the peak is at
        least this probable; 1 for never.
    min_area: regions smaller than this share of the largest are specks. neck: how narrow the neck between two halves
        of a region must be for them to be two objects, as a share of the smaller one's depth.
    zoom_below: what is smaller than this share of the picture's side is looked at more closely; 0 for never.
    zoom_context: side of the closer look as a multiple of the object's.
    closer_weight: how much the closer look counts against the first one, from 0 to 1.
    predicted_iou_power, stability_power, leakage_weight: in a candidate's score, beside its agreement.
    offset_tolerance, size_tolerance: a candidate may be moved and scaled to agree with the heatmap, which can be right
        about a shape and wrong about its place and size. If it must be moved by this share of the object's side, or
        its side be changed by this power of e, the agreement counts 0.61 times.
    min_ratio: SAM 2 is believed if its mask agrees with the heatmap at least this many times as well as the coarse
        mask does, and min_iou: if the two masks overlap at least so much.
    blend: how much the heatmap's logits are added to those of SAM 2 in the final mask.
    rounds: how often the best mask is given back to SAM 2 to be improved.
    presence_bias, presence_weights: of a logistic regression on `EVIDENCE`, each a logit, but for the agreement.
    min_presence: what is less probable is taken to be absent.
    rivals: groups of words that exclude one another, such as the names of shapes. A prompt with one of them is held
        against the same prompt with each of the others, and what the first look gave to them is looked at again; none
        are needed, but they find what is small, and tell apart what looks alike.
    """

    temperature: float = 1.0
    floor: float = 0.12
    seed: float = 0.5
    faint: float = 0.05
    min_area: float = 0.05
    neck: float = 0.55
    zoom_below: float = 0.5
    zoom_context: float = 1.8
    closer_weight: float = 0.5
    predicted_iou_power: float = 1.0
    stability_power: float = 0.5
    leakage_weight: float = 0.5
    offset_tolerance: float = 0.3
    size_tolerance: float = 0.3
    min_ratio: float = 0.7
    min_iou: float = 0.5
    blend: float = 0.3
    rounds: int = 1
    presence_bias: float = -3.0
    presence_weights: tuple[float, ...] = (0.2, 0.4, 0.2, 0.2, 0.6, 3.0)
    min_presence: float = 0.5
    rivals: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.presence_weights) != len(EVIDENCE):
            raise ValueError(f"presence_weights: one for each of {', '.join(EVIDENCE)}")
        numbers = [value for value in dataclasses.astuple(self) if isinstance(value, float | int)]
        if not all(math.isfinite(value) for value in (*numbers, *self.presence_weights)):
            raise ValueError("a calibration's numbers must be finite")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        for name in ("offset_tolerance", "size_tolerance"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.faint <= 1:
            raise ValueError(f"faint must be above 0 and at most 1, got {self.faint}")
        if not 0 < self.floor < 1:
            raise ValueError(f"floor must be between 0 and 1, got {self.floor}")

    def save(self, file: Path) -> None:
        """Write the numbers as JSON, with the format's version."""
        text = json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2)
        fresh = file.with_name(file.name + ".fresh")
        fresh.write_text(text + "\n")
        fresh.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            ValueError: there is no such file, or it is not a calibration of this version.
        """
        try:
            content = json.loads(file.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"the calibration {file} cannot be read: {error}") from error
        if not isinstance(content, dict) or content.pop("version", None) != VERSION:
            raise ValueError(f"{file} is not a calibration of version {VERSION}")
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> "Calibration":
        """The calibration with these fields, lists in the tuples' places, and the defaults of the others.

        Raises:
            ValueError: there is no such field, or its value is of another kind or out of range.
        """
        unknown = sorted(numbers.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"no calibration has fields called {', '.join(unknown)}")
        for name, value in numbers.items():
            wanted, fits = _EXPECTED.get(name, ("a number", _is_number))
            if not fits(value):
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
        tuples = {
            name: tuple(tuple(value) if isinstance(value, list) else value for value in numbers[name])
            for name in numbers.keys() & _EXPECTED.keys()
        }
        return cls(**{**numbers, **tuples})

    def rivals_of(self, prompt: str) -> tuple[str, ...]:
        """The prompts that cannot be true of an object if this one is.

        Of each group, the first word that the prompt has is exchanged for the others, and no word after it: a prompt
        that repeats a word would otherwise have hundreds of rivals.
        """
        words = prompt.split()
        rivals = []
        for group in self.rivals:
            place = next((place for place, word in enumerate(words) if word.lower() in group), None)
            if place is not None:
                others = (other for other in group if other != words[place].lower())
                rivals += [" ".join([*words[:place], other, *words[place + 1 :]]) for other in others]
        return tuple(rivals)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _are_groups(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(group, list | tuple) and all(isinstance(word, str) for word in group) for group in value
    )


_EXPECTED = {
    "presence_weights": ("a list of numbers", _are_numbers),
    "rivals": ("a list of lists of words", _are_groups),
}
