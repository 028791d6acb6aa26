// The explorer: a scatter plot of samples with hovering, brushing, menus and a legend that filters.
//
// The page holds everything it needs: the JSON of `explorer.py` in #data and one sheet of images in
// the style sheet. Labels reach the document as text only, never as HTML. Names: a sample is its
// position 0 ... n - 1 in the arrays; `data.index` has the index that Python knows it by.
"use strict";

const PLOT = { width: 420, height: 380, left: 52, right: 10, top: 10, bottom: 38 };
const CURVE = { width: 200, height: 165, left: 38, right: 6, top: 20, bottom: 30 };
const MARKER = 7; // pixels across
const REACH = 9; // pixels between the pointer and a sample that it shows
const N_SHOWN = 54; // images and curves of a brush
const [GRID, TIP] = [42, 112]; // pixels of the longer side of an image
const [INK, FAINT, DIM] = ["#333", "#e4e4e4", "#cdcdcd"];

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const n = data.index.length;
const scores = new Map(); // name -> Float32Array (n), NaN where there is no value
const floats = decode(data.scores.values, Float32Array);
data.scores.names.forEach((name, k) => scores.set(name, floats.subarray(k * n, (k + 1) * n)));
const groups = new Map(data.groups.map((group) => [group.name, group]));
const curves = data.curves.map(decodeCurves);

const selected = new Uint8Array(n); // kept when axes, colours or filters change
const visible = new Uint8Array(n); // drawn: has both values, and its group is not hidden
const [px, py] = [new Float32Array(n), new Float32Array(n)]; // pixels
const hidden = new Set(); // codes of the groups that the legend hides
let drawOrder = []; // visible samples, the rarest group last, so that it is on top
let byX = []; // visible samples by x, and by y from low to high
let byY = [];
let cursor = -1; // the sample that is shown beside the pointer, or chosen with the keys
let brush = null; // {x0, y0, x1, y1} in pixels
let anchor = null; // where a drag, or a brush of the keyboard, began

// ---- data ---------------------------------------------------------------------------------------

function decode(text, ArrayType) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new ArrayType(bytes.buffer);
}

function decodeCurves({ name, low, high, n_epochs: nEpochs, codes }) {
  // A code is the square root of the value, in 254 steps from low to high; 255: not measured.
  const values = new Float32Array(256);
  for (let code = 0; code < 255; code++) values[code] = low + (high - low) * (code / 254) ** 2;
  values[255] = NaN;
  const curve = { name, nEpochs, values: Float32Array.from(decode(codes, Uint8Array), (c) => values[c]) };
  curve.mean = meanCurve(curve, Array.from({ length: n }, (_, i) => i));
  return curve;
}

function meanCurve({ nEpochs, values }, samples) {
  const [sums, counts] = [new Float64Array(nEpochs), new Float64Array(nEpochs)];
  for (const i of samples) {
    for (let t = 0; t < nEpochs; t++) {
      const value = values[i * nEpochs + t];
      if (value === value) { sums[t] += value; counts[t] += 1; } // not NaN
    }
  }
  return sums.map((sum, t) => sum / counts[t]);
}

function format(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "no value";
}

const codesOf = () => groups.get($("color").value).codes;

// ---- axes ---------------------------------------------------------------------------------------

function axis(name, log) {
  // The limits and the ticks of a score, in the unit in which it is drawn: itself or its logarithm.
  const unit = log ? Math.log10 : (value) => value;
  let [low, high] = [Infinity, -Infinity];
  for (const value of scores.get(name)) {
    const at = unit(value);
    if (Number.isFinite(at)) { low = Math.min(low, at); high = Math.max(high, at); }
  }
  if (low > high) [low, high] = [0, 1]; // no value at all
  const space = 0.04 * (high - low || 1);
  return { name, unit, log, low: low - space, high: high + space };
}

function ticks({ low, high, log }) {
  if (log && high - low > 1.5) {
    const [first, last] = [Math.ceil(low), Math.floor(high)];
    const step = Math.ceil((last - first + 1) / 6);
    const powers = [];
    for (let power = first; power <= last; power += step) powers.push([power, 10 ** power]);
    return powers.map(([at, value]) => [at, format(value)]);
  }
  const rough = (high - low) / 6;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * size >= rough) * size;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) {
    const at = Number((k * step).toPrecision(8));
    found.push([at, log ? format(10 ** at) : String(at)]);
  }
  return found;
}

