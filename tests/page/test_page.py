"""The page of the playground, examples/playground/, in a real browser.

These tests need Playwright for Python and Chromium (in the PATH, or named by CHROMIUM).
They also need the two packages that the page loads from a public address, in the same
versions, in the folder MICROGPT_NODE_MODULES:

    pip install playwright
    npm install pyodide@314.0.7 uplot@1.6.32
    MICROGPT_NODE_MODULES=node_modules python -m pytest tests/test_playground.py
"""

import base64
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import threading
import time
import zipfile
from types import SimpleNamespace

import pytest
from helpers import draws

import microgpt

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NODE_MODULES = os.environ.get("MICROGPT_NODE_MODULES", "")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])),
    "",
)


def source(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


INDEX = source("examples", "playground", "index.html")
CDN = sorted(set(re.findall(r"https://cdn[\w./@-]+?/(?:v|uplot@)[\d.]+/", INDEX)))
VERSIONS = {
    "pyodide": re.search(r"/pyodide/v([\d.]+)/", INDEX)[1],
    "uplot": re.search(r"/uplot@([\d.]+)/", INDEX)[1],
}
SLIDERS = {
    name: [float(x) for x in values.split()]
    for name, values in re.findall(
        r'<input type="range" name="(\w+)"[^>]*data-values="([^"]+)"', INDEX
    )
}


def missing():
    """What these tests need and do not have, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is missing: pip install playwright"
    if not shutil.which(CHROMIUM):
        return "Chromium is missing: install it, or name it in CHROMIUM"
    for name, version in VERSIONS.items():
        try:
            with open(
                os.path.join(NODE_MODULES, name, "package.json"), encoding="utf-8"
            ) as file:
                found = json.load(file)["version"]
        except OSError:
            found = "not there"
        if not NODE_MODULES or found != version:
            return (
                f"npm's {name} {version} is missing ({found}): run npm install "
                f"{name}@{version}, and set MICROGPT_NODE_MODULES to the folder "
                "node_modules"
            )
    return None


if missing():
    pytest.skip(missing(), allow_module_level=True)

from playwright.sync_api import sync_playwright  # noqa: E402
from tracing import TracedGPT  # noqa: E402

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8}
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
PLAYGROUND = "/examples/playground/"

# This runs before the page's own scripts. It remembers the charts that are drawn, tasks
# of more than 50 ms, and the page's worker.
WATCH = """
window.charts = []; window.longTasks = [];
const note = (list) => longTasks.push(...list.getEntries().map((e) => e.duration));
new PerformanceObserver(note).observe({ type: "longtask" });
let made;
Object.defineProperty(window, "uPlot", { get: () => made, set: (uPlot) => {
  made = new Proxy(uPlot, { construct: (target, args) => {
    window.charts.push(new target(...args));
    return window.charts.at(-1);
  } });
} });
const start = Worker;                           // the page has one worker
window.Worker = function (...args) { return window.worker = new start(...args); };
"""


# --- Serving and opening the page -----------------------------------------------------


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the repository as `python -m http.server` does.

    /own-pyodide/ is a copy of Pyodide.
    """

    def translate_path(self, path):
        own, _, name = path.partition("/own-pyodide/")
        return (
            super().translate_path(path)
            if own or not name
            else os.path.join(NODE_MODULES, "pyodide", os.path.basename(name))
        )

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def base():
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Server, directory=ROOT)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        yield opened
        opened.close()


def npm_file(address):
    """Where npm's package has a file of one of the public addresses."""
    name = address.rpartition("/")[2]
    folder = ["pyodide"] if "/pyodide/" in address else ["uplot", "dist"]
    return os.path.join(NODE_MODULES, *folder, name)


def answer(route):
    kinds = {
        "mjs": "text/javascript",
        "js": "text/javascript",
        "wasm": "application/wasm",
        "css": "text/css",
        "json": "application/json",
        "zip": "application/zip",
    }
    address = route.request.url
    route.fulfill(
        path=npm_file(address),
        content_type=kinds[address.rpartition(".")[2]],
        headers={"access-control-allow-origin": "*"},
    )


