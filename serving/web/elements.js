/** What all parts of the page are made of. Text is set as text, never as markup: names come from elsewhere. */

export const at = (id) => document.getElementById(id);

/** An element with properties and children; a child that is missing is left out. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const hint = (...children) => element("p", { className: "hint" }, ...children);

/** A button whose name says what it is about, also to those who hear it without its row. */
export function button(id, text, about, onClick) {
  const made = element("button", { id, type: "button" }, text, element("span", { className: "unseen" }, ` ${about}`));
  made.addEventListener("click", onClick);
  return made;
}

/** Put a line where screen readers announce it. */
export function say(id, text, bad = false) {
  at(id).textContent = text;
  at(id).classList.toggle("bad", bad);
}

/** Do one thing at a time for an element, and say what went wrong. */
export async function busy(holder, noteId, work) {
  if (holder.ariaBusy === "true") return;
  holder.ariaBusy = "true";
  try {
    await work();
  } catch (fault) {
    say(noteId, fault.message, true);
  } finally {
    holder.ariaBusy = null;
  }
}

/** Hide the items whose `data-name` does not contain what is typed. */
export function filter(fieldId, holder, onChange = () => {}) {
  const apply = () => {
    const wanted = at(fieldId).value.trim().toLowerCase();
    for (const item of holder.querySelectorAll("[data-name]")) item.hidden = !item.dataset.name.includes(wanted);
    onChange();
  };
  at(fieldId).addEventListener("input", apply);
  // The Enter key would send the form around the field.
  at(fieldId).addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  return apply;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const short = (digest) => digest.slice(0, 12);
export const date = (text) => (text ? new Date(text).toLocaleString() : "not known");
