// The ways a picture comes in: dropped, pasted, chosen, linked, or one of the samples.

import { byId, element } from "./dom.js";
import { fromFile, fromLink } from "./picture.js";
import { showWork } from "./request.js";

/**
 * @param {object} act `take(picture, prompts)` with the prompts of a sample or null; `fail(error)`; `maxBytes()`.
 */
export function sources(act) {
  let latest = 0; // what was chosen last is taken, not what is there last
  const tryTo = async (load, prompts = null) => {
    const turn = ++latest;
    showWork(1);
    try {
      const picture = await load();
      if (turn === latest) act.take(picture, prompts);
    } catch (error) {
      if (turn === latest) act.fail(error);
    } finally {
      showWork(-1);
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
    const isTyping = event.target.closest("input"); // spreadsheets bring a picture of the words along
    if (files.length && !(isTyping && text)) {
      event.preventDefault();
      file(files[0]);
    } else if (!isTyping && /^https?:\/\//.test(text)) {
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
  const response = await fetch(url).catch(() => null);
  const blob = response?.ok ? await response.blob().catch(() => null) : null;
  if (!blob) throw new Error("The sample picture could not be loaded. Try again.");
  return blob;
}
