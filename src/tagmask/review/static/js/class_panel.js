/** The classes: which one the tools paint, which ones the image shows, and their thresholds. */

import { finishCut } from "./actions.js";
import { Check, keepFocus, Slider, Swatch } from "./controls.js";
import { html, useSignal } from "./html.js";
import { NOT_SURE } from "./label_map.js";
import { chooseLabel } from "./shortcuts.js";
import * as store from "./store.js";

const FEW = 8; // classes that are all listed without a search

export function ClassPanel({ document }) {
  const search = useSignal("");
  const tags = document.tags.value;
  const classes = store.classesById.value;
  const others = store.listedClasses.value.filter((classId) => !tags.includes(classId));
  const words = search.value.trim().toLowerCase();
  const shown = words ? others.filter((classId) => classes.get(classId).name.toLowerCase().includes(words)) : others;
  const isNew = tags.join() !== document.dataTags.join();
  return html`<section class="panel">
    <h2>In this image ${isNew && html`<span class="soft">tags corrected</span>`}</h2>
    <ul class="classes">
      ${tags.map(
        (classId, n) => html`<${ClassRow}
        key=${classId} document=${document} classId=${classId} number=${n + 1}
      />`,
      )}
      ${!tags.length && html`<li class="soft note">No tags. Tick a class below if the image shows it.</li>`}
      ${
        !document.isTooLarge &&
        html`
        <${LabelRow} document=${document} label=${0} name="Background" keys="E" />
        <${LabelRow} document=${document} label=${NOT_SURE} name="Not sure" keys="U" />`
      }
    </ul>
    ${document.mapsError && html`<p class="soft note">No thresholds: ${document.mapsError}</p>`}
    ${
      document.maps.length > 0 &&
      html`<${Check}
      isChecked=${store.settings.value.crf} onChange=${(crf) => store.changeSettings({ crf })}
      title="After you let go of a threshold, a dense CRF moves the outlines to the edges in the photo"
    >Refine with the CRF on release<//>`
    }
    ${
      others.length > 0 &&
      html`<details open=${others.length <= FEW && tags.length === 0}>
      <summary onMouseDown=${keepFocus}>Other classes <span class="soft">${others.length}</span></summary>
      ${
        others.length > FEW &&
        html`<input
        type="search" placeholder="Search classes" aria-label="Search classes" value=${search.value}
        onInput=${(event) => (search.value = event.currentTarget.value)}
      />`
      }
      <ul class="classes others">
        ${shown.map(
          (classId) => html`<${ClassRow}
          key=${classId} document=${document} classId=${classId} number=${tags.length + others.indexOf(classId) + 1}
        />`,
        )}
      </ul>
    </details>`
    }
  </section>`;
}

function percent(document, label) {
  const share = (100 * document.counts.value[label]) / Math.max(1, document.labels.length);
  return share === 0 ? "" : share < 1 ? "< 1 %" : `${Math.round(share)} %`;
}

function ClassRow({ document, classId, number }) {
  const { name, color } = store.classesById.value.get(classId);
  const isTag = document.tags.value.includes(classId);
  const hasMap = document.maps.some((map) => map.classId === classId);
  return html`<li class=${`class ${store.label.value === classId ? "is-chosen" : ""}`}>
    <div class="class-line">
      <input
        type="checkbox" aria-label=${`${name}: the image shows it`} title="The image shows this class" checked=${isTag}
        onChange=${(event) => document.setTag(classId, event.currentTarget.checked)}
        onPointerUp=${(event) => {
          const box = event.currentTarget;
          setTimeout(() => box.blur());
        }}
      />
      <${Choose}
        label=${classId} color=${color} name=${name} share=${percent(document, classId)}
        keys=${number <= 9 ? number : ""}
      />
    </div>
    ${isTag && hasMap && html`<${Threshold} document=${document} classId=${classId} name=${name} />`}
  </li>`;
}

function LabelRow({ document, label, name, keys }) {
  return html`<li class=${`class ${store.label.value === label ? "is-chosen" : ""}`}>
    <div class="class-line">
      <span class="no-check"></span>
      <${Choose} label=${label} name=${name} share=${percent(document, label)} keys=${keys} />
    </div>
  </li>`;
}

function Choose({ label, color, name, share, keys }) {
  return html`<button
    type="button" class="choose" aria-pressed=${String(store.label.value === label)} title=${`Paint ${name}`}
    onMouseDown=${keepFocus} onClick=${() => chooseLabel(label)}
  >
    <${Swatch} color=${color} isHatched=${label === NOT_SURE} />
    <span class="choose-name">${name}</span><span class="soft share">${share}</span>
    ${keys !== "" && html`<kbd>${keys}</kbd>`}
  </button>`;
}

function Threshold({ document, classId, name }) {
  const value = document.thresholds.value[classId];
  return html`<div class="threshold">
    <span class="soft">Threshold</span>
    <${Slider}
      name=${`Threshold of ${name}`} min="0" max="1" step="0.01" value=${value}
      onInput=${(next) => {
        if (!document.step) document.begin();
        document.previewThreshold(classId, next, store.settings.peek().keep);
      }}
      onChange=${() => finishCut(document)}
    />
    <output>${value.toFixed(2)}</output>
  </div>`;
}