function prepared(canvas, box) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = box.width * ratio;
  canvas.height = box.height * ratio;
  canvas.style.width = `${box.width}px`;
  canvas.style.height = `${box.height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

function drawAxes(context, box, x, y, title = "") {
  const toX = (at) => box.left + ((at - x.low) / (x.high - x.low)) * (box.width - box.left - box.right);
  const toY = (at) => box.height - box.bottom - ((at - y.low) / (y.high - y.low)) * (box.height - box.top - box.bottom);
  context.clearRect(0, 0, box.width, box.height);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = INK;
  context.strokeStyle = FAINT;
  context.lineWidth = 1;
  context.textAlign = "center";
  for (const [at, text] of ticks(x)) {
    context.strokeRect(toX(at), box.top, 0, box.height - box.bottom - box.top);
    context.fillText(text, toX(at), box.height - box.bottom + 14);
  }
  context.textAlign = "right";
  for (const [at, text] of ticks(y)) {
    context.strokeRect(box.left, toY(at), box.width - box.right - box.left, 0);
    context.fillText(text, box.left - 5, toY(at) + 4);
  }
  context.textAlign = "center";
  context.fillText(x.name, (box.left + box.width - box.right) / 2, box.height - 5);
  context.fillText(title, (box.left + box.width - box.right) / 2, 12);
  if (!title) {
    context.save();
    context.translate(11, (box.top + box.height - box.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(y.name, 0, 0);
    context.restore();
  }
  return [toX, toY];
}

// ---- markers ------------------------------------------------------------------------------------

const styleOf = (code) => data.styles[code % data.styles.length];
const markers = new Map(); // drawn once for each colour and shape, then copied pixel by pixel

function markerOf(color, shape) {
  const key = color + shape;
  if (!markers.has(key)) {
    const canvas = document.createElement("canvas");
    const context = prepared(canvas, { width: MARKER + 2, height: MARKER + 2 });
    context.translate(MARKER / 2 + 1, MARKER / 2 + 1);
    context.fillStyle = color;
    context.strokeStyle = "#fff";
    context.lineWidth = 0.8;
    tracePath(context, shape, MARKER / 2);
    context.fill();
    context.stroke();
    const { data: bytes } = context.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Uint32Array(bytes.buffer);
    markers.set(key, { size: canvas.width, pixels, address: canvas.toDataURL() });
  }
  return markers.get(key);
}

function tracePath(context, shape, r) {
  const corners = {
    square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
    triangle: [[0, -1], [1, 0.85], [-1, 0.85]],
    diamond: [[0, -1.1], [1.1, 0], [0, 1.1], [-1.1, 0]],
    cross: [[-1, -0.35], [-0.35, -0.35], [-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35],
      [1, 0.35], [0.35, 0.35], [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35]],
  }[shape];
  context.beginPath();
  if (corners) corners.forEach(([x, y]) => context.lineTo(x * r, y * r));
  else context.arc(0, 0, r, 0, 2 * Math.PI);
  context.closePath();
}

function drawPoints(context, samples, color = "") {
  // 10,000 calls of drawImage take 33 ms, which a brush would feel; these copies take a few.
  const { width, height } = context.canvas;
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [codes, ratio] = [codesOf(), window.devicePixelRatio || 1];
  const ofCode = new Map([...new Set(codes)].map((code) => [code, styleOf(code)])
    .map(([code, style]) => [code, markerOf(color || style.color, style.shape)]));
  for (const i of samples) {
    const marker = ofCode.get(codes[i]);
    const left = Math.round(px[i] * ratio - marker.size / 2);
    const top = Math.round(py[i] * ratio - marker.size / 2);
    for (let row = 0; row < marker.size; row++) {
      for (let column = 0; column < marker.size; column++) {
        const pixel = marker.pixels[row * marker.size + column];
        const at = (top + row) * width + left + column;
        // The highest byte is the opacity: a soft edge does not replace a mark below it.
        if (pixel >>> 31 || pixel >>> 24 > pixels[at] >>> 24) pixels[at] = pixel;
      }
    }
  }
  context.putImageData(image, 0, 0);
}

// ---- the scatter plot ---------------------------------------------------------------------------

let overlay = null; // the contexts of the upper layers: the brush, and the chosen samples
let chosenLayer = null;

function drawAll() {
  // After a change of axes, colours or filter: place all samples, draw the lower layers.
  const x = axis($("x").value, $("log-x").checked);
  const y = axis($("y").value, $("log-y").checked);
  const [toX, toY] = drawAxes(prepared($("axes"), PLOT), PLOT, x, y);
  place(x, y, toX, toY);
  drawPoints(prepared($("dim"), PLOT), drawOrder, DIM);
  drawPoints(prepared($("colored"), PLOT), drawOrder);
  chosenLayer = prepared($("chosen"), PLOT);
  overlay = prepared($("overlay"), PLOT);
  if (cursor >= 0 && !visible[cursor]) point(-1);
  const missing = n - data.index.filter((_, i) => Number.isFinite(px[i] + py[i])).length;
  $("missing").textContent = missing ? `${missing} of ${n} samples have no value here.` : "";
  drawSelection();
}

function place(x, y, toX, toY) {
  const [xs, ys, codes] = [scores.get(x.name), scores.get(y.name), codesOf()];
  const counts = new Map();
  for (let i = 0; i < n; i++) {
    const [atX, atY] = [x.unit(xs[i]), y.unit(ys[i])];
    const finite = Number.isFinite(atX) && Number.isFinite(atY);
    px[i] = finite ? toX(atX) : NaN;
    py[i] = finite ? toY(atY) : NaN;
    visible[i] = finite && !hidden.has(codes[i]);
    counts.set(codes[i], (counts.get(codes[i]) || 0) + 1);
  }
  const shown = Array.from({ length: n }, (_, i) => i).filter((i) => visible[i]);
  drawOrder = shown.toSorted((a, b) => counts.get(codes[b]) - counts.get(codes[a]) || a - b);
  byX = shown.toSorted((a, b) => px[a] - px[b] || a - b);
  byY = shown.toSorted((a, b) => py[b] - py[a] || a - b);
}

function drawOverlay() {
  overlay.clearRect(0, 0, PLOT.width, PLOT.height);
  if (brush) {
    const [x, y] = [Math.min(brush.x0, brush.x1), Math.min(brush.y0, brush.y1)];
    const sides = [Math.abs(brush.x1 - brush.x0), Math.abs(brush.y1 - brush.y0)];
    overlay.fillStyle = "rgba(0, 0, 0, 0.08)";
    overlay.fillRect(x, y, ...sides);
    overlay.strokeStyle = "#777";
    overlay.strokeRect(x, y, ...sides);
  }
  if (cursor >= 0) {
    overlay.strokeStyle = "#000";
    overlay.lineWidth = 2;
    overlay.beginPath();
    overlay.arc(px[cursor], py[cursor], MARKER, 0, 2 * Math.PI);
    overlay.stroke();
    overlay.lineWidth = 1;
  }
}

function select(isChosen, keep = null) {
  for (let i = 0; i < n; i++) selected[i] = (keep && keep[i]) || (visible[i] && isChosen(i)) ? 1 : 0;
}

function selectBrushed(keep) {
  const [left, right] = [Math.min(brush.x0, brush.x1), Math.max(brush.x0, brush.x1)];
  const [top, bottom] = [Math.min(brush.y0, brush.y1), Math.max(brush.y0, brush.y1)];
  select((i) => px[i] >= left && px[i] <= right && py[i] >= top && py[i] <= bottom, keep);
}

const isShown = (i) => selected[i] && visible[i];

// ---- the brushed samples ------------------------------------------------------------------------

let isScheduled = false;

function schedule() {
  // At most one drawing for each frame of the screen, however many events the pointer sends.
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => { isScheduled = false; drawSelection(); });
}

function drawSelection() {
  const chosen = drawOrder.filter(isShown);
  $("colored").style.visibility = chosen.length || brush ? "hidden" : "visible";
  drawPoints(chosenLayer, chosen);
  drawOverlay();
  const fromTop = byY.filter(isShown).reverse();
  const some = spread(fromTop, N_SHOWN);
  const which = some.length < chosen.length ? `; shown: ${some.length}, evenly spread by ${$("y").value}` : "";
  $("count").textContent = chosen.length
    ? `${chosen.length} brushed${which}` : "Drag over points to see their images and curves.";
  drawGrid(some);
  curves.forEach((curve, k) => drawCurves($(`curve-${k}`), curve, some, chosen));
  drawDetails(chosen);
  if (!anchor) $("indices").value = `[${fromTop.map((i) => data.index[i]).join(", ")}]`;
}

function spread(samples, most) {
  if (samples.length <= most) return samples;
  return Array.from({ length: most }, (_, k) => samples[Math.round((k * (samples.length - 1)) / (most - 1))]);
}

function setSprite(element, i, size) {
  const { columns, width, height } = data.sheet;
  const scale = size / Math.max(width, height);
  element.style.width = `${width * scale}px`;
  element.style.height = `${height * scale}px`;
  element.style.backgroundSize = `${columns * width * scale}px auto`;
  element.style.backgroundPosition =
    `${-(i % columns) * width * scale}px ${-Math.floor(i / columns) * height * scale}px`;
  element.style.imageRendering = scale >= 1 ? "pixelated" : "auto"; // no blur from its neighbours
  element.dataset.sample = i;
}

function describe(i) {
  const labels = [...groups.values()].map((group) => `${group.name}: ${group.names[group.codes[i]]}`);
  const values = [$("x").value, $("y").value].map((name) => `${name}: ${format(scores.get(name)[i])}`);
  return [`#${data.index[i]}`, ...labels, ...new Set(values)];
}

