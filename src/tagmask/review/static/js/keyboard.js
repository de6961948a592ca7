/** Keys of the whole page. A key belongs to the field that has the focus if that field uses it itself. */

import { EDITOR_KEYS } from "./shortcuts.js";
import { document as openDocument, isHelpOpen, route } from "./store.js";

const byKey = new Map(
  EDITOR_KEYS.flatMap(([, shortcuts]) => shortcuts.flatMap((one) => one.keys.map((key) => [key, one]))),
);
const ONCE = new Set(["Enter", "r", "Delete", "Shift+R"]); // a key that is held down judges one image only
const WHILE_LOADING = new Set(["Escape", "g", "n", "p", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "?"]);

/** Returns the name of a pressed key, for example "a", "Ctrl+Shift+Z" or "+". */
export function nameOfKey(event) {
  const isLetter = /^[a-z]$/i.test(event.key);
  const key = isLetter ? (event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase()) : event.key;
  return (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + (isLetter && event.shiftKey ? "Shift+" : "") + key;
}

/** Whether the element that has the focus uses this key itself. */
export function isUsedByField(target, name) {
  if (!(target instanceof Element)) return false;
  if (target.closest("textarea, select, input[type=search], input[type=text]")) return true;
  if (target.closest("input[type=range]")) return /^(Arrow|Home|End|Page)/.test(name);
  if (target.closest("input[type=checkbox]")) return name === " ";
  return Boolean(target.closest("button, a, summary")) && (name === "Enter" || name === " ");
}

function onKeyDown(event) {
  if (event.defaultPrevented || event.altKey || event.isComposing) return;
  if (isHelpOpen.peek() || route.peek().view !== "editor") return;
  const name = nameOfKey(event);
  const shortcut = byKey.get(name);
  if (!shortcut || isUsedByField(event.target, name)) return;
  if (!openDocument.peek() && !WHILE_LOADING.has(name)) return;
  event.preventDefault();
  if (event.repeat && ONCE.has(name)) return;
  shortcut.run(event.key);
}

export function startKeyboard() {
  addEventListener("keydown", onKeyDown);
}
