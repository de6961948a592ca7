/** Starts the page. */

import * as api from "./api.js";
import { unsaved } from "./autosave.js";
import { loadDocument } from "./document.js";
import { Editor } from "./editor.js";
import { Gallery } from "./gallery.js";
import { Help } from "./help.js";
import { html, render } from "./html.js";
import { startKeyboard } from "./keyboard.js";
import { startPolling } from "./polling.js";
import { startRouter } from "./router.js";
import { SaveBar } from "./save_indicator.js";
import * as store from "./store.js";

function Page() {
  if (store.failure.value)
    return html`<main class="failure"><h1>tagmask review</h1><p>${store.failure.value}</p></main>`;
  if (!store.run.value) return html`<p class="loading" role="status">Loading…</p>`;
  return html`
    <${SaveBar} />
    ${store.route.value.view === "editor" ? html`<${Editor} />` : html`<${Gallery} />`}
    ${store.message.value && html`<p class="message" role="status">${store.message.value}</p>`}
    <${Help} />`;
}

/** Saves what was not saved when the page was closed; the open image does so itself. */
async function saveKept() {
  const autosave = store.getAutosave();
  const { key: open } = store.route.peek();
  for (const key of autosave.keptKeys()) {
    if (key === open || !store.rowsByKey.peek().has(key)) continue;
    autosave.restore(await loadDocument(key));
  }
}

function watchClosing() {
  addEventListener("beforeunload", (event) => {
    if (!unsaved.peek().size) return;
    const autosave = store.getAutosave();
    autosave.keepAll();
    autosave.retry();
    if ([...unsaved.peek().values()].some((document) => document.save.peek().phase === "failed"))
      event.preventDefault();
  });
  addEventListener("pagehide", () => store.getAutosave().keepAll());
  addEventListener("online", () => store.getAutosave().retry());
  addEventListener("visibilitychange", () => {
    if (globalThis.document.visibilityState === "hidden") store.getAutosave().keepAll();
  });
}

async function start() {
  render(html`<${Page} />`, globalThis.document.getElementById("app"));
  startRouter();
  store.restoreSettings();
  try {
    const [run, images] = await Promise.all([api.getRun(), api.getImages()]);
    store.setImages(images);
    store.label.value = run.classes[0]?.id ?? 0;
    store.run.value = run;
    globalThis.document.title = `${run.name} – tagmask review`;
    startKeyboard();
    startPolling();
    watchClosing();
    await saveKept();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (store.run.peek()) store.notify(`Not everything could be loaded: ${error.message}.`);
    else store.failure.value = `The page cannot start: ${error.message}. Reload it when tagmask review runs.`;
  }
}

start();
