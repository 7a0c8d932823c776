// Plots as inline SVG: text can be selected, and colors come from the style sheet.

const PLOT = { width: 380, height: 240, left: 46, right: 12, top: 12, bottom: 36 };

/** About five round values from `low` to `high`. */
function ticks(low, high) {
  const raw = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

/** Round values between two powers of ten, given by their exponents. */
function logTicks(low, high) {
  const factors = high - low < 1.5 ? [1, 2, 5] : [1];
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => 10 ** (Math.floor(low) + i));
  return powers
    .flatMap((power) => factors.map((factor) => factor * power))
    .filter((value) => value >= 10 ** low && value <= 10 ** high);
}

/** The frame of a plot with its axes. Returns the SVG element, and what maps values to places. */
function plot(title, { x, y, xLabel, yLabel, format = short, log = false, describe = title }) {
  const { width, height, left, right, top, bottom } = PLOT;
  const scale = log ? Math.log10 : Number;
  const range = ([low, high]) =>
    low === high ? [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2] : [low, high];
  const [x0, x1] = range(x);
  const [y0, y1] = range(y.map(scale));
  const toX = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const toY = (value) => height - bottom - ((scale(value) - y0) / (y1 - y0)) * (height - top - bottom);
  const rows = log ? logTicks(y0, y1) : ticks(y0, y1);
  const element = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "group", "aria-label": describe },
    rows.map((value) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(value), y2: toY(value) }),
      svg("text", { class: "end", x: left - 6, y: toY(value) + 4 }, format(value)),
    ]),
    ticks(x0, x1)
      .filter((value) => xLabel !== "Step" || Number.isInteger(value))
      .map((value) => svg("text", { class: "middle", x: toX(value), y: height - bottom + 16 }, short(value))),
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { class: "middle title", x: (left + width - right) / 2, y: height - 4 }, xLabel),
    yLabel && svg("text", { class: "title", x: left, y: top - 2 }, yLabel),
  );
  return { element, toX, toY };
}

/** A figure of one or more lines over a common axis; null values interrupt a line. */
function lineFigure(title, series, { xLabel = "Step", format, range, log } = {}) {
  const known = series.map((line) => ({
    ...line,
    points: line.points.filter(([, y]) => y !== null && y !== undefined),
  }));
  const all = known.flatMap((line) => line.points);
  if (!all.length) return null;
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => y);
  const wide = log && Math.min(...ys) > 0 && Math.max(...ys) >= 10 * Math.min(...ys);
  const y = range ?? [Math.min(wide ? Infinity : 0, ...ys), Math.max(...ys)];
  const last = known.map((line) =>
    line.points.length ? `${line.name} ends at ${(format ?? short)(line.points.at(-1)[1])}` : null,
  );
  const describe = `${title}: ${last.filter(Boolean).join(", ")}`;
  const { element, toX, toY } = plot(title, {
    x: [Math.min(...xs), Math.max(...xs)],
    y,
    xLabel,
    format,
    log: wide,
    describe,
  });
  series.forEach((line, i) => {
    const style = `series s${(line.color ?? i) % 6}${line.strong === false ? " faint" : ""}`;
    let path = "";
    let gap = true;
    for (const [x, value] of line.points) {
      if (value === null || value === undefined) gap = true;
      else {
        path += `${gap ? "M" : "L"}${toX(x).toFixed(1)} ${toY(value).toFixed(1)}`;
        gap = false;
      }
    }
    element.append(svg("path", { class: style, d: path }));
    if (known[i].points.length < 30)
      for (const [x, value] of known[i].points)
        element.append(
          svg(
            "circle",
            { class: style, cx: toX(x).toFixed(1), cy: toY(value).toFixed(1), r: 2.5 },
            svg("title", null, `${line.name}, ${x}: ${(format ?? short)(value)}`),
          ),
        );
    if (line.best)
      element.append(
        svg(
          "circle",
          { class: `${style} best`, cx: toX(line.best[0]), cy: toY(line.best[1]), r: 5.5 },
          svg("title", null, `best checkpoint, step ${line.best[0]}`),
        ),
      );
  });
  return figure(title, element, series.length > 1 && legend(series), last);
}

function figure(title, element, ...notes) {
  return h("figure", { class: "chart" }, h("figcaption", null, title), element, notes.slice(0, 1).filter(Boolean));
}

function legend(series) {
  return h(
    "ul",
    { class: "legend" },
    series.map((line, i) =>
      h("li", { class: line.strong === false ? "" : "strong" }, svgKey((line.color ?? i) % 6), label(line.name)),
    ),
  );
}

const svgKey = (color) =>
  svg(
    "svg",
    { viewBox: "0 0 24 8", class: "key", "aria-hidden": "true" },
    svg("line", { class: `series s${color}`, x1: 1, x2: 23, y1: 4, y2: 4 }),
  );
