// What was annotated, in the IndexedDB of this page, so that a reload or a crash loses nothing, and two tabs do not
// write over each other. Objects are {id, image, revision, ...}; images {key, width, height, isEmpty}.

const ready = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Storage {
  static async open(name) {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      const objects = request.result.createObjectStore('objects', { keyPath: 'id', autoIncrement: true });
      objects.createIndex('image', 'image');
      request.result.createObjectStore('images', { keyPath: 'key' });
    };
    const storage = new Storage();
    storage.database = await ready(request);
    return storage;
  }

  // Runs `work(objects, images)` in a transaction: all of it happens, or nothing.
  async transaction(mode, work) {
    const transaction = this.database.transaction(['objects', 'images'], mode, { durability: 'strict' });
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    try {
      const result = await work(transaction.objectStore('objects'), transaction.objectStore('images'));
      await done;
      return result;
    } catch (error) {
      done.catch(() => {});  // it says no more than the error
      if (!transaction.error) transaction.abort();
      throw error;
    }
  }

  // Those of one image, oldest first.
  objectsOf(key) {
    return this.transaction('readonly', (objects) => ready(objects.index('image').getAll(key)));
  }

  allObjects() {
    return this.transaction('readonly', (objects) => ready(objects.getAll()));
  }

  allImages() {
    return this.transaction('readonly', (_, images) => ready(images.getAll()));
  }

  // An image whose size is known; what is known of it already stays.
  addImage(image) {
    return this.transaction('readwrite', async (_, images) => {
      const known = await ready(images.get(image.key));
      if (!known) await ready(images.put({ ...image, isEmpty: false }));
      return known ?? image;
    });
  }

  setEmpty(key, isEmpty) {
    return this.transaction('readwrite', async (_, images) => {
      await ready(images.put({ ...await ready(images.get(key)), isEmpty }));
    });
  }

  // A new object, if it has no id; else one in the place of the same revision.
  save(key, object) {
    return this.transaction('readwrite', async (objects, images) => {
      const { id, revision, ...rest } = object, isNew = id === undefined || id === null;
      if (!isNew) await checkRevision(objects, object);
      const saved = { ...rest, image: key, revision: isNew ? 1 : revision + 1, ...(isNew ? {} : { id }) };
      const image = await ready(images.get(key));
      if (image.isEmpty) await ready(images.put({ ...image, isEmpty: false }));
      return { id: await ready(objects.put(saved)), revision: saved.revision };
    });
  }

  remove(object) {
    return this.transaction('readwrite', async (objects) => {
      await checkRevision(objects, object);
      await ready(objects.delete(object.id));
    });
  }
}

async function checkRevision(objects, { id, revision }) {
  const stored = await ready(objects.get(id));
  if (stored?.revision === revision) return;
  const error = new Error('Another tab has changed or removed this object: open the image again.');
  throw Object.assign(error, { status: 409 });
}
