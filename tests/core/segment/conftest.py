from pathlib import Path

import numpy as np
import pytest
import torch

from core.runtime import import_torchvision


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
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
    from transformers.models.vit.image_processing_vit import ViTImageProcessor

    from core.segment.demo_clipseg import build_tokenizer

    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = CLIPSegConfig(
        text_config={"vocab_size": 49408, "eos_token_id": tokenizer.eos_token_id},
        vision_config={"image_size": 352, "patch_size": 16},
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    model.save_pretrained(folder)
    images = ViTImageProcessor(
        size={"height": 352, "width": 352}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    CLIPSegProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sam2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2.1 tiny's public configuration with random weights, saved as the public checkpoints are."""
    from core.segment.sam2 import build

    torch.manual_seed(0)
    model = build(SAM2_TINY)
    file = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": model.state_dict()}, file)
    return file


SAM2_TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"
