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
    place.textContent = error.message;
    place.hidden = false;
    failed();
  }
}

export const END = "<|endoftext|>";
export const shown = (token) => token === END ? "end" : token === " " ? "␣" : token;
export const dotted = (token) => token === END ? "•" : shown(token);           // where there is little room

// From red for surprised to green for sure. Pale, so that text on it is legible in light and dark mode.
export function colour(probability) {
  const sure = Math.max(0, Math.min(1, 1 + Math.log10(Math.max(probability, 1e-9)) / 2));
  return `hsl(${Math.round(10 + 120 * sure)} 65% 50% / 40%)`;
}

export const percent = (p) => p >= 0.1 ? `${Math.round(100 * p)}%` : `${(100 * p).toFixed(p >= 0.001 ? 1 : 2)}%`;
