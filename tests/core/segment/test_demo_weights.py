from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.segment.clipseg import ClipSeg
from core.segment.demo_training import EVALUATION_SEED, WEIGHTS
from core.segment.masks import box_xyxy, iou
from core.segment.sam2 import MaskPrompt, Sam2
from core.segment.scenes import Scene, draw_queries, generate_scene, query_masks, render

Drawn = tuple[Scene, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    """Scenes that were never trained on."""
    scenes = [generate_scene(EVALUATION_SEED + index) for index in range(24)]
    return [(scene, *render(scene)) for scene in scenes]


def test_the_weights_are_small() -> None:
    files = [file for file in Path(WEIGHTS).rglob("*") if file.is_file()]
    assert {"model.safetensors", "config.json", "config.yaml"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 12e6


def test_sam2_finds_the_object_in_a_box(drawn: list[Drawn]) -> None:
    sam2 = Sam2.from_pretrained(WEIGHTS / "sam2")
    features = sam2.encode_images([image for _, image, _ in drawn])
    truths = [
        (row, drawn[row][2] == index + 1) for row in range(len(drawn)) for index in range(len(drawn[row][0].objects))
    ]
    answers = sam2.decode(
        [features[row] for row, _ in truths], [MaskPrompt(box_xyxy=box_xyxy(truth)) for _, truth in truths]
    )
    scores = []
    for (_, truth), answer in zip(truths, answers, strict=True):
        best = int(answer.iou_scores.argmax())
        scores.append(iou(sam2.upsample(answer.mask_logits, truth.shape)[best].numpy() > 0, truth))
    assert np.mean(scores) > 0.93


def test_clipseg_finds_what_a_prompt_names(drawn: list[Drawn]) -> None:
    clipseg = ClipSeg.from_pretrained(WEIGHTS / "clipseg")
    queries = [
        draw_queries(scene, np.random.default_rng(row), num_present=3, num_absent=0)
        for row, (scene, _, _) in enumerate(drawn)
    ]
    features = clipseg.encode_images([image for _, image, _ in drawn])
    heatmaps = clipseg.heatmaps(features, [[query.text for query in asked] for asked in queries])
    scores = []
    for (scene, _, object_map), asked, logits in zip(drawn, queries, heatmaps, strict=True):
        at_size = F.interpolate(logits[None], size=object_map.shape, mode="bilinear", align_corners=False)[0]
        for mask, truth in zip(
            torch.sigmoid(at_size).numpy() > 0.5, query_masks(asked, scene, object_map), strict=True
        ):
            scores.append(iou(mask, truth))
    assert np.mean(scores) > 0.75
