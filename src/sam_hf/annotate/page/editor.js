// The objects of an image, and the one in hand. Nothing of the page: `changed` is called when there is something to draw.
//
// An object is { id, revision, name, steps, score, mask, color, isProposal }. The one in hand is a draft:
// { object, entries, name }, where `object` is the one that is changed, or null for a new one. Its entries are
// prompts { step, answer, mask } and strokes of the brush { pieces, mask }; `mask` is what it was after the entry.
// Strokes stay on top of later answers: they are what a person wanted.

import { History } from './history.js';
import { area, contains, NOTHING, overlap, toRuns, withStroke } from './masks.js';

// A proposal that shares more with what is there, or a surer one, tells nothing new.
const MAX_OVERLAP = 0.5;
const color = (number) => `hsl(${Math.round((number * 137.508) % 360)} 90% 60%)`;

export class Editor {
  constructor(backend, index, opened, name, changed) {
    Object.assign(this, { backend, index, changed, name });
    this.size = { width: opened.width, height: opened.height };
    this.isEmpty = opened.isEmpty;
    this.isTiled = false;
    this.numColors = 0;
    this.objects = opened.objects.map((item) => this.colored(item));
    this.draft = null;
    this.history = new History();
  }

  colored = (item) => ({ isProposal: false, ...item, color: color(this.numColors++) });

  get mask() {
    return this.draft?.entries.at(-1)?.mask ?? this.draft?.object?.mask ?? NOTHING;
  }

  get hasChanges() {
    return Boolean(this.draft?.entries.length);
  }

  // The object on top at a pixel.
  at(x, y) {
    return this.objects.findLast((item) => contains(item.mask, Math.round(x), Math.round(y))) ?? null;
  }

  // Take a finished object in hand, or none.
  async select(object) {
    if (this.hasChanges) await this.finish();
    this.draft = object && { object, entries: [], name: object.name };
    this.changed('selection');
  }

  // What the engine is given: of an object that was there, first what it was.
  steps(entries) {
    const object = this.draft?.object;
    const saved = object ? [{ mask: toRuns(object.mask), prompts: object.steps }] : [];
    return [...saved, ...entries.filter((entry) => entry.step).map((entry) => entry.step)];
  }

  // What a click at a pixel would say most likely; null where it would take another object in hand, or where the answer
  // might take the encoding of another tile.
  likelyPrompt([x, y]) {
    if (this.draft && this.isTiled) return null;
    const other = this.at(x, y);
    if (other && !this.hasChanges && other !== this.draft?.object) return null;
    return { point: [x, y], label: contains(this.mask, Math.round(x), Math.round(y)) ? 0 : 1 };
  }

  // What the engine says to one more prompt of the object in hand. What was asked last is not asked again.
  ask(step) {
    const steps = this.steps([...(this.draft?.entries ?? []), { step }]), key = JSON.stringify(steps);
    if (this.asked?.key === key) return this.asked.answer;
    const answer = this.backend.decode(this.index, steps);
    this.asked = { key, answer };
    answer.catch(() => { this.asked = null; });
    return answer;
  }

  prompt(step) {
    const entry = { step };
    return this.add(entry, async () => {
      entry.answer = await this.ask(step);
      entry.mask = this.withStrokes(entry.answer.mask);
    });
  }

  // A piece of a stroke of the brush; all pieces of a stroke are one entry.
  stroke(piece, isFirst) {
    if (!isFirst) return this.history.after(() => this.extend(piece));
    const entry = { pieces: [piece] };
    return this.add(entry, async () => {
      entry.mask = withStroke(this.mask, piece, this.size);
    });
  }

  extend(piece) {
    const entry = this.draft?.entries.at(-1);
    if (!entry?.pieces) return;
    entry.pieces.push(piece);
    entry.mask = withStroke(entry.mask, piece, this.size);
    this.changed('mask');
  }

  withStrokes(mask) {
    const pieces = this.draft.entries.flatMap((entry) => entry.pieces ?? []);
    return pieces.reduce((sum, piece) => withStroke(sum, piece, this.size), mask);
  }

  add(entry, answer) {
    const before = this.draft?.object ?? null;
    return this.history.run(
      async () => {
        if (this.draft?.object !== before) this.draft = null;
        this.draft ??= { object: before, entries: [], name: before?.name ?? this.name };
        try {
          if (!entry.mask) await answer();
        } finally {
          if (!entry.mask && !before && !this.draft.entries.length) this.draft = null;
        }
        this.draft.entries.push(entry);
        this.changed('mask');
      },
      () => {
        this.draft.entries.pop();
        if (!this.draft.entries.length && !before) this.draft = null;
        this.changed('mask');
      },
    );
  }

