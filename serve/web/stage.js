// The canvas with the picture, and the label of what is pointed at.

import { shareAt } from "./heatmap.js";
import { drawPicture } from "./picture.js";
import { drawAnswers, markAt } from "./scene.js";
import { byId } from "./dom.js";

const TALLEST = 0.72; // of the window's height
const LARGEST_ZOOM = 12;

export class Stage {
  /** @param {() => {picture, prompts, look}} state what is to be drawn, asked for each time. */
  constructor(state) {
    this.state = state;
    this.frame = byId("stage");
    this.canvas = byId("canvas");
    this.readout = byId("readout");
    this.base = new OffscreenCanvas(1, 1); // the picture alone at the canvas's size, so that pointing is cheap
    this.pending = 0;
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", (event) => {
      // A finger that is lifted leaves too: what it touched stays marked until it touches something else.
      if (event.pointerType !== "touch") this.pointAt(null);
    });
    new ResizeObserver(() => this.fit()).observe(this.frame);
    window.addEventListener("resize", () => this.fit());
  }

  /** Another picture, or another size of the window. */
  fit() {
    const { picture } = this.state();
    const isShown = picture?.width > 0;
    byId("canvas").hidden = !isShown;
    byId("empty").hidden = isShown;
    this.frame.classList.toggle("filled", isShown);
    if (picture && !isShown) {
      byId("empty-title").textContent = `Your browser cannot show ${picture.name}`;
      byId("empty-text").textContent = "The service reads it by itself: ask, and see.";
    }
    if (!isShown) return;
    const room = Math.min(this.frame.clientWidth, picture.width * LARGEST_ZOOM);
    // Not the window's own height, which changes while a phone hides its address.
    const tallest = document.documentElement.clientHeight * (matchMedia("(max-width: 899px)").matches ? 0.4 : TALLEST);
    const width = Math.min(room, (tallest * picture.width) / picture.height);
    const pixels = Math.max(1, Math.round(width * devicePixelRatio));
    this.canvas.width = pixels;
    this.canvas.height = Math.max(1, Math.round((pixels * picture.height) / picture.width));
    this.canvas.style.width = `${width}px`;
    this.base.width = this.canvas.width;
    this.base.height = this.canvas.height;
    drawPicture(this.base.getContext("2d"), picture);
    this.draw();
  }

  /** Draw once before the next frame, however often it is asked for. */
  redraw() {
    cancelAnimationFrame(this.pending);
    this.pending = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const { picture, prompts, look } = this.state();
    const context = this.canvas.getContext("2d");
    if (!picture?.width) return;
    context.drawImage(this.base, 0, 0);
    drawAnswers(context, picture, prompts, look);
  }

  /** Let one object stand out, with its label beside it; null for none. */
  pointAt(mark) {
    const { picture, look } = this.state();
    look.pointedAt?.row.classList.remove("pointed");
    mark?.row.classList.add("pointed");
    look.pointedAt = mark;
    this.redraw();
    if (!mark) {
      this.readout.hidden = true;
      return;
    }
    const { instance, prompt, number, mask } = mark;
    this.say(
      [`${prompt.text} #${number}`, `score ${instance.score.toFixed(2)}, presence ${instance.presence.toFixed(2)}`],
      (mask.left + mask.width / 2) / picture.width,
      mask.top / picture.height,
    );
  }

  point(event) {
    const { picture, prompts, look } = this.state();
    if (look.isBare) return;
    const x = event.offsetX / this.canvas.clientWidth;
    const y = event.offsetY / this.canvas.clientHeight;
    if (look.view === "heat" && look.heatOf?.shares) {
      this.say([`heat ${shareAt(look.heatOf.shares, x, y).toFixed(2)}`], x, y);
    } else if (look.view === "masks") {
      const mark = markAt(prompts, Math.floor(x * picture.width), Math.floor(y * picture.height));
      if (mark !== look.pointedAt) this.pointAt(mark);
    }
  }

  /** Show lines of text at a place, in shares of the canvas, above it where there is room. */
  say(lines, x, y) {
    this.readout.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("span"), { textContent: line })),
    );
    this.readout.hidden = false;
    this.readout.style.left = "0"; // where it was would limit its width
    const { offsetLeft, offsetTop, clientWidth, clientHeight } = this.canvas;
    const half = this.readout.offsetWidth / 2;
    const left = Math.min(Math.max(offsetLeft + x * clientWidth, half + 4), this.frame.clientWidth - half - 4);
    const above = offsetTop + y * clientHeight - this.readout.offsetHeight - 8;
    this.readout.style.left = `${left - half}px`;
    this.readout.style.top = `${Math.max(above, offsetTop + 4)}px`;
  }
}
