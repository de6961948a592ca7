/** Progress, search, filters and the order of the gallery. */

import { Button } from "./controls.js";
import { html, useEffect, useRef } from "./html.js";
import { isUsedByField } from "./keyboard.js";
import { SaveIndicator } from "./save_indicator.js";
import * as store from "./store.js";

export function GalleryHeader() {
  const { name, stage } = store.run.value;
  return html`<header class="header">
    <div class="header-row">
      <h1>${name}<span class="soft">masks of ${stage}</span></h1>
      <${Scoring} />
      <${Progress} />
      <${SaveIndicator} />
      <${Button} name="Keys" keys="?" isQuiet onClick=${() => (store.isHelpOpen.value = true)}>Keys<//>
    </div>
    <div class="header-row filters">
      <${Search} />
      <${States} />
      <label class="choice"><span>Class</span><${Classes} /></label>
      <label class="choice"><span>Order</span><${Order} /></label>
    </div>
  </header>`;
}

const DONE = ["accepted", "corrected", "rejected"];

function Progress() {
  const counts = store.stateCounts.value;
  const total = store.images.value.length;
  const done = DONE.reduce((sum, state) => sum + counts[state], 0);
  const percent = (count) => `${(100 * count) / (total || 1)}%`;
  return html`<div class="progress" title=${DONE.map((state) => `${counts[state]} ${state}`).join(", ")}>
    <span
      class="progress-bar" role="progressbar" aria-label="Reviewed" aria-valuemin="0" aria-valuemax=${total}
      aria-valuenow=${done}
    >
      ${DONE.map((state) => html`<span class=${`is-${state}`} style=${{ width: percent(counts[state]) }}></span>`)}
    </span>
    <span><b>${done.toLocaleString("en")}</b> of ${total.toLocaleString("en")} reviewed</span>
  </div>`;
}

function Search() {
  const field = useRef(null);
  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== "/" || event.ctrlKey || store.isHelpOpen.peek() || isUsedByField(event.target, "/")) return;
      event.preventDefault();
      field.current.focus();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return html`<input
    ref=${field} type="search" class="search" placeholder="Search names  ( / )" aria-label="Search names"
    value=${store.filter.value.text}
    onInput=${(event) => store.changeFilter({ text: event.currentTarget.value })}
    onKeyDown=${(event) => ["Enter", "Escape"].includes(event.key) && field.current.blur()}
  />`;
}

function States() {
  const counts = store.stateCounts.value;
  const { state } = store.filter.value;
  const all = [
    [null, "All", store.images.value.length],
    ...store.STATES.map((one) => [one, store.STATE_NAMES[one], counts[one]]),
  ];
  return html`<div class="segments" role="group" aria-label="State">
    ${all.map(
      ([value, name, count]) => html`<button
      type="button" aria-pressed=${String(state === value)} onClick=${() => store.changeFilter({ state: value })}
    >${name} <span class="soft">${count.toLocaleString("en")}</span></button>`,
    )}
  </div>`;
}

function Classes() {
  const value = store.filter.value.classId;
  return html`<select
    aria-label="Class" value=${value ?? ""}
    onChange=${({ currentTarget: { value } }) => store.changeFilter({ classId: value === "" ? null : Number(value) })}
  >
    <option value="">All</option>
    ${store.run.value.classes.map(({ id, name }) => html`<option value=${id}>${name}</option>`)}
    <option value="0">No tags</option>
  </select>`;
}

/** The doubt is computed once, while the page is open already. */
function Scoring() {
  const progress = store.scoring.value;
  if (store.scoringError.value)
    return html`<span class="soft" title=${store.scoringError.value}>no doubt: by name</span>`;
  if (progress === null || progress >= 1) return null;
  return html`<span class="soft" role="status">computing the doubt: ${Math.round(100 * progress)} %</span>`;
}

function Order() {
  return html`<select
    aria-label="Order" value=${store.order.value} onChange=${(event) => (store.order.value = event.currentTarget.value)}
  >
    <option value="doubt">Most doubtful first</option>
    <option value="name">By name</option>
  </select>`;
}