const cells = Array.from({ length: N_SHOWN }, () => {
  const cell = document.createElement("span");
  cell.className = "sprite";
  cell.tabIndex = 0;
  cell.setAttribute("role", "img");
  cell.addEventListener("focus", () => point(Number(cell.dataset.sample), cell));
  cell.addEventListener("mouseenter", () => point(Number(cell.dataset.sample), cell));
  cell.addEventListener("blur", () => point(-1));
  cell.addEventListener("mouseleave", () => point(-1));
  $("grid").append(cell);
  return cell;
});

function drawGrid(samples) {
  cells.forEach((cell, k) => {
    cell.hidden = k >= samples.length;
    if (cell.hidden || cell.dataset.sample === String(samples[k])) return;
    setSprite(cell, samples[k], GRID);
    cell.setAttribute("aria-label", describe(samples[k]).join(", "));
  });
}

function drawCurves(canvas, curve, samples, chosen) {
  const { nEpochs, values, mean } = curve;
  const ofSample = (i) => values.subarray(i * nEpochs, (i + 1) * nEpochs);
  const colored = (i, width, alpha) => [ofSample(i), styleOf(codesOf()[i]).color, width, [], alpha];
  const lines = samples.map((i) => colored(i, 0.8, 0.5));
  lines.push([mean, "#000", 1.5, [4, 3], 1]);
  if (chosen.length) lines.push([meanCurve(curve, chosen), "#000", 2.2, [], 1]);
  if (cursor >= 0) lines.push(colored(cursor, 2.2, 1));
  let high = 0;
  for (const [line] of lines) for (const value of line) if (value > high) high = value;
  const context = prepared(canvas, CURVE);
  const x = { name: "epoch", low: 0, high: Math.max(nEpochs - 1, 1) };
  const [toX, toY] = drawAxes(context, CURVE, x, { low: 0, high: 1.03 * high || 1 }, curve.name);
  for (const [line, color, width, dash, alpha] of lines) {
    context.globalAlpha = alpha;
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.beginPath();
    let isJoined = false; // an epoch that was not measured leaves a gap
    line.forEach((value, t) => {
      const isThere = value === value; // not NaN
      if (isThere) (isJoined ? context.lineTo(toX(t), toY(value)) : context.moveTo(toX(t), toY(value)));
      isJoined = isThere;
    });
    context.stroke();
  }
}

