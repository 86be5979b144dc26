/** A canvas to draw on with mouse, finger, pen or keyboard. */

import { curves } from './drawing.js';

const PIXELS = 320; // of the canvas along each side, however large it is shown
const LINE = 0.05; // of the side: about as wide as the network will see it
const KEY_STEP = 0.04;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  /**
   * @param label its name for those who cannot see it.
   * @param changed called with the drawing before, after every stroke.
   */
  constructor(label, changed) {
    this.canvas = document.createElement('canvas');
    this.canvas.width = this.canvas.height = PIXELS;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute('role', 'img');
    this.label = label;
    this.changed = changed;
    this.strokes = [];
    this.stroke = null; // the one being drawn
    this.pointer = null;
    this.cursor = null; // of the keyboard
    this.locked = true;
    const on = (type, handler) => this.canvas.addEventListener(type, handler.bind(this));
    on('pointerdown', this.press);
    on('pointermove', this.move);
    on('pointerup', this.release);
    on('pointercancel', this.release);
    on('keydown', this.key);
    on('blur', this.leave);
  }

  get locked() {
    return this.canvas.classList.contains('locked');
  }

  set locked(locked) {
    this.canvas.classList.toggle('locked', locked);
    this.paint();
  }

  /** Shows another drawing; strokes are never changed in place. */
  show(strokes) {
    this.strokes = strokes;
    this.stroke = null;
    this.paint();
  }

  press(event) {
    if (this.locked || this.stroke || event.button > 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.cursor = null;
    this.stroke = [this.at(event)];
    this.paint();
  }

  move(event) {
    if (event.pointerId !== this.pointer || !this.stroke) return;
    // What the browser saw between two frames makes the line smooth.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.stroke.push(this.at(each));
    this.paint();
  }

  release(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.finish();
  }

  /** Arrows move a pen, space puts it down and lifts it. */
  key(event) {
    if (this.locked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) {
      const from = this.cursor ?? [0.5, 0.5];
      this.cursor = from.map((x, d) => Math.min(Math.max(x + KEY_STEP * ARROWS[event.key][d], 0), 1));
      this.stroke?.push(this.cursor);
    } else if (event.key === ' ') {
      this.cursor ??= [0.5, 0.5];
      if (this.stroke) this.finish();
      else this.stroke = [this.cursor];
    } else {
      return;
    }
    event.preventDefault();
    this.paint();
  }

  leave() {
    this.cursor = null;
    if (this.pointer === null) this.finish();
    this.paint();
  }

  finish() {
    if (!this.stroke) return;
    const before = this.strokes;
    this.show([...before, this.stroke]);
    this.changed(this, before);
  }

  at(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 1);
    return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
  }

  paint() {
    const context = this.canvas.getContext('2d');
    context.clearRect(0, 0, PIXELS, PIXELS);
    context.strokeStyle = getComputedStyle(this.canvas).color;
    context.lineWidth = LINE * PIXELS;
    context.lineCap = context.lineJoin = 'round';
    for (const stroke of this.stroke ? [...this.strokes, this.stroke] : this.strokes) drawStroke(context, stroke);
    if (this.cursor) {
      context.lineWidth = 3;
      context.beginPath();
      context.arc(...this.cursor.map((x) => x * PIXELS), 12, 0, 7);
      context.stroke();
    }
    const count = this.strokes.length;
    const content = count ? `${count} ${count === 1 ? 'stroke' : 'strokes'}` : 'empty';
    const how = this.locked ? '' : '. Arrow keys move the pen, space puts it down and lifts it';
    this.canvas.setAttribute('aria-label', `${this.label}: ${content}${how}`);
  }
}

/** Draws one stroke into a context of PIXELS × PIXELS. */
function drawStroke(context, stroke) {
  context.beginPath();
  for (const [start, control, end] of curves(stroke)) {
    context.moveTo(...start.map((x) => x * PIXELS));
    context.quadraticCurveTo(...[...control, ...end].map((x) => x * PIXELS));
  }
  context.stroke();
}
