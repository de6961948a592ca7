/** Asks the server for changes by other tabs and programs. */

import { reload } from "./actions.js";
import { ApiError, getChanges, getImages } from "./api.js";
import * as store from "./store.js";

const PERIOD = 2000; // ms
const POLLS_PER_SCORING = 4;

const isScoring = () => !store.scoringError.peek() && store.scoring.peek() !== null && store.scoring.peek() < 1;

/** The order of the images changes once, when all of them have their doubt. */
async function followScoring() {
  const images = await getImages();
  store.scoring.value = images.scoring;
  store.scoringError.value = images.scoring_error ?? null;
  if (!isScoring() || store.scoringError.value) store.setImages(images);
}

export function startPolling() {
  let since = 0;
  let count = 0;
  const poll = async () => {
    try {
      const { next, changes } = await getChanges(since);
      since = next;
      store.updateRows(changes);
      await followOthers(changes);
      if (isScoring() && ++count % POLLS_PER_SCORING === 0) await followScoring();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // the next poll comes
    } finally {
      setTimeout(poll, PERIOD);
    }
  };
  setTimeout(poll, PERIOD);
}

/** Shows the open image again if someone else has changed it and nothing here is unsaved. */
async function followOthers(changes) {
  const document = store.document.peek();
  if (!document || document.step || document.save.peek().phase !== "saved") return;
  const newer = changes.some(({ key, version }) => key === document.key && version > document.version);
  if (!newer) return;
  await reload(document.key);
  store.notify(`${document.id} was changed in another tab; this is its new mask.`);
}
