// Panel "Train": the text, the options, the training itself, its curve and its samples.

import { sample } from "./generate.js";
import { $, attempt, characters, showSlider, sliderValue, visible } from "./page.js";
import { onProgress, python } from "./python.js";

const SHAPE = ["n_layer", "n_head", "n_embd", "block_size"];
const DRAW_EVERY = 100, LOOK_EVERY = 2000, WRITE_EVERY = 3000;     // in milliseconds
const form = $("options"), sliders = [...form.querySelectorAll("input[type=range]")];
const stored = { names: null, own: null };          // `own` is a file's bytes, if a file was opened
let chart, curve, scale, running = false, stale = true, about, vocabulary = 27, changed = () => {};
let started, done, drawn = 0, looked, wrote;        // times, except `done`: the step at the start

function options(names) {
  return Object.fromEntries(sliders.filter((s) => names(s.name)).map((s) => [s.name, sliderValue(s)]));
}

const count = async () => {
  const shape = options((name) => SHAPE.includes(name));
  $("parameters").textContent = (await python.parameter_count(vocabulary, shape)).toLocaleString("en");
};

const isOwn = () => form.elements.text.value === "own";

export async function text() {
  if (isOwn()) {
    return stored.own ?? new TextEncoder().encode($("own-text").value);
  }
  stored.names ??= new Uint8Array(await (await fetch("../../data/names.txt")).arrayBuffer());
  return stored.names;
}

async function begin() {
  await stop();
  const begun = await python.start(await text(), options((name) => SHAPE.includes(name)),
    { ...options((name) => !SHAPE.includes(name)), batch_size: 4, seed: 42, document: isOwn() ? $("kind").value : "line" });
  [about, stale] = [begun, false];
  await clear();
  changed(about);
}

async function clear() {
  vocabulary = about.vocab.length;
  scale = await python.scale();
  curve = { steps: [], losses: [], recent: [], heldOut: [] };
  $("samples").replaceChildren();
  $("reading").textContent = "";
  $("training").hidden = false;
  $("progress").max = about.steps;
  $("progress").value = about.step;
  await count();
  draw();
}

async function go(event) {
  event?.preventDefault();
  await attempt($("train-error"), async () => {
    if (stale || about.step >= about.steps) await begin();
    wrote = looked = 0;
    done = about.step;
    started = performance.now();
    running = true;
    buttons();
    await python.train();
  });
}

export async function stop() {
  if (!running) return;
  running = false;
  await python.stop();
  buttons();
  draw();
  changed(about);
}

function buttons() {
  const begun = !stale && about.step < about.steps;
  $("go").textContent = begun ? "Continue" : "Train";
  $("go").disabled = running;
  $("stop").disabled = !running;
  $("again").disabled = !curve;
}

onProgress((progress) => attempt($("train-error"), async () => {
  if (!about) return;
  if (progress.error) {
    running = false;
    buttons();
    throw new Error(progress.error);
  }
  about.step = progress.step;
  let step = progress.step - progress.losses.length;
  for (const loss of progress.losses) {
    const n = curve.steps.push(++step);
    curve.losses.push(loss);
    curve.heldOut.push(null);
    const recent = curve.losses.slice(-50);
    curve.recent.push(recent.reduce((a, b) => a + b, 0) / recent.length);
    if (n > 4000) for (const row of Object.values(curve)) row.shift();
  }
  const now = performance.now(), each = (now - started) / Math.max(1, progress.step - done);
  const left = Math.round(each * (progress.steps - progress.step) / 1000);
  $("progress").value = progress.step;
  $("figures").textContent = `step ${progress.step.toLocaleString("en")} of ${progress.steps.toLocaleString("en")}` +
    ` · loss ${curve.recent.at(-1).toFixed(3)} · ${Math.round(progress.speed).toLocaleString("en")} tokens per second` +
    ` · ${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")} left`;
  if (now - drawn > DRAW_EVERY || !progress.running) {
    drawn = now;
    draw();
  }
  if (!progress.running) {
    running = false;
    buttons();
    if (progress.step >= progress.steps) await finish();
    return changed(about);
  }
  if (now - looked > LOOK_EVERY) {
    looked = now;
    const loss = await python.held_out();
    if (loss !== null && curve.heldOut.length) curve.heldOut[curve.heldOut.length - 1] = loss;
  }
  if (now - wrote > WRITE_EVERY) {
    wrote = now;
    await write();
    changed(about, true);
  }
}));

async function write() {
  const [{ text, known }] = await python.write(1, "", about.step, { temperature: 0.7, max_tokens: 60 });
  $("samples").prepend(sample(text, [visible(text)], `step ${about.step}${known ? ", in the training text" : ""}`));
  while ($("samples").children.length > 12) $("samples").lastChild.remove();
}

async function finish() {
  await attempt($("train-error"), async () => {
    const { loss, sentence } = await python.reading();
    curve.heldOut[curve.heldOut.length - 1] = loss;
    draw();
    const among = Math.exp(loss) > vocabulary ? "" :
      ` It is as unsure as if it chose among ${Math.exp(loss).toFixed(1)} equally likely letters.`;
    const verdict = sentence && ` It is ${sentence}.`;
    $("reading").textContent = `The model has a held-out loss of ${loss.toFixed(3)}.${among}${verdict}`;
    await write();
  });
}

