// The page loads Python in a worker, then enables its panels. See README, "In a browser".

import { $, characters, showSlider } from "./page.js";
import * as generate from "./generate.js";
import * as inside from "./inside.js";
import * as keep from "./keep.js";
import { onLoading, python } from "./python.js";
import * as reader from "./reader.js";
import * as train from "./train.js";
import * as value from "./value.js";

// Pyodide comes from its public address or, for use offline, from a folder of this site: ?pyodide=folder/
function source() {
  const asked = new URLSearchParams(location.search).get("pyodide");
  if (!asked) return null;
  const address = new URL(asked.endsWith("/") ? asked : `${asked}/`, location.href);
  if (address.origin !== location.origin) {
    throw new Error(`?pyodide= names another site, ${address.origin}, but must name a folder of this one`);
  }
  return address.href;
}

let last;

// There is a new model, or the model has changed. During training, update only what takes little time.
function ready(about, training = false) {
  for (const id of ["draw", "write", "look", "download"]) $(id).disabled = false;
  $("top_k").max = about.vocab.length;
  showSlider($("top_k"));
  const known = (text) => about.knows_all || [...text].every((letter) => about.vocab.includes(letter));
  if (!known($("text").value)) $("text").value = characters(about.example).slice(0, 40).join("");
  if (!known($("prefix").value)) generate.clear();
  if (about !== last) generate.retype();            // the tokens of another model are not those of this one
  last = about;
  generate.show();
  if (!training) inside.show();
}

async function main() {
  $("chart-style").media = "all";
  reader.setUp();
  generate.setUp();
  inside.setUp();
  onLoading((share) => {
    $("loading").value = share;
    $("status").textContent = share < 1 ? `Loading Python (about 6 MB): ${Math.round(100 * share)}%` : "Starting Python…";
  });
  try {
    if (!globalThis.WebAssembly) throw new Error("this browser has no WebAssembly, which Python needs");
    const { python: version } = await python.boot(source());
    $("status").textContent = `Ready. Python ${version} is running in this page.`;
    $("loading").hidden = true;
  } catch (error) {
    $("loading").hidden = true;
    $("status").className = "error";
    const offline = navigator.onLine ? "" : " You seem to be offline. The README explains how to use this page offline.";
    $("status").textContent = `Python could not be loaded: ${error.message}.${offline}`;
    return;
  }
  train.setUp(ready);
  keep.setUp(train.text, train.stop, async (about) => { await train.adopt(about); ready(about); });
  await value.setUp();
}

main();
