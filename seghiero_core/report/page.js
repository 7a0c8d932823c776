// The head of the page: the switches of level and run, and the headline. It starts the rest.

function buildControls() {
  const controls = document.getElementById("controls");
  const links = [...document.querySelectorAll("main > section:not([hidden])")].map((section) =>
    h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent),
  );
  controls.append(
    h(
      "div",
      { class: "inner" },
      radios("Level", "level", LEVELS, state.level, (level) => choose({ level })),
      RUNS.length > 1 &&
        radios(
          "Run",
          "run",
          RUNS.map((each) => each.name),
          state.run,
          (index) => choose({ run: index }),
        ),
      h("nav", { "aria-label": "Sections" }, links),
    ),
  );
  controls.hidden = false;
}

const TILES = [
  ["miou", "mIoU"],
  ["boundary_miou", "Boundary mIoU"],
  ["pixel_accuracy", "Pixel accuracy"],
  ["ece", "Calibration error"],
];

/** Measures over all levels: key, title, unit, what it means. */
const WHOLE = [
  ["full_path_accuracy", "Full-path accuracy", "%", "pixels that are right at every level"],
  ["consistency", "Consistency", "%", "pixels whose classes lie on one path of the tree"],
  ["mean_tree_distance", "Tree distance", "", "mean number of edges between prediction and truth"],
  ["back_off_area", "Risk-coverage area", "", "of the back-off; lower is better"],
];

function drawHeadline(place) {
  const level = measures();
  const best = level.classes.filter((each) => each.iou !== null).sort((a, b) => a.iou - b.iou);
  const inWhole = (key, unit) => (unit ? percentSign(evaluation()[key]) : (evaluation()[key]?.toFixed(3) ?? "–"));
  replace(
    place,
    h(
      "h3",
      null,
      RUNS.length > 1 && [label(run().name), ", "],
      RUNS.length > 1 ? "level " : "Level ",
      label(LEVELS[state.level]),
      ": ",
      count(level.classes.length),
      level.classes.length === 1 ? " class" : " classes",
    ),
    h(
      "dl",
      { class: "tiles", id: "tiles" },
      TILES.map(([key, title]) =>
        h(
          "div",
          { "data-measure": key },
          h("dt", null, title),
          h("dd", { "data-value": level[key] ?? "" }, percentSign(level[key])),
        ),
      ),
    ),
    best.length > 1 &&
      h(
        "p",
        { class: "lead" },
        "Weakest: ",
        label(best[0].name),
        ` (${percentSign(best[0].iou)} IoU). Strongest: `,
        label(best.at(-1).name),
        ` (${percentSign(best.at(-1).iou)}).`,
      ),
    h(
      "dl",
      { class: "tiles small" },
      WHOLE.map(([key, title, unit, meaning]) =>
        h(
          "div",
          { "data-measure": key },
          h("dt", null, title),
          h("dd", { "data-value": evaluation()[key] ?? "" }, inWhole(key, unit)),
          h("dd", { class: "meaning" }, meaning),
        ),
      ),
    ),
    evaluation().sources && sourceTable(evaluation().sources),
  );
  for (const row of document.querySelectorAll("#levels tr[data-level]")) {
    const current = Number(row.dataset.level) === state.level && Number(row.dataset.run) === state.run;
    row.toggleAttribute("data-current", current);
    if (current) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

/** The measures of each source of the data set. */
function sourceTable(sources) {
  const heads = ["Source", "Images", ...TILES.map(([, title]) => title)];
  const rows = Object.entries(sources).map(([name, each]) => {
    const level = each.levels[state.level];
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, label(name)),
      number(each.images, count(each.images)),
      TILES.map(([key]) => number(level[key], percent(level[key]))),
    );
  });
  const title = "By source, in percent";
  return [h("h3", null, title), table(title, heads, heads.length - 1, rows, { id: "sources" })];
}

/** The measures of every run beside those of the first. */
function drawComparison(place) {
  const rows = [
    ...TILES.map(([key, title]) => [title, (i) => measures(i)?.[key], key === "ece", "%"]),
    ...WHOLE.map(([key, title, unit]) => [
      title,
      (i) => evaluation(i)?.[key],
      !["full_path_accuracy", "consistency"].includes(key),
      unit,
    ]),
  ].map(([title, value, lowerIsBetter, unit]) => {
    const show = (x) => (unit ? percentSign(x) : (x?.toFixed(3) ?? "–"));
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, title),
      RUNS.map((_, i) => {
        const [own, first] = [value(i), value(0)];
        const known = i > 0 && typeof own === "number" && typeof first === "number";
        return h(
          "td",
          { class: "number", "data-value": own ?? "" },
          show(own),
          known && difference(own - first, lowerIsBetter, unit ? [100, 1] : [1, 3]),
        );
      }),
    );
  });
  replace(
    place,
    h("h3", null, "Runs side by side, level ", label(LEVELS[state.level])),
    table("Runs side by side", ["Measure", ...RUNS.map((each) => label(each.name))], RUNS.length, rows, {
      id: "comparison",
    }),
    h(
      "p",
      { class: "quiet" },
      "Differences are from the first run, in percentage points where the measure is in percent.",
    ),
  );
}

/** A difference, marked as better or worse in words that are read aloud, too. */
function difference(value, lowerIsBetter, [factor, digits]) {
  const text = signed(factor * value, digits);
  const none = Number((factor * value).toFixed(digits)) === 0;
  const better = lowerIsBetter ? value < 0 : value > 0;
  return h(
    "span",
    { class: `difference ${none ? "" : better ? "better" : "worse"}` },
    none ? "±0" : text,
    !none && h("span", { class: "hidden" }, better ? " better" : " worse"),
  );
}

/** Draw a part of the page now and after each switch, if the chosen run has been evaluated. */
function view(place, drawPart) {
  const missing = () => replace(place, h("p", { class: "quiet" }, "This run has not been evaluated."));
  views.push(() => (evaluation() ? drawPart(place) : missing()));
}

function start() {
  const measured = RUNS.findIndex((each) => each.evaluation !== null);
  if (!(state.level < LEVELS.length)) state.level = 0;
  if (!RUNS[state.run]?.evaluation) state.run = Math.max(0, measured);
  if (measured >= 0) {
    const [headline, comparison] = [h("div"), h("div")];
    body("overview").append(headline, comparison);
    view(headline, drawHeadline);
    if (RUNS.length > 1) views.push(() => drawComparison(comparison));
    buildTree(body("classes"));
    buildMatrix(body("confusion"));
    buildPairs(body("confusion"));
    buildMistakes(body("mistakes"));
    buildPictures(body("images"));
  }
  buildCurves(body("curves"));
  buildControls();
  draw();
}

start();
