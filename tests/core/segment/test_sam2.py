import datetime
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import sam2 as sam2_package
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from benchmarks.full_size import SAM2_TINY
from core.segment.presets import PRESETS
from core.segment.sam2 import MaskPrompt, Sam2, build

BOX = np.array([20.0, 30.0, 120.0, 110.0])
POINTS, LABELS = np.array([[60.0, 60.0], [150.0, 20.0]]), np.array([1, 0])
COARSE = np.linspace(-8, 8, 256 * 256).reshape(256, 256).astype(np.float32)
PROMPTS = [
    MaskPrompt(box_xyxy=BOX),
    MaskPrompt(points=POINTS, point_labels=LABELS),
    MaskPrompt(box_xyxy=BOX + 5),
    MaskPrompt(box_xyxy=BOX, points=POINTS, point_labels=LABELS),
    MaskPrompt(points=POINTS, point_labels=LABELS, mask_logits=COARSE),
]


@pytest.fixture(scope="module")
def sam2(sam2_file: Path) -> Sam2:
    return Sam2.from_pretrained(sam2_file, config=SAM2_TINY, precision="float32")


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # sam2's predictor compiles its transforms
def test_batched_decoding_equals_the_predictor(sam2: Sam2, pictures: list[np.ndarray]) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    rows = [0, 1, 0, 1, 0]
    features = sam2.encode_images(pictures[:2])
    ours = {m: sam2.decode([features[row] for row in rows], PROMPTS, multimask=m) for m in (True, False)}
    predictor = SAM2ImagePredictor(sam2.model)
    for picture in set(rows):
        predictor.set_image(pictures[picture])
        for multimask, number in itertools.product(ours, range(len(rows))):
            if rows[number] != picture:
                continue
            prompt, answer = PROMPTS[number], ours[multimask][number]
            _, scores, logits = predictor.predict(
                point_coords=prompt.points,
                point_labels=prompt.point_labels,
                box=prompt.box_xyxy,
                mask_input=None if prompt.mask_logits is None else prompt.mask_logits[None],
                multimask_output=multimask,
            )
            assert np.std(logits) > 0
            np.testing.assert_allclose(answer.mask_logits.numpy(), logits, atol=1e-4)
            np.testing.assert_allclose(answer.iou_scores.numpy(), scores, atol=1e-4)


def test_masks_come_at_the_size_of_the_picture(sam2: Sam2, pictures: list[np.ndarray]) -> None:
    features = sam2.encode_images(pictures[:1])
    (answer,) = sam2.decode(features, PROMPTS[:1])
    assert features[0].size == pictures[0].shape[:2]
    assert sam2.upsample(answer.mask_logits, features[0].size).shape == (3, *pictures[0].shape[:2])
    assert answer.mask_logits.shape == (3, sam2.low_res_size, sam2.low_res_size) == (3, 256, 256)


def test_a_pyramid_that_is_not_sam2s_is_refused(tmp_path: Path) -> None:
    config = OmegaConf.load(Path(sam2_package.__file__).parent / SAM2_TINY)
    config.model.image_encoder.neck.fpn_top_down_levels = [1, 2, 3]
    OmegaConf.save(config, tmp_path / "config.yaml")
    save_file(build(str(tmp_path / "config.yaml")).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"pyramid is not that of SAM 2: .*\[1, 2, 3\]"):
        Sam2.from_pretrained(tmp_path)


def test_prompts_that_mislead_are_refused() -> None:
    with pytest.raises(ValueError, match="a prompt needs a box or points"):
        MaskPrompt(mask_logits=COARSE)
    with pytest.raises(ValueError, match="go together"):
        MaskPrompt(points=POINTS)
    with pytest.raises(ValueError, match="not booleans"):
        MaskPrompt(box_xyxy=BOX, mask_logits=COARSE > 0)


def test_bad_checkpoints_are_refused_by_name(sam2_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs config= \(the setting sam2_config\)"):
        Sam2.from_pretrained(sam2_file)
    for checkpoint in (PRESETS["demo"][1], "facebook/sam2.1-hiera-tiny"):
        with pytest.raises(ValueError, match=rf"config= \(the setting sam2_config\) goes with a file.*{checkpoint}"):
            Sam2.from_pretrained(checkpoint, config=SAM2_TINY)
    with pytest.raises(ValueError, match=r"does not fit configs/sam2.1/sam2.1_hiera_s.yaml"):
        Sam2.from_pretrained(sam2_file, config="configs/sam2.1/sam2.1_hiera_s.yaml")
    with pytest.raises(ValueError, match=r"facebook/sam2\.1-hiera-tiny"):
        Sam2.from_pretrained("nowhere/at-all")
    (tmp_path / "config.yaml").write_text("model: {_target_: os.system, command: 'touch /tmp/owned'}")
    torch.save({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"only classes of sam2\.modeling are allowed"):
        Sam2.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hello", "cannot be read: it is damaged"),
        ([1, 2], "cannot be read: it holds no tensors"),
        ({"weights": {}}, "cannot be read: it holds no tensors"),
        ({"model": [1, 2]}, "cannot be read: it holds no tensors"),
        ({"model": {}, "when": datetime.datetime(2026, 1, 1)}, "cannot be read: .*other things than tensors$"),
        ({"model": {}}, "does not fit"),
    ],
    ids=["noise", "a list", "another name", "no names", "an object", "nothing"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: object, why: str, tmp_path: Path) -> None:
    file = tmp_path / "sam2.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=rf"sam2\.pt {why}"):
        Sam2.from_pretrained(file, config=f"{PRESETS['demo'][1]}/config.yaml")


def test_a_folder_whose_weights_are_cut_short_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PRESETS["demo"][1], tmp_path / "sam2")
    file = tmp_path / "sam2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        Sam2.from_pretrained(tmp_path / "sam2")


@pytest.mark.parametrize(
    "text",
    [
        "model: {_target_: sam2.modeling.sam2_base.SAM2Base, foo: 1}",
        "model: {_target_: sam2.modeling.nothing.Nothing}",
        "model: {_target_: sam2.modeling.position_encoding.PositionEmbeddingRandom}",
        "model: {foo: 1}",
        "model: [1]",
        "model: {foo: '${bar}'}",
        "model: {",
        "- model",
    ],
)
def test_a_configuration_that_is_not_sam2s_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        build(str(file))
