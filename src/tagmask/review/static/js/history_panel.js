/** The saved versions of an image. */

import { restoreVersion } from "./actions.js";
import { getHistory } from "./api.js";
import { Button, keepFocus, StateBadge } from "./controls.js";
import { html, useEffect, useSignal } from "./html.js";
import { notify } from "./store.js";

const TIME = new Intl.DateTimeFormat("en", {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});

export function HistoryPanel({ document }) {
  const isOpen = useSignal(false);
  const events = useSignal([]);
  const isSaved = document.save.value.phase === "saved";

  useEffect(() => {
    if (!isOpen.value || !isSaved) return;
    getHistory(document.key).then(
      (answer) => (events.value = answer.reverse()),
      (error) => notify(`The history cannot be read: ${error.message}.`),
    );
  }, [isOpen.value, isSaved, document.version]);

  return html`<section class="panel">
    <details open=${isOpen.value} onToggle=${(event) => (isOpen.value = event.currentTarget.open)}>
      <summary onMouseDown=${keepFocus}>Saved versions</summary>
      <ol class="versions">
        ${events.value.map(
          (event, n) => html`<li key=${event.number}>
          <${StateBadge} state=${event.state} />
          <span class="version-text" title=${`${event.source}, by ${event.user}`}>
            ${TIME.format(new Date(event.time))}
          </span>
          ${
            n === 0
              ? html`<span class="soft">now</span>`
              : html`<${Restore} name="Return to this version" document=${document} number=${event.number} />`
          }
        </li>`,
        )}
        <li>
          <${StateBadge} state="open" />
          <span class="version-text">Mask of the run</span>
          ${
            events.value.length === 0
              ? html`<span class="soft">now</span>`
              : html`<${Restore} name="Return to the mask of the run" document=${document} number=${-1} />`
          }
        </li>
      </ol>
    </details>
  </section>`;
}

function Restore({ name, document, number }) {
  return html`<${Button} name=${name} isQuiet onClick=${() => restoreVersion(document, number)}>Restore<//>`;
}
