"""timm's vision transformer trained the usual way: the contender of `benchmarks.training`."""

import time
from collections.abc import Generator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from core.data import Dataset, ImageSet
from core.models import ViTConfig
from core.runtime import autocast


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """Pictures as torchvision's datasets give them: a PIL picture through a transform, one at a time."""

    def __init__(self, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = self.transform(Image.fromarray(self.images.images[index]))
        return image, int(self.images.labels[index])


class TimmTraining:
    """timm's ViT trained the usual way; `tuned` adds bf16 autocast and torch.compile, and nothing else."""

    def __init__(
        self, data: Dataset, device: torch.device, *, batch_size: int, num_workers: int, seconds: float, tuned: bool
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        shape = ViTConfig(num_classes=len(data.class_names))
        model = VisionTransformer(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            mlp_ratio=shape.mlp_ratio,
            class_token=True,
            init_values=shape.layer_scale,
            num_classes=shape.num_classes,
        ).to(device)
        self.num_params = sum(p.numel() for p in model.parameters())
        self.batch_size, self.num_workers, self.seconds = batch_size, num_workers, seconds
        self.device = device
        self.precision = "bf16" if tuned else "float32"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        self.model: nn.Module = torch.compile(model) if tuned else model  # pyright: ignore[reportAttributeAccessIssue]
        self.pictures = Pictures(data.train, data.mean, data.std)

    def images_per_second(self) -> float:
        """Train for a turn of `seconds`. Worker processes end with it, so that they do not work into another's turn."""
        batches = self._batches()
        # What the workers loaded ahead, two batches each, is thrown away: it would be a head start.
        for _ in range(2 * self.num_workers):
            next(batches)
        self._step(*next(batches))
        wait_for(self.device)
        started, num_images = time.perf_counter(), 0
        while time.perf_counter() - started < self.seconds:
            self._step(*next(batches))
            num_images += self.batch_size
        wait_for(self.device)
        elapsed = time.perf_counter() - started
        batches.close()
        return num_images / elapsed

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        loader = DataLoader(
            self.pictures,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        while True:
            yield from loader

    def _step(self, images: Tensor, labels: Tensor) -> None:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        with autocast(self.device, self.precision):
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cpu":
            loss.item()


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
