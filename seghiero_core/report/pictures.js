// Images with truth, prediction and error. Masks are PNGs whose pixels hold a code, R + 256 G; they are painted here in
// the colors of the chosen level.

const GROUPS = ["Worst", "Median", "Best"];
const decoded = new WeakMap(); // the codes of an image's masks, by its entry in the document
const gallery = { group: 0, many: 4, only: null };

function buildPictures(place) {
  const list = h("div", { id: "gallery" });
  const heading = h("h3", { tabindex: -1 });
  const slider = h("input", {
    type: "range",
    id: "opacity",
    min: 0,
    max: 100,
    value: 70,
    autocomplete: "off",
    oninput: () => setOpacity(slider.value / 100),
  });
  const update = (change) => {
    Object.assign(gallery, change);
    drawGallery(heading, list, update);
  };
  place.append(
    h("p", { class: "quiet", id: "images-note" }),
    h(
      "div",
      { class: "tools" },
      radios("Sorted by mIoU", "group", GROUPS, gallery.group, (group) => update({ group, many: 4, only: null })),
      h("label", { class: "slider", for: "opacity" }, "Opacity", slider),
    ),
    errorKey(),
    heading,
    list,
    h(
      "details",
      { id: "all-images", ontoggle: () => drawAll(update, heading) },
      h("summary", null, "All images"),
      h("div"),
    ),
  );
  setOpacity(0.7);
  view(list, () => {
    update({});
    drawAll(update, heading);
  });
}

const setOpacity = (value) => document.documentElement.style.setProperty("--overlay", value);

function errorKey() {
  const item = (color, text) => h("li", null, swatch(color), text);
  return h(
    "ul",
    { class: "legend", "aria-label": "Colors of errors" },
    LEVELS.map((_, depth) => item(severity(depth), depthName(depth))),
    item("#3aa6c9", "undecided"),
    h("li", { class: "quiet" }, "Right and ignored pixels are clear."),
  );
}

/** The color of a mistake by the depth of the lowest common ancestor: from red at the root to yellow. */
function severity(depth) {
  const t = LEVELS.length > 1 ? depth / (LEVELS.length - 1) : 0;
  return `rgb(${[
    [200, 250],
    [24, 204],
    [52, 21],
  ]
    .map(([from, to]) => Math.round(from + t * (to - from)))
    .join(" ")})`;
}

/** The images of the run from the worst to the best; those where nothing could be measured are left out. */
function ranked() {
  const images = run().images.map((image, index) => ({ image, index }));
  return images
    .filter(({ image }) => image.miou[state.level] !== null)
    .sort((a, b) => a.image.miou[state.level] - b.image.miou[state.level]);
}

function drawGallery(heading, list, update) {
  const all = ranked();
  const withPicture = all.filter(({ image }) => image.picture);
  const listed = run().images;
  const pictured = listed.filter((image) => image.picture);
  const total = evaluation().images;
  const note = `${count(listed.length)} of ${count(total)} images are listed, ${count(pictured.length)} of them with pictures.`;
  document.getElementById("images-note").textContent = pictured.length === total ? "" : note;
  let chosen;
  if (gallery.only) {
    chosen = all.filter(({ image }) => image.name === gallery.only.name && image.source === gallery.only.source);
    replace(heading, "Chosen image");
  } else {
    const middle = Math.max(0, Math.floor((withPicture.length - gallery.many) / 2));
    chosen = [
      withPicture.slice(0, gallery.many),
      withPicture.slice(middle, middle + gallery.many),
      withPicture.slice(-gallery.many).reverse(),
    ][gallery.group];
    replace(heading, `${GROUPS[gallery.group]} images at level `, label(LEVELS[state.level]));
  }
  replace(
    list,
    h(
      "div",
      { class: "cards" },
      chosen.map(({ index }) => card(index)),
    ),
    !gallery.only && gallery.many < withPicture.length
      ? h("button", { type: "button", class: "more", onclick: () => update({ many: gallery.many + 8 }) }, "More images")
      : "",
  );
  if (!chosen.length) replace(list, h("p", { class: "quiet" }, "No image with labels has a picture."));
}

function drawAll(update, heading) {
  const details = document.getElementById("all-images");
  const place = details.lastElementChild;
  if (!details.open || !evaluation()) return place.replaceChildren();
  const rows = ranked().map(({ image }) => {
    const open = () => {
      update({ only: { name: image.name, source: image.source } });
      heading.focus();
    };
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: open }, label(image.name))),
      image.source ? h("td", null, label(image.source)) : h("td", null, "–"),
      number(image.miou[state.level], percent(image.miou[state.level])),
      number(image.pixel_accuracy[state.level], percent(image.pixel_accuracy[state.level])),
    );
  });
  return replace(place, table("All images", ["Image", "Source", "mIoU", "Pixel accuracy"], 2, rows));
}

