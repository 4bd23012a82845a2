// The service's routes. All addresses are relative, so that the page works under any prefix.

/** The service's answer was no; `message` is a sentence for the person at the page. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let key = null;

/** Send this API key from now on. Kept in memory only: nothing on disk holds it. */
export function useKey(value) {
  key = value;
}

export const models = () => call("v1/models");

export const samples = () => call("samples");

/** @param {object} options other fields of the form, such as `{threshold: 0.4}`. */
export function segment(picture, prompts, options, signal) {
  const form = formOf(picture, { ...options, format: "rle", explain: true });
  for (const prompt of prompts) form.append("prompts", prompt);
  return call("v1/segment", { method: "POST", body: form, signal });
}

export function classify(picture, topK, signal) {
  return call("v1/classify", { method: "POST", body: formOf(picture, { top_k: topK }), signal });
}

function formOf(picture, fields) {
  const form = new FormData();
  if (picture.file) form.append("image", picture.file, picture.name);
  else form.append("image_url", picture.url);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return form;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: key ? { Authorization: `Bearer ${key}` } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service cannot be reached. Check that it is running, then try again.", 0);
  }
  const body = await response.json().catch((error) => {
    if (error instanceof SyntaxError) return null; // not JSON: a proxy's own words
    options.signal?.throwIfAborted();
    throw new Refusal("The answer broke off. Try again.", 0);
  });
  if (response.ok && body) return body;
  const sentence =
    body?.detail ?? body?.title ?? `The service answered with status ${response.status} and no explanation.`;
  throw new Refusal(sentence, response.status);
}
