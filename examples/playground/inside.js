// Panel "Look inside": the table of a text's tokens, the maps of attention, and the embedding.

import { $, attempt, dotted, initial, make, percent, shown, svg, visible } from "./page.js";
import { latest, python } from "./python.js";

export const show = latest(async (isLast) => {
  const text = $("text").value;
  await attempt($("inside-error"), async () => {
    const [scored, attention, embedding] = [
      await python.score(text), await python.attention(text), await python.embedding()];
    if (!isLast()) return;
    table(text, scored);
    maps(attention, scored.length);
    plane(embedding);
  }, () => {                                        // show nothing of an earlier text beside the message
    $("scores").caption.textContent = "";
    for (const place of [$("scores").tBodies[0], $("attention"), $("embedding")]) place.replaceChildren();
  });
});

function table(text, scored) {
  const rows = scored.map(({ token, id, probability, loss, likeliest }) => {
    const meter = make("span", { className: "meter" });
    meter.style.width = `${(4 * probability).toFixed(2)}rem`;
    return make("tr", {}, make("td", {}, shown(token)), make("td", {}, String(id)),
      make("td", {}, percent(probability), meter), make("td", {}, loss.toFixed(2)),
      make("td", {}, ...likeliest.map(([other, p]) => make("span", {}, `${shown(other)} ${percent(p)}`))));
  });
  const loss = scored.reduce((sum, token) => sum + token.loss, 0) / scored.length;
  $("scores").caption.textContent = `${visible(text).replaceAll("\n", "↵") || "(empty)"}: the mean loss is ${loss.toFixed(3)}`;
  $("scores").tBodies[0].replaceChildren(...rows);
}

function maps({ tokens, blocks }, count) {
  const figures = blocks.flatMap((heads, block) => heads.map((rows, head) => {
    const n = tokens.length, picture = svg("svg", { viewBox: `-1.4 -1.4 ${n + 1.4} ${n + 1.4}`, tabindex: 0,
      role: "img", "aria-label": `block ${block}, head ${head}` });
    tokens.forEach((token, i) => {
      picture.append(svg("text", { x: -0.9, y: i + 0.75, "font-size": 0.8 }, initial(token)),
        svg("text", { x: i + 0.2, y: -0.4, "font-size": 0.8 }, initial(token)));
    });
    rows.forEach((row, i) => row.forEach((weight, j) => {
      const square = svg("rect", { x: j, y: i, width: 0.96, height: 0.96, "fill-opacity": 0.06 + 0.94 * weight });
      square.style.fill = "var(--blue)";
      square.addEventListener("pointerenter", () => note(tokens, block, head, i, row));
      picture.append(square);
    }));
    let at = n - 1;
    picture.addEventListener("focus", () => note(tokens, block, head, at, rows[at]));
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(n - 1, at + step));
      note(tokens, block, head, at, rows[at]);
    });
    return make("figure", { className: "head" }, picture, make("figcaption", {}, `block ${block}, head ${head}`));
  }));
  $("attention").replaceChildren(...figures);
  $("attention-note").textContent = tokens.length < count ? `The window has room for the first ${tokens.length} tokens.` : "";
}

function note(tokens, block, head, i, row) {
  const most = row.map((weight, j) => [weight, j]).sort((a, b) => b[0] - a[0]).slice(0, 4);
  $("attention-note").textContent = `Block ${block}, head ${head}: “${dotted(tokens[i])}” (${i}) looks at ` +
    most.map(([weight, j]) => `“${dotted(tokens[j])}” (${j}) ${percent(weight)}`).join(", ") + ".";
}

function plane({ points, share, count }) {
  const most = Math.max(...points.flatMap(({ x, y }) => [Math.abs(x), Math.abs(y)])) || 1;
  const picture = svg("svg", { viewBox: "-110 -110 220 220", role: "img",
    "aria-label": `Embedding of ${points.length} tokens in two dimensions` });
  for (const { token, x, y } of points) {
    const vowel = /^[aeiou]$/.test(token);
    const text = svg("text", { x: 100 * x / most, y: -100 * y / most, "font-size": 9, "text-anchor": "middle" },
      shown(token));
    if (vowel) { text.style.fill = "var(--orange)"; text.style.fontWeight = "bold"; }
    picture.append(text);
  }
  $("embedding").replaceChildren(picture, make("p", { className: "soft" },
    `${points.length < count ? `The last ${points.length} of ${count}` : count} tokens. This plane keeps ${percent(share)} of the variance of their embeddings.`));
}

export function setUp() {
  $("look").addEventListener("click", () => show());
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;                       // Shift and Enter: a new line
    event.preventDefault();
    show();
  });
}
