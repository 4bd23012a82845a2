import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint import Checkpoint, CheckpointError, load, save
from core.models import ViTConfig, build_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ViTConfig(image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    example = Checkpoint(
        model=build_model(config),
        model_config=config,
        class_names=("a", "b", "c"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        dataset="example",
        metrics={"val_accuracy": 0.5},
        training={"seed": 0},
        commit=None,
    )
    save(tmp_path / "saved", example)
    return tmp_path / "saved"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore::core.models.WastefulModelWarning")
class TestCheckpoint:
    def test_what_is_saved_is_loaded_and_saved_again_alike(self, folder: Path, tmp_path: Path) -> None:
        loaded = load(folder)
        images = torch.randn(2, 3, 8, 8)
        save(tmp_path / "again", loaded)
        again = load(tmp_path / "again")
        assert torch.equal(loaded.model(images), again.model(images))
        assert dataclasses.replace(loaded, model=again.model) == again
        assert not loaded.model.training
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(format_version=99), "format version 99, this code reads 1"),
            (lambda c: c.pop("class_names"), "lacks or garbles a field: 'class_names'"),
            (lambda c: c.update(model="vgg"), "unknown model 'vgg'"),
            (lambda c: c.update(model="resnet"), "resnet has no field depth"),
            (lambda c: c["model_config"].update(patch_size=3), "patch_size=3 does not divide image_size=8"),
            (lambda c: c["model_config"].update(dropout=0.1), "has no field dropout"),
            (lambda c: c["class_names"].append("d"), "names 4 classes, its model has 3"),
            (lambda c: c["model_config"].update(embed_dim=16), "does not fit the model"),
        ],
    )
    def test_a_wrong_config_is_named(
        self, folder: Path, change: Callable[[dict[str, Any]], None], message: str
    ) -> None:
        edit(folder, change)
        with pytest.raises(CheckpointError, match=message):
            load(folder)

    def test_damaged_and_missing_files_are_named(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is not a checkpoint folder: config\.json"):
            load(tmp_path)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="is not valid JSON"):
            load(folder)
