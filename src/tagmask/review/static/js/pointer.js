/** Painting with the mouse, a pen, a finger or the keyboard. */

import { getSuperpixels } from "./api.js";
import { isUsedByField } from "./keyboard.js";
import { connectedPixels, paintPixels, paintRule, paintStroke, pixelsBySegment } from "./label_map.js";
import { effect } from "./html.js";
import * as store from "./store.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Connects a CanvasView with the pointer and the keys. `dispose` ends that. */
export class Painter {
  constructor(view) {
    this.view = view;
    this.document = view.document;
    this.action = null; // "paint" or "pan", while a button is down
    this.isSpaceDown = false;
    const controller = new AbortController();
    const { element } = view;
    const listen = (target, name, handler, options) =>
      target.addEventListener(name, handler.bind(this), { signal: controller.signal, ...options });
    listen(element, "pointerdown", this.onDown);
    listen(element, "pointermove", this.onMove);
    listen(element, "pointerup", this.onUp);
    listen(element, "pointercancel", this.onUp);
    listen(element, "pointerleave", this.onLeave);
    listen(element, "wheel", this.onWheel, { passive: false });
    listen(element, "contextmenu", (event) => event.preventDefault());
    listen(element, "keydown", this.onCursorKey);
    listen(element, "keyup", this.onCursorKeyUp);
    listen(element, "blur", this.onBlur);
    listen(globalThis, "keydown", this.onSpace);
    listen(globalThis, "keyup", this.onSpace);
    const stopLoading = effect(() => {
      if (store.tool.value === "superpixel") this.loadSuperpixels(store.settings.value.superpixels);
    });
    this.dispose = () => {
      controller.abort();
      stopLoading();
      this.endStroke();
    };
  }

  position(event) {
    const { left, top } = this.view.element.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  onDown(event) {
    if (this.action) return;
    event.preventDefault();
    globalThis.document.activeElement?.blur();
    this.view.element.setPointerCapture(event.pointerId);
    this.last = this.position(event);
    if (event.button === 1 || (event.button === 0 && this.isSpaceDown)) {
      this.action = "pan";
      this.view.element.classList.add("is-panning");
    } else if (event.button === 0 || event.button === 2) {
      this.action = "paint";
      this.startStroke(this.view.toImage(this.last), event.button === 2);
    }
  }

  onMove(event) {
    const position = this.position(event);
    this.view.pointer = event.pointerType === "touch" ? null : this.view.toImage(position);
    if (this.action === "pan") {
      this.view.moveBy(position[0] - this.last[0], position[1] - this.last[1]);
      this.last = position;
    } else if (this.action === "paint") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.continueStroke(this.view.toImage(this.position(one)));
    }
    this.view.redraw();
  }

  onUp() {
    this.view.element.classList.remove("is-panning");
    if (this.action === "paint") this.endStroke();
    this.action = null;
  }

  onLeave() {
    if (this.action) return;
    this.view.pointer = null;
    this.view.redraw();
  }

  onWheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
    this.view.zoomBy(Math.exp(-0.0015 * Math.max(-300, Math.min(300, event.deltaY * lines))), this.position(event));
  }

  onSpace(event) {
    if (event.key !== " " || isUsedByField(event.target, " ")) return;
    this.isSpaceDown = event.type === "keydown";
    this.view.element.classList.toggle("is-movable", this.isSpaceDown);
    event.preventDefault();
  }

  /** Begins to use the tool at [x, y], in pixels of the image. */
  startStroke(point, isErasing = false) {
    const { tool, label, settings } = store;
    this.tool = isErasing ? "eraser" : tool.peek();
    this.label = this.tool === "eraser" ? 0 : label.peek();
    this.mayPaint = paintRule(this.label, label.peek(), settings.peek().keep);
    this.point = point;
    this.segment = null;
    this.document.begin();
    if (this.tool === "fill") this.fill(point);
    else this.continueStroke(point);
  }

  continueStroke(point) {
    if (this.tool === "superpixel") this.paintSuperpixel(point);
    if (this.tool === "brush" || this.tool === "eraser") {
      const { diameter } = store.settings.peek();
      this.document.show(paintStroke(this.document, this.point, point, diameter, this.label, this.mayPaint));
    }
    this.point = point;
  }

  endStroke() {
    if (this.tool) this.document.commit(this.tool);
    this.tool = null;
  }

  /** The index of the pixel at a point, or null outside of the image. */
  pixelAt([x, y]) {
    const { width, height } = this.document;
    return x >= 0 && y >= 0 && x < width && y < height ? [Math.floor(x), Math.floor(y)] : null;
  }

  fill(point) {
    const pixel = this.pixelAt(point);
    if (!pixel) return;
    const { labels, width, height } = this.document;
    const pixels = connectedPixels(labels, width, height, ...pixel);
    this.document.show(paintPixels(this.document, pixels, this.label, this.mayPaint));
  }

  paintSuperpixel(point) {
    const pixel = this.pixelAt(point);
    const superpixels = this.view.superpixels.peek();
    if (!pixel || !superpixels) return;
    const segment = superpixels.segments[pixel[1] * this.document.width + pixel[0]];
    if (segment === this.segment) return;
    this.segment = segment;
    this.document.show(paintPixels(this.document, superpixels.pixelsOf(segment), this.label, this.mayPaint));
  }

  async loadSuperpixels(size) {
    if (this.view.superpixels.peek()?.size === size) return;
    try {
      const segments = await getSuperpixels(this.document.key, size);
      this.view.superpixels.value = { size, segments, pixelsOf: pixelsBySegment(segments) };
    } catch (error) {
      store.notify(`There are no superpixels: ${error.message}.`);
    }
  }

  onCursorKey(event) {
    const { cursor } = this.view;
    if (!cursor || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key];
      const step = Math.max(1, Math.round(store.settings.peek().diameter / 4)) * (event.shiftKey ? 4 : 1);
      this.moveCursor(dx * step, dy * step);
    } else if (event.key === " ") {
      if (!event.repeat) this.startStroke(cursor);
    } else if (event.key === "Escape") {
      this.view.element.blur();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  moveCursor(dx, dy) {
    const { width, height } = this.document;
    const [x, y] = this.view.cursor;
    const point = [Math.min(width - 0.5, Math.max(0.5, x + dx)), Math.min(height - 0.5, Math.max(0.5, y + dy))];
    this.view.cursor = point;
    this.view.reveal(point);
    if (this.tool) this.continueStroke(point);
    this.view.redraw();
  }

  onCursorKeyUp(event) {
    if (event.key !== " " || !this.view.cursor) return;
    this.endStroke();
    event.preventDefault();
    event.stopPropagation();
  }

  onBlur() {
    if (this.action !== "paint") this.endStroke();
    this.view.stopCursor();
  }
}
