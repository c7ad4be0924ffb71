// Draws the coloured text, the tip over a token, the table of experts, and for each layer a matrix
// of domains by experts.

// ---- arrays from Python: little-endian, in base64

function unpacked(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Kind(bytes.buffer);
}

/** Returns one layer's choices for one text; the first call for a layer and a text unpacks them. */
function choicesOf(text, layer) {
  const packed = text.layers[layer];
  packed.open ??= {
    chosen: unpacked(packed.chosen, Int16Array), computed: unpacked(packed.computed ?? packed.chosen, Int16Array),
    weight: unpacked(packed.weight, Float32Array),
    likely: packed.likely && unpacked(packed.likely, Int16Array),
    probs: packed.probs && unpacked(packed.probs, Uint16Array),
  };
  return packed.open;
}

const state = { layer: 0, text: 0, order: "domain", only: null, at: null };
const checkedValue = (name) => document.querySelector(`input[name=${name}]:checked`).value;

// ---- the text

/** A token's text with visible marks for line breaks, tabs and control characters. */
function shownToken(piece, ended, unfinished) {
  if (ended) return [el("span", { class: "mark" }, "⟨end⟩\n")];
  if (unfinished) return [el("span", { class: "mark" }, "‹")];
  return piece.split(/(\n|\t|[^\P{C}\n\t])/u).filter((part) => part !== "").flatMap((part) => {
    if (part === "\n") return [el("span", { class: "mark" }, "↵"), "\n"];
    if (part === "\t") return [el("span", { class: "mark" }, "→"), "\t"];
    return /^\p{C}$/u.test(part) ? [el("span", { class: "mark" }, `⟨${part.codePointAt(0).toString(16)}⟩`)] : [part];
  });
}

function drawTokens() {
  const text = D.text.texts[state.text], choices = choicesOf(text, state.layer), K = D.text.choices;
  const nodes = [];
  text.pieces.forEach((piece, index) => {
    const expert = choices.chosen[index * K];
    const node = el("span", { class: `t x${expert}` }, ...shownToken(piece, text.ended.includes(index), piece === ""));
    node.dataset.i = index;
    nodes.push(node);
  });
  $("tokens").replaceChildren(...nodes);
  $("tokens").classList.toggle("whole", D.text.whole);
  paintOnly();
}

/** While one expert is selected, only its tokens keep their colour. */
function paintOnly() {
  $("tokens").classList.toggle("one", state.only !== null);
  $("only").textContent = state.only === null ? "" : `#tokens.one .x${state.only} { background: var(--e${state.only}); color: var(--ink); }`;
  for (const chip of document.querySelectorAll("#experts .chip")) {
    const chosen = Number(chip.dataset.expert) === state.only;
    chip.setAttribute("aria-pressed", chosen);
    chip.closest("tr").classList.toggle("off", state.only !== null && !chosen);
  }
}

// ---- hovering

const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣").replace(/\p{C}/gu, (c) => `⟨${c.codePointAt(0).toString(16)}⟩`);

function nameOf(text, index) {
  if (text.ended.includes(index)) return "end of the document";
  if (text.pieces[index] !== "") return visible(text.pieces[index]);
  const whole = text.pieces.slice(index).find((piece) => piece !== "");
  return whole ? `part of ${visible(whole)}` : "part of a character";
}

/**
 * The rows of the tip. Each has an expert, the router's probability of this expert, and the combine
 * weight if the expert was chosen.
 */
function tipRows(choices, index) {
  const K = D.text.choices, P = D.text.kept, rows = new Map();
  for (let p = 0; choices.likely && p < P; p++) {
    const expert = choices.likely[index * P + p];
    if (expert >= 0) rows.set(expert, { expert, prob: choices.probs[index * P + p] / 65535, rank: null });
  }
  for (let k = 0; k < K; k++) {
    const expert = choices.chosen[index * K + k];
    if (expert < 0) continue;
    const row = rows.get(expert) ?? { expert, prob: null };
    rows.set(expert, { ...row, rank: k, weight: choices.weight[index * K + k], computed: choices.computed[index * K + k] });
  }
  return [...rows.values()].sort((a, b) => (b.prob ?? 2) - (a.prob ?? 2));
}

function weightText(row) {
  if (row.rank == null) return "";
  if (row.computed < 0) return "dropped";
  const moved = row.computed === row.expert ? "" : ` by E${row.computed}`;
  return row.weight.toFixed(2) + moved;
}

const chipOf = (expert, tag = "span", extra = {}) => el(tag, { class: "chip", style: `background: var(--e${expert})`, ...extra }, `E${expert}`);