function drawDetails(chosen) {
  $("details").replaceChildren();
  if (chosen.length !== 1) return;
  for (const [name, values] of scores) {
    const line = document.createElement("div");
    line.textContent = `${name}: ${format(values[chosen[0]])}`;
    $("details").append(line);
  }
}

// ---- pointing at a sample -----------------------------------------------------------------------

function point(i, beside = null) {
  // Show a sample next to its mark, or beside an image of the grid; -1: show none.
  if (i === cursor && !beside) return;
  cursor = i;
  $("tip").hidden = i < 0;
  if (i >= 0) {
    setSprite($("tip-image"), i, TIP);
    $("tip-text").replaceChildren(...describe(i).map((text) => {
      const line = document.createElement("div");
      line.textContent = text;
      return line;
    }));
    const box = (beside || $("overlay")).getBoundingClientRect();
    const [x, y] = beside ? [box.right, box.top] : [box.left + px[i] + 10, box.top + py[i] + 6];
    const tip = $("tip").getBoundingClientRect();
    $("tip").style.left = `${Math.max(0, Math.min(x, innerWidth - tip.width - 4))}px`;
    $("tip").style.top = `${Math.max(0, Math.min(y, innerHeight - tip.height - 4))}px`;
  }
  schedule();
}

function nearest(x, y) {
  let [best, least] = [-1, REACH ** 2];
  for (const i of drawOrder) {
    const distance = (px[i] - x) ** 2 + (py[i] - y) ** 2;
    if (distance <= least) [best, least] = [i, distance];
  }
  return best;
}

