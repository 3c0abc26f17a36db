// Wires the page: one image at a time, its editor, what is seen and what is pressed.

import { Editor } from './editor.js';
import { Hover } from './hover.js';
import { fillTable, listenToKeys } from './keys.js';
import { NOTHING } from './masks.js';
import { Panel } from './panel.js';
import { Pointer } from './pointer.js';
import { View } from './view.js';
import { watchLearning } from './learning.js';

const find = (id) => document.getElementById(id);
const view = new View(find('stage'));
const state = { index: 0, editor: null, preview: NOTHING, tool: 'prompt', radius: 5, isSwapped: false, pending: 0 };
let backend;

// Runs what may take its time or fail: the page says so, and tells when all is done.
async function attempt(action) {
  document.body.dataset.pending = ++state.pending;
  try {
    return await action();
  } catch (error) {
    panel.say(error.message, true);
    if (error.status === 409) await reload();
    return undefined;
  } finally {
    document.body.dataset.pending = --state.pending;
  }
}

const panel = new Panel({
  select: (object) => attempt(() => state.editor.select(object)),
  remove: (object) => attempt(() => state.editor.remove(object)),
  accept: (object) => attempt(() => state.editor.accept([object])),
});

async function openImage(index) {
  const name = find('name').value || backend.classes[0] || 'object';
  state.editor = null;
  state.preview = NOTHING;
  state.index = index;
  find('stage').hidden = true;
  panel.drawImages(backend.images, index);
  const number = (state.opening = (state.opening ?? 0) + 1);
  document.body.dataset.ready = 'no';
  panel.say('opening');
  const begin = performance.now(), encoding = backend.encode(index);
  encoding.catch(() => {}); // awaited below, unless the image cannot be opened
  const opened = await backend.open(index);
  if (number !== state.opening) return;
  find('stage').hidden = false;
  view.show(opened.picture, opened.width, opened.height);
  state.editor = new Editor(backend, index, opened, name, changed);
  find('name').value = name;
  changed('objects');
  panel.say('encoding');
  const { isTiled } = await encoding;
  if (number !== state.opening) return;
  state.editor.isTiled = isTiled;
  document.body.dataset.ready = 'yes';
  panel.say(`${opened.width} x ${opened.height} pixels, encoded in ${Math.round(performance.now() - begin)} ms`);
}

async function go(index) {
  if (index < 0 || index >= backend.images.length || index === state.index) return;
  await state.editor?.leave();
  await openImage(index);
}

// Somebody else has changed the image: show what there is now. What is in hand becomes a new object.
async function reload() {
  const { draft, mask } = state.editor, text = find('status').textContent;
  await openImage(state.index);
  if (!draft?.entries.length) return panel.say(text, true);
  state.editor.draft = { object: null, entries: [{ pieces: [], mask }], name: draft.name };
  await state.editor.finish();
  return panel.say(`${text}; what you had in hand was saved as a new object`, true);
}

function changed(what) {
  const { editor } = state;
  state.preview = NOTHING;
  if (what === 'objects') {
    const image = backend.images[state.index];
    image.isAnnotated = editor.isEmpty || editor.objects.length > editor.proposals.length;
    panel.drawImages(backend.images, state.index);
    panel.drawObjects(editor);
    rememberName(editor.objects.at(-1)?.name);
  }
  if (what !== 'mask' || editor.draft?.object) {
    view.drawFinished(editor.objects.filter((object) => object !== editor.draft?.object));
    panel.drawSelection(editor.draft);
    if (editor.draft) find('name').value = editor.draft.name;
  }
  draw();
}

function rememberName(name) {
  if (!name || backend.classes.includes(name)) return;
  backend.classes = [name, ...backend.classes];
  panel.drawClasses(backend.classes);
}

function draw() {
  const { editor, preview } = state;
  if (!editor) return;
  if (editor.draft) view.drawCurrent(editor.mask, editor.draft.object?.color ?? 'white');
  else view.drawCurrent(preview, 'white', 0.25);
  drawMarks();
}

function drawMarks() {
  const steps = state.editor?.draft?.entries.flatMap(({ step }) => step ?? []) ?? [];
  const brush = state.tool !== 'prompt' && pointer.at ? { at: pointer.at, radius: state.radius } : null;
  view.drawMarks(steps, pointer.dragged, brush);
}

async function prompt(step) {
  const { editor } = state, begin = performance.now();
  if (state.isSwapped && step.point) step.label = 1 - step.label;
  if (document.body.dataset.ready === 'no') panel.say('encoding: the answer comes after it');
  await editor.prompt(step);
  const answer = editor.draft?.entries.at(-1)?.answer;
  if (answer) panel.say(`predicted IoU ${answer.scores[answer.index].toFixed(2)}, ${Math.round(performance.now() - begin)} ms`);
}

const hover = new Hover({
  editor: () => state.editor,
  isFree: () => document.body.dataset.ready === 'yes' && !state.pending && !view.isHidden && !state.isSwapped,
  show: (mask) => {
    if (mask === state.preview) return;
    state.preview = mask;
    draw();
  },
});

function select(x, y) {
  const { editor } = state, object = editor.at(x, y);
  if (editor.hasChanges || !object || object === editor.draft?.object) return false;
  attempt(() => editor.select(object));
  return true;
}

