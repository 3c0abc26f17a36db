import assert from 'node:assert/strict';
import { test } from 'node:test';

import { countsOf, toCoco } from '../../src/sam_hf/annotate/page/static/coco.js';
import { NOTHING, fromRuns } from '../../src/sam_hf/annotate/page/masks.js';
import { toLabels, toPng } from '../../src/sam_hf/annotate/page/static/png.js';
import { toZip } from '../../src/sam_hf/annotate/page/static/zip.js';
import { references, skip, write } from './references.mjs';

test('run lengths of whole images begin with what is no object', () => {
  const size = { width: 3, height: 3 };
  assert.deepEqual(countsOf(NOTHING, size), [9]);
  assert.deepEqual(countsOf({ x: 0, y: 0, width: 1, height: 1, bits: Uint8Array.of(1) }, size), [0, 1, 8]);
  assert.deepEqual(countsOf({ x: 1, y: 1, width: 2, height: 2, bits: Uint8Array.of(1, 0, 1, 1) }, size), [4, 2, 2, 1]);
  assert.deepEqual(countsOf({ x: 1, y: 0, width: 1, height: 3, bits: Uint8Array.of(1, 1, 1) }, size), [3, 3, 3]);
});

test('later objects lie on top', () => {
  const mask = (x, width) => ({ x, y: 0, width, height: 1, bits: new Uint8Array(width).fill(1) });
  assert.deepEqual([...toLabels([mask(0, 3), mask(2, 2)], { width: 5, height: 1 })], [1, 1, 2, 2, 0]);
});

// Python opens it.
test('a zip of label maps and annotations', { skip }, async () => {
  const images = references.annotated.map(({ objects, ...image }) => ({
    ...image, objects: objects.map((object) => ({ ...object, mask: fromRuns(object.mask) })),
  }));
  const files = [{ name: 'annotations.json', content: JSON.stringify(toCoco(images)) }];
  for (const image of images) {
    const labels = toLabels(image.objects.map(({ mask }) => mask), image);
    files.push({ name: `masks/${image.name}`, content: await toPng(labels, image) });
  }
  write('annotations.zip', new Uint8Array(await toZip(files).arrayBuffer()));
});
