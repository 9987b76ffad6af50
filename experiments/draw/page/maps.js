// Heat maps: a canvas pixel for each number, a row of them for each row read.

const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"].map(rgb);
const UNREAD = 0.13; // Opacity of rows that were not read yet.

export function color(name) {
  return rgb(getComputedStyle(document.documentElement).getPropertyValue(name).trim());
}

export const paintInk = (canvas, bytes, rows, columns, read = rows) =>
  paint(canvas, bytes && unpack(bytes), rows, columns, read, scale(color("--paper"), color("--ink")));

export const paintProbabilities = (canvas, probabilities, rows, columns, read) =>
  paint(canvas, probabilities?.flat(), rows, columns, read, scale(color("--paper"), color("--accent")));

export const paintGate = (canvas, bytes, rows, columns, read) =>
  paint(canvas, bytes && unpack(bytes), rows, columns, read, scale(...VIRIDIS));

export const paintState = (canvas, bytes, rows, columns, read) =>
  paint(canvas, bytes && unpack(bytes), rows, columns, read, scale(color("--cold"), color("--card"), color("--warm")));

// `values` in [0, 1], row by row; without any the map is empty.
function paint(canvas, values, rows, columns, read, colorOf) {
  canvas.width = columns;
  canvas.height = rows;
  if (!values) return;
  const pixels = new ImageData(columns, rows);
  values.forEach((value, at) => {
    const alpha = Math.floor(at / columns) < read ? 1 : UNREAD;
    pixels.data.set([...colorOf(value), 255 * alpha], 4 * at);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// Base64 of a byte each, to [0, 1].
function unpack(text) {
  return Array.from(atob(text), (letter) => letter.charCodeAt(0) / 255);
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// From a value in [0, 1] to a colour between its two neighbours.
function scale(...colors) {
  return (value) => {
    const at = value * (colors.length - 1);
    const low = Math.min(Math.floor(at), colors.length - 2);
    return colors[low].map((part, k) => part + (at - low) * (colors[low + 1][k] - part));
  };
}
