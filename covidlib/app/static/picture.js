// A picture with a place in it that is chosen by mouse, touch or arrow keys.
const STEP = 0.02;

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "covidlib-picture";
  const image = document.createElement("img");
  const mark = document.createElement("span");
  mark.className = "covidlib-mark";
  mark.setAttribute("aria-hidden", "true");
  box.append(image, mark);
  el.append(box);
  let address = null;

  function draw() {
    if (address) URL.revokeObjectURL(address);
    const bytes = model.get("png");
    address = bytes && bytes.byteLength ? URL.createObjectURL(new Blob([bytes], { type: "image/png" })) : null;
    image.hidden = !address;
    if (address) image.src = address;
  }

  function describe() {
    image.alt = model.get("alt");
    box.tabIndex = model.get("clickable") ? 0 : -1;
    box.setAttribute("role", model.get("clickable") ? "application" : "presentation");
    box.setAttribute("aria-label", model.get("clickable") ? model.get("alt") + ". " + model.get("hint") : "");
    box.classList.toggle("covidlib-clickable", model.get("clickable"));
  }

  function point() {
    const place = model.get("place");
    mark.hidden = !(model.get("clickable") && place.length === 2);
    if (place.length === 2) {
      mark.style.top = 100 * place[0] + "%";
      mark.style.left = 100 * place[1] + "%";
    }
  }

  function choose(row, column) {
    if (!model.get("clickable")) return;
    const inside = (value) => Math.min(0.999, Math.max(0, value));
    model.set("place", [inside(row), inside(column)]);
    model.save_changes();
  }

  image.addEventListener("click", (event) => {
    const frame = image.getBoundingClientRect();
    choose((event.clientY - frame.top) / frame.height, (event.clientX - frame.left) / frame.width);
  });
  box.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move || !model.get("clickable")) return;
    event.preventDefault();
    event.stopPropagation();
    const [row, column] = model.get("place").length === 2 ? model.get("place") : [0.5, 0.5];
    const step = event.shiftKey ? 5 * STEP : STEP;
    choose(row + step * move[0], column + step * move[1]);
  });

  model.on("change:png", draw);
  model.on("change:alt change:clickable change:hint", describe);
  model.on("change:place change:clickable", point);
  draw();
  describe();
  point();
  return () => address && URL.revokeObjectURL(address);
}

export default { render };
