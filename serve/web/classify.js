// The answer of the classifier, as bars.

import { element } from "./dom.js";

/** A row a class, the likeliest first. */
export function bars(predictions) {
  return predictions.map(({ label, score }, place) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
    bar.firstChild.style.width = `${100 * score}%`;
    return element(
      "li",
      { class: place === 0 ? "best" : null },
      element("span", { class: "label" }, label),
      bar,
      element("span", { class: "score" }, score >= 0.001 || score === 0 ? `${(100 * score).toFixed(1)}%` : "< 0.1%"),
    );
  });
}
