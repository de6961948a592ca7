/** One image: its picture, the tools and the sidebar. */

import { finish, openDocument, redo, reopen, step, undo } from "./actions.js";
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
      ${document ? html`<${Picture} key=${document.key} document=${document} />` : html`<p class="loading">Loading…</p>`}
    </main>
    <aside class="sidebar" aria-label="Classes and tools">
      ${document && html`
        <div class="panels">
          <${ClassPanel} document=${document} />
          <${ToolPanel} />
          <${ViewPanel} document=${document} />
          <${HistoryPanel} key=${document.key} document=${document} />
        </div>
        <${Verdict} document=${document} />`}
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
  return html`<header class="header editor-header">
    <${Button} icon="back" name="Back to the gallery" keys="Esc" isQuiet onClick=${openGallery}>Gallery<//>
    <h1 title=${row?.id}>${row?.id ?? "Unknown image"}</h1>
    <${StateBadge} state=${document?.state.value ?? row?.state ?? "open"} />
    <span class="spacer"></span>
    <${SaveIndicator} />
    <span class="position">${position + 1} of ${keys.length.toLocaleString("en")}</span>
    <${Button} icon="previous" name="Previous image" keys="P" isQuiet isDisabled=${position <= 0} onClick=${() => step(-1)} />
    <${Button} icon="next" name="Next image" keys="N" isQuiet isDisabled=${position >= keys.length - 1} onClick=${() => step(+1)} />
    <${Button} name="Keys" keys="?" isQuiet onClick=${() => (store.isHelpOpen.value = true)}>Keys<//>
  </header>`;
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
  ${document.isRefining.value && html`<p class="refining" role="status">Refining with the CRF…</p>`}
  <${Zoom} />`;
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

function Verdict({ document }) {
  const isOpen = document.state.value === "open";
  return html`<div class="verdict">
    <div class="verdict-small">
      <${Button} icon="undo" name="Undo" keys="Ctrl+Z" isQuiet isDisabled=${!canUndo(document)} onClick=${undo} />
      <${Button} icon="redo" name="Redo" keys="Ctrl+Shift+Z" isQuiet isDisabled=${!canRedo(document)} onClick=${redo} />
      <span class="spacer"></span>
      <${Button} name="Back to the mask of the run" keys="⇧R" isQuiet isDisabled=${isOpen} onClick=${reopen}>Reopen<//>
    </div>
    <div class="verdict-main">
      <${Button} name="The mask is wrong: nothing learns from it" keys="R" icon="cross" onClick=${() => finish("reject")}>Reject<//>
      <${Button} name="The mask is right" keys="Enter" icon="check" isPrimary onClick=${() => finish("accept")}>Accept<//>
    </div>
  </div>`;
}

const canUndo = (document) => document.revision.value >= 0 && document.history.canUndo;
const canRedo = (document) => document.revision.value >= 0 && document.history.canRedo;
