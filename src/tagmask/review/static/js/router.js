/** The address after # says what the page shows: #/ the gallery, #/image/KEY an image in the editor. */

import { route } from "./store.js";

function parse(hash) {
  const [, key] = /^#\/image\/([0-9a-f]{16})$/.exec(hash) ?? [];
  return key ? { view: "editor", key } : { view: "gallery" };
}

export function startRouter() {
  route.value = parse(location.hash);
  addEventListener("hashchange", () => (route.value = parse(location.hash)));
}

export const galleryUrl = "#/";
export const imageUrl = (key) => `#/image/${key}`;

/** Shows another image, in the same entry of the browser's history if there is one open. */
export function openImage(key) {
  if (route.peek().view === "editor") {
    history.replaceState(null, "", imageUrl(key));
    route.value = { view: "editor", key };
  } else {
    location.hash = imageUrl(key);
  }
}

export function openGallery() {
  location.hash = galleryUrl;
}
