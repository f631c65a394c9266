/** Which tasks are asked: a group of boxes that is one stop of the Tab key, as hundreds of stops would be in the way. */

import { at, element, filter, say } from "./elements.js";

const group = at("choices");
const boxes = () => [...group.querySelectorAll("input")];
const seen = () => boxes().filter((box) => !box.parentElement.hidden);
const applyFilter = filter("find-choice", group, setStop);

export const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);

/** List these tasks. What was chosen stays so; at first the first task is. */
export function showChoices(names) {
  const before = new Set(boxes().length ? chosen() : names.slice(0, 1));
  group.replaceChildren(...names.map((name) => choice(name, before.has(name))));
  applyFilter();
  count();
}

function choice(name, checked) {
  const box = element("input", { type: "checkbox", value: name, checked });
  const made = element("label", {}, box, name);
  made.dataset.name = name;
  return made;
}

/** The Tab key stops at one box: at `box`, else at the first that is chosen or seen. */
function setStop(box = null) {
  const stop = box ?? seen().find((each) => each.checked) ?? seen()[0];
  for (const each of boxes()) each.tabIndex = each === stop ? 0 : -1;
}

function count() {
  const number = chosen().length;
  say("chosen", number === 1 ? "1 task is chosen." : `${number} tasks are chosen.`);
  dispatchEvent(new CustomEvent("tasks-chosen"));
}

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

group.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const found = seen();
  const place = found.indexOf(document.activeElement) + step;
  found[Math.min(Math.max(place, 0), found.length - 1)]?.focus();
});
group.addEventListener("focusin", (event) => setStop(event.target));
group.addEventListener("change", count);
at("choose-none").addEventListener("click", () => {
  for (const box of boxes()) box.checked = false;
  setStop();
  count();
});
