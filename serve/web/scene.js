// What is drawn over the picture, on the screen and into the overlay's file alike.

import { drawHeat } from "./heatmap.js";
import { covers } from "./rle.js";

/**
 * Draw the answers over a canvas that shows the picture.
 *
 * @param {object} look `view`: "masks", "heat" or "picture"; `heatOf`: the prompt whose heatmap is shown; `pointedAt`:
 *   the mark that stands out; `isBare`: the picture alone, whatever the view.
 * @param {(mark: object) => OffscreenCanvas} canvasOf what is drawn for a mark.
 */
export function drawAnswers(context, picture, prompts, look, canvasOf = (mark) => mark.canvas) {
  const { view, heatOf, pointedAt, isBare } = look;
  const { width, height } = context.canvas;
  if (isBare) return;
  context.imageSmoothingEnabled = true;
  if (view === "heat" && heatOf?.shares) {
    heatOf.heat ??= drawHeat(heatOf.shares, heatOf.threshold ?? heatOf.result.threshold);
    context.drawImage(heatOf.heat, 0, 0, width, height);
  }
  if (view !== "masks") return;
  const scale = width / picture.width;
  for (const prompt of prompts) {
    if (prompt.preview) {
      context.globalAlpha = pointedAt ? 0.25 : 1;
      context.drawImage(prompt.preview, 0, 0, width, height);
      continue;
    }
    for (const mark of prompt.marks) {
      const { left, top, width: across, height: down } = mark.mask;
      const place = [left * scale, top * scale, across * scale, down * scale];
      context.globalAlpha = pointedAt && pointedAt !== mark ? 0.25 : 1;
      const drawn = canvasOf(mark);
      context.drawImage(drawn, ...place);
      if (pointedAt === mark) context.drawImage(drawn, ...place);
    }
  }
  context.globalAlpha = 1;
}

/** The smallest object at a point of the picture, as what lies on another is smaller; or null. */
export function markAt(prompts, x, y) {
  const hit = prompts
    .filter((prompt) => !prompt.preview)
    .flatMap((prompt) => prompt.marks)
    .filter((mark) => covers(mark.mask, x, y));
  return hit.sort((one, other) => one.instance.area - other.instance.area)[0] ?? null;
}
