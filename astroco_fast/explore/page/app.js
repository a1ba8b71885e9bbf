// The page's life: read the stars, draw the first picture, then answer to pointer, keys and controls.

class App {
  constructor(data) {
    this.data = data;
    this.map = new StarMap(byId("stage"), byId("points"), byId("marks"));
    this.panel = new Panel(data, (star) => this.choose(star));
    this.hover = this.kept = -1;
    this.before = [];
    this.pointers = new Map();
    this.lassoing = false;
  }

  start() {
    const { content, arrays } = this.data;
    const n = content.ids.length;
    this.views = content.views.map((view, i) => {
      const unit = (axis) => Float32Array.from({ length: n }, (_, star) => arrays[`view${i}`][2 * star + axis] / 65535);
      return { ...view, x: unit(0), y: unit(1) };
    });
    this.data.columns = content.columns.map((column, i) => ({ ...column, values: arrays[`column${i}`] }));
    const of = content.total > n ? ` of ${content.total.toLocaleString("en")}` : "";
    byId("facts").textContent = `${n.toLocaleString("en")}${of} light curves`;
    for (const note of content.notes) make("li", note, byId("notes"));
    content.views.forEach((view) => make("option", view.name, byId("view")));
    this.data.columns.forEach((column) => make("option", column.name, byId("colour")));
    this.map.resize();
    this.show(0);
    this.colour(0);
    this.map.paint();
    requestAnimationFrame(() => {
      document.documentElement.dataset.firstPicture = performance.now().toFixed(0);
    });
    new ResizeObserver(() => this.resized()).observe(byId("stage"));
    this.listen();
  }

  resized() {
    this.map.resize(); // which clears the canvases
    this.map.paint();
    this.panel.draw();
  }

  show(view) {
    this.map.show(this.views[view]);
    const [across, up] = this.views[view].axes;
    byId("axes").replaceChildren();
    make("span", `→ ${across}`, byId("axes"));
    make("span", `↑ ${up}`, byId("axes"));
  }

  colour(place) {
    this.column = this.data.columns[place];
    const found = colouring(this.column);
    this.map.colour(found);
    this.panel.colouring = found;
    this.legend(found);
    this.panel.star = -1; // colours in the panel change, too
    this.update();
  }

  legend({ marks, scale }) {
    const legend = byId("legend");
    legend.replaceChildren();
    if (scale) {
      const box = make("div", undefined, legend);
      box.className = "scale";
      const bar = make("div", undefined, box);
      bar.className = "ramp";
      bar.style.background = `linear-gradient(to right, ${marks.slice(1).map((m) => m.colour).join(", ")})`;
      const ends = make("div", undefined, box);
      ends.className = "ends";
      for (const value of [scale.low, scale.middle, scale.high]) make("span", number(value), ends);
      make("p", `${this.column.name}, from its 2nd to its 98th percentile${scale.log ? ", on a log scale" : ""}`, box);
    }
    marks.forEach((mark, i) => {
      if (!mark.count) return;
      const chip = make("button", undefined, legend);
      chip.type = "button";
      chip.setAttribute("aria-pressed", "true");
      chip.append(sprite(mark.colour, mark.shape, 5, 1));
      make("b", mark.name, chip);
      make("small", mark.count.toLocaleString("en"), chip);
      chip.addEventListener("click", () => {
        const hide = chip.getAttribute("aria-pressed") === "true";
        chip.setAttribute("aria-pressed", String(!hide));
        this.map.hidden[hide ? "add" : "delete"](i);
        this.map.draw();
      });
    });
  }

  // The star under the pointer, or else the one that is kept.
  update() {
    const star = this.hover >= 0 ? this.hover : this.kept, k = this.data.content.neighbours;
    this.map.current = star;
    this.map.kept = this.kept;
    this.map.near = star < 0 ? [] : this.data.arrays.neighbours.subarray(star * k, star * k + k);
    this.map.drawMarks();
    this.panel.show(star, star >= 0 && star === this.kept);
  }

  point(star, px, py) {
    const tip = byId("tip");
    tip.hidden = star < 0;
    if (star >= 0) {
      tip.replaceChildren();
      make("b", starName(this.data, star), tip);
      make("span", `${this.column.name}: ${told(this.column, star)}`, tip);
      const left = px > this.map.width / 2;
      tip.style.left = left ? "" : `${px + 14}px`;
      tip.style.right = left ? `${this.map.width - px + 14}px` : "";
      tip.style.top = `${Math.min(Math.max(py - 14, 4), this.map.height - 50)}px`;
    }
    if (star === this.hover) return;
    this.hover = star;
    this.update();
  }

  choose(star, isBack = false) {
    if (this.kept >= 0 && star !== this.kept && !isBack) this.before.push(this.kept);
    this.kept = star;
    this.hover = -1;
    byId("tip").hidden = true;
    if (star >= 0) this.map.reveal(star);
    this.map.draw();
    this.update();
  }

  select(stars, add) {
    if (!add) this.map.selected.clear();
    for (const star of stars) this.map.selected.add(star);
    const size = this.map.selected.size;
    byId("selection").hidden = size === 0;
    byId("count").textContent = `${size.toLocaleString("en")} selected`;
    this.map.draw();
  }

  toggle(star) {
    if (star < 0) return;
    const selected = new Set(this.map.selected);
    if (!selected.delete(star)) selected.add(star);
    this.select(selected, false);
  }

  save() {
    const { ids, bands } = this.data.content;
    const withBands = bands.some((band) => band !== "");
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [withBands ? "id,band" : "id"];
    for (const star of [...this.map.selected].sort((a, b) => a - b)) {
      lines.push((withBands ? [ids[star], bands[star]] : [ids[star]]).map(quoted).join(","));
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = "selected.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  setLasso(on) {
    this.lassoing = on;
    this.map.lasso = null;
    byId("lasso").setAttribute("aria-pressed", String(on));
    byId("stage").classList.toggle("lassoing", on);
    this.map.drawMarks();
  }

  setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    this.colour(byId("colour").selectedIndex);
    this.map.draw();
  }
}

async function begin() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
  if (typeof DecompressionStream === "undefined") {
    byId("facts").textContent = "This browser is too old: Chrome 80, Firefox 113 or Safari 16.4 can show the page.";
    return;
  }
  new App(await unpack(byId("stars"))).start();
}
