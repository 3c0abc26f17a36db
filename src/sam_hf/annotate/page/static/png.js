// Label maps as greyscale PNG of 8 bits, or of 16 for more than 255 objects: a canvas writes colours only.

import { crc32 } from './crc32.js';

// The number of the object in each pixel, from 1 on in the order of the masks, of which later ones lie on top.
export function toLabels(masks, { width, height }) {
  const labels = new Uint16Array(width * height);
  masks.forEach((mask, index) => {
    for (let k = 0; k < mask.bits.length; k++)
      if (mask.bits[k]) labels[(mask.y + Math.floor(k / mask.width)) * width + mask.x + k % mask.width] = index + 1;
  });
  return labels;
}

// Uint8Array of a file.
export async function toPng(labels, { width, height }) {
  const depth = labels.some((label) => label > 255) ? 16 : 8, line = 1 + width * depth / 8;
  const rows = new Uint8Array(height * line);  // each begins with 0: not filtered
  for (let y = 0, k = 0; y < height; y++)
    for (let x = 0, to = y * line + 1; x < width; x++, k++) {
      if (depth === 16) rows[to++] = labels[k] >> 8;
      rows[to++] = labels[k];
    }
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate')));
  const head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint8(8, depth);
  const chunks = [
    chunk('IHDR', new Uint8Array(head.buffer)), chunk('IDAT', new Uint8Array(await packed.arrayBuffer())),
    chunk('IEND', new Uint8Array()),
  ];
  return new Uint8Array(await new Blob([Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), ...chunks]).arrayBuffer());
}

function chunk(type, content) {
  const bytes = new Uint8Array(12 + content.length), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setUint32(8 + content.length, crc32(bytes.subarray(4, 8 + content.length)));
  return bytes;
}
