// Cells of the confusion matrix: their colors, pointing at one, the images where it happens most, and all of them as a table.

/** What the colors of cells mean. */
function scaleKey() {
  const step = (share) =>
    h(
      "li",
      null,
      h("span", { class: "cell-key wrong", style: { "--share": Math.sqrt(share) } }),
      h("span", { class: "cell-key right", style: { "--share": Math.sqrt(share) } }),
      percentSign(share, 0),
    );
  return h(
    "ul",
    { class: "legend scale", "aria-label": "Colors of the cells: wrong, right" },
    [0.01, 0.05, 0.2, 0.5, 1].map(step),
    h("li", { class: "quiet" }, "orange: wrong, blue: right"),
  );
}

function cellUnder(event) {
  const { size, items, columns } = matrix;
  const box = event.currentTarget.getBoundingClientRect();
  const at = (offset, many) => Math.max(0, Math.min(many - 1, Math.floor(offset / size)));
  return [at(event.clientY - box.top, items.length), at(event.clientX - box.left, columns)];
}

/** Describe a cell: its classes, pixels, share of the row, and names. */
function describeCell(row, column) {
  const { items, pixels, totals, width } = matrix;
  const predicted = items[column];
  return {
    truth: items[row].classes,
    predicted: predicted ? predicted.classes : [-1],
    pixels: pixels[row * width + column],
    share: totals[row] ? pixels[row * width + column] / totals[row] : null,
    names: [NODES[items[row].node].name, predicted ? NODES[predicted.node].name : "undecided"],
  };
}

function pointAt(row, column) {
  const { size } = matrix;
  cursor = { row, column };
  const box = document.querySelector("#matrix .cursor");
  box.hidden = false;
  Object.assign(box.style, {
    left: `${column * size}px`,
    top: `${row * size}px`,
    width: `${size}px`,
    height: `${size}px`,
  });
  const { pixels, share, names } = describeCell(row, column);
  const text =
    row === column
      ? [label(names[0]), " is right for "]
      : [label(names[0]), " is predicted as ", label(names[1]), " for "];
  replace(
    document.getElementById("cell"),
    ...text,
    h("strong", null, percentSign(share, share !== null && share < 0.001 ? 3 : 1)),
    ` of its pixels (${count(pixels)}).`,
  );
  const heads = document.querySelectorAll("#matrix .row-head");
  heads.forEach((head, i) => head.classList.toggle("pointed", i === row));
  document
    .querySelectorAll("#matrix .column-heads > span")
    .forEach((head, i) => head.classList.toggle("pointed", i === column));
}

function moveCursor(event) {
  const { items, columns } = matrix;
  const moves = {
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    Home: [0, -columns],
    End: [0, columns],
    PageUp: [-items.length, 0],
    PageDown: [items.length, 0],
  };
  if (event.key === "Enter" || event.key === " ") chooseCell(cursor.row, cursor.column);
  else if (moves[event.key]) {
    const within = (value, many) => Math.max(0, Math.min(many - 1, value));
    pointAt(
      within(cursor.row + moves[event.key][0], items.length),
      within(cursor.column + moves[event.key][1], columns),
    );
    document.querySelector("#matrix .cursor").scrollIntoView({ block: "nearest", inline: "nearest" });
  } else return;
  event.preventDefault();
}

function chooseCell(row, column) {
  pointAt(row, column);
  openCell(describeCell(row, column));
}

/** Show the images in which a confusion has most pixels. */
function openCell({ truth, predicted, names, pixels }) {
  const found = new Map();
  for (const a of truth)
    for (const b of predicted)
      for (const [image, many] of run().cells[state.level][`${a},${b}`] ?? [])
        found.set(image, (found.get(image) ?? 0) + many);
  const most = [...found].sort((a, b) => b[1] - a[1]).slice(0, 6);
  const place = document.getElementById("cell-images");
  const same = names[0] === names[1];
  const heading = h(
    "h3",
    { tabindex: -1 },
    same
      ? ["Images where ", label(names[0]), " is right most"]
      : ["Images where ", label(names[0]), " is predicted as ", label(names[1])],
  );
  replace(
    place,
    h(
      "div",
      { class: "tools between" },
      heading,
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            place.replaceChildren();
            document.querySelector("#matrix .cells").focus();
          },
        },
        "Close",
      ),
    ),
    most.length
      ? h(
          "div",
          { class: "cards" },
          most.map(([image, many]) => card(image, `${count(many)} of these ${count(pixels)} pixels`)),
        )
      : h("p", { class: "quiet" }, "It happens in no image that is listed here."),
  );
  heading.focus();
}

/** All cells that aren't empty as a table, for readers who don't see the canvas; drawn when it is opened. */
function drawCells() {
  const details = document.getElementById("cells");
  const place = details.lastElementChild;
  if (!details.open || !evaluation()) return place.replaceChildren();
  const width = CLASSES[state.level].length + 1;
  const cells = confusion();
  const rows = [];
  for (const node of treeOrder.filter((each) => classOf[state.level].has(each))) {
    const truth = classOf[state.level].get(node);
    const row = cells.subarray(truth * width, (truth + 1) * width);
    const total = row.reduce((sum, each) => sum + each, 0);
    row.forEach((pixels, i) => pixels && rows.push({ truth, predicted: i - 1, pixels, share: pixels / total }));
  }
  const most = rows.length > 1000 ? [...rows].sort((a, b) => b.pixels - a.pixels).slice(0, 1000) : rows;
  const lines = most.map(({ truth, predicted, pixels, share }) =>
    h(
      "tr",
      null,
      h("th", { scope: "row" }, label(className(state.level, truth))),
      h("td", null, label(className(state.level, predicted))),
      number(share, percent(share, 2)),
      number(pixels, count(pixels)),
    ),
  );
  const note =
    rows.length > most.length
      ? `The ${count(most.length)} cells with the most pixels, of ${count(rows.length)} that aren't empty.`
      : `${count(rows.length)} cells aren't empty.`;
  return replace(
    place,
    h("p", { class: "quiet" }, note),
    table("The matrix as a table", ["Truth", "Predicted as", "% of the truth", "Pixels"], 2, lines),
  );
}
