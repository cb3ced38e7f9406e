// Steering on a feature's page: what the model writes before and after, side by side, with what that costs.
import { RANKS, rankOf } from "./interventions.js";
import { compute, computing } from "./jobs.js";
import { drawTable, element, inWords, visible } from "./tokens.js";

for (const form of document.querySelectorAll("[data-steer]")) {
  const output = form.parentElement.querySelector("[data-output]");
  const { slider, strength, prompt, tokens } = form.elements;
  slider.addEventListener("input", () => (strength.value = slider.value));
  slider.addEventListener("change", () => form.reportValidity() && form.requestSubmit());
  strength.addEventListener("input", () => (slider.value = strength.value));
  const dose = form.parentElement.querySelector("[data-dose]");
  prompt.addEventListener("input", () => {
    const address = new URL(dose.href);
    address.searchParams.set("prompt", prompt.value);
    dose.href = address;
  });
  const go = computing(form, async (state) => {
    const negative = form.dataset.steer.endsWith("-");
    const feature = negative ? form.dataset.steer.slice(0, -1) : form.dataset.steer;
    const wanted = Number(strength.value) * (negative ? -1 : 1);
    const given = {
      model: feature.split(":")[0],
      edit: `${feature}+=1q`,
      prompts: [prompt.value],
      strengths: [0, wanted || 1],
      tokens: Number(tokens.value),
      text_rows: 8,
    };
    draw(output, await compute("steer", given, state), prompt.value, wanted);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
}

function draw(output, { rows, notes }, prompt, wanted) {
  const before = rows.find((row) => row.strength === 0);
  const after = rows.find((row) => row.strength === wanted);
  const header = ["strength", `${inWords(after.readout)} at the next token`, "percentile", "KL elsewhere", "loss elsewhere"];
  const lines = [before, after].map((row) => [String(row.strength), row.response, rankOf(row), row.kl, row.loss]);
  output.replaceChildren(
    element("div", { class: "written" }, written("Before", prompt, before), written(`After, strength ${after.strength}`, prompt, after)),
    drawTable(header, lines),
    element("p", { class: "note" }, "KL and loss in nats. Elsewhere is unrelated text: what steering costs there. ", RANKS),
    ...notes.map((note) => element("p", { class: "note" }, note)),
  );
}

function written(title, prompt, row) {
  const text = element("pre", {}, element("span", { class: "quiet" }, visible(prompt)), element("b", {}, visible(row.texts[0])));
  return element("div", {}, element("h3", {}, title), text);
}
