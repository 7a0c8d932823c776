// The confusion matrix in tree order. Rows are normalized; a group folds to one row and one column.

const MATRIX = { smallest: 13, largest: 52, band: 18, numbers: 30 }; // sizes in px; numbers are written from that size of a cell on
const folded = new Set(); // nodes that are shown as one row and one column
let matrix = null; // what is drawn: items, columns, pixels, totals, size, left
let cursor = { row: 0, column: 0 };
let whole = false; // whether cells are made so small that all columns are seen at once

function buildMatrix(place) {
  const [frame, readout, images] = [
    h("div", { id: "matrix" }),
    h("p", { id: "cell", class: "readout", "aria-live": "polite" }),
    h("div", { id: "cell-images" }),
  ];
  place.append(
    h(
      "p",
      { class: "quiet", id: "matrix-help" },
      "Rows are the truth, columns the prediction, both in tree order; each row adds up to 100 %. Fold a group with a click on its band, and choose a cell to see the images where it happens most. With the keyboard: arrow keys move, Enter chooses.",
    ),
    h(
      "div",
      { class: "tools" },
      scaleKey(),
      h(
        "label",
        null,
        h("input", {
          type: "checkbox",
          id: "whole",
          autocomplete: "off",
          onchange: (event) => {
            whole = event.target.checked;
            drawMatrix();
          },
        }),
        " Whole matrix at once, without names",
      ),
    ),
    frame,
    readout,
    images,
    h("details", { id: "cells", ontoggle: drawCells }, h("summary", null, "The matrix as a table"), h("div")),
  );
  view(frame, () => {
    images.replaceChildren();
    drawMatrix();
    drawCells();
  });
  matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", () => matrix && paintMatrix());
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width && matrix) drawMatrix();
    width = innerWidth;
  });
  addEventListener("beforeprint", () =>
    frame.style.setProperty("zoom", Math.min(1, 680 / frame.querySelector(".matrix").offsetWidth)),
  );
  addEventListener("afterprint", () => frame.style.removeProperty("zoom"));
}

/** The rows: classes of the level in tree order, and folded groups in the place of their classes. */
function matrixItems() {
  const items = new Map();
  for (const node of treeOrder) {
    const index = classOf[state.level].get(node);
    if (index === undefined) continue;
    const shown = ancestors[node].find((above) => folded.has(above)) ?? node;
    if (!items.has(shown)) items.set(shown, { node: shown, classes: [], folded: shown !== node });
    items.get(shown).classes.push(index);
  }
  return [...items.values()];
}

function countCells(items) {
  const width = CLASSES[state.level].length + 1;
  const cells = confusion();
  const place = new Int32Array(width).fill(items.length); // the column of a predicted class + 1; undecided is the last
  items.forEach((item, i) => item.classes.forEach((index) => (place[index + 1] = i)));
  const columns = items.length + 1;
  const pixels = new Float64Array(items.length * columns);
  const totals = new Float64Array(items.length);
  for (let truth = 0; truth < width - 1; truth += 1) {
    const row = place[truth + 1];
    for (let i = 0; i < width; i += 1) {
      const each = cells[truth * width + i];
      pixels[row * columns + place[i]] += each;
      totals[row] += each;
    }
  }
  return { pixels, totals, width: columns };
}

function drawMatrix() {
  const frame = document.getElementById("matrix");
  const focused = document.activeElement?.closest?.("#matrix [data-node], #matrix .cells");
  const again = focused && (focused.dataset.node ? `[data-node="${focused.dataset.node}"]` : ".cells");
  const scrolled = [frame.firstChild?.scrollLeft ?? 0, frame.firstChild?.scrollTop ?? 0];
  const items = matrixItems();
  const counted = countCells(items);
  const undecided = items.some((_, row) => counted.pixels[row * counted.width + items.length]);
  const columns = items.length + (undecided ? 1 : 0);
  const paths = items.map(({ node }) => ancestors[node]);
  const depth = Math.max(...paths.map((path) => path.length));
  const available = frame.clientWidth || 900;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "600 13px system-ui, sans-serif";
  const widest = Math.max(...items.map(({ node }) => pen.measureText(NODES[node].name).width));
  const names = Math.min(widest + 36, 230, available * 0.3);
  const left = depth * MATRIX.band + names;
  const fitting = (taken) => Math.floor((available - taken - 4) / columns);
  const fits = fitting(left) >= MATRIX.smallest;
  const small = whole && !fits; // then there is room for the bands alone, not for names
  const size = small
    ? Math.max(3, fitting(depth * MATRIX.band))
    : Math.max(MATRIX.smallest, Math.min(MATRIX.largest, fitting(left)));
  document.getElementById("whole").parentElement.hidden = fits;
  matrix = { ...counted, items, columns, size, depth };
  cursor = { row: Math.min(cursor.row, items.length - 1), column: Math.min(cursor.column, columns - 1) };

  const canvas = h("canvas", { "aria-hidden": "true" });
  const box = h("div", { class: "cursor", hidden: true });
  const cells = h(
    "div",
    {
      class: "cells",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "confusion matrix",
      "aria-label": `Confusion matrix, ${items.length} rows`,
      "aria-describedby": "matrix-help",
      onkeydown: moveCursor,
      onfocus: () => pointAt(cursor.row, cursor.column),
      onpointermove: (event) => pointAt(...cellUnder(event)),
      onclick: (event) => chooseCell(...cellUnder(event)),
      style: { width: `${columns * size}px`, height: `${items.length * size}px` },
    },
    canvas,
    box,
  );
  const rowHeads = h(
    "div",
    { class: "row-heads", style: { height: `${items.length * size}px` } },
    bands(items, size),
    items.map((item, row) => rowHead(item, row, size, depth)),
  );
  const columnHeads = h(
    "div",
    { class: "column-heads", "aria-hidden": "true" },
    [...items, ...(undecided ? [null] : [])].map((item) =>
      h(
        "span",
        { style: { width: `${size}px` }, title: item ? NODES[item.node].name : "undecided" },
        item ? label(NODES[item.node].name) : "undecided",
        item && swatch(NODES[item.node].color),
      ),
    ),
  );
  const scroller = h(
    "div",
    {
      class: `matrix${small ? " small" : ""}`,
      style: {
        "--left": `${small ? depth * MATRIX.band : left}px`,
        "--size": `${size}px`,
        "--bands": `${depth * MATRIX.band}px`,
      },
    },
    h("div", { class: "corner" }),
    columnHeads,
    rowHeads,
    cells,
  );
  replace(frame, scroller);
  [scroller.scrollLeft, scroller.scrollTop] = scrolled;
  document.getElementById("cell").textContent = "";
  paintMatrix();
  if (again) frame.querySelector(again)?.focus({ preventScroll: true });
}