function drawTip(index) {
  const text = D.text.texts[state.text], choices = choicesOf(text, state.layer);
  const rows = tipRows(choices, index), shown = rows.slice(0, 10);
  const bits = text.bits[index] === null ? "nothing comes before it" : `cost ${text.bits[index].toFixed(2)} bits to predict`;
  const most = Math.max(...shown.map((row) => row.prob ?? 0), 1e-9);
  const head = el("tr", {}, el("th", { colspan: 3 }, choices.likely ? "router's probability" : ""), el("th", {}, "weight"));
  const table = el("table", {}, head, ...shown.map((row) => el("tr", { class: row.rank == null ? "" : "chosen" },
    el("td", {}, chipOf(row.expert)),
    el("td", { class: "p" }, row.prob === null ? null : el("i", { style: `width: ${(100 * row.prob / most).toFixed(1)}%` })),
    el("td", { class: "n" }, row.prob === null ? "–" : (100 * row.prob).toFixed(1) + "%"),
    el("td", { class: "n" }, weightText(row)))));
  const left = 1 - shown.reduce((sum, row) => sum + (row.prob ?? 0), 0), others = D.domains.layers[state.layer].counts[0].length - shown.length;
  $("tip").replaceChildren(
    el("h4", {}, nameOf(text, index)),
    el("p", {}, `${D.domains.names[text.domain[index]]} · ${bits}`), table,
    others > 0 && choices.likely ? el("p", {}, `${others} more share ${(100 * Math.max(0, left)).toFixed(1)}%`) : "");
}

function showTip(node) {
  document.querySelectorAll(".t.at").forEach((old) => old.classList.remove("at"));
  const index = Number(node.dataset.i);
  state.at = index;
  node.classList.add("at");
  drawTip(index);
  const tip = $("tip"), box = node.getClientRects()[0] ?? node.getBoundingClientRect();
  tip.hidden = false;
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${Math.max(8, below ? box.bottom + 8 : box.top - 8 - tip.offsetHeight)}px`;
}

function hideTip() {
  $("tip").hidden = true;
  document.querySelectorAll(".t.at").forEach((old) => old.classList.remove("at"));
}

function watchTokens() {
  const panel = $("tokens");
  panel.addEventListener("pointerover", (event) => {
    const node = event.target.closest(".t");
    if (node) showTip(node); else hideTip();
  });
  panel.addEventListener("pointerleave", hideTip);
  panel.addEventListener("scroll", () => { if (!panel.matches(":focus-visible")) hideTip(); });
  panel.addEventListener("blur", hideTip);
  panel.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const nodes = panel.querySelectorAll(".t");
    const next = state.at === null ? 0 : Math.max(0, Math.min(nodes.length - 1, state.at + move));
    nodes[next].scrollIntoView({ block: "nearest" });
    showTip(nodes[next]);
    $("spoken").textContent = $("tip").innerText.replaceAll("\n", ", ");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hideTip();
    state.only = null;
    paintOnly();
  });
}

// ---- the table of experts

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * Each expert's share of a layer's first choices, in each domain (`share`) and in all domains
 * (`overall`), and the ratio of these two shares (`lift`).
 */
function sharesOf(layer) {
  const { counts } = D.domains.layers[layer];
  const totals = counts.map(sum), all = sum(totals);
  const overall = counts[0].map((_, e) => sum(counts.map((row) => row[e])) / all);
  const share = counts.map((row, d) => row.map((n) => (totals[d] ? n / totals[d] : null)));
  const lift = share.map((row) => row.map((s, e) => (s === null || !overall[e] ? null : s / overall[e])));
  return { overall, share, lift };
}

/** Experts sorted by the domain in which their lift is highest, then by this lift. */
function byDomain({ lift, overall }) {
  const known = domainsRead().filter((d) => !D.domains.few[d]);
  const best = overall.map((_, e) => known.reduce((top, d) => ((lift[d][e] ?? 0) > (lift[top][e] ?? 0) ? d : top), known[0] ?? 0));
  return overall.map((_, e) => e).sort((a, b) => best[a] - best[b] || (lift[best[b]][b] ?? 0) - (lift[best[a]][a] ?? 0));
}

function ordered(shares) {
  const experts = shares.overall.map((_, e) => e);
  if (state.order === "number") return experts;
  return state.order === "load" ? experts.sort((a, b) => shares.overall[b] - shares.overall[a]) : byDomain(shares);
}

/** A cell's title; for a domain with few tokens, whose cells have no colour, it states how few. */
function cellTitle(shares, expert, d) {
  const share = shares.share[d][expert], lift = shares.lift[d][expert];
  const few = D.domains.few[d] ? `, of only ${D.domains.tokens[d]} tokens` : "";
  return `E${expert} is first for ${percent(share)} of ${D.domains.names[d]}` + (lift === null ? "" : `, ${lift.toFixed(2)}× its share of all`) + few;
}

const cellColour = (shares, expert, d) => (D.domains.few[d] ? "var(--card)" : ratioColour(shares.lift[d][expert]));

/** Domains with tokens, the largest first. */
const domainsRead = () => D.domains.names.map((_, d) => d).filter((d) => D.domains.tokens[d] > 0).sort((a, b) => D.domains.tokens[b] - D.domains.tokens[a]);

const inHundred = (share) => (100 * share).toFixed(share < 0.0995 ? 1 : 0);

function cell(shares, expert, d) {
  const look = { class: D.domains.few[d] ? "cell few" : "cell", style: `background-color: ${cellColour(shares, expert, d)}` };
  return el("td", { ...look, title: cellTitle(shares, expert, d) }, inHundred(shares.share[d][expert]));
}

function drawExperts() {
  const shares = sharesOf(state.layer), telling = D.domains.layers[state.layer].telling;
  const top = Math.max(...shares.overall);
  $("experts-head").replaceChildren(el("tr", {},
    el("th", {}, "expert"), el("th", {}, "all", el("small", {}, si(sum(D.domains.tokens)))),
    ...domainsRead().map((d) => el("th", {}, D.domains.names[d], el("small", {}, D.domains.few[d] ? `only ${D.domains.tokens[d]}` : si(D.domains.tokens[d])))),
    el("th", {}, "telling tokens")));
  $("experts").replaceChildren(...ordered(shares).map((expert) => el("tr", {},
    el("td", {}, chipOf(expert, "button", { type: "button", "data-expert": expert, "aria-pressed": "false", title: `show only E${expert}'s tokens` })),
    el("td", {}, el("div", { class: "bar" }, el("i", { style: `width: ${(100 * shares.overall[expert] / top).toFixed(1)}%` }), el("span", {}, inHundred(shares.overall[expert])))),
    ...domainsRead().map((d) => cell(shares, expert, d)),
    el("td", {}, el("div", { class: "said" }, ...telling[expert].map((token) => el("span", {}, visible(token))))))));
  paintOnly();
}

