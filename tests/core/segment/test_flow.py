import numpy as np
import pytest

from core.segment.flow import _reason


@pytest.mark.parametrize(
    ("peak", "surest", "expected"),
    [
        (0.2, 0.0, "peaks at 0.20, below the threshold of 0.40"),
        (0.6, 0.0, "a closer look shows nothing there"),
        (0.6, 0.3, "the probability of 0.30 is below 0.50"),
        (0.6, 0.9, "no pixel of the picture"),
    ],
)
def test_the_reason_is_the_one_that_holds(peak: float, surest: float, expected: str) -> None:
    heatmap = np.full((8, 8), peak, np.float32)
    assert expected in _reason(heatmap, 0.4, surest, 0.5)
