/** The page: its parts, the key, and the command for a shell. */

import "./answers.js";
import "./changes.js";
import "./images.js";
import { chosen } from "./chooser.js";
import { at, say } from "./elements.js";
import { base, keep, key } from "./service.js";
import { refresh } from "./tasks.js";

function showKey() {
  at("forget").hidden = at("upload").hidden = !key();
  showCommand();
}

function showCommand() {
  const needed = key() ? '-H "Authorization: Bearer $MOSA_KEY" ' : "";
  const tasks = chosen().join(",") || "digits";
  at("command").textContent = `curl ${needed}-F image=@photo.jpg -F tasks=${tasks} ${new URL("classify", base)}`;
}

async function useKey(value) {
  keep(value);
  at("key").value = "";
  say("key-note", value ? "This key is sent from now on." : "No key is sent.");
  showKey();
  await refresh();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value);
});
at("forget").addEventListener("click", () => {
  at("key").focus();
  useKey("");
});
addEventListener("key-needed", (event) => {
  at("key-panel").open = true;
  say("key-note", event.detail, true);
});
addEventListener("tasks-chosen", showCommand);

at("page").hidden = false;
showKey();
refresh();
