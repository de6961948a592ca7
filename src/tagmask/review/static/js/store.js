/** What the page knows: the run, its images, the filters of the gallery, the open image, and the tools. */

import { Autosave } from "./autosave.js";
import { batch, computed, signal } from "./html.js";

export const run = signal(null); // answer of GET /api/run
export const images = signal([]); // rows of GET /api/images as objects
export const scoring = signal(null); // progress of the doubt, 0..1; null: it is there
export const scoringError = signal(null); // why there is no doubt
export const failure = signal(null); // why the page cannot start
export const message = signal(null); // a short text at the lower edge, which goes away by itself
export const isHelpOpen = signal(false);

export const STATES = ["open", "draft", "accepted", "corrected", "rejected"];
export const STATE_NAMES = {
  open: "Open",
  draft: "Draft",
  accepted: "Accepted",
  corrected: "Corrected",
  rejected: "Rejected",
};

/** The address after #: {view: "gallery"} or {view: "editor", key}. */
export const route = signal({ view: "gallery" });

export const filter = signal({ text: "", classId: null, state: null }); // null: all; classId 0: images without tags
export const order = signal("doubt"); // or "name"
export const document = signal(null); // the MaskDocument in the editor
export const documentError = signal(null); // why the open image cannot be shown
export const sequence = signal([]); // keys of the images that the editor steps through
export const selected = signal(null); // key of the image that the gallery has marked

export const tool = signal("brush"); // "brush", "eraser", "fill" or "superpixel"
export const label = signal(1); // what the tools paint: 0 background, a class id, or 255 not sure
export const view = signal({ isMaskShown: true, isSolo: false, isHeatShown: false });
export const canvas = signal(null); // the CanvasView of the open image

/** Settings that the browser remembers. */
export const settings = signal({ diameter: 20, crf: true, keep: false, superpixels: "medium", opacity: 0.5 });
const SETTINGS_NAME = "tagmask-review:settings";

export function changeSettings(changes) {
  settings.value = { ...settings.value, ...changes };
  try {
    localStorage.setItem(SETTINGS_NAME, JSON.stringify(settings.value));
  } catch {
    // they are forgotten
  }
}

export function restoreSettings() {
  try {
    settings.value = { ...settings.value, ...JSON.parse(localStorage.getItem(SETTINGS_NAME)) };
  } catch {
    localStorage.removeItem(SETTINGS_NAME);
  }
}

export const changeView = (changes) => (view.value = { ...view.value, ...changes });
export const changeFilter = (changes) => (filter.value = { ...filter.value, ...changes });

/** Rows of the images by key. */
export const rowsByKey = computed(() => new Map(images.value.map((row) => [row.key, row])));

/** Turns the compact rows of GET /api/images into objects; `tags` are the corrected ones, if there are any. */
export function setImages({ images: rows, columns, scoring: progress, scoring_error: error = null }) {
  images.value = rows.map((values) => {
    const row = Object.fromEntries(columns.map((name, i) => [name, values[i]]));
    return { ...row, dataTags: row.tags, tags: row.corrected_tags ?? row.tags, lower: row.id.toLowerCase() };
  });
  scoring.value = progress;
  scoringError.value = error;
}

/** Notes changes of images: a list of {key, version, state, tags}. Older ones than those known are left out. */
export function updateRows(changes) {
  const byKey = rowsByKey.peek();
  const isNewer = ({ key, version }) => byKey.has(key) && version > byKey.get(key).version;
  const newer = new Map(changes.filter(isNewer).map((change) => [change.key, change]));
  if (!newer.size) return;
  images.value = images.peek().map((row) => {
    const change = newer.get(row.key);
    return change ? { ...row, version: change.version, state: change.state, tags: change.tags ?? row.dataTags } : row;
  });
}

const matchesText = (row, words) => words.every((word) => row.lower.includes(word));

/** The images that the gallery shows, in its order. */
export const list = computed(() => {
  const { text, classId, state } = filter.value;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = images.value.filter(
    (row) =>
      (state === null || row.state === state) &&
      (classId === null || (classId === 0 ? row.tags.length === 0 : row.tags.includes(classId))) &&
      (words.length === 0 || matchesText(row, words)),
  );
  return order.value === "name" ? rows.sort(byName) : rows.sort(byDoubt);
});

const collator = new Intl.Collator("en", { numeric: true });
const byName = (a, b) => collator.compare(a.id, b.id);
const byDoubt = (a, b) => (b.doubt ?? -1) - (a.doubt ?? -1) || byName(a, b);

/** How many images have each state. */
export const stateCounts = computed(() => {
  const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
  for (const { state } of images.value) counts[state]++;
  return counts;
});

/** Classes by id: {id, name, color}. */
export const classesById = computed(() => new Map((run.value?.classes ?? []).map((one) => [one.id, one])));

/** Class ids in the order of the sidebar: first those of the image, then the others. */
export const listedClasses = computed(() => {
  const tags = document.value?.tags.value ?? [];
  const others = [...classesById.value.keys()].filter((classId) => !tags.includes(classId));
  return [...tags, ...others];
});

let autosave = null;

/** The Autosave of this run. */
export function getAutosave() {
  const { name, num_images: numImages } = run.peek();
  autosave ??= new Autosave((key, result) => updateRows([{ key, ...result }]), `tagmask-review:${name}:${numImages}:`);
  return autosave;
}

let timer = null;

/** Shows a short text for some seconds. */
export function notify(text, seconds = 5) {
  clearTimeout(timer);
  message.value = text;
  timer = setTimeout(() => (message.value = null), 1000 * seconds);
}

export { batch };
