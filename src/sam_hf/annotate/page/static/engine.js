// What a model of the three graphs of sam_hf.onnx answers to prompts; as sam_hf/annotate/session.py.

import { findCenters } from './centers.js';
import { contains, fromRuns, overlap } from '../masks.js';
import { toModelInput } from './model_input.js';
import { toFrame, toLogits, toMask } from './upscaling.js';

const FEEDBACK_LIMIT = 32;  // of sam_hf/clicks
const NMS_THRESH = 0.7;  // of MaskGenerator
const POINTS_AT_ONCE = 16;
const ANSWERS_KEPT = 32;
const NO_BOX = [Infinity, Infinity, Infinity, Infinity];  // and the prompt is not ambiguous, see the graph

export class Engine {
  // ort: onnxruntime-web. sessions: { encoder, decoder, maskPrompt }. settings: preprocessor_config.json. proposes:
  // whether masks are proposed from the first feature. thresholds: { foreground_thresh, seed_thresh }.
  constructor(parts) {
    Object.assign(this, parts);
    this.hasMaps = this.sessions.encoder.outputNames.includes('instance_maps');
  }

  // picture: { data, width, height }, RGBA row by row.
  async encode(picture) {
    const { values, resized, padded } = toModelInput(picture, this.settings);
    const pixels = this.tensor('float32', values, [1, 3, padded.height, padded.width]);
    const { instance_maps: maps, ...features } = await this.sessions.encoder.run({ pixel_values: pixels });
    const last = Object.keys(features).sort().at(-1), [height, width] = features[last].dims.slice(-2);
    const original = { width: picture.width, height: picture.height }, grid = { width: 4 * width, height: 4 * height };
    const isSquare = !this.settings.size.longest_edge;
    return { features, last, maps, frame: toFrame({ grid, original, resized, padded, isSquare }), answers: new Map() };
  }

  // { scores, index, mask } of the steps of one object.
  async decode(encoded, steps) {
    const answer = await this.answer(encoded, steps), index = chosen(answer, steps.at(-1));
    return { scores: answer.scores, index, mask: toMask(answer.logits[index], encoded.frame) };
  }

  // { scores, logits } of all candidates, kept for the next step.
  async answer(encoded, steps) {
    const key = JSON.stringify([...steps.slice(0, -1), { ...steps.at(-1), candidate: undefined }]);
    const answer = encoded.answers.get(key) ?? await this.decodeSteps(encoded, steps);
    encoded.answers.delete(key);  // so that the first one is the oldest
    encoded.answers.set(key, answer);
    if (encoded.answers.size > ANSWERS_KEPT) encoded.answers.delete(encoded.answers.keys().next().value);
    return answer;
  }

  async decodeSteps(encoded, steps) {
    const prompts = steps.flatMap((step) => (step.mask ? step.prompts ?? [] : [step]));
    const points = prompts.filter((step) => step.point), box = prompts.findLast((step) => step.box)?.box;
    const mask = await this.maskPrompt(encoded, steps), boxes = box ? [box] : mask ? [NO_BOX] : [];
    const [{ scores, logits }] = await this.run(encoded, [points], boxes, mask);
    return boxes.length ? { scores: scores.slice(0, 1), logits: logits.slice(0, 1) } : { scores, logits };
  }

  // What the model is to correct: its answer to the step before, or what an object was that was opened again.
  async maskPrompt(encoded, steps) {
    const before = steps.at(-2);
    if (!before || before.mask) return steps[0].mask ? toLogits(fromRuns(steps[0].mask), encoded.frame) : null;
    const answer = await this.answer(encoded, steps.slice(0, -1));
    return answer.logits[chosen(answer, before)];
  }

