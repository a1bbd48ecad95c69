"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const numClasses = data.classes.length;
const effects = Object.fromEntries(Object.entries(data.effects).map(([name, text]) => [name, decode(text)]));
const classNames = data.classes.map((item) => item.name);
// With the stream where two streams have a concept of one name.
const conceptNames = data.concepts.map(({ name, stream }) => {
  return data.concepts.some((other) => other.name === name && other.stream !== stream) ? `${name} (${stream})` : name;
});
const QUALITY = { accuracy: "accuracy", label_accuracy: "share of classes told right", mae: "mean absolute error" };

// Numbers

/** Float32 numbers of base64 text. */
function decode(text) {
  return new Float32Array(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function percent(value) {
  return isNumber(value) ? `${(100 * value).toFixed(1)}%` : "";
}

function signed(value, digits = 2) {
  if (!isNumber(value)) return "";
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
}

const isShare = data.quality !== "mae";
const quality = (value) => (isShare ? percent(value) : isNumber(value) ? value.toPrecision(3) : "");
const count = (value) => (isNumber(value) ? String(value) : "");

// Elements

/** An element with attributes, and children or a text, which is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A name that may be broken after its punctuation. */
function breakable(name) {
  const made = make("span");
  for (const part of String(name).split(/(?<=[_:/.-](?=[^_:/.-]))/)) made.append(part, document.createElement("wbr"));
  return made;
}

/** A bar from a zero line, for values between `low` and `high`. */
function bar(value, low, high) {
  const made = make("div", { class: "bar", "aria-hidden": "true" });
  const width = high - low || 1;
  const piece = make("i", { class: value < 0 ? "negative" : "" });
  piece.style.left = `${(100 * (Math.min(value, 0) - low)) / width}%`;
  piece.style.width = `${(100 * Math.abs(value)) / width}%`;
  const zero = make("i", { class: "zero" });
  zero.style.left = `${(-100 * low) / width}%`;
  made.append(piece, zero);
  return isNumber(value) ? made : null;
}

/** The place of a mean between 0 and 1 or the highest value, and its interval. */
function interval(item, highest) {
  const made = make("div", { class: "bar", "aria-hidden": "true" });
  const span = make("i", { class: "span" });
  const place = make("i");
  const low = isNumber(item.low) ? item.low : item.mean;
  const high = isNumber(item.high) ? item.high : item.mean;
  span.style.left = `${(100 * low) / highest}%`;
  span.style.width = `${(100 * (high - low)) / highest}%`;
  place.style.left = `calc(${(100 * item.mean) / highest}% - 2px)`;
  place.style.width = "4px";
  made.append(span, place);
  return made;
}

/** A thumbnail, with the patch outlined that is given. */
function picture(key, text, patch = null) {
  const uri = data.pictures[key];
  if (uri === undefined) return make("div", { class: "missing" }, "no picture");
  const frame = make("div", { class: "frame" }, make("img", { src: uri, alt: text, loading: "lazy" }));
  const box = patch === null ? undefined : (data.boxes[key] ?? {})[patch];
  if (box !== undefined) {
    const outline = make("b");
    ["left", "top", "width", "height"].forEach((side, i) => (outline.style[side] = `${100 * box[i]}%`));
    frame.append(outline);
  }
  return frame;
}

/** An image of the split, and what is said of it. */
function imageItem(row, note, patch = null) {
  const known = data.images[row] ?? {};
  const truth = known.label === null || known.label === undefined ? "" : known.label;
  const said = known.predicted === undefined ? "" : known.predicted;
  const right = truth === "" || truth === said ? truth || said : `${truth}, taken for ${said}`;
  const text = `Image ${row}: ${right}`;
  return make("li", {}, picture(row, text, patch), make("div", {}, text), note ? make("div", { class: "note" }, note) : null);
}

const images = (items) => make("ul", { class: "images" }, ...items);

// Tables

/**
 * A table that is searched and sorted; its rows are gone through by arrow keys, and chosen as they are reached.
 *
 * A column has `name`, `value` of a row, which it is sorted by, and may have `text` or `cell` of a row, and `note`.
 */
function makeTable({ label, columns, rows, sort = 0, down = false, choose = null, key = null, search = true }) {
  const body = make("tbody");
  const heads = columns.map((column, index) => {
    const button = make("button", { type: "button", title: column.note ?? `Sort by ${column.name}` }, column.name);
    button.addEventListener("click", () => sortBy(index, sorted.index === index ? !sorted.down : column.number === true));
    return make("th", { scope: "col", class: column.number ? "number" : "" }, button);
  });
  const sorted = { index: sort, down };
  let chosen = null;
  const lines = rows.map((row) => {
    const line = make("tr", { tabindex: "-1", class: choose ? "choice" : "" });
    for (const column of columns) {
      const content = column.cell ? column.cell(row) : (column.text ?? breakable)(column.value(row));
      line.append(make("td", { class: column.number ? "number" : "" }, content ?? ""));
    }
    line.addEventListener("click", (event) => event.target.closest("button") || pick(line, row));
    line.addEventListener("keydown", (event) => move(event, line));
    const text = columns.map((column) => (column.number ? "" : String(column.value(row)))).join("\n").toLowerCase();
    return { row, line, text };
  });

  function shown() {
    return [...body.querySelectorAll("tr")].filter((line) => !line.hidden);
  }

  function pick(line, row) {
    if (choose === null) return;
    for (const other of body.querySelectorAll("tr")) other.setAttribute("aria-selected", other === line);
    chosen = line;
    stop(line);
    choose(row);
  }

  /** The one row that the tab key reaches. */
  function stop(line) {
    for (const other of body.querySelectorAll("tr[tabindex='0']")) other.tabIndex = -1;
    if (line) line.tabIndex = 0;
  }

  function move(event, line) {
    if (event.target !== line) return;
    const all = shown();
    const place = all.indexOf(line);
    const goal = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: all.length - 1, PageDown: place + 10, PageUp: place - 10 }[event.key];
    if (goal === undefined && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    const next = goal === undefined ? line : all[Math.min(Math.max(goal, 0), all.length - 1)];
    stop(next);
    next.focus();
    next.scrollIntoView({ block: "nearest" });
    pick(next, lines.find((item) => item.line === next).row);
  }

  function sortBy(index, downwards) {
    Object.assign(sorted, { index, down: downwards });
    const { value } = columns[index];
    const missing = (item) => item === null || item === undefined || Number.isNaN(item);
    const compare = (one, two) => {
      if (missing(one) || missing(two)) return missing(one) - missing(two);
      const order = typeof one === "number" ? one - two : String(one).localeCompare(String(two));
      return downwards ? -order : order;
    };
    const ordered = lines.map((item) => [value(item.row), item]).sort((one, two) => compare(one[0], two[0]));
    body.replaceChildren(...ordered.map(([, item]) => item.line));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== index ? "none" : downwards ? "descending" : "ascending"));
    stop(chosen && !chosen.hidden ? chosen : shown()[0]);
  }

  const empty = make("p", { class: "empty" }, rows.length ? "Nothing is found." : "There are none.");
  const table = make("table", { "aria-label": label, ...(choose && { role: "grid" }) }, make("thead", {}, make("tr", {}, ...heads)), body);
  const box = make("div", {}, make("div", { class: "scroll" }, table, empty));
  sortBy(sort, down);
  empty.hidden = rows.length > 0;
  if (search && rows.length > 5) {
    const input = make("input", { type: "search", class: "search", placeholder: "Search", "aria-label": `Search: ${label}` });
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const item of lines) item.line.hidden = !item.text.includes(wanted);
      empty.hidden = shown().length > 0;
      stop(chosen && !chosen.hidden ? chosen : shown()[0]);
    });
    box.prepend(input);
  }
  box.pick = (wanted) => {
    const found = wanted === undefined ? lines.find((item) => item.line === shown()[0]) : lines.find((item) => key(item.row) === wanted);
    if (!found) return;
    found.line.hidden = false;
    pick(found.line, found.row);
    if (wanted === undefined) return;
    found.line.focus({ preventScroll: true });
    found.line.scrollIntoView({ block: "nearest" });
  };
  return box;
}

