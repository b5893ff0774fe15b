// Sends photos to the index, a few at a time, and tells what became of them. MAX_FILES and MAX_UPLOAD_BYTES are set above.
const find = (name) => element.querySelector("." + name);
const drop = find("drop"), file = find("file");
let busy = false;

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function refuse(name, reason) {
  const item = document.createElement("li");
  item.textContent = reason.startsWith(name) ? reason : name + ": " + reason;
  find("refused").append(item);
}

async function send(batch) {
  const form = new FormData();
  for (const photo of batch) form.append("file", photo);
  const answer = await fetch("/api/photos", { method: "POST", body: form });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  for (const { file: name, error } of content.refused) refuse(name, error);
  return content;
}

async function add(photos) {
  if (busy || !photos.length) return;
  busy = true;
  find("refused").replaceChildren();
  const fitting = photos.filter((photo) => photo.size <= MAX_UPLOAD_BYTES);
  for (const photo of photos) if (photo.size > MAX_UPLOAD_BYTES) refuse(photo.name, "too large");
  let added = 0, images = null;
  try {
    for (let i = 0; i < fitting.length; i += MAX_FILES) {
      say("Adding photo " + (i + 1) + " of " + fitting.length + " …");
      const content = await send(fitting.slice(i, i + MAX_FILES));
      added += content.added.length;
      images = content.images;
    }
    say(added + " of " + photos.length + " added" + (images === null ? "." : "; the index has " + images + " photos now."));
  } catch (error) {
    say(added + " of " + photos.length + " added, then: " + (error.message || "the server does not answer"));
  }
  file.value = "";
  busy = false;
}

file.addEventListener("change", () => add([...file.files]));
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add([...event.dataTransfer.files]);
});
