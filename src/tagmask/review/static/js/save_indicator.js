/** Whether everything is saved, and what to do if someone else has changed an image. */

import { takeTheirs } from "./actions.js";
import { saveStatus } from "./autosave.js";
import { Button } from "./controls.js";
import { html } from "./html.js";
import * as store from "./store.js";

const RETRY = "This page keeps your changes and tries again.";
const TEXTS = { saved: "Saved", waiting: "Saving…", saving: "Saving…", failed: "Not saved", conflict: "Not saved" };

export function SaveIndicator() {
  const { phase } = saveStatus.value;
  return html`<span class=${`save is-${phase}`} role="status" title="Changes are saved automatically">
    ${TEXTS[phase]}
  </span>`;
}

/** A bar below the header while something cannot be saved. */
export function SaveBar() {
  const { phase, document, reason, status } = saveStatus.value;
  const autosave = store.getAutosave();
  if (phase === "conflict") {
    return html`<div class="bar is-warning" role="alert">
      <p>
        <b>${document.id}</b> was changed in another tab or by another program. If you keep yours, the other mask stays
        among the saved versions. If you take theirs, your changes are lost.
      </p>
      <${Button} onClick=${() => autosave.keepMine(document)}>Keep mine<//>
      <${Button} onClick=${() => takeTheirs(document)}>Take theirs<//>
    </div>`;
  }
  if (phase !== "failed") return null;
  return html`<div class="bar is-warning" role="alert">
    <p><b>${document.id}</b> is not saved: ${reason}. ${adviceFor(status)}</p>
    <${Button} onClick=${() => autosave.retry()}>Try again<//>
  </div>`;
}

function adviceFor(status) {
  if (status === 0) {
    const port = location.port ? `--port ${location.port}` : "the same port";
    return `If tagmask review has ended, start it again with ${port}. ${RETRY}`;
  }
  if (status === 403) return `Open the address that tagmask review has printed in another tab. ${RETRY}`;
  return status >= 500 ? RETRY : "";
}
