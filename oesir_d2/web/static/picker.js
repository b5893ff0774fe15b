// The photo picker: shows a photo, lets a box be drawn on it, and hands both to the search.
// Gradio calls this text as a function with `element`, the root of the picker's HTML. MAX_UPLOAD_BYTES is set above it.
const find = (name) => element.querySelector("." + name);
const drop = find("drop"), file = find("file"), stage = find("stage"), photo = find("photo"), frame = find("box");
const fields = ["x0", "y0", "x1", "y1"].map(find);
let chosen = null; // the File
let size = null; // [width, height] of the photo, the frame of its boxes
let box = null; // [x0, y0, x1, y1] in pixels of the photo
let start = null; // where a drag began

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function showBox() {
  frame.hidden = !box;
  find("clear").disabled = !box;
  if (!box) return;
  const [width, height] = size;
  frame.style.left = (100 * box[0]) / width + "%";
  frame.style.top = (100 * box[1]) / height + "%";
  frame.style.width = (100 * (box[2] - box[0])) / width + "%";
  frame.style.height = (100 * (box[3] - box[1])) / height + "%";
}

function setBox(next) {
  box = next;
  fields.forEach((field, i) => (field.value = box ? box[i] : ""));
  showBox();
}

function show(isShown) {
  drop.hidden = isShown;
  for (const name of ["stage", "hint", "numbers", "actions"]) find(name).hidden = !isShown;
}

function setSize(width, height) {
  size = [width, height];
  fields.forEach((field, i) => (field.max = size[i % 2]));
  find("size").textContent = width + " × " + height;
}

// A browser shows few of the formats that can be searched with: the server makes a picture of the others.
async function showPreview(wanted) {
  const form = new FormData();
  form.append("file", wanted);
  const answer = await fetch("/api/preview", { method: "POST", body: form });
  if (wanted !== chosen) return;
  if (!answer.ok) {
    reset();
    say((await answer.json()).error);
    return;
  }
  const picture = await answer.blob();
  photo.onload = () => {
    setSize(Number(answer.headers.get("X-Photo-Width")), Number(answer.headers.get("X-Photo-Height")));
    show(true);
  };
  photo.onerror = null;
  photo.src = URL.createObjectURL(picture);
}

function choose(next) {
  reset();
  if (!next) return;
  if (next.size > MAX_UPLOAD_BYTES) {
    say("This file is too large: at most " + Math.floor(MAX_UPLOAD_BYTES / 2 ** 20) + " MiB are allowed.");
    return;
  }
  chosen = next;
  photo.onload = () => {
    setSize(photo.naturalWidth, photo.naturalHeight);
    show(true);
  };
  photo.onerror = () => showPreview(next).catch(() => say("The server does not answer."));
  photo.src = URL.createObjectURL(next);
}

function reset() {
  if (photo.src.startsWith("blob:")) URL.revokeObjectURL(photo.src);
  photo.onload = photo.onerror = null;
  photo.removeAttribute("src");
  chosen = size = start = null;
  file.value = "";
  setBox(null);
  show(false);
  say("");
}

function locate(event) {
  const area = stage.getBoundingClientRect();
  const share = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  return share.map((value, i) => Math.round(Math.min(1, Math.max(0, value)) * size[i]));
}

file.addEventListener("change", () => choose(file.files[0]));
for (const target of [drop, stage]) {
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  target.addEventListener("dragleave", () => drop.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
}
stage.addEventListener("pointerdown", (event) => {
  if (!size || event.button) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  start = locate(event);
});
stage.addEventListener("pointermove", (event) => {
  if (!start) return;
  const end = locate(event);
  const corners = [0, 1].map((i) => Math.min(start[i], end[i])).concat([0, 1].map((i) => Math.max(start[i], end[i])));
  if (corners[2] > corners[0] && corners[3] > corners[1]) setBox(corners);
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (start = null));
fields.forEach((field) =>
  field.addEventListener("change", () => {
    const values = fields.map((other) => (other.value === "" ? NaN : Number(other.value)));
    box = values.every(Number.isFinite) && values[2] > values[0] && values[3] > values[1] ? values : null;
    showBox();
  })
);
find("clear").addEventListener("click", () => setBox(null));
find("other").addEventListener("click", reset);

// Called when the search begins: sends the photo, and answers what the search needs to know, as JSON.
window.oesirPicker = {
  async prepare() {
    if (!chosen) return JSON.stringify({ problem: "Choose a photo first." });
    const isPartial = fields.some((field) => field.value !== "");
    if (isPartial && !box)
      return JSON.stringify({ problem: "The box is not whole: left < right and top < bottom, in pixels." });
    const form = new FormData();
    form.append("file", chosen);
    try {
      const answer = await fetch("/api/uploads", { method: "POST", body: form });
      const content = await answer.json();
      return JSON.stringify(answer.ok ? { upload: content.upload, box } : { problem: content.error });
    } catch {
      return JSON.stringify({ problem: "The server does not answer." });
    }
  },
};
