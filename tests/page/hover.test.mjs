import assert from 'node:assert/strict';
import { mock, test } from 'node:test';

import { Editor } from '../../src/sam_hf/annotate/page/editor.js';
import { Hover } from '../../src/sam_hf/annotate/page/hover.js';
import { NOTHING } from '../../src/sam_hf/annotate/page/masks.js';

const SQUARE = { x: 4, y: 4, width: 2, height: 2, bits: Uint8Array.of(1, 1, 1, 1) };
const settled = () => new Promise((resolve) => { setImmediate(resolve); });

// An editor whose questions wait until they are answered, and what was asked and shown.
function scene(objects = []) {
  const asked = [], shown = [], answers = [];
  const decode = (_, steps) => new Promise((resolve, reject) => {
    asked.push(steps);
    answers.push({ give: () => resolve({ mask: SQUARE, scores: [0.5], index: 0 }), fail: () => reject(new Error('no')) });
  });
  const editor = new Editor({ decode }, 0, { width: 9, height: 9, objects, isEmpty: false }, 'object', () => {});
  const state = { editor, isFree: true };
  const hover = new Hover({
    editor: () => state.editor, isFree: () => state.isFree, show: (mask) => shown.push(mask),
  });
  return { asked, shown, answers, editor, state, hover };
}

test.beforeEach(() => mock.timers.enable({ apis: ['setTimeout'] }));
test.afterEach(() => mock.timers.reset());

test('a preview is shown, of the newest place, one question at a time', async () => {
  const { hover, asked, shown, answers } = scene();
  for (const x of [1, 2, 3]) {
    hover.to([x, 0]);
    mock.timers.tick(0);
  }
  assert.deepEqual(asked, [[{ point: [1, 0], label: 1 }]]);
  answers[0].give();
  await settled();
  assert.deepEqual(asked[1], [{ point: [3, 0], label: 1 }]);
  assert.deepEqual(shown, [SQUARE]);
  hover.to(null);
  answers[1].give();
  await settled();
  assert.deepEqual(shown, [SQUARE, NOTHING]);
});

test('with an object in hand the likely click is asked for, once the pointer rests, and nothing is shown', async () => {
  const { hover, asked, shown, answers, editor } = scene();
  const given = editor.prompt({ point: [4, 4], label: 1 });
  await settled();
  answers[0].give();
  await given;
  for (const [place, label] of [[[5, 5], 0], [[8, 8], 1]]) {
    asked.length = 0;
    hover.to([7, 7]);
    mock.timers.tick(39);
    hover.to(place);
    mock.timers.tick(39);
    assert.deepEqual(asked, []);
    mock.timers.tick(1);
    assert.deepEqual(asked, [[{ point: [4, 4], label: 1 }, { point: place, label }]]);
    answers.at(-1).give();
    await settled();
  }
  editor.isTiled = true;
  hover.to([0, 0]);
  mock.timers.tick(100);
  await editor.prompt({ point: [8, 8], label: 1 });
  assert.equal(asked.length, 1);
  assert.equal(editor.draft.entries.length, 2);
  assert.ok(shown.every((mask) => mask === NOTHING));
});

test('nothing is asked where a click takes another object, while something is awaited, or after the button went down', () => {
  const { hover, asked, state } = scene([{ id: 1, mask: SQUARE, name: 'object', steps: [] }]);
  hover.to([4, 5]);
  mock.timers.tick(100);
  state.isFree = false;
  hover.to([0, 0]);
  mock.timers.tick(100);
  state.isFree = true;
  hover.to([0, 0]);
  hover.stop();
  mock.timers.tick(100);
  assert.deepEqual(asked, []);
});

test('of another object than when it was asked nothing is shown, and a failure is left to the click', async () => {
  const { hover, asked, shown, answers, editor, state } = scene();
  hover.to([1, 1]);
  mock.timers.tick(0);
  answers[0].fail();
  await settled();
  const clicked = editor.prompt({ point: [1, 1], label: 1 });
  await settled();
  answers[1].fail();
  await assert.rejects(clicked);
  hover.to([2, 2]);
  mock.timers.tick(0);
  state.editor = scene().editor;
  answers[2].give();
  await settled();
  state.editor = editor;
  hover.to([3, 3]);
  mock.timers.tick(0);
  editor.draft = { object: null, entries: [], name: 'object' };
  answers[3].give();
  await settled();
  assert.equal(asked.length, 4);
  assert.deepEqual(shown, []);
});
