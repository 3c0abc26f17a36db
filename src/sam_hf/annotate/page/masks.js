// Masks as crops: {x, y, width, height, bits}. Bits are 0 and 1, row by row, in the box whose corner is pixel (x, y) of
// the image; outside of it there is nothing. A mask is never changed, but replaced.
//
// On the wire and in files it is {box: [x, y, width, height], runs}: lengths of 0 and 1 in turn, down the columns of the
// box, as COCO's are of an image.

export const NOTHING = { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };

export function fromRuns({ box: [x, y, width, height], runs }) {
  const bits = new Uint8Array(width * height);
  let place = 0, value = 0;
  for (const length of runs) {
    if (value) for (let k = place; k < place + length; k++) bits[(k % height) * width + Math.floor(k / height)] = 1;
    place += length;
    value = 1 - value;
  }
  return { x, y, width, height, bits };
}

export function toRuns({ x, y, width, height, bits }) {
  const runs = [];
  let value = 0, length = 0;
  for (let column = 0; column < width; column++)
    for (let k = column; k < bits.length; k += width) {
      if (bits[k] !== value) {
        runs.push(length);
        length = 0;
        value = bits[k];
      }
      length++;
    }
  runs.push(length);
  return { box: [x, y, width, height], runs };
}

export const area = (mask) => mask.bits.reduce((sum, bit) => sum + bit, 0);

export function contains({ x, y, width, height, bits }, column, row) {
  const inside = column >= x && row >= y && column < x + width && row < y + height;
  return inside && bits[(row - y) * width + column - x] === 1;
}

// The same without borders that hold nothing.
export function tight(mask) {
  const { x, y, width, height, bits } = mask;
  let left = width, top = height, right = -1, bottom = -1;
  for (let row = 0, k = 0; row < height; row++)
    for (let column = 0; column < width; column++, k++)
      if (bits[k]) {
        left = Math.min(left, column);
        right = Math.max(right, column);
        top = Math.min(top, row);
        bottom = row;
      }
  if (right < 0) return NOTHING;
  return recut(mask, x + left, y + top, right - left + 1, bottom - top + 1);
}

// What is in another box.
export function recut(mask, x, y, width, height) {
  const bits = new Uint8Array(width * height);
  const left = Math.max(x, mask.x), right = Math.min(x + width, mask.x + mask.width);
  for (let row = Math.max(y, mask.y); row < Math.min(y + height, mask.y + mask.height); row++) {
    const from = (row - mask.y) * mask.width - mask.x;
    if (left < right) bits.set(mask.bits.subarray(from + left, from + right), (row - y) * width + left - x);
  }
  return { x, y, width, height, bits };
}

// A stroke of a round brush from pixel (x1, y1) to (x2, y2), which paints (value 1) or rubs out (0). Size is that of the
// image, { width, height }.
export function withStroke(mask, { from: [x1, y1], to: [x2, y2], radius, value }, size) {
  const left = Math.max(0, Math.floor(Math.min(x1, x2) - radius)), top = Math.max(0, Math.floor(Math.min(y1, y2) - radius));
  const right = Math.min(size.width, Math.ceil(Math.max(x1, x2) + radius) + 1);
  const bottom = Math.min(size.height, Math.ceil(Math.max(y1, y2) + radius) + 1);
  if (left >= right || top >= bottom) return mask;
  const hull = mask.width ? mask : { x: left, y: top, width: 0, height: 0, bits: mask.bits };
  const x = Math.min(left, hull.x), y = Math.min(top, hull.y);
  const wide = Math.max(right, hull.x + hull.width) - x, high = Math.max(bottom, hull.y + hull.height) - y;
  const painted = recut(mask, x, y, wide, high);
  const dx = x2 - x1, dy = y2 - y1, squared = dx * dx + dy * dy;
  for (let row = top; row < bottom; row++)
    for (let column = left; column < right; column++) {
      const along = squared ? Math.min(1, Math.max(0, ((column - x1) * dx + (row - y1) * dy) / squared)) : 0;
      const distance = Math.hypot(column - x1 - along * dx, row - y1 - along * dy);
      if (distance <= radius) painted.bits[(row - y) * wide + column - x] = value;
    }
  return tight(painted);
}

// Share of the smaller mask that lies in the other.
export function overlap(one, other) {
  const cut = recut(other, one.x, one.y, one.width, one.height);
  let both = 0;
  for (let k = 0; k < cut.bits.length; k++) both += cut.bits[k] & one.bits[k];
  return both / Math.max(1, Math.min(area(one), area(other)));
}
