// Forms that take a while say so, and two sessions are chosen, no more and no fewer, to lie side by side.

for (const form of document.querySelectorAll("[data-waits]")) {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    const begun = Date.now();
    const tell = () => (button.textContent = `${form.dataset.waits} ${Math.round((Date.now() - begun) / 1000)} s`);
    button.disabled = true;
    tell();
    setInterval(tell, 1000);
  });
}

const button = document.querySelector("[data-beside]");
if (button) {
  const boxes = [...document.querySelectorAll("input[name=id]")];
  const count = () => (button.disabled = boxes.filter((box) => box.checked).length !== 2);
  boxes.forEach((box) => box.addEventListener("change", count));
  count();
}
