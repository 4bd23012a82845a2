// The ways a picture comes in: dropped, pasted, chosen, linked, or one of the samples.

import { byId, element } from "./dom.js";
import { fromFile, fromLink } from "./picture.js";

/**
 * @param {object} act `take(picture, prompts)` with the prompts of a sample or null; `fail(error)`; `maxBytes()`.
 */
export function sources(act) {
  const tryTo = async (load, prompts = null) => {
    try {
      act.take(await load(), prompts);
    } catch (error) {
      act.fail(error);
    }
  };
  const file = (one) => tryTo(() => fromFile(one, one.name || "The pasted picture", act.maxBytes()));
  const link = (text) => tryTo(() => fromLink(text));

  const chooser = byId("file");
  chooser.addEventListener("change", () => {
    if (chooser.files.length) file(chooser.files[0]);
    chooser.value = ""; // or choosing the same file again would be no change
  });

  byId("link-form").addEventListener("submit", (event) => {
    event.preventDefault();
    link(byId("link").value.trim());
  });

  document.addEventListener("paste", (event) => {
    const { files } = event.clipboardData;
    const text = event.clipboardData.getData("text/plain").trim();
    if (files.length) {
      event.preventDefault();
      file(files[0]);
    } else if (!event.target.closest("input") && /^https?:\/\//.test(text)) {
      link(text);
    }
  });

  let depth = 0; // dragging over a child leaves its parent: count, so that the frame does not flicker
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const { files } = event.dataTransfer;
    const text = event.dataTransfer.getData("text/uri-list");
    if (files.length) file(files[0]);
    else if (text) link(text.split("\n")[0]);
  });

  return {
    /** Show the samples as pictures to press. */
    offer(samples) {
      byId("samples").hidden = !samples.length;
      byId("sample-list").replaceChildren(
        ...samples.map(({ name, url, prompts }) =>
          element(
            "li",
            {},
            element(
              "button",
              {
                type: "button",
                click: () => tryTo(async () => fromFile(await download(url), `${name}.png`, Infinity), prompts),
              },
              element("img", { src: url, alt: `Sample picture ${name}`, width: "80", height: "60" }),
            ),
          ),
        ),
      );
    },
  };
}

async function download(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error("The sample picture could not be loaded. Try again.");
  return response.blob();
}
