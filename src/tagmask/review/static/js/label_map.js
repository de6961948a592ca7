/**
 * Functions on label maps: a Uint8Array of H·W class ids, row by row; 0 is background, 255 is "not sure".
 *
 * A rectangle is {left, top, right, bottom} in pixels; right and bottom are not part of it. null is an empty one.
 */

export const BACKGROUND = 0;
export const NOT_SURE = 255;
export const STRIDE = 4; // the size of a cell of the response maps in pixels

/** Returns the smallest rectangle that contains both. */
export function union(a, b) {
  if (!a || !b) return a ?? b;
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}

/**
 * Returns a function that says whether a pixel may be painted, by its present label.
 *
 * @param {number} label the label to paint with.
 * @param {number} active the class that the person has chosen; the eraser takes only this one if `keep` is true.
 * @param {boolean} keep whether the pixels of other classes, and those that are not sure, stay.
 */
export function paintRule(label, active, keep) {
  if (!keep) return () => true;
  return label === BACKGROUND ? (present) => present === active : (present) => present === BACKGROUND;
}

/**
 * Paints a straight stroke of a round brush: the pixels whose center is at most diameter / 2 away from the line.
 *
 * @param {{labels: Uint8Array, painted: Uint8Array, width: number, height: number}} mask is changed; `painted` is 1
 *     where a person has painted.
 * @param {[number, number]} from (x, y) in pixels; the center of the first pixel is (0.5, 0.5).
 * @param {[number, number]} to the other end.
 * @param {number} diameter in pixels; a brush of 1 pixel paints the pixel that it is in.
 * @param {number} label the new label.
 * @param {(present: number) => boolean} mayPaint see `paintRule`.
 * @returns the rectangle that may have changed.
 */
export function paintStroke(mask, from, to, diameter, label, mayPaint) {
  const { labels, painted, width, height } = mask;
  if (diameter <= 1) {
    from = from.map((value) => Math.floor(value) + 0.5);
    to = to.map((value) => Math.floor(value) + 0.5);
  }
  const radius = Math.max(diameter / 2, 0.5);
  const [x0, y0] = from;
  const [dx, dy] = [to[0] - x0, to[1] - y0];
  const length = dx * dx + dy * dy;
  const left = Math.max(0, Math.floor(Math.min(x0, to[0]) - radius));
  const right = Math.min(width, Math.ceil(Math.max(x0, to[0]) + radius));
  const top = Math.max(0, Math.floor(Math.min(y0, to[1]) - radius));
  const bottom = Math.min(height, Math.ceil(Math.max(y0, to[1]) + radius));
  if (left >= right || top >= bottom) return null;
  const limit = radius * radius;
  for (let y = top; y < bottom; y++) {
    const py = y + 0.5 - y0;
    for (let x = left, i = y * width + left; x < right; x++, i++) {
      const px = x + 0.5 - x0;
      const along = length && Math.min(1, Math.max(0, (px * dx + py * dy) / length));
      const [ex, ey] = [px - along * dx, py - along * dy];
      if (ex * ex + ey * ey <= limit && mayPaint(labels[i])) {
        labels[i] = label;
        painted[i] = 1;
      }
    }
  }
  return { left, top, right, bottom };
}

/** Gives some pixels (indices y · width + x) a label. Returns the rectangle that has changed. */
export function paintPixels(mask, pixels, label, mayPaint) {
  const { labels, painted, width, height } = mask;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (const i of pixels) {
    if (!mayPaint(labels[i])) continue;
    labels[i] = label;
    painted[i] = 1;
    const x = i % width;
    const y = (i - x) / width;
    if (x < left) left = x;
    if (x >= right) right = x + 1;
    if (y < top) top = y;
    if (y >= bottom) bottom = y + 1;
  }
  return left < right ? { left, top, right, bottom } : null;
}

