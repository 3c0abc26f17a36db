// The panel that asks for images, where there is no server that has them.

const STYLE = {
  panel: 'position:fixed;inset:0;z-index:9;display:grid;place-content:center;justify-items:center;gap:1em;'
    + 'font:16px system-ui,sans-serif;text-align:center;padding:2em;background:Canvas;color:CanvasText',
  title: 'font-size:1.4em;margin:0',
};

// The panel, in the page until `close`. `files` resolves to [File] when some were chosen or dropped.
export function showChooser(title) {
  const panel = add(document.body, 'section', { style: STYLE.panel });
  add(panel, 'h1', { style: STYLE.title }, title);
  add(panel, 'p', {}, 'Choose the images to annotate, or drop them here. They stay on this computer.');
  const input = add(panel, 'input', { type: 'file', multiple: '', accept: 'image/*', 'aria-label': 'Images' });
  const status = add(panel, 'p', { role: 'status' });
  const files = new Promise((resolve) => {
    const take = (list) => {
      const images = [...list].filter(({ type }) => type.startsWith('image/'));
      if (!images.length) return say('There is no image among these files.');
      input.disabled = true;
      panel.ondragover = panel.ondrop = (event) => event.preventDefault();
      resolve(images);
    };
    input.onchange = () => take(input.files);
    panel.ondragover = (event) => event.preventDefault();
    panel.ondrop = (event) => {
      event.preventDefault();
      take(event.dataTransfer.files);
    };
  });
  const say = (text) => { status.textContent = text; };
  return { files, say, close: () => panel.remove() };
}

function add(parent, name, attributes, text = '') {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}
