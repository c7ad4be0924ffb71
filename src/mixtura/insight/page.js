// Reads the page's data, and sets up the page's theme and header. Text from the run becomes text
// nodes and never markup, so that the name of a file or a run cannot become HTML.
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** Creates an element with attributes and children; a child that is a string becomes text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") node.style.cssText = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ---- numbers

const fixed = (value, digits) => (value === null ? "–" : value.toFixed(digits));

/** 1234567 -> 1.23M; three significant digits. */
function si(value) {
  if (value === null) return "–";
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [unit, letter] = steps.find(([size]) => Math.abs(value) >= 0.9995 * size) ?? [1, ""];
  const scaled = value / unit;
  const digits = letter === "" && Number.isInteger(value) ? 0
    : Math.max(0, 2 - Math.floor(Math.log10(Math.max(1, Math.abs(scaled)))));
  return scaled.toFixed(digits) + letter;
}

const percent = (share) => (share === null ? "–" : (100 * share).toFixed(share < 0.0995 ? 1 : 0) + "%");
const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

// ---- colours

/** The current value of a CSS colour as rgb(), since Plotly reads neither var() nor oklab(). */
function rgb(colour) {
  const probe = el("span", { style: `color: ${colour}` });
  document.body.append(probe);
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(probe).color;
  probe.remove();
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
  return `rgb(${r},${g},${b})`;
}

// A colour has its full strength where the log2 of the ratio is this number or its negative: at
// four times an even share, or at a quarter of an even share.
const FULL = 2;

/**
 * The colour of a ratio to an even share, on a logarithmic scale: blue below 1, orange above 1.
 * Text on the colour stays readable.
 */
function ratioColour(ratio) {
  if (ratio === null) return "var(--card)";
  const far = Math.max(-FULL, Math.min(FULL, Math.log2(Math.max(ratio, 1e-9)))) / FULL;
  const most = far < 0 ? 70 : 78;
  return `color-mix(in oklab, var(${far < 0 ? "--under" : "--over"}) ${(Math.abs(far) * most).toFixed(1)}%, var(--even))`;
}

function drawScales() {
  for (const id of ["load-scale", "lift-scale"]) {
    $(id).replaceChildren(...[[0.25, "¼×"], [0.5, "½×"], [1, "even"], [2, "2×"], [4, "4×"]].map(
      ([ratio, label]) => el("span", { style: `background: ${ratioColour(ratio)}` }, label)));
  }
}

const redraws = [];

function watchTheme() {
  const names = ["auto", "light", "dark"];
  const button = $("theme");
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(button.textContent) + 1) % names.length];
    button.textContent = next;
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    redraws.forEach((redraw) => redraw());
  });
  button.textContent = "auto";
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));
}

// ---- header

function tile(title, ...children) {
  return el("div", { class: "tile" }, el("h3", {}, title), ...children);
}

function bitsTile() {
  const [run, twin] = D.runs;
  const who = (one) => el("div", {}, el("span", { class: `who is-${one.who}` }, one.label),
    el("span", { class: "big" }, fixed(one.bits, 3)));
  const gap = D.comparison;
  const parts = gap ? [{ ...run, bits: gap.run }, { ...twin, bits: gap.twin }] : D.runs.slice(0, 1);
  const hero = el("div", { class: "hero" }, ...parts.map(who));
  if (gap) {
    const good = gap.run < gap.twin;
    hero.append(el("div", { class: good ? "good" : "bad" }, el("span", { class: "who" }, "difference"),
      el("span", { class: "big" }, signed(gap.run - gap.twin, 3)), ` ${signed(100 * (gap.run / gap.twin - 1), 1)}%`));
  }
  const at = gap ? `both after ${si(gap.tokens)} training tokens`
    : run.bits === null ? "not evaluated yet" : `after ${si(run.bits_tokens)} training tokens`;
  return tile("Held-out bits per byte", hero, el("p", { class: "sub" }, at));
}

const beside = (pick) => (run, twin) => `${twin.label.replace("dense ", "")} ${si(pick(twin))}`;

function countTile(title, pick, note = beside(pick), alone = "") {
  const [run, twin] = D.runs;
  return tile(title, el("div", { class: "big" }, si(pick(run))), el("p", { class: "sub" }, twin ? note(run, twin) : alone));
}

function loadTile() {
  const top = Math.max(...D.load.layers.map((one) => one.recent));
  const labelled = D.load.layers.length <= 8;
  const meters = el("div", { class: "meters" }, ...D.load.layers.map((one) =>
    el("div", { title: `layer ${one.layer}: ${fixed(one.recent, 2)}` },
      labelled ? el("b", {}, fixed(one.recent, 2)) : null,
      el("i", { style: `height: ${(28 * one.recent / top).toFixed(1)}px` }))));
  const worst = D.load.layers.find((one) => one.recent === top);
  return tile("Load by layer, max over mean", meters,
    el("p", { class: "sub" }, labelled ? D.load.recent : `at most ${fixed(top, 2)}, in layer ${worst.layer}`));
}

function drawHeader() {
  $("name").textContent = D.name;
  $("subtitle").textContent = D.subtitle;
  const whole = `of ${si(D.runs[0].total)} in all`;
  const tiles = [
    bitsTile(),
    countTile("Active parameters", (one) => one.active, (run, twin) => `of ${si(run.total)}; ${beside((one) => one.active)(run, twin)}`, whole),
    countTile("Forward FLOPs a token", (one) => one.flops),
    countTile("Training tokens a second", (one) => one.speed,
      (run, twin) => (run.speed && twin.speed ? `${percent(run.speed / twin.speed)} of the twin's ${si(twin.speed)}` : "")),
  ];
  if (D.load) tiles.push(loadTile());
  $("tiles").replaceChildren(...tiles);
  const collapsed = D.load ? D.load.layers.filter((one) => one.collapsed).map((one) => one.layer) : [];
  $("alarm").hidden = collapsed.length === 0;
  $("alarm").textContent = `Collapsed: in layer ${collapsed.join(", ")} the busiest ${D.load?.top_k} experts take over 90% of the rows.`;
  $("definitions").replaceChildren(...D.definitions.map(([term, meaning]) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, meaning))));
  $("written").textContent = D.written;
}
