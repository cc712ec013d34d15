// The worker runs Python beside the page. It loads Pyodide, microgpt.py and bridge.py, and answers calls.
//
// A call is {id, method, args}, and its answer is {id, result} or {id, error}. During training, each turn
// of the event loop runs some steps and posts {progress}. A message to itself starts the next turn, so
// other calls, such as stop, are handled in between. (setTimeout would wait 4 ms before each turn.)

const CDN = "https://cdn.jsdelivr.net/pyodide/v314.0.7/full/";
const BYTES = 13.4e6;                               // the size of the files that read() reads
const TURN = 60;                                    // milliseconds of training in each turn

let bridge, pyodide, training = false;
const next = new MessageChannel();
next.port1.onmessage = turn;

// Read Pyodide's large files to show progress. Pyodide then finds them in the browser's cache.
let bytes = 0;
async function read(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} cannot be read: ${answer.status}`);
  const reader = answer.body.getReader();
  for (let part; !(part = await reader.read()).done;) {
    bytes += part.value.length;
    self.postMessage({ loaded: Math.min(1, bytes / BYTES) });
  }
}

async function boot(source) {
  const base = source ?? CDN;
  const files = ["../../microgpt.py", "../components.py", "../graph.py", "../tracing.py", "bridge.py"];
  const texts = Promise.all(files.map(async (file) => {
    const answer = await fetch(new URL(file, self.location));
    if (!answer.ok) throw new Error(`${file} cannot be read: ${answer.status}`);
    return [file.split("/").at(-1), await answer.text()];
  }));
  await Promise.all(["pyodide.asm.wasm", "python_stdlib.zip", "pyodide.asm.mjs"].map((name) => read(base + name)));
  const { loadPyodide } = await import(base + "pyodide.mjs");
  pyodide = await loadPyodide({ indexURL: base });
  pyodide.FS.mkdirTree("/playground/files");
  for (const [name, text] of await texts) pyodide.FS.writeFile(`/playground/${name}`, text);
  pyodide.runPython("import sys; sys.path.insert(0, '/playground')");
  bridge = pyodide.pyimport("bridge");
  self.playground = bridge.Playground("/playground/files");
  return { python: pyodide.runPython("sys.version.split()[0]") };
}

function plain(value) {                             // Python objects -> plain JavaScript objects
  if (!(value instanceof pyodide.ffi.PyProxy)) return value;
  const copy = value.toJs({ dict_converter: Object.fromEntries, create_pyproxies: false });
  value.destroy();
  return copy;
}

function call(name, args) {
  const owner = name in OF_MODULE ? bridge : self.playground;
  return plain(owner[name](...args.map((arg) => pyodide.toPy(arg))));
}
const OF_MODULE = { parameter_count: 1, expression: 1 };

const METHODS = {
  boot,
  train() { training = true; next.port2.postMessage(0); },
  stop() { training = false; },
};

function turn() {
  if (!training) return;
  try {
    const progress = call("train", [TURN]);
    if (progress.step >= progress.steps) training = false;
    self.postMessage({ progress: { ...progress, running: training } });
    if (training) next.port2.postMessage(0);
  } catch (error) {
    training = false;
    self.postMessage({ progress: { error: words(error), running: false } });
  }
}

function words(error) {                             // the last line of a traceback, without the type of the error
  const last = String(error.message ?? error).trim().split("\n").at(-1);
  if (/fatally failed|call stack|out of memory/i.test(last)) {
    return "this was too much for Python, which has stopped: reload the page";
  }
  return last.replace(/^[\w.]*(Error|Exception): /, "");
}

self.onmessage = async ({ data: { id, method, args } }) => {
  try {
    const result = method in METHODS ? await METHODS[method](...args) : call(method, args);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: words(error) });
  }
};
