// COCO's compressed run lengths, read into masks that are cropped to their box.

/**
 * The run lengths in a `counts` string: pixels outside, inside, outside, ... in turn, column by column.
 *
 * Each number is a series of characters with six bits over 48: five of the number, the lowest first, and one that says
 * whether more follow; the highest bit of the last five is the sign. From the fourth number on, what is written is the
 * difference to the number two places before (pycocotools, `rleToString`).
 */
export function readCounts(text) {
  const counts = [];
  let at = 0;
  while (at < text.length) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      if (at >= text.length) throw new RangeError("The mask's run lengths end too early.");
      bits = text.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      shift += 5;
    } while (bits & 0x20);
    if (bits & 0x10) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/**
 * The mask of `{size: [height, width], counts}`.
 *
 * @returns {{left: number, top: number, width: number, height: number, bits: Uint8Array}} where the box lies in the
 *   picture, and a byte a pixel of it, row by row, 1 inside. The box of an empty mask has no pixels.
 * @throws {RangeError} the run lengths do not add up to the picture.
 */
export function decode({ size: [rows, columns], counts }) {
  const runs = [];
  let end = 0;
  let [left, top, right, bottom] = [columns, rows, 0, 0];
  readCounts(counts).forEach((length, index) => {
    const start = end;
    end += length;
    if (length < 0 || end > rows * columns) throw new RangeError("The mask's run lengths do not fit the picture.");
    if (index % 2 === 0 || length === 0) return;
    runs.push([start, end]);
    const [first, last] = [Math.floor(start / rows), Math.floor((end - 1) / rows)];
    left = Math.min(left, first);
    right = Math.max(right, last + 1);
    // A run that goes over into the next column touches both the last row and the first.
    top = Math.min(top, first === last ? start % rows : 0);
    bottom = Math.max(bottom, first === last ? ((end - 1) % rows) + 1 : rows);
  });
  if (end !== rows * columns) throw new RangeError("The mask's run lengths do not fill the picture.");
  if (!runs.length) return { left: 0, top: 0, width: 0, height: 0, bits: new Uint8Array(0) };

  const [width, height] = [right - left, bottom - top];
  const bits = new Uint8Array(width * height);
  for (const [start, stop] of runs) {
    let column = Math.floor(start / rows);
    let row = start % rows;
    for (let pixel = start; pixel < stop; pixel++) {
      bits[(row - top) * width + column - left] = 1;
      if (++row === rows) {
        row = 0;
        column++;
      }
    }
  }
  return { left, top, width, height, bits };
}

/** Whether the mask covers the pixel at (x, y) of the picture. */
export function covers({ left, top, width, height, bits }, x, y) {
  const [column, row] = [x - left, y - top];
  return column >= 0 && row >= 0 && column < width && row < height && bits[row * width + column] === 1;
}
