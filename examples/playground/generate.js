// Panel "Generate": the probabilities of the next token, and drawing from them.

import { $, END, attempt, characters, colour, dotted, make, percent, showSlider, shown, svg, visible } from "./page.js";
import { latest, python } from "./python.js";

const sliders = ["temperature", "top_k", "top_p"].map($);
const settings = () => sliders.map((slider) => Number(slider.value));

let start = "", drawn = [];                         // what was typed, and the tokens that were drawn since

export const show = latest(async (isLast) => {
  await attempt($("generate-error"), async () => {
    const tokens = await python.next_tokens(start, ...settings(), drawn);
    if (!isLast()) return;
    const most = Math.max(...tokens.map(({ model, drawn }) => Math.max(model, drawn)));
    $("bars").replaceChildren(...tokens.map(({ token, model, drawn }) => {
      const [faint, full] = [make("i"), make("i")];
      faint.style.height = `${100 * model / most}%`;
      full.style.height = `${100 * drawn / most}%`;
      return make("div", { className: "bar", title: `${shown(token)}: ${percent(model)} by the model, ${percent(drawn)} when drawn` },
        make("div", {}, faint, full), dotted(token));
    }));
    const best = [...tokens].sort((a, b) => b.drawn - a.drawn).slice(0, 5);
    $("bars").setAttribute("aria-label", "Next token: " +
      best.map(({ token, drawn }) => `${shown(token)} ${percent(drawn)}`).join(", "));
    paintWheel(tokens);
  }, () => { for (const place of [$("bars"), $("wheel")]) place.replaceChildren(); });
});

// The wheel has a sector for each token. Likely tokens have wide sectors. The pointer is at the left.
let sectors = [];
function paintWheel(tokens) {
  let from = 0;
  sectors = tokens.map(({ id, token, drawn }, i) => ({ id, token, drawn, from, to: (from += drawn), hue: (i * 137) % 360 }));
  const at = (share, radius) => [-Math.cos(2 * Math.PI * share) * radius, -Math.sin(2 * Math.PI * share) * radius];
  $("wheel").replaceChildren(...sectors.filter(({ drawn }) => drawn > 0.0005).flatMap(({ token, drawn, from, to, hue }) => {
    const fill = `hsl(${hue} 55% 72%)`, [x, y] = at((from + to) / 2, 38);
    const sector = drawn > 0.999 ? svg("circle", { r: 50, fill }) : svg("path", { fill,
      d: `M0 0L${at(from, 50)}A50 50 0 ${drawn > 0.5 ? 1 : 0} 1 ${at(to, 50)}Z` });
    const name = dotted(token), size = Math.min(10, 40 / characters(name).length);
    return drawn < 0.03 ? [sector] : [sector, svg("text", { x, y, "font-size": size, "text-anchor": "middle",
      "dominant-baseline": "central" }, name)];
  }));
}

// Turn the wheel until the token's sector is at the pointer. The function returned turns it back.
// Of many tokens, only the likeliest have a sector. All others share the gap.
async function spin(id) {
  const { from, to } = sectors.find((sector) => sector.id === id) ?? { from: sectors.at(-1)?.to ?? 0, to: 1 };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const turning = $("wheel").animate({ rotate: ["0deg", `${720 - 180 * (from + to)}deg`] },
    { duration: still ? 0 : 900, easing: "cubic-bezier(.15, .7, .2, 1)", fill: "forwards" });
  await turning.finished;
  return () => turning.cancel();
}

function showDrawn(parts = []) {
  $("so-far").replaceChildren(make("bdi", {}, visible(start), ...letters(parts)));
}

async function draw() {
  await attempt($("generate-error"), async () => {
    const before = drawn, one = await python.draw(start, ...settings(), drawn);
    $("draw").disabled = true;
    const back = await spin(one.id);
    $("draw").disabled = false;
    if (drawn !== before) return back();            // meanwhile, something was typed
    $("drawn").textContent = `Drawn: ${one.token === END ? "the end" : shown(one.token)} (${percent(one.probability)})`;
    drawn = one.drawn;
    $("prefix").value = one.text;
    showDrawn(one.parts);
    await show();
    back();
  });
}

async function write() {
  await attempt($("generate-error"), async () => {
    const [temperature, top_k, top_p] = settings();
    const written = await python.write(10, start, Math.floor(Math.random() * 2 ** 31),
      { temperature, top_k, top_p, max_tokens: 200 }, drawn);
    const items = [];
    for (const { text, known, ids } of written) {
      items.push(sample(text, letters(await python.coloured(ids)), known ? "in the training text" : "new"));
    }
    $("written").replaceChildren(...items);
  });
}

// The parts of a text, coloured by their probability. What a reader takes for one character is one part.
export function letters(parts) {
  const borders = new Set();
  let length = 0, waiting = { text: "", probability: 1 };
  for (const one of characters(parts.map(({ text }) => text).join(""))) borders.add(length += one.length);
  length = 0;
  return parts.flatMap(({ text, probability }) => {
    waiting = { text: waiting.text + text, probability: waiting.probability * probability };
    if (!borders.has(length += text.length)) return [];
    const letter = make("span", { title: percent(waiting.probability) }, visible(waiting.text));
    letter.style.backgroundColor = colour(waiting.probability);
    waiting = { text: "", probability: 1 };
    return [letter];
  });
}

// A line of a list of samples. A sample that has lines itself stands below its note.
export function sample(text, content, note) {
  const [about, written] = [make("small", {}, note), make("bdi", {}, ...content)];
  if (!text) written.append("(empty)");
  if (text.includes("\n")) return make("li", { className: "lines" }, about, written);
  return make("li", {}, written, " ", about);
}

export function setUp() {
  for (const slider of sliders) {
    showSlider(slider);
    slider.addEventListener("input", () => { showSlider(slider); if (!$("draw").disabled) show(); });
  }
  $("prefix").addEventListener("input", () => { retype(); if (!$("draw").disabled) show(); });
  $("draw").addEventListener("click", draw);
  $("write").addEventListener("click", write);
  $("clear").addEventListener("click", () => { clear(); if (!$("draw").disabled) show(); });
}

export function clear() {
  $("prefix").value = "";
  $("written").replaceChildren();
  $("drawn").textContent = "";
  retype();
}

export function retype() {                          // all that can be read so far is as if it had been typed
  [start, drawn] = [$("prefix").value, []];
  showDrawn();
}
