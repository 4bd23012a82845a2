"""Models of the public checkpoints' size with random weights, saved as those are: for shapes, parity and speed."""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file

from core.runtime import import_torchvision
from core.segment.calibration import Calibration
from core.segment.demo_clipseg import build_tokenizer
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.sam2 import build

# Variable of the environment that tells a program which folder of such models to use.
FULL_SIZE = "PATCHWORK_FULL_SIZE"
SAM2_TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


@dataclass(frozen=True)
class FullSize:
    """Checkpoints of CLIPSeg rd64-refined and SAM 2.1 tiny in a folder."""

    folder: Path
    # Of random heatmaps one object a prompt is outlined, as of a photograph that has it once; they have dozens.
    options: ClassVar = SegmentOptions(max_instances=1)

    @property
    def clipseg(self) -> Path:
        return self.folder / "clipseg"

    @property
    def sam2(self) -> Path:
        return self.folder / "sam2"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.json"

    def settings(self) -> dict[str, str]:
        """What names them to the service and to a batch job."""
        return {
            "clipseg": str(self.clipseg),
            "sam2": str(self.sam2),
            "calibration": str(self.calibration),
        }

    def save(self) -> "FullSize":
        """Write all of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_clipseg(self.clipseg)
        self.sam2.mkdir()
        shutil.copyfile(Path(str(resources.files("sam2") / SAM2_TINY)), self.sam2 / "config.yaml")
        torch.manual_seed(0)
        save_file(build(SAM2_TINY).state_dict(), self.sam2 / "model.safetensors")
        # What random weights see is everywhere in pieces: the largest is judged, and there are no closer looks.
        dataclasses.replace(Calibration(), zoom_below=0.0, min_area=1.0).save(self.calibration)
        return self

    def load(self) -> Segmenter:
        """The pipeline with these models."""
        return Segmenter.from_pretrained(
            clipseg=self.clipseg, sam2=self.sam2, calibration=Calibration.load(self.calibration)
        )


def chosen() -> tuple[Segmenter, SegmentOptions]:
    """The pipeline that a program is to use, and what it is asked; `demo` unless the variable says otherwise."""
    folder = os.environ.get(FULL_SIZE)
    if folder:
        return FullSize(Path(folder)).load(), FullSize.options
    return Segmenter.from_preset("demo"), SegmentOptions()


def save_clipseg(folder: Path) -> None:
    """CLIPSeg rd64-refined's public configuration, saved as the public checkpoints are."""
    import_torchvision()
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
    from transformers.models.vit.image_processing_vit import ViTImageProcessor

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = CLIPSegConfig(
        text_config={"vocab_size": 49408, "eos_token_id": tokenizer.eos_token_id},
        vision_config={"image_size": 352, "patch_size": 16},
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    images = ViTImageProcessor(
        size={"height": 352, "width": 352}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    CLIPSegProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
