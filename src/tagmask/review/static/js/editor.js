/** One image: its picture, the tools and the sidebar. */

import { finish, openDocument, reopen, reopenDamaged, step } from "./actions.js";
import { thumbnailUrl } from "./api.js";
import { CanvasView } from "./canvas.js";
import { ClassPanel } from "./class_panel.js";
import { Button, StateBadge } from "./controls.js";
import { HistoryPanel } from "./history_panel.js";
import { html, useEffect, useLayoutEffect, useRef } from "./html.js";
import { Painter } from "./pointer.js";
import { openGallery } from "./router.js";
import { SaveIndicator } from "./save_indicator.js";
import * as store from "./store.js";
import { ToolPanel, Toolbar, ViewPanel } from "./tool_panel.js";

export function Editor() {
  const { key } = store.route.value;
  useEffect(() => {
    store.selected.value = key;
    if (!store.sequence.peek().includes(key)) store.sequence.value = keysAround(key);
    openDocument(key);
  }, [key]);
  useEffect(() => () => leave(), []);
  const document = store.document.value;
  return html`<div class="editor">
    <${EditorHeader} row=${store.rowsByKey.value.get(key)} />
    <${Toolbar} document=${document} />
    <main class="stage">
      ${!document && html`<${Missing} row=${store.rowsByKey.value.get(key)} />`}
      ${document && html`<${document.isTooLarge ? LargePicture : Picture} key=${document.key} document=${document} />`}
    </main>
    <aside class="sidebar" aria-label="Classes and tools">
      ${
        document &&
        html`
        <div class="panels">
          <${ClassPanel} document=${document} />
          ${!document.isTooLarge && html`<${ToolPanel} /><${ViewPanel} document=${document} />`}
          <${HistoryPanel} key=${document.key} document=${document} />
        </div>
        <${Verdict} />`
      }
    </aside>
  </div>`;
}

function keysAround(key) {
  const keys = store.list.peek().map((row) => row.key);
  return keys.includes(key) ? keys : store.images.peek().map((row) => row.key);
}

function leave() {
  const document = store.document.peek();
  if (document) store.getAutosave().flush(document);
  store.document.value = null;
}

function EditorHeader({ row }) {
  const keys = store.sequence.value;
  const position = keys.indexOf(store.route.value.key);
  const document = store.document.value;
  const state = document?.state.value ?? row?.state ?? "open";
  return html`<header class="header editor-header">
    <${Button} icon="back" name="Back to the gallery" keys="Esc" isQuiet onClick=${openGallery}>Gallery<//>
    <h1 title=${row?.id}>${row?.id ?? "Unknown image"}</h1>
    <${StateBadge} state=${state} />
    ${
      state !== "open" &&
      document &&
      html`<${Button} name="Back to the mask of the run" keys="Shift+R" isQuiet onClick=${reopen}>Reopen<//>`
    }
    <span class="spacer"></span>
    <${SaveIndicator} />
    <span class="position">${position + 1} of ${keys.length.toLocaleString("en")}</span>
    <${Button}
      icon="previous" name="Previous image" keys="P" isQuiet
      isDisabled=${position <= 0} onClick=${() => step(-1)}
    />
    <${Button}
      icon="next" name="Next image" keys="N" isQuiet
      isDisabled=${position >= keys.length - 1} onClick=${() => step(+1)}
    />
    <${Button} name="Keys" keys="?" isQuiet onClick=${() => (store.isHelpOpen.value = true)}>Keys<//>
  </header>`;
}

/** While an image is loading, or if it cannot be read. */
function Missing({ row }) {
  const error = store.documentError.value;
  if (error === null) return html`<p class="loading">Loading…</p>`;
  if (!row) return html`<p class="loading" role="alert">The run has no such image.</p>`;
  return html`<div class="loading" role="alert">
    <p>This image cannot be opened: ${error}.</p>
    ${
      row?.state !== "open" && html`<${Button} onClick=${() => reopenDamaged(row)}>Reopen: take the mask of the run<//>`
    }
  </div>`;
}

/** An image that is too large for the canvas: it can be accepted or rejected by its thumbnail. */
function LargePicture({ document }) {
  return html`<div class="large-picture">
    <img src=${thumbnailUrl(document.key, document.version)} alt=${`Photo and mask of ${document.id}`} />
    <p>
      This image has ${document.width} × ${document.height} pixels, too many for this page. Accept or reject its
      mask, or correct it in another program and import it with <code>tagmask import</code>.
    </p>
  </div>`;
}

function Picture({ document }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const view = new CanvasView(element.current, document);
    const painter = new Painter(view);
    store.canvas.value = view;
    return () => {
      painter.dispose();
      view.dispose();
      if (store.canvas.peek() === view) store.canvas.value = null;
    };
  }, [document]);
  return html`<canvas
    ref=${element} tabindex="0" class="picture" role="img"
    aria-label=${`Photo and mask of ${document.id}. Press C to paint with the keyboard.`}
  ></canvas>
  <${HeatScale} document=${document} />
  ${document.isRefining.value && html`<p class="refining" role="status">Refining with the CRF…</p>`}
  <${Zoom} />`;
}

function HeatScale({ document }) {
  const label = store.label.value;
  if (!store.view.value.isHeatShown || !document.maps.some(({ classId }) => classId === label)) return null;
  return html`<div class="heat-scale">
    <span>${store.classesById.value.get(label).name}</span><span>0</span><span class="heat-colors"></span><span>1</span>
  </div>`;
}

function Zoom() {
  const canvas = store.canvas.value;
  if (!canvas) return null;
  return html`<div class="zoom" role="group" aria-label="Zoom">
    <${Button} icon="zoomOut" name="Zoom out" keys="-" isQuiet onClick=${() => canvas.zoomBy(1 / 1.5)} />
    <span class="zoom-value">${Math.round(100 * canvas.zoom.value)} %</span>
    <${Button} icon="zoomIn" name="Zoom in" keys="+" isQuiet onClick=${() => canvas.zoomBy(1.5)} />
    <${Button} icon="fit" name="Fit into the window" keys="0" isQuiet onClick=${() => canvas.fit()} />
  </div>`;
}

function Verdict() {
  return html`<div class="verdict">
    <${Button}
      name="The mask is wrong: nothing learns from it" keys="R" icon="cross" onClick=${() => finish("reject")}
    >Reject<//>
    <${Button} name="The mask is right" keys="Enter" icon="check" isPrimary onClick=${() => finish("accept")}>Accept<//>
  </div>`;
}
