// One request at a time: its button is busy meanwhile, and what goes wrong is told as a sentence.

import { Refusal, useKey } from "./api.js";
import { byId } from "./dom.js";

// What can be sent in a header: visible ASCII.
const KEY = /^[\x21-\x7e]+$/;

const WAIT = "Another answer is on its way. Wait for it, then try again.";

let running = null; // the AbortController of the request under way
let atWork = 0;

/** Give up the request under way, as its answer is of no use any more. */
export function abandon() {
  running?.abort();
}

/**
 * Do some work that the button with this id stands for; nothing, if other work is under way.
 *
 * @param {(signal: AbortSignal) => Promise<void>} work
 * @param {() => void} again what is done once a key was given that the work lacked.
 */
export async function run(id, words, work, again = () => byId(id).form.requestSubmit()) {
  const button = byId(id);
  if (running) {
    if (!button.hasAttribute("aria-disabled")) tell(WAIT);
    return;
  }
  const { textContent } = button;
  running = new AbortController();
  button.setAttribute("aria-disabled", "true"); // not `disabled`, which would lose the focus
  button.textContent = words;
  showWork(1);
  tell(null);
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refusal)) console.error(error); // a defect, here or in the answer
    fail(error, again);
  } finally {
    running = null;
    if (byId("alert").textContent === WAIT) tell(null);
    button.removeAttribute("aria-disabled");
    button.textContent = textContent;
    showWork(-1);
  }
}

/** Show that something is waited for, from a call with 1 to one with -1. */
export function showWork(change) {
  atWork += change;
  byId("working").hidden = !atWork;
}

/** Tell what went wrong, and where a key is wanted, ask for it; `again` is done once it was given. */
export function fail(error, again) {
  tell(error.message);
  if (error.status !== 401) return;
  const form = byId("key-form");
  form.hidden = false;
  form.onsubmit = (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (!KEY.test(key)) return tell("An API key has no spaces, and only letters and signs of ASCII.");
    useKey(key);
    form.hidden = true;
    tell(null);
    byId(document.body.classList.contains("classifying") ? "classify" : "prompt").focus(); // this form is gone
    again();
  };
  byId("key").focus();
}

/** Show a sentence where errors are; null for none. */
export function tell(sentence) {
  byId("alert").hidden = !sentence;
  byId("alert").textContent = sentence ?? "";
  if (sentence) byId("alert").scrollIntoView({ block: "nearest" });
}
