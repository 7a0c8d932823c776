// What all scripts of the page share: the document, elements, numbers, the tree, and the chosen run and level.

const report = JSON.parse(document.getElementById("document").textContent);
const { levels: LEVELS, nodes: NODES, classes: CLASSES } = report.tree;
const RUNS = report.runs;
const state = { level: 0, run: 0, ...history.state };
const views = []; // functions that draw a part of the page anew after the level or the run has changed

// Elements ------------------------------------------------------------------------------------------------------------

/** Make an element. Attributes that begin with "on" are listeners; children are elements, or text and never markup. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, text] of Object.entries(value)) element.style.setProperty(name, text);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Replace what an element holds. */
const replace = (place, ...children) => {
  place.replaceChildren();
  fill(place, null, children);
};

/** The place of a section for what is drawn there; the section is shown from then on. */
function body(id) {
  document.getElementById(id).hidden = false;
  return document.querySelector(`#${id} > .body`);
}

/** A user's text, kept apart from the direction of what is around it. */
const label = (text, attributes) => h("bdi", { class: "name", ...attributes }, text);
const swatch = (color) => h("span", { class: "swatch", "aria-hidden": "true", style: { background: color } });
const nodeLabel = (node) => h("span", { class: "class" }, swatch(NODES[node].color), label(NODES[node].name));
const className = (level, index) => (index < 0 ? "undecided" : NODES[CLASSES[level][index]].name);
const classLabel = (level, index) => (index < 0 ? label("undecided") : nodeLabel(CLASSES[level][index]));

/** A group of radio buttons that looks like one switch. */
function radios(legend, name, options, chosen, choose) {
  return h(
    "fieldset",
    { class: "switch" },
    h("legend", null, legend),
    options.map((text, i) =>
      h(
        "label",
        null,
        h("input", {
          type: "radio",
          name,
          value: i,
          checked: i === chosen,
          autocomplete: "off",
          onchange: () => choose(i),
        }),
        h("span", null, label(text)),
      ),
    ),
  );
}

/** A table in a frame that scrolls sideways; the heads of `numbers` columns, counted from the end, are set right. */
function table(name, heads, numbers, rows, attributes) {
  const head = heads.map((text, i) => h("th", { scope: "col", class: i >= heads.length - numbers && "number" }, text));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": name },
    h("table", attributes, h("thead", null, h("tr", null, head)), h("tbody", null, rows)),
  );
}

const number = (value, text) => h("td", { class: "number", "data-value": value ?? "" }, text);

// Numbers -------------------------------------------------------------------------------------------------------------

const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const percentSign = (value, digits = 1) =>
  value === null || value === undefined ? "–" : `${percent(value, digits)} %`;
const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));
const signed = (value, digits = 1) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(value).toFixed(digits)}`;

/** Few digits for numbers of any size: 0.0123, 1.5, 120, 1.2e-5. */
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e6 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// The tree ------------------------------------------------------------------------------------------------------------

const children = NODES.map(() => []);
const roots = [];
NODES.forEach((node, i) => (node.parent === null ? roots : children[node.parent]).push(i));

const treeOrder = []; // node indices from the root down, and the position of each
(function visit(nodes) {
  for (const node of nodes) {
    treeOrder.push(node);
    visit(children[node]);
  }
})(roots);
const position = [];
treeOrder.forEach((node, i) => (position[node] = i));

/** The ancestors of a node from the root down, without itself. */
const ancestors = NODES.map((node) => {
  const path = [];
  for (let parent = node.parent; parent !== null; parent = NODES[parent].parent) path.unshift(parent);
  return path;
});

const classOf = CLASSES.map((nodes) => new Map(nodes.map((node, i) => [node, i]))); // per level, by node

/** The depth of the lowest common ancestor of two nodes; 0 is the root. */
function commonDepth(a, b) {
  const [first, second] = [
    [...ancestors[a], a],
    [...ancestors[b], b],
  ];
  let depth = 0;
  while (depth < first.length && depth < second.length && first[depth] === second[depth]) depth += 1;
  return depth;
}

// The chosen run and level --------------------------------------------------------------------------------------------

const run = () => RUNS[state.run];
const evaluation = (index = state.run) => RUNS[index].evaluation;
const measures = (index = state.run, level = state.level) => evaluation(index)?.levels[level] ?? null;

/** The measures of a node at the chosen level, or else at the finest level that has it as a class. */
function nodeMeasures(node, index = state.run) {
  const at = [state.level, ...CLASSES.keys()].find((level) => classOf[level].has(node));
  return at === undefined ? null : (measures(index, at)?.classes[classOf[at].get(node)] ?? null);
}

const confusions = new Map();

/** C,C+1 pixels by true class and predicted class + 1, row by row; column 0 is undecided. */
function confusion(index = state.run, level = state.level) {
  const key = `${index},${level}`;
  if (!confusions.has(key)) {
    const width = CLASSES[level].length + 1;
    const cells = new Float64Array(CLASSES[level].length * width);
    for (const [truth, predicted, pixels] of measures(index, level).confusion)
      cells[truth * width + predicted + 1] += pixels;
    confusions.set(key, cells);
  }
  return confusions.get(key);
}

function choose(change) {
  Object.assign(state, change);
  history.replaceState({ level: state.level, run: state.run }, ""); // a page that is loaded again shows the same
  draw();
}

function draw() {
  for (const view of views) view();
}
