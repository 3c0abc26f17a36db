// The model, beside the page, so that encoding an image does not freeze it. Messages are {id, method, parameters};
// answers are {id, result} or {id, error}. One at a time, as sessions must not run twice at once.

import { Engine } from './engine.js';
import { readPicture, toPixels } from './pictures.js';

const IMAGES_KEPT = 4;
const CLICK = { point: [0, 0], label: 1 };
const encodings = new Map();
let engine, last = Promise.resolve();

const methods = {
  // site: site.json. Returns what the page must know of the model.
  async load(site) {
    const ort = await import(new URL(`${site.runtime}ort.wasm.bundle.min.mjs`, import.meta.url));
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    const session = (name) => ort.InferenceSession.create(new URL(`../model/onnx/${name}.onnx`, import.meta.url).href);
    const sessions = {};
    sessions.encoder = await session('vision_encoder');
    sessions.decoder = await session('prompt_encoder_mask_decoder');
    sessions.maskPrompt = await session('mask_prompt_encoder');
    const settings = await (await fetch(new URL('../model/preprocessor_config.json', import.meta.url))).json();
    engine = new Engine({ ort, sessions, settings, proposes: site.proposes, thresholds: site.thresholds });
    return { canPropose: engine.hasMaps };
  },
  encode: async (index, file) => {
    await encoding(index, file);
    return { isTiled: false };
  },
  decode: async (index, file, steps) => engine.decode(await encoding(index, file), steps),
  propose: async (index, file) => engine.propose(await encoding(index, file)),
};

// Of the images that were last used.
async function encoding(index, file) {
  const encoded = encodings.get(index) ?? await engine.encode(toPixels(await readPicture(file)));
  // The first answers take long: better now than to a click.
  if (!encodings.size) await engine.decode(encoded, [CLICK, CLICK]);
  encodings.delete(index);
  encodings.set(index, encoded);
  if (encodings.size > IMAGES_KEPT) encodings.delete(encodings.keys().next().value);
  return encoded;
}

self.onmessage = ({ data: { id, method, parameters } }) => {
  last = last.then(() => methods[method](...parameters)).then(
    (result) => self.postMessage({ id, result }),
    (error) => self.postMessage({ id, error: error.message }),
  );
};
