// A map under the pointer or the arrow keys: says what the nearest point is, and opens it. Without it the picture stays.
import { described } from "./tokens.js";

const figure = document.querySelector("[data-map]");
const picture = figure.querySelector("svg");
const tip = figure.querySelector(".tip");
const REACH = 14; // how far from the pointer a point may be, in units of the picture
const CELL = 2 * REACH;

const address = new URL(location.href);
address.searchParams.set("format", "json");
const { map } = await (await fetch(address)).json();
const { points, view } = map;
const xs = points.x.map((x) => view.left + view.scale * x);
const ys = points.y.map((y) => view.top - view.scale * y);
const cells = new Map();
xs.forEach((x, n) => {
  const key = cellOf(x, ys[n]);
  if (cells.has(key)) cells.get(key).push(n);
  else cells.set(key, [n]);
});
const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
ring.setAttribute("class", "picked");
ring.setAttribute("r", "7");
const marked = picture.querySelector(".marked");
const MOST = 64; // how many times larger a part of the map may be
let picked = null;
let zoom = 1;

function cellOf(x, y) {
  return `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
}

function nearest(x, y) {
  let best = null, least = (REACH / zoom) ** 2;
  for (const dx of [-CELL, 0, CELL]) {
    for (const dy of [-CELL, 0, CELL]) {
      for (const n of cells.get(cellOf(x + dx, y + dy)) ?? []) {
        const distance = (xs[n] - x) ** 2 + (ys[n] - y) ** 2;
        if (distance < least) [best, least] = [n, distance];
      }
    }
  }
  return best;
}

// The nearest point of the quarter that an arrow points to.
function towards([dx, dy]) {
  if (picked === null) return map.marked ?? nearestTo(view.width / 2, view.height / 2);
  let best = picked, least = Infinity;
  xs.forEach((x, n) => {
    const along = (x - xs[picked]) * dx + (ys[n] - ys[picked]) * dy;
    const aside = Math.abs((x - xs[picked]) * dy) + Math.abs((ys[n] - ys[picked]) * dx);
    const distance = along + 2 * aside;
    if (along > 0 && aside <= along && distance < least) [best, least] = [n, distance];
  });
  return best;
}

function nearestTo(x, y) {
  let best = null, least = Infinity;
  xs.forEach((own, n) => {
    const distance = (own - x) ** 2 + (ys[n] - y) ** 2;
    if (distance < least) [best, least] = [n, distance];
  });
  return best;
}

// Shows a part of the map, around the picked point where there is one.
function look(times) {
  zoom = Math.min(MOST, Math.max(1, times));
  const [x, y] = picked === null ? [view.width / 2, view.height / 2] : [xs[picked], ys[picked]];
  const [width, height] = [view.width / zoom, view.height / zoom];
  const left = Math.min(Math.max(0, x - width / 2), view.width - width);
  const top = Math.min(Math.max(0, y - height / 2), view.height - height);
  picture.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
  ring.setAttribute("r", String(7 / zoom));
  marked?.setAttribute("r", String(9 / zoom));
}

function isSeen(n) {
  const { x, y, width, height } = picture.viewBox.baseVal;
  return xs[n] >= x && xs[n] <= x + width && ys[n] >= y && ys[n] <= y + height;
}

const link = (n) => (points.index ? `/feature/${encodeURI(`${map.source}:${points.index[n]}`)}` : null);

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tell(n) {
  if (!points.index) {
    const text = element("p", points.before[n].slice(-40));
    text.append(element("mark", points.token[n]));
    return [element("span", points.kind[n], "quiet"), text];
  }
  const own = element("a", `${map.source}:${points.index[n]}`, "address");
  own.href = link(n);
  const score = points.score[n] === null ? "" : ` ${points.score[n].toFixed(2)}`;
  const status = element("span", points.status[n].replace("_", " ") + score, "quiet");
  if (!points.headline[n]) return [own, status];
  const text = element("p", "");
  text.append(described(points.headline[n]));
  return [own, status, text];
}

function pick(n) {
  if (n === picked) return;
  picked = n;
  tip.hidden = n === null;
  if (n === null) {
    ring.remove();
    return;
  }
  ring.setAttribute("cx", xs[n]);
  ring.setAttribute("cy", ys[n]);
  picture.append(ring);
  if (!isSeen(n)) look(zoom);
  tip.replaceChildren(...tell(n));
}

function under(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
  return nearest(at.x, at.y);
}

picture.addEventListener("pointermove", (event) => {
  const near = under(event);
  if (near !== null) pick(near);
});
// A finger points first, and opens by the link that then appears.
let finger = false;
picture.addEventListener("pointerdown", (event) => { finger = event.pointerType === "touch"; });
picture.addEventListener("click", (event) => {
  const near = under(event);
  pick(near);
  if (near !== null && !finger && link(near)) location.href = link(near);
});
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
figure.addEventListener("keydown", (event) => {
  if (event.target !== figure || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in STEPS && xs.length) pick(towards(STEPS[event.key]));
  else if (event.key === "Enter" && picked !== null && link(picked)) location.href = link(picked);
  else if (event.key === "Escape") pick(null);
  else if (event.key === "+") look(2 * zoom);
  else if (event.key === "-") look(zoom / 2);
  else return;
  event.preventDefault();
});
const buttons = figure.querySelector(".zoom");
buttons.hidden = false;
buttons.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) look(zoom * Number(button.dataset.times));
});
figure.dataset.ready = "";
