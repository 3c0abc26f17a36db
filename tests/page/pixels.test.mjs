import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Engine } from '../../src/sam_hf/annotate/page/static/engine.js';
import { findCenters } from '../../src/sam_hf/annotate/page/static/centers.js';
import { fromRuns } from '../../src/sam_hf/annotate/page/masks.js';
import { toModelInput } from '../../src/sam_hf/annotate/page/static/model_input.js';
import { toFrame, toLogits, toMask } from '../../src/sam_hf/annotate/page/static/upscaling.js';
import { differing, floats, picture, references, skip } from './references.mjs';

const largest = (own, expected) => {
  assert.equal(own.length, expected.length);
  return own.reduce((most, value, k) => Math.max(most, Math.abs(value - expected[k])), 0);
};

test('pictures become what the image processor makes of them', { skip }, () => {
  for (const { name, settings, values, resized, ...image } of references.inputs) {
    const input = toModelInput(picture(image), settings);
    assert.deepEqual(input.resized, resized, name);
    // A step of 8 bits is 0.017.
    assert.ok(largest(input.values, floats(values)) < 1e-5, name);
  }
});

test('masks become as large as the picture', { skip }, () => {
  for (const { name, logits, mask, frame } of references.upscaled)
    assert.ok(differing(toMask(floats(logits), toFrame(frame)), mask, frame.original) <= 1, name);
});

test('masks become prompts', { skip }, () => {
  for (const { name, mask, logits, frame } of references.prompts)
    assert.ok(largest(toLogits(fromRuns(mask), frame), floats(logits)) < 1e-5, name);
});

test('centres are in pixels of the picture, and in it', () => {
  const size = (width, height) => ({ width, height }), maps = new Float32Array(3 * 64);
  for (const plane of [0, 64, 128]) for (const place of [10, 50, 14]) maps[plane + place] = 0.9;
  const frame = { grid: size(8, 8), padded: size(16, 16), resized: size(12, 8), original: size(24, 16) };
  const thresholds = { foreground_thresh: 0.5, seed_thresh: 0.5 };
  const engine = new Engine({ sessions: { encoder: { outputNames: [] } }, thresholds });
  const found = engine.centers({ maps: { data: maps }, frame });
  assert.deepEqual(found.map(({ point }) => point), [[9, 5]]);
});

test('centres of objects', { skip }, () => {
  for (const { maps, size, thresholds, points, scores } of references.centers) {
    const found = findCenters(floats(maps), size, thresholds);
    assert.deepEqual(found.map(({ x, y }) => [x, y]), points);
    assert.ok(largest(found.map(({ score }) => score), scores) < 1e-9);
  }
});
