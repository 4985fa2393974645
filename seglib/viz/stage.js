// The viewer's picture in the browser: panes, legend and what is under the pointer. Draws what the kernel sends, tells
// it what the hand does. Text from the data goes through textContent only.

const REPLY_PATIENCE = 2000; // [ms] a kernel that does not answer must not silence the pointer for ever
const CLICK_SLACK = 4; // [px] a hand moves a little while it clicks

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function makeSwatch(colour) {
  const swatch = make("span", "seglib-swatch");
  if (colour) swatch.style.background = `rgb(${colour.join(",")})`;
  else swatch.classList.add("seglib-none");
  return swatch;
}

// At most one message is on its way; the others wait in a queue, hovers as their last place, drags as their sum.
function makeSender(model) {
  const queue = [];
  let busy = null;
  const flush = () => {
    busy = null;
    if (!queue.length) return;
    busy = setTimeout(flush, REPLY_PATIENCE);
    model.send(queue.shift());
  };
  model.on("msg:custom", (message) => {
    if (message.kind !== "done") return;
    clearTimeout(busy);
    flush();
  });
  return (message) => {
    const last = queue.at(-1);
    if (last?.kind === "hover" && message.kind === "hover") queue.pop();
    if (last?.kind === "drag" && message.kind === "drag") {
      queue.pop();
      message = { ...message, dx: last.dx + message.dx, dy: last.dy + message.dy };
    }
    queue.push(message);
    if (!busy) flush();
  };
}

function showPicture(image, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  image.onload = () => {
    URL.revokeObjectURL(url);
    // Enlarged, pixels stay sharp squares; made smaller, thin lines must not vanish between them.
    image.classList.toggle("seglib-enlarged", image.clientWidth > image.naturalWidth);
  };
  image.src = url;
}

function makePane(model, send) {
  const pane = make("figure", "seglib-pane");
  const caption = make("figcaption");
  const frame = make("div", "seglib-frame");
  const image = make("img");
  const overlay = make("img", "seglib-overlay");
  const pin = make("span", "seglib-pin");
  frame.append(image, overlay, pin);
  pane.append(caption, frame);

  const place = (event) => {
    const [left, top, width, height] = model.get("window");
    const box = frame.getBoundingClientRect();
    const at = (part, whole) => Math.min(whole - 1, Math.max(0, Math.floor(part * whole)));
    return {
      x: left + at((event.clientX - box.left) / box.width, width),
      y: top + at((event.clientY - box.top) / box.height, height),
      scale: width / box.width,
    };
  };
  let pressed = null;
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pressed = { x: event.clientX, y: event.clientY, moved: false };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const { x, y, scale } = place(event);
    if (!pressed) return send({ kind: "hover", x, y });
    const dx = event.clientX - pressed.x;
    const dy = event.clientY - pressed.y;
    if (!pressed.moved && Math.hypot(dx, dy) < CLICK_SLACK) return;
    send({ kind: "drag", dx: -dx * scale, dy: -dy * scale });
    pressed = { x: event.clientX, y: event.clientY, moved: true };
  });
  frame.addEventListener("pointerup", (event) => {
    if (pressed && !pressed.moved) send({ kind: "click", ...place(event) });
    pressed = null;
  });
  frame.addEventListener("pointercancel", () => (pressed = null));
  frame.addEventListener("pointerleave", () => send({ kind: "leave" }));
  frame.addEventListener("dblclick", (event) => send({ kind: "zoom", ...place(event), out: event.shiftKey }));

  const drawImage = () => showPicture(image, model.get("image"));
  const fade = () => (overlay.style.opacity = model.get("opacity") / 100);
  const update = ({ overlay: bytes, grey, caption: parts }) => {
    caption.replaceChildren();
    for (const [text, colour] of parts) {
      const part = make("span", colour ? "seglib-meaning" : "");
      if (colour) part.append(makeSwatch(colour));
      part.append(text);
      caption.append(part);
    }
    overlay.alt = parts.map(([text]) => text).join(", ");
    image.classList.toggle("seglib-grey", grey);
    showPicture(overlay, bytes);
  };
  const movePin = () => {
    const [left, top, width, height] = model.get("window");
    const [x, y] = model.get("pin");
    const inside = x >= left && y >= top && x < left + width && y < top + height;
    pin.style.display = inside ? "block" : "none";
    pin.style.left = `${(100 * (x + 0.5 - left)) / width}%`;
    pin.style.top = `${(100 * (y + 0.5 - top)) / height}%`;
    frame.classList.toggle("seglib-zoomed", model.get("zoom") > 1);
    frame.style.aspectRatio = `${width} / ${height}`;
  };
  drawImage();
  fade();
  return { pane, update, movePin, drawImage, fade };
}