def visit(browser, address, pyodide=answer):
    """Open the page -> the page, its requests, and what goes wrong in it."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        accept_downloads=True,
        reduced_motion="reduce",
    )
    context.set_default_timeout(30000)
    context.add_init_script(WATCH)
    here = SimpleNamespace(
        page=context.new_page(), context=context, requests=[], troubles=[]
    )
    context.on("request", lambda request: here.requests.append(request.url))
    here.page.on(
        "console",
        lambda message: here.troubles.append(f"{message.type}: {message.text}"),
    )
    here.page.on("pageerror", lambda error: here.troubles.append(f"uncaught: {error}"))
    context.route("https://**", lambda route: route.abort())
    context.route(CDN[0] + "**" if "uplot" in CDN[0] else CDN[1] + "**", answer)
    context.route("https://cdn.jsdelivr.net/pyodide/**", pyodide)
    here.page.goto(address, wait_until="load")
    return here


def until(page, true, seconds=60):
    """Wait until a function returns something true, and return it.

    (The page's security policy forbids page.wait_for_function.)
    """
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, (
            f"waited in vain; the page says: {page.inner_text('header')}"
        )
        page.wait_for_timeout(20)
    return result


def booted(page):
    until(
        page,
        lambda: (
            page.is_enabled("#go")
            or "error" in (page.get_attribute("#status", "class") or "")
        ),
    )
    assert page.is_enabled("#go"), page.inner_text("#status")
    until(page, lambda: page.locator("#graph g").count())  # the last that is set up


@pytest.fixture(scope="module")
def here(browser, base):
    """The visit that most tests share. Pyodide comes only after a look at the page."""
    held = []
    here = visit(browser, base + PLAYGROUND, lambda route: held.append(route))
    page = here.page
    until(page, lambda: len(held) >= 3)
    here.first = {
        "heading": page.is_visible("h1"),
        "status": page.inner_text("#status"),
        "loading": page.is_visible("#loading"),
        "narrow": narrow(page),
        "panels": [
            page.is_visible(f"#{name} h2")
            for name in ("train", "generate", "inside", "value", "keep")
        ],
        "enabled": [
            name
            for name in (
                "go",
                "stop",
                "again",
                "draw",
                "write",
                "look",
                "back-one",
                "back-all",
                "download",
                "open",
            )
            if page.is_enabled(f"#{name}")
        ],
    }
    here.context.unroute("https://cdn.jsdelivr.net/pyodide/**")
    here.context.route("https://cdn.jsdelivr.net/pyodide/**", answer)
    for route in held:
        answer(route)
    booted(page)
    yield here
    here.context.close()


@pytest.fixture
def page(here):
    return here.page


@pytest.fixture(scope="module")
def ours():
    """The same training here, by this Python: 100 steps with the names and SHAPE."""
    documents = microgpt.load_documents(os.path.join(ROOT, "data", "names.txt"))
    tokenizer = microgpt.CharTokenizer(documents)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, **SHAPE), seed=42)
    config = microgpt.TrainConfig(steps=100, batch_size=4, lr=0.03, seed=42)
    trainer = microgpt.Trainer(model, tokenizer, documents, config)
    list(trainer)
    return trainer


# --- What a person does ---------------------------------------------------------------


def slide(page, **values):
    for name, value in values.items():
        page.fill(
            f"[name={name}], #{name}",
            str(SLIDERS[name].index(value) if name in SLIDERS else value),
        )


def step(page):
    return page.eval_on_selector("#progress", "(bar) => bar.value")


def curve(page):
    """What the chart shows: the steps, and their losses."""
    return page.evaluate("charts.at(-1).data.slice(0, 2)")


def ask(page, method, *args):
    """Ask the page's Python, past its panels."""
    return page.evaluate(
        """async ([method, args]) => {
      const { python } = await import("/examples/playground/python.js");
      return python[method](...args);
    }""",
        [method, args],
    )


def settle(page):
    """Wait until the page has shown all that it has asked Python for."""
    for _ in range(8):
        ask(page, "parameter_count", 3, {})


def train(page, **options):
    """Train to the end. The last thing to come is a sample."""
    slide(page, **{"steps": 100, **options})
    page.evaluate(
        "document.getElementById('reading').textContent = ''"
    )  # of a former one
    page.click("#go")
    until(page, lambda: page.inner_text("#reading"))
    settle(page)


def begin(page, least=3, **options):
    """Train, and come back after a few steps, while it goes on."""
    slide(page, **options)
    page.click("#go")
    until(page, lambda: page.is_enabled("#stop"))
    until(page, lambda: step(page) >= least)


def stop(page):
    page.click("#stop")
    until(page, lambda: page.is_enabled("#go"), 20)


def own_text(page, text):
    page.fill("#own-text", text)


def give(page, element, contents, name="file"):
    page.set_input_files(element, {"name": name, "mimeType": "", "buffer": contents})
    settle(page)


def zipped(directory):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in sorted(os.listdir(directory)):
            opened.write(os.path.join(directory, name), f"model/{name}")
    return file.getvalue()


def open_model(page, tmp_path, model, tokenizer):
    """With the panel "Save and open". The panel "Generate" is as at the beginning."""
    microgpt.save_model(model, str(tmp_path / "model"), tokenizer)
    give(page, "#open", zipped(str(tmp_path / "model")), "model.zip")
    assert not page.is_visible("#keep-error"), page.inner_text("#keep-error")
    slide(page, temperature=1, top_k=0, top_p=1)
    page.click("#clear")
    settle(page)


def words(page, place):
    """An error's message. It must be one line without names from the code."""
    until(page, lambda: page.is_visible(place), 10)
    told = page.inner_text(place)
    assert "\n" not in told and 10 < len(told) < 300, told
    assert not re.search(
        "Error|Errno|Exception|Traceback|/playground|undefined|null|Pyodide", told
    )
    return told


def bars(page):
    """[height of what the model has, height of what is drawn] of each token, in %."""
    return page.eval_on_selector_all(
        "#bars .bar",
        """(bars) => bars.map((bar) => [...bar.querySelectorAll("i")]
          .map((height) => parseFloat(height.style.height)))""",
    )


def shares(page):
    """The same as probabilities: each kind of bar adds up to 1."""
    return [[height / sum(row) for height in row] for row in zip(*bars(page))]


def narrow(page):
    """Is a page 360 pixels wide as wide as its window?"""
    size = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(100)
    width = page.evaluate(
        "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    )
    page.set_viewport_size(size)
    return width <= 360


# --- The files ------------------------------------------------------------------------


def test_what_comes_from_elsewhere_is_what_its_hash_says():
    tags = [
        tag for tag in re.findall(r"<(?:link|script)\b[^>]*>", INDEX) if "https:" in tag
    ]
    assert len(tags) == 2
    for tag in tags:
        with open(npm_file(re.search(r'(?:src|href)="([^"]+)"', tag)[1]), "rb") as file:
            digest = base64.b64encode(hashlib.sha384(file.read()).digest()).decode()
        assert (
            f'integrity="sha384-{digest}"' in tag and 'crossorigin="anonymous"' in tag
        )


def test_the_security_policy_lets_in_no_code_but_these_files():
    policy = re.search(r'"Content-Security-Policy" content="([^"]+)"', INDEX)[1]
    rules = {
        name: values for name, *values in map(str.split, policy.split(";")) if name
    }
    assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    assert rules["default-src"] == ["'none'"]
    allowed = {word for values in rules.values() for word in values if "//" in word}
    assert allowed == set(CDN) and len(CDN) == 2
    assert "*" not in policy and "'self'" in rules["script-src"]
    assert CDN[0] in rules["script-src"] and CDN[1] in rules["script-src"]
    assert CDN[0].split("@")[0] in "".join(CDN)
    assert f"/v{VERSIONS['pyodide']}/" in source("examples", "playground", "worker.js")


def test_every_model_that_the_sliders_offer_can_be_built():
    for n_embd in SLIDERS["n_embd"]:
        for n_head in SLIDERS["n_head"]:
            microgpt.Config(27, 8, 1, int(n_head), int(n_embd))


# --- Coming in ------------------------------------------------------------------------


def test_the_page_is_there_before_python_is(here):
    first = here.first
    assert first["heading"] and all(first["panels"]) and first["loading"]
    assert "Python" in first["status"] and first["enabled"] == [] and first["narrow"]
    assert not here.page.is_visible("#loading")  # but now Python is there
    assert here.page.inner_text("#status") != first["status"]


def test_python_that_cannot_be_reached_is_told_in_words(browser, base):
    there = visit(browser, base + PLAYGROUND, lambda route: route.abort())
    until(
        there.page,
        lambda: "error" in (there.page.get_attribute("#status", "class") or ""),
    )
    assert "Python" in there.page.inner_text("#status")
    assert "\n" not in there.page.inner_text("#status")
    assert not there.page.is_visible("#loading") and not there.page.is_enabled("#go")
    assert not [trouble for trouble in there.troubles if "uncaught" in trouble]
    there.context.close()


def test_pyodide_of_another_site_is_refused(browser, base):
    there = visit(browser, base + PLAYGROUND + "?pyodide=https://example.org/pyodide/")
    until(
        there.page,
        lambda: "error" in (there.page.get_attribute("#status", "class") or ""),
    )
    assert "https://example.org" in there.page.inner_text("#status")
    assert not [
        address for address in there.requests if "example.org/" in address.split("?")[0]
    ]
    assert not there.page.is_enabled("#go") and there.troubles == []
    there.context.close()


# --- Training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(here):
    """100 steps, with a stop on the way, and what was seen of them."""
    page = here.page
    slide(page, **SHAPE, steps=100, lr=0.03)
    settle(page)
    told = SimpleNamespace(parameters=page.inner_text("#parameters"))
    page.evaluate(
        "setTimeout(() => { for (const end = Date.now() + 200; Date.now() < end;); })"
    )
    until(
        page, lambda: page.evaluate("longTasks.some((ms) => ms > 190)")
    )  # they are seen
    page.evaluate("longTasks.length = 0")
    begin(page)
    told.while_training = page.is_enabled("#go"), page.is_enabled("#stop")
    started = time.monotonic()
    stop(page)
    told.stopping = time.monotonic() - started
    told.stopped = step(page)
    settle(page)
    page.wait_for_timeout(200)
    told.later = step(page)
    told.bars = shares(page)
    told.model = [row["model"] for row in ask(page, "next_tokens", "", 1, 0, 1)]
    page.click("#go")
    seen = []
    until(page, lambda: seen.append(step(page)) or page.inner_text("#reading"))
    settle(page)
    told.seen = seen
    told.long_tasks = page.evaluate("longTasks")
    told.steps, told.losses = curve(page)
    told.reading = page.inner_text("#reading")
    told.samples = page.locator("#samples li").count()
    told.next_tokens = ask(page, "next_tokens", "ma", 1, 0, 1)
    return told


def test_the_losses_are_those_of_this_python(trained, ours):
    assert trained.steps == list(range(1, 101))
    assert trained.losses == pytest.approx(ours.losses, abs=1e-9)
    probabilities = microgpt.softmax(
        ours.model([ours.tokenizer.end, *ours.tokenizer.encode("ma")])[-1]
    )
    assert [row["model"] for row in trained.next_tokens] == pytest.approx(
        probabilities, abs=1e-9
    )


def test_the_parameters_are_counted(trained, ours):
    counted = microgpt.parameter_count(ours.model.config)
    assert int(re.sub(r"\D", "", trained.parameters)) == counted


def test_stop_stops_and_continue_goes_on_from_there(trained):
    assert trained.while_training == (False, True)
    assert 3 <= trained.stopped == trained.later < 100
    assert trained.seen[0] >= trained.stopped and trained.seen == sorted(trained.seen)
    assert trained.seen[-1] == 100


def test_when_it_has_stopped_the_bars_are_of_the_model_as_it_is(trained):
    assert trained.bars[0] == pytest.approx(trained.model, rel=1e-4)


def test_at_the_end_it_says_how_it_went(trained, ours):
    loss = microgpt.evaluate(ours.model, ours.val_windows)
    scale = microgpt.baselines(ours.windows, ours.val_windows[:500], 27)
    assert f"{loss:.3f}" in trained.reading
    assert microgpt.reading(ours.losses, loss, scale) in trained.reading
    assert trained.samples >= 1


def test_the_page_answers_while_it_trains(trained):
    """Training runs in a worker, so the page's own thread is free.

    A user would feel more than 100 ms of work at a time. But on a busy machine, less
    work can take as long.
    """
    print(f"tasks of more than 50 ms: {trained.long_tasks}")
    print(f"to stop: {trained.stopping:.2f} s")
    assert max(trained.long_tasks, default=0) < 1000


def test_start_over_begins_at_the_first_step(page, trained):
    begin(page, 20, **SHAPE, steps=200)
    first = curve(page)[1][:3]
    page.click("#again")
    until(page, lambda: 3 <= step(page) < 20)
    stop(page)
    steps, losses = curve(page)
    assert steps[0] == 1 and losses[:3] == first and len(steps) == step(page)


def test_another_slider_means_another_training(page, trained):
    begin(page, **SMALL, steps=200)
    stop(page)
    slide(page, n_embd=16)
    settle(page)
    assert int(re.sub(r"\D", "", page.inner_text("#parameters"))) == ask(
        page, "parameter_count", 27, {**SMALL, "n_embd": 16}
    )
    page.click("#go")
    until(page, lambda: page.is_enabled("#stop"))
    about = ask(page, "about")
    stop(page)
    assert about["n_embd"] == 16 and len(curve(page)[0]) == step(page)


def test_another_text_means_another_training(page, trained):
    own_text(page, "ab\nba\nabba\nbaab")
    page.check("[name=text][value=names]")
    begin(page, **SMALL, steps=200)
    stop(page)
    page.check("[name=text][value=own]")
    page.click("#go")
    until(page, lambda: page.is_enabled("#stop"))
    about = ask(page, "about")
    stop(page)
    assert about["vocab"] == ["a", "b", microgpt.END]


def test_a_slider_that_is_moved_at_once_after_stop_breaks_nothing(here, trained):
    page = here.page
    before = len(here.troubles)
    begin(page, **SMALL, steps=200)
    page.evaluate("""() => {
      document.getElementById("stop").click();
      document.querySelector("[name=n_layer]").dispatchEvent(new Event("change"));
    }""")
    until(page, lambda: page.is_enabled("#go"))
    settle(page)
    assert here.troubles[before:] == []


def test_the_curve_of_a_long_training_keeps_the_numbers_of_its_steps(page, trained):
    """The worker claims to have made more steps than the curve has points for."""
    begin(page, **SMALL, steps=10000)
    stop(page)
    made = int(step(page))
    page.evaluate(
        """(made) => {
      for (let step = made + 500; step <= 9500; step += 500) {
        const losses = Array.from({ length: 500 }, (_, i) => step - 499 + i);
        const progress = { step, steps: 10000, losses, speed: 1, running: step < 9000 };
        worker.dispatchEvent(new MessageEvent("message", { data: { progress } }));
      }
    }""",
        made,
    )
    settle(page)
    steps, losses = curve(page)
    slide(page, **SMALL, steps=100)  # this was no training to go on with
    assert len(steps) > 1000 and steps[-1] == losses[-1]
    assert [(x, loss) for x, loss in zip(steps, losses) if x > made and x != loss] == []
    assert all(earlier < later for earlier, later in zip(steps, steps[1:]))


# --- A text of one's own --------------------------------------------------------------


@pytest.mark.parametrize(
    "contents, told",
    [
        (b"", "empty"),
        (b"just one line", "document"),
        (b"\x89PNG\r\n\x1a\n\0\0", "UTF-8"),
        ("ada\nren\u00e9\n".encode("latin-1"), "UTF-8"),
    ],
    ids=["empty", "one", "binary", "latin-1"],
)
def test_a_file_that_is_no_text_to_learn_from_is_refused_in_words(here, contents, told):
    page = here.page
    before = len(here.troubles)
    slide(page, **SMALL, steps=100)
    page.set_input_files(
        "#own-file", {"name": "own.txt", "mimeType": "text/plain", "buffer": contents}
    )
    page.wait_for_timeout(50)
    page.click("#go")
    assert told in words(page, "#train-error")
    assert page.is_enabled("#go") and here.troubles[before:] == []


def test_nothing_pasted_and_one_line_pasted_are_refused_in_words(page):
    for text, told in (("", "empty"), ("  \n \n", "empty"), ("alone", "document")):
        own_text(page, text or "x")
        own_text(page, text)
        page.check("[name=text][value=own]")
        page.click("#go")
        assert told in words(page, "#train-error")


def test_a_text_that_is_pasted_is_learned_and_known_again(page):
    """Thirty times the same: drawn at temperature 0 it can be nothing else."""
    own_text(page, "abba\n" * 30)
    train(page, **SMALL, lr=0.1)
    assert not page.is_visible("#train-error")
    assert len(bars(page)) == 3 and page.get_attribute("#top_k", "max") == "3"
    slide(page, temperature=0, top_k=0, top_p=1)
    page.fill("#prefix", "")
    page.click("#write")
    until(page, lambda: page.locator("#written li").count() == 10)
    known = page.locator("#written li").all_inner_texts()
    assert all(
        line.split() == ["abba", *"in the training text".split()] for line in known
    )
    page.fill("#prefix", "bb")
    page.click("#write")
    until(page, lambda: page.locator("#written li").first.inner_text().startswith("bb"))
    written = page.locator("#written li").all_inner_texts()
    assert len(written) == 10
    assert all(re.fullmatch(r"bb[ab]*\s+new", line) for line in written)


def test_a_file_that_is_chosen_is_learned(page):
    page.click("#clear")
    page.set_input_files(
        "#own-file",
        {
            "name": "own.txt",
            "mimeType": "text/plain",
            "buffer": "\ufeffrené\r\nzoë\r\n\r\nnoé".encode(),
        },
    )
    until(page, lambda: "zoë" in page.input_value("#own-text"))
    train(page, **SMALL)
    assert ask(page, "about")["vocab"] == [*sorted(set("renézoënoé")), microgpt.END]
    assert len(bars(page)) == 8


# --- Generation -----------------------------------------------------------------------


def expected(ours, prefix, temperature, top_k, top_p):
    """The model's probabilities, and those that Sampling draws with."""
    logits = ours.model([ours.tokenizer.end, *ours.tokenizer.encode(prefix)])[-1]
    given = {}
    rng = SimpleNamespace(
        choices=lambda ids, weights: given.update(zip(ids, weights)) or ids
    )
    certain = microgpt.Sampling(temperature, top_k, top_p).draw(logits, rng)
    given = given or {certain: 1.0}
    total = sum(given.values())
    return microgpt.softmax(logits), [
        given.get(i, 0) / total for i in range(len(logits))
    ]


@pytest.fixture
def opened(page, ours, tmp_path):
    """The page with the model that was trained here, and nothing typed."""
    page.check("[name=text][value=names]")
    open_model(page, tmp_path, ours.model, ours.tokenizer)
    return page


def test_the_bars_are_what_sample_draws_with(opened, ours):
    page = opened
    seen = set()
    for settings in (
        (1, 0, 1),
        (0.5, 0, 1),
        (2.5, 0, 1),
        (1, 3, 1),
        (1, 0, 0.6),
        (1.5, 9, 0.8),
        (0, 0, 1),
    ):
        slide(page, **dict(zip(("temperature", "top_k", "top_p"), settings)))
        page.fill("#prefix", "ma")
        settle(page)
        model, drawn = expected(ours, "ma", *settings)
        assert len(bars(page)) == 27
        told = shares(page)
        assert told[0] == pytest.approx(model, abs=1e-5)
        assert told[1] == pytest.approx(drawn, abs=1e-5)
        seen.add(tuple(round(x, 3) for x in drawn))
    assert len(seen) == 7  # each slider made a difference


def test_faint_and_full_bars_have_one_scale(opened, ours):
    slide(opened, temperature=0.5)
    opened.fill("#prefix", "ma")
    settle(opened)
    model, drawn = expected(ours, "ma", 0.5, 0, 1)
    most = max(model + drawn)
    for heights, both in zip(bars(opened), zip(model, drawn)):
        assert heights == pytest.approx([100 * p / most for p in both], abs=0.01)


def test_an_unknown_character_is_told_in_words_and_then_forgotten(opened):
    for button in (None, "#draw", "#write"):
        opened.fill("#prefix", "7")
        if button:
            opened.click(button)
        assert "7" in words(opened, "#generate-error")
        opened.fill("#prefix", "m")
        settle(opened)
        assert not opened.is_visible("#generate-error")
    assert len(bars(opened)) == 27


def test_a_token_that_is_drawn_joins_the_beginning(opened, ours):
    """At temperature 0, it is the likeliest. The end adds nothing."""
    slide(opened, temperature=0)
    text = ""
    while True:
        settle(opened)
        drawn = expected(ours, text, 0, 0, 1)[1]
        token = [*ours.tokenizer.vocab][drawn.index(1.0)]
        opened.click("#draw")
        settle(opened)
        assert opened.inner_text("#drawn")
        if token == microgpt.END or len(text) > 5:
            break
        text += token
        assert opened.input_value("#prefix") == text
        assert opened.inner_text("#so-far") == text
    assert text
    opened.click("#clear")
    assert opened.input_value("#prefix") == opened.inner_text("#so-far") == ""
    assert opened.locator("#written li").count() == 0


def test_the_end_adds_nothing_to_the_beginning(page, tmp_path):
    tokenizer = microgpt.CharTokenizer(["ab"])
    open_model(page, tmp_path, draws(0, 0, 1), tokenizer)
    page.fill("#prefix", "ab")
    page.click("#draw")
    until(page, lambda: page.inner_text("#drawn"))
    settle(page)
    assert page.input_value("#prefix") == "ab" and not page.is_visible(
        "#generate-error"
    )


def test_the_sliders_say_what_holds_also_after_another_model(opened, tmp_path):
    slide(opened, top_k=27)
    (tmp_path / "small").mkdir()
    microgpt.save_model(
        draws(0.5, 0.3, 0.2), str(tmp_path / "small"), microgpt.CharTokenizer(["ab"])
    )
    give(opened, "#open", zipped(str(tmp_path / "small")))
    told = (
        opened.locator("label", has=opened.locator("#top_k"))
        .locator("output")
        .inner_text()
    )
    assert len(bars(opened)) == 3 and told == opened.input_value("#top_k")


# --- Looking inside -------------------------------------------------------------------


def look(page, text):
    page.fill("#text", text)
    page.click("#look")
    settle(page)
    assert not page.is_visible("#inside-error")


def test_the_table_is_score(opened, ours):
    look(opened, "marianna")
    rows = [
        row.locator("td").all_inner_texts()
        for row in opened.locator("#scores tbody tr").all()
    ]
    scored = microgpt.score(ours.model, ours.tokenizer, "marianna")
    assert len(rows) == len(scored) == 9
    for (token, number, probability, loss, likeliest), one in zip(rows, scored):
        percent = float(probability.strip().rstrip("%"))
        rounded = 0.5 if percent >= 10 else 0.05
        assert percent == pytest.approx(100 * one.probability, abs=rounded + 1e-6)
        assert float(loss) == pytest.approx(one.loss, abs=0.0051)
        assert int(number) == one.id and (
            token == one.token or one.token == microgpt.END
        )
        assert re.findall(r"(\S+)\s+[\d.]+%", likeliest) == [
            "end" if token == microgpt.END else token for token, _ in one.likeliest
        ]
    loss = sum(one.loss for one in scored) / 9
    assert f"{loss:.3f}" in opened.inner_text("#scores caption")


def test_attention_is_a_map_for_every_head_and_looks_back_only(opened, ours):
    look(opened, "maria")
    maps = opened.eval_on_selector_all(
        "#attention svg",
        """(maps) => maps.map((map) =>
      [...map.querySelectorAll("rect")].map((rect) => ["y", "x", "fill-opacity"].map(
        (name) => Number(rect.getAttribute(name)))))""",
    )
    traced = TracedGPT(ours.model)
    traced([ours.tokenizer.end, *ours.tokenizer.encode("maria")])
    heads = []
    for i in range(SHAPE["n_layer"]):
        heads += traced.trace[f"h.{i}.attn"]
    assert len(maps) == len(heads) == SHAPE["n_layer"] * SHAPE["n_head"]
    for squares, head in zip(maps, heads):
        assert [(i, j) for i, j, _ in squares] == [
            (i, j) for i in range(6) for j in range(i + 1)
        ]
        shades = sorted((head[int(i)][int(j)], shade) for i, j, shade in squares)
        assert [shade for _, shade in shades] == sorted(shade for _, shade in shades)
        assert shades[0][1] < shades[-1][1]


def test_the_attention_of_a_token_is_told_in_words(opened):
    look(opened, "maria")
    opened.focus("#attention svg >> nth=1")
    last = opened.inner_text("#attention-note")
    opened.keyboard.press("ArrowUp")
    assert last and opened.inner_text("#attention-note") not in ("", last)
    opened.hover("#attention svg >> nth=0 >> rect >> nth=0")
    assert "100%" in opened.inner_text(
        "#attention-note"
    )  # the first can look at itself alone


def test_the_embedding_has_every_token(opened):
    told = opened.locator("#embedding svg text").all_text_contents()
    assert sorted(told) == sorted([*"abcdefghijklmnopqrstuvwxyz", "end"])


def test_a_name_that_cannot_be_looked_at_is_told_in_words(opened):
    opened.fill("#text", "mari4")
    opened.click("#look")
    assert "4" in words(opened, "#inside-error")
    look(opened, "")
    assert opened.locator("#scores tbody tr").count() == 1


# --- The chain rule -------------------------------------------------------------------


def grads(page):
    """What is written in each box of the graph: {label: gradient}."""
    boxes = page.eval_on_selector_all(
        "#graph g",
        """(boxes) => boxes.map((box) =>
      [box.querySelector("title").textContent, box.textContent])""",
    )
    return {
        label: float(re.search(r"grad\s+(-?[\d.e+-]+)", text)[1])
        for label, text in boxes
    }


def draw_graph(page, expression, numbers):
    page.fill("#expression", expression)
    page.fill("#numbers", numbers)
    page.click("#draw-graph")
    settle(page)


def test_the_gradient_goes_back_one_node_at_a_time(page):
    draw_graph(page, "a * b + a ** 2", "a=2 b=-3")
    root = "a * b + a ** 2"
    product = "a * b"
    square = "a ** 2"
    assert grads(page) == {root: 1, product: 0, square: 0, "a": 0, "b": 0}
    page.click("#back-one")
    assert grads(page) == {root: 1, product: 1, square: 1, "a": 0, "b": 0}
    page.click("#back-all")
    assert grads(page) == {root: 1, product: 1, square: 1, "a": 1, "b": 2}
    assert not page.is_enabled("#back-one") and not page.is_enabled("#back-all")
    page.click("#draw-graph")
    settle(page)
    assert grads(page)["a"] == 0 and page.is_enabled("#back-one")
    for _ in range(5):
        page.click("#back-one")
    assert grads(page)["a"] == 1 and not page.is_enabled("#back-one")


@pytest.mark.parametrize(
    "expression, numbers",
    [
        ("a +", "a=1"),
        ("", "a=1"),
        ("a * c", "a=1"),
        ("1 / a", "a=0"),
        ("import os", ""),
        ("a", "a"),
        ("a", "a=x"),
        ("log(a)", "a=-1"),
    ],
)
def test_what_is_no_expression_is_told_in_words(page, expression, numbers):
    draw_graph(page, expression, numbers)
    words(page, "#value-error")
    draw_graph(page, "a * a", "a=3")
    assert not page.is_visible("#value-error") and len(grads(page)) == 2


# --- Keeping it -----------------------------------------------------------------------


def downloaded(page, tmp_path):
    with page.expect_download() as waiting:
        page.click("#download")
    path = str(tmp_path / "downloaded.zip")
    waiting.value.save_as(path)
    with zipfile.ZipFile(path) as file:
        file.extractall(str(tmp_path / "unzipped"))
    with open(path, "rb") as file:
        return file.read()


def test_what_is_downloaded_opens_here_and_there(page, tmp_path):
    own_text(page, "ada\nbob\ncleo\nabel\nada")
    train(page, **SMALL)
    kept = downloaded(page, tmp_path)
    model = microgpt.load_model(str(tmp_path / "unzipped" / "model"))
    tokenizer = microgpt.load_tokenizer(str(tmp_path / "unzipped" / "model"))
    told = ask(page, "next_tokens", "ab", 1, 0, 1)
    assert [row["token"] for row in told] == list(tokenizer.vocab)
    logits = model([tokenizer.end, *tokenizer.encode("ab")])[-1]
    assert [row["model"] for row in told] == pytest.approx(
        microgpt.softmax(logits), abs=1e-12
    )

    slide(page, temperature=1, top_k=0, top_p=1)
    page.fill("#prefix", "ab")
    settle(page)
    before = bars(page)
    open_model(page, tmp_path, draws(0, 0, 1), microgpt.CharTokenizer(["ab"]))
    page.fill("#prefix", "ab")
    settle(page)
    assert len(bars(page)) == 3
    give(page, "#open", kept)
    assert bars(page) == before and ask(page, "next_tokens", "ab", 1, 0, 1) == told


def test_a_training_that_was_kept_goes_on_as_if_it_had_never_stopped(page, tmp_path):
    own_text(page, "ada\nbob\ncleo\nabel\nada")
    begin(page, **SMALL, steps=100)
    stop(page)
    kept = downloaded(page, tmp_path)
    made = int(step(page))
    page.click("#go")
    until(page, lambda: page.inner_text("#reading"))
    losses = curve(page)[1]
    open_model(page, tmp_path, draws(0, 0, 1), microgpt.CharTokenizer(["ab"]))
    give(page, "#open", kept)
    assert step(page) == made and f"step {made} of 100" in page.inner_text("#kept")
    page.click("#go")
    until(page, lambda: page.inner_text("#reading"))
    settle(page)
    again = dict(zip(*curve(page)))
    assert not page.is_visible("#train-error")
    assert {n: again[n] for n in range(made + 1, 101)} == dict(
        enumerate(losses[made:], made + 1)
    )


def test_a_model_that_is_opened_while_another_trains_stays_as_it_is(
    here, ours, tmp_path
):
    page = here.page
    before = len(here.troubles)
    page.check("[name=text][value=names]")
    begin(page, **SMALL, steps=1000)
    microgpt.save_training(ours, str(tmp_path / "model"))
    give(page, "#open", zipped(str(tmp_path / "model")))
    told = ask(page, "next_tokens", "ma", 1, 0, 1)
    assert [row["model"] for row in told] == pytest.approx(
        expected(ours, "ma", 1, 0, 1)[0]
    )
    assert not page.is_visible("#train-error"), page.inner_text("#train-error")
    assert not page.is_enabled("#stop")
    assert here.troubles[before:] == []


def test_a_model_of_bytes_as_gpt2_is_opens_too(page, tmp_path):
    tokenizer = microgpt.BPETokenizer.train(["eve ada ada ada ada"] * 9, 260)
    directory = tmp_path / "given"
    model = microgpt.GPT(microgpt.Config(260, 8, 1, 2, 8), seed=1)
    microgpt.save_model(model, str(directory), tokenizer)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(tokenizer.vocab), encoding="utf-8")
    (directory / "merges.txt").write_text(
        "\n".join(map(" ".join, tokenizer.merges)), "utf-8"
    )
    give(page, "#open", zipped(str(directory)))
    assert not page.is_visible("#keep-error") and page.inner_text("#kept")
    slide(page, temperature=1, top_k=0, top_p=1)
    page.fill("#prefix", "eve ada, ää")
    look(page, "eve ada")
    logits = model([tokenizer.end, *tokenizer.encode("eve ada, ää")][-8:])[-1]
    likeliest = sorted(
        sorted(range(260), key=lambda i: -logits[i])[:100]
    )  # all are too many
    probabilities = microgpt.softmax(logits)
    whole = sum(probabilities[i] for i in likeliest)
    assert len(bars(page)) == 100
    assert [share * whole for share in shares(page)[0]] == pytest.approx(
        [probabilities[i] for i in likeliest], abs=1e-5
    )
    assert (
        page.locator("#scores tbody tr").count() == len(tokenizer.encode("eve ada")) + 1
    )


def test_a_file_that_is_no_model_is_told_in_words_and_changes_nothing(opened):
    opened.fill("#prefix", "ma")
    settle(opened)
    before = bars(opened)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "hello")
    for contents in (b"", b"no zip at all", other.getvalue()):
        give(opened, "#open", contents)
        assert words(opened, "#keep-error")
    opened.click("#clear")
    opened.fill("#prefix", "ma")
    settle(opened)
    assert bars(opened) == before


