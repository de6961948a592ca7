/** All images as a grid, of which only the visible rows exist. */

import { finishInGallery } from "./actions.js";
import { thumbnailUrl } from "./api.js";
import { Button, StateBadge, Swatch } from "./controls.js";
import { GalleryHeader } from "./gallery_header.js";
import { html, useEffect, useLayoutEffect, useRef, useSignal } from "./html.js";
import { isUsedByField } from "./keyboard.js";
import { openImage } from "./router.js";
import * as store from "./store.js";

const TILE_WIDTH = 208; // CSS pixels, at least
const CAPTION_HEIGHT = 54;
const GAP = 14;
const EXTRA_ROWS = 2; // above and below the visible ones
const SHOWN_TAGS = 2; // of which the names fit below a picture
const THUMBNAIL_DELAY = 60; // ms for which a tile must be there before its picture is loaded

export function Gallery() {
  const rows = store.list.value;
  return html`<div class="gallery">
    <${GalleryHeader} />
    ${rows.length ? html`<${Grid} rows=${rows} />` : html`<${Nothing} />`}
  </div>`;
}

function Nothing() {
  return html`<div class="nothing">
    <p>No image fits the filter.</p>
    <${Button} onClick=${() => store.changeFilter({ text: "", classId: null, state: null })}>Show all images<//>
  </div>`;
}

