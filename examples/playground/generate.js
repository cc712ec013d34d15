// Panel "Generate": the probabilities of the next token, and drawing from them.

import { $, END, attempt, colour, dotted, make, percent, showSlider, shown, svg } from "./page.js";
import { latest, python } from "./python.js";

const sliders = ["temperature", "top_k", "top_p"].map($);
const settings = () => sliders.map((slider) => Number(slider.value));

export const show = latest(async (isLast) => {
  const prefix = $("prefix").value;
  await attempt($("generate-error"), async () => {
    const tokens = await python.next_tokens(prefix, ...settings());
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
  sectors = tokens.map(({ token, drawn }, i) => ({ token, drawn, from, to: (from += drawn), hue: (i * 137) % 360 }));
  const at = (share, radius) => [-Math.cos(2 * Math.PI * share) * radius, -Math.sin(2 * Math.PI * share) * radius];
  $("wheel").replaceChildren(...sectors.filter(({ drawn }) => drawn > 0.0005).flatMap(({ token, drawn, from, to, hue }) => {
    const fill = `hsl(${hue} 55% 72%)`, [x, y] = at((from + to) / 2, 38);
    const sector = drawn > 0.999 ? svg("circle", { r: 50, fill }) : svg("path", { fill,
      d: `M0 0L${at(from, 50)}A50 50 0 ${drawn > 0.5 ? 1 : 0} 1 ${at(to, 50)}Z` });
    return drawn < 0.03 ? [sector] : [sector, svg("text", { x, y, "font-size": 10, "text-anchor": "middle",
      "dominant-baseline": "central" }, dotted(token))];
  }));
}

// Turn the wheel until the token's sector is at the pointer. The function returned turns it back.
async function spin(token) {
  const { from, to } = sectors.find((sector) => sector.token === token) ?? { from: 0, to: 0 };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const turning = $("wheel").animate({ rotate: ["0deg", `${720 - 180 * (from + to)}deg`] },
    { duration: still ? 0 : 900, easing: "cubic-bezier(.15, .7, .2, 1)", fill: "forwards" });
  await turning.finished;
  return () => turning.cancel();
}

let start = "", letters_ = [];                      // what was typed, and what was drawn since
function showDrawn() {
  $("so-far").replaceChildren(start, ...letters(letters_));
}

async function draw() {
  await attempt($("generate-error"), async () => {
    const token = await python.draw($("prefix").value, ...settings());
    const { drawn } = sectors.find((sector) => sector.token === token) ?? { drawn: 0 };
    $("draw").disabled = true;
    const back = await spin(token);
    $("draw").disabled = false;
    $("drawn").textContent = token === END ? `Drawn: the end (${percent(drawn)})` : `Drawn: ${shown(token)} (${percent(drawn)})`;
    if (token !== END) {
      $("prefix").value += token;
      letters_.push({ token, probability: drawn });
      showDrawn();
    }
    await show();
    back();
  });
}

async function write() {
  await attempt($("generate-error"), async () => {
    const [temperature, top_k, top_p] = settings();
    const written = await python.write(10, $("prefix").value, Math.floor(Math.random() * 2 ** 31),
      { temperature, top_k, top_p, max_tokens: 200 });
    const items = [];
    for (const { text, known } of written) {
      const scored = await python.score(text);
      items.push(make("li", {}, ...letters(scored), make("small", {}, known ? " in the training text" : " new")));
    }
    $("written").replaceChildren(...items);
  });
}

export function letters(scored) {
  return scored.filter(({ token }) => token !== END).map(({ token, probability }) => {
    const letter = make("span", { title: percent(probability) }, token);
    letter.style.backgroundColor = colour(probability);
    return letter;
  });
}

export function setUp() {
  for (const slider of sliders) {
    showSlider(slider);
    slider.addEventListener("input", () => { showSlider(slider); if (!$("draw").disabled) show(); });
  }
  $("prefix").addEventListener("input", () => {
    [start, letters_] = [$("prefix").value, []];
    showDrawn();
    if (!$("draw").disabled) show();
  });
  $("draw").addEventListener("click", draw);
  $("write").addEventListener("click", write);
  $("clear").addEventListener("click", () => { clear(); if (!$("draw").disabled) show(); });
}

export function clear() {
  $("prefix").value = "";
  $("written").replaceChildren();
  $("drawn").textContent = "";
  [start, letters_] = ["", []];
  showDrawn();
}
