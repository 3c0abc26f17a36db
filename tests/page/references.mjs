// What Python wrote for the tests that compare with it, see tests/test_annotate_page.py.

import { readFileSync, writeFileSync } from 'node:fs';

const folder = process.env.SAM_HF_REFERENCES;

export const skip = folder ? false : 'pytest tests/test_annotate_page.py writes what this compares with';
export const references = folder ? JSON.parse(readFileSync(`${folder}/references.json`)) : {};
export const write = (name, content) => writeFileSync(`${folder}/${name}`, content);

const bytesOf = (text) => Uint8Array.from(Buffer.from(text, 'base64'));
export const floats = (text) => new Float32Array(bytesOf(text).buffer);

// RGB as RGBA.
export function picture({ rgb, width, height }) {
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  bytesOf(rgb).forEach((value, k) => { data[Math.floor(k / 3) * 4 + k % 3] = value; });
  return { data, width, height };
}

// Pixels of a mask that are not as in a whole one, a text of base64.
export function differing({ x, y, width, height, bits }, text, size) {
  const own = new Uint8Array(size.width * size.height);
  for (let row = 0; row < height; row++)
    own.set(bits.subarray(row * width, (row + 1) * width), (y + row) * size.width + x);
  return bytesOf(text).reduce((count, bit, k) => count + (bit !== own[k]), 0);
}