/** An image of the chosen run with its masks; in a comparison with those of every run that has it. */
function card(index, note) {
  const image = run().images[index];
  const level = state.level;
  const confused = image.confusion[level]
    .slice(0, 3)
    .map(([truth, predicted, pixels]) =>
      h(
        "li",
        null,
        label(className(level, truth)),
        " → ",
        label(className(level, predicted)),
        h("span", { class: "quiet" }, ` ${percentSign(pixels / (image.height * image.width))}`),
      ),
    );
  const pointed = h("p", { class: "readout" });
  const masks = [
    ["truth", "Truth"],
    ["prediction", "Prediction"],
    ["error", "Error"],
  ];
  const figures = [photo(image)];
  RUNS.forEach((each, i) => {
    const same =
      i === state.run ? image : each.images.find((other) => other.name === image.name && other.source === image.source);
    if (!same?.picture || !each.evaluation) return;
    const own = RUNS.length > 1 ? ` · ${each.name}` : "";
    for (const [kind, title] of masks) {
      if (kind === "truth" && figures.length > 1) continue;
      const miou = kind === "prediction" && RUNS.length > 1 ? `, mIoU ${percentSign(same.miou[level])}` : "";
      figures.push(maskFigure(same, i, kind, kind === "truth" ? title : title + own + miou, pointed));
    }
  });
  return h(
    "article",
    { class: "card", "data-image": index },
    h(
      "header",
      null,
      h("h4", null, label(image.name)),
      h(
        "p",
        { class: "quiet" },
        image.source && [label(image.source), " · "],
        `mIoU ${percentSign(image.miou[level])} · pixel accuracy ${percentSign(image.pixel_accuracy[level])}`,
        note && ` · ${note}`,
      ),
    ),
    image.picture
      ? h("div", { class: `pictures${RUNS.length > 1 ? " runs" : ""}` }, figures)
      : h("p", { class: "quiet" }, "Its pictures were left out to keep this file small."),
    confused.length > 0 && h("ul", { class: "confused", "aria-label": "Most confused here" }, confused),
    pointed,
  );
}

const photo = (image) =>
  h(
    "figure",
    null,
    h("div", { class: "picture" }, h("img", { src: image.picture, alt: `Image ${image.name}` })),
    h("figcaption", null, "Image"),
  );

function maskFigure(image, index, kind, title, pointed) {
  const canvas = h("canvas", {
    "aria-hidden": "true",
    "data-kind": kind,
    onpointermove: (event) => pointOut(event, image, index, pointed),
  });
  decode(image).then((codes) => paint(canvas, codes, index, kind, state.level));
  return h(
    "figure",
    null,
    h("div", { class: "picture" }, h("img", { src: image.picture, alt: `${title} of ${image.name}` }), canvas),
    h("figcaption", null, title),
  );
}

/** Read the codes of both masks of an image; they are kept. */
function decode(image) {
  if (!decoded.has(image))
    decoded.set(
      image,
      Promise.all([readCodes(image.truth), readCodes(image.prediction)]).then(([truth, prediction]) => ({
        ...truth,
        truth: truth.codes,
        prediction: prediction.codes,
      })),
    );
  return decoded.get(image);
}

async function readCodes(uri) {
  const picture = new Image();
  picture.src = uri;
  await picture.decode();
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const codes = Uint16Array.from({ length: width * height }, (_, i) => data[4 * i] + 256 * data[4 * i + 1]);
  return { width, height, codes };
}

const lookups = new Map();

/** For a run and a level: the class of each code, and the colors of classes and of mistakes as the bytes of a pixel. */
function lookup(index, level) {
  const key = `${index},${level}`;
  if (!lookups.has(key)) {
    const classes = Int32Array.from(RUNS[index].codes, (code) => code[level]);
    const nodes = CLASSES[level];
    const colors = Uint32Array.from(nodes, (node) =>
      pack(...[1, 3, 5].map((at) => parseInt(NODES[node].color.slice(at, at + 2), 16))),
    );
    const mistakes = LEVELS.map((_, depth) => pack(...severity(depth).match(/\d+/g).map(Number)));
    const errors = nodes.map((a) => Uint32Array.from(nodes, (b) => (a === b ? 0 : mistakes[commonDepth(a, b)])));
    lookups.set(key, { classes, colors, errors });
  }
  return lookups.get(key);
}

const pack = (red, green, blue) => new Uint32Array(new Uint8ClampedArray([red, green, blue, 255]).buffer)[0];

function paint(canvas, { width, height, truth, prediction }, index, kind, level) {
  const { classes, colors, errors } = lookup(index, level);
  const undecided = pack(58, 166, 201);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) {
    const [a, b] = [classes[truth[i]], classes[prediction[i]]];
    if (kind === "truth") pixels[i] = a < 0 ? 0 : colors[a];
    else if (kind === "prediction") pixels[i] = b < 0 ? 0 : colors[b];
    else if (a >= 0) pixels[i] = b < 0 ? undecided : errors[a][b];
  }
  context.putImageData(image, 0, 0);
}

/** Name the classes under the pointer. */
async function pointOut(event, image, index, place) {
  const box = event.currentTarget.getBoundingClientRect();
  const { width, height, truth, prediction } = await decode(image);
  const at = (offset, extent, many) => Math.max(0, Math.min(many - 1, Math.floor((offset / extent) * many)));
  const pixel =
    at(event.clientY - box.top, box.height, height) * width + at(event.clientX - box.left, box.width, width);
  const { classes } = lookup(index, state.level);
  const [a, b] = [classes[truth[pixel]], classes[prediction[pixel]]];
  replace(
    place,
    "Truth ",
    a < 0 ? "unlabeled" : classLabel(state.level, a),
    ", predicted ",
    classLabel(state.level, b),
  );
}
