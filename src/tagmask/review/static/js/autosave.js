/**
 * Saves documents: 0.7 s after the last change, again and again while the server does not answer.
 *
 * The signal `save` of a document says how it is: {phase, reason}, where phase is "saved", "waiting" (for the person
 * to pause), "saving", "failed" (it is tried again) or "conflict" (someone else has changed the image). What is not
 * saved when the page closes goes to the local storage of the browser, and is saved when the page opens again.
 */

import * as api from "./api.js";
import { decodeRuns, encodeRuns } from "./label_map.js";
import { computed, signal } from "../vendor/signals-core.js";

const DELAY = 700; // ms after the last change
const RETRY_DELAYS = [1000, 2000, 4000, 8000]; // ms

/** Documents that are not saved yet, by key. */
export const unsaved = signal(new Map());

/** What the indicator shows: the worst state of all documents, {phase, reason, document}. */
export const saveStatus = computed(() => {
  const all = [...unsaved.value.values()].map((document) => ({ ...document.save.value, document }));
  for (const phase of ["conflict", "failed", "saving", "waiting"]) {
    const one = all.find((status) => status.phase === phase);
    if (one) return one;
  }
  return { phase: "saved" };
});

export class Autosave {
  /**
   * @param {(key: string, result: {version, state, tags}) => void} onSaved is called after every save.
   * @param {string} prefix of the names in the local storage, different for every run.
   */
  constructor(onSaved, prefix) {
    this.onSaved = onSaved;
    this.prefix = prefix;
  }

  /**
   * Notes that a document must be saved.
   *
   * @param {string} wanted "draft", "accept", "reject", "open" or "tags".
   * @param {number} delay in ms, before it is saved.
   * @returns a promise that ends when this was tried once.
   */
  request(document, wanted, delay = DELAY) {
    if (wanted === "tags" && document.wanted) wanted = "draft"; // which saves the tags, too
    document.wanted = wanted;
    document.saveNumber = (document.saveNumber ?? 0) + 1;
    document.isSent = false;
    if (document.save.value.phase !== "conflict") document.save.value = { phase: "waiting" };
    unsaved.value = new Map(unsaved.value).set(document.key, document);
    clearTimeout(document.timer);
    if (delay) document.timer = setTimeout(() => this.flush(document), delay);
    return delay ? Promise.resolve() : this.flush(document);
  }

