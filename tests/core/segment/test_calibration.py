import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from core.segment.calibration import Calibration
from core.segment.options import MAX_PROMPT_CHARACTERS
from core.segment.presets import DEMO_CALIBRATION
from core.segment.scenes import COLOURS, SHAPES, SIZE_WORDS, Query


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    calibration = Calibration(floor=0.2, presence_weights=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), rivals=(("cat", "dog"),))
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration


@pytest.mark.parametrize(
    "content, problem",
    [
        ("{", "cannot be read"),
        ("[]", "not a calibration"),
        ('{"version": 99}', "version 1"),
        ('{"version": 1, "flor": 0.1}', "flor"),
        ('{"version": 1, "floor": "0.1"}', "floor must be a number"),
        ('{"version": 1, "floor": NaN}', "finite"),
        ('{"version": 1, "floor": 0}', "floor"),
        ('{"version": 1, "temperature": -1}', "temperature"),
        ('{"version": 1, "faint": 0}', "faint"),
        ('{"version": 1, "presence_weights": [1]}', "presence_weights"),
        ('{"version": 1, "presence_weights": 3}', "presence_weights"),
        ('{"version": 1, "presence_weights": ["a", 1, 1, 1, 1, 1]}', "presence_weights"),
        ('{"version": 1, "rivals": ["cat", "dog"]}', "rivals must be a list of lists"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        Calibration.load(tmp_path / "c.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.json"):
        Calibration.load(tmp_path / "nothing.json")


def test_the_file_says_its_version(tmp_path: Path) -> None:
    Calibration().save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["version"] == 1


def test_rivals_differ_in_one_word() -> None:
    calibration = Calibration(rivals=(("circle", "star"), ("red", "blue", "green")))
    assert calibration.rivals_of("small Red circle") == ("small Red star", "small blue circle", "small green circle")
    assert calibration.rivals_of("dog") == ()
    assert Calibration().rivals_of("circle") == ()


def test_the_rivals_of_a_scenes_prompts_are_the_other_shapes_and_the_other_size() -> None:
    calibration = Calibration.load(DEMO_CALIBRATION)
    for shape, colour, size in product((None, *SHAPES), (None, *COLOURS), (None, *SIZE_WORDS)):
        query = Query(shape=shape, colour=colour, size=size)
        shapes = [replace(query, shape=other) for other in SHAPES if shape and other != shape]
        sizes = [replace(query, size=other) for other in SIZE_WORDS if size and other != size]
        assert calibration.rivals_of(query.text) == tuple(rival.text for rival in (*shapes, *sizes))


def test_a_prompt_that_repeats_its_words_has_few_rivals() -> None:
    calibration = Calibration.load(DEMO_CALIBRATION)
    awkward = ("small star " * MAX_PROMPT_CHARACTERS)[:MAX_PROMPT_CHARACTERS]
    rivals = calibration.rivals_of(awkward)
    assert len(rivals) == sum(len(group) - 1 for group in calibration.rivals) == 8
    assert rivals[0].startswith("small circle small star small star")
