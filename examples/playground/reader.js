// The chapters of microgpt.py, to be read beside the page.

import { $ } from "./page.js";

let chapters;

async function load() {
  const text = await (await fetch("../../microgpt.py")).text();
  const parts = text.split(/^(?=# === \d+\. )/m).slice(1);
  return new Map(parts.map((part) => [/^# === \d+\. ([^=]+?) =/.exec(part)[1], part]));
}

export function setUp() {
  let from;
  for (const button of document.querySelectorAll("button.chapter")) {
    button.type = "button";
    button.addEventListener("click", async () => {
      chapters ??= await load();
      from = button;
      $("reader-title").textContent = `Chapter “${button.dataset.chapter}”`;
      $("reader").querySelector("code").textContent = chapters.get(button.dataset.chapter);
      $("reader").querySelector("pre").scrollTop = 0;
      $("reader").hidden = false;
      $("close-reader").focus();
    });
  }
  const close = () => { $("reader").hidden = true; from?.focus(); };
  $("close-reader").addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("reader").hidden) close(); });
}
