// What is being started is followed until it has begun, and two sessions are chosen to lie side by side.
import { csrf } from "./jobs.js";

const started = document.querySelector("[data-started]");
const PAUSE = 1000;

async function look() {
  const begun = started?.querySelector("[data-begun]");
  if (begun) return location.replace(begun.href);
  if (!started?.querySelector("[data-live]")) return;
  const address = new URL(location.href);
  address.searchParams.set("part", "started");
  try {
    const response = await fetch(address);
    // The server escapes whatever it quotes, and no page runs what is inline.
    if (response.ok) started.innerHTML = await response.text();
  } catch {
    // A server that does not answer is asked again.
  }
  setTimeout(look, PAUSE);
}
setTimeout(look, PAUSE);

started?.addEventListener("click", ({ target }) => {
  const id = target.dataset.cancels;
  if (!id) return;
  target.disabled = true;
  fetch(`/jobs/${id}`, { method: "DELETE", headers: { "X-CSRF-Token": csrf() } });
});

const button = document.querySelector("[data-beside]");
if (button) {
  const boxes = [...document.querySelectorAll("input[name=id]")];
  const count = () => (button.disabled = boxes.filter((box) => box.checked).length !== 2);
  boxes.forEach((box) => box.addEventListener("change", count));
  count();
}
