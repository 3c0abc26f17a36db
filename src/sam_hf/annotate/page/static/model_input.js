// Pictures to what the model takes, as SamHfImageProcessor makes it: stretched, resized, normalised and padded.
// Settings are those of preprocessor_config.json; pictures are {data, width, height}, RGBA row by row.

export function toModelInput(picture, settings) {
  const frame = frameOf(picture, settings);
  const small = resize(settings.do_stretch_contrast ? stretched(picture) : picture, frame.resized);
  const { width, height } = frame.padded, plane = width * height, values = new Float32Array(3 * plane);
  const factor = settings.do_rescale === false ? 1 : settings.rescale_factor;
  for (let channel = 0; channel < 3; channel++) {
    const [mean, deviation] = settings.do_normalize === false ? [0, 1]
      : [settings.image_mean[channel], settings.image_std[channel]];
    const normal = Float32Array.from({ length: 256 }, (_, value) => (value * factor - mean) / deviation);
    for (let y = 0, from = channel; y < frame.resized.height; y++)
      for (let x = 0, to = channel * plane + y * width; x < frame.resized.width; x++, to++, from += 3)
        values[to] = normal[small[from]];
  }
  return { values, ...frame };
}

// The size of the picture in the input, from its corner on, and that of the input.
export function frameOf({ width, height }, { size, pad_size: padded }) {
  if (!size.longest_edge) return { resized: size, padded: size };  // stretched to a square, as SAM 2 takes it
  const scale = size.longest_edge / Math.max(width, height);
  const side = (length) => Math.max(1, Math.floor(length * scale + 0.5));
  return { resized: { width: side(width), height: side(height) }, padded };
}

// The 0.1 and 99.9 percentile of all channels together become 0 and 255.
export function stretched({ data, width, height }) {
  const counts = new Array(256).fill(0);
  for (let k = 0; k < data.length; k++) if (k % 4 < 3) counts[data[k]]++;
  const low = percentile(counts, 0.001), high = percentile(counts, 0.999);
  if (low === high) return { data, width, height };
  const factor = 255 / (high - low);
  const places = Uint8ClampedArray.from({ length: 256 }, (_, value) => roundHalfEven((value - low) * factor));
  return { data: data.map((value) => places[value]), width, height };
}

// Linear between the two values around the place, as NumPy does it.
function percentile(counts, share) {
  const place = share * (counts.reduce((sum, count) => sum + count) - 1), part = place - Math.floor(place);
  const at = (rank) => {
    let value = 0;
    for (let before = counts[0]; before <= rank; value++) before += counts[value + 1];
    return value;
  };
  const lower = at(Math.floor(place)), difference = at(Math.ceil(place)) - lower;
  return part < 0.5 ? lower + difference * part : lower + difference - difference * (1 - part);
}

function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// Antialiased bilinear: columns first, then rows, each rounded to 8 bits; RGBA to RGB.
export function resize({ data, width, height }, size) {
  const columns = antialiased(width, size.width), rows = antialiased(height, size.height), line = 3 * size.width;
  const narrow = new Uint8ClampedArray(height * line), small = new Uint8ClampedArray(size.height * line);
  for (let y = 0, to = 0; y < height; y++)
    for (let x = 0; x < size.width; x++) {
      let red = columns.half, green = columns.half, blue = columns.half;
      const end = columns.starts[x + 1];
      for (let k = columns.starts[x], from = 4 * (y * width + columns.first[x]); k < end; k++, from += 4) {
        const weight = columns.weights[k];
        red += weight * data[from];
        green += weight * data[from + 1];
        blue += weight * data[from + 2];
      }
      narrow[to++] = red >> columns.bits;
      narrow[to++] = green >> columns.bits;
      narrow[to++] = blue >> columns.bits;
    }
  const sums = new Int32Array(line);
  for (let y = 0; y < size.height; y++) {
    sums.fill(rows.half);
    for (let k = rows.starts[y], from = line * rows.first[y]; k < rows.starts[y + 1]; k++, from += line) {
      const weight = rows.weights[k];
      for (let x = 0; x < line; x++) sums[x] += weight * narrow[from + x];
    }
    for (let x = 0; x < line; x++) small[y * line + x] = sums[x] >> rows.bits;
  }
  return small;
}

// Weights of a triangle for each new pixel, in integers of 16 bits as torch takes them: those of the k-th are
// weights[starts[k]] to weights[starts[k + 1]] (not included), and begin with pixel first[k].
function antialiased(from, to) {
  const scale = from / to, support = Math.max(scale, 1), first = new Int32Array(to), starts = new Int32Array(to + 1);
  const exact = [];
  for (let k = 0; k < to; k++) {
    const center = (k + 0.5) * scale, end = Math.min(from, Math.floor(center + support + 0.5));
    first[k] = Math.max(0, Math.floor(center - support + 0.5));
    const tent = [];
    for (let x = first[k]; x < end; x++) tent.push(Math.max(0, 1 - Math.abs((x + 0.5 - center) / support)));
    const sum = tent.reduce((total, weight) => total + weight, 0);
    exact.push(...tent.map((weight) => weight / sum));
    starts[k + 1] = exact.length;
  }
  const largest = exact.reduce((one, other) => Math.max(one, other));
  let bits = 0;
  while (bits < 22 && Math.floor(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const weights = Int32Array.from(exact, (weight) => 0.5 + weight * 2 ** bits);
  return { first, starts, weights, bits, half: 2 ** (bits - 1) };
}