function rowHead({ node, folded: isFolded }, row, size, depth) {
  const text = [label(NODES[node].name), swatch(NODES[node].color)];
  const style = { top: `${row * size}px`, height: `${size}px` };
  const attributes = { class: "row-head", title: NODES[node].name, style };
  if (!isFolded) return h("span", attributes, text);
  return h(
    "button",
    {
      ...attributes,
      type: "button",
      class: "row-head fold",
      "data-node": node,
      "aria-expanded": "false",
      onclick: () => foldGroup(node),
    },
    text,
  );
}

/** A button beside the rows of each group that is not folded. */
function bands(items, size) {
  const found = new Map();
  items.forEach(({ node }, row) => {
    for (const above of ancestors[node]) {
      if (!found.has(above)) found.set(above, { first: row, last: row });
      found.get(above).last = row;
    }
  });
  return [...found].map(([node, { first, last }]) =>
    h(
      "button",
      {
        type: "button",
        class: "band",
        "data-node": node,
        "aria-expanded": "true",
        title: `Fold ${NODES[node].name}`,
        onclick: () => foldGroup(node),
        style: {
          top: `${first * size}px`,
          height: `${(last - first + 1) * size - 1}px`,
          left: `${ancestors[node].length * MATRIX.band}px`,
          "--color": NODES[node].color,
        },
      },
      h("span", null, label(NODES[node].name)),
    ),
  );
}

function foldGroup(node) {
  if (!folded.delete(node)) folded.add(node);
  drawMatrix();
}

function paintMatrix() {
  const { items, columns, size, pixels, totals, width } = matrix;
  const canvas = document.querySelector("#matrix canvas");
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const [right, wrong, paper, line, ink, inverse] = [
    "--right",
    "--wrong",
    "--cell",
    "--line-strong",
    "--ink",
    "--on-strong",
  ].map(color);
  const scale = Math.min(2, devicePixelRatio || 1);
  Object.assign(canvas, { width: columns * size * scale, height: items.length * size * scale });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = paper;
  context.fillRect(0, 0, columns * size, items.length * size);
  const gap = size > 8 ? 1 : 0;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${Math.min(12, size * 0.36)}px system-ui, sans-serif`;
  for (let row = 0; row < items.length; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const share = totals[row] ? pixels[row * width + column] / totals[row] : 0;
      if (!share) continue;
      context.globalAlpha = Math.max(0.06, Math.sqrt(share)); // a square root, so that rare mistakes can be seen
      context.fillStyle = row === column ? right : wrong;
      context.fillRect(column * size, row * size, size - gap, size - gap);
      context.globalAlpha = 1;
      if (size < MATRIX.numbers || share < 0.005) continue;
      context.fillStyle = share > 0.3 ? inverse : ink;
      context.fillText((100 * share).toFixed(share < 0.0995 ? 1 : 0), (column + 0.5) * size, (row + 0.5) * size);
    }
  }
  context.strokeStyle = line;
  for (let i = 1; i < columns; i += 1) {
    const shared =
      i < items.length
        ? ancestors[items[i].node].filter((above, d) => ancestors[items[i - 1].node][d] === above).length
        : 0;
    const deepest =
      i < items.length ? Math.max(ancestors[items[i].node].length, ancestors[items[i - 1].node].length) : 1;
    if (shared === deepest) continue;
    context.lineWidth = shared === 0 ? 1.5 : 0.75; // the outermost groups have the thickest lines
    const at = i * size - 0.5;
    context.beginPath();
    context.moveTo(at, 0);
    context.lineTo(at, items.length * size);
    context.moveTo(0, at);
    context.lineTo(columns * size, at);
    context.stroke();
  }
  Object.assign(canvas.style, { width: `${columns * size}px`, height: `${items.length * size}px` });
}