function Grid({ rows }) {
  const scroller = useRef(null);
  const size = useSignal({ width: 0, height: 0 });
  const top = useSignal(0);
  const layout = layOut(size.value.width);

  useLayoutEffect(() => {
    const element = scroller.current;
    const observer = new ResizeObserver(() => {
      size.value = { width: element.clientWidth, height: element.clientHeight };
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  useLayoutEffect(() => {
    if (size.value.width)
      reveal(
        scroller.current,
        layout,
        rows.findIndex(({ key }) => key === store.selected.peek()),
      );
  }, [size.value.width]);

  useEffect(() => {
    const onKey = (event) => handleKey(event, rows, layout, scroller.current);
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });

  const first = Math.max(0, Math.floor((top.value - GAP) / layout.rowHeight) - EXTRA_ROWS);
  const last = Math.ceil((top.value + size.value.height) / layout.rowHeight) + EXTRA_ROWS;
  const start = first * layout.columns;
  const height = Math.ceil(rows.length / layout.columns) * layout.rowHeight + GAP;
  const visible = size.value.width ? rows.slice(start, last * layout.columns) : [];
  return html`<div
    class="grid" ref=${scroller} tabindex="0" role="listbox" aria-label="Images"
    aria-activedescendant=${store.selected.value ? `tile-${store.selected.value}` : undefined}
    onScroll=${(event) => (top.value = event.currentTarget.scrollTop)}
  >
    <div class="grid-inner" style=${{ height: `${height}px` }}>
      ${visible.map(
        (row, n) => html`<${Tile}
        key=${row.key} row=${row} width=${layout.width} height=${layout.rowHeight - GAP}
        left=${GAP + ((start + n) % layout.columns) * (layout.width + GAP)}
        top=${GAP + Math.floor((start + n) / layout.columns) * layout.rowHeight}
        position=${start + n + 1} total=${rows.length}
      />`,
      )}
    </div>
  </div>`;
}

function layOut(width) {
  const columns = Math.max(1, Math.floor((width - GAP) / (TILE_WIDTH + GAP)));
  const tile = Math.floor((width - GAP) / columns - GAP);
  return { columns, width: tile, rowHeight: Math.round(tile * 0.75) + CAPTION_HEIGHT + GAP };
}

function reveal(element, layout, index) {
  if (index < 0) return;
  const top = Math.floor(index / layout.columns) * layout.rowHeight;
  const bottom = top + layout.rowHeight + GAP;
  if (top < element.scrollTop) element.scrollTop = top;
  else if (bottom > element.scrollTop + element.clientHeight) element.scrollTop = bottom - element.clientHeight;
}

function open(row) {
  store.selected.value = row.key;
  store.sequence.value = store.list.peek().map(({ key }) => key);
  openImage(row.key);
}

function handleKey(event, rows, layout, element) {
  const isOther = event.ctrlKey || event.metaKey || event.altKey || store.isHelpOpen.peek();
  if (event.defaultPrevented || isOther || isUsedByField(event.target, event.key)) return;
  if (event.repeat && !event.key.startsWith("Arrow") && !event.key.startsWith("Page")) return;
  const index = rows.findIndex(({ key }) => key === store.selected.peek());
  const page = layout.columns * Math.max(1, Math.floor(element.clientHeight / layout.rowHeight));
  const moves = {
    ArrowLeft: -1,
    ArrowRight: 1,
    ArrowUp: -layout.columns,
    ArrowDown: layout.columns,
    PageUp: -page,
    PageDown: page,
    Home: -rows.length,
    End: rows.length,
  };
  const row = rows[index];
  if (event.key in moves && rows.length) {
    const next =
      index < 0 && event.key !== "End" ? 0 : Math.min(rows.length - 1, Math.max(0, index + moves[event.key]));
    store.selected.value = rows[next].key;
    reveal(element, layout, next);
  } else if (event.key === "Enter" && rows.length) open(row ?? rows[0]);
  else if (event.key.toLowerCase() === "a" && row) finishInGallery(row, "accept");
  else if (event.key.toLowerCase() === "r" && row) finishInGallery(row, "reject");
  else if (event.key === "?") store.isHelpOpen.value = true;
  else return;
  event.preventDefault();
}

function Tile({ row, width, height, left, top, position, total }) {
  const classes = store.classesById.value;
  const isSelected = store.selected.value === row.key;
  const names = row.tags.map((tag) => classes.get(tag)?.name ?? tag);
  return html`<div
    class=${`tile is-${row.state}`} id=${`tile-${row.key}`} role="option" aria-selected=${String(isSelected)}
    aria-posinset=${position} aria-setsize=${total}
    aria-label=${`${row.id}, ${names.join(", ") || "no tags"}, ${store.STATE_NAMES[row.state]}`}
    style=${{ width: `${width}px`, height: `${height}px`, transform: `translate(${left}px, ${top}px)` }}
    onClick=${() => open(row)}
  >
    <div class="tile-picture" style=${{ height: `${height - CAPTION_HEIGHT}px` }}><${Thumbnail} row=${row} /></div>
    <div class="tile-caption">
      <span class="tile-name" title=${row.id}><bdi>${row.id}</bdi></span>
      <span class="tile-facts">
        <span class="tile-tags" title=${names.join(", ")}>
          ${row.tags.slice(0, SHOWN_TAGS).map(
            (tag, n) => html`<span class="tag">
            <${Swatch} color=${classes.get(tag)?.color} />${names[n]}
          </span>`,
          )}
          ${row.tags.length > SHOWN_TAGS && html`<span class="soft">+${row.tags.length - SHOWN_TAGS}</span>`}
          ${!row.tags.length && html`<span class="soft">no tags</span>`}
        </span>
        ${
          row.state === "open"
            ? row.doubt !== null &&
              html`<span class="doubt" title=${`Doubt ${row.doubt.toFixed(2)}: how likely the mask is wrong, 0 to 1`}>
              <span style=${{ width: `${Math.min(100, Math.round(100 * row.doubt))}%` }}></span>
            </span>`
            : html`<${StateBadge} state=${row.state} />`
        }
      </span>
    </div>
  </div>`;
}

/** A picture that is loaded only if its tile stays for a moment, so that fast scrolling does not load all of them. */
function Thumbnail({ row }) {
  const isWaiting = useSignal(true);
  const isLoaded = useSignal(false);
  const isBroken = useSignal(false);
  useEffect(() => {
    const timer = setTimeout(() => (isWaiting.value = false), THUMBNAIL_DELAY);
    return () => clearTimeout(timer);
  }, []);
  if (isWaiting.value) return null;
  if (isBroken.value) return html`<span class="tile-broken">no picture</span>`;
  return html`<img
    src=${thumbnailUrl(row.key, row.version)} alt="" decoding="async" draggable=${false}
    class=${isLoaded.value ? "is-loaded" : ""} onLoad=${() => (isLoaded.value = true)}
    onError=${() => (isBroken.value = true)}
  />`;
}
