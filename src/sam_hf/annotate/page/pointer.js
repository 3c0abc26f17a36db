// Mouse, pen and finger on the picture: clicks, boxes, strokes, zoom, and the preview under the pointer.

// A click of a shaky hand is no box, in pixels of the screen.
const SHAKE = 4;

export class Pointer {
  // actions: { prompt(step), stroke(piece, isFirst), select(x, y) -> whether it took the click, hover(point or null), marks(),
  // begin(), tool() -> 'prompt', 'brush' or 'eraser', radius() in pixels of the image, isReady() }
  constructor(view, actions) {
    Object.assign(this, { view, actions, drag: null, at: null, isMoving: false });
    const { stage } = view;
    stage.addEventListener('contextmenu', (event) => event.preventDefault());
    stage.addEventListener('pointerdown', (event) => this.down(event));
    stage.addEventListener('pointermove', (event) => this.moved(event));
    stage.addEventListener('pointerup', (event) => this.up(event));
    stage.addEventListener('pointercancel', () => this.end());
    stage.addEventListener('pointerleave', () => this.end(this.drag));
    stage.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
  }

  get paints() {
    return this.actions.tool() !== 'prompt';
  }

  down(event) {
    if (!this.actions.isReady() || this.drag) return;
    this.view.stage.setPointerCapture(event.pointerId);
    const from = this.view.pixel(event), isPan = event.button === 1 || this.isMoving;
    const isNegative = event.button === 2 || event.altKey;
    this.drag = { from, to: from, isPan, isNegative, isNew: event.shiftKey, screen: [event.clientX, event.clientY] };
    this.drag.isOutside = !this.view.isInside(event);
    this.actions.begin();
    if (this.paints && !isPan) this.paint(from, true);
  }

  moved(event) {
    const { drag } = this;
    if (!this.actions.isReady()) return;
    this.at = this.view.pixel(event);
    if (drag?.isPan) {
      this.view.move(event.movementX, event.movementY);
    } else if (drag && this.paints) {
      this.paint(this.at);
    } else if (drag) {
      const distance = Math.hypot(event.clientX - drag.screen[0], event.clientY - drag.screen[1]);
      if (distance > SHAKE) drag.isBox = !drag.isNegative;
      drag.to = this.at;
    } else {
      this.actions.hover(this.view.isInside(event) && !this.paints ? this.at : null);
    }
    this.actions.marks();
  }

  paint(to, isFirst = false) {
    const { drag } = this, value = this.actions.tool() === 'eraser' || drag.isNegative ? 0 : 1;
    this.actions.stroke({ from: drag.to, to, radius: this.actions.radius(), value }, isFirst);
    drag.to = to;
  }

  up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag || drag.isPan || this.paints) return;
    if (drag.isBox) this.actions.prompt({ box: this.box(drag) });
    else if (!drag.isOutside && (drag.isNew || drag.isNegative || !this.actions.select(...drag.from)))
      this.actions.prompt({ point: drag.from, label: drag.isNegative ? 0 : 1 });
    this.at = this.view.pixel(event);
    this.actions.marks();
  }

  end(drag = null) {
    this.drag = drag;
    this.at = null;
    this.actions.hover(null);
    this.actions.marks();
  }

  wheel(event) {
    event.preventDefault();
    if (!this.actions.isReady()) return;
    // Firefox tells lines.
    const pixels = event.deltaMode ? 30 * event.deltaY : event.deltaY;
    this.view.zoom(Math.exp(-Math.max(-200, Math.min(200, pixels)) / 400), event);
  }

  box({ from: [x1, y1], to: [x2, y2] }) {
    return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
  }

  // What is dragged now, for the marks.
  get dragged() {
    return this.drag?.isBox ? this.box(this.drag) : null;
  }
}
