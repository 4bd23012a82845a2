import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.segment.clipseg import ClipSeg
from core.segment.presets import PRESETS

PROMPTS = ["red circle", "a star", "something else entirely"]


@pytest.fixture(scope="module")
def clipseg(clipseg_folder: Path) -> ClipSeg:
    return ClipSeg.from_pretrained(clipseg_folder, precision="float32")


def test_the_shared_encoding_equals_the_documented_use(
    clipseg: ClipSeg, clipseg_folder: Path, pictures: list[np.ndarray]
) -> None:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    reference = CLIPSegForImageSegmentation.from_pretrained(clipseg_folder).eval()
    processor = CLIPSegProcessor.from_pretrained(clipseg_folder)
    picture = Image.fromarray(pictures[0])
    inputs = processor(text=PROMPTS, images=[picture] * len(PROMPTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = reference(**inputs).logits
    (ours,) = clipseg.heatmaps(clipseg.encode_images(pictures[:1]), [PROMPTS])
    assert expected.shape == (3, 352, 352) and expected.std() > 0
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_ragged_prompts_in_one_call_equal_those_asked_alone(clipseg: ClipSeg, pictures: list[np.ndarray]) -> None:
    asked = [PROMPTS[:2], [], PROMPTS[2:]]
    together = clipseg.heatmaps(clipseg.encode_images(pictures), asked)
    assert [len(maps) for maps in together] == [2, 0, 1]
    for picture, prompts, maps in zip(pictures, asked, together, strict=True):
        for prompt, heatmap in zip(prompts, maps, strict=True):
            (alone,) = clipseg.heatmaps(clipseg.encode_images([picture]), [[prompt]])
            # Random weights give logits in the hundreds, and float32 has seven digits.
            torch.testing.assert_close(heatmap / heatmap.std(), alone[0] / heatmap.std(), atol=1e-4, rtol=0)


def test_layers_that_are_not_read_are_not_run(
    clipseg: ClipSeg, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = clipseg.model.clip.vision_model.encoder.layers
    for layer in layers[10:]:
        monkeypatch.setattr(layer, "forward", None)
    assert clipseg.encode_images(pictures[:1])[0].activations.shape == (3, 1 + 22 * 22, 768)


def test_texts_are_embedded_once_and_long_ones_are_cut(clipseg: ClipSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    first = clipseg.encode_texts(["Red  Circle", "word " * 500])
    assert first.shape == (2, 512)
    monkeypatch.setattr(clipseg.model.clip, "get_text_features", None)
    torch.testing.assert_close(clipseg.encode_texts(["red circle"])[0], first[0])


def test_what_is_kept_of_a_batch_holds_its_own_memory_only(clipseg: ClipSeg, pictures: list[np.ndarray]) -> None:
    clipseg.encode_texts(PROMPTS)
    kept = [clipseg._texts[prompt] for prompt in PROMPTS]
    kept += [features.activations for features in clipseg.encode_images(pictures)]
    for tensor in kept:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no CLIPSeg checkpoint can be loaded from .*nowhere"):
        ClipSeg.from_pretrained(tmp_path / "nowhere")


def without_decoder(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("decoder.")}
    save_file(tensors, file, metadata={"format": "pt"})


def of_another_size(folder: Path) -> None:
    edit_config(folder, reduce_dim=32)


def of_nonsense(folder: Path) -> None:
    edit_config(folder, reduce_dim="many")


def of_another_kind(folder: Path) -> None:
    edit_config(folder, model_type="bert")


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def without_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def edit_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (without_decoder, "lacks .* tensors, such as decoder"),
        (of_another_size, "mismatch"),
        (of_nonsense, "reduce_dim"),
        (of_another_kind, "'bert'"),
        (cut_short, ""),
        (without_words, "tokenizer knows no words"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    folder = tmp_path / "clipseg"
    shutil.copytree(PRESETS["demo"][0], folder)
    damage(folder)
    with pytest.raises(ValueError, match=rf"(?s)no CLIPSeg checkpoint can be loaded from .*clipseg': .*{why}"):
        ClipSeg.from_pretrained(folder)
