/** The table of tasks; what else is known of one unfolds below its row. */

import { setTasks } from "./answers.js";
import { showChoices } from "./chooser.js";
import { at, button, date, element, filter, percent, say, short } from "./elements.js";
import { key, listTasks } from "./service.js";

const body = at("tasks").tBodies[0];
const unfolded = new Set();
const applyFilter = filter("find-task", body, hideDetails);

/** The cell of a row with what changes its task; `changes.js` gives it. */
let changeCell = () => element("td");
export const setChangeCell = (make) => (changeCell = make);

function rows(task) {
  const details = element("tr", { id: `details-${task.task}`, className: "details" });
  details.dataset.of = task.task;
  details.append(element("td", { colSpan: key() ? 9 : 8 }, facts(task)));
  const row = element(
    "tr",
    {},
    element("th", { scope: "row" }, task.task),
    state(task),
    element("td", {}, task.lane),
    element("td", {}, task.precision ?? "not loaded"),
    element("td", { className: "number" }, task.accuracy == null ? "not known" : percent(task.accuracy)),
    element("td", { className: "number" }, String(task.classes.length)),
    element("td", {}, element("code", {}, short(task.bundle) || "none")),
    element("td", {}, unfold(task, details)),
    key() ? changeCell(task) : null,
  );
  row.dataset.name = task.task;
  return [row, details];
}

function state(task) {
  const made = element("td", {}, element("span", { className: `state ${task.state}` }, task.state));
  if (task.pinned) made.append(" ", element("span", { className: "state" }, "pinned"));
  if (task.reason) made.append(element("p", { className: "bad" }, task.reason));
  return made;
}

function unfold(task, details) {
  const made = button(`more-${task.task}`, "More", `about ${task.task}`, () => {
    if (!unfolded.delete(task.task)) unfolded.add(task.task);
    made.ariaExpanded = String(unfolded.has(task.task));
    hideDetails();
  });
  made.className = "small";
  made.ariaExpanded = String(unfolded.has(task.task));
  made.setAttribute("aria-controls", details.id);
  return made;
}

function facts(task) {
  const known = {
    Classes: task.classes.join(", "),
    "Labels per image": task.multi_label ? "several, each from its own threshold" : "one",
    "Accuracy on": task.measured_on,
    Method: task.method,
    Backbone: task.backbone,
    Runtime: task.runtime,
    "Why not otherwise": task.fallback,
    "Fastest here": task.fastest,
    "Says how unknown an image is": task.unknown ? "yes" : "no",
    "In the store since": date(task.added),
    "Served since": date(task.served_since),
    Bundle: task.bundle,
  };
  const pairs = Object.entries(known).filter(([, value]) => value);
  return element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

/** Ask for the tasks and show them. The focus stays where it is, although its row is made anew. */
export async function showTasks() {
  const tasks = await listTasks();
  const focused = document.activeElement?.id;
  setTasks(tasks);
  showChoices(tasks.map((task) => task.task));
  at("change-head").hidden = !key();
  body.replaceChildren(...tasks.flatMap(rows));
  applyFilter();
  at("tasks").hidden = tasks.length === 0;
  say("tasks-note", tasks.length ? "" : "No task is served yet.");
  if (focused) at(focused)?.focus();
}

/** As `showTasks`, but what goes wrong is said below the heading. */
export async function refresh() {
  try {
    await showTasks();
  } catch (fault) {
    at("tasks").hidden = true;
    say("tasks-note", fault.message, true);
  }
}

/** A row that is filtered away takes its details with it. */
function hideDetails() {
  for (const row of body.querySelectorAll(".details")) {
    row.hidden = row.previousSibling.hidden || !unfolded.has(row.dataset.of);
  }
}

at("refresh").addEventListener("click", refresh);
