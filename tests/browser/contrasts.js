// Of every text that is seen: its contrast with the nearest background that is not transparent (WCAG 2).
() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) =>
    0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
  const behind = (one) => {
    const colour = one ? read(getComputedStyle(one).backgroundColor) : [255, 255, 255, 255];
    return colour[3] === 255 ? colour : behind(one.parentElement);
  };

  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const one = walker.currentNode.parentElement;
    if (!text || !one.checkVisibility() || one.closest(".readout, noscript, .unseen")) continue;
    const [high, low] = [light(read(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), text]);
  }
  return found;
};
