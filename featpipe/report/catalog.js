"use strict";
// Names come from whoever wrote the cache: they only ever become text, never markup.
const AT_ONCE = 250;
const entries = JSON.parse(document.getElementById("data").textContent);
const search = document.getElementById("search");
const body = document.getElementById("rows");
const more = document.getElementById("more");

const values = (entry) => entry.shape.reduce((product, size) => product * size, 1);
const bytes = (count) => {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return (unit === "B" || count >= 100 ? count.toFixed(0) : count.toFixed(1)) + " " + unit;
    count /= 1000;
  }
  return count.toFixed(2) + " TB";
};
const columns = [
  { title: "Model", kind: "name first", text: (e) => e.model },
  { title: "Weights", kind: "name", text: (e) => e.weights },
  { title: "Layer", kind: "name mono", text: (e) => e.layer + (e.view ? " · view " + e.view : ""), order: (e, at) => at },
  { title: "Reduction", kind: "tight", text: (e) => e.reduce },
  { title: "Shape", kind: "n", text: (e) => e.shape.join(" × "), order: values },
  { title: "Stimuli", kind: "name", text: (e) => e.stimuli },
  { title: "Rows", kind: "n", text: (e) => (e.missing ? e.rows - e.missing + " of " : "") + e.rows, order: (e) => e.rows },
  { title: "Stored", kind: "n", text: (e) => bytes(e.bytes), order: (e) => e.bytes },
  { title: "Written", kind: "n", text: (e) => e.written },
];
entries.forEach((entry, at) => {
  entry.at = at;
  entry.words = [entry.model, entry.weights, entry.layer, entry.reduce, entry.stimuli, entry.stimuli_digest, entry.key,
    entry.dtype, entry.written, entry.missing ? "incomplete" : "complete"].join("\n").toLowerCase();
});

let shown = entries, limit = AT_ONCE, sorted = null;

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function code(text) {
  const box = element("div", "code");
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(box.firstChild);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copy.textContent = "Selected";
    }
  });
  box.append(element("pre", "", text), copy);
  return box;
}

function details(entry) {
  const ratio = entry.raw_bytes ? " (" + Math.round((100 * entry.bytes) / entry.raw_bytes) + " % of " + bytes(entry.raw_bytes) + ")" : "";
  const facts = [
    ["Key", entry.key],
    ["Row", entry.dims.map((name, at) => name + " " + entry.shape[at]).join(" × ") + ", " + entry.dtype],
    ["Stored", bytes(entry.bytes) + ratio + ", codec " + entry.codec],
    ["Rows", entry.missing ? entry.missing + " of " + entry.rows + " are missing" : "all " + entry.rows],
    ["Stimulus set", entry.stimuli + " (" + entry.stimuli_digest + ")"],
    ["Weights", entry.weights],
    ...entry.facts,
    ["Last written", entry.written || "nothing yet"],
  ];
  const list = element("dl");
  for (const [name, text] of facts) list.append(element("dt", "", name), element("dd", "", text));
  const ways = element("div");
  ways.append(code(entry.python), code(entry.shell));
  const two = element("div", "two");
  two.append(list, ways);
  const row = element("tr", "details");
  const cell = element("td");
  cell.colSpan = columns.length;
  cell.append(two);
  row.append(cell);
  return row;
}

function toggle(row, entry) {
  const open = row.classList.toggle("open");
  row.setAttribute("aria-expanded", String(open));
  if (open) row.after(details(entry));
  else row.nextSibling.remove();
}

function line(entry) {
  const row = element("tr", "row");
  row.tabIndex = 0;
  row.dataset.key = entry.key;
  row.setAttribute("aria-expanded", "false");
  for (const column of columns) {
    const cell = element("td", column.kind, column.text(entry));
    if (column.title === "Rows" && entry.missing) cell.classList.add("part");
    row.append(cell);
  }
  row.addEventListener("click", () => toggle(row, entry));
  row.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    toggle(row, entry);
  });
  return row;
}

function draw() {
  body.replaceChildren(...shown.slice(0, limit).map(line));
  const size = shown.reduce((sum, entry) => sum + entry.bytes, 0);
  document.getElementById("count").textContent = shown.length + " of " + entries.length + " arrays, " + bytes(size);
  more.hidden = shown.length <= limit;
  more.textContent = "Show all " + shown.length;
  if (shown.length === 1) toggle(body.firstChild, shown[0]);
}

function arranged(found) {
  if (!sorted) return found;
  const { column, down } = sorted;
  const value = column.order || column.text;
  const ranks = new Map(found.map((entry) => [entry, value(entry, entry.at)]));
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  return [...found].sort((a, b) => (down ? -1 : 1) * compare(ranks.get(a), ranks.get(b)) || a.at - b.at);
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = arranged(entries.filter((entry) => words.every((word) => entry.words.includes(word))));
  limit = AT_ONCE;
  draw();
}

// What is searched and how it is sorted stand in the address: #q=WORDS&sort=COLUMN, or -COLUMN for descending.
function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  search.value = wanted.get("q") || "";
  const sort = wanted.get("sort") || "";
  const column = columns.find((one) => one.title === sort.replace(/^-/, ""));
  sortBy(column ? { column, down: sort.startsWith("-") } : null);
}

function toAddress() {
  const now = new URLSearchParams();
  if (search.value) now.set("q", search.value);
  if (sorted) now.set("sort", (sorted.down ? "-" : "") + sorted.column.title);
  history.replaceState(null, "", now.size ? "#" + now : location.pathname + location.search);
}

function sortBy(wanted) {
  sorted = wanted;
  for (const column of columns) {
    if (sorted && sorted.column === column) column.head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    else column.head.removeAttribute("aria-sort");
  }
  filter();
}

for (const column of columns) {
  column.head = element("th", column.kind === "n" ? "n" : "");
  column.head.scope = "col";
  const button = element("button", "", column.title);
  button.type = "button";
  button.addEventListener("click", () => {
    const again = sorted && sorted.column === column;
    sortBy(again && sorted.down ? null : { column, down: Boolean(again) });
    toAddress();
  });
  column.head.append(button);
  document.getElementById("heads").append(column.head);
}
more.addEventListener("click", () => {
  limit = Infinity;
  draw();
});
let pause = 0;
search.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(() => {
    toAddress();
    filter();
  }, 80);
});
addEventListener("hashchange", fromAddress);
fromAddress();