# --- Without a mouse, on a phone, in the dark -----------------------------------------


def test_tab_reaches_everything_that_can_be_used(opened):
    opened.evaluate("""() => {
      window.reached = new Set();
      document.addEventListener("focusin", (event) => reached.add(event.target));
    }""")
    wanted = """() => [...document.querySelectorAll(
        "a[href], button, input, textarea, [tabindex]:not([tabindex='-1'])")]
      .filter((element) => !element.disabled && element.checkVisibility()
        && !(element.type === "radio" && !element.checked))"""
    count = opened.evaluate(f"({wanted})().length")
    assert count > 30
    for _ in range(count + 15):
        opened.keyboard.press("Tab")
    assert (
        opened.evaluate(
            f"({wanted})().filter((element) => !reached.has(element))"
            ".map((element) => element.outerHTML.slice(0, 100))"
        )
        == []
    )


def test_training_goes_by_keyboard(page):
    page.check("[name=text][value=names]")
    slide(page, **SMALL, steps=1000)
    page.focus("[name=n_layer]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("label:has([name=n_layer]) output") == "2"
    page.focus("[name=lr]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    until(page, lambda: page.is_enabled("#stop") and step(page) > 2)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    until(page, lambda: page.is_enabled("#go"))
    assert 2 < step(page) < 1000 and ask(page, "about")["n_layer"] == 2
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "go"


def test_enter_does_what_the_button_beside_does(opened):
    opened.fill("#text", "anna")
    opened.press("#text", "Enter")
    settle(opened)
    assert opened.locator("#scores tbody tr").count() == 5
    opened.fill("#numbers", "a=3")
    opened.fill("#expression", "a * a")
    opened.press("#expression", "Enter")
    settle(opened)
    assert len(grads(opened)) == 2
    opened.focus("#back-one")
    opened.keyboard.press("Enter")
    assert grads(opened)["a"] == 6


def test_every_chapter_opens_beside_the_page_and_escape_goes_back(page):
    program = source("microgpt.py")
    buttons = page.locator("button.chapter")
    assert buttons.count() >= 5
    for button in buttons.all():
        button.focus()
        page.keyboard.press("Enter")
        until(page, lambda: page.is_visible("#reader"), 10)
        chapter = page.text_content("#reader code")
        number, title = re.match(r"# === (\d+)\. (.+?) =", chapter).groups()
        assert chapter in program and len(chapter) > 1000
        assert len(re.findall(r"(?m)^# (?:=== \d+\. |Part )", chapter)) == 1
        assert (
            title == button.get_attribute("data-chapter")
            and title in button.inner_text()
        )
        assert f"{number}, “{title}”" in page.inner_text("#reader-title")
        assert page.evaluate(
            "document.querySelector('#reader').contains(document.activeElement)"
        )
        page.keyboard.press("Escape")
        assert not page.is_visible("#reader")
        assert button.evaluate("(button) => document.activeElement === button")
    page.keyboard.press("Enter")
    until(page, lambda: page.is_visible("#reader"), 10)
    page.keyboard.press("Enter")  # on Close
    assert not page.is_visible("#reader")


def test_everything_that_can_be_used_has_a_name(opened):
    look(opened, "maria")
    tree = opened.locator("body").aria_snapshot().splitlines()
    kinds = (
        "textbox|slider|button|radio|link|progressbar|img|table|checkbox|combobox|"
        "figure"
    )
    named = [line for line in tree if re.match(rf'\s*- ({kinds}) "[^"]', line)]
    assert len(named) > 40
    assert [
        line for line in tree if re.match(rf"\s*- (?!figure)({kinds})(?! \")\b", line)
    ] == []


def test_a_phone_scrolls_one_way_only(opened, tmp_path):
    look(opened, "mariannamaximiliana")
    opened.evaluate("window.scrollTo(0, 0)")
    draw_graph(opened, "tanh(w * x + b) ** 2", "w=0.5 x=2 b=-0.4")
    assert narrow(opened)
    opened.fill("#prefix", "7" * 60)  # a long message
    opened.fill("#text", "7" * 60)
    opened.click("#look")
    settle(opened)
    assert narrow(opened)
    opened.fill("#prefix", "ma")
    opened.click("#write")
    look(opened, "maria")
    opened.locator("button.chapter").first.click()
    until(opened, lambda: opened.is_visible("#reader"), 10)
    assert narrow(opened)
    opened.keyboard.press("Escape")
    own_text(opened, "ada\nbob\ncleo\nabel\nada")
    train(opened, **SMALL)
    assert narrow(opened)
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.wait_for_timeout(100)
    opened.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
    opened.set_viewport_size({"width": 1280, "height": 900})


# The contrast of what is written with what it is written on, as WCAG 2 defines it.
CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, alpha];
  };
  const over = (top, under) => under.map((x, i) => top[i] * top[3] + x * (1 - top[3]));
  const paper = (element) => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return over(own, paper(element.parentElement));
  };
  const light = (rgb) => rgb.map((x) => x / 255)
    .map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const writes = (element) => [...element.childNodes].some(
    (node) => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*:not(svg *)")]
    .filter((element) => writes(element) && !element.disabled
      && (element.checkVisibility() || element.matches(".error")))
    .map((element) => {
      const under = paper(element);
      const ink = over(parse(getComputedStyle(element).color), under);
      const shades = [light(ink), light(under)];
      const contrast = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
      return [contrast, element.outerHTML.slice(0, 80)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read_by_day_and_by_night(opened, scheme, tmp_path):
    opened.fill("#prefix", "ma")
    opened.click("#write")
    until(opened, lambda: opened.locator("#written li").count() == 10)
    opened.emulate_media(color_scheme=scheme)
    opened.wait_for_timeout(100)
    dark = opened.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"
    )
    contrasts = opened.evaluate(CONTRASTS)
    opened.screenshot(path=str(tmp_path / f"{scheme}.png"), full_page=True)
    opened.emulate_media(color_scheme="light")
    assert dark == (scheme == "dark") and len(contrasts) > 50
    assert [told for told in contrasts if told[0] < 4.5] == []


# Remember every animation: how long, and at which angle it ends.
REMEMBER = """
    window.turns = [];
    const animate = Element.prototype.animate;
    Element.prototype.animate = function(frames, options) {
        window.turns.push([options.duration, parseFloat(frames.rotate[1])]);
        return animate.call(this, frames, options);
    };
    0"""


def test_the_wheel_stops_where_the_token_is_that_was_drawn(page, tmp_path):
    """It turns the middle of the token's sector to the left, where sectors begin.

    If the user wants less motion, it turns at once.
    """
    open_model(
        page, tmp_path, draws(0.1, 0.2, 0.3, 0.4), microgpt.CharTokenizer(["abc"])
    )
    middles = {"a": 0.05, "b": 0.2, "c": 0.45}
    page.evaluate(REMEMBER)
    for motion in ["reduce"] * 4 + ["no-preference"]:
        page.emulate_media(reduced_motion=motion)
        before = page.input_value("#prefix")
        page.evaluate("document.getElementById('drawn').textContent = ''")
        page.click("#draw")
        until(page, lambda: page.inner_text("#drawn"))
        settle(page)
        drawn = page.input_value("#prefix")[len(before) :]
        duration, turned = page.evaluate("window.turns.at(-1)")
        assert (-turned / 360) % 1 == pytest.approx(middles.get(drawn, 0.8), abs=1e-6)
        assert (duration == 0) == (motion == "reduce")
    page.emulate_media(reduced_motion="reduce")


# --- In all that ----------------------------------------------------------------------


def test_the_page_has_asked_nobody_but_its_own_site_and_two_addresses(
    here, base, trained
):
    allowed = (base + "/", *CDN, "data:", f"blob:{base}/")
    assert [
        address for address in here.requests if not address.startswith(allowed)
    ] == []
    assert all(any(address.startswith(cdn) for address in here.requests) for cdn in CDN)
    assert base + "/microgpt.py" in here.requests


def test_nothing_went_wrong_behind_the_scenes(here, trained):
    assert here.troubles == []


def test_pyodide_can_come_from_a_folder_of_this_site(browser, base):
    there = visit(
        browser,
        base + PLAYGROUND + "?pyodide=/own-pyodide",
        lambda route: route.abort(),
    )
    booted(there.page)
    assert not [
        address
        for address in there.requests
        if address.startswith("https://cdn.jsdelivr.net/pyodide/")
    ]
    assert base + "/own-pyodide/pyodide.mjs" in there.requests and there.troubles == []

    # This comes last, because it might crash Python: deeply nested expressions.
    for deep in ("(" * 150 + "a" + ")" * 150, "+".join("a" * 3000), "-" * 5000 + "a"):
        draw_graph(there.page, deep, "a=1")
        if there.page.is_visible("#value-error"):
            words(there.page, "#value-error")
    draw_graph(there.page, "a * a", "a=3")
    assert len(grads(there.page)) == 2 and there.troubles == []
    there.context.close()
