"""The README's picture of segmentation: for three prompts the scene, the heatmap, the coarse mask and the answer.

python -m benchmarks.segmentation_picture
python -m benchmarks.segmentation_picture --seed 10000007 --prompts "red star" ring "small object"
python -m benchmarks.segmentation_picture --image photo.jpg --preset tiny --prompts "a truck" "a wheel"
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import tyro
from matplotlib import pyplot as plt

from core.images import decode
from core.segment.demo_training import EVALUATION_SEED
from core.segment.options import SegmentOptions
from core.segment.overlay import draw_heatmap, draw_overlay
from core.segment.pipeline import Segmenter
from core.segment.scenes import generate_scene, render


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the command."""

    seed: int = EVALUATION_SEED + 31
    """Scene to draw, where there is no --image; those from 10,000,000 on were never trained on."""
    image: Path | None = None
    """Picture to use in a scene's place."""
    preset: str = "demo"
    """Weights: demo, tiny, small, base or large."""
    prompts: tuple[str, ...] = ("heart", "small cross", "green triangle")
    """One row each."""
    output: Path = Path("docs/images/segmentation.png")
    """File to write."""


def main(settings: Settings) -> None:
    """Draw the rows and say what was found."""
    segmenter = Segmenter.from_preset(settings.preset)
    if settings.image is None:
        image, _ = render(generate_scene(settings.seed), 384)
    else:
        image = decode(settings.image.read_bytes(), max_pixels=40_000_000)
    size = (image.shape[0], image.shape[1])
    coarse, answers = (
        segmenter.segment([image], [settings.prompts], options)[0]
        for options in (SegmentOptions(refine=False, zoom=False, min_presence=0.0), SegmentOptions())
    )
    rows = len(settings.prompts)
    figure, axes = plt.subplots(rows, 4, figsize=(10, 2.5 * rows + 0.4), squeeze=False, layout="constrained")
    for row, (rough, answer) in enumerate(zip(coarse, answers, strict=True)):
        pictures = (
            image,
            draw_heatmap(answer.heatmap, size),
            draw_overlay(image, [rough], labels=False),
            draw_overlay(image, [answer], labels=False),
        )
        verdict = f"{len(answer.instances)} found" if answer.found else "not found"
        captions = (
            "picture",
            "heatmap (CLIPSeg)",
            f"coarse mask (threshold {answer.threshold:.2f})",
            f"ours: {verdict}",
        )
        for axis, picture, caption in zip(axes[row], pictures, captions, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.set_title(caption, fontsize=9)
        axes[row][0].set_ylabel(answer.prompt, fontsize=11)
        print(f"{answer.prompt}: {verdict}{'' if answer.reason is None else f', {answer.reason}'}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output, dpi=90)
    print(settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