/** A table on the left, and on the right what `detail` makes of the row that is chosen. */
function makeSplit(options, detail) {
  const right = make("section", { "aria-label": `${options.label}: details`});
  const table = makeTable({ ...options, choose: (row) => right.replaceChildren(...detail(row).filter(Boolean)) });
  table.className = "list";
  const split = make("div", { class: "split" }, table, right);
  split.pick = table.pick;
  table.pick();
  return split;
}

/** A name that leads to what is said of it in another part. */
function link(tab, index, name) {
  const button = make("button", { type: "button", class: "link" }, breakable(name));
  button.addEventListener("click", () => open(tab, index));
  return button;
}

const conceptLink = (index, name = conceptNames[index]) => link("Concepts", index, name);
const classLink = (index) => link("Classes", index, classNames[index]);

/** Columns of a table of contributions, with a bar for `values` of each row. */
function barColumn(name, value, rows, note) {
  const known = rows.map(value).filter(isNumber);
  const low = Math.min(0, ...known);
  const high = Math.max(0, ...known);
  return [
    { name, note, number: true, value, text: (number) => signed(number) },
    { name: "", note: `Sort by ${name}`, value: (row) => value(row) ?? 0, cell: (row) => bar(value(row), low, high) },
  ];
}

// Parts

function figure(name, value, note) {
  return value === "" ? null : make("div", {}, make("dt", {}, name), make("dd", {}, value, note ? make("small", {}, ` ${note}`) : null));
}