function positionOf(event) {
  const box = $("overlay").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function onPointerDown(event) {
  const [x, y] = positionOf(event);
  anchor = { x, y, keep: event.shiftKey ? selected.slice() : null };
  $("overlay").setPointerCapture(event.pointerId);
}

function onPointerMove(event) {
  const [x, y] = positionOf(event);
  if (!event.buttons) return point(nearest(x, y));
  if (!anchor || (!brush && Math.hypot(x - anchor.x, y - anchor.y) < 4)) return;
  point(-1);
  brush = { x0: anchor.x, y0: anchor.y, x1: x, y1: y };
  selectBrushed(anchor.keep);
  schedule();
}

function onPointerUp(event) {
  if (anchor && !brush) {
    const clicked = nearest(...positionOf(event)); // a click chooses one sample, or none
    select((i) => i === clicked, anchor.keep);
  }
  anchor = brush = null;
  schedule();
}

function onKey(event) {
  const steps = { ArrowRight: [byX, 1], ArrowLeft: [byX, -1], ArrowUp: [byY, 1], ArrowDown: [byY, -1],
    PageUp: [byY, Math.ceil(n / 20)], PageDown: [byY, -Math.ceil(n / 20)] };
  if (event.key in steps && drawOrder.length) {
    const [order, step] = steps[event.key];
    const at = order.indexOf(cursor) + (cursor < 0 && step < 0 ? 0 : step);
    point(order[Math.max(0, Math.min(order.length - 1, at))]);
    if (anchor) {
      brush = { x0: anchor.x, y0: anchor.y, x1: px[cursor], y1: py[cursor] };
      selectBrushed(anchor.keep);
    }
  } else if (event.key === " " && cursor >= 0) {
    if (!anchor) {
      anchor = { x: px[cursor], y: py[cursor], keep: event.shiftKey ? selected.slice() : null };
      select((i) => i === cursor, anchor.keep);
    } else anchor = brush = null;
  } else if (event.key === "Escape") {
    anchor = brush = null;
    select(() => false);
    point(-1);
  } else return;
  event.preventDefault();
  schedule();
}

// ---- menus and legend ---------------------------------------------------------------------------

function fillMenu(id, names, value) {
  $(id).append(...names.map((name) => new Option(name, name)));
  $(id).value = value;
}

function drawLegend() {
  const { names, codes } = groups.get($("color").value);
  const counts = new Map();
  for (const code of codes) counts.set(code, (counts.get(code) || 0) + 1);
  const entries = names.map((name, code) => [name, code]).filter(([, code]) => counts.has(code));
  $("legend").replaceChildren(...entries.map(([name, code]) => {
    const button = document.createElement("button");
    const { color, shape } = styleOf(code);
    const picture = document.createElement("img");
    picture.src = markerOf(color, shape).address;
    picture.alt = "";
    picture.width = picture.height = MARKER + 2;
    button.append(picture, ` ${name} (${counts.get(code)})`);
    button.setAttribute("aria-pressed", String(!hidden.has(code)));
    button.addEventListener("click", () => {
      if (!hidden.delete(code)) hidden.add(code);
      button.setAttribute("aria-pressed", String(!hidden.has(code)));
      drawAll();
    });
    return button;
  }));
}

function filterAll(isHidden) {
  hidden.clear();
  if (isHidden) groups.get($("color").value).names.forEach((_, code) => hidden.add(code));
  drawLegend();
  drawAll();
}

fillMenu("x", data.scores.names, data.x);
fillMenu("y", data.scores.names, data.y);
fillMenu("color", [...groups.keys()], data.color);
for (const id of ["x", "y", "log-x", "log-y"]) $(id).addEventListener("change", drawAll);
$("color").addEventListener("change", () => filterAll(false));
$("all").addEventListener("click", () => filterAll(false));
$("none").addEventListener("click", () => filterAll(true));
$("overlay").addEventListener("pointerdown", onPointerDown);
$("overlay").addEventListener("pointermove", onPointerMove);
$("overlay").addEventListener("pointerup", onPointerUp);
$("overlay").addEventListener("pointerleave", (event) => { if (!event.buttons) point(-1); });
$("overlay").addEventListener("keydown", onKey);
$("overlay").addEventListener("blur", () => { if (anchor && !brush) anchor = null; point(-1); });
$("indices").addEventListener("focus", () => $("indices").select());
filterAll(false);
