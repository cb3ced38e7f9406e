// The page of find: the features on a text; a click on a token shows those of it, one on a feature where it fires.
import { compute, computing } from "./jobs.js";
import { described, drawTable, drawTokens, element, inWords, visible } from "./tokens.js";

const form = document.querySelector("[data-find]");
const part = (name) => document.querySelector(`[data-${name}]`);
let shown = null;

const asked = () => {
  const given = { text: form.elements.text.value, count: 30 };
  if (form.elements.against.value) given.against = form.elements.against.value;
  if (form.elements.model) given.model = form.elements.model.value;
  return given;
};

const find = computing(form, async (state, token) => {
  const given = asked();
  if (token !== null) given.token = String(token);
  const result = await compute("find", given, state);
  drawHits(result, given);
  if (!result.rows.length) return;
  if (token === null || shown === null) await trace(state, result.rows[0].feature, token);
  else drawLine(token);
});

const follow = computing(form, (state, feature, token) => trace(state, feature, token));

async function trace(state, feature, token) {
  const result = await compute("try", { feature, texts: [form.elements.text.value] }, state);
  shown = { feature, row: result.rows[0] };
  drawLine(token);
}

function drawLine(token) {
  part("tokens").hidden = false;
  const line = drawTokens(shown.row, { onPick: (place) => choose(place === token ? null : place), chosen: token });
  line.dataset.line = "";
  part("line").replaceWith(line);
  part("tokens-note").replaceChildren("Shaded: ", link(shown.feature), ". A click on a token shows the features that are highest there.");
}

function choose(token) {
  const address = new URL(location);
  token === null ? address.searchParams.delete("token") : address.searchParams.set("token", token);
  history.replaceState(null, "", address);
  find(token);
}

const link = (feature) => element("a", { class: "address", href: `/feature/${encodeURI(feature)}`, "data-open": true }, feature);

const BY_SHARE = "Ranked by the share of their largest activation, times how seldom they are that high in the corpus (“seen on”). A negative tail, with “-” behind its number, has no count of its own.";
const BY_DIFFERENCE = "Ranked by how far apart the texts' highest activations are, in units of the largest.";

function drawHits(result, given) {
  const two = given.against !== undefined;
  const header = two
    ? ["feature", "on the text", "on the other", "apart", "token", "status", "explanation"]
    : ["feature", "activation", "of largest", "seen on", "token", "status", "explanation"];
  const rows = result.rows.map((row) => [
    element("span", { class: "one-line" }, link(row.feature), " ", shade(row.feature), row.name ? element("small", {}, row.name) : null),
    row.activation,
    ...(two ? [row.against, row.difference] : [percent(row.relative), percent(row.share)]),
    element("code", {}, visible(row.token)),
    row.status ? element("span", { class: `badge ${row.status}` }, inWords(row.status)) : "",
    described(row.headline ?? row.explanation ?? ""),
  ]);
  const section = part("hits");
  section.hidden = false;
  part("hits-title").textContent = given.token === undefined ? "Features" : `Features on token ${given.token}`;
  section.replaceChildren(
    part("hits-title"),
    element("p", { class: "note" }, two ? BY_DIFFERENCE : BY_SHARE),
    ...result.notes.map((note) => element("p", { class: "note" }, note)),
    drawTable(header, rows, { wide: true }),
  );
}

function shade(feature) {
  const button = element("button", { type: "button", class: "plain", title: "Where it fires on the text", "aria-label": `Where ${feature} fires` }, "◧");
  const token = new URL(location).searchParams.get("token");
  button.addEventListener("click", () => follow(feature, token === null ? null : Number(token)));
  return button;
}

const percent = (value) => element("span", { title: String(value) }, value === null ? "–" : `${(100 * value).toPrecision(3)}%`);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const address = new URL(form.action);
  for (const [name, value] of new FormData(form)) if (value) address.searchParams.set(name, value);
  history.pushState(null, "", address);
  find(null);
});

if (form.elements.text.value && !form.querySelector("[type=submit]").disabled) {
  const token = form.dataset.token;
  find(token === "" ? null : token);
}