function overview() {
  const known = data.figures;
  const span = isNumber(known.low) ? `${quality(known.low)} to ${quality(known.high)}` : "";
  const share = known.correctable ? percent(known.put_right / known.correctable) : "";
  const list = make(
    "dl",
    { class: "figures" },
    figure("images", count(known.images), known.labelled < known.images ? `${known.labelled} with a label` : ""),
    figure(QUALITY[data.quality], quality(known[data.quality]), span),
    figure("concept average precision", percent(known.concept_map)),
    figure("pointing game", percent(known.pointing_game)),
    figure("relevance mass", percent(known.relevance_mass)),
    figure("errors", count(known.errors), known.errors ? `in ${known.pairs} pair${known.pairs === 1 ? "" : "s"} of classes` : ""),
    figure("errors that one correction puts right", share, share && `of ${known.correctable} with annotated concepts`),
  );
  const suspects = data.concepts.map((item, index) => [item, index]).filter(([item]) => item.suspicious);
  const notes = data.left_out.map((sentence) => make("p", { class: "note" }, `Left out: ${sentence}`));
  const more = [
    "Intervals are 95 % bootstrap intervals over the images.",
    "Errors that one correction puts right: images whose class becomes the true one when the attention to one concept is set to what annotators saw.",
    "Pointing game: share of annotated concepts whose strongest attention lies on the annotation. Relevance mass: share of the attention that lies on it.",
  ].map((sentence) => make("p", { class: "note" }, sentence));
  const warned = suspects.length
    ? [
        make("h3", {}, "Concepts that look elsewhere"),
        make("p", {}, "No more of the attention to them lies on anything annotated than of an even map would."),
        make("ul", {}, ...suspects.map(([, index]) => make("li", {}, conceptLink(index)))),
      ]
    : [];
  return make("div", {}, list, ...notes, ...warned, ...more);
}

function classes() {
  const rows = data.classes.map((item, index) => ({ ...item, index, strongest: strongestConcept(index) }));
  const single = rows.some((row) => row.predicted !== undefined);
  const columns = [
    { name: "class", value: (row) => row.name },
    { name: "images", number: true, value: (row) => row.images, text: count },
  ];
  if (single) columns.push({ name: "predicted", number: true, value: (row) => row.predicted, text: count });
  if (rows.some((row) => isNumber(row.accuracy))) columns.push({ name: "accuracy", number: true, value: (row) => row.accuracy, text: percent });
  columns.push({ name: "strongest concept", value: (row) => (row.strongest === null ? "" : conceptNames[row.strongest]) });
  return makeSplit({ label: "Classes", columns, rows, sort: 1, down: true, key: (row) => row.index }, classDetail);
}

