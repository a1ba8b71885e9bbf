// Colours and shapes of the points. The colours are Okabe and Ito's, which colour-blind readers can tell apart: without
// yellow on white, without the dark blue on black. After seven classes the shape changes. Numbers are coloured by viridis.

const HUES = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "ink"];
const DARK_HUES = { "#0072B2": "#56B4E9", "#56B4E9": "#F0E442", "#009E73": "#1DB88D", "#D55E00": "#EE7733" };
const SHAPES = ["circle", "square", "triangle", "diamond"];
const MOST_CLASSES = HUES.length * SHAPES.length;
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
  "#fde725"];
const BINS = 48;

const isDark = () => document.documentElement.dataset.theme === "dark";
const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function hue(place) {
  const colour = HUES[place % HUES.length];
  if (colour === "ink") return token("ink");
  return (isDark() && DARK_HUES[colour]) || colour;
}

// Viridis without the end that the background would swallow.
function ramp(share) {
  const [low, high] = isDark() ? [0.2, 1] : [0, 0.9];
  const at = (low + share * (high - low)) * (VIRIDIS.length - 1);
  const left = Math.min(Math.floor(at), VIRIDIS.length - 2), part = at - left;
  const mix = (from) => {
    const [a, b] = [VIRIDIS[left], VIRIDIS[left + 1]].map((c) => parseInt(c.slice(from, from + 2), 16));
    return Math.round(a + part * (b - a));
  };
  return `rgb(${mix(1)}, ${mix(3)}, ${mix(5)})`;
}

function trace(context, shape, x, y, r) {
  context.beginPath();
  if (shape === "circle") context.arc(x, y, r, 0, 7);
  else if (shape === "square") context.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r);
  else {
    const corners = shape === "triangle" ? [[0, -1.2], [1.1, 0.8], [-1.1, 0.8]] : [[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]];
    corners.forEach(([dx, dy], i) => context[i ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    context.closePath();
  }
}

function sprite(colour, shape, radius, ratio) {
  const size = Math.ceil(2 * (1.4 * radius + 1) * ratio);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  trace(context, shape, size / ratio / 2, size / ratio / 2, radius);
  context.fillStyle = colour;
  context.fill();
  context.lineWidth = 0.6;
  context.strokeStyle = token("panel");
  context.stroke();
  return canvas;
}

function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return String(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return value.toPrecision(4);
}

// How a column colours the stars: a mark for each star, and the marks' colours, shapes and order.
function colouring(column) {
  return column.words ? byClass(column) : byNumber(column);
}

function byClass(column) {
  const counts = new Uint32Array(column.words.length);
  for (const code of column.values) counts[code]++;
  const named = column.words.map((word, code) => ({ word, code })).filter(({ word }) => word !== "");
  const mark = new Uint16Array(column.words.length);
  const marks = [{ colour: token("none"), shape: "circle", name: "none", count: 0 }];
  named.slice(0, MOST_CLASSES).forEach(({ word, code }, i) => {
    mark[code] = marks.length;
    marks.push({ colour: hue(i), shape: SHAPES[Math.floor(i / HUES.length)], name: word, count: counts[code] });
  });
  const rest = named.slice(MOST_CLASSES);
  if (rest.length) {
    marks.push({ colour: token("none"), shape: "square", name: `${rest.length} other classes`, count: 0 });
    for (const { code } of rest) { mark[code] = marks.length - 1; marks[marks.length - 1].count += counts[code]; }
  }
  column.words.forEach((word, code) => { if (word === "") marks[0].count += counts[code]; });
  const of = Uint16Array.from(column.values, (code) => mark[code]);
  return { of, marks, scale: null };
}

function byNumber(column) {
  const sorted = column.values.filter(Number.isFinite).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  let [low, high] = [at(0.02), at(0.98)];
  if (low === high) [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const log = low > 0 && high / low > 100;
  const position = (value) => (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low || 1));
  const marks = [{ colour: token("none"), shape: "circle", name: "none", count: column.values.length - sorted.length }];
  for (let i = 0; i < BINS; i++) marks.push({ colour: ramp(i / (BINS - 1)), shape: "circle" });
  const of = Uint16Array.from(column.values, (value) => {
    if (!Number.isFinite(value)) return 0;
    const share = log && value <= 0 ? 0 : position(value);
    return 1 + Math.round(Math.min(Math.max(share, 0), 1) * (BINS - 1));
  });
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  return { of, marks, scale: { low, middle, high, log } };
}
