// Masks as something to draw: tinted and outlined in their prompt's colour, as core/segment/overlay.py does it.

const FILL = 0.45;

// More than a screen shows: masks of larger pictures are drawn smaller, or a photograph of each would be kept.
const LONGEST_SIDE = 2048;

/** For the screen: as `drawMask`, of a picture that is no larger than it needs to be. */
export function drawMaskForScreen(mask, colour, { width, height }) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  return drawMask(scale < 1 ? shrunk(mask, scale) : mask, colour, { width: scale * width, height: scale * height });
}

/** The mask as a canvas the size of its box, or null if it is empty. `picture`: `{width, height}`. */
export function drawMask({ width, height, bits }, [red, green, blue], picture) {
  if (!bits.length) return null;
  const stroke = strokeOf(picture);
  const depth = depths(bits, width, height);
  const image = new ImageData(width, height);
  for (let pixel = 0, at = 0; pixel < bits.length; pixel++, at += 4) {
    if (!bits[pixel]) continue;
    image.data[at] = red;
    image.data[at + 1] = green;
    image.data[at + 2] = blue;
    image.data[at + 3] = depth[pixel] > stroke ? Math.round(255 * FILL) : 255;
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function shrunk(mask, scale) {
  const width = Math.ceil(mask.width * scale);
  const height = Math.ceil(mask.height * scale);
  const bits = new Uint8Array(width * height);
  for (let row = 0, bit = 0; row < height; row++) {
    const start = Math.floor(((row + 0.5) / height) * mask.height) * mask.width;
    for (let column = 0; column < width; column++, bit++) {
      bits[bit] = mask.bits[start + Math.floor(((column + 0.5) / width) * mask.width)];
    }
  }
  return { width, height, bits };
}

/** How wide outlines are, in pixels of the picture. */
function strokeOf({ width, height }) {
  return Math.max(1, Math.round(Math.min(width, height) / 200));
}

/** For each pixel of a mask, the steps to the nearest one outside it or beyond the box; 0 outside. */
export function depths(bits, width, height) {
  const depth = new Uint16Array(bits.length);
  const at = (row, column) =>
    row < 0 || column < 0 || row >= height || column >= width ? 0 : depth[row * width + column];
  for (let row = 0, pixel = 0; row < height; row++) {
    for (let column = 0; column < width; column++, pixel++) {
      if (bits[pixel]) depth[pixel] = 1 + Math.min(at(row - 1, column), at(row, column - 1));
    }
  }
  for (let row = height - 1, pixel = bits.length - 1; row >= 0; row--) {
    for (let column = width - 1; column >= 0; column--, pixel--) {
      if (bits[pixel]) depth[pixel] = Math.min(depth[pixel], 1 + Math.min(at(row + 1, column), at(row, column + 1)));
    }
  }
  return depth;
}
