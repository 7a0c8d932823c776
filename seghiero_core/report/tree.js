// The tree of classes as a table that folds, and the pairs of classes that are taken for each other.

const unfolded = new Set(); // groups whose children are shown
let unfoldedFor = null; // the level that they were last set for
let weakestFirst = false;

function buildTree(place) {
  const rows = h("div");
  const fold = (nodes) => () => {
    unfolded.clear();
    nodes.forEach((node) => unfolded.add(node));
    drawTree(rows);
  };
  const groups = treeOrder.filter((node) => children[node].length);
  place.append(
    h(
      "div",
      { class: "tools" },
      h(
        "label",
        null,
        h("input", {
          type: "checkbox",
          id: "weakest",
          autocomplete: "off",
          onchange: (event) => {
            weakestFirst = event.target.checked;
            drawTree(rows);
          },
        }),
        " Weakest first",
      ),
      groups.length > 0 && [
        h("button", { type: "button", onclick: fold([]) }, "Fold all"),
        h("button", { type: "button", onclick: fold(groups) }, "Unfold all"),
      ],
    ),
    rows,
  );
  view(rows, drawTree);
}

function drawTree(place) {
  if (unfoldedFor !== state.level) {
    unfolded.clear();
    for (const node of CLASSES[state.level]) ancestors[node].forEach((above) => unfolded.add(above));
    unfoldedFor = state.level;
  }
  const focused = document.activeElement?.closest?.("#tree button")?.dataset.node;
  const heads = [
    "Class",
    "IoU",
    ...(state.run > 0 ? ["Difference"] : []),
    "Boundary IoU",
    "Calibration error",
    "Pixels",
    "Share",
  ];
  const worst = (node) => nodeMeasures(node)?.iou ?? 2;
  const shown = weakestFirst
    ? [...CLASSES[state.level]].sort((a, b) => worst(a) - worst(b))
    : treeOrder.filter((node) => ancestors[node].every((above) => unfolded.has(above)));
  const total = measures().classes.reduce((sum, each) => sum + each.pixels, 0);
  const rows = shown.map((node) => treeRow(node, total, () => drawTree(place)));
  replace(place, table("Measures of the classes", heads, heads.length - 1, rows, { id: "tree" }));
  if (focused) place.querySelector(`button[data-node="${focused}"]`)?.focus();
}

function treeRow(node, total, redraw) {
  const own = nodeMeasures(node);
  const first = state.run > 0 ? nodeMeasures(node, 0) : null;
  const isGroup = children[node].length > 0;
  const toggle = () => {
    if (!unfolded.delete(node)) unfolded.add(node);
    redraw();
  };
  const text = nodeLabel(node);
  const path = ancestors[node].map((above) => NODES[above].name).join(" › ");
  return h(
    "tr",
    { "data-node": node, class: classOf[state.level].has(node) ? "current" : "" },
    h(
      "th",
      { scope: "row", style: { "--depth": weakestFirst ? 0 : ancestors[node].length } },
      isGroup && !weakestFirst
        ? h(
            "button",
            {
              type: "button",
              class: "fold",
              "data-node": node,
              "aria-expanded": String(unfolded.has(node)),
              onclick: toggle,
            },
            text,
          )
        : h("span", { class: "leaf" }, text),
      weakestFirst && path && h("span", { class: "path" }, label(path)),
    ),
    h(
      "td",
      { class: "number", "data-value": own?.iou ?? "" },
      own && own.iou !== null && meter(own.iou),
      h("span", { class: "value" }, percent(own?.iou)),
    ),
    state.run > 0 &&
      h(
        "td",
        { class: "number" },
        typeof own?.iou === "number" && typeof first?.iou === "number"
          ? difference(own.iou - first.iou, false, [100, 1])
          : "–",
      ),
    number(own?.boundary_iou, percent(own?.boundary_iou)),
    number(own?.ece, percent(own?.ece)),
    number(own?.pixels, count(own?.pixels)),
    number(total ? own?.pixels / total : null, own && total ? percent(own.pixels / total) : "–"),
  );
}

// Pairs of classes that are confused -----------------------------------------------------------------------------------

let siblingsOnly = true;

function buildPairs(place) {
  const list = h("div");
  place.append(
    h("h3", null, "Most confused classes"),
    h(
      "div",
      { class: "tools" },
      h(
        "label",
        null,
        h("input", {
          type: "checkbox",
          id: "siblings",
          checked: true,
          autocomplete: "off",
          onchange: (event) => {
            siblingsOnly = event.target.checked;
            drawPairs(list);
          },
        }),
        " Only siblings: classes of one group",
      ),
    ),
    list,
  );
  view(list, drawPairs);
}

/** The pairs of different classes that are confused, most pixels first. */
function confusedPairs() {
  const width = CLASSES[state.level].length + 1;
  const cells = confusion();
  const found = [];
  for (let truth = 0; truth < width - 1; truth += 1) {
    const row = cells.subarray(truth * width, (truth + 1) * width);
    const pixels = row.reduce((sum, each) => sum + each, 0);
    row.forEach((each, column) => {
      if (each && column - 1 !== truth)
        found.push({ truth, predicted: column - 1, pixels: each, share: each / pixels });
    });
  }
  return found.sort((a, b) => b.pixels - a.pixels);
}

function drawPairs(place) {
  const nodeOf = (index) => NODES[CLASSES[state.level][index]];
  const pairs = confusedPairs().filter(
    ({ truth, predicted }) => !siblingsOnly || (predicted >= 0 && nodeOf(truth).parent === nodeOf(predicted).parent),
  );
  if (!pairs.length) {
    replace(
      place,
      h("p", { class: "quiet" }, `At this level no ${siblingsOnly ? "siblings" : "classes"} are confused.`),
    );
    return;
  }
  const rows = pairs.slice(0, 10).map(({ truth, predicted, pixels, share }) => {
    const [a, b] = [CLASSES[state.level][truth], CLASSES[state.level][predicted]];
    const depth = predicted < 0 ? 0 : commonDepth(a, b);
    const open = () =>
      openCell({
        truth: [truth],
        predicted: [predicted],
        pixels,
        share,
        names: [className(state.level, truth), className(state.level, predicted)],
      });
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, classLabel(state.level, truth)),
      h("td", null, classLabel(state.level, predicted)),
      h("td", null, depth ? label(NODES[ancestors[a][depth - 1]].name) : h("span", { class: "quiet" }, "root")),
      number(share, percent(share)),
      number(pixels, count(pixels)),
      h(
        "td",
        null,
        h(
          "button",
          { type: "button", onclick: open },
          "Images",
          h(
            "span",
            { class: "hidden" },
            ` where ${className(state.level, truth)} is predicted as ${className(state.level, predicted)}`,
          ),
        ),
      ),
    );
  });
  replace(
    place,
    table(
      "Most confused classes",
      ["Truth", "Predicted as", "Common group", "% of the truth", "Pixels", h("span", { class: "hidden" }, "Images")],
      0,
      rows,
      { id: "pairs" },
    ),
  );
  for (const head of [...place.querySelectorAll("thead th")].slice(3, 5)) head.classList.add("number");
}
