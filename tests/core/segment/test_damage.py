"""Damaged heatmaps: what the damage does, and that answers bear it."""

import dataclasses

import pytest
import torch

from core.segment.calibration import Calibration
from core.segment.damage import DAMAGES, MIDDLE_STRENGTH, STRENGTHS, DamagedGrounder
from core.segment.evaluation import damaged_iou, surest
from core.segment.labelled import Labelled, labelled_scene
from core.segment.masks import iou
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.presets import DEMO_CALIBRATION
from core.segment.results import union


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_preset("demo", precision="float32")


@pytest.fixture(scope="module")
def scenes() -> list[Labelled]:
    return [labelled_scene(31_000_000 + index, num_absent=0) for index in range(16)]


def disc() -> torch.Tensor:
    places = torch.arange(128) + 0.5
    return torch.where((places[None] - 60) ** 2 + (places[:, None] - 60) ** 2 < 20**2, 6.0, -6.0)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_grows_with_its_strength_and_repeats_itself(kind: str) -> None:
    logits = disc()
    lost = []
    for strength in STRENGTHS:
        hurt = DAMAGES[kind](logits, strength)
        assert hurt.shape == logits.shape
        assert torch.equal(hurt, DAMAGES[kind](logits, strength))
        lost.append(float((hurt.sigmoid() - logits.sigmoid()).abs().mean()))
    assert lost[0] > 0
    assert lost[-1] > 2 * lost[0]


def test_shift_moves_and_shrink_erodes() -> None:
    logits = disc()
    moved, eroded = (DAMAGES[kind](logits, MIDDLE_STRENGTH) for kind in ("shift", "shrink"))
    assert torch.equal(moved[6:, 6:], logits[:-6, :-6])
    assert (eroded > 0).sum() < (logits > 0).sum()
    assert not ((eroded > 0) & (logits <= 0)).any()


@pytest.mark.parametrize("kind", DAMAGES)
def test_answers_bear_it(segmenter: Segmenter, scenes: list[Labelled], kind: str) -> None:
    hurt = Segmenter(DamagedGrounder(segmenter.grounder, kind, MIDDLE_STRENGTH), segmenter.sam2, segmenter.calibration)
    answers = hurt.segment([s.image for s in scenes], [s.prompts for s in scenes], SegmentOptions(min_presence=0.0))
    overlaps = [
        iou(surest(result).mask, union(truth, (256, 256)))
        for scene, results in zip(scenes, answers, strict=True)
        for truth, result in zip(scene.truths, results, strict=True)
    ]
    assert sum(overlaps) / len(overlaps) > 0.85


def test_the_calibrations_measure_of_it(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    calibration = Calibration.load(DEMO_CALIBRATION)
    tuned = damaged_iou(segmenter, scenes[:3], calibration)
    strict = dataclasses.replace(calibration, min_iou=0.9)
    assert 0.8 < tuned <= 1
    assert damaged_iou(segmenter, scenes[:3], strict) < tuned
