// Files as one zip, not compressed: what is large is compressed already. Without dates, so that the same is the same.

import { crc32 } from './crc32.js';

const UTF8 = 0x800, NEW_YEAR_1980 = 0x21;

// Blob of files [{ name, content }], content a Uint8Array or text.
export function toZip(files) {
  const encoder = new TextEncoder(), parts = [], directory = [];
  let place = 0;
  for (const { name, content } of files) {
    const path = encoder.encode(name), bytes = typeof content === 'string' ? encoder.encode(content) : content;
    // Since version 2.0: flags, method, time, date, checksum, both sizes, length of the name, none more.
    const common = [
      ...[[20, 2], [UTF8, 2], [0, 2], [0, 2], [NEW_YEAR_1980, 2]],
      ...[[crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4], [path.length, 2], [0, 2]],
    ];
    const header = fields([[0x04034b50, 4], ...common]);
    directory.push(fields([[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [place, 4]]), path);
    parts.push(header, path, bytes);
    place += header.length + path.length + bytes.length;
  }
  const size = directory.reduce((sum, { length }) => sum + length, 0);
  if (files.length > 65535 || place + size > 0xffffffff)
    throw new Error('This is more than a zip file can hold, 65535 files or 4 GB: choose fewer images.');
  const counts = [[files.length, 2], [files.length, 2], [size, 4], [place, 4]];
  const end = fields([[0x06054b50, 4], [0, 2], [0, 2], ...counts, [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: 'application/zip' });
}

// Bytes of numbers [value, bytes], the lowest byte first.
const fields = (numbers) => Uint8Array.from(numbers.flatMap(
  ([value, length]) => Array.from({ length }, (_, k) => Math.floor(value / 256 ** k) & 255),
));
