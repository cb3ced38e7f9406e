// What all pages do beyond links and forms. Without it every page still works.
import { listenToKeys } from "./keys.js";

const root = document.documentElement;

function toggleTheme() {
  const dark = getComputedStyle(root).colorScheme === "dark"
    || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

// The part of a page at an address that is marked as a part: shown in place of a link to it.
async function load(place) {
  place.setAttribute("aria-busy", "true");
  const answer = await fetch(place.dataset.load);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const part = page.querySelector("[data-part]");
  if (answer.ok && part) place.replaceWith(document.importNode(part, true));
  else place.removeAttribute("aria-busy");
}

// What is far from the peak of a window is hidden until its button is pressed.
function foldWindows() {
  for (const element of document.querySelectorAll(".example .window")) {
    if (!element.querySelector(".far")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "…";
    button.setAttribute("aria-label", "The whole window");
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const open = element.classList.toggle("whole");
      button.setAttribute("aria-expanded", String(open));
    });
    element.append(button);
  }
}

function linkToJson() {
  for (const link of document.querySelectorAll("[data-json]")) {
    const address = new URL(location.href);
    address.searchParams.set("format", "json");
    address.hash = "";
    link.href = address;
  }
}

// Who writes is remembered in this browser.
function rememberAuthor() {
  for (const field of document.querySelectorAll("input[name=author]")) {
    field.value ||= localStorage.getItem("author") ?? "";
    field.form.addEventListener("submit", () => localStorage.setItem("author", field.value));
  }
}

document.querySelector("[data-theme-toggle]").addEventListener("click", toggleTheme);
document.querySelector("[data-help]").addEventListener("click", () => document.querySelector("#keys").showModal());
listenToKeys({ toggleTheme });
foldWindows();
linkToJson();
rememberAuthor();
for (const place of document.querySelectorAll("[data-load]")) {
  new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      load(place);
    }
  }, { rootMargin: "400px" }).observe(place);
}
