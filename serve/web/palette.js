// The colours of prompts, and of heat.

// Those of core/segment/overlay.py (Okabe and Ito's), so that the page and the service draw alike.
export const PALETTE = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [204, 121, 167],
  [255, 255, 255],
];

// Viridis at nine even steps from 0 to 1; linear in between.
const VIRIDIS = [
  [68, 1, 84],
  [71, 45, 123],
  [59, 82, 139],
  [44, 114, 142],
  [33, 145, 140],
  [40, 174, 128],
  [94, 201, 98],
  [173, 220, 48],
  [253, 231, 37],
];

/** The colour of the prompt in this place, counted from 0: [red, green, blue], each up to 255. */
export function colourOf(place) {
  return PALETTE[place % PALETTE.length];
}

/** A colour as CSS writes it. */
export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

/** 256 colours, from cold (dark blue) to hot (yellow). */
export function heatColours() {
  return Array.from({ length: 256 }, (_, level) => {
    const at = (level / 255) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return VIRIDIS[low].map((value, channel) => value + (at - low) * (VIRIDIS[low + 1][channel] - value));
  });
}
