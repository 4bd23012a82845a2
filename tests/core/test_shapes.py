import hashlib

import numpy as np
import pytest

from core import shapes


def test_pictures_are_balanced_and_deterministic() -> None:
    images, labels = shapes.generate(200, seed=5)
    assert images.shape == (200, 32, 32, 3)
    assert np.bincount(labels).tolist() == [20] * 10
    again, labels_again = shapes.generate(200, seed=5)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(images, shapes.generate(200, seed=6)[0])


def test_every_picture_is_its_own() -> None:
    images, _ = shapes.generate(500, seed=0)
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) == 500


def test_the_target_stands_out_from_its_background() -> None:
    """A mean picture over many draws is grey; a single one is not: it has shape, shade and noise."""
    images, _ = shapes.generate(1000, seed=0)
    assert images.mean(0).std() < 10
    assert images.std((1, 2)).mean() > 20


def test_zero_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        shapes.generate(0, seed=0)
