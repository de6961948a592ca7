/** The list of keys. */

import { Button } from "./controls.js";
import { html, useEffect, useRef } from "./html.js";
import { CURSOR_KEYS, EDITOR_KEYS, GALLERY_KEYS, MOUSE } from "./shortcuts.js";
import { isHelpOpen, route } from "./store.js";

const NAMES = { ArrowRight: "→", ArrowLeft: "←", Escape: "Esc", Delete: "Del" };

const HIDDEN = new Set(["=", "Ctrl+y"]); // they are the same on other keyboards

function nameOf({ keys, shown }) {
  if (shown) return [shown];
  return keys
    .filter((key) => !HIDDEN.has(key))
    .slice(0, 2)
    .map((key) => NAMES[key] ?? key.replace(/(^|\+)([a-z])$/, (text) => text.toUpperCase()));
}

export function Help() {
  const dialog = useRef(null);
  useEffect(() => {
    if (isHelpOpen.value && !dialog.current.open) dialog.current.showModal();
    if (!isHelpOpen.value && dialog.current.open) dialog.current.close();
  }, [isHelpOpen.value]);
  const close = () => (isHelpOpen.value = false);
  const groups = route.value.view === "editor" ? [...EDITOR_KEYS, ...CURSOR_KEYS, ...MOUSE] : GALLERY_KEYS;
  return html`<dialog
    ref=${dialog} class="help" aria-label="Keys" onClose=${close}
    onClick=${(event) => event.target === dialog.current && close()}
  >
    <header><h2>Keys</h2><${Button} icon="cross" name="Close" isQuiet onClick=${close} /></header>
    <div class="help-groups">
      ${groups.map(
        ([title, shortcuts]) => html`<section>
        <h3>${title}</h3>
        <dl>
          ${shortcuts.map(
            (one) => html`<div>
            <dt>${nameOf(one).map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${one.text}</dd>
          </div>`,
          )}
        </dl>
      </section>`,
      )}
    </div>
  </dialog>`;
}
