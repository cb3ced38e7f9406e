// Tokens of the reader's own text, each with what was measured and what was predicted there.

const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍" };

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A token on one line: what does not print is spelled out, as the server does, and nothing but spaces is told by signs.
export function visible(text) {
  if (/^ +$/.test(text)) return text.replaceAll(" ", "␣");
  return Array.from(text, (c) => SIGNS[c] ?? (/[\p{C}\p{Zl}\p{Zp}]/u.test(c) ? spell(c) : c)).join("");
}

function spell(character) {
  const code = character.codePointAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

// A description, in which tokens stand in backticks.
export function described(text) {
  return element("span", {}, ...text.split("`").map((piece, place) => (place % 2 ? element("code", {}, visible(piece)) : piece)));
}

// A name in words, as templates write it.
export const inWords = (name) => name.replaceAll("_", " ").replace(/^kl\b/, "KL");

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size && size < 0.001) return value.toPrecision(2);
  return size >= 100 ? value.toFixed(0) : value.toFixed(3);
}

// One text as a line of tokens over bars: `row` is {tokens, actual, predicted}; `onPick` hears of a clicked token.
export function drawTokens(row, { onPick = null, chosen = null } = {}) {
  const top = Math.max(1e-9, ...row.actual.map(Math.abs), ...(row.predicted ?? []).map(Math.abs));
  const line = element("div", { class: "tokens" });
  row.tokens.forEach((token, place) => {
    const guess = row.predicted?.[place] ?? null;
    const words = `${place}: actual ${row.actual[place]}` + (row.predicted ? `, predicted ${guess ?? "–"}` : "");
    const tag = onPick ? "button" : "span";
    const cell = element(
      tag,
      { class: "token", title: words, type: onPick && "button", "aria-pressed": onPick && String(place === chosen) },
      element("span", { class: "text" }, visible(token)),
      bar("actual", row.actual[place] / top),
      row.predicted ? bar("predicted", guess === null ? 0 : guess / top) : null,
    );
    cell.style.setProperty("--a", Math.max(0, row.actual[place] / top).toFixed(3));
    if (onPick) cell.addEventListener("click", () => onPick(place));
    line.append(cell);
  });
  return line;
}

function bar(kind, share) {
  const made = element("i", { class: `amount ${kind}` });
  made.style.setProperty("--share", Math.max(0, Math.min(1, share)).toFixed(3));
  return made;
}

// What may be broader than the page; where it is, Tab reaches it and the arrow keys move it, at first from its `middle`.
export function scrolling(inner, { middle = false } = {}) {
  const host = element("div", { class: "wide" }, inner);
  const settle = () => {
    const hidden = host.scrollWidth - host.clientWidth;
    if (hidden <= 0) host.removeAttribute("tabindex");
    else if (host.tabIndex < 0) {
      host.tabIndex = 0;
      if (middle) host.scrollLeft = hidden / 2;
    }
  };
  const sizes = new ResizeObserver(settle);
  for (const part of [host, inner]) sizes.observe(part);
  return host;
}

// A table; cells are text or elements, numbers stand on the right.
export function drawTable(header, rows, { wide = false } = {}) {
  const isNumber = (cell) => typeof cell === "number" || cell?.classList?.contains("number");
  const kinds = header.map((_, place) => (rows.some((row) => isNumber(row[place])) ? "number" : null));
  const names = header.map((name, place) => element("th", { scope: "col", class: kinds[place] }, name));
  const head = element("thead", {}, element("tr", {}, ...names));
  const body = element("tbody");
  for (const row of rows) {
    body.append(
      element("tr", {}, ...row.map((cell, place) => drawCell(cell, kinds[place]))),
    );
  }
  return scrolling(element("table", { class: wide ? null : "compact" }, head, body));
}

// A number is rounded to be read; where the pointer rests it stands as it came.
function drawCell(cell, kind) {
  if (typeof cell !== "number") return element("td", { class: kind }, cell ?? "–");
  return element("td", { class: "number", title: String(cell) }, number(cell));
}
