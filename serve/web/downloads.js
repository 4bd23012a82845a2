// Files made in the browser from the answer.

import { drawMask } from "./marks.js";
import { colourOf } from "./palette.js";
import { drawPicture } from "./picture.js";
import { encode } from "./png.js";
import { drawAnswers } from "./scene.js";

const MOST_LABELS = 255;

/** The picture at full size, with what the screen shows over it. @throws {Error} the browser cannot, or may not. */
export async function overlayFile(picture, prompts, look) {
  try {
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const context = canvas.getContext("2d");
    const atFullSize = (mark) => drawMask(mark.mask, mark.prompt.colour, picture);
    drawPicture(context, picture);
    drawAnswers(context, picture, prompts, { ...look, pointedAt: null }, atFullSize);
    return await canvas.convertToBlob({ type: "image/png" });
  } catch (error) {
    throw new Error(
      error.name === "SecurityError"
        ? "The site that this picture is from does not let it be copied. Save the picture, and choose the file instead."
        : "The overlay is too large for this browser. Save the label map or the JSON instead.",
    );
  }
}

/** One mask, the size of the picture: 255 inside, 0 outside. */
export function maskFile({ mask }, picture) {
  const pixels = new Uint8Array(picture.width * picture.height);
  fill(pixels, picture.width, mask, 255);
  return encode(picture.width, picture.height, pixels);
}

/**
 * All objects in one PNG of indexed colours: a pixel's index is the number of its object, 0 where there is none. Where
 * objects overlap, the smaller one is on top; the masks one by one, and the JSON, keep both.
 */
export function labelFile(marks, picture) {
  if (marks.length > MOST_LABELS)
    throw new Error(`A label map holds at most ${MOST_LABELS} objects; save the JSON instead.`);
  const pixels = new Uint8Array(picture.width * picture.height);
  for (const mark of [...marks].sort((one, other) => other.instance.area - one.instance.area)) {
    fill(pixels, picture.width, mark.mask, mark.number);
  }
  return encode(picture.width, picture.height, pixels, [
    [0, 0, 0],
    ...marks.map((mark) => colourOf(mark.prompt.place)),
  ]);
}

/** The answer as the service gave it, but for the heatmaps, which are there for the page's sliders. */
export function answerFile(answer, prompts) {
  const results = prompts.filter(({ result }) => result).map(({ result: { heatmap, ...rest } }) => rest);
  return new Blob([JSON.stringify({ ...answer, results }, null, 2)], { type: "application/json" });
}

/** Let the browser save it. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function fill(pixels, pictureWidth, { left, top, width, height, bits }, value) {
  for (let row = 0, bit = 0; row < height; row++) {
    let pixel = (top + row) * pictureWidth + left;
    for (let column = 0; column < width; column++, pixel++, bit++) if (bits[bit]) pixels[pixel] = value;
  }
}
