// The panel beside the map: what is known of a star, its light curve and its neighbours. All text from data is put on
// the page as text (textContent), never as HTML.

const byId = (name) => document.getElementById(name);

function make(tag, text, parent) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// A star's id, with its band where the page has several.
function starName(data, star) {
  const { ids, bands } = data.content;
  data.severalBands ??= new Set(bands).size > 1;
  return data.severalBands && bands[star] ? `${ids[star]} · ${bands[star]}` : ids[star];
}

function told(column, star) {
  return column.words ? column.words[column.values[star]] || "–" : number(column.values[star]);
}

class Panel {
  constructor(data, go) {
    Object.assign(this, { data, go, fold: 1, star: -1 });
  }

  colourOf(star) {
    const { of, marks } = this.colouring;
    return marks[of[star]].colour;
  }

  show(star, kept) {
    byId("nothing").hidden = star >= 0;
    byId("chosen").hidden = star < 0;
    const changed = star !== this.star;
    this.star = star;
    if (star < 0) return;
    byId("kept").textContent = kept ? "pinned" : "";
    byId("swatch").style.background = this.colourOf(star);
    if (!changed) return;
    const { data } = this;
    byId("name").textContent = data.content.ids[star];
    const known = byId("known");
    known.replaceChildren();
    for (const column of data.columns) {
      make("dt", column.name, known);
      make("dd", told(column, star), known);
    }
    this.neighbours(star);
    this.draw();
  }

  neighbours(star) {
    const list = byId("neighbours"), { neighbours: k } = this.data.content;
    list.replaceChildren();
    for (let i = 0; i < k; i++) {
      const near = this.data.arrays.neighbours[star * k + i];
      const button = make("button", undefined, make("li", undefined, list));
      button.type = "button";
      make("span", undefined, button).style.background = this.colourOf(near);
      make("b", starName(this.data, near), button);
      const first = this.data.columns.find((column) => column.words);
      make("i", first ? told(first, near) : "", button);
      make("small", number(this.data.arrays.distances[star * k + i]), button);
      button.addEventListener("click", () => this.go(near));
    }
  }

  async draw() {
    const { star, data } = this;
    if (star < 0) return;
    const curve = await lightCurve(star, data.content.block);
    if (star !== this.star) return; // another star was chosen while its light curve was unpacked
    const period = data.arrays.period[star], colour = this.colourOf(star);
    const all = data.arrays.length[star], shown = curve.time.length;
    byId("raw-title").textContent = `Light curve, ${shown === all ? all : `${shown} of ${all}`} points`;
    const from = data.content.periodFrom[star] === "given" ? "from the table" : "found";
    const days = number(period * this.fold);
    byId("fold-title").textContent = Number.isFinite(period) ? `Folded at ${days} days (${from})` : "Folded";
    drawRaw(byId("raw"), curve, colour);
    drawFolded(byId("folded"), curve, period * this.fold, colour);
    document.documentElement.dataset.drawn = star;
  }

  setFold(fold) {
    this.fold = fold;
    for (const button of document.querySelectorAll("[data-fold]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.fold) === fold));
    }
    this.draw();
  }
}
