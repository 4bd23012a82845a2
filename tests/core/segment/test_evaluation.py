import dataclasses

import numpy as np
import pytest

from core.segment.calibration import EVIDENCE, Calibration
from core.segment.evaluation import fit_presence, score
from core.segment.labelled import Labelled, labelled_scene
from core.segment.results import CroppedMask, Instance, PromptResult

SIZE = (256, 256)


def answer(prompt: str, masks: tuple[CroppedMask, ...], evidence: float = 1.0, confidence: float = 1.0) -> PromptResult:
    instances = tuple(
        Instance(
            cropped=mask,
            score=confidence,
            quality=1.0,
            presence=1.0,
            evidence=(evidence,) * len(EVIDENCE),
            source="sam2",
            why="",
        )
        for mask in masks
    )
    return PromptResult(
        prompt=prompt,
        found=bool(masks),
        presence=1.0,
        reason=None,
        threshold=0.5,
        heatmap=np.zeros((4, 4), np.float32),
        instances=instances,
        picture_size=SIZE,
    )


@pytest.fixture(scope="module")
def scenes() -> list[Labelled]:
    return [labelled_scene(40_000_000 + index) for index in range(10)]


def test_the_truth_scores_one(scenes: list[Labelled]) -> None:
    perfect = [[answer(p, t) for p, t in zip(s.prompts, s.truths, strict=True)] for s in scenes]
    scores = score(scenes, perfect)
    assert dataclasses.astuple(scores)[:5] == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert scores.num_present > 10 and scores.num_absent > 10


def test_silence_scores_nothing_but_for_the_absent(scenes: list[Labelled]) -> None:
    scores = score(scenes, [[answer(p, ()) for p in s.prompts] for s in scenes])
    assert dataclasses.astuple(scores)[:5] == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_false_objects_lower_the_precision(scenes: list[Labelled]) -> None:
    false = CroppedMask.from_full(np.pad(np.ones((5, 5), bool), ((0, 251), (0, 251))))
    sure = [
        [answer(p, t or (false,), confidence=0.5 if t else 1.0) for p, t in zip(s.prompts, s.truths, strict=True)]
        for s in scenes
    ]
    unsure = [
        [answer(p, t or (false,), confidence=1.0 if t else 0.5) for p, t in zip(s.prompts, s.truths, strict=True)]
        for s in scenes
    ]
    assert score(scenes, sure).ap50 < 0.8 < 0.99 < score(scenes, unsure).ap50
    assert score(scenes, sure).absent == 0


def test_presence_learns_which_evidence_tells(scenes: list[Labelled]) -> None:
    false = CroppedMask.from_full(np.pad(np.ones((5, 5), bool), ((0, 251), (0, 251))))
    rows = [
        [answer(p, t or (false,), evidence=2.0 if t else -2.0) for p, t in zip(s.prompts, s.truths, strict=True)]
        for s in scenes
    ]
    fitted = fit_presence(scenes, rows, Calibration())
    assert all(weight > 0 for weight in fitted.presence_weights)
    assert 0.2 < fitted.min_presence < 0.8
    with pytest.raises(ValueError, match="cannot be fitted"):
        fit_presence(
            scenes[:1], [[answer(p, t) for p, t in zip(scenes[0].prompts, scenes[0].truths, strict=True)]], fitted
        )
