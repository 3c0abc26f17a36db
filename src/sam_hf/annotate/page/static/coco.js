// Objects as the JSON of COCO, with masks as run lengths of whole images, down their columns.

import { area } from '../masks.js';

// images: [{ name, width, height, objects: [{ name, score, mask }] }], masks as of masks.js.
export function toCoco(images) {
  const names = [...new Set(images.flatMap(({ objects }) => objects.map(nameOf)))].sort();
  const annotations = [];
  images.forEach((image, index) => {
    for (const object of image.objects)
      annotations.push({
        id: annotations.length + 1,
        image_id: index + 1,
        category_id: names.indexOf(nameOf(object)) + 1,
        segmentation: { size: [image.height, image.width], counts: countsOf(object.mask, image) },
        area: area(object.mask),
        bbox: [object.mask.x, object.mask.y, object.mask.width, object.mask.height],
        iscrowd: 0,
        score: object.score,
      });
  });
  return {
    images: images.map(({ name, width, height }, index) => ({ id: index + 1, file_name: name, width, height })),
    categories: names.map((name, index) => ({ id: index + 1, name })),
    annotations,
  };
}

const nameOf = ({ name }) => name || 'object';

// Lengths of 0 and 1 in turn.
export function countsOf({ x, y, width, height, bits }, size) {
  const counts = [];
  let value = 0, length = x * size.height;
  const add = (bit, many) => {
    if (bit !== value && many) {
      counts.push(length);
      length = 0;
      value = bit;
    }
    length += many;
  };
  for (let column = 0; column < width; column++) {
    add(0, y);
    for (let row = 0; row < height; row++) add(bits[row * width + column], 1);
    add(0, size.height - y - height);
  }
  add(0, (size.width - x - width) * size.height);
  return [...counts, length];
}
