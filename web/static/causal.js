// The causal page: each view draws the rows that its command prints.
import { compute, computing } from "./jobs.js";
import { drawTable, element, scrolling, visible } from "./tokens.js";

const form = document.querySelector("[data-causal]");
const output = document.querySelector("[data-output]");
const { operation } = output.dataset;
const given = JSON.parse(output.dataset.arguments);

const show = computing(form, async (state) => {
  const result = await compute(operation, given, state);
  const notes = [...result.notes, result.more].filter(Boolean);
  output.replaceChildren(VIEWS[form.dataset.causal](result.rows), ...notes.map((note) => element("p", { class: "note" }, note)));
});

// The page of an answer has an address, so another prompt is another page.
if (form.elements.prompt.value && !form.querySelector("[type=submit]").disabled) show();

const code = (text) => element("code", {}, visible(text));

function shaded(share, ...parts) {
  const cell = element("td", { class: "cell" }, ...parts);
  cell.style.setProperty("--a", Math.max(0, Math.min(1, share)).toFixed(3));
  return cell;
}

// Columns are tokens, rows are layers, the last on top; a cell shows the likeliest token, darker where it is likelier.
function drawLens(rows) {
  const sites = [...new Set(rows.map((row) => row.site))].reverse();
  const places = [...new Map(rows.map((row) => [row.position, row.token]))];
  const cells = new Map(rows.map((row) => [`${row.site} ${row.position}`, row]));
  const head = element("tr", {}, element("th", { scope: "col" }, "site"), ...places.map(([, token]) => element("th", { scope: "col" }, code(token))));
  const body = sites.map((site) =>
    element("tr", {}, element("th", { scope: "row" }, site), ...places.map(([place]) => lensCell(cells.get(`${site} ${place}`)))),
  );
  return scrolling(element("table", { class: "grid-table" }, element("thead", {}, head), element("tbody", {}, ...body)));
}

function lensCell(row) {
  const [best] = row.top;
  const cell = shaded(best.probability, code(best.token));
  const others = row.top.map((top) => `${visible(top.token)} ${top.probability}`).join("\n");
  cell.title = `${row.site}, ${visible(row.token)}\n${others}\nKL to the end ${row.kl}\n${visible(row.target)}: rank ${row.rank}, probability ${row.probability}`;
  return cell;
}

// Bars from zero, to the left below it.
function drawBars(rows, header) {
  const top = Math.max(1e-9, ...rows.map((row) => Math.abs(row.value)));
  const made = drawTable([...header, "", "value"], rows.map((row) => [...row.names, signed(row.value / top), row.value]));
  return made;
}

function signed(share) {
  const bar = element("span", { class: "signed" }, element("i", { class: share < 0 ? "below" : "above" }));
  bar.style.setProperty("--share", Math.abs(share).toFixed(3));
  return bar;
}

const drawParts = (rows) =>
  drawBars(rows.map((row) => ({ value: row.value, names: [code(row.component)] })), ["part"]);

function drawInputs(rows) {
  return element("div", {}, ...rows.map((row) => drawBars(
    row.tokens.map((token, place) => ({ value: row.values[place], names: [String(place), code(token)] })), ["", "token"])));
}

function drawAttention(rows) {
  const head = element("tr", {}, element("th", { scope: "col" }, "from"), ...rows.map((row) => element("th", { scope: "col" }, code(row.token))));
  const body = rows.map((row) =>
    element("tr", {}, element("th", { scope: "row" }, code(row.token)), ...rows.map((key, place) => {
      const weight = row.attention[place];
      if (weight === undefined) return element("td");
      const cell = shaded(weight, weight >= 0.1 ? weight.toFixed(2) : "");
      cell.title = `${visible(row.token)} attends to ${visible(key.token)}: ${weight}`;
      return cell;
    })),
  );
  return scrolling(element("table", { class: "grid-table" }, element("thead", {}, head), element("tbody", {}, ...body)));
}

function drawHeads(rows) {
  return drawTable(["kind", "head", "share of attention", "n"], rows.map((row) => [row.kind, code(row.head), row.score, row.n]));
}

function drawRun(rows) {
  return element("div", {}, ...rows.map(drawNext));
}

function drawNext(row) {
  const edited = row.edits.length > 0;
  const next = row.next.map((token) => [code(token.token), token.before, ...(edited ? [token.after] : [])]);
  const measures = Object.entries(row.measures).map(([name, value]) => [name.replaceAll("_", " "), value.before, value.after]);
  const edits = row.edits.map((edit) => [code(edit.edit), edit.fired, edit.max_change]);
  const controls = row.controls.map((rank) => [rank.controls, rank.percentile, rank.p]);
  return element(
    "div",
    {},
    drawTable(["next token", "probability", ...(edited ? ["after the edit"] : [])], next),
    ...titled("Measures", ["", "before", "after"], measures),
    ...titled("What the edits did", ["edit", "fired", "largest change"], edits),
    ...titled("Among its controls, by KL", ["control", "percentile", "p"], controls),
  );
}

const titled = (title, header, rows) => (rows.length ? [element("h3", {}, title), drawTable(header, rows)] : []);

const VIEWS = { lens: drawLens, attribute: drawParts, inputs: drawInputs, attention: drawAttention, heads: drawHeads, run: drawRun };
