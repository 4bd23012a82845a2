"""Accuracy and loss on a set of pictures."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.augment import normalise
from core.data import ImageSet
from core.runtime import autocast

_BATCH_SIZE = 512


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: ImageSet,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    precision: str = "auto",
) -> dict[str, float]:
    """Single-view accuracy in [0, 1] and mean cross-entropy in nats, on the device the model is on."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    channel_mean, channel_std = (torch.tensor(v, device=device) for v in (mean, std))
    correct, loss = 0, 0.0
    for start in range(0, len(images), _BATCH_SIZE):
        # A fresh array: what comes from shared memory is read-only, which a tensor cannot be.
        pixels = torch.from_numpy(images.images[start : start + _BATCH_SIZE].copy()).to(device)
        labels = torch.from_numpy(images.labels[start : start + _BATCH_SIZE].copy()).to(device)
        with autocast(device, precision):
            logits: Tensor = model(normalise(pixels, channel_mean, channel_std))
        logits = logits.float()
        correct += int((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    model.train(was_training)
    return {"accuracy": correct / len(images), "loss": loss / len(images)}
