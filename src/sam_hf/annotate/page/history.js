// What was done, to be undone and done again. An entry is { undo, redo }, functions that may take their time; they run
// one after the other.

export class History {
  constructor() {
    this.done = [];
    this.undone = [];
    this.queue = Promise.resolve();
  }

  // Do it now, after what is not over yet. It is not remembered if it fails, or gives false.
  run(redo, undo) {
    return this.after(async () => {
      if ((await redo()) === false) return;
      this.done.push({ redo, undo });
      this.undone = [];
    });
  }

  undo() {
    return this.move(this.done, this.undone, 'undo');
  }

  redo() {
    return this.move(this.undone, this.done, 'redo');
  }

  move(from, to, direction) {
    return this.after(async () => {
      const entry = from.at(-1);
      if (!entry) return;
      await entry[direction]();
      from.pop();
      to.push(entry);
    });
  }

  after(action) {
    const result = this.queue.then(action);
    this.queue = result.catch(() => {});
    return result;
  }
}
