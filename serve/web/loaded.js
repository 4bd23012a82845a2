// What the service has loaded, in words, so that nobody asks its models for more than they know.

import { byId, element, listed } from "./dom.js";

const MOST_NAMES = 20;

/** @param {object} models the answer of `v1/models`. */
export function describe({ models, segmenter, limits }) {
  const [classifier] = models;
  const names = classifier.class_names;
  const some = names.length > MOST_NAMES ? [...names.slice(0, MOST_NAMES), `${names.length - MOST_NAMES} more`] : names;
  byId("classes").textContent =
    `The model knows ${names.length} classes: ${listed(some)}. Whatever the picture shows, it will name one of them.`;
  byId("link-form").hidden = !limits.urls;
  if (segmenter.vocabulary) byId("notice").replaceChildren(...aboutDemo(segmenter.vocabulary));
  byId("notice").hidden = !segmenter.vocabulary;
}

function aboutDemo({ shapes, colours, sizes }) {
  return [
    element("h2", {}, "These are the demo weights"),
    element(
      "p",
      {},
      "They are small, and were trained on generated scenes. They know nothing of photographs, and no words but these:",
    ),
    element(
      "dl",
      {},
      ...row("Shapes", `${listed(shapes)}; object for any of them`),
      ...row("Colours", listed(colours)),
      ...row("Sizes", listed(sizes)),
    ),
    element("p", {}, `Such as “${colours[0]} ${shapes[0]}”, “${shapes[3] ?? shapes[0]}”, “${colours.at(-1)} object”.`),
  ];
}

function row(name, words) {
  return [element("dt", {}, name), element("dd", {}, words)];
}
