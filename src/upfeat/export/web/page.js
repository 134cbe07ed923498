// Photo -> encoder -> principal components of the features -> KIN, with ONNX Runtime Web.
"use strict";

const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };
const seconds = (from) => (performance.now() - from) / 1000;

let networks; // {settings, encoder, upsampler}
let photo; // ImageBitmap
let running = false;
let again = false;

async function load() {
  ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
  // Threads need SharedArrayBuffer, which browsers give to isolated pages only.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  const settings = await (await fetch("settings.json")).json();
  const options = { executionProviders: ["wasm"] };
  const encoder = await ort.InferenceSession.create(settings.encoder, options);
  const upsampler = await ort.InferenceSession.create(settings.upsampler, options);
  networks = { settings, encoder, upsampler };
}

// The photo with its longer side as asked, both sides multiples of the patch: planes of RGB in [0, 1].
function read(multiple) {
  const scale = Number(element("side").value) / Math.max(photo.width, photo.height);
  const fit = (side) => Math.max(3, Math.round(side * scale / multiple)) * multiple;
  const [width, height] = [fit(photo.width), fit(photo.height)];
  const canvas = element("image");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, 0, 0, width, height);
  const bytes = context.getImageData(0, 0, width, height).data;
  const planes = new Float32Array(3 * height * width);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let color = 0; color < 3; color++) {
      planes[color * height * width + pixel] = bytes[4 * pixel + color] / 255;
    }
  }
  return { planes, height, width };
}

function normalized(planes, mean, std) {
  const area = planes.length / 3;
  return planes.map((value, index) => {
    const color = Math.floor(index / area);
    return (value - mean[color]) / std[color];
  });
}

// The first three principal components of features (C, n): their values (3, n).
function principal(features, channels, cells) {
  const centred = Float64Array.from(features);
  for (let c = 0; c < channels; c++) {
    let mean = 0;
    for (let n = 0; n < cells; n++) mean += centred[c * cells + n] / cells;
    for (let n = 0; n < cells; n++) centred[c * cells + n] -= mean;
  }
  const parts = new Float32Array(3 * cells);
  const found = [];
  for (let part = 0; part < 3; part++) {
    let axis = Float64Array.from({ length: channels }, (_, c) => Math.cos(c * (part + 1)));
    let along;
    for (let step = 0; step < 60; step++) { // power iteration on the covariance
      for (const other of found) {
        const share = axis.reduce((sum, value, c) => sum + value * other[c], 0);
        axis = axis.map((value, c) => value - share * other[c]);
      }
      const length = Math.hypot(...axis) || 1;
      axis = axis.map((value) => value / length);
      along = new Float64Array(cells);
      for (let c = 0; c < channels; c++) {
        for (let n = 0; n < cells; n++) along[n] += axis[c] * centred[c * cells + n];
      }
      if (step === 59) break;
      axis = axis.map((_, c) => {
        let sum = 0;
        for (let n = 0; n < cells; n++) sum += centred[c * cells + n] * along[n];
        return sum;
      });
    }
    found.push(axis);
    parts.set(along, part * cells);
  }
  return parts;
}

// Lowest and highest percentile of each component, so that both pictures have the same colours.
function ranges(parts, cells) {
  return [0, 1, 2].map((part) => {
    const sorted = parts.slice(part * cells, (part + 1) * cells).sort();
    return [sorted[Math.floor(0.01 * (cells - 1))], sorted[Math.ceil(0.99 * (cells - 1))]];
  });
}

function draw(id, parts, height, width, limits) {
  const canvas = element(id);
  canvas.width = width;
  canvas.height = height;
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let part = 0; part < 3; part++) {
      const [low, high] = limits[part];
      picture.data[4 * pixel + part] = 255 * (parts[part * height * width + pixel] - low) / ((high - low) || 1);
    }
    picture.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

async function upsample() {
  const { settings, encoder, upsampler } = networks;
  const { planes, height, width } = read(settings.multiple);
  const shape = [1, 3, height, width];
  let start = performance.now();
  const { output: features } = await encoder.run({ image: new ort.Tensor("float32", planes, shape) });
  const encoding = seconds(start);
  const [, channels, rows, columns] = features.dims;
  const cells = rows * columns;
  const parts = principal(features.data, channels, cells);
  const limits = ranges(parts, cells);
  draw("low", parts, rows, columns, limits);
  start = performance.now();
  const guidance = normalized(planes, settings.mean, settings.std);
  const { output: sharp } = await upsampler.run({
    image: new ort.Tensor("float32", guidance, shape),
    features,
    values: new ort.Tensor("float32", parts, [1, 3, rows, columns]),
  });
  const upsampling = seconds(start);
  draw("high", sharp.data, height, width, limits);
  element("low-text").textContent = `low-res features, ${rows} x ${columns}`;
  element("high-text").textContent = `upsampled, ${height} x ${width}`;
  element("times").textContent =
    `encoder ${encoding.toFixed(2)} s, upsampling of three components ${upsampling.toFixed(2)} s, ` +
    `${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}`;
}

async function show() {
  if (!photo || !networks) return;
  if (running) { again = true; return; }
  running = true;
  say("Computing …");
  await new Promise((done) => setTimeout(done, 30)); // lets the browser draw the line above
  try {
    await upsample();
    say("Done.");
  } catch (error) {
    say(`This failed: ${error.message}; take a smaller longer side or another photo.`);
  }
  running = false;
  if (again) { again = false; await show(); }
}

element("photo").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    photo = await createImageBitmap(file);
  } catch {
    say(`${file.name} is no picture that this browser reads; take a JPEG or PNG.`);
    return;
  }
  await show();
});
element("side").addEventListener("change", show);

load().then(() => {
  say("Ready: choose a photo.");
  return show();
}).catch((error) => {
  say(`The networks could not be loaded: ${error.message}; serve this folder over HTTP, ` +
    "with onnxruntime-web's files in ort/.");
});
