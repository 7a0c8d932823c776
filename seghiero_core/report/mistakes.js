// How bad the mistakes are: common ancestors, calibration, and the back-off with a threshold.

/** What predictions share with the truth when their paths part at a depth. */
function depthName(depth) {
  if (depth === 0) return LEVELS.length === 1 ? "another class" : `another ${LEVELS.at(-1)} class`;
  return `same ${LEVELS[LEVELS.length - depth]} class`;
}

function buildMistakes(place) {
  const [shares, backOff, calibration] = [h("div"), h("div"), h("div")];
  place.append(h("div", { class: "columns" }, shares, calibration), backOff);
  view(shares, drawMistakes);
  view(calibration, drawCalibration);
  view(backOff, drawBackOff);
}

function drawMistakes(place) {
  const values = evaluation().mistakes_by_common_ancestor;
  const rows = values.map((value, depth) =>
    h(
      "tr",
      null,
      h(
        "th",
        { scope: "row" },
        h("span", { class: "swatch", style: { background: severity(depth) }, "aria-hidden": "true" }),
        depthName(depth),
      ),
      number(depth, depth),
      h(
        "td",
        { class: "number", "data-value": value ?? "" },
        meter(value, severity(depth)),
        h("span", { class: "value" }, percentSign(value)),
      ),
    ),
  );
  replace(
    place,
    h("h3", null, "Where prediction and truth part"),
    h(
      "p",
      { class: "quiet" },
      "Share of the wrong pixels by the depth of the lowest common ancestor of prediction and truth. 0 is the root; the deeper, the milder the mistake.",
    ),
    values.every((value) => value === null)
      ? h("p", null, "No wrong pixel was counted.")
      : table("Mistakes by common ancestor", ["Prediction and truth", "Depth", "Wrong pixels"], 2, rows, {
          id: "ancestors",
        }),
  );
}

const meter = (value, color) =>
  h(
    "span",
    { class: "meter", "aria-hidden": "true" },
    h("span", { style: { width: `${100 * (value ?? 0)}%`, background: color ?? null } }),
  );

function drawCalibration(place) {
  const bins = measures().calibration;
  const total = bins.reduce((sum, bin) => sum + bin.pixels, 0);
  const heading = h("h3", null, "Calibration, level ", label(LEVELS[state.level]));
  if (!total) {
    replace(place, heading, h("p", { class: "quiet" }, "No confidences were measured."));
    return;
  }
  const { element, toX, toY } = plot("Calibration", {
    x: [0, 1],
    y: [0, 1],
    xLabel: "Confidence",
    yLabel: "",
    describe: `Calibration: accuracy over confidence in ${bins.length} bins; expected calibration error ${percentSign(measures().ece)}`,
  });
  bins.forEach((bin, i) => {
    if (bin.accuracy === null) return;
    const [from, to] = [toX(i / bins.length), toX((i + 1) / bins.length)];
    const text = `confidence ${percentSign(bin.confidence)}, accuracy ${percentSign(bin.accuracy)}, ${count(bin.pixels)} pixels`;
    element.append(
      svg(
        "rect",
        {
          class: "bin",
          x: from + 1,
          width: to - from - 2,
          y: toY(bin.accuracy),
          height: toY(0) - toY(bin.accuracy),
          "fill-opacity": 0.25 + 0.75 * Math.sqrt(bin.pixels / Math.max(...bins.map((each) => each.pixels))),
        },
        svg("title", null, text),
      ),
    );
  });
  element.append(svg("line", { class: "ideal", x1: toX(0), y1: toY(0), x2: toX(1), y2: toY(1) }));
  replace(
    place,
    heading,
    h(
      "p",
      { class: "quiet" },
      "Accuracy of the pixels in each bin of confidence; bins in a stronger color hold more pixels. Below the diagonal the model is too sure of itself.",
    ),
    figure(`Accuracy over confidence, ECE ${percentSign(measures().ece)}`, element),
  );
}

let threshold = 0; // position of the slider in the curve

function drawBackOff(place) {
  const curve = evaluation().back_off_curve;
  const heading = h("h3", null, "Answering with a coarser class");
  if (!curve.some((row) => row.accuracy !== null)) {
    replace(place, heading, h("p", { class: "quiet" }, "No confidences were measured."));
    return;
  }
  const measured = [
    ["coverage", "Coverage", "pixels that get any class"],
    ["specificity", "Specificity", "mean fraction of the levels that these get"],
    ["accuracy", "Accuracy", "of these pixels, at their deepest class"],
  ];
  const lowest = Math.min(...curve.flatMap((row) => measured.map(([key]) => row[key] ?? 1)));
  const from = Math.floor(Math.max(0, lowest - 0.02) * 10) / 10;
  const { element, toX, toY } = plot("Back-off", {
    x: [0, 1],
    y: [from, 1],
    xLabel: "Threshold on the confidence",
    format: (value) => percent(value, 0),
    describe: "Coverage, specificity and accuracy over the threshold",
  });
  measured.forEach(([key], i) => {
    const points = curve
      .filter((row) => row[key] !== null)
      .map((row) => `${toX(row.threshold).toFixed(1)} ${toY(row[key]).toFixed(1)}`);
    element.append(svg("path", { class: `series s${i}`, d: points.length ? `M${points.join("L")}` : "" }));
  });
  const mark = svg("line", { class: "mark", y1: PLOT.top, y2: PLOT.height - PLOT.bottom });
  element.append(mark);
  const outputs = measured.map(([key, title, meaning], i) => [key, h("dd", { class: "value" }), title, meaning, i]);
  const text = h("output", { for: "threshold", class: "value" });
  const slider = h("input", {
    type: "range",
    id: "threshold",
    min: 0,
    max: curve.length - 1,
    step: 1,
    value: Math.min(threshold, curve.length - 1),
    autocomplete: "off",
    oninput: update,
  });
  function update() {
    threshold = Number(slider.value);
    const row = curve[threshold];
    text.textContent = row.threshold.toFixed(2);
    slider.setAttribute("aria-valuetext", row.threshold.toFixed(2));
    for (const [key, output] of outputs) {
      output.textContent = percentSign(row[key]);
      output.dataset.value = row[key] ?? "";
    }
    for (const end of ["x1", "x2"]) mark.setAttribute(end, toX(row.threshold));
  }
  replace(
    place,
    heading,
    h(
      "p",
      { class: "quiet" },
      "With a threshold, a pixel gets the finest class whose confidence reaches it, and no class where none does.",
    ),
    h(
      "div",
      { class: "columns backoff" },
      h(
        "div",
        null,
        h("label", { for: "threshold" }, "Threshold"),
        h("div", { class: "slider" }, slider, text),
        h(
          "dl",
          { class: "tiles", id: "back-off" },
          outputs.map(([key, output, title, meaning, i]) =>
            h(
              "div",
              { "data-measure": key },
              h("dt", null, svgKey(i), title),
              output,
              h("dd", { class: "meaning" }, meaning),
            ),
          ),
        ),
      ),
      figure("Over all thresholds, in percent", element),
    ),
  );
  update();
}
