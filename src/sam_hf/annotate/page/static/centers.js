// A point in each object of the maps of an instance decoder, as find_centers of sam_hf/instances.py.

const RISE = 0.2;  // of a seed above its threshold, as a share of what lies above

// Maps: foreground, distance and center, Float32Array of 3 x height x width. Returns [{x, y, score}].
export function findCenters(maps, { width, height }, { foreground_thresh: least, seed_thresh: limit }) {
  const plane = width * height, distance = maps.subarray(plane, 2 * plane), center = maps.subarray(2 * plane);
  const nearness = (k) => Math.min(distance[k], center[k]), isSeen = new Uint8Array(plane), found = [];
  const [leastFloat, limitFloat] = [Math.fround(least), Math.fround(limit)];
  for (let k = 0; k < plane; k++) isSeen[k] = !(maps[k] > leastFloat && nearness(k) > limitFloat);
  for (let first = 0; first < plane; first++) {
    if (isSeen[first]) continue;
    const region = regionOf(first, isSeen, width, height);
    let best = first, summit = 0, sum = 0;
    for (const k of region) {
      summit = Math.max(summit, nearness(k));
      sum += maps[k];
      if ((distance[k] - distance[best] || center[k] - center[best] || best - k) > 0) best = k;
    }
    const point = { x: best % width, y: Math.floor(best / width), score: sum / region.length };
    if (summit > limit + RISE * (1 - limit)) found.push(point);
  }
  return found;
}

// Pixels that touch by sides and corners, and are then seen.
function regionOf(first, isSeen, width, height) {
  const region = [first];
  isSeen[first] = 1;
  for (const k of region) {  // which grows
    const x = k % width, y = Math.floor(k / width);
    for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++)
      for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) {
        const other = row * width + column;
        if (isSeen[other]) continue;
        isSeen[other] = 1;
        region.push(other);
      }
  }
  return region;
}
