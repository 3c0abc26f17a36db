// Between the grid of the model's masks and the pixels of the picture. A frame has sizes {width, height}: grid, of the
// masks; original, of the picture; resized, of the picture in the model input; and padded, of this input.

import { NOTHING, tight } from '../masks.js';

const MASK_PROMPT_LOGIT = 10;  // of image_processing_sam_hf.py
const CELLS = 3;  // that a pixel can depend on along an axis

// Where logits (those of one mask, row by row) are positive, once they are as large as the picture; only pixels that a
// positive cell reaches are looked at.
export function toMask(logits, frame) {
  const cells = positive(logits, frame.grid);
  if (!cells) return NOTHING;
  const columns = reached(frame.columns, cells.left, cells.right);
  const rows = reached(frame.rows, cells.top, cells.bottom);
  const width = columns.end - columns.start, height = rows.end - rows.start, bits = new Uint8Array(width * height);
  const top = rows.first[rows.start], last = Math.min(rows.first[rows.end - 1] + CELLS, frame.grid.height);
  const wide = new Float32Array((last - top + CELLS) * width);  // the last ones are for weights of zero
  for (let row = top, to = 0; row < last; row++)
    for (let x = columns.start; x < columns.end; x++, to++) {
      const from = row * frame.grid.width + columns.first[x];
      for (let k = 0; k < CELLS; k++) {
        const weight = columns.weights[CELLS * x + k];
        if (weight) wide[to] += weight * logits[from + k];
      }
    }
  for (let y = rows.start, to = 0; y < rows.end; y++) {
    const [one, two, three] = rows.weights.subarray(CELLS * y);
    for (let x = 0, from = (rows.first[y] - top) * width; x < width; x++, from++, to++)
      bits[to] = one * wide[from] + two * wide[from + width] + three * wide[from + 2 * width] > 0;
  }
  return tight({ x: columns.start, y: rows.start, width, height, bits });
}

function positive(logits, { width, height }) {
  let left = width, top = -1, right = -1, bottom = -1;
  for (let y = 0, k = 0; y < height; y++)
    for (let x = 0; x < width; x++, k++)
      if (logits[k] > 0) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = top < 0 ? y : top;
        bottom = y;
      }
  return right < 0 ? null : { left, top, right, bottom };
}

// With the weights of both axes, which each mask needs.
export const toFrame = (sizes) => ({ ...sizes, columns: weightsOf(sizes, 'width'), rows: weightsOf(sizes, 'height') });

// Along one axis: linear to the model input, cut to the picture in it, linear to the picture, as post_process_masks
// does it; squares that nothing is padded to are resized at once. Pixel k has weights of cells first[k] and the next.
function weightsOf({ grid, resized, padded, original, isSquare }, side) {
  const [through, cut] = isSquare ? [grid[side], grid[side]] : [padded[side], resized[side]];
  const size = original[side], first = new Int32Array(size), weights = new Float32Array(CELLS * size);
  for (let k = 0; k < size; k++) {
    const pixels = linear(k, cut, size);
    [[first[k]]] = linear(pixels[0][0], grid[side], through);
    for (const [pixel, share] of pixels)
      for (const [cell, part] of linear(pixel, grid[side], through))
        weights[CELLS * k + cell - first[k]] += share * part;
  }
  return { first, weights };
}

// The two values of `from` that value k of `to` lies between, in their order, and their shares.
function linear(k, from, to) {
  const place = Math.max(0, (k + 0.5) * from / to - 0.5), low = Math.min(Math.floor(place), from - 1);
  return low === from - 1 ? [[low, 1]] : [[low, 1 - (place - low)], [low + 1, place - low]];
}

// Pixels start to end (not included) that depend on cells low to high.
function reached({ first, weights }, low, high) {
  let start = 0, end = first.length;
  while (first[start] + CELLS <= low) start++;
  while (first[end - 1] > high) end--;
  return { first, weights, start, end };
}

// A mask as a prompt: logits of cells from -10 (nothing of it is in the mask) to 10 (all), as of mask_to_logits.
export function toLogits(mask, { grid, resized, padded, original }) {
  const columns = nearest(original.width, resized.width), rows = nearest(original.height, resized.height);
  const logits = new Float32Array(grid.width * grid.height);
  const edge = (k, side, round) => round(k * padded[side] / grid[side]);
  const cells = (k, side) => [edge(k, side, Math.floor), edge(k + 1, side, Math.ceil)];
  for (let row = 0; row < grid.height; row++)
    for (let column = 0; column < grid.width; column++) {
      const [top, bottom] = cells(row, 'height'), [left, right] = cells(column, 'width');
      let count = 0;
      for (let y = top; y < Math.min(bottom, resized.height); y++)
        for (let x = left; x < Math.min(right, resized.width); x++) count += valueAt(mask, columns[x], rows[y]);
      const coverage = count / ((bottom - top) * (right - left));
      logits[row * grid.width + column] = (2 * coverage - 1) * MASK_PROMPT_LOGIT;
    }
  return logits;
}

// In floats of 32 bits, as torch counts them.
function nearest(from, to) {
  const scale = Math.fround(from / to);
  return Int32Array.from({ length: to }, (_, k) => Math.min(from - 1, Math.fround((k + 0.5) * scale)));
}

function valueAt({ x, y, width, height, bits }, column, row) {
  const inside = column >= x && row >= y && column < x + width && row < y + height;
  return inside ? bits[(row - y) * width + column - x] : 0;
}