const pointer = new Pointer(view, {
  prompt: (step) => attempt(() => prompt(step)),
  stroke: (...piece) => attempt(() => state.editor.stroke(...piece)),
  select,
  hover: (point) => hover.to(point),
  marks: drawMarks,
  begin: () => {
    hover.stop();
    document.activeElement?.blur();
  },
  tool: () => state.tool,
  radius: () => state.radius,
  isReady: () => state.editor !== null,
});
view.onmove = drawMarks;

function useTool(tool) {
  state.tool = tool;
  for (const button of document.querySelectorAll('[data-tool]')) button.classList.toggle('on', button.dataset.tool === tool);
  drawMarks();
}

async function propose() {
  panel.say('looking for objects');
  const count = await state.editor.propose();
  panel.say(count ? `${count} found: accept or reject them` : 'nothing else was found');
}

async function review(action) {
  const { editor } = state, object = editor.draft?.object ?? editor.proposals[0];
  if (!object?.isProposal) return;
  const place = editor.proposals.indexOf(object);
  await editor[action]([object]);
  await editor.select(editor.proposals[Math.min(place, editor.proposals.length - 1)] ?? null);
}

const nextUnannotated = () => {
  const from = state.index + 1, { images } = backend;
  const place = [...images.slice(from), ...images.slice(0, from)].findIndex((image) => !image.isAnnotated);
  return place < 0 ? state.index : (from + place) % images.length;
};

const actions = Object.fromEntries(Object.entries({
  finish: () => state.editor.finish(),
  cancel: async () => {
    while (state.editor.hasChanges) await state.editor.history.undo();
    await state.editor.select(null);
  },
  undo: () => state.editor.history.undo(),
  redo: () => state.editor.history.redo(),
  candidate: () => state.editor.nextCandidate(),
  remove: () => (state.editor.draft?.object?.isProposal ? review('reject') : state.editor.remove()),
  swap: () => {
    state.isSwapped = !state.isSwapped;
    panel.say(state.isSwapped ? 'left clicks: not the object' : 'left clicks: the object');
  },
  prompt: () => useTool('prompt'),
  brush: () => useTool('brush'),
  eraser: () => useTool('eraser'),
  smaller: () => resize(1 / 1.3),
  larger: () => resize(1.3),
  propose,
  accept: () => review('accept'),
  acceptAll: () => state.editor.accept(state.editor.proposals),
  rejectAll: () => state.editor.reject(state.editor.proposals),
  name: () => {
    find('name').focus();
    find('name').select();
  },
  hide: () => view.hide(!view.isHidden),
  brighten: () => view.brighten(),
  fit: () => view.fit(),
  following: () => go(state.index + 1),
  previous: () => go(state.index - 1),
  unannotated: () => go(nextUnannotated()),
  download: async () => {
    await state.editor.leave();
    await backend.download();
  },
  help: () => find('keys').showModal(),
}).map(([name, action]) => [name, () => (state.editor || name.match(/following|previous/) ? attempt(action) : undefined)]));

function resize(factor) {
  state.radius = Math.min(200, Math.max(0.5, state.radius * factor));
  drawMarks();
}

async function start() {
  const isAlone = document.documentElement.dataset.backend === 'browser';
  const { open } = await import(isAlone ? './static/browser_backend.js' : './server_backend.js');
  backend = await open();
  document.title = `${backend.title} - sam_hf`;
  for (const id of ['previous', 'following', 'undo', 'redo', 'propose', 'download', 'help']) find(id).onclick = actions[id];
  for (const button of document.querySelectorAll('[data-tool]')) button.onclick = () => useTool(button.dataset.tool);
  for (const button of document.querySelectorAll('[data-all]')) button.onclick = actions[`${button.dataset.all}All`];
  find('image-list').onchange = (event) => {
    event.target.blur();
    attempt(() => go(event.target.selectedIndex));
  };
  find('name').onchange = (event) => {
    const name = event.target.value.trim() || 'object';
    state.editor.name = name;
    attempt(() => state.editor.rename(name));
  };
  find('name').onkeydown = (event) => {
    if (event.key === 'Enter') event.target.blur();
  };
  find('empty').onchange = (event) => attempt(() => state.editor.setEmpty(event.target.checked));
  find('keys').querySelector('button').onclick = () => find('keys').close();
  find('propose').hidden = !backend.canPropose;
  find('hint').textContent = backend.hint;
  fillTable(find('keys').querySelector('table'));
  panel.drawClasses(backend.classes);
  useTool('prompt');
  listenToKeys(actions);
  const setMoving = (value) => (event) => {
    if (event.code === 'Space' && !event.target.matches('input, select, button')) pointer.isMoving = value;
  };
  addEventListener('keydown', setMoving(true));
  addEventListener('keyup', setMoving(false));
  addEventListener('resize', () => view.fit());
  addEventListener('beforeunload', (event) => state.editor?.hasChanges && event.preventDefault());
  watchLearning(backend, { attempt, begin: () => state.editor?.leave(), reopen: () => openImage(state.index) });
  await openImage(Math.max(0, backend.images.findIndex((image) => !image.isAnnotated)));
}

attempt(start);
