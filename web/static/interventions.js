// What pages of interventions share: their rows are computed once the page is there, and drawn; and shapes of pictures.
import { compute, computing } from "./jobs.js";
import { element } from "./tokens.js";

// `draw` gets the rows and the arguments that they were asked for with.
export function show(draw) {
  const form = document.querySelector("[data-intervention]");
  const output = document.querySelector("[data-output]");
  const given = JSON.parse(output.dataset.arguments);
  const go = computing(form, async (state) => {
    const result = await compute(output.dataset.operation, given, state);
    const notes = [...result.notes, result.more].filter(Boolean);
    output.replaceChildren(draw(result.rows, given), ...notes.map((note) => element("p", { class: "note" }, note)));
  });
  if ("asked" in output.dataset && !form.querySelector("[type=submit]").disabled) go();
}

export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// No number says -0.00.
export const rounded = (value, digits = 2) => (Math.abs(value) < 0.5 / 10 ** digits ? 0 : value).toFixed(digits);

// A number with its interval, as the commands print them; where the pointer rests they stand as they came.
export function spanned(value, low, high, digits = 2) {
  if (value === null || value === undefined) return element("span", {}, "–");
  const ends = low === null || low === undefined ? "" : ` [${rounded(low, digits)}, ${rounded(high, digits)}]`;
  const whole = low === null || low === undefined ? String(value) : `${value} [${low}, ${high}]`;
  return element("span", { class: "number", title: whole }, rounded(value, digits) + ends);
}

export const RANKS = "Percentile: how far the effect goes beside those of random directions of the same norm; where it is not near 100, a random push does as much.";
export const rankOf = ({ percentile }) => (percentile === null ? null : element("span", { class: "number", title: String(percentile) }, percentile.toFixed(0)));

export const chapter = (title, ...parts) => element("section", {}, element("h2", {}, title), ...parts);
