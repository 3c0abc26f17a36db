// The picture with its masks, zoomed and moved, and marks of prompts over it in pixels of the screen.

const EMPTY_BOX = { x: 0, y: 0, width: 0, height: 0 };
const intersect = (a, b) =>
  a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

export class View {
  constructor(stage) {
    this.stage = stage;
    const find = (id) => stage.querySelector(`#${id}`);
    this.paper = find('paper');
    [this.picture, this.finished, this.current, this.marks] = ['picture', 'finished', 'current', 'marks'].map(find);
    this.scale = 1;
    this.x = this.y = 0;
    this.drawn = EMPTY_BOX;
    this.isHidden = false;
  }

  show(picture, width, height) {
    this.size = { width, height };
    for (const canvas of [this.picture, this.finished, this.current]) Object.assign(canvas, { width, height });
    const context = this.picture.getContext('2d');
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, 0, 0);
    this.drawn = EMPTY_BOX;
    this.fit();
  }

  // The whole picture in the window.
  fit() {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.stage, { width, height } = this.size;
    this.scale = Math.min(clientWidth / width, clientHeight / height);
    this.x = (clientWidth - width * this.scale) / 2;
    this.y = (clientHeight - height * this.scale) / 2;
    this.place();
  }

  place() {
    this.paper.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.paper.classList.toggle('large', this.scale > 2);
    this.onmove?.();
  }

  // Zoom, while the pixel under the pointer stays there.
  zoom(factor, { clientX, clientY }) {
    const frame = this.stage.getBoundingClientRect(), least = 20 / Math.max(this.size.width, this.size.height);
    const scale = Math.min(40, Math.max(least, this.scale * factor));
    const x = clientX - frame.left, y = clientY - frame.top;
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.place();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.place();
  }

  // Index of the pixel under the pointer, with a fraction; the middle of the first pixel is 0. Of what is outside of
  // the picture the nearest one.
  pixel({ clientX, clientY }) {
    const frame = this.picture.getBoundingClientRect(), { width, height } = this.size;
    const clamp = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      clamp(((clientX - frame.left) / frame.width) * width - 0.5, width - 1),
      clamp(((clientY - frame.top) / frame.height) * height - 0.5, height - 1),
    ];
  }

  isInside({ clientX, clientY }) {
    const { left, top, right, bottom } = this.picture.getBoundingClientRect();
    return clientX >= left && clientX < right && clientY >= top && clientY < bottom;
  }

  // Objects that are not in hand, in a part of the picture or the whole.
  drawFinished(objects, part = { x: 0, y: 0, ...this.size }) {
    const context = this.finished.getContext('2d');
    context.save();
    context.beginPath();
    context.rect(part.x, part.y, part.width, part.height);
    context.clip();
    context.clearRect(part.x, part.y, part.width, part.height);
    for (const { mask, color, isProposal } of objects)
      if (mask.width && intersect(mask, part)) context.drawImage(tinted(mask, color, isProposal ? 0 : 0.4), mask.x, mask.y);
    context.restore();
  }

  // The mask in hand, or a preview. Only its place is touched.
  drawCurrent(mask, color, opacity = 0.5) {
    const context = this.current.getContext('2d'), { x, y, width, height } = this.drawn;
    context.clearRect(x, y, width, height);
    this.drawn = mask;
    if (mask.width) context.drawImage(tinted(mask, color, opacity), mask.x, mask.y);
  }

  hide(isHidden) {
    this.isHidden = isHidden;
    for (const canvas of [this.finished, this.current, this.marks]) canvas.hidden = isHidden;
  }

  // One, two, four, eight times the light; to look at only.
  brighten() {
    this.light = this.light === 8 ? 1 : 2 * (this.light ?? 1);
    this.picture.style.filter = `brightness(${this.light})`;
  }

  // Prompts of the object in hand, the box that is dragged, and the brush.
  drawMarks(steps, box, brush) {
    const { clientWidth, clientHeight } = this.stage, ratio = window.devicePixelRatio;
    const [width, height] = [clientWidth, clientHeight].map((side) => Math.round(side * ratio));
    if (this.marks.width !== width || this.marks.height !== height) Object.assign(this.marks, { width, height });
    const context = this.marks.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, clientWidth, clientHeight);
    const place = ([x, y]) => [this.x + (x + 0.5) * this.scale, this.y + (y + 0.5) * this.scale];
    context.lineWidth = 2;
    context.strokeStyle = 'white';
    for (const corners of [...steps.flatMap((step) => (step.box ? [step.box] : [])), ...(box ? [box] : [])]) {
      const [x1, y1] = place(corners), [x2, y2] = place(corners.slice(2));
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
    for (const { point, label } of steps.filter((step) => step.point)) {
      context.beginPath();
      context.arc(...place(point), 5, 0, 7);
      context.fillStyle = label ? '#18c437' : '#e32222';
      context.fill();
      context.stroke();
    }
    if (brush) {
      context.beginPath();
      context.arc(...place(brush.at), Math.max(1, brush.radius * this.scale), 0, 7);
      context.stroke();
    }
  }
}

// A mask as a picture: its border is solid, and within it has an opacity.
function tinted({ width, height, bits }, color, opacity) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext('2d');
  context.fillStyle = color;
  context.fillRect(0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height), inner = Math.round(255 * opacity);
  for (let y = 0, k = 0; y < height; y++)
    for (let x = 0; x < width; x++, k++) {
      const isInner = x && y && x + 1 < width && y + 1 < height && bits[k - 1] && bits[k + 1] && bits[k - width] && bits[k + width];
      pixels.data[4 * k + 3] = bits[k] ? (isInner ? inner : 255) : 0;
    }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
