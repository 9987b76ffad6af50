// The sheet: strokes by mouse, finger or keys, kept as points so that they can be undone.

import { color, paintInk } from "./maps.js";

const PEN = 0.085; // Of the sheet's side, as the points are.
const STEP = 1 / 28;
const SENT = 112; // Pixels: four for each of 28, and quick to read.
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  #canvas;
  #status;
  #changed;
  #strokes = [];
  #image = null; // Shown instead of a drawing: { bytes, side }.
  #brush = [0.5, 0.5]; // Where the keys have moved to.
  #down = false; // Whether the keys' pen is on the sheet.
  #drawing = false; // Whether the pointer's is.

  // `changed(finished)` is called after every change; `status` is told of the pen.
  constructor(canvas, status, changed) {
    this.#canvas = canvas;
    this.#status = status;
    this.#changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => this.#release());
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.paint());
    canvas.addEventListener("blur", () => this.#leave());
    this.paint();
  }

  get empty() {
    return this.#strokes.length === 0;
  }

  undo() {
    this.#lift();
    this.#image = null;
    this.#strokes.pop();
    this.#update(true);
  }

  clear() {
    this.#lift();
    this.#image = null;
    this.#strokes = [];
    this.#update(true);
  }

  showImage(bytes, side) {
    this.#lift();
    this.#strokes = [];
    this.#image = { bytes, side };
    this.paint();
  }

  // The drawing as a PNG, black on white whatever the page's colours. Not by toBlob, with
  // which Chromium waits until the page is idle: seconds, if it is busy on a busy machine.
  picture() {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SENT;
    this.#draw(canvas, "white", "black");
    const base64 = canvas.toDataURL("image/png").split(",")[1];
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: "image/png" });
  }

  paint() {
    if (this.#image) return this.#paintImage();
    const canvas = this.#canvas;
    const hex = (name) => `rgb(${color(name).join(" ")})`;
    this.#draw(canvas, hex("--paper"), hex("--ink"));
    if (document.activeElement !== canvas || !canvas.matches(":focus-visible")) return;
    const context = canvas.getContext("2d");
    const [x, y] = this.#brush.map((part) => part * canvas.width);
    context.beginPath();
    context.arc(x, y, (PEN / 2) * canvas.width, 0, 2 * Math.PI);
    context.lineWidth = 4;
    context.strokeStyle = hex(this.#down ? "--warm" : "--accent");
    context.stroke();
  }

  #draw(canvas, paper, ink) {
    const context = canvas.getContext("2d");
    const side = canvas.width;
    context.fillStyle = paper;
    context.fillRect(0, 0, side, side);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * side;
    context.strokeStyle = context.fillStyle = ink;
    for (const points of this.#strokes) {
      const [x, y] = points[0];
      context.beginPath();
      context.arc(x * side, y * side, (PEN * side) / 2, 0, 2 * Math.PI); // A dot, too.
      context.fill();
      context.beginPath();
      for (const [x, y] of points) context.lineTo(x * side, y * side);
      context.stroke();
    }
  }

  #paintImage() {
    const { bytes, side } = this.#image;
    const small = document.createElement("canvas");
    paintInk(small, bytes, side, side);
    const context = this.#canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, this.#canvas.width, this.#canvas.height);
  }

  #update(finished) {
    this.paint();
    this.#changed(finished);
  }

  #begin(point) {
    this.#image = null;
    this.#strokes.push([point]);
  }

  // --- Mouse and finger

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const inside = (part) => Math.min(Math.max(part, 0), 1);
    return [inside((event.clientX - box.x) / box.width), inside((event.clientY - box.y) / box.height)];
  }

  #press(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#lift();
    this.#drawing = true;
    this.#begin(this.#at(event));
    this.#update(false);
  }

  #drag(event) {
    if (!this.#drawing || !event.isPrimary) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) this.#strokes.at(-1).push(this.#at(move));
    this.#update(false);
  }

  #release() {
    if (!this.#drawing) return;
    this.#drawing = false;
    this.#update(true);
  }

  // --- Keys

  #key(event) {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key in MOVES) this.#move(MOVES[event.key]);
    else if (event.key === " " || event.key === "Enter") this.#toggle();
    else if (event.key === "Backspace") this.undo();
    else if (event.key === "Delete") this.clear();
    else return;
    event.preventDefault();
  }

  #move(by) {
    this.#brush = this.#brush.map((part, k) => Math.min(Math.max(part + STEP * by[k], 0), 1));
    if (!this.#down) return this.paint();
    this.#strokes.at(-1).push(this.#brush);
    this.#update(false);
  }

  #toggle() {
    if (this.#drawing) return; // The pointer's stroke goes on.
    if (this.#down) {
      this.#lift();
    } else {
      this.#down = true;
      this.#begin(this.#brush);
      this.#status.textContent = "Pen down";
    }
    this.#update(!this.#down);
  }

  // The keys' stroke is finished, since they are elsewhere now.
  #leave() {
    if (this.#down) this.#toggle();
    else this.paint();
  }

  // Ends a stroke under way, by keys or pointer; what moves on then draws nothing.
  #lift() {
    if (this.#down) this.#status.textContent = "Pen up";
    this.#down = this.#drawing = false;
  }
}
