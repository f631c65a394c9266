"use strict";

// The page without its file: the service may lie below a prefix.
const base = new URL(".", location.href);
const at = (id) => document.getElementById(id);
let key = "";

/** An element with text, never with markup: names of tasks and classes come from elsewhere. */
function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Ask the service; an error has the service's own words. */
async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch {
    throw new Error("The service does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  if (response.status === 401) {
    at("key-form").hidden = false;
    at("key-note").textContent = key ? "The service does not know this key." : "This service asks for a key.";
  }
  throw new Error(body.detail || `The service answers ${response.status}.`);
}

function row(task) {
  const made = element("tr");
  const name = element("th", task.task);
  name.scope = "row";
  const classes = element("td", String(task.classes.length));
  classes.title = task.classes.slice(0, 50).join(", ");
  const accuracy = element("td", task.accuracy == null ? "not known" : `${(100 * task.accuracy).toFixed(1)} %`);
  accuracy.title = task.measured_on || "";
  const since = task.served_since ? new Date(task.served_since).toLocaleString() : "not known";
  const state = element("td", task.state);
  if (task.reason) state.append(element("div", task.reason, "bad"));
  made.append(name, classes, accuracy, element("td", task.method), state, element("td", since));
  return made;
}

async function showTasks() {
  const note = at("tasks-note");
  note.textContent = "Asking for the tasks…";
  try {
    const { tasks } = await ask("v1/tasks");
    at("tasks").tBodies[0].replaceChildren(...tasks.map(row));
    at("tasks").hidden = tasks.length === 0;
    at("task").replaceChildren(...tasks.map((each) => new Option(each.task, each.task)));
    note.textContent = tasks.length ? "" : "No task is served yet.";
    if (tasks.length) showCommand(tasks[0].task);
  } catch (fault) {
    note.textContent = fault.message;
  }
}

function showCommand(task) {
  const needed = key ? '-H "Authorization: Bearer $MOSA_KEY" ' : "";
  at("command").textContent = `curl ${needed}-F image=@photo.jpg -F task=${task} ${new URL("classify", base)}`;
}

function showPreview() {
  const [file] = at("image").files;
  const preview = at("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  if (file) preview.src = URL.createObjectURL(file);
}

function showAnswer(answer) {
  const list = element("ol");
  for (const { label, score } of answer.predictions) {
    const item = element("li");
    const meter = element("meter");
    meter.value = score;
    meter.setAttribute("aria-hidden", "true");
    item.append(element("span", label, "label"), meter, element("span", `${(100 * score).toFixed(1)} %`, "score"));
    list.append(item);
  }
  const made = `${answer.task}, bundle ${answer.bundle.slice(0, 12)}, ${answer.milliseconds.toFixed(1)} ms`;
  const answered = answer.predictions.length ? list : element("p", "none of its labels");
  at("answer").replaceChildren(answered, element("p", made, "hint"));
}

at("classify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("ask").disabled = true;
  try {
    showAnswer(await ask("classify", { method: "POST", body: new FormData(event.target) }));
  } catch (fault) {
    at("answer").replaceChildren(element("p", fault.message, "bad"));
  } finally {
    at("ask").disabled = false;
  }
});

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key-form").hidden = true;
  showTasks();
});

at("task").addEventListener("change", () => showCommand(at("task").value));
at("image").addEventListener("change", showPreview);
// A browser cannot show every format that the service reads.
at("preview").addEventListener("error", () => (at("preview").hidden = true));

// A file that misses the field would replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
for (const kind of ["dragenter", "dragover"]) at("drop").addEventListener(kind, () => at("drop").classList.add("over"));
for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) {
    at("image").files = event.dataTransfer.files;
    showPreview();
  }
});

showTasks();
