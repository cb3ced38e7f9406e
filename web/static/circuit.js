// The page of a circuit: its nodes by layer, with what proven roles act through; a click on a node cuts it.
import { chapter, shape, show, spanned } from "./interventions.js";
import { compute, computing } from "./jobs.js";
import { drawTable, element, inWords, number, scrolling } from "./tokens.js";

const BOX = 116, GAP = 14, TALL = 40, RISE = 36, SIDE = 56;
const SHARED = ["task", "rows", "clean", "corrupted", "answer", "wrong", "pairs", "model", "metric", "seed", "nodes", "ablation"];

function draw([report], given) {
  if (!report.circuit.length) {
    return element("p", {}, "No circuit was found within the time; what the nodes that were tried do by themselves:", ownEffects(report));
  }
  const cut = new Set();
  const verdict = element("div");
  const status = element("p", { role: "status", class: "job", "data-job": true });
  const nodes = readNodes(report);
  const picture = drawMap(nodes, (node) => toggle(node));
  const asked = Object.fromEntries(SHARED.filter((name) => name in given).map((name) => [name, given[name]]));
  const known = new Map();
  const host = element("form", { hidden: true });
  const place = element("div", {}, host, status);
  const measure = computing(host, async (state) => {
    for (const set of [[], [...cut]]) await measured(set, state);
    drawVerdict(verdict, report, known.get("[]"), known.get(JSON.stringify([...cut])));
  });

  async function measured(set, state) {
    const key = JSON.stringify(set);
    if (!known.has(key)) {
      const { rows } = await compute("cut", { ...asked, circuit: report.circuit, cut: set }, state);
      known.set(key, rows[0]);
    }
  }

  // In the order of the circuit, so that a set has one name.
  function toggle(name) {
    const chosen = new Set(cut);
    if (!chosen.delete(name)) chosen.add(name);
    cut.clear();
    for (const node of report.circuit) if (chosen.has(node)) cut.add(node);
    mark(picture, cut);
    if (cut.size) measure();
    else drawVerdict(verdict, report, null, null);
  }

  drawVerdict(verdict, report, null, null);
  return element("div", {},
    chapter(`A circuit for ${report.task}: ${report.circuit.length} of ${report.nodes.length} nodes`,
      partial(report),
      element("p", { class: "note" }, "Press a node, or several, to cut them and see what is left. A line leads from a node whose role is proven to what it was shown to act through; a node without a proven role has no line upwards. Blue: heads; green: MLPs; violet: others."),
      element("div", { class: "map-and-verdict" },
        scrolling(picture, { middle: true }),
        element("section", { class: "verdict" }, element("h2", {}, "What is left"), verdict, place))),
    chapter("Node by node", element("p", { class: "note" }, "Noise: what is lost of the behaviour where this node alone is corrupted. Denoise: what comes back where it alone is clean. Adds: the most faithfulness it adds to some part of the circuit."), table(report, nodes)),
    algorithm(report),
    element("p", { class: "note" }, cost(report)));
}

function partial(report) {
  return report.unfinished.length ? element("p", { class: "job failed" }, `Partial: stopped before the end of ${report.unfinished.join(", ")}.`) : null;
}

const cost = (report) => `${Object.values(report.passes).reduce((a, b) => a + b, 0).toLocaleString("en")} passes of the model. The search saw ${report.pairs[0]} pairs; the circuit is tested on ${report.held_out ? `${report.pairs[1]} others` : "the same"}.`;

// Everything that is known of each node, in the order of the circuit.
function readNodes(report) {
  const claims = report.roles?.claims ?? [];
  const scores = new Map(report.scores.map((score) => [score.node, score]));
  const adds = new Map((report.evaluation?.minimality ?? []).map((one) => [one.node, one]));
  const backups = new Map(report.backups.map((one) => [one.node, one.nodes]));
  return report.circuit.map((name) => {
    const own = claims.filter((claim) => claim.node === name);
    const proven = own.filter((claim) => claim.status === "proven");
    return { name, ...placeOf(name), score: scores.get(name), adds: adds.get(name), backups: backups.get(name) ?? [], claims: proven.length ? proven : own, proven };
  });
}

function placeOf(name) {
  const [, kind, layer] = name.match(/^([a-z_]+)(?:\.(\d+))?/);
  return { kind: kind === "head" ? "head" : kind.startsWith("mlp") ? "mlp" : "other", layer: Number(layer ?? 0) };
}

