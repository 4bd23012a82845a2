// The page: what is in hand, and what happens when something is pressed.

import * as api from "./api.js";
import { card } from "./answers.js";
import { bars } from "./classify.js";
import { byId, count, element } from "./dom.js";
import { answerFile, labelFile, maskFile, overlayFile, save } from "./downloads.js";
import { drawAbove } from "./heatmap.js";
import { describe } from "./loaded.js";
import { Prompts, UNANSWERED } from "./prompts.js";
import { read } from "./reading.js";
import { abandon, fail, run, tell } from "./request.js";
import { sources } from "./sources.js";
import { Stage } from "./stage.js";
import { tabs } from "./tabs.js";

const MOST_CLASSES = 10;

const page = { picture: null, answer: null, limits: { max_upload_bytes: Infinity }, isDescribed: false };
const look = { view: "masks", heatOf: null, pointedAt: null };
const prompts = new Prompts(showAnswers, segment);
const stage = new Stage(() => ({ picture: page.picture, prompts: prompts.all, look }));

function takePicture(picture, itsPrompts) {
  abandon();
  page.picture?.source?.close?.(); // or its pixels stay until the browser happens to look
  page.picture = picture;
  page.answer = null;
  for (const prompt of prompts.all) Object.assign(prompt, UNANSWERED);
  if (itsPrompts) prompts.replace(itsPrompts);
  byId("bars").replaceChildren();
  byId("classify-status").textContent = "";
  byId("status").textContent = "";
  tell(null);
  stage.pointAt(null);
  stage.fit();
  showAnswers();
}

async function segment() {
  prompts.take();
  if (!page.picture) return tell("Choose a picture first.");
  if (!prompts.all.length) {
    tell("Type at least one prompt first, such as “red circle”.");
    return prompts.input.focus();
  }
  const asked = [...prompts.all];
  await run("segment", "Segmenting…", async (signal) => {
    page.answer = await ask(asked, {}, signal);
    const found = asked.filter((prompt) => prompt.result.found).length;
    const objects = asked.flatMap((prompt) => prompt.marks).length;
    const time = Math.round(page.answer.timings_ms.total).toLocaleString("en");
    byId("status").textContent =
      `${count(objects, "object")} for ${found} of ${count(asked.length, "prompt")}, in ${time} ms.`;
  });
}

/** Ask again for one prompt alone, with the threshold of its slider. */
async function refine(prompt) {
  const { threshold } = prompt;
  const outline = async (signal) => {
    await ask([prompt], { threshold }, signal);
    byId("status").textContent =
      `${count(prompt.marks.length, "object")} for ${prompt.text} at a threshold of ${threshold.toFixed(2)}.`;
    // The button that was pressed is gone; but who types by now, goes on typing.
    if (document.activeElement === document.body) byId(`threshold-${prompt.place}`)?.focus();
  };
  await run("segment", "Segmenting…", outline, () => refine(prompt));
}

/** Ask the service, and show its answer once all of it can be drawn. */
async function ask(asked, options, signal) {
  const { picture } = page;
  const texts = asked.map((prompt) => prompt.text);
  const answer = await api.segment(picture, texts, options, signal);
  // Of a link the service may have read another version than the browser shows: its answer is in its own pixels.
  const { width, height } = answer.image;
  const threshold = options.threshold ?? null;
  const answers = await Promise.all(
    asked.map((prompt, index) => read(answer.results[index], prompt, threshold, { width, height })),
  );
  signal.throwIfAborted();
  describeIfNeeded();
  Object.assign(picture, { width, height });
  asked.forEach((prompt, index) => Object.assign(prompt, answers[index]));
  stage.fit();
  showAnswers();
  return answer;
}

async function classify() {
  if (!page.picture) return tell("Choose a picture first.");
  await run("classify", "Classifying…", async (signal) => {
    const { predictions, model } = await api.classify(page.picture, MOST_CLASSES, signal);
    describeIfNeeded();
    byId("bars").replaceChildren(...bars(predictions));
    byId("classify-status").textContent = `Most likely: ${predictions[0].label}, says ${model.name}.`;
  });
}

