"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

/** Float32 numbers of base64 text. */
function decode(text) {
  return new Float32Array(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
}

const numClasses = data.classes.length;
const [rows, columns] = data.grid;
const patches = rows * columns;
const contributions = decode(data.contributions); // concepts x classes
const attention = decode(data.attention); // concepts
const biases = decode(data.class_biases);
const logits = decode(data.logits);
const headAttention = decode(data.patch_attention_heads); // heads x spatial concepts x patches
const tables = decode(data.tables); // heads x spatial concepts x classes: what attention 1 at a patch adds
const spatial = data.concepts.filter((concept) => concept.stream === "spatial").length;
const heads = spatial ? tables.length / (spatial * numClasses) : 0;

const state = { shown: data.shown, other: data.other, kind: "contribution", own: false, all: false, pinned: null, pointed: null };

// Numbers

/** What a value per class is for the class shown, less that of the class compared with. */
function relative(values, start = 0) {
  return values[start + state.shown] - (state.other < 0 ? 0 : values[start + state.other]);
}

function contribution(concept) {
  return relative(contributions, concept * numClasses);
}

/** Decimals that give a number three digits. */
function decimals(value) {
  return Math.max(2 - Math.floor(Math.log10(value)), 0);
}

/** A number with its sign, if it is not 0 as it is written. */
function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
}

/** Decimals of contributions: 2, or for values three digits of the largest number. */
function sumDigits() {
  if (!data.is_regression) return 2;
  const largest = Math.max(Math.abs(relative(logits)), ...data.concepts.map((_, column) => Math.abs(contribution(column))));
  return largest > 0 ? decimals(largest) : 2;
}

// Maps

/** Attention or contribution of a spatial concept at every patch. */
function patchMap(index) {
  const values = new Float32Array(patches);
  for (let head = 0; head < heads; head++) {
    const attended = (head * spatial + index) * patches;
    const table = relative(tables, (head * spatial + index) * numClasses);
    const weight = state.kind === "attention" ? 1 / heads : table;
    for (let patch = 0; patch < patches; patch++) values[patch] += weight * headAttention[attended + patch];
  }
  return values;
}

/** Both ends of the colour scale are this far from 0, or one of them for attention. */
function scaleLimit(values) {
  const maps = state.own ? [values] : Array.from({ length: spatial }, (_, index) => patchMap(index));
  return Math.max(0, ...maps.map((map) => map.reduce((most, value) => Math.max(most, Math.abs(value)), 0))) || 1;
}

/** Sets pixel i to the colour of a value from -1 to 1; the smaller the value, the more of the image shows through. */
function paint(pixels, i, value) {
  const palette = data.palettes[state.kind];
  const place = state.kind === "attention" ? value : (value + 1) / 2;
  const color = palette[Math.round(Math.min(Math.max(place, 0), 1) * (palette.length - 1))];
  pixels.set(color, 4 * i);
  pixels[4 * i + 3] = 255 * Math.sqrt(Math.min(Math.abs(value), 1));
}

/** Where pixels along an axis lie between patch centres; outside what the model sees, -1. */
function places(axis, pixels, count) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const position = (pixel + 0.5) / pixels;
    if (position < axis.seen[0] || position >= axis.seen[1]) return -1;
    return Math.min(Math.max((position - axis.start) / axis.patch - 0.5, 0), count - 1);
  });
}

const canvas = element("map");
const scale = Math.min(512 / Math.sqrt(data.width * data.height), 4096 / Math.max(data.width, data.height));
canvas.width = Math.max(1, Math.round(data.width * scale));
canvas.height = Math.max(1, Math.round(data.height * scale));
const down = places(data.axes[0], canvas.height, rows);
const across = places(data.axes[1], canvas.width, columns);