  // Answers to objects, each with the same number of points, in pixels of the picture.
  async run({ features, last, frame }, objects, boxes, mask = null) {
    const scale = { x: frame.resized.width / frame.original.width, y: frame.resized.height / frame.original.height };
    const places = objects.flat().flatMap(({ point: [x, y] }) => [x * scale.x, y * scale.y]);
    const corners = boxes.flatMap(([x1, y1, x2, y2]) => [x1 * scale.x, y1 * scale.y, x2 * scale.x, y2 * scale.y]);
    const labels = BigInt64Array.from(objects.flat(), ({ label }) => BigInt(label));
    const [count, length] = [objects.length, objects[0].length];
    const feeds = {
      ...features,
      input_points: this.tensor('float32', Float32Array.from(places), [1, count, length, 2]),
      input_labels: this.tensor('int64', labels, [1, count, length]),
      input_boxes: this.tensor('float32', Float32Array.from(corners), [1, boxes.length, 4]),
    };
    if (mask) {
      const input_masks = this.tensor('float32', mask, [1, 1, frame.grid.height, frame.grid.width]);
      const given = { [last]: features[last], input_masks };
      feeds[last] = (await this.sessions.maskPrompt.run(given)).embedding_with_mask;
      const { data, dims } = features['image_embeddings.0'];
      if (this.proposes) feeds['image_embeddings.0'] = this.tensor('float32', new Float32Array(data.length), dims);
    }
    const { iou_scores: scores, pred_masks: { data } } = await this.sessions.decoder.run(feeds);
    const candidates = scores.dims[2], cells = frame.grid.width * frame.grid.height;
    return objects.map((_, n) => ({
      scores: Array.from(scores.data.subarray(n * candidates, (n + 1) * candidates)),
      logits: Array.from({ length: candidates }, (_, k) => n * candidates + k)
        .map((k) => data.slice(k * cells, (k + 1) * cells).map(limited)),
    }));
  }

  // A click into each object that the maps show, without masks of which a better one holds too much.
  async propose(encoded) {
    const centers = this.centers(encoded), found = [];
    for (let start = 0; start < centers.length; start += POINTS_AT_ONCE) {
      const some = centers.slice(start, start + POINTS_AT_ONCE);
      const answers = await this.run(encoded, some.map(({ point }) => [{ point, label: 1 }]), []);
      answers.forEach((answer, k) => {
        const index = chosen(answer, {}), mask = toMask(answer.logits[index], encoded.frame);
        if (mask.width) found.push({ score: answer.scores[index] * some[k].certainty, mask });
      });
    }
    // What is several objects to the maps is worth less, lest it suppress them all.
    for (const one of found) {
      const held = centers.filter(({ point: [x, y] }) => contains(one.mask, Math.round(x), Math.round(y)));
      one.score /= Math.max(1, held.length);
    }
    return withoutOverlaps(found);
  }

  // Points in pixels of the picture, and how certain the maps are of them.
  centers({ maps, frame }) {
    const { grid, padded, resized, original } = frame, plane = grid.width * grid.height;
    const [cellWidth, cellHeight] = [padded.width / grid.width, padded.height / grid.height];
    // Nothing is found beside the picture.
    const inside = maps.data.map((value, k) => {
      const x = k % grid.width, y = Math.floor(k % plane / grid.width);
      return x * cellWidth < resized.width && y * cellHeight < resized.height ? value : 0;
    });
    const place = (cell, size, scale, end) => Math.min(((cell + 0.5) * size - 0.5) / scale, end - 1);
    return findCenters(inside, grid, this.thresholds).map(({ x, y, score }) => ({
      certainty: score,
      point: [
        place(x, cellWidth, resized.width / original.width, original.width),
        place(y, cellHeight, resized.height / original.height, original.height),
      ],
    }));
  }

  tensor(type, values, dims) {
    return new this.ort.Tensor(type, values, dims);
  }
}

// As they are given back, and shown.
const limited = (logit) => Math.max(-FEEDBACK_LIMIT, Math.min(FEEDBACK_LIMIT, logit));

// Which candidate was taken: the one of the highest predicted IoU, unless the step names another.
function chosen({ scores }, { candidate }) {
  return candidate === undefined ? scores.indexOf(Math.max(...scores)) : Math.min(candidate, scores.length - 1);
}

// Best first; of two that share too much of the smaller one, the better stays.
export function withoutOverlaps(found) {
  const kept = [];
  for (const one of [...found].sort((a, b) => b.score - a.score))
    if (!kept.some((other) => overlap(one.mask, other.mask) > NMS_THRESH)) kept.push(one);
  return kept;
}
