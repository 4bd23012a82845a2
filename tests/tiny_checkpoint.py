"""A classifier small enough to load in a moment, whose answers differ from picture to picture."""

from pathlib import Path

import torch

from core.checkpoint import Checkpoint, save
from core.models import ViTConfig, build_model

CLASS_NAMES = ("cat", "dog", "frog", "ship")


def write_tiny_checkpoint(folder: Path) -> Path:
    config = ViTConfig(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=len(CLASS_NAMES))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config)
        # Zero at the start of training: all answers would be equal.
        torch.nn.init.normal_(model.get_parameter("head.weight"))
    checkpoint = Checkpoint(
        model=model,
        model_config=config,
        class_names=CLASS_NAMES,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        dataset="tiny",
        metrics={},
        training={},
        commit=None,
    )
    save(folder, checkpoint)
    return folder