/** Returns the indices of the connected pixels (4 neighbors) that have the label of the pixel (x, y). */
export function connectedPixels(labels, width, height, x, y) {
  const start = y * width + x;
  const label = labels[start];
  const seen = new Uint8Array(labels.length);
  const found = [start]; // also the queue
  seen[start] = 1;
  const visit = (i) => {
    if (!seen[i] && labels[i] === label) {
      seen[i] = 1;
      found.push(i);
    }
  };
  for (let n = 0; n < found.length; n++) {
    const i = found[n];
    const column = i % width;
    if (column > 0) visit(i - 1);
    if (column < width - 1) visit(i + 1);
    if (i >= width) visit(i - width);
    if (i + width < labels.length) visit(i + width);
  }
  return found;
}

/**
 * Groups the pixels of a segmentation (Uint32Array of H·W numbers) by segment.
 *
 * @returns a function from a number to the indices of its pixels, ascending.
 */
export function pixelsBySegment(segments) {
  let highest = 0;
  for (let i = 0; i < segments.length; i++) if (segments[i] > highest) highest = segments[i];
  const ends = new Uint32Array(highest + 2);
  for (let i = 0; i < segments.length; i++) ends[segments[i] + 1]++;
  for (let n = 1; n < ends.length; n++) ends[n] += ends[n - 1];
  const starts = ends.slice();
  const pixels = new Uint32Array(segments.length);
  for (let i = 0; i < segments.length; i++) pixels[ends[segments[i]]++] = i;
  return (segment) => pixels.subarray(starts[segment], starts[segment + 1]);
}

/** Returns what bilinear interpolation by 4 (align_corners=False) mixes: two cells, and the share of the second one. */
function interpolation(pixels, cells) {
  const before = new Uint32Array(pixels);
  const after = new Uint32Array(pixels);
  const share = new Float32Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const position = Math.max(0, (i + 0.5) / STRIDE - 0.5);
    before[i] = Math.floor(position);
    after[i] = Math.min(before[i] + 1, cells - 1);
    share[i] = position - before[i];
  }
  return { before, after, share };
}

/**
 * Upsamples one response map to the size of its image, as `tagmask.maps.upsample` does, row by row.
 *
 * @param {Float32Array} map h·w activations, h = ceil(height / 4), w = ceil(width / 4).
 * @param {(y: number, row: Float32Array) => void} onRow gets each row; the array is used again for the next one.
 */
export function upsampleRows(map, width, height, onRow) {
  const upsampler = rowUpsampler(width, height);
  const row = new Float32Array(width);
  for (let y = 0; y < height; y++) {
    upsampler(map, y, row);
    onRow(y, row);
  }
}

function rowUpsampler(width, height) {
  const cells = Math.ceil(width / STRIDE);
  const across = interpolation(width, cells);
  const down = interpolation(height, Math.ceil(height / STRIDE));
  const line = new Float32Array(cells);
  return (map, y, row) => {
    const [upper, lower, share] = [down.before[y] * cells, down.after[y] * cells, down.share[y]];
    for (let c = 0; c < cells; c++) line[c] = (1 - share) * map[upper + c] + share * map[lower + c];
    for (let x = 0; x < row.length; x++) {
      row[x] = (1 - across.share[x]) * line[across.before[x]] + across.share[x] * line[across.after[x]];
    }
  };
}

/**
 * Cuts response maps into a label map: a pixel gets the class whose activation is furthest above its threshold.
 *
 * Equal thresholds give `ResponseMaps.label_map(threshold)`. Of equally active classes, the first wins.
 *
 * @param {{classId: number, map: Float32Array, threshold: number}[]} cuts by ascending class id.
 * @returns {Uint8Array} H·W.
 */
export function cutMaps(cuts, width, height) {
  const labels = new Uint8Array(width * height);
  const upsample = rowUpsampler(width, height);
  const row = new Float32Array(width);
  const margins = new Float64Array(width);
  const thresholds = cuts.map(({ threshold }) => Math.fround(threshold));
  for (let y = 0; y < height; y++) {
    margins.fill(0);
    const offset = y * width;
    cuts.forEach(({ classId, map }, n) => {
      upsample(map, y, row);
      const threshold = thresholds[n];
      for (let x = 0; x < width; x++) {
        const margin = row[x] - threshold;
        if (margin > margins[x]) {
          margins[x] = margin;
          labels[offset + x] = classId;
        }
      }
    });
  }
  return labels;
}

