/** The tools and how the picture is shown. */

import { redo, undo } from "./actions.js";
import { Button, Check, keepFocus, Slider } from "./controls.js";
import { html } from "./html.js";
import * as store from "./store.js";

const TOOLS = [
  ["brush", "Brush", "B"],
  ["eraser", "Eraser", "E"],
  ["fill", "Fill", "F"],
  ["superpixel", "Superpixels", "S"],
];

export function Toolbar({ document }) {
  void document?.revision.value; // the buttons change with every step
  const { canUndo, canRedo } = document?.history ?? {};
  return html`<div class="toolbar" role="toolbar" aria-label="Tools" aria-orientation="vertical">
    ${TOOLS.map(
      ([name, title, keys]) => html`<${Button}
      icon=${name} name=${title} keys=${keys} isQuiet isPressed=${store.tool.value === name}
      onClick=${() => (store.tool.value = name)}
    />`,
    )}
    <span class="divider"></span>
    <${Button} icon="undo" name="Undo" keys="Ctrl+Z" isQuiet isDisabled=${!canUndo} onClick=${undo} />
    <${Button} icon="redo" name="Redo" keys="Ctrl+Shift+Z" isQuiet isDisabled=${!canRedo} onClick=${redo} />
  </div>`;
}

const SUPERPIXELS = ["small", "medium", "large"];

export function ToolPanel() {
  const tool = store.tool.value;
  const { diameter, keep, superpixels } = store.settings.value;
  const [, title] = TOOLS.find(([name]) => name === tool);
  return html`<section class="panel">
    <h2>${title}</h2>
    ${
      (tool === "brush" || tool === "eraser") &&
      html`<div class="setting">
      <span>Size</span>
      <${Slider}
        name="Brush size" min="0" max="100" step="1" value=${toSlider(diameter)}
        onInput=${(value) => store.changeSettings({ diameter: fromSlider(value) })}
      />
      <output>${diameter} px</output>
    </div>`
    }
    ${
      tool === "superpixel" &&
      html`<div class="segments" role="group" aria-label="Size of the superpixels">
      ${SUPERPIXELS.map(
        (size) => html`<button
        type="button" aria-pressed=${String(superpixels === size)} onMouseDown=${keepFocus}
        onClick=${() => store.changeSettings({ superpixels: size })}
      >${size[0].toUpperCase() + size.slice(1)}</button>`,
      )}
    </div>`
    }
    <${Check}
      isChecked=${keep} keys="K" onChange=${(value) => store.changeSettings({ keep: value })}
      title="The brush paints only on background; the eraser removes only the chosen class"
    >Keep other classes<//>
  </section>`;
}

// The slider of the brush is logarithmic, from 1 to 200 pixels.
const toSlider = (diameter) => Math.round((100 * Math.log(diameter)) / Math.log(200));
const fromSlider = (value) => Math.round(200 ** (value / 100));

export function ViewPanel({ document }) {
  const { isMaskShown, isSolo, isHeatShown } = store.view.value;
  const { opacity } = store.settings.value;
  const label = store.label.value;
  const hasMap = document.maps.some(({ classId }) => classId === label);
  const name = store.classesById.value.get(label)?.name;
  return html`<section class="panel">
    <h2>View</h2>
    <div class="setting">
      <span>Opacity</span>
      <${Slider}
        name="Opacity of the mask" min="0" max="100" step="5" value=${Math.round(100 * opacity)}
        onInput=${(value) => store.changeSettings({ opacity: value / 100 })}
      />
      <output>${Math.round(100 * opacity)} %</output>
    </div>
    <${Check} isChecked=${isMaskShown} keys="M" onChange=${(value) => store.changeView({ isMaskShown: value })}>Mask<//>
    <${Check}
      isChecked=${isSolo} keys="O" onChange=${(value) => store.changeView({ isSolo: value })}
    >Only the chosen class<//>
    ${
      document.maps.length > 0 &&
      html`<${Check}
      isChecked=${isHeatShown} keys="H" onChange=${(value) => store.changeView({ isHeatShown: value })}
    >Response map${hasMap ? ` of ${name}` : html` <span class="soft">(none)</span>`}<//>`
    }
  </section>`;
}
