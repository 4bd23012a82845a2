from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from core.checkpoint import Checkpoint, load, save
from core.flops import training_flops_per_image
from core.models import ResNetConfig, build_model


def torchvisions_cifar_form(num_classes: int) -> ResNet:
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize("training", [True, False])
def test_logits_and_gradients_equal_torchvisions_on_the_same_weights(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = build_model(ResNetConfig(num_classes=7)), torchvisions_cifar_form(7)
    for name, tensor in theirs.state_dict().items():  # norms that do something, also in evaluation
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.normal_(std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.train(training), theirs.train(training)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    if training:
        ours(images).square().sum().backward()
        theirs(images).square().sum().backward()
        mine, reference = (model.get_submodule("layer2.0.conv1").weight.grad for model in (ours, theirs))
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4 * float(reference.abs().max()))


def test_resnet_18_costs_what_is_known_and_half_the_width_a_quarter() -> None:
    with torch.device("meta"):
        whole, half = build_model(ResNetConfig()), build_model(ResNetConfig(width=32))
    assert sum(p.numel() for p in whole.parameters()) == 11_173_962
    flops = training_flops_per_image(whole, (3, 32, 32))
    assert flops == pytest.approx(3.33e9, rel=0.01)
    assert training_flops_per_image(half, (3, 32, 32)) / flops == pytest.approx(0.25, rel=0.01)


def test_zero_init_makes_every_block_start_as_its_shortcut() -> None:
    model = build_model(ResNetConfig(width=8, num_stages=1, zero_init_residual=True))
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(model.get_submodule("layer1.0")(x), x)


def test_a_checkpoint_is_loaded_by_its_kind(tmp_path: Path) -> None:
    config = ResNetConfig(image_size=8, width=8, num_stages=2, num_classes=2)
    model = build_model(config)
    model(torch.randn(16, 3, 8, 8))  # moves the running statistics
    save(
        tmp_path,
        Checkpoint(
            model=model,
            model_config=config,
            class_names=("a", "b"),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            dataset="example",
            metrics={},
            training={},
            commit=None,
        ),
    )
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(load(tmp_path).model(images), model.eval()(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"width": 4}, "width must be at least 8, got 4"),
        ({"num_stages": 7}, "num_stages=7 halves 32 pixels to less than one"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**fields)
