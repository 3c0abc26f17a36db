// The engine in Node against torch. SAM_HF_SITE is what write_site made, with the runtime.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { Engine } from '../../src/sam_hf/annotate/page/static/engine.js';
import { differing, picture, references } from './references.mjs';

const folder = process.env.SAM_HF_SITE;
const skip = folder ? false : 'pytest tests/test_annotate_page.py makes a site for this, if it finds onnxruntime-web';
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`));
let engine;

before(async () => {
  if (skip) return;
  const ort = await import(pathToFileURL(`${folder}/runtime/ort.wasm.bundle.min.mjs`));
  ort.env.wasm.numThreads = 1;
  const session = (name) => ort.InferenceSession.create(readFileSync(`${folder}/model/onnx/${name}.onnx`));
  const { proposes, thresholds } = read('site.json'), sessions = {
    encoder: await session('vision_encoder'),
    decoder: await session('prompt_encoder_mask_decoder'),
    maskPrompt: await session('mask_prompt_encoder'),
  };
  engine = new Engine({ ort, sessions, settings: read('model/preprocessor_config.json'), proposes, thresholds });
});

test('answers are those of torch', { skip }, async () => {
  for (const { image, cases } of references.answers) {
    const encoded = await engine.encode(picture(image));
    for (const { name, steps, scores, index, mask } of cases) {
      const own = await engine.decode(encoded, steps);
      assert.equal(own.scores.length, scores.length, name);
      own.scores.forEach((score, k) => assert.ok(Math.abs(score - scores[k]) < 1e-4, `${name}: ${score}`));
      assert.equal(own.index, index, name);
      const share = differing(own.mask, mask, image) / (image.width * image.height);
      assert.ok(share <= 1e-4, `${name}: ${share} of the pixels differ`);
    }
  }
});

test('a step asks the decoder once, and another candidate not at all', { skip }, async () => {
  const { image, cases } = references.answers[0], encoded = await engine.encode(picture(image));
  const { steps } = cases.find(({ name }) => name === 'three clicks');
  const { decoder } = engine.sessions, run = decoder.run;
  let count = 0;
  decoder.run = (...given) => { count++; return run.apply(decoder, given); };
  try {
    for (let length = 1; length <= steps.length; length++) await engine.decode(encoded, steps.slice(0, length));
    assert.equal(count, steps.length);
    const one = steps[0], { index: best } = await engine.decode(encoded, [one]);
    const other = await engine.decode(encoded, [{ ...one, candidate: best ? 0 : 1 }]);
    assert.equal(count, steps.length);
    assert.notEqual(other.index, best);
    await engine.decode(encoded, [{ ...one, candidate: other.index }, ...steps.slice(1, 2)]);
    assert.equal(count, steps.length + 1);
  } finally {
    decoder.run = run;
  }
});

test('what is kept of an image does not grow without end', { skip }, async () => {
  const encoded = await engine.encode(picture(references.answers[0].image));
  for (let x = 0; x < 40; x++) await engine.decode(encoded, [{ point: [x, 5], label: 1 }]);
  assert.ok(encoded.answers.size < 40);
});

test('objects that the maps show', { skip }, async () => {
  assert.equal(engine.hasMaps, references.proposals.length > 0);
  for (const { image, proposals } of references.proposals) {
    const found = await engine.propose(await engine.encode(picture(image)));
    assert.equal(found.length, proposals.length);
    found.forEach(({ score, mask }, k) => {
      assert.ok(Math.abs(score - proposals[k].score) < 1e-4, `${score} ${proposals[k].score}`);
      assert.ok(differing(mask, proposals[k].mask, image) / (image.width * image.height) <= 1e-4);
    });
  }
});
