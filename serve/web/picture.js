// The picture in hand: a file, or a link that the service follows by itself.

/**
 * What the page needs of a picture. `file` is null for a link, `url` for a file; `source` is what a canvas draws, null
 * where the browser cannot show it and only the service reads it. Width and height are as a person sees it, turned by
 * its EXIF block.
 */
function picture({ name, file = null, url = null, source = null }) {
  return {
    name,
    file,
    url,
    source,
    width: source?.naturalWidth ?? source?.width ?? 0,
    height: source?.naturalHeight ?? source?.height ?? 0,
  };
}

/** @throws {Error} with a sentence, if it is too large for the service or no picture. */
export async function fromFile(file, name, maxBytes) {
  if (file.size > maxBytes) {
    throw new Error(`${name} has ${megabytes(file.size)}; the service takes at most ${megabytes(maxBytes)}.`);
  }
  try {
    // A copy: the file on disk may be changed, moved or deleted before it is sent.
    const copy = new Blob([await file.arrayBuffer()], { type: file.type });
    return picture({ name, file: copy, source: await createImageBitmap(copy) });
  } catch {
    throw new Error(`${name} is not a picture that can be read. Use a JPEG, PNG, WebP, GIF or BMP file.`);
  }
}

/** @throws {Error} with a sentence, if it is no web address. */
export async function fromLink(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!url || !["http:", "https:"].includes(url.protocol)) {
    throw new Error("That is not a link to a picture. A link begins with https:// or http://.");
  }
  const name = decoded(url.pathname.split("/").at(-1)) || url.hostname;
  // Most sites do not let scripts read their pictures; such a picture can be shown, but not saved from the canvas.
  const source = (await load(url, "anonymous")) ?? (await load(url, null));
  return picture({ name, url: url.href, source });
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not UTF-8
  }
}

async function load(url, crossOrigin) {
  const image = new Image();
  image.crossOrigin = crossOrigin;
  image.src = url.href;
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  }
}

/** Draw the picture over the whole of a canvas, transparent parts as white, as the service sees them. */
export function drawPicture(context, { source, width }) {
  const { canvas } = context;
  context.fillStyle = source ? "white" : "#8a8578";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!source) return;
  // A picture of a few pixels is shown as pixels.
  context.imageSmoothingEnabled = canvas.width < 4 * width;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MB`;
}