/** The concept of the largest mean contribution to a class, in its images. */
function strongestConcept(index) {
  let found = null;
  for (let concept = 0; concept < conceptNames.length; concept++) {
    const value = effects.class[concept * numClasses + index];
    if (!Number.isNaN(value) && (found === null || value > effects.class[found * numClasses + index])) found = concept;
  }
  return found;
}

const effect = (table, concept, index) => effects[table][concept * numClasses + index];

function classDetail(row) {
  const rows = data.concepts.map((item, concept) => ({
    concept, name: item.name, stream: item.stream,
    own: effect("class", concept, row.index), all: effect("all", concept, row.index), weight: effect("weights", concept, row.index),
  }));
  const columns = [
    { name: "concept", value: (item) => item.name, cell: (item) => conceptLink(item.concept, item.name) },
    { name: "stream", value: (item) => item.stream },
    ...barColumn("in its images", (item) => item.own, rows, "Mean contribution to the class over the images of the class"),
    { name: "in all images", note: "Mean contribution to the class over all images", number: true, value: (item) => item.all, text: (value) => signed(value) },
    { name: "weight", note: "What the concept adds where all attention is to it", number: true, value: (item) => item.weight, text: (value) => signed(value) },
  ];
  const cases = (name, title) => {
    const items = row[name] ?? [];
    return items.length ? [make("h3", {}, title), images(items.map((item) => imageItem(item.row, `distance ${item.distance.toFixed(2)}`)))] : [];
  };
  const distance = "Distance: of an image's contributions to the class from their mean over its rightly predicted images.";
  return [
    make("h2", {}, row.name),
    make("p", {}, `${row.images} images${isNumber(row.accuracy) ? `, ${percent(row.accuracy)} right` : ""}. Class bias ${signed(row.bias)}.`),
    make("h3", {}, "Mean contribution of each concept"),
    makeTable({ label: `Concepts of ${row.name}`, columns, rows, sort: 2, down: true }),
    ...cases("typical", "Most typical cases"),
    ...cases("atypical", "Most atypical cases"),
    (row.typical ?? []).length ? make("p", { class: "note" }, distance) : null,
  ];
}

function concepts() {
  const rows = data.concepts.map((item, index) => ({ ...item, index }));
  const has = (name) => rows.some((row) => isNumber(row[name]));
  const columns = [
    { name: "concept", value: (row) => row.name },
    { name: "stream", value: (row) => row.stream },
    { name: "attention", note: "Mean attention, in per cent", number: true, value: (row) => row.attention, text: percent },
  ];
  const optional = [
    ["average_precision", "AP", "Average precision of the strongest attention as a score for the presence of the concept"],
    ["pointing_game", "pointing", "Share of its annotated images where the strongest attention lies on the annotation"],
    ["pixel_tpr", "pixel TPR", "Share of its annotated patches whose most attended concept is annotated there"],
  ];
  for (const [key, name, note] of optional) {
    if (has(key)) columns.push({ name, note, number: true, value: (row) => row[key], text: percent });
  }
  if (rows.some((row) => row.suspicious)) {
    const suspicion = (row) => (row.suspicious ? "looks elsewhere" : "");
    columns.push({ name: "suspicion", note: "Its attention prefers nothing that is annotated", value: suspicion });
  }
  if (data.figures.errors) columns.push({ name: "puts right", note: "Errors that its correction alone puts right", number: true, value: (row) => row.put_right, text: count });
  return makeSplit({ label: "Concepts", columns, rows, sort: 2, down: true, key: (row) => row.index }, conceptDetail);
}

