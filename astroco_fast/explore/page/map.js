// The map of the stars: drawing, zoom, and which star or stars lie where.

const MARGIN = 26; // pixels that keep the outermost stars off the edge

class StarMap {
  constructor(stage, points, marks) {
    Object.assign(this, { stage, points, marks, zoom: 1, centre: [0.5, 0.5], hidden: new Set(), selected: new Set() });
    this.current = this.kept = -1;
    this.near = [];
    this.lasso = null;
  }

  show(view) {
    this.x = view.x;
    this.y = view.y;
    this.fit();
  }

  colour(colouring) {
    this.colouring = colouring;
    this.hidden.clear();
    // Rare classes lie on top of frequent ones. Of numbers none lies on top, or the map would show the largest.
    const layer = (star) => (colouring.scale ? Math.min(colouring.of[star], 1) : colouring.of[star]);
    this.order = Uint32Array.from(colouring.of.keys()).sort((a, b) => layer(a) - layer(b) || a - b);
    this.sprites = null;
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const canvas of [this.points, this.marks]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    [this.width, this.height] = [width, height];
    this.sprites = null;
  }

  get radius() {
    const crowd = Math.sqrt((this.width * this.height) / this.x.length);
    return Math.min(Math.max(0.15 * crowd, 1.8), 4.5) * Math.min(Math.max(Math.sqrt(this.zoom), 1), 1.8);
  }

  // Pixels of the whole map's width and height at this zoom.
  get scale() {
    return [this.zoom * (this.width - 2 * MARGIN), this.zoom * (this.height - 2 * MARGIN)];
  }

  // The place of a star in the window.
  screen(star, [wide, high] = this.scale) {
    return [
      this.width / 2 + (this.x[star] - this.centre[0]) * wide,
      this.height / 2 - (this.y[star] - this.centre[1]) * high,
    ];
  }

  fit() {
    this.zoom = 1;
    this.centre = [0.5, 0.5];
    this.sprites = null;
  }

  zoomAt(factor, px, py) {
    const zoom = Math.min(Math.max(this.zoom * factor, 0.5), 400);
    const change = 1 / this.zoom - 1 / zoom;
    this.centre[0] += ((px - this.width / 2) / (this.width - 2 * MARGIN)) * change;
    this.centre[1] -= ((py - this.height / 2) / (this.height - 2 * MARGIN)) * change;
    this.zoom = zoom;
    this.sprites = null;
  }

  move(dx, dy) {
    const [wide, high] = this.scale;
    this.centre[0] -= dx / wide;
    this.centre[1] += dy / high;
  }

  // Move the map so that a star is in sight.
  reveal(star) {
    const [px, py] = this.screen(star);
    if (px > 8 && py > 8 && px < this.width - 8 && py < this.height - 8) return;
    this.centre = [this.x[star], this.y[star]];
  }

  isVisible(star) {
    return !this.hidden.has(this.colouring.of[star]);
  }

  nearest(px, py, reach) {
    let best = -1, least = reach * reach;
    const [wide, high] = this.scale; // every move of the pointer comes here: no arrays in the loop
    const x0 = px - this.width / 2 + this.centre[0] * wide, y0 = this.height / 2 - py + this.centre[1] * high;
    for (let star = 0; star < this.x.length; star++) {
      const away = (this.x[star] * wide - x0) ** 2 + (this.y[star] * high - y0) ** 2;
      if (away < least && this.isVisible(star)) [best, least] = [star, away];
    }
    return best;
  }

  // The next star to the right, left, up or down of another.
  towards(from, dx, dy) {
    const [x0, y0] = this.screen(from);
    let best = -1, least = Infinity;
    for (let star = 0; star < this.x.length; star++) {
      if (star === from || !this.isVisible(star)) continue;
      const [sx, sy] = this.screen(star);
      const along = (sx - x0) * dx + (sy - y0) * dy, across = Math.abs((sx - x0) * dy) + Math.abs((sy - y0) * dx);
      if (along <= 0 || across > along) continue;
      const cost = along + 2 * across;
      if (cost < least) [best, least] = [star, cost];
    }
    return best;
  }

  inside(polygon) {
    const found = [];
    for (let star = 0; star < this.x.length; star++) {
      if (this.isVisible(star) && contains(polygon, this.screen(star))) found.push(star);
    }
    return found;
  }

  // Draw the map in the browser's next frame, once for all changes until then.
  draw() {
    this.frame ??= requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = null;
    const context = this.points.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.points.width, this.points.height);
    const { of, marks } = this.colouring, radius = this.radius;
    this.sprites ??= marks.map(({ colour, shape }) => sprite(colour, shape, radius, this.ratio));
    const half = this.sprites[0].width / 2;
    const some = this.selected.size > 0, scale = this.scale;
    for (const lit of some ? [false, true] : [true]) {
      context.globalAlpha = lit ? 0.9 : 0.15;
      for (const star of this.order) {
        if ((some && this.selected.has(star) !== lit) || !this.isVisible(star)) continue;
        const [px, py] = this.screen(star, scale);
        if (px < -9 || py < -9 || px > this.width + 9 || py > this.height + 9) continue;
        context.drawImage(this.sprites[of[star]], px * this.ratio - half, py * this.ratio - half);
      }
    }
    context.globalAlpha = 1;
    this.drawMarks();
  }

  drawMarks() {
    const context = this.marks.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const ring = (star, extra, width, colour) => {
      const [px, py] = this.screen(star);
      context.beginPath();
      context.arc(px, py, this.radius + extra, 0, 7);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    };
    for (const star of this.near) ring(star, 3, 1.5, token("accent"));
    if (this.current >= 0) {
      ring(this.current, 4.5, 5, token("panel"));
      ring(this.current, 4.5, 2.5, token("ink"));
    }
    if (this.kept >= 0 && this.kept !== this.current) ring(this.kept, 4.5, 1.5, token("ink"));
    if (this.lasso) {
      context.beginPath();
      this.lasso.forEach(([px, py], i) => context[i ? "lineTo" : "moveTo"](px, py));
      context.closePath();
      context.fillStyle = token("accent");
      context.globalAlpha = 0.15;
      context.fill();
      context.globalAlpha = 1;
      context.lineWidth = 1.5;
      context.strokeStyle = token("accent");
      context.stroke();
    }
  }
}

// Whether a polygon has a point inside: a ray from the point crosses its sides an odd number of times.
function contains(polygon, [px, py]) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > py !== yj > py && px < ((xj - xi) * (py - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}
