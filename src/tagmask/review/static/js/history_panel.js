/** The saved versions of an image. */

import { restoreVersion } from "./actions.js";
import { getHistory } from "./api.js";
import { Button, keepFocus, StateBadge } from "./controls.js";
import { html, useSignal } from "./html.js";
import { notify } from "./store.js";

const TIME = new Intl.DateTimeFormat("en", {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

export function HistoryPanel({ document }) {
  const isOpen = useSignal(false);
  const events = useSignal([]);
  const shownVersion = useSignal(-1);
  const isSaved = document.save.value.phase === "saved";

  const load = async () => {
    shownVersion.value = document.version;
    try {
      events.value = (await getHistory(document.key)).reverse();
    } catch (error) {
      notify(`The history cannot be read: ${error.message}.`);
    }
  };
  if (isOpen.value && isSaved && shownVersion.peek() !== document.version) load();

  return html`<section class="panel">
    <details open=${isOpen.value} onToggle=${(event) => (isOpen.value = event.currentTarget.open)}>
      <summary onMouseDown=${keepFocus}>Saved versions</summary>
      <ol class="versions">
        ${events.value.map((event, n) => html`<li key=${event.number}>
          <${StateBadge} state=${event.state} />
          <span class="version-text" title=${`${event.source}, by ${event.user}`}>${TIME.format(new Date(event.time))}</span>
          ${n === 0
            ? html`<span class="soft">now</span>`
            : html`<${Button} name="Return to this version" isQuiet onClick=${() => restoreVersion(document, event.number)}>Restore<//>`}
        </li>`)}
        <li>
          <${StateBadge} state="open" />
          <span class="version-text">Mask of the run</span>
          ${events.value.length === 0
            ? html`<span class="soft">now</span>`
            : html`<${Button} name="Return to the mask of the run" isQuiet onClick=${() => restoreVersion(document, -1)}>Restore<//>`}
        </li>
      </ol>
    </details>
  </section>`;
}