// ---- the matrices of all layers

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function matrix(layer) {
  const shares = sharesOf(layer), rows = domainsRead().filter((d) => !D.domains.few[d]), order = byDomain(shares);
  const left = 76, width = 320, high = 20, step = (width - left) / order.length, bottom = rows.length * high;
  const picture = svg("svg", { class: "matrix", viewBox: `0 0 ${width} ${bottom + 9}`, role: "img", "aria-label": `layer ${D.domains.layers[layer].layer}: domains by experts` });
  rows.forEach((d, row) => {
    const name = D.domains.names[d];
    const label = name.length > 11 ? name.slice(0, 10) + "…" : name;
    picture.append(svg("text", { x: 0, y: row * high + 14 }, label));
    order.forEach((expert, column) => {
      const box = svg("rect", { x: left + column * step, y: row * high, width: step * 0.96, height: high - 1, style: `fill: ${cellColour(shares, expert, d)}` });
      box.append(svg("title", {}, cellTitle(shares, expert, d)));
      picture.append(box);
    });
  });
  order.forEach((expert, column) => picture.append(svg("rect", { x: left + column * step, y: bottom + 2, width: step * 0.96, height: 6, style: `fill: var(--e${expert})` })));
  return picture;
}

function drawMatrices() {
  $("matrices").replaceChildren(...D.domains.layers.map((one, layer) => {
    const go = el("button", { type: "button", title: "show this layer above" }, `Layer ${one.layer}`);
    go.addEventListener("click", () => choose("layer", layer));
    return el("div", { class: "panel" }, el("h3", {}, go, el("span", { class: "note" }, `${one.information.toFixed(2)} bits about the domain`)), matrix(layer));
  }));
}

// ---- choosing

function choose(what, value) {
  state[what] = value;
  document.querySelector(`input[name=${what}][value="${value}"]`).checked = true;
  hideTip();
  if (what === "text") state.at = null;
  // The new layer may have fewer experts, so that it lacks the selected one.
  if (what === "layer" && state.only >= D.domains.layers[value].counts[0].length) state.only = null;
  if (what !== "order") drawTokens();
  drawExperts();
  [...$("matrices").children].forEach((panel, layer) => panel.classList.toggle("chosen", layer === state.layer));
}

function fillChoice(id, name, labels) {
  for (const [index, label] of labels.entries()) {
    $(id).append(el("label", {}, el("input", { type: "radio", name, value: index }), el("span", {}, label)));
  }
}

function drawText() {
  $("text").hidden = $("domains").hidden = !D.text;
  if (!D.text) return;
  document.head.append(
    el("style", {}, Array.from({ length: D.text.experts }, (_, e) => `.x${e} { background: var(--e${e}); }`).join("\n")),
    el("style", { id: "only" }));
  $("text-lead").textContent = D.text.lead;
  $("domains-lead").textContent = D.domains.lead;
  fillChoice("layers", "layer", D.domains.layers.map((one) => `${one.layer}`));
  fillChoice("texts", "text", D.text.texts.map((one) => one.label));
  for (const name of ["layer", "text"]) {
    $(`${name}s`).addEventListener("change", () => choose(name, Number(checkedValue(name))));
  }
  $("order").addEventListener("change", () => choose("order", checkedValue("order")));
  $("experts").addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip) return;
    const expert = Number(chip.dataset.expert);
    state.only = state.only === expert ? null : expert;
    paintOnly();
  });
  $("text").style.setProperty("--reader-height", `${Math.max(430, Math.min(640, 100 + 32 * D.text.experts))}px`);
  watchTokens();
  drawMatrices();
  choose("text", 0);
  choose("layer", D.text.first_layer);
}

watchTheme();
drawScales();
drawHeader();
drawLearning();
drawLoads();
drawText();
