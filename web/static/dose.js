// The page of dose and response: a curve for each readout over the strengths, what it costs elsewhere, and what is written.
import { RANKS, chapter, rankOf, shape, show } from "./interventions.js";
import { drawTable, element, inWords, visible } from "./tokens.js";

const WIDE = 420, HIGH = 220, LEFT = 64, RIGHT = 14, TOP = 14, BOTTOM = 44;

function draw(rows, given) {
  const readouts = [...new Set(rows.map((row) => row.readout))];
  const curves = readouts.map((name) => rows.filter((row) => row.readout === name));
  const [first] = curves;
  const strengths = first.map((row) => row.strength);
  const panels = curves.map((curve) => panel(
    inWords(curve[0].readout), strengths,
    [{ name: "at the next token", values: curve.map((row) => row.response), told: curve.map(tellRank) }],
    { plain: curve[0].response - curve[0].effect },
  ));
  const elsewhere = panel("on unrelated text, nats per token", strengths, [
    { name: "KL", values: first.map((row) => row.kl) },
    { name: "loss", values: first.map((row) => row.loss) },
  ]);
  return element("div", {}, element("div", { class: "panels" }, ...panels, elsewhere), element("p", { class: "note" }, "Dashed: without the edit. Point at a dot to read it to the last digit."), ...numbers(curves), written(first, given));
}

const tellRank = (row) => (row.percentile === null ? "" : `; percentile ${row.percentile.toFixed(0)} among random directions`);

// Points that are equally far apart in round numbers.
function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, at) => (first + at) * step);
}

const short = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

function panel(title, strengths, series, { plain = null } = {}) {
  const values = [...series.flatMap((one) => one.values), ...(plain === null ? [] : [plain])];
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-9) [low, high] = [low - 1, high + 1];
  const across = scale(Math.min(...strengths), Math.max(...strengths), LEFT, WIDE - RIGHT);
  const up = scale(low, high, HIGH - BOTTOM, TOP);
  const lines = ticks(low, high).flatMap((tick) => [
    shape("line", { x1: LEFT, x2: WIDE - RIGHT, y1: up(tick), y2: up(tick), class: "grid" }),
    shape("text", { x: LEFT - 6, y: up(tick) + 4, "text-anchor": "end" }, short(tick)),
  ]);
  const marks = ticks(Math.min(...strengths), Math.max(...strengths), 8).map((tick) =>
    shape("text", { x: across(tick), y: HIGH - BOTTOM + 18, "text-anchor": "middle" }, short(tick)));
  const zero = Math.min(...strengths) <= 0 && Math.max(...strengths) >= 0
    ? shape("line", { x1: across(0), x2: across(0), y1: TOP, y2: HIGH - BOTTOM, class: "zero" }) : null;
  const without = plain === null ? null : shape("g", {}, shape("title", {}, `without the edit: ${plain}`),
    shape("line", { x1: LEFT, x2: WIDE - RIGHT, y1: up(plain), y2: up(plain), class: "bar-line" }));
  const drawn = series.flatMap((one, at) => curve(one, at, strengths, across, up));
  const names = series.length > 1 ? series.map((one, at) => shape("text", { x: LEFT + 8 + 70 * at, y: HIGH - 6, class: `name s${at}` }, one.name)) : [];
  const picture = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, width: WIDE, height: HIGH, class: "plot", role: "img", "aria-label": `${title} over strength; its numbers are in the table` },
    ...lines, zero, without, ...drawn, ...marks, ...names,
    shape("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 8, "text-anchor": "middle", class: "axis" }, "strength"));
  return element("figure", {}, element("figcaption", {}, title), picture);
}

const scale = (low, high, first, last) => (value) => first + ((value - low) / (high - low)) * (last - first);

function curve({ name, values, told = [] }, at, strengths, across, up) {
  const points = values.map((value, place) => `${across(strengths[place]).toFixed(1)},${up(value).toFixed(1)}`).join(" ");
  const dots = values.map((value, place) => shape("g", { class: `dot s${at}` },
    shape("title", {}, `${name}, strength ${strengths[place]}: ${value}${told[place] ?? ""}`),
    shape("circle", { cx: across(strengths[place]), cy: up(value), r: 4 })));
  return [shape("polyline", { points, class: `series s${at}` }), ...dots];
}

function numbers(curves) {
  const [first] = curves;
  const header = ["strength", ...curves.flatMap(([row]) => [inWords(row.readout), "percentile"]), "KL elsewhere", "loss elsewhere", "largest change"];
  const lines = first.map((row, at) => [
    element("span", { class: "strength-of" }, String(row.strength)),
    ...curves.flatMap((curve) => [curve[at].response, rankOf(curve[at])]),
    row.kl, row.loss, row.max_change,
  ]);
  const table = drawTable(header, lines, { wide: true });
  table.querySelector("table").classList.add("doses");
  return [chapter("Numbers", element("p", { class: "note" }, RANKS, " Elsewhere is unrelated text: what steering costs there, in nats per token."), table)];
}

function written(curve, given) {
  if (!curve[0].texts.length) return null;
  const lines = curve.map((row) => [String(row.strength), element("code", {}, visible(row.texts[0]))]);
  return chapter("What is written", element("p", { class: "note" }, "After ", element("code", {}, visible(given.prompts[0])), ":"), drawTable(["strength", "text"], lines, { wide: true }));
}

// What there is to run is known beforehand; how long that takes is known once it runs.
const WINDOW = 64;
const DICTIONARY = 4; // passes that tell how well a dictionary rebuilds the unrelated text
const form = document.querySelector("[data-intervention]");
const cost = form.querySelector("[data-cost]");

function tellCost() {
  const [controls, rows, tokens] = ["controls", "text_rows", "tokens"].map((name) => Number(form.elements[name].value));
  const strengths = new Set(form.elements.strengths.value.split(",").map(Number)).size;
  const written = tokens ? `, and writing ${tokens} tokens ${strengths} times` : "";
  const passes = 1 + strengths + (form.elements.edit.value.includes("@") ? DICTIONARY : 0);
  const runs = [1 + strengths * (1 + controls), passes * rows * WINDOW].map((count) => count.toLocaleString("en"));
  cost.textContent = `To run: the prompt ${runs[0]} times, ${runs[1]} tokens of unrelated text (${rows} rows of ${WINDOW} tokens, ${passes} times)${written}. A large model takes minutes; how long is told within seconds, and fewer strengths, rows or random directions take less.`;
}

form.addEventListener("input", tellCost);
tellCost();
show(draw);
