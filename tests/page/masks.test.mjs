import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as masks from '../../src/sam_hf/annotate/page/masks.js';

const mask = (x, y, ...rows) => ({
  x, y, width: rows[0].length, height: rows.length, bits: Uint8Array.from(rows.join(''), Number),
});

test('runs go down the columns and begin with what is no object', () => {
  const given = mask(3, 5, '110', '010');
  assert.deepEqual(masks.toRuns(given), { box: [3, 5, 3, 2], runs: [0, 1, 1, 2, 2] });
  assert.deepEqual(masks.fromRuns(masks.toRuns(given)), given);
  assert.deepEqual(masks.toRuns(masks.NOTHING), { box: [0, 0, 0, 0], runs: [0] });
});

test('borders that hold nothing are cut off', () => {
  assert.deepEqual(masks.tight(mask(3, 5, '0000', '0110', '0010')), mask(4, 6, '11', '01'));
  assert.equal(masks.tight(mask(3, 5, '000')), masks.NOTHING);
});

test('pixels are found in the image, not in the box', () => {
  const given = mask(3, 5, '10', '11');
  assert.deepEqual([[3, 5], [4, 5], [4, 6], [5, 6], [2, 6]].map(([x, y]) => masks.contains(given, x, y)),
    [true, false, true, false, false]);
  assert.equal(masks.area(given), 3);
});

test('a stroke is every pixel within the radius of its line, in the image', () => {
  const size = { width: 30, height: 20 }, line = { from: [-3, 4], to: [12.5, 9], radius: 3.2, value: 1 };
  const painted = masks.withStroke(masks.NOTHING, line, size);
  for (let y = 0; y < 20; y++)
    for (let x = 0; x < 30; x++) {
      let least = Infinity;
      for (let t = 0; t <= 1; t += 1 / 4096) least = Math.min(least, Math.hypot(x + 3 - 15.5 * t, y - 4 - 5 * t));
      if (Math.abs(least - 3.2) > 1e-3) assert.equal(masks.contains(painted, x, y), least < 3.2, `${x}, ${y}`);
    }
  const rubbed = masks.withStroke(painted, { ...line, value: 0 }, size);
  assert.equal(rubbed, masks.NOTHING);
});

test('painting keeps what was there', () => {
  const painted = masks.withStroke(mask(2, 2, '1'), { from: [9, 2], to: [9, 2], radius: 0.5, value: 1 }, { width: 20, height: 9 });
  assert.deepEqual(painted, mask(2, 2, '10000001'));
});

test('the overlap is a share of the smaller one', () => {
  assert.equal(masks.overlap(mask(0, 0, '1111'), mask(3, 0, '11')), 0.5);
  assert.equal(masks.overlap(mask(3, 0, '11'), mask(0, 0, '1111')), 0.5);
  assert.equal(masks.overlap(mask(0, 0, '1'), mask(8, 0, '1')), 0);
});
