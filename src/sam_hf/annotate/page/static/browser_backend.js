// The backend without a server: images are chosen by hand, the model runs in a worker, and what is saved stays in this
// browser until it is downloaded.

import { showChooser } from './chooser.js';
import { toCoco } from './coco.js';
import { fromRuns, toRuns } from '../masks.js';
import { readPicture } from './pictures.js';
import { toLabels, toPng } from './png.js';
import { Storage } from './storage.js';
import { toZip } from './zip.js';

const HINT = 'Put the images into DATA/images and the masks of the downloaded zip into DATA/masks, then: '
  + 'accelerate launch examples/train.py --dataset DATA --model MODEL';

// Resolves when images were chosen and the model is there.
export async function open() {
  const site = await (await fetch(new URL('../site.json', import.meta.url))).json();
  const chooser = showChooser(site.title), ask = startWorker();
  try {
    const loading = ask('load', site);
    loading.catch((error) => chooser.say(`The model could not be loaded: ${error.message}`));
    const storage = await Storage.open(`sam_hf ${new URL('..', import.meta.url).pathname}`);
    navigator.storage?.persist?.();  // a browser that is short of room may else forget
    const files = sorted(await chooser.files);
    chooser.say('Loading the model …');
    const { canPropose } = await loading;
    const backend = new BrowserBackend({ files, storage, ask, canPropose, title: site.title, hint: HINT });
    await backend.list();
    chooser.close();
    return backend;
  } catch (error) {
    chooser.say(error.message);
    throw error;
  }
}

class BrowserBackend {
  constructor(parts) {
    Object.assign(this, parts);
  }

  async list() {
    const objects = await this.storage.allObjects();
    const known = await this.annotated(objects);
    const stems = new Set();
    this.images = this.files.map((file) => {
      const isTaken = stems.has(stemOf(file)), isAnnotated = known.some(({ key }) => key.startsWith(startOf(file)));
      stems.add(stemOf(file));
      const error = 'Another image has the same name before the dot, and masks are named by that: rename one.';
      return { name: file.name, isAnnotated, ...(isTaken && { error }) };
    });
    this.classes = [...new Set(objects.reverse().map(({ name }) => name).filter(Boolean))];
  }

  // Images with objects, or without any on purpose.
  async annotated(objects) {
    const named = new Set(objects.map(({ image }) => image));
    return (await this.storage.allImages()).filter(({ key, isEmpty }) => isEmpty || named.has(key));
  }

  async open(index) {
    const file = this.files[index], image = this.images[index];
    if (image.error) throw new Error(image.error);
    const picture = await readPicture(file).catch((error) => {
      image.error = error.message;
      throw error;
    });
    const { width, height } = picture;
    this.keys[index] = `${startOf(file)}${width}x${height}`;
    const { isEmpty } = await this.storage.addImage({ key: this.keys[index], width, height });
    const objects = (await this.storage.objectsOf(this.keys[index])).map(
      ({ image: _, ...object }) => ({ ...object, mask: fromRuns(object.mask) }),
    );
    return { width, height, picture, objects, isEmpty: Boolean(isEmpty) };
  }

  encode(index) {
    return this.ask('encode', index, this.files[index]);
  }

  decode(index, steps) {
    return this.ask('decode', index, this.files[index], steps);
  }

  propose(index) {
    return this.ask('propose', index, this.files[index]);
  }

  async save(index, { id, revision, name, steps, score, mask }) {
    const saved = await this.storage.save(this.keys[index], { id, revision, name, steps, score, mask: toRuns(mask) });
    this.images[index].isAnnotated = true;
    return saved;
  }

  async remove(index, object) {
    await this.storage.remove(object);
    this.images[index].isAnnotated = (await this.storage.objectsOf(this.keys[index])).length > 0;
  }

  async setEmpty(index, isEmpty) {
    await this.storage.setEmpty(this.keys[index], isEmpty);
    const objects = await this.storage.objectsOf(this.keys[index]);
    this.images[index].isAnnotated = isEmpty || objects.length > 0;
  }

  // A zip of the chosen images that are annotated.
  async download() {
    const all = await this.storage.allObjects(), known = await this.annotated(all), files = [], images = [];
    for (const [index, file] of this.files.entries()) {
      const image = known.find(({ key }) => key.startsWith(startOf(file)));
      if (!image || this.images[index].error) continue;
      const saved = all.filter((object) => object.image === image.key).map(({ image: _, ...object }) => object);
      const objects = saved.map((object) => ({ ...object, mask: fromRuns(object.mask) }));
      const labels = toLabels(objects.map(({ mask }) => mask), image);
      files.push({ name: `masks/${stemOf(file)}.png`, content: await toPng(labels, image) });
      files.push({ name: `masks/${stemOf(file)}.json`, content: JSON.stringify(fileOf(saved, image)) });
      images.push({ ...image, name: file.name, objects });
    }
    files.push({ name: 'annotations.json', content: JSON.stringify(toCoco(images)) });
    const link = document.createElement('a');
    link.href = URL.createObjectURL(toZip(files));
    link.download = 'annotations.zip';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  keys = [];
}

// A function (method, ...parameters) that resolves to what the worker answers.
function startWorker() {
  const worker = new Worker(new URL('engine_worker.js', import.meta.url), { type: 'module' }), waiting = new Map();
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  };
  let id = 0;
  return (method, ...parameters) => new Promise((resolve, reject) => {
    waiting.set(++id, { resolve, reject });
    worker.postMessage({ id, method, parameters });
  });
}

// By name, without files that were chosen twice.
function sorted(files) {
  const unique = new Map(files.map((file) => [startOf(file), file]));
  return [...unique.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

// In the form of sam_hf/annotate/folder.py.
const fileOf = (objects, { width, height }) => ({
  size: [height, width], next_id: Math.max(0, ...objects.map(({ id }) => id)) + 1, objects,
});
const stemOf = ({ name }) => name.replace(/\.[^.]*$/, '');
// How the key of an image begins; its size comes behind it, which is not known before it is read.
const startOf = ({ name, size }) => `${name}|${size}|`;