function drawMap(values, limit) {
  const picture = new ImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    if (down[y] < 0) continue;
    const top = Math.floor(down[y]);
    const bottom = Math.min(top + 1, rows - 1);
    const lower = down[y] - top;
    for (let x = 0; x < canvas.width; x++) {
      if (across[x] < 0) continue;
      const left = Math.floor(across[x]);
      const right = Math.min(left + 1, columns - 1);
      const further = across[x] - left;
      const above = values[top * columns + left] * (1 - further) + values[top * columns + right] * further;
      const below = values[bottom * columns + left] * (1 - further) + values[bottom * columns + right] * further;
      paint(picture.data, y * canvas.width + x, (above * (1 - lower) + below * lower) / limit);
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function drawLegend(limit) {
  const bar = element("scale");
  const picture = new ImageData(bar.width, bar.height);
  const lowest = state.kind === "attention" ? 0 : -1;
  for (let i = 0; i < bar.width * bar.height; i++) {
    paint(picture.data, i, lowest + ((1 - lowest) * (i % bar.width)) / (bar.width - 1));
  }
  bar.getContext("2d").putImageData(picture, 0, 0);
  const digits = decimals(limit);
  const isAttention = state.kind === "attention";
  element("low").textContent = isAttention ? "0" : signed(-limit, digits);
  element("middle").textContent = isAttention ? (limit / 2).toFixed(digits) : "0";
  element("high").textContent = isAttention ? limit.toFixed(digits) : signed(limit, digits);
  const number = data.is_regression ? "value" : "logit";
  const unit = state.other < 0 ? `${number} per patch` : "difference of logits per patch";
  element("unit").textContent = isAttention ? "attention, from 0 to 1" : unit;
}

/** Shows the map of the concept under the pointer or focus, else of the pinned one, else the image alone. */
function showMap() {
  const column = state.pointed ?? state.pinned;
  const concept = column === null ? null : data.concepts[column];
  const mapped = concept !== null && concept.stream === "spatial";
  canvas.hidden = element("legend").hidden = !mapped;
  element("image").classList.toggle("grey", mapped);
  if (concept === null) {
    element("caption").textContent = spatial ? "Point at a concept to see where it counted." : "This model sees concepts in the whole image: there are no maps.";
  } else if (!mapped) {
    element("caption").textContent = `${concept.name}: seen in the image as a whole (${concept.stream} concept), no map.`;
  } else {
    const values = patchMap(concept.index);
    const limit = scaleLimit(values);
    drawMap(values, limit);
    drawLegend(limit);
    const digits = decimals(limit);
    const isAttention = state.kind === "attention";
    const [least, most] = [Math.min(...values), Math.max(...values)].map((value) => (isAttention ? value.toFixed(digits) : signed(value, digits)));
    const subject = isAttention ? "attention" : `contribution to ${question(" rather than ")}`;
    element("caption").textContent = `${concept.name}: ${subject}, from ${least} to ${most} per patch.`;
  }
}

// Concepts

/** The class shown and the one compared with, if any. */
function question(between) {
  const shown = data.classes[state.shown];
  return state.other < 0 ? shown : shown + between + data.classes[state.other];
}

/** A piece of text in an element of its own. */
function span(className, text) {
  const made = document.createElement("span");
  made.className = className;
  made.textContent = text;
  return made;
}

/** A name that may be broken after its punctuation. */
function breakable(name) {
  const made = span("name", "");
  for (const part of name.split(/(?<=[_:/.-](?=[^_:/.-]))/)) made.append(part, document.createElement("wbr"));
  return made;
}

/** What a row of the list holds: name, bar from the zero line, number. */
function fillRow(row, label, value, low, high) {
  const track = span("track", "");
  const zero = span("zero", "");
  const bar = span(value < 0 ? "bar negative" : "bar", "");
  const width = Math.max(high - low, data.least_span * 10 ** (2 - sumDigits()));
  zero.style.left = `${(-100 * low) / width}%`;
  bar.style.left = `${(100 * (Math.min(value, 0) - low)) / width}%`;
  bar.style.width = `${(100 * Math.abs(value)) / width}%`;
  track.append(bar, zero);
  row.append(label, track, span("value", signed(value, sumDigits())));
  const item = document.createElement("li");
  item.append(row);
  return item;
}

/** The row of a concept, to be pointed at. */
function conceptRow(column, low, high) {
  const concept = data.concepts[column];
  const value = contribution(column);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "concept";
  button.dataset.column = column;
  button.title = concept.name;
  const attended = `attention ${attention[column].toFixed(2)}`;
  button.setAttribute("aria-label", `${concept.name}, ${concept.stream} concept, contribution ${signed(value, sumDigits())}, ${attended}`);
  button.setAttribute("aria-pressed", state.pinned === column);

  const label = span("label", "");
  label.append(breakable(concept.name), span("stream", `${concept.stream}, ${attended}`));
  button.addEventListener("pointerenter", () => point(column));
  button.addEventListener("pointerleave", () => point(null));
  button.addEventListener("focus", () => point(column));
  button.addEventListener("blur", () => point(null));
  button.addEventListener("click", () => pin(column));
  return fillRow(button, label, value, low, high);
}

function point(column) {
  state.pointed = column;
  showMap();
}

function pin(column) {
  state.pinned = state.pinned === column ? null : column;
  for (const button of document.querySelectorAll(".concept")) {
    button.setAttribute("aria-pressed", Number(button.dataset.column) === state.pinned);
  }
  showMap();
}

/** Columns of the concepts with a row of their own, and of the others, as contribution_rows chooses them in Python. */
function chooseRows() {
  const size = (column) => Math.abs(contribution(column));
  const order = data.concepts.map((_, column) => column).sort((one, two) => size(two) - size(one));
  const least = data.least_share * size(order[0]);
  const shown = state.all ? order : order.slice(0, data.top).filter((column) => size(column) >= least);
  const groups = new Map();
  for (const column of shown) {
    const { name } = data.concepts[column];
    groups.set(name, [...(groups.get(name) ?? []), column]);
  }
  const weight = (group) => Math.abs(sum(group));
  const listed = [...groups.values()].sort((one, two) => weight(two) - weight(one)).flat();
  return [listed, order.slice(shown.length)];
}

function sum(columns) {
  return columns.reduce((total, column) => total + contribution(column), 0);
}

function showConcepts() {
  const [listed, others] = chooseRows();
  const values = [...listed.map(contribution), sum(others)];
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const items = listed.map((column) => conceptRow(column, low, high));
  if (others.length > 0) {
    const label = span("label", `${others.length} other${others.length === 1 ? "" : "s"}`);
    items.push(fillRow(span("others", ""), label, sum(others), low, high));
  }
  element("list").replaceChildren(...items);

  const bias = relative(biases);
  const digits = sumDigits();
  const added = signed(sum([...data.concepts.keys()]), digits);
  const logit = signed(relative(logits), digits);
  const plus = `${bias < 0 ? "\u2212" : "+"} ${Math.abs(bias).toFixed(digits)}`;
  const shown = data.classes[state.shown];
  const result = data.is_regression ? shown : `logit of ${shown}, probability ${data.score_texts[state.shown]}`;
  element("sum").textContent =
    state.other < 0
      ? `${added} (contributions) ${plus} (bias) = ${logit} (${result})`
      : `${added} (differences of contributions) ${plus} (difference of biases) = ${logit} (logit of ${data.classes[state.shown]} less that of ${data.classes[state.other]})`;
  element("more").hidden = !state.all && others.length === 0;
  element("more").textContent = state.all ? "Show fewer concepts" : `Show all ${data.concepts.length} concepts`;
}

// Doubt

/** Answers so far: what was known before each, the concept, the answer, and how many questions had been put off. */
const answered = [];
let known = data.doubt;
let putOff = 0;

function alternatives(labels) {
  return labels.join(" or ");
}

function choice(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => {
    act();
    showDoubt();
  });
  return made;
}

function reply(concept, answer) {
  answered.push({ before: known, concept, answer, putOff });
  known = known.then[concept][answer];
  putOff = 0;
}

function takeBack() {
  const last = answered.pop();
  known = last.before;
  putOff = last.putOff;
}

function verdict() {
  if (known.verdict === "decide") return `Decided: ${known.labels[0]}.`;
  if (known.verdict === "abstain") return `I don't know: ${alternatives(known.labels)}.`;
  return `This is not the kind of image that the model knows. The nearest class would be ${known.labels[0]}.`;
}

/** A paragraph of a question, with the answers to choose from. */
function questionParts(question) {
  const asked = document.createElement("p");
  asked.append("Would settle it: is there ", ...breakable(question.concept).childNodes, "? ");
  asked.append(`If yes, ${alternatives(question.if_yes.labels)}; if no, ${alternatives(question.if_no.labels)}.`);
  const answers = ["yes", "no"].map((answer) => choice(answer === "yes" ? "Yes" : "No", () => reply(question.concept, answer)));
  return [asked, ...answers, choice("Not sure", () => putOff++)];
}

function showDoubt() {
  element("doubt").hidden = known === null;
  if (known === null) return;
  element("verdict").textContent = verdict();
  element("asked").textContent = answered.map(({ concept, answer }) => `${concept}: ${answer}.`).join(" ");
  const parts = [];
  if (putOff < known.ask.length) parts.push(...questionParts(known.ask[putOff]));
  else if (known.verdict === "abstain") {
    const none = document.createElement("p");
    none.textContent = "This page has no further question.";
    parts.push(none);
  }
  if (answered.length) parts.push(choice("Take the last answer back", takeBack));
  element("ask").replaceChildren(...parts);
  const share = `${Number((100 * (1 - known.alpha)).toFixed(2))} %`;
  element("promise").hidden = !["decide", "abstain"].includes(known.verdict);
  element("promise").textContent = answered.length
    ? "After answers, the classes follow from the model's exact sum; no share of right ones is promised."
    : `Of images like the ${known.images.toLocaleString("en")} that this was calibrated with, the right class is among those named for ${share} or more.`;
}

function update() {
  const value = data.is_regression ? ` = ${data.score_texts[state.shown]}` : "";
  element("question").textContent = `Why ${question(" and not ")}${value}?`;
  showConcepts();
  showMap();
}

// Controls

function fillClasses(select, chosen, none) {
  const options = data.classes.map((label, index) => new Option(`${label} (${data.score_texts[index]})`, index));
  select.replaceChildren(...(none ? [new Option(none, -1)] : []), ...options);
  select.value = chosen;
}

fillClasses(element("class"), state.shown, null);
fillClasses(element("other"), state.other, "(no comparison)");
element("compare").hidden = data.is_regression;
element("class").addEventListener("change", (event) => {
  state.shown = Number(event.target.value);
  update();
});
element("other").addEventListener("change", (event) => {
  state.other = Number(event.target.value);
  update();
});
for (const radio of document.querySelectorAll("input[name=kind]")) {
  radio.addEventListener("change", () => {
    state.kind = radio.value;
    showMap();
  });
}
element("own").addEventListener("change", (event) => {
  state.own = event.target.checked;
  showMap();
});
element("more").addEventListener("click", () => {
  state.all = !state.all;
  update();
});
const opacity = element("opacity");
opacity.addEventListener("input", () => (canvas.style.opacity = opacity.value / 100));
canvas.style.opacity = opacity.value / 100;

// The image

const frame = element("frame");
frame.style.setProperty("--ratio", data.width / data.height);
element("image").classList.toggle("small", Math.max(data.width, data.height) <= 128);
element("map-controls").hidden = spatial === 0;
const [vertical, horizontal] = data.axes.map((axis) => axis.seen.map((edge) => Math.min(Math.max(edge, 0), 1)));
const seesAll = vertical[1] - vertical[0] === 1 && horizontal[1] - horizontal[0] === 1;
element("seen").hidden = element("seen-note").hidden = seesAll;
Object.assign(element("seen").style, {
  top: `${100 * vertical[0]}%`,
  height: `${100 * (vertical[1] - vertical[0])}%`,
  left: `${100 * horizontal[0]}%`,
  width: `${100 * (horizontal[1] - horizontal[0])}%`,
});
state.pinned = chooseRows()[0].reduce((most, column) => {
  if (data.concepts[column].stream !== "spatial") return most;
  return most === null || Math.abs(contribution(column)) > Math.abs(contribution(most)) ? column : most;
}, null);
update();
showDoubt();
