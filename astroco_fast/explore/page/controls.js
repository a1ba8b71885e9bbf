// What the page does on pointer, touch, keys and controls. These are methods of App, which app.js declares.

const DRAG = 5; // pixels that make a drag of a click

Object.assign(App.prototype, {
  listen() {
    const marks = byId("marks");
    const at = (event) => {
      const box = marks.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    marks.addEventListener("pointerdown", (event) => this.down(event, at(event)));
    marks.addEventListener("pointermove", (event) => this.moved(event, at(event)));
    marks.addEventListener("pointerup", (event) => this.up(event, at(event)));
    marks.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    marks.addEventListener("pointerleave", () => this.point(-1));
    marks.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
    }, { passive: false });
    document.addEventListener("keydown", (event) => this.key(event));
    this.listenToControls();
    this.listenToSearch();
  },

  listenToControls() {
    const click = (name, act) => byId(name).addEventListener("click", act);
    byId("view").addEventListener("change", (event) => { this.show(event.target.selectedIndex); this.map.draw(); });
    byId("colour").addEventListener("change", (event) => { this.colour(event.target.selectedIndex); this.map.draw(); });
    click("lasso", () => this.setLasso(!this.lassoing));
    click("zoom-in", () => this.zoom(1.5));
    click("zoom-out", () => this.zoom(1 / 1.5));
    click("fit", () => { this.map.fit(); this.map.draw(); });
    click("save", () => this.save());
    click("clear", () => this.select([], false));
    click("theme", () => this.setTheme(isDark() ? "light" : "dark"));
    click("help", () => byId("keys").showModal());
    click("close-keys", () => byId("keys").close());
    for (const button of document.querySelectorAll("[data-fold]")) {
      button.addEventListener("click", () => this.panel.setFold(Number(button.dataset.fold)));
    }
  },

  zoom(factor, px = this.map.width / 2, py = this.map.height / 2) {
    this.map.zoomAt(factor, px, py);
    this.map.draw();
  },

  down(event, place) {
    byId("marks").setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, place);
    this.dragged = false;
    this.pressed = place;
    if (this.lassoing) this.map.lasso = [place];
  },

  moved(event, place) {
    const last = this.pointers.get(event.pointerId);
    if (!last) {
      if (event.pointerType !== "touch" && !this.lassoing) this.point(this.map.nearest(...place, 14), ...place);
      return;
    }
    this.dragged ||= Math.hypot(place[0] - this.pressed[0], place[1] - this.pressed[1]) > DRAG;
    if (this.pointers.size === 2) this.pinch(event.pointerId, place);
    else if (this.map.lasso) {
      this.map.lasso.push(place);
      this.map.drawMarks();
    } else if (this.dragged) {
      this.point(-1);
      this.map.move(place[0] - last[0], place[1] - last[1]);
      this.map.draw();
    }
    if (this.dragged || this.map.lasso) this.pointers.set(event.pointerId, place);
  },

  pinch(moving, place) {
    const [other] = [...this.pointers].filter(([id]) => id !== moving).map(([, where]) => where);
    const before = this.pointers.get(moving);
    const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
    this.dragged = true;
    this.map.lasso = null;
    this.zoom(apart(place) / apart(before), (place[0] + other[0]) / 2, (place[1] + other[1]) / 2);
  },

  up(event, place) {
    this.pointers.delete(event.pointerId);
    if (this.map.lasso) {
      const polygon = this.map.lasso;
      this.setLasso(false);
      if (this.dragged) this.select(this.map.inside(polygon), event.shiftKey);
    } else if (!this.dragged) {
      const star = this.map.nearest(...place, event.pointerType === "touch" ? 24 : 14);
      if (star >= 0 || this.kept >= 0) this.choose(star);
    }
  },

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    const typing = event.target.matches?.("input, select");
    if (typing) return;
    const act = this.keys()[event.key] ?? this.keys()[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  },

  keys() {
    const arrow = (dx, dy) => () => {
      const from = this.kept >= 0 ? this.kept : this.map.nearest(this.map.width / 2, this.map.height / 2, Infinity);
      const star = this.kept >= 0 ? this.map.towards(from, dx, dy) : from;
      if (star >= 0) this.choose(star);
    };
    const k = this.data.content.neighbours, star = this.map.current;
    const near = (i) => () => { if (star >= 0 && i <= k) this.choose(this.data.arrays.neighbours[star * k + i - 1]); };
    const folds = [1, 2, 0.5];
    return {
      ArrowLeft: arrow(-1, 0), ArrowRight: arrow(1, 0), ArrowUp: arrow(0, -1), ArrowDown: arrow(0, 1),
      ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((i) => [String(i), near(i)])),
      b: () => { if (this.before.length) this.choose(this.before.pop(), true); },
      x: () => this.toggle(star),
      f: () => this.panel.setFold(folds[(folds.indexOf(this.panel.fold) + 1) % 3]),
      "/": () => byId("search").focus(),
      l: () => this.setLasso(!this.lassoing),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      0: () => byId("fit").click(),
      t: () => byId("theme").click(),
      "?": () => byId("keys").showModal(),
      Escape: () => {
        if (this.lassoing) this.setLasso(false);
        else if (this.kept >= 0) this.choose(-1);
        else this.select([], false);
      },
    };
  },

  // Ids that are the text, begin with it, or have it inside, in this order.
  matches(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return [];
    const ranked = [[], [], []];
    this.lower ??= this.data.content.ids.map((id) => id.toLowerCase());
    this.lower.forEach((id, star) => {
      const place = id.indexOf(wanted);
      if (place >= 0) ranked[id === wanted ? 0 : place === 0 ? 1 : 2].push(star);
    });
    return ranked.flat();
  },

  listenToSearch() {
    const search = byId("search"), hits = byId("hits");
    const close = () => { hits.hidden = true; search.setAttribute("aria-expanded", "false"); };
    const take = (star) => {
      close();
      search.value = this.data.content.ids[star];
      this.choose(star);
      byId("marks").focus({ preventScroll: true });
    };
    search.addEventListener("input", () => {
      const found = this.matches(search.value);
      hits.replaceChildren();
      for (const star of found.slice(0, 8)) {
        const hit = make("li", starName(this.data, star), hits);
        hit.setAttribute("role", "option");
        hit.addEventListener("pointerdown", (event) => { event.preventDefault(); take(star); });
      }
      const more = found.length - 8;
      if (!found.length || more > 0) {
        make("li", found.length ? `and ${more.toLocaleString("en")} more` : "no such id", hits).className = "more";
      }
      hits.hidden = search.value.trim() === "";
      search.setAttribute("aria-expanded", String(!hits.hidden));
    });
    search.addEventListener("keydown", (event) => {
      const [first] = this.matches(search.value);
      if (event.key === "Enter" && first !== undefined) take(first);
      if (event.key === "Escape") { close(); search.blur(); }
    });
    search.addEventListener("blur", close);
  },
});

begin();