/** Returns the number of pixels of each label, Uint32Array of 256. */
export function countLabels(labels) {
  const counts = new Uint32Array(256);
  for (let i = 0; i < labels.length; i++) counts[labels[i]]++; // much faster than an iterator
  return counts;
}

/**
 * Returns the lines between pixels whose groups differ, each as long as possible.
 *
 * @param {ArrayLike<number>} values H·W.
 * @param {(value: number) => number} groupOf pixels with equal groups have no line between them.
 * @returns {number[]} x0, y0, x1, y1 of every line, in pixels from the upper left corner of the image.
 */
export function outlines(values, width, height, groupOf = (value) => value) {
  const lines = [];
  const differs = (i, j) => values[i] !== values[j] && groupOf(values[i]) !== groupOf(values[j]);
  const tops = new Int32Array(width).fill(-1); // where the line on the left of each pixel of the row begins
  for (let y = 0; y < height; y++) {
    const row = y * width;
    let left = -1; // where the line above the pixels of the row begins
    for (let x = 0; x < width; x++) {
      const i = row + x;
      if (y > 0 && differs(i, i - width)) {
        if (left < 0) left = x;
      } else if (left >= 0) {
        lines.push(left, y, x, y);
        left = -1;
      }
      if (x > 0 && differs(i, i - 1)) {
        if (tops[x] < 0) tops[x] = y;
      } else if (tops[x] >= 0) {
        lines.push(x, tops[x], x, y);
        tops[x] = -1;
      }
    }
    if (left >= 0) lines.push(left, y, width, y);
  }
  tops.forEach((top, x) => top >= 0 && lines.push(x, top, x, height));
  return lines;
}

/** Returns the smallest rectangle in which two arrays of H·W values differ; null if they are equal. */
export function changedRectangle(before, after, width) {
  let rectangle = null;
  const height = before.length / width;
  for (let y = 0; y < height; y++) {
    let first = y * width;
    const end = first + width;
    while (first < end && before[first] === after[first]) first++;
    if (first === end) continue;
    let last = end - 1;
    while (before[last] === after[last]) last--;
    rectangle = union(rectangle, { left: first - y * width, top: y, right: last + 1 - y * width, bottom: y + 1 });
  }
  return rectangle;
}

/** Copies a rectangle of an array of H·W values into an array of its own. */
export function copyRectangle(values, width, { left, top, right, bottom }) {
  const copy = new values.constructor((right - left) * (bottom - top));
  for (let y = top; y < bottom; y++) {
    copy.set(values.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return copy;
}

/** Writes back what `copyRectangle` has copied. */
export function pasteRectangle(values, width, { left, top, right, bottom }, copy) {
  for (let y = top; y < bottom; y++) {
    values.set(copy.subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * width + left);
  }
}

/** Writes a label map as text: runs of equal labels, "label:length" in base 36, separated by commas. */
export function encodeRuns(labels) {
  const runs = [];
  for (let start = 0, i = 1; i <= labels.length; i++) {
    if (i === labels.length || labels[i] !== labels[start]) {
      runs.push(`${labels[start].toString(36)}:${(i - start).toString(36)}`);
      start = i;
    }
  }
  return runs.join(",");
}

/** Reads what `encodeRuns` has written; null if it does not describe `length` pixels. */
export function decodeRuns(text, length) {
  const labels = new Uint8Array(length);
  let position = 0;
  for (const run of text.split(",")) {
    const [label, count] = run.split(":").map((number) => parseInt(number, 36));
    if (!(label >= 0 && label <= 255 && count > 0 && position + count <= length)) return null;
    labels.fill(label, position, position + count);
    position += count;
  }
  return position === length ? labels : null;
}
