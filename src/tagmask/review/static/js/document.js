/** The mask, the tags and the thresholds of one image while a person changes them. */

import * as api from "./api.js";
import { History } from "./history.js";
import {
  BACKGROUND,
  changedRectangle,
  copyRectangle,
  countLabels,
  cutMaps,
  NOT_SURE,
  paintPixels,
  pasteRectangle,
  union,
} from "./label_map.js";
import { signal } from "../vendor/signals-core.js";

const DEFAULT_THRESHOLD = 0.5; // where the sliders begin if the run has cut its maps by another rule

export class MaskDocument {
  /**
   * @param {string} key of the image.
   * @param {object} details answer of GET /api/images/K.
   * @param {Uint8Array} labels H·W.
   * @param {{classId: number, map: Float32Array}[]} maps one per class that has a response map, by ascending id.
   * @param {Uint8Array} painted H·W, 1 where a person has painted: a threshold does not change these pixels.
   */
  constructor(key, details, labels, maps, painted) {
    this.key = key;
    this.id = details.id;
    this.width = details.width;
    this.height = details.height;
    this.labels = labels;
    this.painted = painted;
    this.maps = maps;
    this.isTooLarge = details.too_large; // for the browser: there are no labels
    this.mapsError = details.maps_error;
    this.dataTags = details.data_tags;
    this.version = details.version;
    this.tags = signal(details.tags);
    this.state = signal(details.state);
    const threshold = details.threshold ?? DEFAULT_THRESHOLD;
    const start = (classId) => details.thresholds?.[classId] ?? threshold;
    this.thresholds = signal(Object.fromEntries(maps.map(({ classId }) => [classId, start(classId)])));
    this.history = new History();
    this.revision = signal(0); // grows with every change that counts as a step
    this.counts = signal(countLabels(labels));
    this.listeners = new Set(); // are called with the rectangle that has changed, also within a step
    this.isRefining = signal(false); // the server is computing a CRF
    this.save = signal({ phase: "saved" }); // see autosave.js
    this.step = null;
    this.cutNumber = 0;
    this.cutClass = null; // the only class that the present cut changes; null: all
  }

  /** Tells the canvas that a rectangle has changed; without an argument, the whole mask. */
  show(rectangle = { left: 0, top: 0, right: this.width, bottom: this.height }) {
    if (rectangle) for (const listener of this.listeners) listener(rectangle);
  }

  /** Begins a step of the history, for example a brush stroke. */
  begin() {
    if (this.step) this.commit();
    this.step = {
      labels: this.labels.slice(),
      painted: this.painted.slice(),
      tags: this.tags.value,
      thresholds: this.thresholds.value,
    };
  }

  /** Ends the step. Returns the change, or null if nothing has changed. */
  commit(name = "") {
    const before = this.step;
    this.step = null;
    if (!before) return null;
    const rectangle = union(
      changedRectangle(before.labels, this.labels, this.width),
      changedRectangle(before.painted, this.painted, this.width),
    );
    const isSame = before.tags === this.tags.value && before.thresholds === this.thresholds.value;
    if (!rectangle && isSame) return null;
    const part = (labels, painted, tags, thresholds) => ({
      labels: rectangle && copyRectangle(labels, this.width, rectangle),
      painted: rectangle && copyRectangle(painted, this.width, rectangle),
      tags,
      thresholds,
    });
    if (rectangle) this.addNewTags();
    const change = {
      name,
      rectangle,
      before: part(before.labels, before.painted, before.tags, before.thresholds),
      after: part(this.labels, this.painted, this.tags.value, this.thresholds.value),
      bytes: 1024 + 4 * (rectangle ? (rectangle.right - rectangle.left) * (rectangle.bottom - rectangle.top) : 0),
    };
    this.history.push(change);
    this.changed();
    return change;
  }

  /** Takes back what the step has done so far. */
  cancel() {
    if (!this.step) return;
    this.labels.set(this.step.labels);
    this.painted.set(this.step.painted);
    this.tags.value = this.step.tags;
    this.thresholds.value = this.step.thresholds;
    this.step = null;
    this.show();
  }

  undo() {
    this.cancel();
    const change = this.history.undo();
    if (change) this.apply(change, change.before);
    return change;
  }

  redo() {
    this.cancel();
    const change = this.history.redo();
    if (change) this.apply(change, change.after);
    return change;
  }

  apply({ rectangle }, part) {
    if (rectangle) {
      pasteRectangle(this.labels, this.width, rectangle, part.labels);
      pasteRectangle(this.painted, this.width, rectangle, part.painted);
    }
    this.tags.value = part.tags;
    this.thresholds.value = part.thresholds;
    this.abandonRefinement();
    this.show(rectangle);
    this.changed();
  }

  changed() {
    this.counts.value = countLabels(this.labels);
    this.revision.value++;
  }