function conceptDetail(row) {
  const rows = data.classes.map((item, index) => ({
    index, name: item.name,
    own: effect("class", row.index, index), all: effect("all", row.index, index), weight: effect("weights", row.index, index),
  }));
  const columns = [
    { name: "class", value: (item) => item.name, cell: (item) => classLink(item.index) },
    ...barColumn("in its images", (item) => item.own, rows, "Mean contribution to the class over the images of the class"),
    { name: "in all images", note: "Mean contribution to the class over all images", number: true, value: (item) => item.all, text: (value) => signed(value) },
    { name: "weight", note: "What the concept adds to the class where all attention is to it", number: true, value: (item) => item.weight, text: (value) => signed(value) },
  ];
  const facts = [
    `${row.stream} concept, mean attention ${percent(row.attention)}.`,
    isNumber(row.average_precision) ? `Average precision ${percent(row.average_precision)}.` : "",
    row.annotated_images ? `Annotated in ${row.annotated_images} images: pointing game ${percent(row.pointing_game)}, relevance mass ${percent(row.relevance_mass)}, pixel TPR ${percent(row.pixel_tpr) || "unknown"}.` : "",
    isNumber(row.mass_on_annotated) ? `${percent(row.mass_on_annotated)} of its attention lies on anything annotated, where an even map would have ${percent(row.mass_if_even)}.` : "",
    data.figures.errors ? `Its correction alone puts ${row.put_right} errors right.` : "",
  ];
  const exemplars = row.exemplars.map((item) => imageItem(item.row, `attention ${item.attention.toFixed(3)}`, item.patch));
  return [
    make("h2", {}, row.name),
    ...facts.filter(Boolean).map((sentence) => make("p", {}, sentence)),
    row.suspicious ? make("p", { class: "warning" }, "Suspicious: its attention prefers nothing that is annotated.") : null,
    ...(row.map ? [make("h3", {}, "Where it is seen"), meanMap(row)] : []),
    make("h3", {}, row.stream === "spatial" ? "Strongest attention, one patch an image" : "Strongest attention"),
    images(exemplars),
    make("h3", {}, "What it does to each class"),
    makeTable({ label: `Classes and ${row.name}`, columns, rows, sort: 1, down: true }),
  ];
}

