// The service's answer to a prompt, made ready to be drawn.

import { readHeatmap, stretch } from "./heatmap.js";
import { drawMaskForScreen } from "./marks.js";
import { UNANSWERED } from "./prompts.js";
import { decode } from "./rle.js";

/**
 * What the prompt knows from now on; see `UNANSWERED`.
 *
 * @param {object} result one of the answer's `results`.
 * @param {number | null} asked the threshold that it was asked with, null for an automatic one.
 * @param {{width: number, height: number}} size of the picture.
 */
export async function read(result, prompt, asked, size) {
  const marks = result.instances.map((instance) => {
    const mask = decode(instance.mask);
    return { prompt, instance, mask, canvas: drawMaskForScreen(mask, prompt.colour, size) };
  });
  const shares = result.heatmap ? stretch(await readHeatmap(result.heatmap), size) : null;
  return { ...UNANSWERED, result, asked, marks: marks.filter((mark) => mark.canvas), shares };
}
