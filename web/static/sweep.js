// The page of a sweep: a table for each direction, whose cells are coloured by how much they recover.
import { chapter, rounded, show } from "./interventions.js";
import { element, inWords, number, visible } from "./tokens.js";

const AXES = ["site", "unit", "position", "edit"];
const TITLES = { denoise: "restored", noise: "lost" };
const MEANING = {
  denoise: "Clean values are put into the corrupted prompt. 1: this part alone brings the behaviour back; 0: it brings back nothing.",
  noise: "Corrupted values are put into the clean prompt. 1: without this part the behaviour is gone; 0: nothing is lost.",
};

function draw(rows) {
  const axes = AXES.filter((name) => name in rows[0]);
  const directions = rows[0].effects.map((effect) => effect.direction);
  const values = rows.flatMap((row) => row.effects.map((effect) => effect.value)).filter((value) => value !== null);
  const most = Math.max(1e-9, ...values.map(Math.abs));
  const parts = directions.map((direction, at) =>
    chapter(`Share of the ${inWords(rows[0].effects[at].metric)} ${TITLES[direction]} (${direction})`,
      element("p", { class: "note" }, MEANING[direction]), ...heatMap(rows, axes, at, most)));
  return element("div", {}, legend(most), ...parts);
}

// Labels in the order of the model: the number in a name counts as one.
const inOrder = (labels) => [...new Set(labels)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));

// Sites are rows, the last layer on top, as the prompt is read from below.
function heatMap(rows, axes, at, most) {
  const [down, across] = axes.length > 1 ? axes : [axes[0], null];
  const lines = inOrder(rows.map((row) => row[down]));
  if (down === "site") lines.reverse();
  const columns = across === null ? [""] : inOrder(rows.map((row) => row[across]));
  const cells = new Map(rows.map((row) => [JSON.stringify([row[down], across === null ? "" : row[across]]), row]));
  const told = element("p", { class: "cell-told", "aria-live": "polite" }, "Point at a cell, or reach it by Tab and the arrow keys, to read it here to the last digit.");
  const head = element("tr", {}, element("th", { scope: "col" }, across === null ? down : `${down}, by ${across}`), ...columns.map((name) => element("th", { scope: "col" }, label(name, across))));
  const body = lines.map((line) => element("tr", {}, element("th", { scope: "row" }, line), ...columns.map((name) => {
    const row = cells.get(JSON.stringify([line, name]));
    return row === undefined ? element("td") : heatCell(row, row.effects[at], most, told);
  })));
  const table = element("table", { class: "grid-table heat-map" }, element("thead", {}, head), element("tbody", {}, ...body));
  walkable(table);
  return [element("div", { class: "wide" }, table), told];
}

// A position is its number and its token.
function label(name, axis) {
  if (axis !== "position") return name;
  const [, place, token] = name.match(/^(\d+)(?: (.*))?$/s) ?? [null, name, undefined];
  return element("span", {}, element("small", {}, place), token === undefined ? "" : element("code", {}, visible(unquoted(token))));
}

const unquoted = (token) => token.slice(1, -1);

function heatCell(row, effect, most, told) {
  const { value } = effect;
  const cell = element("td", { class: `heat ${value === null ? "withheld" : value < 0 ? "below" : "above"}`, tabindex: "-1" }, value === null ? "–" : rounded(value));
  cell.style.setProperty("--a", value === null ? "0" : (Math.abs(value) / most).toFixed(3));
  const interval = effect.ci_low === null ? "" : ` [${effect.ci_low}, ${effect.ci_high}]`;
  const change = Object.values(row.max_change).map(number).join(", ");
  const words = value === null
    ? `${row.edit}: ${effect.reason}`
    : `${row.edit}: ${value}${interval} of ${inWords(effect.metric)}, ${effect.n} pair${effect.n === 1 ? "" : "s"}, largest change ${change}`;
  cell.title = words;
  const tell = () => (told.textContent = words);
  cell.addEventListener("pointerenter", tell);
  cell.addEventListener("focus", tell);
  return cell;
}

// One cell of a table can be reached by Tab, the others from it by the arrow keys.
function walkable(table) {
  const grid = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  if (grid[0]?.[0]) grid[0][0].tabIndex = 0;
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  table.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const line = grid.findIndex((row) => row.includes(event.target));
    if (!step || line < 0) return;
    event.preventDefault();
    const next = grid[line + step[0]]?.[grid[line].indexOf(event.target) + step[1]];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// Colours are symmetric about 0, the same for both directions.
function legend(most) {
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
  const swatches = steps.map((step) => {
    const swatch = element("span", { class: `heat ${step < 0 ? "below" : "above"}` }, Math.abs(step) === 1 || step === 0 ? (step * most).toFixed(2) : "");
    swatch.style.setProperty("--a", Math.abs(step).toFixed(2));
    return swatch;
  });
  return element("p", { class: "heat-key" }, element("span", {}, "opposite"), ...swatches, element("span", {}, "restored, or lost; 1 is all of it"));
}

show(draw);
