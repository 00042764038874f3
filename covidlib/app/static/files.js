// Files in and out: uploads in parts, each sent when the one before was taken, so that no size stops the page.
const PART = 1 << 20;

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "covidlib-files";
  const label = document.createElement("label");
  label.textContent = model.get("label");
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  label.append(input);
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.hidden = true;
  bar.setAttribute("aria-label", "upload");
  const stop = document.createElement("button");
  stop.type = "button";
  stop.textContent = "Cancel the upload";
  stop.hidden = true;
  box.append(label, bar, stop);
  el.append(box);

  let queue = [], at = 0, offset = 0, sent = 0, total = 0, running = false;

  function finish() {
    running = false;
    queue = [];
    bar.hidden = stop.hidden = true;
    input.value = "";
    input.disabled = false;
  }

  function begin(files) {
    if (running || !files.length) return;
    queue = Array.from(files);
    [at, offset, sent, running] = [0, 0, 0, true];
    total = queue.reduce((sum, file) => sum + file.size, 0);
    bar.value = 0;
    bar.hidden = stop.hidden = false;
    input.disabled = true;
    model.send({ kind: "start", files: queue.map((file) => ({ name: file.name, size: file.size })) });
  }

  async function part() {
    if (!running) return;
    while (at < queue.length && offset >= queue[at].size) [at, offset] = [at + 1, 0];
    if (at >= queue.length) {
      model.send({ kind: "end" });
      finish();
      return;
    }
    try {
      const piece = await queue[at].slice(offset, offset + PART).arrayBuffer();
      if (!running) return;
      offset += piece.byteLength;
      sent += piece.byteLength;
      bar.value = total ? sent / total : 1;
      model.send({ kind: "part", file: at }, undefined, [piece]);
    } catch (error) {
      model.send({ kind: "failed", name: queue[at].name, error: String(error) });
      finish();
    }
  }

  function save(message, buffers) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(buffers, { type: message.type }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  input.addEventListener("change", () => begin(input.files));
  stop.addEventListener("click", () => {
    finish();
    model.send({ kind: "cancel" });
  });
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    begin(event.dataTransfer.files);
  });
  model.on("msg:custom", (message, buffers) => {
    if (message.kind === "more") part();
    if (message.kind === "stop") finish();
    if (message.kind === "save") save(message, buffers);
  });
}

export default { render };
