// Draws charts of losses and expert load with Plotly, in the page's colours.
// A double click shows the whole curves, with the steep beginning that `settledRange` cuts off.
const PLOT = { displayModeBar: false, responsive: true, doubleClick: "autosize" };

function frame(extra) {
  const ink = rgb("var(--soft)"), line = rgb("var(--line)");
  const axis = { gridcolor: line, zeroline: false, linecolor: line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
    margin: { l: 40, r: 62 + 7 * Math.max(...D.runs.map((run) => run.label.length)), t: 8, b: 34 }, hovermode: "x unified",
    hoverlabel: { bgcolor: rgb("var(--card)"), bordercolor: rgb("var(--faint)"), font: { color: rgb("var(--ink)"), size: 12.5 } },
    ...extra, xaxis: { ...axis, showgrid: false, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

// ---- losses

const axisName = () => document.querySelector("#axis input:checked").value;
const colourOf = (run) => rgb(run.who === "twin" ? "var(--twin)" : "var(--moe)");

/**
 * The range of the y axis, without the steep beginning of the lines: from the lowest value to the
 * highest value that any line has at a tenth of the x axis. It is null, for all values, if every
 * line has fewer than 15 points, or if the range would be empty.
 */
function settledRange(lines, faint = lines) {
  if (Math.max(...lines.map(([x]) => x.length)) < 15) return null;
  const end = Math.max(...lines.flatMap(([x]) => x));
  const tops = lines.map(([x, y]) => y[Math.max(0, x.findIndex((at) => at >= end / 10))]);
  const values = [...lines, ...faint].flatMap(([, y]) => y).filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...tops.filter((value) => value != null));
  if (!(high > low)) return null;
  return [low - 0.06 * (high - low), high + 0.06 * (high - low)];
}

/** For each line a label beside its end, with its last value; two labels never touch each other. */
function endLabels(ends, range) {
  const sorted = [...ends].sort((a, b) => a.y - b.y);
  const near = sorted.length === 2 && range && sorted[1].y - sorted[0].y < 0.085 * (range[1] - range[0]);
  return sorted.map(({ x, y, run }, place) => ({
    x, y, text: `<b>${run.label}</b> ${fixed(y, 3)}`, showarrow: false, xanchor: "left", xshift: 8,
    yshift: near ? (place ? 9 : -9) : 0, font: { color: colourOf(run), size: 13 },
  }));
}

function timeTicks(axis) {
  const end = Math.max(0, ...D.runs.flatMap((run) => run.curve[axis]));
  const range = end ? [0, end] : undefined;
  return axis === "tokens" ? { range, title: { text: "training tokens", standoff: 6, font: { size: 12.5 } }, tickformat: "~s", nticks: 6 }
    : { range, title: { text: "training time, seconds", standoff: 6, font: { size: 12.5 } }, nticks: 6 };
}

/**
 * The tokens or seconds after which the run reached the twin's last value (`run`), and after which
 * the twin reached it (`twin`). It is null unless the run needed over 5% less than the twin, and
 * both were last evaluated after equally many tokens.
 */
function soonerBy(axis) {
  const sooner = D.comparison?.sooner?.[axis];
  const level = D.runs.every((run) => run.bits_tokens === D.comparison?.tokens);
  return sooner && level && sooner.run < 0.95 * sooner.twin ? sooner : null;
}

function drawHeldout() {
  const axis = axisName();
  const runs = D.runs.filter((run) => run.curve.bits.length);
  $("heldout").hidden = runs.length === 0;
  if (!runs.length) return;
  const x = (run) => run.curve[axis === "tokens" ? "eval_tokens" : "eval_seconds"];
  const range = settledRange(runs.map((run) => [x(run), run.curve.bits]));
  const traces = [...runs].reverse().map((run) => ({
    x: x(run), y: run.curve.bits, name: run.label, mode: "lines+markers",
    line: { color: colourOf(run), width: 2.4 }, marker: { size: 5 }, hovertemplate: "%{y:.3f}",
  }));
  const annotations = endLabels(runs.map((run) => ({ x: x(run).at(-1), y: run.curve.bits.at(-1), run })), range);
  const sooner = soonerBy(axis);
  $("heldout-note").textContent = sooner
    ? `${D.runs[0].label} came to the twin's last value with ${percent(1 - sooner.run / sooner.twin)} ${axis === "tokens" ? "fewer tokens" : "less time"}`
    : "lower is better";
  const level = { y0: D.comparison?.twin, y1: D.comparison?.twin, line: { color: rgb("var(--ink)"), width: 1.4, dash: "dot" } };
  const shapes = sooner ? [{ type: "line", x0: sooner.run, x1: sooner.twin, ...level }] : [];
  Plotly.react("heldout", traces, frame({ xaxis: timeTicks(axis), yaxis: { range, nticks: 6 }, annotations, shapes }), PLOT);
}

function drawTraining() {
  const axis = axisName();
  const x = (run) => run.curve[axis];
  const range = settledRange(D.runs.map((run) => [x(run), run.curve.mean]), D.runs.map((run) => [x(run), run.curve.loss]));
  const raw = D.runs.map((run) => ({
    x: x(run), y: run.curve.loss, mode: "lines", line: { color: colourOf(run), width: 1 }, opacity: 0.22, hoverinfo: "skip",
  }));
  const mean = D.runs.map((run) => ({
    x: x(run), y: run.curve.mean, name: run.label, mode: run.curve.mean.length > 1 ? "lines" : "markers",
    line: { color: colourOf(run), width: 2.4 }, hovertemplate: "%{y:.3f}",
  }));
  const ends = D.runs.filter((run) => run.curve.mean.length).map((run) => ({ x: x(run).at(-1), y: run.curve.mean.at(-1), run }));
  const layout = frame({ xaxis: timeTicks(axis), yaxis: { range, nticks: 6 }, annotations: endLabels(ends, range) });
  Plotly.react("training", [...raw.reverse(), ...mean.reverse()], layout, PLOT);
}

function drawLearning() {
  const [run, twin] = D.runs;
  const fair = twin && twin.label === "dense twin" && Math.abs(twin.active / run.active - 1) < 0.05;
  $("learning-lead").textContent = fair
    ? `${run.label} and its dense twin: trained on the same text, with about as many active parameters.`
    : twin ? `${run.label} and ${twin.label}, trained on the same text. Their active parameters differ: compare with care.`
    : "No twin was found beside this run, so there is nothing to compare with.";
  $("smoothing").textContent = D.smoothing > 1 ? `nats a token; bold: mean of ${D.smoothing} log lines` : "nats a token";
  $("axis").hidden = !D.runs.every((one) => one.curve.seconds.length && !one.curve.seconds.includes(null));
  $("axis").addEventListener("change", () => { drawHeldout(); drawTraining(); });
  const draw = () => { drawHeldout(); drawTraining(); };
  redraws.push(draw);
  draw();
}

// ---- load

const ticks = (tickvals, text) => ({ tickvals, ticktext: tickvals.map(text) });
const LOAD_STOPS = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1];

function drawLoad(one, chart) {
  const experts = one.relative.length;
  const log2 = one.relative.map((row) => row.map((ratio) => Math.max(-FULL, Math.min(FULL, Math.log2(Math.max(ratio, 1e-9))))));
  const steps = D.load.last.map((last, x) => (D.load.first[x] === last ? `step ${last}` : `steps ${D.load.first[x]}–${last}`));
  const colours = LOAD_STOPS.map((stop) => [stop, rgb(ratioColour(2 ** (FULL * (2 * stop - 1))))]);
  const heat = {
    type: "heatmap", x: D.load.last, z: log2, zmin: -FULL, zmax: FULL, showscale: false, colorscale: colours,
    customdata: one.relative.map((row) => row.map((ratio, x) => [ratio.toFixed(2), steps[x]])),
    hovertemplate: "%{customdata[1]}<br>E%{y}: %{customdata[0]}× an even share<extra></extra>",
  };
  const busiest = {
    x: D.load.last, y: one.max, yaxis: "y2", mode: D.load.last.length > 1 ? "lines" : "markers", line: { color: rgb("var(--over)"), width: 1.8 },
    customdata: steps, hovertemplate: "%{customdata}<br>busiest: %{y:.2f}× the mean<extra></extra>",
  };
  // Each row of the heat map begins with the colour that its expert has in the coloured text.
  const strip = one.relative.map((_, expert) => ({
    type: "rect", xref: "paper", x0: -0.028, x1: -0.008, y0: expert - 0.5, y1: expert + 0.5, line: { width: 0 }, fillcolor: rgb(`var(--e${expert})`),
  }));
  // The upper tick is at most 70% of the axis's end, so that its label is not cut off.
  const power = 2 ** Math.floor(Math.log2(0.7 * D.load.top));
  const layout = frame({
    hovermode: "closest", margin: { l: 24 + 7 * `E${experts - 1}`.length, r: 8, t: 6, b: 30 }, shapes: strip,
    xaxis: { fixedrange: true, nticks: 5, tickformat: "~s", title: { text: "step", standoff: 2, font: { size: 12.5 } }, showline: false, zeroline: false },
    yaxis: { fixedrange: true, domain: [0, 0.7], autorange: "reversed", showgrid: false, ticklabelstandoff: 8, ...ticks([...new Set([0, Math.floor(experts / 2), experts - 1])], (e) => `E${e}`), automargin: false },
    // The axis is logarithmic, as the colours are, so that later differences stay visible beside an
    // early peak.
    yaxis2: { domain: [0.76, 1], type: "log", range: [0, Math.log10(D.load.top)], ...ticks([...new Set([1, power])], (v) => `${v}×`), gridcolor: rgb("var(--line)"), zeroline: false, fixedrange: true, anchor: "x" },
  });
  Plotly.react(chart, [heat, busiest], layout, PLOT);
}

function judged(one) {
  if (one.collapsed) return el("p", { class: "flag" }, `collapsed: the busiest ${D.load.top_k} take over 90%`);
  if (one.starving.length) return el("p", { class: "flag" }, `starving: ${one.starving.map((e) => `E${e}`).join(", ")}`);
  return el("p", { class: "flag fine" }, "no expert starves");
}

function drawLoads() {
  $("load").hidden = !D.load;
  if (!D.load) return;
  const rows = Math.max(...D.load.layers.map((one) => one.relative.length));
  $("loads").style.setProperty("--chart-height", `${Math.round(Math.min(330, 120 + Math.max(70, 7 * rows)))}px`);
  const charts = D.load.layers.map((one) => {
    const chart = el("div", { class: "chart" });
    $("loads").append(el("div", { class: "panel" },
      el("h3", {}, `Layer ${one.layer}`, el("span", { class: "note" }, `max/mean now ${fixed(one.recent, 2)}`)), judged(one), chart));
    return chart;
  });
  const draw = () => D.load.layers.forEach((one, index) => drawLoad(one, charts[index]));
  redraws.push(draw);
  draw();
}
