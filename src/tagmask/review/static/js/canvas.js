/** The picture in the editor: photo, mask, outlines and the cursor, with zoom. */

import { photoUrl } from "./api.js";
import { drawHeat, Overlay, outlinePath } from "./overlay.js";
import { effect, signal } from "./html.js";
import * as store from "./store.js";

const MARGIN = 20; // CSS pixels around an image that fits into the window
const MAX_SCALE = 64;
const SMOOTH_SCALE = 8; // below which the photo is interpolated
const MANY_PIXELS = 2e6; // of an image whose outlines are not drawn again while a stroke goes on

export class CanvasView {
  /**
   * @param {HTMLCanvasElement} element fills its parent.
   * @param {MaskDocument} document
   */
  constructor(element, document) {
    this.element = element;
    this.document = document;
    this.context = element.getContext("2d");
    this.overlay = new Overlay(document.width, document.height);
    this.photo = null;
    this.scale = 1; // CSS pixels per pixel of the image
    this.offset = [0, 0]; // of the image, in CSS pixels
    this.isFitted = true;
    this.zoom = signal(1);
    this.pointer = null; // [x, y] in pixels of the image
    this.cursor = null; // the keyboard's
    this.paths = {};
    this.heat = {};
    this.frame = null;
    this.disposers = [
      this.observeSize(),
      this.observeDocument(),
      effect(() => this.changeColors()),
      effect(() => this.redrawFor(store.tool.value, store.settings.value, this.superpixels.value)),
    ];
    this.loadPhoto();
  }

  superpixels = signal(null); // {size, segments, pixelsOf} of the chosen size

  dispose() {
    for (const dispose of this.disposers) dispose();
    cancelAnimationFrame(this.frame);
    this.photo = null;
  }

  async loadPhoto() {
    const photo = new Image();
    photo.src = photoUrl(this.document.key);
    try {
      await photo.decode();
      this.photo = photo;
    } catch {
      store.notify("The photo cannot be shown.");
    }
    this.redraw();
  }

  observeSize() {
    const observer = new ResizeObserver(() => {
      const { clientWidth: width, clientHeight: height } = this.element.parentElement;
      this.element.width = Math.round(width * devicePixelRatio);
      this.element.height = Math.round(height * devicePixelRatio);
      if (this.isFitted) this.fit();
      this.drawNow(); // a canvas is empty after its size has changed
    });
    observer.observe(this.element.parentElement);
    return () => observer.disconnect();
  }

  observeDocument() {
    const listener = (rectangle) => {
      this.overlay.draw(this.document.labels, rectangle);
      const isStroke = this.document.step !== null;
      if (!isStroke || this.document.labels.length < MANY_PIXELS) this.paths.mask = null;
      this.redraw();
    };
    this.document.listeners.add(listener);
    const dispose = effect(() => {
      void this.document.revision.value;
      this.paths.mask = null;
      this.redraw();
    });
    return () => {
      this.document.listeners.delete(listener);
      dispose();
    };
  }

  changeColors() {
    const only = store.view.value.isSolo ? store.label.value : null;
    this.overlay.setColors(store.classesById.value.values(), store.settings.value.opacity, only);
    this.overlay.draw(this.document.labels, {
      left: 0,
      top: 0,
      right: this.document.width,
      bottom: this.document.height,
    });
    this.paths.mask = null;
    this.redraw();
  }

  redrawFor() {
    this.paths.superpixels = null;
    this.redraw();
  }

  /** The size of the window in CSS pixels. */
  get size() {
    return [this.element.width / devicePixelRatio, this.element.height / devicePixelRatio];
  }

  fit() {
    const [width, height] = this.size;
    const scale = Math.min((width - 2 * MARGIN) / this.document.width, (height - 2 * MARGIN) / this.document.height);
    this.scale = Math.min(MAX_SCALE, Math.max(scale, 0.01));
    this.offset = [(width - this.document.width * this.scale) / 2, (height - this.document.height * this.scale) / 2];
    this.isFitted = true;
    this.zoom.value = this.scale;
    this.redraw();
  }

  /** Zooms; the point [x, y] in CSS pixels stays where it is (without one, the center of the window). */
  zoomBy(factor, point = this.size.map((length) => length / 2)) {
    const scale = Math.min(MAX_SCALE, Math.max(0.02, this.scale * factor));
    this.offset = this.offset.map((value, n) => point[n] - ((point[n] - value) * scale) / this.scale);
    this.scale = scale;
    this.isFitted = false;
    this.zoom.value = scale;
    this.redraw();
  }

