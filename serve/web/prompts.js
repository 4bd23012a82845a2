// The field of prompts: a chip for each, in its colour.

import { byId, element, swatch } from "./dom.js";
import { colourOf, css } from "./palette.js";

/**
 * What a prompt knows of its answer. `result`: as the service gave it, when asked with the threshold `asked`, null for
 * an automatic one. `marks`: its objects. `shares`: its heatmap in the picture's proportions; `heat`: that in colours,
 * once it is needed. `threshold`: null while the answer is shown, a number while `preview`, which covers the share
 * `covered` of the picture, is shown instead.
 */
export const UNANSWERED = Object.freeze({
  result: null,
  asked: null,
  marks: [],
  shares: null,
  heat: null,
  threshold: null,
  preview: null,
  covered: 0,
});

/** A prompt. `place` chooses its colour, and stays its own while others come and go. */
function prompt(text, place) {
  return { text, place, colour: colourOf(place), isWhyOpen: false, ...UNANSWERED };
}

export class Prompts {
  /**
   * @param {() => void} changed called when one was added or removed.
   * @param {() => void} submit called when Enter is pressed and nothing is typed.
   */
  constructor(changed, submit) {
    this.all = [];
    this.most = Infinity;
    this.changed = changed;
    this.list = byId("chips");
    this.input = byId("prompt");
    this.hint = byId("prompt-hint");
    this.input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") {
        event.preventDefault();
        if (this.input.value.trim() && !event.ctrlKey) this.take();
        else submit();
      } else if (event.key === "Backspace" && !this.input.value && this.all.length) {
        this.remove(this.all.at(-1));
      }
    });
    this.input.addEventListener("input", () => {
      if (this.input.value.includes(",")) this.take();
    });
    byId("prompt-field").addEventListener("click", (event) => {
      if (event.target === event.currentTarget || event.target === this.list) this.input.focus();
    });
  }

  /** Make chips of what has been typed. */
  take() {
    this.input.value = this.add(...this.input.value.split(",")).join(",");
  }

  /** Those that there is no room for any more. */
  add(...texts) {
    const left = [];
    for (const raw of texts) {
      const text = raw.trim().replace(/\s+/g, " ");
      if (!text || this.all.some((one) => one.text === text)) continue;
      if (this.all.length >= this.most) {
        this.hint.textContent = `The service takes at most ${this.most} prompts at a time.`;
        left.push(text);
        continue;
      }
      const taken = new Set(this.all.map((one) => one.place));
      let place = 0;
      while (taken.has(place)) place++;
      this.all.push(prompt(text, place));
    }
    this.show();
    return left;
  }

  remove(one) {
    const index = this.all.indexOf(one);
    this.all.splice(index, 1);
    this.show();
    // The button that had the focus is gone: the next chip's takes it, or the field.
    const buttons = this.list.querySelectorAll("button");
    (document.activeElement === this.input
      ? this.input
      : (buttons[Math.min(index, buttons.length - 1)] ?? this.input)
    ).focus();
  }

  replace(texts) {
    this.all = [];
    this.add(...texts);
  }

  show() {
    this.list.replaceChildren(
      ...this.all.map((one) =>
        element(
          "li",
          { class: "chip" },
          swatch(css(one.colour)),
          element("span", { class: "chip-text" }, one.text),
          element("button", { type: "button", "aria-label": `Remove ${one.text}`, click: () => this.remove(one) }, "×"),
        ),
      ),
    );
    this.input.placeholder = this.all.length ? "another" : "red circle, star";
    if (this.all.length < this.most) this.hint.textContent = "";
    this.changed();
  }
}
