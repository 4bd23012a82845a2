"""A checkpoint put to use: from raw pictures to class probabilities."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from core.augment import normalise
from core.checkpoint import WEIGHTS_FILE, Checkpoint, CheckpointError, load
from core.images import resize
from core.models import model_kind
from core.runtime import resolve_device


class ImageClassifier:
    """A classifier on its device, with the normalisation that it was trained with.

    revision: the first digits of its weights' SHA-256. image_size: side of the square that it works on, in pixels.
    """

    def __init__(self, checkpoint: Checkpoint, revision: str, device: torch.device) -> None:
        self.name = f"{model_kind(checkpoint.model_config)}-{checkpoint.dataset}"
        self.revision = revision
        self.dataset, self.class_names = checkpoint.dataset, checkpoint.class_names
        self.image_size = checkpoint.model_config.image_size
        self.device = device
        self.model = checkpoint.model.place(device)
        self._mean = torch.tensor(checkpoint.mean, device=device)
        self._std = torch.tensor(checkpoint.std, device=device)

    @classmethod
    def from_folder(cls, folder: Path, device: str = "auto") -> "ImageClassifier":
        """Load a checkpoint folder.

        Args:
            device: as `core.runtime.resolve_device` takes it.

        Raises:
            CheckpointError: it is not a usable checkpoint of a model for RGB pictures; the message says why.
        """
        checkpoint = load(folder)
        channels = checkpoint.model_config.in_channels
        if channels != 3:
            raise CheckpointError(f"the model in {folder} takes {channels} channels, pictures are RGB")
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            revision = hashlib.file_digest(weights, "sha256").hexdigest()[:12]
        return cls(checkpoint, revision, resolve_device(device))

    def fit(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "side side 3"]:
        """The picture at the model's own size.

        Raises:
            PictureError: the array is not uint8 `[height, width, 3]`.
        """
        return resize(image, self.image_size)

    def scores(self, images: Sequence[UInt8[np.ndarray, "side side 3"]]) -> Float32[np.ndarray, "batch classes"]:
        """Softmax probabilities of pictures that `fit` has scaled; one call of the model."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        with torch.inference_mode():
            logits = self.model(normalise(pixels, self._mean, self._std))
            return logits.float().softmax(dim=1).cpu().numpy()
