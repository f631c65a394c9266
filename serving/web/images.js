/** The image that is asked about: chosen, or dropped. */

import { at } from "./elements.js";

const preview = at("preview");

function showPreview() {
  const [file] = at("image").files;
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  if (file) preview.src = URL.createObjectURL(file);
}

at("image").addEventListener("change", showPreview);
// A browser cannot show every format that the service reads.
preview.addEventListener("error", () => (preview.hidden = true));

for (const kind of ["dragenter", "dragover"]) at("drop").addEventListener(kind, () => at("drop").classList.add("over"));
for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) {
    at("image").files = event.dataTransfer.files;
    showPreview();
  }
});

// A file that misses the fields would replace the page.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.target.type !== "file" && event.preventDefault());
}
