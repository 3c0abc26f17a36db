// Keys, and the table of them. None does anything while one types, or holds Ctrl, but for undo and redo.

export const KEYS = [
  ['Enter', 'finish', 'save the object, begin the next'],
  ['Escape', 'cancel', 'put the object back as it was'],
  ['z', 'undo', 'undo'],
  ['y', 'redo', 'redo (Shift+Z, too)'],
  ['Tab', 'candidate', 'another mask for the same clicks'],
  ['Delete', 'remove', 'delete the object, reject a proposal'],
  ['x', 'swap', 'left clicks say what is not object, and again what is'],
  ['v', 'prompt', 'click and drag boxes'],
  ['b', 'brush', 'paint pixels (right button: rub out)'],
  ['e', 'eraser', 'rub pixels out'],
  ['[', 'smaller', 'smaller brush'],
  [']', 'larger', 'larger brush'],
  ['f', 'propose', 'find the rest: objects without clicks, to accept or reject'],
  ['a', 'accept', 'accept the proposal, show the next one'],
  ['A', 'acceptAll', 'accept all proposals'],
  ['n', 'name', 'name the object'],
  ['h', 'hide', 'hide masks, and show them'],
  ['c', 'brighten', 'brighter picture, and again as it is'],
  ['0', 'fit', 'the whole picture'],
  ['ArrowRight', 'following', 'next image'],
  ['ArrowLeft', 'previous', 'previous image'],
  ['u', 'unannotated', 'next image that is not annotated'],
  ['s', 'download', 'download what was saved'],
  ['?', 'help', 'this table'],
];
const OTHERS = { Backspace: 'remove', Z: 'redo' };
const POINTER = [
  ['left click', 'this is the object; on a finished object: change it (Shift: begin a new one)'],
  ['right click, Alt+click', 'this is not'],
  ['drag', 'a box around the object'],
  ['wheel', 'zoom'],
  ['middle button or space + drag', 'move the picture'],
];

export function listenToKeys(actions) {
  const names = { ...Object.fromEntries(KEYS.map(([key, name]) => [key, name])), ...OTHERS };
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && event.target.matches('input')) return event.target.blur();
    if (event.target.matches('input:not([type=checkbox]), select, dialog *')) return undefined;
    let name = names[event.key];
    if (event.ctrlKey || event.metaKey) name = { z: 'undo', Z: 'redo', y: 'redo' }[event.key];
    if (!name) return undefined;
    event.preventDefault();
    // A button that has the focus would be pressed by Enter, too.
    if (event.target.matches('button')) event.target.blur();
    return actions[name]();
  });
}

export function fillTable(table) {
  const shown = (key) => (key === 'A' ? 'Shift+A' : key.length > 1 ? key : key.toUpperCase());
  const rows = [...POINTER, ...KEYS.map(([key, , text]) => [shown(key), text])];
  table.replaceChildren(...rows.map(([key, text]) => {
    const row = document.createElement('tr');
    row.append(...[key, text].map((content) => Object.assign(document.createElement('td'), { textContent: content })));
    return row;
  }));
}
