// A heatmap of the answer: read, brought to the picture's proportions, cut at a threshold, and coloured.

import { depths } from "./marks.js";
import { heatColours } from "./palette.js";

// The longer side of what is drawn, in pixels; the heatmap itself is coarser.
const SIDE = 640;
const LINE = 2;
const WHITE = [255, 255, 255];

/** The values of `{data}`, a grey PNG in base64: `{rows, columns, values}`, 255 for a probability of 1. */
export async function readHeatmap({ data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const { width: columns, height: rows } = bitmap;
  const context = new OffscreenCanvas(columns, rows).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, columns, rows).data;
  return { rows, columns, values: Uint8Array.from({ length: rows * columns }, (_, pixel) => rgba[4 * pixel]) };
}

/**
 * The heatmap, which is the whole picture squeezed into a square, in the picture's proportions: probabilities from 0 to
 * 1, bilinear between the middles of the cells.
 */
export function stretch({ rows, columns, values }, picture) {
  const scale = SIDE / Math.max(picture.width, picture.height);
  const width = Math.max(1, Math.round(picture.width * scale));
  const height = Math.max(1, Math.round(picture.height * scale));
  const across = taps(width, columns);
  const shares = new Float32Array(width * height);
  taps(height, rows).forEach(([upper, lower, down], y) => {
    across.forEach(([left, right, along], x) => {
      const above = mix(values[upper * columns + left], values[upper * columns + right], along);
      const below = mix(values[lower * columns + left], values[lower * columns + right], along);
      shares[y * width + x] = mix(above, below, down) / 255;
    });
  });
  return { width, height, shares };
}

function taps(length, cells) {
  return Array.from({ length }, (_, index) => {
    const at = Math.min(Math.max(((index + 0.5) / length) * cells - 0.5, 0), cells - 1);
    const low = Math.min(Math.floor(at), Math.max(cells - 2, 0));
    return [low, Math.min(low + 1, cells - 1), at - low];
  });
}

function mix(one, other, share) {
  return one + share * (other - one);
}

/** The probability at a point, given in shares of the picture's width and height. */
export function shareAt({ width, height, shares }, x, y) {
  const column = Math.min(Math.max(Math.floor(x * width), 0), width - 1); // a finger may be dragged off the edge
  const row = Math.min(Math.max(Math.floor(y * height), 0), height - 1);
  return shares[row * width + column];
}

/**
 * What lies at or above the threshold, hatched and outlined, so that it is not taken for an outline by SAM 2; and the
 * share of the picture that it covers.
 */
export function drawAbove({ width, height, shares }, threshold, [red, green, blue]) {
  const bits = cut(shares, threshold);
  const depth = depths(bits, width, height);
  const image = new ImageData(width, height);
  let covered = 0;
  for (let pixel = 0, at = 0; pixel < bits.length; pixel++, at += 4) {
    if (!bits[pixel]) continue;
    covered++;
    const isHatched = ((pixel % width) + Math.floor(pixel / width)) % 10 < 5;
    image.data[at] = red;
    image.data[at + 1] = green;
    image.data[at + 2] = blue;
    image.data[at + 3] = depth[pixel] <= LINE ? 255 : isHatched ? 165 : 80;
  }
  return { preview: canvasOf(image), covered: covered / bits.length };
}

/** The heatmap in colours, and a white line where it crosses the threshold. */
export function drawHeat({ width, height, shares }, threshold) {
  const colours = heatColours();
  const depth = depths(cut(shares, threshold), width, height);
  const image = new ImageData(width, height);
  for (let pixel = 0, at = 0; pixel < shares.length; pixel++, at += 4) {
    const isLine = depth[pixel] > 0 && depth[pixel] <= LINE;
    image.data.set(isLine ? WHITE : colours[Math.round(shares[pixel] * 255)], at);
    image.data[at + 3] = isLine ? 255 : 166;
  }
  return canvasOf(image);
}

function cut(shares, threshold) {
  return Uint8Array.from(shares, (share) => (share >= threshold ? 1 : 0));
}

function canvasOf(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