/** Mean attention at each patch, from black at 0 to yellow at the largest. */
function meanMap(row) {
  const values = decode(row.map);
  const [height, width] = data.grid;
  const largest = Math.max(...values);
  const text = `Mean attention at each patch, from ${Math.min(...values).toPrecision(2)} to ${largest.toPrecision(2)}`;
  const canvas = make("canvas", { class: "map", width, height, role: "img", "aria-label": text });
  const pixels = new ImageData(width, height);
  values.forEach((value, i) => {
    const share = largest > 0 ? value / largest : 0;
    pixels.data.set([255 * Math.sqrt(share), 215 * share, 90 * (1 - share) * Math.sqrt(share) * 2, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return make("div", {}, canvas, make("p", { class: "note" }, `${text}.`));
}

function errors() {
  const rows = data.confusions.map((pair, index) => {
    const contrast = [...decode(pair.contrast)];
    const decided = contrast.indexOf(Math.min(...contrast));
    return { ...pair, index, contrast, decided, label: classNames[pair.label_id], predicted: classNames[pair.predicted_id] };
  });
  const columns = [
    { name: "true", value: (row) => row.label },
    { name: "taken for", value: (row) => row.predicted },
    { name: "images", number: true, value: (row) => row.images, text: count },
    {
      name: "one correction", note: "Share of the images with annotated concepts that the correction of one concept puts right", number: true,
      value: (row) => (row.correctable ? row.put_right / row.correctable : null), text: percent,
    },
    { name: "decided by", note: "The concept that spoke most for the wrong class", value: (row) => conceptNames[row.decided] },
  ];
  const split = makeSplit({ label: "Errors", columns, rows, sort: 2, down: true, key: (row) => row.index }, errorDetail);
  const total = data.figures.pairs ?? 0;
  if (total > rows.length) split.firstChild.prepend(make("p", { class: "note" }, `The ${rows.length} most frequent of ${total} pairs.`));
  return split;
}

function errorDetail(row) {
  const rows = row.contrast.map((value, concept) => ({ concept, value, name: data.concepts[concept].name, stream: data.concepts[concept].stream }));
  const columns = [
    { name: "concept", value: (item) => item.name, cell: (item) => conceptLink(item.concept, item.name) },
    { name: "stream", value: (item) => item.stream },
    ...barColumn("contrast", (item) => item.value, rows, "Mean contribution to the true class less that to the predicted one"),
  ];
  const corrections = row.corrections.slice(0, 5).map((item) => make("li", {}, conceptLink(item.concept), `: ${item.images} of ${row.correctable}`));
  return [
    make("h2", {}, `${row.label}, taken for ${row.predicted}`),
    make("p", {}, `${row.images} images. ${row.correctable ? `One correction would have put ${row.put_right} of ${row.correctable} right.` : "None has annotated concepts that could be corrected."}`),
    make("h3", {}, "Images"),
    images(row.rows.map(errorImage)),
    ...(corrections.length ? [make("h3", {}, "Concepts whose correction alone puts images right"), make("ul", {}, ...corrections)] : []),
    make("h3", {}, "Concepts that decided"),
    make("p", { class: "note" }, `Negative: spoke for ${row.predicted}. The class biases add ${signed(row.bias)}.`),
    makeTable({ label: "Concepts that decided", columns, rows, sort: 2 }),
  ];
}

/** A wrongly classified image, beside the cases most similar to it. */
function errorImage(number) {
  const known = data.images[number];
  const item = imageItem(number, known && isNumber(known.score) ? `score ${percent(known.score)}` : "");
  const cases = data.similar[number];
  if (cases === undefined) return item;
  const similar = cases.map((one) => {
    const text = `Similar: case ${one.row}, ${one.label ?? "no label"}, predicted ${one.prediction}`;
    return make("div", {}, picture(one.picture, text), make("div", {}, text), make("div", { class: "note" }, `similarity ${one.score.toFixed(3)}`));
  });
  return make("li", { class: "wide" }, make("div", {}, ...item.children), ...similar);
}

function slices() {
  const highest = isShare ? 1 : Math.max(...data.slices.map((item) => item.high ?? item.mean)) || 1;
  const name = QUALITY[data.quality];
  const columns = [
    { name: "by", value: (row) => row.by },
    { name: "images with", value: (row) => row.value },
    { name: "images", number: true, value: (row) => row.images, text: count },
    { name, number: true, value: (row) => row.mean, text: quality },
    { name: "interval", note: "95 % bootstrap interval; sorted by its lower end", number: true, value: (row) => row.low, cell: (row) => (isNumber(row.low) ? `${quality(row.low)} to ${quality(row.high)}` : "") },
    { name: "", note: `Sort by ${name}`, value: (row) => row.mean, cell: (row) => interval(row, highest) },
  ];
  return makeTable({ label: "Slices", columns, rows: data.slices, sort: 3, down: !isShare });
}

// Tabs

const parts = { Overview: overview, Classes: classes, Concepts: concepts };
if (data.confusions.length) parts.Errors = errors;
if (data.slices.length) parts.Slices = slices;
const tabs = {};
for (const [name, build] of Object.entries(parts)) {
  const id = name.toLowerCase();
  const tab = make("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": id }, name);
  const panel = make("section", { role: "tabpanel", id, "aria-labelledby": `tab-${id}` });
  tabs[name] = { tab, panel, build, content: null };
  tab.addEventListener("click", () => open(name));
  tab.addEventListener("keydown", (event) => {
    const names = Object.keys(tabs);
    const place = names.indexOf(name);
    const goal = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: names.length - 1 }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    const next = names[(goal + names.length) % names.length];
    open(next);
    tabs[next].tab.focus();
  });
  document.getElementById("tabs").append(tab);
  document.getElementById("panels").append(panel);
}

/** Shows a part, which is built when it is first shown, and chooses a row of it. */
function open(name, index) {
  for (const [other, { tab, panel }] of Object.entries(tabs)) {
    tab.setAttribute("aria-selected", other === name);
    tab.tabIndex = other === name ? 0 : -1;
    panel.hidden = other !== name;
  }
  const part = tabs[name];
  if (part.content === null) {
    part.content = part.build();
    part.panel.append(part.content);
  }
  if (index === undefined) return;
  part.content.pick(index);
  window.scrollTo(0, 0);
}

open("Overview");
