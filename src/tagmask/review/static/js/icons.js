/** Small drawings of 20×20 pixels, in the color of the text. */

import { html } from "./html.js";

const PATHS = {
  brush:
    "M16.5 3.5c-1-1-7 4-8.3 5.9l2.4 2.4C12.5 10.5 17.5 4.5 16.5 3.5ZM7.3 10.6c-1.8-.1-2.7 1-2.9 2.6-.1 1.2-.7 2-1.6 2.5 2.3 1 6.7.6 6.9-2.7Z",
  eraser: "m11.2 3.8 5 5-7.4 7.4H6.2l-2.9-2.9a1 1 0 0 1 0-1.4Zm-4 4 5 5M9 16.2h7.5",
  fill: "m8.5 3 6.5 6.5-6.2 6.2-5.5-5.5 6-6M3.5 10h11M16.8 12.5c.9 1.4 1.2 2 1.2 2.6a1.2 1.2 0 0 1-2.4 0c0-.6.3-1.2 1.2-2.6Z",
  superpixel: "M3 6.5 8 3l5 2 4-1v12.5l-5 .5-4-2-5 2ZM8 3l1 6-1 6M13 5l-1 5 .5 7M3 11l6-2 3 1 5-1.5",
  undo: "M7 4 3.5 7.5 7 11M4 7.5h7.5a4.5 4.5 0 0 1 0 9H8",
  redo: "m13 4 3.5 3.5L13 11m3-3.5H8.500a4.5 4.5 0 0 0 0 9H12",
  back: "m11.5 4.5-5.5 5.5 5.5 5.5",
  previous: "m12 4.5-5.5 5.500L12 15.5",
  next: "m8 4.5 5.5 5.500L8 15.5",
  zoomIn: "M10 4.500v11M4.5 10h11",
  zoomOut: "M4.5 10h11",
  fit: "M3.5 7.500v-4h4M12.5 3.500h4v4M16.5 12.500v4h-4M7.5 16.500h-4v-4",
  check: "m4 10.5 4 4 8-9",
  cross: "m5 5 10 10M15 5 5 15",
  eye: "M2.5 10S5.5 5 10 5s7.5 5 7.5 5-3 5-7.5 5-7.5-5-7.5-5Zm7.5 2.200a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.400Z",
  search: "M9 14.500a5.5 5.5 0 1 0 0-11 5.5 5.5 0 0 0 0 11Zm4-1.5 4 4",
  draft: "m4 16 .8-3.3 8.4-8.4 2.5 2.5-8.4 8.400Z",
};

/** An icon; the control around it needs a name of its own. */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}
