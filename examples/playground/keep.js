// Panel "Save and open": download the model as a file, and open such a file.

import { $, attempt, make, visible } from "./page.js";
import { python } from "./python.js";

export function setUp(text, stop, opened) {
  $("open").disabled = false;
  $("download").addEventListener("click", () => attempt($("keep-error"), async () => {
    const packed = await python.save();
    const address = URL.createObjectURL(new Blob([packed], { type: "application/zip" }));
    make("a", { href: address, download: "microgpt-model.zip" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    $("kept").textContent = "Downloaded microgpt-model.zip. Unpack it, then run: python microgpt.py sample model";
  }));
  $("open").addEventListener("change", (event) => attempt($("keep-error"), async () => {
    const [file] = event.target.files;
    if (!file) return;
    await stop();
    const about = await python.load(new Uint8Array(await file.arrayBuffer()), await text());
    let training = "";
    if (about.documents) training = ` Its training is at step ${about.step} of ${about.steps}.`;
    else if (about.has_training) {
      training = " To continue its training, choose the text that it was trained on, and open the file again.";
    }
    $("kept").textContent = `Opened ${visible(file.name)}: ${about.parameters.toLocaleString("en")} parameters.${training}`;
    await opened(about);
  }));
}
