// Keys: / search, j k rows, Enter open, [ ] pages, g and a letter to go somewhere, t theme, ? the list of keys.

let waitsForPlace = false;

function rows() {
  return [...document.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
}

function move(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.classList.contains("at"));
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step))];
  all[at]?.classList.remove("at");
  next.classList.add("at");
  (next.querySelector("a") ?? next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function go(letter) {
  document.querySelector(`nav [data-key="${CSS.escape(letter)}"]`)?.click();
}

const follow = (rel) => document.querySelector(`a[rel=${rel}]`)?.click();

export function listenToKeys({ toggleTheme }) {
  const actions = {
    "/": () => (document.querySelector("main [type=search]") ?? document.querySelector("[data-search]")).focus(),
    j: () => move(1),
    k: () => move(-1),
    "[": () => follow("prev"),
    "]": () => follow("next"),
    g: () => { waitsForPlace = true; },
    t: toggleTheme,
    "?": () => document.querySelector("#keys").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const inField = event.target.closest("input, textarea, select, [contenteditable]");
    if (inField) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (waitsForPlace) {
      waitsForPlace = false;
      go(event.key);
      return;
    }
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  });
}
