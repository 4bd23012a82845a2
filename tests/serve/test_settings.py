"""The settings: a mistake is named in one sentence, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from core.checkpoint import Checkpoint, save
from core.models import ViTConfig, build_model
from serve.app import build
from serve.settings import Settings, StartError


def test_values_given_as_words_on_the_command_line() -> None:
    settings = Settings.model_validate({"classifier": "some/folder", "max_upload_mb": "0.5", "batch_wait_ms": "2"})
    assert settings.classifier == Path.cwd() / "some" / "folder"
    assert settings.max_upload_bytes == 2**19


def test_every_setting_is_described_and_the_page_says_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs/service.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{name}` |" in page and f"| {field.description} |" in page, name


def test_a_link_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "latest").symlink_to("first")
    assert Settings(classifier=tmp_path / "latest").classifier == (tmp_path / "first").resolve()


def test_a_configuration_of_sam2_is_a_file_where_there_is_one_and_else_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").touch()
    assert Settings(sam2="w.pt", sam2_config="my.yaml").sam2_config == str(tmp_path / "my.yaml")
    assert Settings(sam2="w.pt", sam2_config="configs/sam2.1/t.yaml").sam2_config == "configs/sam2.1/t.yaml"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": "3"}, "no setting 'batch_size'; there are: preset, clipseg,"),
        ({"preset": "huge"}, "preset=huge: Input should be 'demo', 'tiny'"),
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas=2 is below replicas=3"),
        ({"sam2_config": "a.yaml"}, "sam2_config is of use with sam2 only"),
        ({"classifier": "x", "replicas": "0"}, "replicas=0: "),
        ({"classifier": "x", "device": "gpu"}, "device=gpu: "),
        ({"classifier": "x", "max_pixels": 10**9}, "max_pixels=1000000000: "),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartError) as raised:
        Settings.model_validate(values)
    assert sentence in raised.value.message
    assert "\n" not in raised.value.message


def test_a_folder_that_is_no_checkpoint_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="is not a checkpoint folder"):
        build(Settings(classifier=tmp_path))


def test_a_model_of_grey_pictures_ends_the_start(tmp_path: Path) -> None:
    config = ViTConfig(in_channels=1, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=2)
    checkpoint = Checkpoint(
        model=build_model(config),
        model_config=config,
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.5,),
        dataset="grey",
        metrics={},
        training={},
        commit=None,
    )
    save(tmp_path, checkpoint)
    with pytest.raises(StartError, match="takes 1 channels, pictures are RGB"):
        build(Settings(classifier=tmp_path))
