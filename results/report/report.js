"use strict";
// ---- tables: a click or a key on a column's title sorts by it
(() => {
  const NUMBER = /^[+\-\u2212]?\d[\d,]*(\.\d+)?( ± [\d.]+)?[^\p{L}\d]*$/u;
  const words = new Intl.Collator("en", { numeric: true });
  const missing = (text) => text === "" || text === "\u2013";
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));

  for (const box of document.querySelectorAll(".scroll")) {
    const headings = [...document.querySelectorAll("h2, h3, summary")].filter(
      (one) => one.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING);
    box.tabIndex = 0; // who has no mouse scrolls it with the arrow keys
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `table: ${headings.at(-1)?.textContent.trim()}`);
  }

  for (const table of document.querySelectorAll("table.numbers")) {
    const body = table.tBodies[0], titles = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const first = [...body.rows], ruled = first[+table.dataset.rule || -1]; // between cited and measured lines
    ruled?.classList.add("rule");
    titles.forEach((title, column) => {
      const texts = first.map((row) => row.cells[column]?.textContent.trim() ?? "");
      const numeric = texts.every((text) => missing(text) || NUMBER.test(text)) && !texts.every(missing);
      for (const row of [title.parentElement, ...first]) {
        row.cells[column]?.classList.toggle("right", numeric);
        if (!numeric && row.cells[column]?.textContent.length > 48) row.cells[column].classList.add("wide");
      }
      if (!title.textContent.trim() || first.length < 2) return;
      const button = Object.assign(document.createElement("button"), { type: "button", className: "sort" });
      button.append(...title.childNodes);
      title.append(button);
      button.addEventListener("click", () => {
        const states = numeric ? ["descending", "ascending"] : ["ascending", "descending"]; // the best first
        const state = [...states, null][states.indexOf(title.getAttribute("aria-sort")) + 1];
        titles.forEach((other) => other.removeAttribute("aria-sort"));
        if (state) title.setAttribute("aria-sort", state);
        ruled?.classList.toggle("rule", !state);
        const turn = state === "descending" ? -1 : 1;
        const ranked = first.map((row, place) => ({ row, place, text: texts[place] }));
        if (state) {
          ranked.sort((a, b) => missing(a.text) - missing(b.text) || turn * (numeric
            ? number(a.text) - number(b.text) : words.compare(a.text, b.text)) || a.place - b.place);
        }
        body.append(...ranked.map((one) => one.row));
      });
    });
  }
})();

