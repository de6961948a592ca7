/** Pictures of label maps and response maps that the canvas draws over the photo. */

import { NOT_SURE, outlines, upsampleRows } from "./label_map.js";

// As in `ResponseMaps.figure`: dark blue, teal, yellow, red, with even steps in lightness up to yellow.
const HEAT = [
  [38, 20, 90],
  [45, 80, 150],
  [40, 150, 150],
  [120, 200, 110],
  [250, 220, 70],
  [230, 60, 40],
];

const rgba = (red, green, blue, alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian

function parseColor(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}

function newCanvas(width, height) {
  return Object.assign(globalThis.document.createElement("canvas"), { width, height });
}

/** The colored regions of a mask, a canvas of the size of the image. Ignored pixels are hatched. */
export class Overlay {
  constructor(width, height) {
    this.canvas = newCanvas(width, height);
    this.context = this.canvas.getContext("2d");
    this.picture = new ImageData(width, height);
    this.pixels = new Uint32Array(this.picture.data.buffer);
    this.colors = new Uint32Array(256);
    this.hatchPeriod = Math.max(4, Math.round(Math.max(width, height) / 60));
  }

  /**
   * @param {Iterable<{id: number, color: string}>} classes colors are "#rrggbb".
   * @param {number} opacity 0..1.
   * @param {number|null} only the only label that is drawn; null: all.
   */
  setColors(classes, opacity, only) {
    const alpha = Math.round(255 * opacity);
    this.colors.fill(0);
    for (const { id, color } of classes) {
      if (only === null || only === id) this.colors[id] = rgba(...parseColor(color), alpha);
    }
    this.isHatched = only === null || only === NOT_SURE;
    this.hatchAlpha = Math.round(255 * Math.min(1, opacity + 0.2));
  }

  /** Draws a rectangle of the mask again. */
  draw(labels, { left, top, right, bottom }) {
    const { width } = this.canvas;
    for (let y = top; y < bottom; y++) {
      for (let x = left, i = y * width + left; x < right; x++, i++) {
        this.pixels[i] = labels[i] === NOT_SURE ? this.hatch(x, y) : this.colors[labels[i]];
      }
    }
    this.context.putImageData(this.picture, 0, 0, left, top, right - left, bottom - top);
  }

  hatch(x, y) {
    const position = (x + y) % (2 * this.hatchPeriod);
    if (!this.isHatched || position % this.hatchPeriod >= this.hatchPeriod / 2) return 0;
    return position < this.hatchPeriod ? rgba(255, 255, 255, this.hatchAlpha) : rgba(0, 0, 0, this.hatchAlpha);
  }
}

/** Returns a canvas with a response map as heat, more opaque where it is higher. */
export function drawHeat(map, width, height) {
  const canvas = newCanvas(width, height);
  const picture = new ImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const colors = Uint32Array.from({ length: 256 }, (_, n) => heatColor(n / 255));
  upsampleRows(map, width, height, (y, row) => {
    for (let x = 0; x < width; x++) pixels[y * width + x] = colors[Math.round(255 * row[x])];
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

function heatColor(heat) {
  const position = heat * (HEAT.length - 1);
  const lower = Math.min(Math.floor(position), HEAT.length - 2);
  const mixed = HEAT[lower].map((value, c) => Math.round(value + (position - lower) * (HEAT[lower + 1][c] - value)));
  return rgba(...mixed, Math.round(255 * (0.25 + 0.5 * heat)));
}

/** Returns the outlines of the regions as a path in pixels of the image. */
export function outlinePath(values, width, height, groupOf) {
  const path = new Path2D();
  const lines = outlines(values, width, height, groupOf);
  for (let n = 0; n < lines.length; n += 4) {
    path.moveTo(lines[n], lines[n + 1]);
    path.lineTo(lines[n + 2], lines[n + 3]);
  }
  return path;
}