const ASIDE = [0, 60, -60, 100, -100, 150, -150, 220, -220, 300, -300];
const STAGE = { head: 0, mlp: 1, other: 2 };

// Rows from below: the prompt, then each layer's heads, its MLP, and what is read after it; the answer on top.
function drawMap(nodes, onPress) {
  const stage = (node) => 3 * node.layer + STAGE[node.kind];
  const rows = [...new Set(nodes.map(stage))].sort((a, b) => a - b).map((at) => nodes.filter((node) => stage(node) === at).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true })));
  const wide = SIDE + Math.max(...rows.map((row) => row.length), 3) * (BOX + GAP);
  const high = (rows.length + 1) * (TALL + RISE) + 30;
  const middle = (SIDE + wide) / 2;
  const top = (at) => high - 30 - (at + 1) * (TALL + RISE) + RISE / 2;
  const places = new Map([["", { x: middle, y: 20 }]]);
  rows.forEach((row, at) => row.forEach((node, number) => {
    const x = middle + (number - (row.length - 1) / 2) * (BOX + GAP);
    places.set(node.name, { x, y: top(at) });
  }));
  const links = nodes.flatMap((node) => node.proven.flatMap((claim) => (claim.through.length ? claim.through : [""]).map((to) => [node.name, to])));
  const unique = [...new Map(links.map((link) => [link.join(" "), link])).values()];
  const names = rows.map((row, at) => shape("text", { x: 4, y: top(at) + TALL / 2 + 4, class: "row-name" }, `layer ${row[0].layer}`));
  const made = shape("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, class: "circuit-map", role: "group", "aria-label": "The circuit, from the prompt below to the answer above" },
    ...unique.filter(([, to]) => places.has(to)).map((link) => drawLink(link, places)),
    ...names,
    shape("text", { x: middle, y: 16, "text-anchor": "middle", class: "end" }, "answer"),
    shape("text", { x: middle, y: high - 8, "text-anchor": "middle", class: "end" }, "prompt"),
    ...nodes.map((node) => drawPart(node, places.get(node.name), onPress)));
  // Smaller than this its words are not read; then it scrolls.
  made.style.minWidth = `${Math.round(0.8 * wide)}px`;
  return made;
}

function drawLink([from, to], places) {
  const start = places.get(from), end = places.get(to);
  const y = to === "" ? end.y : end.y + TALL;
  const bend = (start.y - y) / 2;
  const aside = passBetween(start, { x: end.x, y }, places);
  const words = `${from} acts ${to === "" ? "on the answer" : `through ${to}`}`;
  return shape("path", { d: `M${start.x} ${start.y}C${start.x + aside} ${start.y - bend} ${end.x + aside} ${y + bend} ${end.x} ${y}`, class: "link", "data-from": from, "data-to": to }, shape("title", {}, words));
}

// How far a curve goes aside so that it crosses no node, which would look like its own line.
function passBetween(start, end, places) {
  const bend = (start.y - end.y) / 2;
  const along = Array.from({ length: 19 }, (_, step) => (step + 1) / 20);
  const crosses = (aside) => along.some((t) => {
    const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
    const x = a * start.x + b * (start.x + aside) + c * (end.x + aside) + d * end.x;
    const y = a * start.y + b * (start.y - bend) + c * (end.y + bend) + d * end.y;
    return [...places].some(([name, node]) => name && Math.abs(node.x - x) < BOX / 2 + 3 && y > node.y + 1 && y < node.y + TALL - 1);
  });
  return ASIDE.find((aside) => !crosses(aside)) ?? 0;
}

function drawPart(node, { x, y }, onPress) {
  const does = node.proven.length ? node.proven.map((claim) => claim.role).join(", ") : node.claims.length ? `${node.claims[0].role}?` : "";
  const adds = node.adds ? `, adds ${number(node.adds.value)}` : "";
  const part = shape("g", { class: `part ${node.kind}`, role: "button", tabindex: "0", "aria-pressed": "false", "data-node": node.name, "aria-label": `Cut ${node.name}${does ? `, ${does}` : ""}${adds}` },
    shape("title", {}, `${node.name}${does ? `: ${does}` : ""}${adds}`),
    shape("rect", { x: x - BOX / 2, y, width: BOX, height: TALL, rx: 7 }),
    shape("text", { x, y: y + (does ? 17 : 24), "text-anchor": "middle" }, node.name),
    does ? shape("text", { x, y: y + 32, "text-anchor": "middle", class: "does" }, does.length > 20 ? `${does.slice(0, 19)}…` : does) : null);
  part.addEventListener("click", () => onPress(node.name));
  part.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    onPress(node.name);
  });
  return part;
}