/** Cards, views and files for the prompts that have an answer. */
function showAnswers() {
  const answered = prompts.all.filter((prompt) => prompt.result);
  const marks = answered.flatMap((prompt) => prompt.marks);
  marks.forEach((mark, index) => (mark.number = index + 1));
  const act = { point: (mark) => stage.pointAt(mark), preview, refine, save: saveMask };
  byId("answers").replaceChildren(...answered.map((prompt) => card(prompt, act)));
  byId("downloads").hidden = !answered.length;
  byId("views").hidden = !answered.some((prompt) => prompt.shares);
  if (look.pointedAt && !marks.includes(look.pointedAt)) stage.pointAt(null);
  if (!answered.includes(look.heatOf)) look.heatOf = answered[0] ?? null;
  byId("heat-of").replaceChildren(
    ...answered.map((prompt) => element("option", { selected: prompt === look.heatOf }, prompt.text)),
  );
  const name = page.picture ? `The picture ${page.picture.name}` : "No picture yet";
  byId("canvas").setAttribute(
    "aria-label",
    answered.length ? `${name}, with ${count(marks.length, "object")} marked` : name,
  );
  stage.redraw();
}

/** Show what the heatmap alone gives at a threshold; null for the answer again. */
function preview(prompt, threshold) {
  const drawn = threshold === null ? { preview: null } : drawAbove(prompt.shares, threshold, prompt.colour);
  Object.assign(prompt, { threshold, heat: null, ...drawn });
  stage.pointAt(null);
  prompt.showThreshold();
  if (threshold === null) byId(`threshold-${prompt.place}`).focus(); // the button that was pressed is gone
  stage.redraw();
}

function saveMask(mark) {
  saveAs(`mask-${mark.number}.png`, () => maskFile(mark, page.picture));
}

async function saveAs(name, make) {
  const ofPicture = page.picture.name.replace(/\.[^.]*$/, ""); // now: another may be there when it is made
  try {
    save(await make(), `${ofPicture}-${name}`);
  } catch (error) {
    tell(error.message);
  }
}

function listen() {
  const on = (id, kind, act) =>
    byId(id).addEventListener(kind, (event) => {
      event.preventDefault();
      act(event);
    });
  on("segment-form", "submit", segment);
  on("classify-form", "submit", classify);
  on("views", "change", ({ target }) => {
    if (target.name === "view") look.view = target.value;
    else look.heatOf = prompts.all.filter((prompt) => prompt.result)[target.selectedIndex];
    byId("heat-choice").hidden = look.view !== "heat";
    stage.pointAt(null);
  });
  on("save-overlay", "click", () => saveAs("overlay.png", () => overlayFile(page.picture, prompts.all, look)));
  on("save-labels", "click", () =>
    saveAs("labels.png", () =>
      labelFile(
        prompts.all.flatMap((prompt) => prompt.marks),
        page.picture,
      ),
    ),
  );
  on("save-json", "click", () => saveAs("answer.json", () => answerFile(page.answer, prompts.all)));
  tabs(byId("tabs"), (panel) => {
    document.body.classList.toggle("classifying", panel === "classify-panel");
    look.isBare = panel === "classify-panel";
    tell(null);
    stage.pointAt(null);
  });
}

async function loadModels() {
  const models = await api.models();
  page.limits = models.limits;
  prompts.most = models.limits.max_prompts ?? Infinity;
  describe(models);
  page.isDescribed = true;
}

/** What could not be loaded with the page, now that the service answers. */
function describeIfNeeded() {
  if (!page.isDescribed) loadModels().catch(() => {}); // the next answer tries again
}

async function start() {
  listen();
  prompts.show();
  const { offer } = sources({
    take: takePicture,
    fail: (error) => tell(error.message),
    maxBytes: () => page.limits.max_upload_bytes,
  });
  const tryModels = () => loadModels().catch((error) => fail(error, tryModels));
  await Promise.all([tryModels(), api.samples().then(offer, (error) => tell(error.message))]);
}

start();
