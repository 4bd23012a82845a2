// One request at a time: its button is busy meanwhile, and what goes wrong is told as a sentence.

import { Refusal, useKey } from "./api.js";
import { byId } from "./dom.js";

let running = null; // the AbortController of the request under way

/** Give up the request under way, as its answer is of no use any more. */
export function abandon() {
  running?.abort();
}

/**
 * Do some work that the button with this id stands for; nothing, if other work is under way.
 *
 * @param {(signal: AbortSignal) => Promise<void>} work
 */
export async function run(id, words, work) {
  if (running) return;
  const button = byId(id);
  const { textContent } = button;
  running = new AbortController();
  button.setAttribute("aria-disabled", "true"); // not `disabled`, which would lose the focus
  button.textContent = words;
  byId("working").hidden = false;
  tell(null);
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refusal)) console.error(error); // a defect, here or in the answer
    fail(error, () => button.form.requestSubmit());
  } finally {
    running = null;
    button.removeAttribute("aria-disabled");
    button.textContent = textContent;
    byId("working").hidden = true;
  }
}

/** Tell what went wrong, and where a key is wanted, ask for it; `again` is done once it was given. */
export function fail(error, again) {
  tell(error.message);
  if (error.status !== 401) return;
  const form = byId("key-form");
  form.hidden = false;
  form.onsubmit = (event) => {
    event.preventDefault();
    useKey(byId("key").value);
    form.hidden = true;
    tell(null);
    again();
  };
  byId("key").focus();
}

/** Show a sentence where errors are; null for none. */
export function tell(sentence) {
  byId("alert").hidden = !sentence;
  byId("alert").textContent = sentence ?? "";
}