  /** A class that has been painted is a tag of the image. */
  addNewTags() {
    const [before, after] = [this.counts.value, countLabels(this.labels)];
    const isNew = (label) => label !== 0 && label !== NOT_SURE && after[label] && !before[label];
    const added = [...after.keys()].filter((label) => isNew(label) && !this.tags.value.includes(label));
    if (added.length) this.tags.value = [...this.tags.value, ...added].sort((a, b) => a - b);
  }

  /** Adds or removes a tag; the pixels of a removed one become background. */
  setTag(classId, isSet) {
    this.begin();
    const others = this.tags.value.filter((tag) => tag !== classId);
    this.tags.value = isSet ? [...others, classId].sort((a, b) => a - b) : others;
    if (!isSet) {
      const pixels = [];
      for (let i = 0; i < this.labels.length; i++) if (this.labels[i] === classId) pixels.push(i);
      this.show(paintPixels(this, pixels, 0, () => true));
    }
    this.commit("tags");
  }

  /** The thresholds of the tags that have a map; other classes take no part in a cut. */
  get cutThresholds() {
    const isTag = ([classId]) => this.tags.value.includes(Number(classId));
    return Object.fromEntries(Object.entries(this.thresholds.value).filter(isTag));
  }

  /**
   * Changes a threshold and cuts the maps at once; `begin` comes before, and `finishCut` when the person lets go.
   *
   * @param {boolean} keep whether the pixels of other classes stay.
   */
  previewThreshold(classId, threshold, keep) {
    this.cutClass = keep ? classId : null;
    this.thresholds.value = { ...this.thresholds.value, [classId]: threshold };
    this.abandonRefinement();
    const thresholds = this.cutThresholds;
    const cuts = this.maps
      .filter(({ classId }) => classId in thresholds)
      .map((map) => ({ ...map, threshold: thresholds[map.classId] }));
    this.replaceUnpainted(cutMaps(cuts, this.width, this.height));
    this.show();
  }

  /** Ends the step of a threshold; with `crf`, the server refines the mask, which belongs to the same step. */
  async finishCut(crf) {
    if (!this.step) return;
    const change = this.commit("threshold");
    if (!change || !crf) return;
    const number = ++this.cutNumber;
    this.isRefining.value = true;
    try {
      const refined = await api.postCut(this.key, this.cutThresholds, true);
      if (number !== this.cutNumber) return; // another cut, or undo
      this.finishRefinement(refined, change);
    } finally {
      if (number === this.cutNumber) this.isRefining.value = false;
    }
  }

  /** The answer of a CRF that is being computed will be ignored. */
  abandonRefinement() {
    this.cutNumber++;
    this.isRefining.value = false;
  }

  finishRefinement(refined, change) {
    const isPainting = this.step !== null;
    if (isPainting) this.commit();
    const isLast = this.history.last === change;
    const { before } = change;
    this.begin();
    this.replaceUnpainted(refined);
    this.show();
    if (isLast && !isPainting) {
      this.mergeInto(change, before);
    } else {
      this.commit("CRF");
    }
    if (isPainting) this.begin();
  }

  /** Makes the present step part of the last change. */
  mergeInto(change, before) {
    const { labels, painted } = this.step;
    if (change.rectangle) {
      pasteRectangle(labels, this.width, change.rectangle, before.labels);
      pasteRectangle(painted, this.width, change.rectangle, before.painted);
    }
    Object.assign(this.step, { tags: before.tags, thresholds: before.thresholds });
    this.history.undo();
    this.commit(change.name);
  }

  /** Takes over a cut: of all classes, or, if other classes stay, of the one whose threshold has changed. */
  replaceUnpainted(cut) {
    const { labels, painted, cutClass } = this;
    for (let i = 0; i < cut.length; i++) {
      if (painted[i]) continue;
      if (cutClass === null) labels[i] = cut[i];
      else if (labels[i] === BACKGROUND || labels[i] === cutClass) labels[i] = cut[i] === cutClass ? cutClass : 0;
    }
  }
}

/** Loads an image for the editor. */
export async function loadDocument(key) {
  const details = await api.getImage(key);
  if (details.too_large) return new MaskDocument(key, details, new Uint8Array(0), [], new Uint8Array(0));
  const [mask, values, painted] = await Promise.all([
    api.getMask(key),
    details.maps && api.getMaps(key),
    details.thresholds && api.getPainted(key),
  ]);
  if (mask.version !== details.version) return loadDocument(key); // another tab has saved in between
  const maps = values ? splitMaps(values, details.maps) : [];
  return new MaskDocument(key, details, mask.labels, maps, painted ?? new Uint8Array(mask.labels.length));
}

function splitMaps(values, { classes, grid: [height, width] }) {
  const size = height * width;
  return classes.map((classId, n) => ({ classId, map: values.subarray(n * size, (n + 1) * size) }));
}