  moveBy(dx, dy) {
    this.offset = [this.offset[0] + dx, this.offset[1] + dy];
    this.isFitted = false;
    this.redraw();
  }

  /** Converts a position in the window, in CSS pixels, to pixels of the image. */
  toImage([x, y]) {
    return [(x - this.offset[0]) / this.scale, (y - this.offset[1]) / this.scale];
  }

  /** Moves the image so that a point of it is in the window. */
  reveal([x, y]) {
    const [width, height] = this.size;
    const shown = [this.offset[0] + x * this.scale, this.offset[1] + y * this.scale];
    const inside = [
      Math.min(width - MARGIN, Math.max(MARGIN, shown[0])),
      Math.min(height - MARGIN, Math.max(MARGIN, shown[1])),
    ];
    if (inside[0] !== shown[0] || inside[1] !== shown[1]) this.moveBy(inside[0] - shown[0], inside[1] - shown[1]);
  }

  /** Puts the keyboard's cursor into the image. */
  startCursor() {
    this.cursor ??= this.pointer ?? [
      Math.floor(this.document.width / 2) + 0.5,
      Math.floor(this.document.height / 2) + 0.5,
    ];
    this.element.focus();
    this.redraw();
  }

  stopCursor() {
    this.cursor = null;
    this.redraw();
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { context, document } = this;
    const ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.element.width, this.element.height);
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.offset[0], ratio * this.offset[1]);
    context.imageSmoothingEnabled = this.scale < SMOOTH_SCALE;
    if (this.photo) context.drawImage(this.photo, 0, 0, document.width, document.height);
    const heat = store.view.peek().isHeatShown && this.heatOf(store.label.peek());
    if (heat) context.drawImage(heat, 0, 0);
    context.imageSmoothingEnabled = false;
    if (store.view.peek().isMaskShown) this.drawMask(!heat);
    if (store.tool.peek() === "superpixel") this.drawSuperpixels();
    this.drawCursor();
  }

  drawMask(isFilled) {
    const { context, document } = this;
    if (isFilled) context.drawImage(this.overlay.canvas, 0, 0);
    const label = store.label.peek();
    const groupOf = store.view.peek().isSolo ? (value) => value === label : undefined;
    this.paths.mask ??= outlinePath(document.labels, document.width, document.height, groupOf);
    this.stroke(this.paths.mask, "rgb(0 0 0 / 65%)", 3.4);
    this.stroke(this.paths.mask, "#fff", 1.4);
  }

  drawSuperpixels() {
    const superpixels = this.superpixels.peek();
    if (!superpixels) return;
    const { width, height } = this.document;
    this.paths.superpixels ??= outlinePath(superpixels.segments, width, height);
    this.stroke(this.paths.superpixels, "rgb(255 255 255 / 55%)", 0.8);
  }

  drawCursor() {
    const point = this.cursor ?? this.pointer;
    if (!point) return;
    const { context } = this;
    const path = new Path2D();
    const isRound = ["brush", "eraser"].includes(store.tool.peek());
    const radius = isRound ? Math.max(store.settings.peek().diameter / 2, 0.5) : 0;
    if (isRound) path.arc(point[0], point[1], radius, 0, 2 * Math.PI);
    if (this.cursor) {
      const arm = 9 / this.scale;
      for (const [dx, dy] of [
        [1, 0],
        [-1, 0],
        [0, 1],
        [0, -1],
      ]) {
        path.moveTo(point[0] + dx * 0.3 * arm, point[1] + dy * 0.3 * arm);
        path.lineTo(point[0] + dx * arm, point[1] + dy * arm);
      }
    }
    context.lineCap = "round";
    this.stroke(path, "rgb(0 0 0 / 70%)", 3);
    this.stroke(path, "#fff", 1.25);
  }

  /** Draws a path; the width is in CSS pixels. */
  stroke(path, color, width) {
    this.context.strokeStyle = color;
    this.context.lineWidth = width / this.scale;
    this.context.stroke(path);
  }

  heatOf(label) {
    const map = this.document.maps.find(({ classId }) => classId === label);
    if (!map) return null;
    this.heat[label] ??= drawHeat(map.map, this.document.width, this.document.height);
    return this.heat[label];
  }
}
