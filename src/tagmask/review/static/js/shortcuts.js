/** The keys of the page, for keyboard.js and the help. */

import * as actions from "./actions.js";
import { NOT_SURE } from "./label_map.js";
import { openGallery } from "./router.js";
import * as store from "./store.js";

const useTool = (name) => () => (store.tool.value = name);
const toggleView = (name) => () => store.changeView({ [name]: !store.view.peek()[name] });

/** Chooses the n-th class of the list in the sidebar, beginning with 0. */
function chooseClass(n) {
  const classId = store.listedClasses.peek()[n];
  if (classId) chooseLabel(classId);
}

/** Chooses what the tools paint; the eraser gives way to the brush. */
export function chooseLabel(label) {
  store.label.value = label;
  if (store.tool.peek() === "eraser") store.tool.value = "brush";
}

/** Groups of {keys, text, run}; a key is "Ctrl+", "Shift+" and the name of KeyboardEvent.key. */
export const EDITOR_KEYS = [
  [
    "Review",
    [
      { keys: ["Enter"], text: "Accept the mask, next image", run: () => actions.finish("accept") },
      { keys: ["r", "Delete"], text: "Reject the mask, next image", run: () => actions.finish("reject") },
      { keys: ["Shift+R"], text: "Reopen: back to the mask of the run", run: () => actions.reopen() },
      { keys: ["n", "ArrowRight", "ArrowDown"], text: "Next image", run: () => actions.step(+1) },
      { keys: ["p", "ArrowLeft", "ArrowUp"], text: "Previous image", run: () => actions.step(-1) },
      { keys: ["Escape", "g"], text: "Back to the gallery", run: () => openGallery() },
    ],
  ],
  [
    "Painting",
    [
      { keys: ["b"], text: "Brush", run: useTool("brush") },
      { keys: ["e"], text: "Eraser (paints background)", run: useTool("eraser") },
      { keys: ["f"], text: "Fill a connected region", run: useTool("fill") },
      { keys: ["s"], text: "Superpixels", run: useTool("superpixel") },
      {
        keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"],
        shown: "1 – 9",
        text: "Choose a class",
        run: (key) => chooseClass(Number(key) - 1),
      },
      { keys: ["u"], text: "Not sure: pixels that training and scores ignore", run: () => chooseLabel(NOT_SURE) },
      { keys: ["["], text: "Smaller brush", run: () => actions.resizeBrush(0.8) },
      { keys: ["]"], text: "Larger brush", run: () => actions.resizeBrush(1.25) },
      {
        keys: ["k"],
        text: "Keep other classes on or off",
        run: () => store.changeSettings({ keep: !store.settings.peek().keep }),
      },
      { keys: ["Ctrl+z"], text: "Undo", run: () => actions.undo() },
      { keys: ["Ctrl+Shift+Z", "Ctrl+y"], text: "Redo", run: () => actions.redo() },
    ],
  ],
  [
    "View",
    [
      { keys: ["+", "="], text: "Zoom in", run: () => store.canvas.peek()?.zoomBy(1.5) },
      { keys: ["-"], text: "Zoom out", run: () => store.canvas.peek()?.zoomBy(1 / 1.5) },
      { keys: ["0"], text: "Fit into the window", run: () => store.canvas.peek()?.fit() },
      { keys: ["m"], text: "Mask on or off", run: toggleView("isMaskShown") },
      { keys: ["o"], text: "Only the chosen class", run: toggleView("isSolo") },
      { keys: ["h"], text: "Response map of the chosen class as heat", run: toggleView("isHeatShown") },
      { keys: ["c"], text: "Paint with the keyboard", run: () => store.canvas.peek()?.startCursor() },
      { keys: ["?"], text: "This help", run: () => (store.isHelpOpen.value = true) },
    ],
  ],
];

/** Keys while a cursor is in the image; canvas.js handles them. */
export const CURSOR_KEYS = [
  [
    "Painting with the keyboard (C)",
    [
      { shown: "Arrow keys", text: "Move the cursor by a quarter of the brush" },
      { shown: "Shift + arrows", text: "Move it further" },
      { shown: "Space", text: "Use the tool; hold it down and move to draw a line" },
      { shown: "Esc", text: "Leave the cursor" },
    ],
  ],
];

export const MOUSE = [
  [
    "Mouse",
    [
      { shown: "Wheel", text: "Zoom" },
      { shown: "Space + drag", text: "Move the image, as with the middle button" },
      { shown: "Right button", text: "Erase" },
    ],
  ],
];

export const GALLERY_KEYS = [
  [
    "Gallery",
    [
      { shown: "Arrow keys", text: "Mark an image" },
      { shown: "Enter", text: "Open it" },
      { shown: "A", text: "Accept its mask" },
      { shown: "R", text: "Reject its mask" },
      { shown: "/", text: "Search" },
      { shown: "?", text: "This help" },
    ],
  ],
];
