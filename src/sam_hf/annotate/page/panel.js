// The list of objects, and where one is in the folder.

import { area } from './masks.js';

const element = (name, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
};

export class Panel {
  // actions: { select(object), remove(object), accept(object) }
  constructor(actions) {
    this.actions = actions;
    this.find = (id) => document.getElementById(id);
  }

  drawObjects({ objects, draft, proposals, isEmpty, hasChanges }) {
    this.rows = new Map(objects.map((object) => [object, this.row(object)]));
    this.find('objects').replaceChildren(...this.rows.values());
    const count = objects.length - proposals.length;
    this.find('count').textContent = `${count} ${count === 1 ? 'object' : 'objects'}`;
    this.find('proposals').hidden = !proposals.length;
    this.find('proposals').querySelector('b').textContent = `${proposals.length} found`;
    this.find('empty').hidden = objects.length > 0 || hasChanges;
    this.find('empty').querySelector('input').checked = isEmpty;
    this.drawSelection(draft);
  }

  row(object) {
    const { name, score, mask, color, isProposal } = object;
    const press = (text, title, action) =>
      element('button', { textContent: text, title, onclick: (event) => (event.stopPropagation(), action(object)) });
    const about = `${area(mask)} px${typeof score === 'number' ? `, ${score.toFixed(2)}` : ''}`;
    return element(
      'li', { onclick: () => this.actions.select(object), title: isProposal ? 'proposal' : name },
      element('i', { style: `${isProposal ? 'border: 2px solid' : 'background:'} ${color}` }),
      element('span', { textContent: name }), element('small', { textContent: about }),
      ...(isProposal ? [press('✓', 'accept', this.actions.accept)] : []), press('✕', 'delete', this.actions.remove),
    );
  }

  drawSelection(draft) {
    for (const [object, row] of this.rows ?? []) row.classList.toggle('on', object === draft?.object);
    this.rows?.get(draft?.object)?.scrollIntoView({ block: 'nearest' });
  }

  drawImages(images, index) {
    const label = ({ name, isAnnotated }) => `${isAnnotated ? '✓' : '  '} ${name}`;
    const list = this.find('image-list');
    if (list.options.length !== images.length)
      list.replaceChildren(...images.map((image) => element('option', { textContent: label(image) })));
    list.options[index].textContent = label(images[index]);
    list.selectedIndex = index;
    const count = images.filter((image) => image.isAnnotated).length;
    Object.assign(this.find('progress'), { max: images.length, value: count });
    this.find('progress-text').textContent = `${count} of ${images.length} annotated`;
    this.find('previous').disabled = index === 0;
    this.find('following').disabled = index === images.length - 1;
  }

  drawClasses(classes) {
    this.find('names').replaceChildren(...classes.map((name) => element('option', { value: name })));
  }

  say(text, isError = false) {
    this.find('status').textContent = text;
    this.find('status').classList.toggle('error', isError);
  }
}
