from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.full_size import SAM2_TINY, save_clipseg
from core.runtime import import_torchvision
from core.segment.sam2 import build


@pytest.fixture(autouse=True, scope="session")
def torchvision_first() -> None:
    import_torchvision()


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Three pictures of different sizes."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (9, 12, 3)), rng.integers(0, 256, (20, 10, 3)), rng.integers(0, 256, (11, 11, 3))]
    return [np.kron(picture, np.ones((16, 16, 1))).astype(np.uint8) for picture in coarse]


@pytest.fixture(scope="session")
def clipseg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPSeg rd64-refined's public configuration with random weights, saved as the public checkpoints are."""
    folder = tmp_path_factory.mktemp("clipseg")
    save_clipseg(folder)
    return folder


@pytest.fixture(scope="session")
def sam2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2.1 tiny's public configuration with random weights, saved as the public checkpoints are."""
    file = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    torch.manual_seed(0)
    torch.save({"model": build(SAM2_TINY).state_dict()}, file)
    return file
