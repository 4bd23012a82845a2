"""What all models have in common."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """Maps normalised pictures to class logits, in stages whose features can be looked at."""

    @abstractmethod
    def stages(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """Features after each stage: maps `[batch, channels, height, width]` or tokens `[batch, tokens, dim]`."""

    @abstractmethod
    def classify(self, features: Tensor) -> Float[Tensor, "batch classes"]:
        """Class logits from the last stage."""

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.stages(images)[-1])

    def place(self, device: torch.device) -> "Classifier":
        """On the device, with kernels channels-last in memory, as `core.augment.normalise` lays out pictures.

        Else every convolution turns its weights round at every call.
        """
        return self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