function drawReadout(box, model) {
  const { place, rows } = model.get("readout");
  box.replaceChildren(make("div", "seglib-place", place));
  for (const [label, name, colour] of rows) {
    const row = make("div", "seglib-row");
    row.append(make("span", "seglib-label", label));
    if (name) row.append(makeSwatch(colour), make("span", "seglib-name", name));
    box.append(row);
  }
}

function drawLegend(box, model, send) {
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const items = model.get("legend").map(({ id, name, colour, share, present, on }) => {
    const button = make("button", "seglib-class");
    button.type = "button";
    button.dataset.id = id;
    button.setAttribute("aria-pressed", on);
    button.classList.toggle("seglib-absent", !present);
    button.title = `${name}: click shows or hides it, shift-click shows it alone`;
    button.append(makeSwatch(on ? colour : null), make("span", "seglib-name", name), make("span", "seglib-share", share));
    button.addEventListener("click", (event) => send({ kind: "toggle", id, alone: event.shiftKey }));
    return button;
  });
  const links = [["all", true], ["none", false]].map(([text, on]) => {
    const button = make("button", "seglib-link", text);
    button.type = "button";
    button.addEventListener("click", () => send({ kind: "toggle all", on }));
    return button;
  });
  const head = make("div", "seglib-head", "Classes");
  head.append(...links);
  const list = make("div", "seglib-list");
  list.append(...items);
  const scrolled = box.querySelector(".seglib-list")?.scrollTop ?? 0;
  box.replaceChildren(head, list);
  list.scrollTop = scrolled;
  if (focused !== null) items.find((item) => item.dataset.id === focused)?.focus();
}

function render({ model, el }) {
  const send = makeSender(model);
  const root = make("div", "seglib-stage");
  const panes = make("div", "seglib-panes");
  const side = make("div", "seglib-side");
  const title = make("div", "seglib-title");
  const readout = make("div", "seglib-readout");
  const legend = make("div", "seglib-legend");
  side.append(title, readout, legend);
  root.append(panes, side);
  el.append(root);

  let shown = [];
  const drawPanes = () => {
    const wanted = model.get("panes");
    if (wanted.length !== shown.length) {
      shown = wanted.map(() => makePane(model, send));
      panes.replaceChildren(...shown.map(({ pane }) => pane));
    }
    wanted.forEach((pane, index) => shown[index].update(pane));
    movePins();
  };
  const drawImages = () => shown.forEach(({ drawImage }) => drawImage());
  const fadeAll = () => shown.forEach(({ fade }) => fade());
  const movePins = () => shown.forEach(({ movePin }) => movePin());
  const drawTitle = () => {
    const [head, ...lines] = model.get("title");
    title.replaceChildren(make("div", "seglib-id", head), ...lines.map((line) => make("div", "", line)));
  };
  const draws = {
    panes: drawPanes, image: drawImages, opacity: fadeAll, window: movePins, pin: movePins, title: drawTitle,
    readout: () => drawReadout(readout, model), legend: () => drawLegend(legend, model, send),
  };
  for (const [name, draw] of Object.entries(draws)) {
    model.on(`change:${name}`, draw);
    draw();
  }
  // Arrow keys browse while the picture has the focus; JupyterLab must not take them for its own.
  panes.tabIndex = 0;
  panes.dataset.lmSuppressShortcuts = "true";
  panes.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    send({ kind: "step", by });
  });
  // Only a viewer whose kernel has answered hides the contact sheet below it.
  model.on("msg:custom", () => root.classList.add("seglib-live"));
  send({ kind: "hello" });
}

export default { render };
