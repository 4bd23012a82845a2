// A heatmap of the answer: read, brought to the picture's proportions, cut at a threshold, and coloured.

import { heatColours } from "./palette.js";

// The longer side of what is drawn, in pixels; the heatmap itself is coarser.
const SIDE = 640;

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
  const column = Math.min(Math.floor(x * width), width - 1);
  const row = Math.min(Math.floor(y * height), height - 1);
  return shares[row * width + column];
}

/** What lies at or above the threshold, hatched and outlined: a preview must not be taken for an outline by SAM 2. */
export function drawAbove({ width, height, shares }, threshold, [red, green, blue]) {
  return drawPixels(width, height, (pixel, x, y) => {
    if (shares[pixel] < threshold) return null;
    if (isEdge(shares, width, height, x, y, threshold)) return [red, green, blue, 255];
    return [red, green, blue, (x + y) % 10 < 5 ? 165 : 80];
  });
}

/** The heatmap in colours, and where it crosses the threshold. */
export function drawHeat({ width, height, shares }, threshold) {
  const colours = heatColours();
  return drawPixels(width, height, (pixel, x, y) => {
    const isLine = shares[pixel] >= threshold && isEdge(shares, width, height, x, y, threshold);
    return isLine ? [255, 255, 255, 255] : [...colours[Math.round(shares[pixel] * 255)], 166];
  });
}

function isEdge(shares, width, height, x, y, threshold) {
  for (let dy = -2; dy <= 2; dy++) {
    for (let dx = -2; dx <= 2; dx++) {
      const [column, row] = [x + dx, y + dy];
      if (dx * dx + dy * dy > 4 || column < 0 || row < 0 || column >= width || row >= height) continue;
      if (shares[row * width + column] < threshold) return true;
    }
  }
  return false;
}

function drawPixels(width, height, colourAt) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let y = 0, pixel = 0; y < height; y++) {
    for (let x = 0; x < width; x++, pixel++) {
      const colour = colourAt(pixel, x, y);
      if (colour) image.data.set(colour, 4 * pixel);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