  /** Saves a document now, if it must be saved. */
  flush(document) {
    clearTimeout(document.timer);
    if (!document.wanted || document.save.value.phase === "conflict") return Promise.resolve();
    document.saving ??= this.#send(document).finally(() => {
      document.saving = null;
      if (document.wanted && !document.isSent && document.save.value.phase === "waiting") this.flush(document);
    });
    return document.saving;
  }

  /** Tries again to save everything. */
  retry() {
    for (const document of unsaved.value.values()) this.flush(document);
  }

  async #send(document) {
    const number = document.saveNumber;
    const wanted = document.wanted;
    document.isSent = true;
    document.save.value = { phase: "saving" };
    const sent = document.labels.slice();
    try {
      this.#finish(document, number, await send(document, wanted, sent));
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      if (error.status === 409) await this.#resolve(document, number, wanted, sent);
      else this.#fail(document, error);
    }
  }

  #finish(document, number, { version, state, tags }) {
    document.version = version;
    document.state.value = state;
    document.attempts = 0;
    if (document.saveNumber === number) {
      document.wanted = null;
      document.save.value = { phase: "saved" };
      this.#forget(document);
    } else {
      document.save.value = { phase: "waiting" };
    }
    this.onSaved(document.key, { version, state, tags });
  }

  #forget(document) {
    const rest = new Map(unsaved.value);
    rest.delete(document.key);
    unsaved.value = rest;
    localStorage.removeItem(this.prefix + document.key);
  }

  #fail(document, error) {
    const attempts = (document.attempts ?? 0) + 1;
    document.attempts = attempts;
    document.save.value = { phase: "failed", reason: error.message, status: error.status };
    this.#keep(document);
    if (!error.isTemporary) return;
    clearTimeout(document.timer);
    const delay = RETRY_DELAYS[Math.min(attempts, RETRY_DELAYS.length) - 1];
    document.timer = setTimeout(() => this.flush(document), delay);
  }

  /** After a conflict: if the server has what was sent, only its answer was lost. */
  async #resolve(document, number, wanted, sent) {
    try {
      const details = await api.getImage(document.key);
      const labels = document.isTooLarge ? sent : (await api.getMask(document.key)).labels;
      const isDone = { draft: ["draft"], accept: ["accepted", "corrected"], reject: ["rejected"], open: ["open"] }[
        wanted
      ];
      const isSame = !isDone || wanted === "reject" || wanted === "open" || isEqual(labels, sent);
      if (isSame && isEqual(details.tags, document.tags.value) && (!isDone || isDone.includes(details.state))) {
        this.#finish(document, number, { ...details, tags: details.corrected_tags });
      } else {
        document.save.value = { phase: "conflict", version: details.version };
        this.#keep(document);
      }
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      this.#fail(document, error);
    }
  }

  /** Ends a conflict: saves this page's mask over the newer one, which stays in the history of the image. */
  keepMine(document) {
    document.version = document.save.value.version;
    document.save.value = { phase: "waiting" };
    return this.flush(document);
  }

  /** Ends a conflict, or gives up what is not saved. */
  discard(document) {
    clearTimeout(document.timer);
    document.wanted = null;
    document.save.value = { phase: "saved" };
    this.#forget(document);
  }

  /** Writes what is not saved to the local storage. */
  keepAll() {
    for (const document of unsaved.value.values()) this.#keep(document);
  }

  #keep(document) {
    const { wanted, version } = document;
    const value = {
      wanted,
      version,
      tags: document.tags.value,
      thresholds: document.thresholds.value,
      runs: encodeRuns(document.labels),
      painted: encodeRuns(document.painted),
    };
    try {
      localStorage.setItem(this.prefix + document.key, JSON.stringify(value));
    } catch {
      // full or switched off: the browser asks before it closes the page
    }
  }

  /** The keys of the images that the local storage has. */
  keptKeys() {
    return Object.keys(localStorage)
      .filter((name) => name.startsWith(this.prefix))
      .map((name) => name.slice(this.prefix.length));
  }

  /** Brings back what was not saved when the page was closed. */
  restore(document) {
    const name = this.prefix + document.key;
    const text = localStorage.getItem(name);
    if (text === null) return;
    try {
      const { wanted, version, tags, thresholds, runs, painted } = JSON.parse(text);
      const [labels, isPainted] = [runs, painted].map((values) => decodeRuns(values, document.labels.length));
      if (!labels || !isPainted) throw new SyntaxError("another size");
      document.begin();
      document.labels.set(labels);
      document.painted.set(isPainted);
      document.tags.value = tags;
      document.thresholds.value = thresholds;
      document.commit("not saved before");
      document.show();
      const newest = document.version;
      document.version = version;
      this.request(document, wanted, newest === version ? 1 : DELAY);
    } catch {
      localStorage.removeItem(name);
    }
  }
}

function isEqual(first, second) {
  return first.length === second.length && first.every((value, i) => value === second[i]);
}

function send(document, wanted, labels) {
  const { key, version: base, painted } = document;
  const [tags, thresholds] = [document.tags.value, document.thresholds.value];
  const hasMask = wanted === "draft" || wanted === "accept";
  if (hasMask && !document.isTooLarge) return api.putMask(key, labels, { state: wanted, base, tags, painted, thresholds });
  return api.postState(key, { state: wanted, base, tags: wanted === "tags" || hasMask ? tags : null });
}
