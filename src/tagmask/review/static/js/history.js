/** Undo and redo of the changes of one mask. */

const MAX_BYTES = 2 ** 28; // of all changes of one image

/** A list of changes with a position in it. A change has `bytes`; the oldest ones are dropped if there are too many. */
export class History {
  #changes = [];
  #position = 0; // number of changes that are in effect

  get canUndo() {
    return this.#position > 0;
  }

  get canRedo() {
    return this.#position < this.#changes.length;
  }

  /** The change that was made last, or undefined. */
  get last() {
    return this.#changes[this.#position - 1];
  }

  /** Adds a change. What was undone before is forgotten. */
  push(change) {
    this.#changes.length = this.#position;
    this.#changes.push(change);
    let bytes = this.#changes.reduce((sum, one) => sum + one.bytes, 0);
    while (bytes > MAX_BYTES && this.#changes.length > 1) bytes -= this.#changes.shift().bytes;
    this.#position = this.#changes.length;
  }

  /** Takes back the last change and returns it; undefined if there is none. */
  undo() {
    return this.canUndo ? this.#changes[--this.#position] : undefined;
  }

  /** Makes the change again that was taken back last and returns it; undefined if there is none. */
  redo() {
    return this.canRedo ? this.#changes[this.#position++] : undefined;
  }
}
