// What a click at the pointer would be answered, asked for before there is one. Without an object in hand it is shown,
// as a preview. With one it is not, but a click that was foreseen finds its answer there.

import { NOTHING } from './masks.js';

// A pointer that stays so long, in milliseconds, may be about to click.
const REST = 40;

export class Hover {
  // editor() -> that of the image, or null; isFree() -> whether nothing else is asked; show(mask) as a preview.
  constructor(actions) {
    Object.assign(this, actions, { next: null, timer: 0, isAsking: false, isPreview: false });
  }

  // point: the pixel under the pointer, or null where a click would prompt nothing.
  to(point) {
    this.stop();
    const editor = this.editor(), step = point && this.isFree() ? editor?.likelyPrompt(point) : null;
    this.isPreview = Boolean(step && !editor.draft);
    if (!this.isPreview) this.show(NOTHING);
    if (step) this.timer = setTimeout(() => this.ask({ editor, draft: editor.draft, step }), editor.draft ? REST : 0);
  }

  stop() {
    clearTimeout(this.timer);
    this.next = null;
  }

  // At most one question is asked at a time; of those meanwhile the newest is next.
  async ask(question) {
    this.next = question;
    if (this.isAsking) return;
    this.isAsking = true;
    while (this.next) {
      const { editor, draft, step } = this.next;
      this.next = null;
      const isStillSo = () => editor === this.editor() && editor.draft === draft;
      // If it fails a click will tell.
      const answer = isStillSo() && await editor.ask(step).catch(() => null);
      if (answer && this.isPreview && isStillSo()) this.show(answer.mask);
    }
    this.isAsking = false;
  }
}
