/** What changes tasks: pin, rollback and upload. Whether the key may is for the service to say. */

import { at, busy, button, date, element, percent, say, short } from "./elements.js";
import { listVersions, pin, rollBack, upload } from "./service.js";
import { setChangeCell, showTasks } from "./tasks.js";

/** The task whose versions the dialog shows. */
let shown = "";

setChangeCell((task) => {
  const keep = button(`pin-${task.task}`, "Pin", task.task, () => setPinned(task, keep));
  keep.ariaPressed = String(task.pinned);
  const back = button(`back-${task.task}`, "Roll back…", task.task, () => openVersions(task, back));
  for (const each of [keep, back]) each.className = "small";
  return element("td", {}, keep, " ", back);
});

const setPinned = (task, holder) =>
  busy(holder, "change-note", async () => {
    await pin(task.task, !task.pinned);
    await showTasks();
    say("change-note", task.pinned ? `${task.task} is no longer pinned.` : `${task.task} is pinned: it stays loaded.`);
  });

const openVersions = (task, holder) =>
  busy(holder, "change-note", async () => {
    const others = (await listVersions(task.task)).filter((version) => !version.served);
    if (!others.length) throw new Error(`No other version of ${task.task} is kept.`);
    shown = task.task;
    at("versions-title").textContent = `Roll back ${shown}`;
    at("version-list").replaceChildren(...others.map(choice));
    at("versions-new-classes").checked = false;
    say("versions-note", "");
    say("change-note", "");
    at("versions").showModal();
  });

function choice(version, place) {
  const radio = element("input", { type: "radio", name: "digest", value: version.bundle, checked: place === 0 });
  const accuracy = version.accuracy == null ? "accuracy not known" : `accuracy ${percent(version.accuracy)}`;
  const facts = `${version.source} of ${date(version.added)}, ${accuracy}, ${version.classes.length} classes`;
  const made = element("label", {}, radio, element("code", {}, short(version.bundle)), ` ${facts}`);
  return element("p", {}, made);
}

at("versions-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, "versions-note", async () => {
    const digest = new FormData(event.target).get("digest");
    const options = at("versions-new-classes").checked ? { digest, new_classes: "true" } : { digest };
    const task = await rollBack(shown, options);
    at("versions").close();
    await showTasks();
    say("change-note", `${task.task} serves version ${short(task.bundle)}.`);
  });
});
at("versions-cancel").addEventListener("click", () => at("versions").close());

at("bundle").addEventListener("change", () => {
  const [file] = at("bundle").files;
  if (file) at("upload-task").value = file.name.replace(/\.mosa$/, "");
});

function uploadOptions() {
  const options = {};
  if (at("upload-lane").value) options.lane = at("upload-lane").value;
  if (at("upload-new-classes").checked) options.new_classes = "true";
  if (at("upload-force").checked) options.force = "true";
  return options;
}

function gateInWords({ images, accuracy, accuracy_before: before }) {
  const compared = before == null ? "" : `, before ${percent(before)}`;
  return ` Accuracy on ${images} labelled images: ${percent(accuracy)}${compared}.`;
}

at("upload-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, "upload-note", async () => {
    say("upload-note", "Uploading…");
    const task = await upload(at("upload-task").value.trim(), at("bundle").files[0], uploadOptions());
    await showTasks();
    const gate = task.gate ? gateInWords(task.gate) : "";
    say("upload-note", `${task.task} serves version ${short(task.bundle)} in the ${task.lane} lane.${gate}`);
  });
});
