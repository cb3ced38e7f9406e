// One session as it goes: events come from the server, and with them the report is drawn again by it.
import "./investigations.js";

const session = document.querySelector("[data-session]");
const { session: id, after } = session.dataset;
const log = session.querySelector("[data-log]");
const report = document.querySelector("[data-report]");
const KEPT = 12;
const PAUSE = 700;
let waiting = null;

const source = new EventSource(`/investigations/${id}/events?after=${after}`);
source.addEventListener("standing", (event) => stand(JSON.parse(event.data).standing));
source.addEventListener("journal", (event) => {
  const { line } = JSON.parse(event.data);
  if (line) {
    log.hidden = false;
    const row = document.createElement("li");
    row.textContent = line;
    log.append(row);
    while (log.children.length > KEPT) log.firstElementChild.remove();
  }
  refresh();
});
source.addEventListener("end", () => {
  source.close();
  if (log.children.length) refresh();
});

function stand(now) {
  const badge = session.querySelector("[data-badge]");
  badge.className = `badge ${now}`;
  badge.textContent = now.replace("_", " ");
  for (const form of session.querySelectorAll("[data-when]")) form.hidden = form.dataset.when !== now;
}

// Many events come at once; the report is drawn once for them, and what was open stays open.
function refresh() {
  waiting ??= setTimeout(async () => {
    waiting = null;
    const response = await fetch(`/investigations/${id}?part=report`);
    if (!response.ok) return;
    const open = new Set(Array.from(report.querySelectorAll("details[open]"), name));
    // The server escapes whatever it quotes, and no page runs what is inline.
    report.innerHTML = await response.text();
    for (const details of report.querySelectorAll("details")) details.open = open.has(name(details));
  }, PAUSE);
}

const name = (details) => details.id || details.querySelector("summary").textContent;
