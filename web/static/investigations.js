// Forms that take a while say so, and two sessions are chosen, no more and no fewer, to lie side by side.

for (const form of document.querySelectorAll("[data-waits]")) {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.disabled = true;
    button.textContent = form.dataset.waits;
  });
}

const button = document.querySelector("[data-beside]");
if (button) {
  const boxes = [...document.querySelectorAll("input[name=id]")];
  const count = () => (button.disabled = boxes.filter((box) => box.checked).length !== 2);
  boxes.forEach((box) => box.addEventListener("change", count));
  count();
}
