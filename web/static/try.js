// Own text on a feature's page: what the feature does at every token, beside what its rule predicts.
import { compute, computing } from "./jobs.js";
import { drawTable, drawTokens, element, visible } from "./tokens.js";

for (const form of document.querySelectorAll("[data-try]")) {
  const output = form.parentElement.querySelector("[data-output]");
  const go = computing(form, async (state) => {
    const text = form.elements.text.value;
    const result = await compute("try", { feature: form.dataset.try, texts: [text] }, state);
    output.replaceChildren(...result.rows.map(draw), ...result.notes.map((note) => element("p", { class: "note" }, note)));
    output.scrollIntoView({ block: "nearest" });
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
}

function draw(row) {
  const lines = row.tokens.map((token, place) => [
    String(place),
    element("code", {}, visible(token)),
    row.actual[place],
    row.predicted?.[place] ?? null,
  ]);
  const legend = element(
    "p",
    { class: "note tokens-key" },
    element("i", { class: "amount actual" }),
    " actual ",
    ...(row.predicted ? [element("i", { class: "amount predicted" }), " predicted by the rule"] : []),
  );
  const numbers = element("details", {}, element("summary", {}, "Numbers"), drawTable(["", "token", "actual", "predicted"], lines));
  return element("div", {}, drawTokens(row), legend, numbers);
}
