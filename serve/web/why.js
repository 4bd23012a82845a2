// Why an answer is what it is: the threshold, and the masks that SAM 2 offered for each object.

import { element } from "./dom.js";

const COLUMNS = [
  ["agreement", "Fit"],
  ["predicted_iou", "SAM 2"],
  ["stability", "Steady"],
  ["leakage", "Leak"],
  ["score", "Score"],
];

const MEANINGS =
  "Fit: agreement with the heatmap. SAM 2: its own opinion. Steady: how little the edge moves when the cut does. " +
  "Leak: share of the mask where the heatmap is cold. Score: all of these together.";

/** The panel of one prompt, closed at first. */
export function why(prompt) {
  const { presence, threshold } = prompt.result;
  const chosen =
    prompt.asked === null
      ? "chosen automatically: the cut through the heatmap whose mask is expected to fit best"
      : "set by hand";
  const hasOffers = prompt.marks.some(({ instance }) => instance.candidates.length);
  const panel = element(
    "details",
    { class: "why", open: prompt.isWhyOpen, toggle: () => (prompt.isWhyOpen = panel.open) },
    element("summary", {}, "Why"),
    element(
      "dl",
      {},
      ...fact("Presence", presence.toFixed(2), "the probability that the picture shows it"),
      ...fact("Threshold", threshold.toFixed(2), chosen),
    ),
    ...prompt.marks.map(aboutObject),
    hasOffers ? element("p", { class: "note" }, MEANINGS) : null,
  );
  return panel;
}

function fact(name, value, meaning) {
  return [element("dt", {}, name), element("dd", {}, element("strong", {}, value), ` ${meaning}`)];
}

function aboutObject({ instance, number, prompt }) {
  const source = instance.source === "sam2" ? "outlined by SAM 2" : "coarse mask, cut from the heatmap";
  const closer = instance.zoomed ? " It is small, so it was looked at again from nearer." : "";
  return element(
    "section",
    {},
    element("h4", {}, `#${number}: ${source}`),
    element("p", {}, `${capital(instance.why)}.${closer} Quality of the mask: ${instance.quality.toFixed(2)}.`),
    instance.candidates.length
      ? candidates(instance.candidates, `Masks that SAM 2 offered for ${prompt.text} #${number}, best first`)
      : null,
  );
}

function candidates(offers, caption) {
  return element(
    "div",
    // Wider than a phone: it can be scrolled, so it must be reachable by keyboard.
    { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, "Asked with"),
          ...COLUMNS.map(([, name]) => element("th", { scope: "col" }, name)),
        ),
      ),
      element(
        "tbody",
        {},
        ...offers.map((offer) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, `${offer.kind}, mask ${offer.index + 1}`),
            ...COLUMNS.map(([key]) => element("td", {}, offer[key].toFixed(2))),
          ),
        ),
      ),
    ),
  );
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}