function draw() {
  if (!globalThis.uPlot) return;                    // the chart library is missing, or not loaded yet
  const line = (name) => curve.steps.map(() => scale[name]);
  const data = [curve.steps, curve.losses, curve.recent, curve.heldOut, ...Object.keys(scale).map(line)];
  if (!chart) {
    const ink = (name) => getComputedStyle(document.body).getPropertyValue(name);
    const dashed = (label) => ({ label, stroke: ink("--soft"), width: 1, dash: [4, 4], points: { show: false } });
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { show: false } };
    chart = new uPlot({
      width: $("chart").clientWidth || 320, height: 240, scales: { x: { time: false } },
      padding: [null, () => isWide() ? NAMES_WIDTH : 8, null, null],
      axes: [axis, { ...axis, size: 40 }], cursor: { drag: { setScale: false } },
      series: [{ label: "step" }, { label: "loss", stroke: ink("--faint"), width: 1, points: { show: false } },
        { label: "recent mean", stroke: ink("--blue"), width: 2, points: { show: false } },
        { label: "held out", stroke: ink("--orange"), width: 2, spanGaps: true, points: { show: true, size: 6 } },
        ...Object.keys(scale).map(dashed)],
      legend: { show: false }, hooks: { draw: [nameLines] },
    }, data, $("chart"));
    new ResizeObserver(() => chart.setSize({ width: $("chart").clientWidth, height: 240 })).observe($("chart"));
  } else {
    chart.setData(data);
  }
}

// Write the names of the models that count beside their lines or, on a phone, onto them.
const NAMES_WIDTH = 96;
const isWide = () => $("chart").clientWidth > 440;
function nameLines({ ctx, bbox, valToPos }) {
  const ink = (name) => getComputedStyle(document.body).getPropertyValue(name);
  ctx.save();
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = isWide() ? "left" : "right";
  ctx.fillStyle = ink("--soft");
  ctx.strokeStyle = ink("--card");                  // around the letters, so that no line crosses them
  ctx.lineWidth = 4 * devicePixelRatio;
  let above = -Infinity;                            // where the last name is, so that no two overlap
  for (const [name, loss] of Object.entries(scale).sort((a, b) => b[1] - a[1])) {
    const baseline = valToPos(loss, "y", true) + (isWide() ? 4 : -3) * devicePixelRatio;
    above = Math.max(baseline, above + 13 * devicePixelRatio);
    const x = bbox.left + bbox.width + (isWide() ? 6 * devicePixelRatio : 0);
    ctx.strokeText(name, x, above);
    ctx.fillText(name, x, above);
  }
  ctx.restore();
}

// A model from a file has replaced this one.
export async function adopt(loaded) {
  stale = !loaded.documents;
  about = loaded;
  if (!stale && isOwn()) $("kind").value = about.document;
  if (!stale) await clear();
  $("training").hidden = stale;
  $("parameters").textContent = about.parameters.toLocaleString("en");
  buttons();
}

function anew() {                                   // the options have changed, so the next run is a new one
  stale = true;
  buttons();
}

export function setUp(whenChanged) {
  changed = whenChanged;
  for (const slider of sliders) {
    showSlider(slider);
    slider.addEventListener("input", () => { showSlider(slider); count(); });
    slider.addEventListener("change", anew);
  }
  for (const radio of form.elements.text) radio.addEventListener("change", anew);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    chart?.destroy();                               // a chart keeps the colours that it was made with
    chart = undefined;
    if (curve) draw();
  });
  form.addEventListener("submit", go);
  $("stop").addEventListener("click", stop);
  $("again").addEventListener("click", async () => { await stop(); stale = true; await go(); });
  const own = () => { form.elements.text.value = "own"; anew(); };
  $("own-text").addEventListener("input", () => {
    stored.own = null;
    $("own-opened").textContent = $("own-file").value = "";
    own();
  });
  $("kind").addEventListener("change", own);
  // A file's text is kept apart: if the box held the beginning of it, that would be edited, and then learned.
  const take = (file) => file && attempt($("train-error"), async () => {
    stored.own = new Uint8Array(await file.arrayBuffer());
    const read = new TextDecoder().decode(stored.own.slice(0, 400), { stream: true });  // no half of a character
    const beginning = characters(read.trim().replace(/\s+/g, " ")).slice(0, 80).join("");
    $("own-opened").textContent = `The text is that of ${visible(file.name)} (${stored.own.length.toLocaleString("en")} ` +
      `bytes). It begins: “${visible(beginning)}”`;
    $("own-text").value = "";
    own();
  });
  $("own-file").addEventListener("change", (event) => take(event.target.files[0]));
  $("own-file").addEventListener("click", (event) => { event.target.value = ""; });  // the same file may have changed
  $("own-text").addEventListener("dragover", (event) => event.preventDefault());
  $("own-text").addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) { event.preventDefault(); take(event.dataTransfer.files[0]); }
  });
  $("go").disabled = false;
}
