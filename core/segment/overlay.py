"""Answers drawn over their picture, and heatmaps as pictures."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from core.segment.grounder import Image
from core.segment.results import CroppedMask, PromptResult

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
    canvas = image.copy()
    height, width = image.shape[:2]
    stroke = max(1, round(min(height, width) / 200))
    # A strip at a time: tints that lie over one another are rounded once, and the whole picture in float32 is large.
    step = 8 * stroke
    for top in range(0, height, step):
        strip = image[top : top + step].astype(np.float32)
        for number, result in enumerate(results):
            for instance in result.instances:
                _tint(strip, top, instance.cropped, np.array(colour_of(number), np.float32), stroke)
        canvas[top : top + step] = strip.clip(0, 255)
    if labels and min(height, width) >= 64:
        _name(canvas, results)
    return canvas


def _tint(
    strip: Float[np.ndarray, "rows width 3"], top: int, mask: CroppedMask, colour: np.ndarray, stroke: int
) -> None:
    """Tint and outline an object's part of the strip of the picture that begins at the row `top`."""
    left, upper, right, lower = mask.box_xyxy
    first, last = max(top, upper), min(top + len(strip), lower)
    if first >= last:
        return
    # The outline in a row depends on the rows that are no further away than its width.
    start = max(upper, first - stroke)
    bits = mask.bits[start - upper : last + stroke - upper]
    inner = np.asarray(ndimage.binary_erosion(bits, iterations=stroke, border_value=0), bool)
    rows = slice(first - start, last - start)
    bits, outline = bits[rows], (bits & ~inner)[rows]
    view = strip[first - top : last - top, left:right]
    view[bits] += _FILL * (colour - view[bits])
    view[outline] = colour


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


def _name(canvas: Image, results: Sequence[PromptResult]) -> None:
    height, width = canvas.shape[:2]
    font = ImageFont.load_default(size=max(10, min(height, width) // 28))
    pen = ImageDraw.Draw(PillowImage.new("RGB", (1, 1)))
    for number, result in enumerate(results):
        colour = colour_of(number)
        ink = "black" if sum(colour) > 330 else "white"
        for instance in result.instances:
            text = f"{result.prompt[:40]} {instance.score:.2f}"
            left, top, right, bottom = (round(value) for value in pen.textbbox((0, 0), text, font=font))
            label = PillowImage.new("RGB", (right - left + 5, bottom - top + 5), colour)
            ImageDraw.Draw(label).text((2 - left, 2 - top), text, fill=ink, font=font)
            x = max(0, min(instance.box_xyxy[0], width - (right - left) - 4))
            y = max(0, instance.box_xyxy[1] - (bottom - top) - 5)
            there = canvas[y : y + label.height, x : x + label.width]
            there[:] = np.asarray(label)[: there.shape[0], : there.shape[1]]