function mark(picture, cut) {
  for (const part of picture.querySelectorAll(".part")) part.setAttribute("aria-pressed", String(cut.has(part.dataset.node)));
  for (const link of picture.querySelectorAll(".link")) link.classList.toggle("off", cut.has(link.dataset.from) || cut.has(link.dataset.to));
}

// Before and after; without a cut what the report says of the whole circuit.
function drawVerdict(place, report, before, after) {
  const evaluation = report.evaluation;
  if (after === null) {
    const whole = evaluation?.faithfulness;
    const lines = whole ? [["circuit alone", effectSpan(whole)], ["model without the circuit", effectSpan(evaluation.ablated)]] : [];
    const drawn = control(evaluation);
    place.replaceChildren(
      lines.length ? drawTable(["faithfulness", `on ${report.pairs[1]} pairs`], lines) : element("p", {}, "The circuit was not tested within its time; press a node to test it without that."),
      ...(drawn ? [drawn] : []));
    return;
  }
  const metric = inWords(before.alone.metric);
  const lines = (name, key) => [[`${name}: faithfulness`, fraction(before[key]), fraction(after[key])], [`${name}: ${metric}`, spanned(before[key].patched), spanned(after[key].patched)]];
  place.replaceChildren(
    element("p", {}, "Cut: ", ...after.cut.flatMap((name) => [element("code", {}, name), " "])),
    drawTable(["", "before", "after"], [...lines("circuit alone", "alone"), ...lines("whole model", "model")]),
    element("p", { class: "note" }, `Means over ${after.alone.n} pairs that the search did ${report.held_out ? "not see" : "see"}; ${metric} is ${number(after.model.clean)} where nothing is cut and ${number(after.model.corrupted)} where all nodes are.`));
}

const fraction = (row) => spanned(row.recovered, row.ci_low, row.ci_high);
const effectSpan = (effect) => spanned(effect.recovered, effect.interval?.[0], effect.interval?.[1]);

function control(evaluation) {
  const drawn = evaluation?.control;
  if (!drawn) return null;
  return element("p", { class: "note" }, `Of ${drawn.faithfulness.length} random circuits of this make-up the highest has ${number(Math.max(...drawn.faithfulness))}; percentile ${drawn.percentile.toFixed(0)}, p = ${drawn.p.toPrecision(2)}.`);
}

const code = (text) => element("code", {}, text);
const alone = (score, direction) => (score ? score[direction].recovered : null);

function table(report, nodes) {
  const header = ["node", "noise", "denoise", "by itself", "adds", ...(report.exact ? ["backed up by"] : []), "role"];
  const lines = nodes.map((node) => [
    code(node.name), spanned(alone(node.score, "noise")), spanned(alone(node.score, "denoise")), node.score?.role ?? "–", spanned(node.adds?.value),
    ...(report.exact ? [node.backups.join(" ") || "–"] : []), report.roles === null ? "–" : role(node)]);
  const made = drawTable(header, lines, { wide: true });
  made.classList.add("by-node");
  return made;
}

function role(node) {
  if (!node.claims.length) return element("span", { class: "quiet" }, "none found");
  return element("span", {}, ...node.claims.map((claim) => element("details", {},
    element("summary", {}, `${claim.role}, ${claim.status}`),
    ...[...claim.pattern, claim.effect].filter(Boolean).map((proof) => element("p", { class: "note" }, proof.what, " ", spanned(proof.value, proof.interval?.[0], proof.interval?.[1]), ` (bar ${proof.bar.toFixed(2)})`)))));
}

function algorithm(report) {
  const told = report.roles?.algorithm ?? [];
  return told.length ? chapter("The algorithm", element("ol", { class: "steps" }, ...told.map((sentence) => element("li", {}, sentence)))) : null;
}

function ownEffects(report) {
  return drawTable(["node", "noise", "denoise"], report.scores.map((score) => [code(score.node), spanned(score.noise.recovered), spanned(score.denoise.recovered)]));
}

show(draw);
