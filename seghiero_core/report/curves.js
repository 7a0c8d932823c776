// Curves of the training. One run: a line per level or term. Several: a line per run.

function buildCurves(place) {
  if (!RUNS.some((each) => each.curves.steps.length || each.curves.validations.length)) {
    place.append(h("p", { class: "quiet" }, "No step has been recorded."));
    return;
  }
  const charts = h("div", { class: "charts" });
  const skipped = RUNS.flatMap((each) => each.curves.steps).filter((step) => step.loss === null).length;
  place.append(
    h(
      "p",
      { class: "quiet", id: "curves-note" },
      "A ring marks the best checkpoint.",
      skipped > 0 && ` Steps without a finite loss, which were skipped: ${count(skipped)}.`,
    ),
    charts,
  );
  views.push(() => replace(charts, ...curveFigures().filter(Boolean)));
}

function curveFigures() {
  const several = RUNS.length > 1;
  const overRuns = (key) =>
    RUNS.map((each, i) => ({
      name: each.name,
      strong: !several || i === state.run,
      points: each.curves.steps.map((step) => [step.step, step[key]]),
    }));
  return [
    mIoUFigure(several),
    lineFigure("Loss", overRuns("loss"), { log: true }),
    !several && termsFigure(),
    lineFigure("Learning rate", overRuns("lr"), {}),
    lineFigure("Images per second", overRuns("images_per_second")),
  ];
}

function mIoUFigure(several) {
  const line = (each, level, rest) => {
    const points = each.curves.validations.map((one) => [one.step, one.miou[level]]);
    const best = each.curves.validations.filter((one) => one.best && one.miou[level] !== null).at(-1);
    return { points, best: best && [best.step, best.miou[level]], ...rest };
  };
  const format = (value) => percent(value, 0);
  if (several) {
    const lines = RUNS.map((each, i) => line(each, state.level, { name: each.name, strong: i === state.run }));
    return lineFigure(`mIoU of level ${LEVELS[state.level]}, percent`, lines, { format });
  }
  const lines = LEVELS.map((name, level) => line(RUNS[0], level, { name, strong: level === state.level }));
  return lineFigure("mIoU by level, percent", lines, { format });
}

function termsFigure() {
  const { steps } = RUNS[0].curves;
  const names = [...new Set(steps.flatMap((step) => Object.keys(step.terms ?? {})))];
  if (names.length < 2) return null;
  return lineFigure(
    "Terms of the loss",
    names.map((name) => ({ name, points: steps.map((step) => [step.step, step.terms?.[name] ?? null]) })),
    { log: true },
  );
}
