// A card for each prompt: what was found or why not, its objects, and the threshold.

import { count, element, swatch } from "./dom.js";
import { css } from "./palette.js";
import { why } from "./why.js";

const SOURCES = { sam2: "SAM 2", coarse: "coarse mask" };
const TOO_LONG = "This is longer than the model reads: only the beginning counts.";
const NO_TIME = "There was no time to ask SAM 2, which might have told. Try again.";

/**
 * A prompt's card.
 *
 * @param {object} act `point(mark)` lets an object stand out, or none; `preview(prompt, threshold)` shows what lies
 *   above a threshold, null for the answer again; `refine(prompt)` asks the service with that threshold; `save(mark)`.
 */
export function card(prompt, act) {
  const { result } = prompt;
  return element(
    "li",
    { class: "card" },
    element(
      "h3",
      {},
      swatch(css(prompt.colour)),
      element("span", { class: "prompt-text" }, prompt.text),
      verdict(result),
    ),
    result.reason ? element("p", { class: "reason" }, sentence(result.reason)) : null,
    result.tokens_read ? element("p", { class: "reason" }, TOO_LONG) : null,
    result.degraded && !result.found ? element("p", { class: "reason" }, NO_TIME) : null,
    prompt.marks.length
      ? element("ul", { class: "objects" }, ...prompt.marks.map((mark) => objectRow(mark, act)))
      : null,
    prompt.shares ? thresholdRow(prompt, act) : null,
    why(prompt),
  );
}

function verdict({ found, instances }) {
  return element(
    "span",
    { class: found ? "verdict found" : "verdict" },
    found ? `${instances.length} found` : "not found",
  );
}

function objectRow(mark, act) {
  const { instance, number, prompt } = mark;
  const [score, presence] = [instance.score.toFixed(2), instance.presence.toFixed(2)];
  const meter = element("span", { class: "meter", "aria-hidden": "true" }, element("span"));
  meter.firstChild.style.width = `${100 * instance.score}%`;
  meter.firstChild.style.background = css(prompt.colour);
  const about = `score ${score}, presence ${presence}, ${SOURCES[instance.source]}, ${count(instance.area, "pixel")}`;
  mark.row = element(
    "button",
    {
      type: "button",
      class: "object",
      "aria-label": `${prompt.text}, object ${number}: ${about}`,
      focus: () => act.point(mark),
      blur: () => act.point(null),
      pointerenter: () => act.point(mark),
      pointerleave: () => act.point(null),
    },
    element("span", { class: "number" }, `#${number}`),
    meter,
    element("span", { class: "score" }, score),
    element("span", { class: "about" }, `presence ${presence} · ${SOURCES[instance.source]}`),
  );
  return element(
    "li",
    {},
    mark.row,
    element(
      "button",
      {
        type: "button",
        class: "quiet",
        "aria-label": `Save the mask of ${prompt.text}, object ${number}`,
        click: () => act.save(mark),
      },
      "Save mask",
    ),
  );
}

function thresholdRow(prompt, act) {
  const automatic = prompt.result.threshold;
  const id = `threshold-${prompt.place}`;
  const slider = element("input", {
    id,
    type: "range",
    min: "0.01",
    max: "0.99",
    step: "0.01",
    value: String(automatic),
    input: () => act.preview(prompt, Number(slider.value)),
  });
  const shown = element("span", { class: "value", "aria-hidden": "true" }); // the slider says it
  const back = element("button", { type: "button", class: "quiet", click: () => act.preview(prompt, null) });
  const refine = element(
    "button",
    { type: "button", class: "quiet", click: () => act.refine(prompt) },
    "Outline again with it",
  );
  const note = element("p", { class: "note" });
  const mark = element("span", { class: "automatic", "aria-hidden": "true" });
  mark.style.setProperty("--at", String((automatic - 0.01) / 0.98));
  const actions = element("div", { class: "actions" }, back, refine);

  prompt.showThreshold = () => {
    const moved = prompt.threshold !== null;
    const value = moved ? prompt.threshold : automatic;
    slider.value = String(value);
    slider.setAttribute("aria-valuetext", `${value.toFixed(2)}${moved ? ", preview" : ", as answered"}`);
    shown.textContent = value.toFixed(2);
    actions.hidden = !moved;
    note.hidden = !moved;
    note.textContent = moved
      ? `Preview: the heatmap alone covers ${percent(prompt.covered)} of the picture at this threshold.`
      : "";
  };
  back.textContent = `Back to ${prompt.asked === null ? "automatic" : "the answer"} (${automatic.toFixed(2)})`;
  prompt.showThreshold();
  return element(
    "div",
    { class: "threshold" },
    element("label", { for: id }, "Threshold"),
    element("div", { class: "track" }, slider, mark),
    shown,
    note,
    actions,
  );
}

function percent(share) {
  return share > 0 && share < 0.001 ? "less than 0.1%" : `${(100 * share).toFixed(1)}%`;
}

function sentence(reason) {
  const text = reason[0].toUpperCase() + reason.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