  // Show the next candidate of the last answer.
  nextCandidate() {
    const entry = this.draft?.entries.at(-1);
    if (!entry?.answer) return Promise.resolve();
    const old = { ...entry }, chosen = (entry.answer.index + 1) % entry.answer.scores.length;
    return this.history.run(
      async () => {
        const step = { ...old.step, candidate: chosen };
        entry.step = step;
        entry.answer = await this.backend.decode(this.index, this.steps(this.draft.entries));
        entry.mask = this.withStrokes(entry.answer.mask);
        this.changed('mask');
      },
      () => {
        Object.assign(entry, old);
        this.changed('mask');
      },
    );
  }

  // Save the object in hand, and begin with none.
  finish() {
    if (!this.hasChanges) {
      this.draft = null;
      this.changed('selection');
      return Promise.resolve();
    }
    let draft, before, object;
    return this.history.run(
      async () => {
        if (!this.hasChanges) return false;
        ({ draft } = this);
        if (!area(this.mask)) throw new Error('the mask of the object is empty: undo, or delete the object');
        before = draft.object && { ...draft.object };
        object = draft.object ?? object ?? this.colored({});
        const score = draft.entries.findLast((entry) => entry.answer)?.answer;
        const steps = [...(draft.object?.steps ?? []), ...draft.entries.flatMap(({ step }) => step ?? [])];
        await this.keep(object, {
          name: draft.name, steps, score: score ? score.scores[score.index] : object.score ?? null, mask: this.mask,
        });
        if (!this.objects.includes(object)) this.objects.push(object);
        object.isProposal = false;
        this.isEmpty = false;
        this.draft = null;
        this.changed('objects');
      },
      async () => {
        if (before && !before.isProposal) await this.keep(object, before);
        else await this.drop(object);
        if (before) object.isProposal = before.isProposal;
        if (before?.isProposal) Object.assign(object, before, { id: undefined, revision: undefined });
        else if (!before) this.objects.splice(this.objects.indexOf(object), 1);
        this.draft = draft;
        this.changed('objects');
      },
    );
  }

  async keep(object, { name, steps, score, mask }) {
    const fields = { name, steps, score, mask };
    Object.assign(object, fields, await this.backend.save(this.index, { ...object, ...fields }));
  }

  async drop(object) {
    await this.backend.remove(this.index, object);
    delete object.id;
    delete object.revision;
  }

  // Delete the object in hand, or the one that is given.
  remove(object = this.draft?.object) {
    if (!object && this.draft) {
      const { draft } = this;
      return this.history.run(
        () => this.hold(null),
        () => this.hold(draft),
      );
    }
    if (!object) return Promise.resolve();
    const place = this.objects.indexOf(object), { draft } = this;
    return this.history.run(
      async () => {
        if (!object.isProposal) await this.drop(object);
        this.objects.splice(place, 1);
        this.draft = null;
        this.changed('objects');
      },
      async () => {
        if (!object.isProposal) await this.keep(object, object);
        this.objects.splice(place, 0, object);
        this.draft = draft;
        this.changed('objects');
      },
    );
  }

  hold(draft) {
    this.draft = draft;
    this.changed('selection');
  }

  rename(name) {
    if (this.draft) this.draft.name = name;
    const object = this.draft?.object;
    if (!object || object.isProposal || this.hasChanges || object.name === name) return Promise.resolve();
    const old = object.name;
    const change = (value) => async () => {
      await this.keep(object, { ...object, name: value });
      this.changed('objects');
    };
    return this.history.run(change(name), change(old));
  }

  async propose() {
    const found = await this.backend.propose(this.index), before = this.objects.length;
    for (const { score, mask } of found)
      if (area(mask) && !this.objects.some((other) => overlap(mask, other.mask) > MAX_OVERLAP))
        this.objects.push(this.colored({ score, mask, steps: [], name: this.name, isProposal: true }));
    this.changed('objects');
    return this.objects.length - before;
  }

  get proposals() {
    return this.objects.filter((item) => item.isProposal);
  }

  async accept(given) {
    if (this.hasChanges) await this.finish();
    const objects = given.filter((item) => item.isProposal);
    return this.history.run(
      async () => {
        for (const object of objects) {
          await this.keep(object, object);
          object.isProposal = false;
        }
        this.isEmpty = false;
        this.draft = null;
        this.changed('objects');
      },
      async () => {
        for (const object of objects) {
          await this.drop(object);
          object.isProposal = true;
        }
        this.changed('objects');
      },
    );
  }

  async reject(objects) {
    if (this.hasChanges) await this.finish();
    const before = [...this.objects];
    return this.history.run(
      () => {
        this.objects = before.filter((item) => !objects.includes(item));
        this.draft = null;
        this.changed('objects');
      },
      () => {
        this.objects = before;
        this.changed('objects');
      },
    );
  }

  async setEmpty(isEmpty) {
    await this.backend.setEmpty(this.index, isEmpty);
    this.isEmpty = isEmpty;
    this.changed('objects');
  }

  // Everything is saved, or it fails.
  async leave() {
    await this.history.queue;
    if (this.hasChanges) await this.finish();
  }
}

