/** Pads that are edited, erased and undone together, with the two buttons for it. */
export class Group {
  /**
   * @param edit the button that unlocks the pads ("Edit …") and from then on erases them ("Erase …").
   * @param undo the button that takes the latest change back.
   * @param changed called after every change of a drawing.
   */
  constructor(edit, undo, changed) {
    this.pads = [];
    this.history = []; // the drawings before each change, [[pad, strokes], …]
    this.locked = true;
    this.changed = changed;
    this.buttons = { edit, undo };
    edit.addEventListener('click', () => (this.locked ? this.unlock() : this.erase()));
    undo.addEventListener('click', () => this.undo());
  }

  add(pad) {
    pad.locked = this.locked;
    pad.changed = (pad, before) => this.keep([[pad, before]]);
    pad.canvas.addEventListener('click', () => this.unlock());
    pad.canvas.addEventListener('keydown', (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === 'z') this.undo();
      else if (event.key === 'Enter') this.unlock();
      else return;
      event.preventDefault();
    });
    this.pads.push(pad);
  }

  /** Takes the last pad away. */
  drop() {
    const dropped = this.pads.pop();
    this.history = this.history
      .map((change) => change.filter(([pad]) => pad !== dropped))
      .filter((change) => change.length);
    dropped.canvas.remove();
    this.update();
  }

  unlock() {
    if (!this.locked) return;
    this.locked = false;
    for (const pad of this.pads) pad.locked = false;
    this.buttons.edit.textContent = this.buttons.edit.textContent.replace('Edit', 'Erase');
  }

  erase() {
    const drawn = this.pads.filter((pad) => pad.strokes.length).map((pad) => [pad, pad.strokes]);
    for (const [pad] of drawn) pad.show([]);
    if (drawn.length) this.keep(drawn);
  }

  undo() {
    for (const [pad, strokes] of this.history.pop() ?? []) pad.show(strokes);
    this.update();
    this.changed();
  }

  keep(change) {
    this.history.push(change);
    this.update();
    this.changed();
  }

  update() {
    this.buttons.undo.disabled = !this.history.length;
  }
}
