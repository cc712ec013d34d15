// Python runs in a worker. This is how the page calls it: `await python.score("maria")`.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let calls = 0, listener = () => {}, loading = () => {};

worker.onmessage = ({ data }) => {
  if (data.progress) return listener(data.progress);
  if ("loaded" in data) return loading(data.loaded);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) reject(new Error(data.error));
  else resolve(data.result);
};
worker.onerror = (event) => {                       // for example, the browser has no module workers
  event.preventDefault();
  for (const { reject } of waiting.values()) reject(new Error(event.message || "the page's worker failed"));
  waiting.clear();
};

export function onProgress(function_) { listener = function_; }
export function onLoading(function_) { loading = function_; }

export const python = new Proxy({}, {
  get: (_, method) => (...args) => new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ id: calls, method, args });
  }),
});

// For a part of the page that waits for Python: if it is called again meanwhile, only the last call counts.
export function latest(show) {
  let turn = 0;
  return async (...args) => {
    const mine = ++turn;
    return show(() => mine === turn, ...args);
  };
}
