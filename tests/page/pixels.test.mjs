import assert from 'node:assert/strict';
import { test } from 'node:test';

import { findCenters } from '../../src/sam_hf/annotate/page/centers.js';
import { fromRuns } from '../../src/sam_hf/annotate/page/masks.js';
import { toModelInput } from '../../src/sam_hf/annotate/page/model_input.js';
import { toFrame, toLogits, toMask } from '../../src/sam_hf/annotate/page/upscaling.js';
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

test('centres of objects', { skip }, () => {
  for (const { maps, size, thresholds, points, scores } of references.centers) {
    const found = findCenters(floats(maps), size, thresholds);
    assert.deepEqual(found.map(({ x, y }) => [x, y]), points);
    assert.ok(largest(found.map(({ score }) => score), scores) < 1e-9);
  }
});
