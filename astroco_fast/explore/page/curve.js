// Drawing of light curves: magnitude, the bright above, against time or phase.

function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.round(share * (sorted.length - 1))];
}

// The range of magnitudes that shows the star rather than its worst points.
function magnitudes(mag, err) {
  const [low, high] = [quantile(mag, 0.01), quantile(mag, 0.99)];
  const pad = Math.max(0.15 * (high - low), quantile(err, 0.5), 0.005);
  return [low - pad, high + pad];
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
    found.push([i * step, (i * step).toFixed(digits)]);
  }
  return found;
}

// x, mag, err: the points; range: of x; label: of the axis; colour: of the points.
function drawCurve(canvas, { x, mag, err, range, label, colour }) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  if (!x.length) {
    context.fillStyle = token("faint");
    context.textAlign = "center";
    context.fillText(label, width / 2, height / 2);
    return;
  }
  const [left, right, top, bottom] = [46, width - 8, 6, height - 30];
  const [bright, faint] = magnitudes(mag, err);
  const px = (value) => left + ((value - range[0]) / (range[1] - range[0])) * (right - left);
  const py = (value) => top + ((value - bright) / (faint - bright)) * (bottom - top);
  drawAxes(context, { left, right, top, bottom, px, py, range, bright, faint, label });
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1;
  context.globalAlpha = 0.35;
  context.beginPath();
  for (let i = 0; i < x.length; i++) {
    if (mag[i] < bright || mag[i] > faint) continue;
    context.moveTo(px(x[i]), Math.max(py(mag[i] - err[i]), top));
    context.lineTo(px(x[i]), Math.min(py(mag[i] + err[i]), bottom));
  }
  context.stroke();
  context.globalAlpha = 0.85;
  for (let i = 0; i < x.length; i++) {
    const beyond = mag[i] < bright ? -1 : mag[i] > faint ? 1 : 0;
    if (beyond) arrow(context, px(x[i]), beyond < 0 ? top : bottom, beyond);
    else {
      context.beginPath();
      context.arc(px(x[i]), py(mag[i]), 1.9, 0, 7);
      context.fill();
    }
  }
  context.globalAlpha = 1;
}

// A point beyond the range, at its edge.
function arrow(context, x, y, direction) {
  context.beginPath();
  context.moveTo(x - 3, y - 5 * direction);
  context.lineTo(x + 3, y - 5 * direction);
  context.lineTo(x, y);
  context.fill();
}

function drawAxes(context, { left, right, top, bottom, px, py, range, bright, faint, label }) {
  context.strokeStyle = token("line");
  context.fillStyle = token("faint");
  context.lineWidth = 1;
  context.strokeRect(left + 0.5, top + 0.5, right - left, bottom - top);
  context.textAlign = "center";
  for (const [value, text] of ticks(...range, Math.max(3, (right - left) / 45))) {
    context.beginPath();
    context.moveTo(px(value), bottom);
    context.lineTo(px(value), bottom + 4);
    context.stroke();
    context.fillText(text, px(value), bottom + 15);
  }
  context.fillText(label, (left + right) / 2, bottom + 28);
  context.textAlign = "right";
  for (const [value, text] of ticks(bright, faint, (bottom - top) / 28)) {
    context.beginPath();
    context.moveTo(left - 4, py(value));
    context.lineTo(left, py(value));
    context.stroke();
    context.fillText(text, left - 6, py(value) + 4);
  }
}

function drawRaw(canvas, curve, colour) {
  const { time, mag, err } = curve;
  const zero = time.length ? Math.floor(time[0] / 100) * 100 : 0;
  const x = time.map((value) => value - zero);
  const [first, last] = [x[0], x[x.length - 1]], pad = 0.03 * (last - first) || 0.5;
  const label = time.length ? `time − ${zero} (days)` : "no light curve on this page";
  drawCurve(canvas, { x, mag, err, range: [first - pad, last + pad], label, colour });
}

// Two cycles, the minimum of light at the phases 0, 1 and 2.
function drawFolded(canvas, curve, period, colour) {
  const none = new Float64Array(0);
  if (!Number.isFinite(period) || !curve.time.length) {
    const label = curve.time.length ? "no period" : "no light curve on this page";
    drawCurve(canvas, { x: none, mag: none, err: none, range: [0, 2], label, colour });
    return;
  }
  const n = curve.time.length, x = new Float64Array(2 * n);
  const twice = (values) => Float64Array.from({ length: 2 * n }, (_, i) => values[i % n]);
  for (let i = 0; i < n; i++) {
    const phase = (curve.time[i] - curve.epoch) / period;
    x[i] = phase - Math.floor(phase);
    x[n + i] = x[i] + 1;
  }
  drawCurve(canvas, { x, mag: twice(curve.mag), err: twice(curve.err), range: [0, 2], label: "phase", colour });
}
