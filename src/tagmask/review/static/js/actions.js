/** What buttons and keys do. */

import * as api from "./api.js";
import { unsaved } from "./autosave.js";
import { loadDocument } from "./document.js";
import { changedRectangle } from "./label_map.js";
import { openGallery, openImage } from "./router.js";
import * as store from "./store.js";

const isEditorOpen = (key) => store.route.peek().view === "editor" && store.route.peek().key === key;

/** Loads an image into the editor; one that is not saved yet comes from memory. */
export async function openDocument(key) {
  const last = store.document.peek();
  if (last?.key === key) return;
  if (last) store.getAutosave().flush(last);
  store.document.value = null;
  store.documentError.value = null;
  try {
    const document = unsaved.peek().get(key) ?? (await loadDocument(key));
    if (!isEditorOpen(key)) return;
    show(document);
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (!isEditorOpen(key)) return;
    store.documentError.value = error.message;
    if (error.status === 0 || error.status === 403) {
      setTimeout(() => isEditorOpen(key) && !store.document.peek() && openDocument(key), 2000);
    }
  }
}

function show(document) {
  const { key, version, state, tags, dataTags } = document;
  const isCorrected = tags.peek().join() !== dataTags.join();
  store.batch(() => {
    store.updateRows([{ key, version, state: state.peek(), tags: isCorrected ? tags.peek() : null }]);
    store.document.value = document;
    const { value } = document.tags;
    const label = store.label.peek();
    if (label !== 0 && label !== 255 && !value.includes(label) && value.length) store.label.value = value[0];
  });
  if (document.isOpened) return;
  document.isOpened = true;
  store.getAutosave().restore(document);
  saveChanges(document);
}

/** Saves a document after every step that changes its mask or its tags. */
function saveChanges(document) {
  const first = document.revision.peek();
  let tags = document.tags.peek();
  let labels = document.labels.slice();
  document.revision.subscribe((revision) => {
    if (revision === first) return;
    const isMaskSame = changedRectangle(labels, document.labels, document.width) === null;
    if (isMaskSame && tags === document.tags.peek()) return;
    labels = document.labels.slice();
    tags = document.tags.peek();
    store.getAutosave().request(document, isMaskSame ? "tags" : "draft");
  });
}

/** Reads the open image from the server again, after its saved state has changed. */
export async function reload(key) {
  const fresh = await loadDocument(key);
  if (isEditorOpen(key)) show(fresh);
}

/** Steps through the images: +1 is the next one. Beyond the last one comes the gallery. */
export function step(direction) {
  const keys = store.sequence.peek();
  const index = keys.indexOf(store.route.peek().key);
  const next = keys[index + direction];
  if (next) return openImage(next);
  if (direction < 0) return undefined;
  store.notify("That was the last image of the list.");
  return openGallery();
}

/** The document of the image that the address names; undefined while it is loading. */
function shownDocument() {
  const document = store.document.peek();
  return document && isEditorOpen(document.key) ? document : undefined;
}

/** Sets the state of the open image and goes to the next one; it is saved meanwhile. */
export function finish(wanted) {
  const document = shownDocument();
  if (!document) return;
  document.commit();
  store.getAutosave().request(document, wanted, 0);
  step(+1);
}

/** Gives the open image the mask of the run again. */
export async function reopen() {
  const document = shownDocument();
  if (!document) return;
  document.cancel();
  await store.getAutosave().request(document, "open", 0);
  if (document.save.peek().phase === "saved") await tell(() => reload(document.key));
}

/** Does the same for an image whose reviewed mask cannot be read. */
export function reopenDamaged(row) {
  return tell(async () => {
    const result = await api.postState(row.key, { state: "open", base: row.version });
    store.updateRows([{ key: row.key, ...result }]);
    await openDocument(row.key);
  });
}

/** Returns the open image to an earlier saved version. */
export async function restoreVersion(document, number) {
  await store.getAutosave().flush(document);
  await tell(async () => {
    const result = await api.postRestore(document.key, number, document.version);
    store.updateRows([{ key: document.key, ...result }]);
    await reload(document.key);
  });
}

/** Accepts or rejects an image in the gallery, as it is. */
export function finishInGallery(row, wanted) {
  return tell(async () => {
    const result = await api.postState(row.key, { state: wanted, base: row.version });
    store.updateRows([{ key: row.key, ...result }]);
  });
}

/** Ends a conflict with the mask of the other one. */
export async function takeTheirs(document) {
  store.getAutosave().discard(document);
  if (isEditorOpen(document.key)) await tell(() => reload(document.key));
}

export function undo() {
  if (!store.document.peek()?.undo()) store.notify("There is nothing to undo.", 2);
}

export function redo() {
  if (!store.document.peek()?.redo()) store.notify("There is nothing to redo.", 2);
}

/** Ends the change of a threshold; the CRF follows if it is switched on. */
export function finishCut(document) {
  return tell(() => document.finishCut(store.settings.peek().crf));
}

export function resizeBrush(factor) {
  const { diameter } = store.settings.peek();
  const next = Math.round(diameter * factor);
  store.changeSettings({
    diameter: Math.min(200, Math.max(1, next === diameter ? diameter + Math.sign(factor - 1) : next)),
  });
}

async function tell(task) {
  try {
    return await task();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    return store.notify(`This did not work: ${error.message}.`);
  }
}
