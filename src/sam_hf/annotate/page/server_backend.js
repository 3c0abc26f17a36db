// Asks the server that this page is from for images and masks, and gives it what to save.

import { fromRuns, toRuns } from './masks.js';

async function ask(path, method = 'GET', content = undefined) {
  const body = content === undefined && method !== 'GET' ? {} : content;
  const given = body && { headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`api/${path}`, { method, ...given });
  } catch {
    throw new Error('the server does not answer: is it still running?');
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error ?? `error ${response.status}`), { status: response.status });
  return answer;
}

const withMask = (item) => ({ ...item, mask: fromRuns(item.mask) });

class ServerBackend {
  canPropose = true;

  async open(index) {
    const answer = await ask(`images/${index}`);
    const picture = new Image();
    picture.src = `api/images/${index}/picture`;
    try {
      await picture.decode();
    } catch {
      await ask(`images/${index}/encode`, 'POST'); // tells what is wrong with it
      throw new Error('the picture cannot be shown');
    }
    return { ...answer, picture, objects: answer.objects.map(withMask) };
  }

  encode = (index) => ask(`images/${index}/encode`, 'POST');
  decode = async (index, steps) => withMask(await ask(`images/${index}/decode`, 'POST', { steps }));
  propose = async (index) => (await ask(`images/${index}/propose`, 'POST')).map(withMask);
  setEmpty = (index, isEmpty) => ask(`images/${index}/empty`, 'POST', { isEmpty });
  remove = (index, { id, revision }) => ask(`images/${index}/objects`, 'DELETE', { id, revision });

  save(index, { id, revision, name, steps, score, mask }) {
    return ask(`images/${index}/objects`, 'POST', { id, revision, name, steps, score, mask: toRuns(mask) });
  }

  async download() {
    const link = Object.assign(document.createElement('a'), { href: 'api/coco', download: '' });
    link.click();
  }

  learned = () => ask('learning');
  useLearned = () => ask('learning', 'POST');
}

export async function open() {
  return Object.assign(new ServerBackend(), await ask('folder'));
}