// ---- forests: masks are COCO RLE, decoded to runs when their image is shown
(() => {
  const holder = document.getElementById("forests");
  if (!holder) return;
  const images = JSON.parse(holder.textContent);
  const find = (selector) => document.querySelector(`#gallery ${selector}`);
  const [slider, shown, grid, status] = ["#count", "#shown", ".panels", ".status"].map(find);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const LEVELS = ["whole", "part", "subpart"], FOUND = 0.5;
  let image, pixels, panels = [], active = null, pinned = false;

  function runs(text) { // [start, end, start, end, ...] in columns; see COCO's maskApi.c, rleFrString
    const counts = [];
    for (let at = 0; at < text.length;) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const code = text.charCodeAt(at++) - 48;
        value |= (code & 31) << shift;
        shift += 5;
        more = (code & 32) !== 0;
        if (!more && code & 16) value |= -1 << shift;
      }
      counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
    }
    const ends = [];
    counts.reduce((place, count, index) => {
      if (index % 2) ends.push(place, place + count);
      return place + count;
    }, 0);
    return ends;
  }

  function fill(map, ends, value) {
    const [height, width] = image.size;
    for (let run = 0; run < ends.length; run += 2) {
      for (let place = ends[run]; place < ends[run + 1]; place++) {
        map[(place % height) * width + Math.floor(place / height)] = value;
      }
    }
  }

  const visible = (panel) => (panel.masks ?? []).slice(0, panel.truth ? undefined : +slider.value);
  const children = (panel, parent) =>
    visible(panel).flatMap((mask, index) => (mask.parent === parent ? [index] : []));
  function path(panel, region) {
    const found = [];
    for (let index = region; index >= 0; index = panel.masks[index].parent) found.unshift(index);
    return found;
  }

  function object() { // of the ground truth that is chosen, -1 for none
    const mask = active.panel.masks[active.region];
    return active.panel.truth ? active.region : mask.iou >= FOUND ? mask.object : -1;
  }

  // what this panel has of the region that is chosen, in whatever panel that lies: -1 nothing, null nothing is chosen
  function counterpart(panel) {
    if (!active) return null;
    if (panel === active.panel) return active.region;
    const sought = object();
    const index = sought < 0 ? -1 : panel.truth ? sought : panel.best?.[sought][0] ?? -1;
    return index < visible(panel).length ? index : -1;
  }

  function painted(panel, regions) { // the place of the smallest of these at each pixel, -1 for none
    const label = new Int16Array(image.size[0] * image.size[1]).fill(-1);
    regions.sort((a, b) => panel.masks[b].area - panel.masks[a].area);
    for (const index of regions) fill(label, panel.ends[index], index);
    return label;
  }

  function draw(panel) {
    const [height, width] = image.size, chosen = panel.masks ? counterpart(panel) : active && -1;
    const edge = new Uint8Array(width * height), label = chosen === null ? panel.all
      : painted(panel, chosen < 0 ? [] : [chosen, ...children(panel, chosen)]);
    let clear = null; // of the picture itself: where the chosen region lies
    if (!panel.masks && active) fill((clear = new Uint8Array(width * height)), active.panel.ends[active.region], 1);
    const own = clear ?? label, thick = Math.max(1, Math.round(Math.max(width, height) / 420));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = y * width + x;
        if ((x + thick < width && own[at] !== own[at + thick]) ||
            (y + thick < height && own[at] !== own[at + thick * width])) edge[at] = 1;
      }
    }
    const target = panel.context.createImageData(width, height), pale = dark.matches ? [0.42, 12] : [0.4, 152];
    const colours = panel.masks?.map((mask) => [1, 3, 5].map((place) => parseInt(mask.colour.slice(place, place + 2), 16)));
    for (let at = 0; at < label.length; at++) {
      const grey = (pixels[4 * at] + pixels[4 * at + 1] + pixels[4 * at + 2]) / 3, colour = colours?.[label[at]];
      for (let channel = 0; channel < 3; channel++) {
        let value = pixels[4 * at + channel];
        if (clear) value = edge[at] ? (dark.matches ? 255 : 20) : clear[at] ? value : pale[0] * grey + pale[1];
        else if (panel.masks) {
          value = colour ? 0.4 * grey + 0.6 * colour[channel] : pale[0] * grey + pale[1];
          if (edge[at]) value = colour ? 0.38 * colour[channel] : dark.matches ? 8 : 40;
        }
        target.data[4 * at + channel] = value;
      }
      target.data[4 * at + 3] = 255;
    }
    panel.context.putImageData(target, 0, 0);
    panel.figure.classList.toggle("active", active?.panel === panel);
    panel.has.textContent = !panel.masks ? image.set : chosen === null || panel === active?.panel
      ? `${visible(panel).length} regions` : chosen < 0 ? (active.panel.truth || panel.best || panel.truth ? "not found" : "")
        : panel.truth ? "the object" : `IoU ${panel.best[object()][1].toFixed(2)}`;
  }

  function say() {
    slider.disabled = panels.every((panel) => !panel.masks || panel.truth);
    shown.textContent = slider.value;
    status.replaceChildren();
    for (const name of ["region", "parent", "panel"]) delete status.dataset[name];
    if (!active) {
      status.append("Nothing is chosen: point at a region, or focus a panel and press ↓.");
      return;
    }
    const { panel, region } = active, mask = panel.masks[region], line = path(panel, region);
    const crumbs = Object.assign(document.createElement("span"), { className: "crumbs" });
    const chip = Object.assign(document.createElement("span"), { className: "chip" });
    chip.style.background = mask.colour;
    crumbs.append(chip, panel.title);
    line.forEach((index, depth) => {
      const beside = children(panel, panel.masks[index].parent);
      const between = Object.assign(document.createElement("i"), { textContent: "›" });
      const level = LEVELS[Math.min(depth, 2)] + (depth > 2 ? `, level ${depth + 1}` : "");
      crumbs.append(between, `${level} ${beside.indexOf(index) + 1} of ${beside.length}`);
    });
    const share = (100 * mask.area) / image.area, parts = children(panel, region).length;
    const facts = [
      ["area", `${mask.area.toLocaleString("en")} px, ${share < 1 ? share.toFixed(2) : share.toFixed(1)} %`],
      ["parts", parts],
      ...(mask.score === null ? [] : [["score", mask.score.toFixed(2)]]),
      ...(mask.iou === undefined ? [] : [["IoU with truth", mask.iou.toFixed(2)]]),
    ];
    const line2 = Object.assign(document.createElement("span"), { className: "numbers-of" });
    facts.forEach(([name, value], index) => {
      line2.append(index ? " · " : "", `${name} `, Object.assign(document.createElement("b"), { textContent: value }));
    });
    status.append(crumbs, line2);
    Object.assign(status.dataset, { panel: panel.title, region: mask.id });
    if (mask.parent >= 0) status.dataset.parent = panel.masks[mask.parent].id;
  }

  function choose(panel, region) {
    const next = panel && region >= 0 ? { panel, region } : null;
    if (next?.panel === active?.panel && next?.region === active?.region) return;
    active = next;
    panels.forEach(draw);
    say();
  }

  function walk(panel, key) {
    const region = active?.panel === panel ? active.region : -1, mask = panel.masks[region];
    const down = children(panel, region), beside = mask ? children(panel, mask.parent) : down;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    pinned = true;
    if (key === "ArrowDown" && down.length) choose(panel, down[0]);
    else if (key === "ArrowUp" && mask) choose(panel, mask.parent);
    else if (step && beside.length) {
      choose(panel, beside[mask ? (beside.indexOf(region) + step + beside.length) % beside.length : 0]);
    }
  }

  function at(panel, event) { // the smallest region under the pointer
    const box = panel.canvas.getBoundingClientRect(), [height, width] = image.size;
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    return panel.all[Math.min(y, height - 1) * width + Math.min(x, width - 1)];
  }

  function mount(panel) {
    const figure = Object.assign(document.createElement("figure"), { className: "panel" });
    const box = document.createElement("div"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption"), title = document.createElement("b");
    [canvas.height, canvas.width] = image.size;
    title.textContent = panel.title;
    const has = Object.assign(document.createElement("span"), { className: "has" });
    caption.append(title, has);
    box.append(canvas);
    figure.append(box, caption);
    Object.assign(panel, { figure, canvas, has, context: canvas.getContext("2d") });
    panel.ends = panel.masks?.map((mask) => runs(mask.rle));
    if (panel.masks) {
      box.tabIndex = 0;
      box.setAttribute("role", "application");
      box.setAttribute("aria-label", `${panel.title}: ${panel.masks.length} regions; arrow keys walk from whole to part`);
      box.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { pinned = false; choose(null, -1); }
        else if (event.key.startsWith("Arrow")) { event.preventDefault(); walk(panel, event.key); }
      });
      canvas.addEventListener("pointermove", (event) => { if (!pinned) choose(panel, at(panel, event)); });
      canvas.addEventListener("pointerleave", () => { if (!pinned) choose(null, -1); });
      canvas.addEventListener("click", (event) => {
        const region = at(panel, event);
        pinned = region >= 0 && !(pinned && active?.panel === panel && active.region === region);
        choose(panel, pinned ? region : -1);
      });
    } else {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `image ${image.name}`);
    }
    grid.append(figure);
  }

  async function show(place) {
    image = images[place];
    [...find(".thumbs").children].forEach((one, index) => one.setAttribute("aria-pressed", index === place));
    const picture = new Image(), canvas = document.createElement("canvas");
    picture.src = image.source;
    await picture.decode();
    if (image !== images[place]) return; // another was asked for meanwhile
    [canvas.height, canvas.width] = image.size;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    active = null;
    pinned = false;
    panels = [{ title: image.name }, ...image.panels];
    const most = Math.max(1, ...image.panels.filter((panel) => !panel.truth).map((panel) => panel.masks.length));
    slider.max = most;
    slider.value = Math.min(most, 16);
    grid.style.setProperty("--columns", panels.length > 5 ? Math.ceil(panels.length / 2) : panels.length);
    grid.replaceChildren();
    panels.forEach(mount);
    cut();
  }

  function cut() { // to as many regions as the slider says
    if (active && active.region >= visible(active.panel).length) active = null;
    for (const panel of panels) panel.all = painted(panel, visible(panel).map((_, index) => index));
    panels.forEach(draw);
    say();
  }

  images.forEach((one, place) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `${one.set}: ${one.name}` });
    button.append(Object.assign(new Image(), { src: one.source, alt: `${one.set}: ${one.name}` }));
    button.addEventListener("click", () => show(place));
    find(".thumbs").append(button);
  });
  slider.addEventListener("input", cut);
  find(".walk").addEventListener("click", (event) => {
    const key = event.target.dataset.key, first = panels.find((panel) => panel.masks && !panel.truth) ?? panels[1];
    if (key) walk(active?.panel ?? first, key);
  });
  dark.addEventListener("change", () => panels.forEach(draw));
  show(0);
})();
