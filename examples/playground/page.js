// What all panels share: elements, sliders, error messages, names and colours of tokens.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function sliderValue(slider) {
  const values = slider.dataset.values?.split(" ");
  return Number(values ? values[slider.value] : slider.value);
}

export function showSlider(slider) {
  const output = slider.parentElement.querySelector("output");
  output.textContent = sliderValue(slider).toLocaleString("en");
  slider.setAttribute("aria-valuetext", output.textContent);
}

// Do what the user asked for. If it fails, show the error's message at the place given.
export async function attempt(place, action, failed = () => {}) {
  place.hidden = true;
  try {
    return await action();
  } catch (error) {
    place.textContent = visible(error.message);
    place.hidden = false;
    failed();
  }
}

// A text that anyone may have written. Characters that hide or turn round other text are replaced.
export const visible = (text) => text.replace(/[\p{C}\u2028\u2029]/gu, (c) => "\n\t\u200c\u200d".includes(c) ? c : "�");

// What a reader takes for one character: a letter with its accents, or an emoji of several.
const segmenter = new Intl.Segmenter();
export const characters = (text) => Array.from(segmenter.segment(text), ({ segment }) => segment);

// The name of a token. Spaces and line ends have a sign, other characters without a look their code.
export const END = "<|endoftext|>";
const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };
const code = (c) => SIGNS[c] ?? `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
export function shown(token) {
  if (token === END) return "end";
  if (token === "") return "(no text)";
  if (/^\p{Default_Ignorable_Code_Point}+$/u.test(token)) return [...token].map(code).join("");
  const accent = /^\p{M}/u.test(token) ? "◌" : "";   // an accent needs something to stand on
  return accent + token.replace(/[\p{C}\p{Z}]/gu, (c) => "\u200c\u200d".includes(c) ? c : code(c));
}
export const dotted = (token) => token === END ? "•" : shown(token);           // where there is little room
export function initial(token) {                    // where there is least room
  const name = dotted(token).replace(/^␣(?=.)/u, "");
  return name.startsWith("U+") && !token.includes("U") ? "�" : characters(name)[0];
}

// From red for surprised to green for sure. Pale, so that text on it is legible in light and dark mode.
export function colour(probability) {
  const sure = Math.max(0, Math.min(1, 1 + Math.log10(Math.max(probability, 1e-9)) / 2));
  return `hsl(${Math.round(10 + 120 * sure)} 65% 50% / 40%)`;
}

export const percent = (p) => p >= 0.1 ? `${Math.round(100 * p)}%` : `${(100 * p).toFixed(p >= 0.001 ? 1 : 2)}%`;
