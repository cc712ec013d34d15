// Shows a chapter of microgpt.py beside the page.

import { $ } from "./page.js";

let chapters;

async function load() {
  const text = await (await fetch("../../microgpt.py")).text();
  const parts = text.split(/^(?=# === \d+\. |# Part [IVX]+\b)/m).filter((part) => part.startsWith("# ==="));
  return new Map(parts.map((part) => {
    const [, number, title] = /^# === (\d+)\. ([^=]+?) =/.exec(part);
    return [title, { number, text: part.trimEnd() }];
  }));
}

export function setUp() {
  let from;
  for (const button of document.querySelectorAll("button.chapter")) {
    button.type = "button";
    button.addEventListener("click", async () => {
      chapters ??= await load();
      from = button;
      const { number, text } = chapters.get(button.dataset.chapter);
      $("reader-title").textContent = `Chapter ${number}, “${button.dataset.chapter}”`;
      $("reader").querySelector("code").textContent = text;
      $("reader").querySelector("pre").scrollTop = 0;
      $("reader").hidden = false;
      $("close-reader").focus();
    });
  }
  const close = () => { $("reader").hidden = true; from?.focus(); };
  $("close-reader").addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("reader").hidden) close(); });
}
