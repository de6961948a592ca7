/** Requests to the server. Every function returns a promise; it fails with an ApiError. */

/** A request that failed. `status` is that of HTTP, or 0 if the server did not answer. */
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message.replace(/\.$/, ""));
    this.status = status;
    this.body = body;
  }

  /** Whether the same request may succeed later. */
  get isTemporary() {
    return this.status === 0 || this.status === 403 || this.status >= 500;
  }
}

async function request(path, { method = "GET", body, headers = {} } = {}) {
  const options = { method, body, headers: method === "GET" ? headers : { "X-Tagmask": "1", ...headers } };
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new ApiError(0, "the server does not answer");
  }
  if (response.ok) return response;
  const isJson = response.headers.get("Content-Type")?.includes("json");
  const error = isJson ? await response.json().catch(() => ({})) : {};
  throw new ApiError(response.status, error.error ?? `the server answered ${response.status}`, error);
}

/** Reads the body of a response; a connection that breaks meanwhile is an ApiError, too. */
async function read(response, kind) {
  try {
    return await response[kind]();
  } catch {
    throw new ApiError(0, "the server does not answer");
  }
}

const json = async (path, options) => read(await request(path, options), "json");

const bytes = async (path, options) => read(await request(path, options), "arrayBuffer");

const post = (path, value) => ({
  method: "POST",
  body: JSON.stringify(value),
  headers: { "Content-Type": "application/json" },
});

const image = (key, rest = "") => `images/${key}${rest}`;

export const getRun = () => json("run");
export const getImages = () => json("images");
export const getChanges = (since) => json(`changes?since=${since}`);
export const getImage = (key) => json(image(key));
export const getHistory = (key) => json(image(key, "/history"));

/** Returns {labels, version}: a mask, and the number of changes after which it was read. */
export async function getMask(key, of = "current") {
  const response = await request(image(key, `/mask?of=${of}`));
  const labels = new Uint8Array(await read(response, "arrayBuffer"));
  return { labels, version: Number(response.headers.get("X-Version")) };
}

/** Returns all maps of an image, one after the other, Float32Array. */
export const getMaps = async (key) => new Float32Array(await bytes(image(key, "/maps")));

/** Returns the segment of each pixel, Uint32Array; size is "small", "medium" or "large". */
export const getSuperpixels = async (key, size) =>
  new Uint32Array(await bytes(image(key, `/superpixels?size=${size}`)));

/** Returns the mask that the maps give at some thresholds {class id: threshold}, Uint8Array. */
export const postCut = async (key, thresholds, crf) =>
  new Uint8Array(await bytes(image(key, "/cut"), post("", { thresholds, crf })));

/** Returns 1 for each pixel that a person has painted, Uint8Array. */
export const getPainted = async (key) => new Uint8Array(await bytes(image(key, "/painted")));

/**
 * Saves a mask, and what led to it; state is "draft" or "accept", tags are class ids.
 *
 * @returns {version, state, tags}
 */
export const putMask = (key, labels, { state, base, tags, painted, thresholds }) =>
  json(image(key, `/mask?state=${state}&base=${base}`), {
    method: "PUT",
    body: new Blob([labels, painted]),
    headers: {
      "Content-Type": "application/octet-stream",
      "X-Tags": JSON.stringify(tags),
      "X-Thresholds": JSON.stringify(thresholds),
    },
  });

/** Changes the state without a mask: "accept", "reject", "open" or "tags". Returns {version, state, tags}. */
export const postState = (key, { state, tags = null, base }) =>
  json(image(key, "/state"), post("", { state, tags, base }));

/** Returns an image to its state after one of its changes. Returns {version, state, tags}. */
export const postRestore = (key, number, base) => json(image(key, "/restore"), post("", { number, base }));

export const photoUrl = (key) => `api/${image(key, "/photo")}`;
export const thumbnailUrl = (key, version) => `api/${image(key, `/thumbnail?v=${version}`)}`;
