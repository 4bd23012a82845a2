import numpy as np
import pytest

from core.segment.results import CroppedMask, Instance, PromptResult
from serve.answers import prompt_answers
from serve.ports import LateError


def test_masks_are_written_while_there_is_time() -> None:
    mask = CroppedMask(np.ones((2, 2), bool), 0, 0, (4, 4))
    instance = Instance(
        cropped=mask, score=0.9, quality=0.9, presence=0.9, evidence=(), source="coarse", why="It is bright."
    )
    result = PromptResult(
        prompt="star",
        found=True,
        presence=0.9,
        reason=None,
        threshold=0.5,
        heatmap=np.zeros((4, 4), np.float32),
        instances=(instance,) * 5,
    )
    left = iter([2.0, 1.0, 0.0])
    with pytest.raises(LateError):
        prompt_answers([result], "png", explain=False, degraded=False, left_s=lambda: next(left), tokens=None)
    assert list(left) == []
