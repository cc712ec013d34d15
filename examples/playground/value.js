// Panel "The chain rule": a graph of Values, with backward() one node at a time.

import { $, attempt, characters, svg } from "./page.js";
import { python } from "./python.js";

let nodes = [], handed = 0, picture;
const number = (x) => String(Number(x.toPrecision(4)));

function numbers(text) {
  return Object.fromEntries(text.split(/[\s,]+/).filter(Boolean).map((word) => {
    const match = /^([^=\s]+)=(\S+)$/.exec(word), x = match ? Number(match[2]) : NaN;
    if (!Number.isFinite(x)) throw new Error(`“${word}” must be a name, an equals sign and a number, like a=2`);
    return [match[1], x];
  }));
}

async function begin() {
  await attempt($("value-error"), async () => {
    nodes = await python.expression($("expression").value, numbers($("numbers").value));
    handed = 0;
    draw();
  });
}

// The root is at the left. A node is one column to the right of the rightmost of its parents.
function layout() {
  const column = nodes.map(() => 0);
  nodes.forEach(({ children }, i) => children.forEach(({ node }) => {
    column[node] = Math.max(column[node], column[i] + 1);
  }));
  const used = [];
  return nodes.map((_, i) => {
    const row = used[column[i]] = (used[column[i]] ?? -1) + 1;
    return { x: 240 * column[i] + 5, y: 78 * row + 5 };
  });
}

// A gradient is the sum of what parents have passed on so far. The gradient of the root is 1.
function gradients() {
  const grads = nodes.map((_, i) => i ? 0 : 1);
  nodes.slice(0, handed).forEach(({ children }) => children.forEach(({ node, share }) => { grads[node] += share; }));
  return grads;
}

function draw() {
  const places = layout(), grads = gradients();
  const width = Math.max(...places.map(({ x }) => x)) + 175, height = Math.max(...places.map(({ y }) => y)) + 62;
  picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Graph of the expression" });
  nodes.forEach(({ children }, i) => children.forEach(({ node, local }) => {
    const [from, to] = [places[i], places[node]], active = i === handed - 1;
    const line = svg("line", { x1: from.x + 165, y1: from.y + 28, x2: to.x, y2: to.y + 28, "stroke-width": active ? 3 : 1.5 });
    line.style.stroke = active ? "var(--orange)" : "var(--soft)";
    picture.append(line, svg("text", { x: (from.x + 165 + to.x) / 2, y: (from.y + to.y) / 2 + 24, "font-size": 11,
      "text-anchor": "middle", class: "on-edge" }, `×${number(local)}`));
  }));
  nodes.forEach(({ label, data }, i) => {
    const { x, y } = places[i], box = svg("rect", { x, y, width: 165, height: 56, rx: 6, "stroke-width": i === handed - 1 ? 3 : 1 });
    box.style.fill = "var(--paper)";
    box.style.stroke = i === handed - 1 ? "var(--orange)" : "var(--line)";
    const letters = characters(label), short = letters.length > 20 ? `${letters.slice(0, 19).join("")}…` : label;
    picture.append(svg("g", {}, svg("title", {}, label), box,
      svg("text", { x: x + 8, y: y + 16, "font-size": 12 }, short),
      svg("text", { x: x + 8, y: y + 32, "font-size": 12 }, `data ${number(data)}`),
      svg("text", { x: x + 8, y: y + 48, "font-size": 12 }, `grad ${number(grads[i])}`)));
  });
  $("graph").replaceChildren(picture);
  const last = nodes[handed - 1];
  $("graph-note").textContent = last ? describe(last, number(grads[handed - 1])) :
    "backward() starts here: the derivative of the result with respect to itself is 1.";
  $("back-one").disabled = $("back-all").disabled = handed >= nodes.length;
}

function describe({ label, children }, grad) {
  if (!children.length) return `“${label}” was not computed from other nodes. Its gradient is complete: ${grad}.`;
  const shares = children.map(({ node, local, share }) =>
    `“${nodes[node].label}” gets ${number(local)} × ${grad} = ${number(share)}`);
  return `“${label}” passes on its gradient, ${grad}: ${shares.join(", ")}.`;
}

export function setUp() {
  $("draw-graph").disabled = false;
  $("draw-graph").addEventListener("click", begin);
  $("expression").addEventListener("keydown", (event) => { if (event.key === "Enter") begin(); });
  $("back-one").addEventListener("click", () => { handed++; draw(); });
  $("back-all").addEventListener("click", () => { handed = nodes.length; draw(); });
  return begin();
}
