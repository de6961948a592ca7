/** Controls that several views use. */

import { html } from "./html.js";
import { Icon } from "./icons.js";
import { STATE_NAMES } from "./store.js";

/** For mousedown: a click does not move the focus, so that keys keep their meaning. */
export const keepFocus = (event) => event.preventDefault();

/** A button that the mouse does not give the focus, so that keys keep their meaning after a click. */
export function Button({
  icon,
  name,
  keys,
  isPressed,
  isPrimary,
  isQuiet,
  isDisabled,
  children,
  onClick,
  class: more = "",
}) {
  const title = name && (keys ? `${name} (${keys})` : name);
  return html`<button
    type="button"
    class=${`button ${isPrimary ? "is-primary" : ""} ${isQuiet ? "is-quiet" : ""} ${children ? "" : "is-icon"} ${more}`}
    title=${title}
    aria-label=${children ? undefined : name}
    aria-pressed=${isPressed === undefined ? undefined : String(isPressed)}
    disabled=${isDisabled}
    onMouseDown=${keepFocus}
    onClick=${onClick}
  >
    ${icon && html`<${Icon} name=${icon} />`}${children && html`<span>${children}</span>`}
    ${children && keys && html`<kbd>${keys}</kbd>`}
  </button>`;
}

/** A slider; it gives the focus back when the mouse lets go. */
export function Slider({ name, min, max, step, value, onInput, onChange }) {
  const release = (event) => event.currentTarget.blur();
  return html`<input
    type="range" aria-label=${name} min=${min} max=${max} step=${step} value=${value}
    onInput=${(event) => onInput(Number(event.currentTarget.value))} onChange=${onChange} onPointerUp=${release}
  />`;
}

/** A check box with its text; it gives the focus back after a click of the mouse. */
export function Check({ isChecked, onChange, keys, children, title }) {
  return html`<label class="check" title=${title}>
    <input
      type="checkbox" checked=${isChecked} onChange=${(event) => onChange(event.currentTarget.checked)}
      onPointerUp=${(event) => {
        const box = event.currentTarget;
        setTimeout(() => box.blur());
      }}
    />
    <span>${children}</span>${keys && html`<kbd>${keys}</kbd>`}
  </label>`;
}

/** A small square in the color of a label. */
export function Swatch({ color, isHatched }) {
  return html`<span class=${`swatch ${isHatched ? "is-hatched" : ""}`} style=${{ background: color }}></span>`;
}

const STATE_ICONS = { draft: "draft", accepted: "check", corrected: "check", rejected: "cross" };

/** The state of an image; "open" has no badge in the gallery. */
export function StateBadge({ state }) {
  return html`<span class=${`state is-${state}`}>
    ${STATE_ICONS[state] && html`<${Icon} name=${STATE_ICONS[state]} />`}${STATE_NAMES[state]}
  </span>`;
}
