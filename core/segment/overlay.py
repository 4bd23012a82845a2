"""Answers drawn over their picture, and heatmaps as pictures."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from core.segment.grounder import Image
from core.segment.results import PromptResult

# Okabe and Ito's colours, which most colour-blind people can tell apart; prompts beyond the eighth begin again.
PALETTE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255)),
)
_FILL = 0.45


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of the prompt with this number, counted from 0."""
    return PALETTE[number % len(PALETTE)]


def draw_overlay(image: Image, results: Sequence[PromptResult], *, labels: bool = True) -> Image:
    """The picture with every object tinted and outlined in its prompt's colour, and named where there is room."""
    canvas = image.astype(np.float32)
    height, width = image.shape[:2]
    stroke = max(1, round(min(height, width) / 200))
    for number, result in enumerate(results):
        colour = np.array(colour_of(number), np.float32)
        for instance in result.instances:
            left, top, right, bottom = instance.box_xyxy
            bits = instance.cropped.bits
            inner = ndimage.binary_erosion(bits, iterations=stroke, border_value=0)
            view = canvas[top:bottom, left:right]
            view[bits] += _FILL * (colour - view[bits])
            view[bits & ~inner] = colour
    drawn = PillowImage.fromarray(canvas.clip(0, 255).astype(np.uint8))
    if labels and min(height, width) >= 64:
        _name(drawn, results)
    return np.array(drawn)


def draw_heatmap(
    heatmap: Float[np.ndarray, "size size"], size: tuple[int, int], image: Image | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Probabilities as colours (0 dark blue, 1 yellow) at the picture's size, over the picture if it is given."""
    height, width = size
    cool = PillowImage.fromarray(heatmap.astype(np.float32)).resize((width, height), PillowImage.Resampling.BILINEAR)
    colours = matplotlib.colormaps["viridis"](np.asarray(cool).clip(0, 1))[..., :3] * 255
    if image is not None:
        colours = 0.35 * image + 0.65 * colours
    return colours.clip(0, 255).astype(np.uint8)


def _name(drawn: PillowImage.Image, results: Sequence[PromptResult]) -> None:
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=max(10, min(drawn.size) // 28))
    for number, result in enumerate(results):
        colour = colour_of(number)
        ink = "black" if sum(colour) > 330 else "white"
        for instance in result.instances:
            text = f"{result.prompt[:40]} {instance.score:.2f}"
            left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
            x = max(0, min(instance.box_xyxy[0], drawn.width - (right - left) - 4))
            y = max(0, instance.box_xyxy[1] - (bottom - top) - 5)
            pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
            pen.text((x + 2 - left, y + 2 - top), text, fill=ink, font=font)
