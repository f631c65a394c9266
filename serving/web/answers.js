/** Asks the chosen tasks about the image, and shows what they answer: one card per task. */

import { chosen } from "./chooser.js";
import { at, busy, element, hint, percent, say, short } from "./elements.js";
import { classify } from "./service.js";

/** Answers in a sentence; more are counted. */
const SPOKEN = 3;

let known = new Map();

/** The tasks of the service, by name: what an answer means depends on them. */
export function setTasks(tasks) {
  known = new Map(tasks.map((task) => [task.task, task]));
}

function card(result) {
  const heading = element("h3", {}, result.task);
  const made = element("article", {}, heading);
  if (result.detail) made.append(element("p", { className: "bad" }, result.detail));
  else made.append(...answer(result, known.get(result.task)));
  return made;
}

function answer(result, task) {
  const list = element("ol", {}, ...result.predictions.map((each) => prediction(each, task)));
  const made = [result.predictions.length ? list : element("p", {}, verdict(result))];
  if (typeof result.unknown === "number") made.push(unknown(result));
  if (result.note) made.push(hint(result.note));
  made.push(hint(`Version ${short(result.bundle)}, ${result.milliseconds.toFixed(1)} ms`));
  return made;
}

/** What is said in the place of classes where there are none. */
const verdict = (result) =>
  result.abstained ? "No class: the image is too unknown to this task." : "None of its labels reaches its threshold.";

function prediction({ label, score }, task) {
  const meter = element("meter", { value: score, ariaHidden: "true" });
  const threshold = task?.thresholds?.[task.classes.indexOf(label)];
  const from = threshold === undefined ? "" : element("span", { className: "hint" }, ` from ${percent(threshold)}`);
  const name = element("span", { className: "label" }, label, from);
  return element("li", {}, name, meter, element("span", { className: "score" }, percent(score)));
}

const unknown = (result) =>
  element(
    "p",
    {},
    `Unknown: ${result.unknown.toFixed(3)}`,
    element("span", { className: "hint" }, ` ${percent(result.unknown)} of the task's validation images are less so.`),
  );

function summary(result) {
  if (result.detail) return `${result.task}: ${result.detail}`;
  const said = result.predictions.slice(0, known.get(result.task)?.multi_label ? SPOKEN : 1);
  return `${result.task}: ${said.map((each) => `${each.label} ${percent(each.score)}`).join(", ") || verdict(result)}`.replace(/\.$/, "");
}

function announce(results) {
  const failed = results.filter((result) => result.detail).length;
  const counted = `${results.length - failed} answers` + (failed ? `, and ${failed} failed.` : ".");
  say("answer-note", results.length > SPOKEN ? counted : results.map(summary).join("; "), failed === results.length);
}

function request(form) {
  const data = new FormData(form);
  for (const name of ["top_k", "abstain"]) if (!data.get(name)) data.delete(name);
  for (const name of chosen()) data.append("tasks", name);
  if (chosen().some((name) => known.get(name)?.unknown)) data.append("unknown", "true");
  return data;
}

at("classify-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!chosen().length) {
    say("answer-note", "Choose a task first.", true);
    return;
  }
  busy(event.target, "answer-note", async () => {
    at("answers").replaceChildren();
    say("answer-note", "Asking…");
    const results = await classify(request(event.target));
    at("answers").replaceChildren(...results.map(card));
    announce(results);
  });
});
