"""The page in examples/playground/, in a real browser, used as a person uses it.

These tests need Playwright for Python and Chromium (in the PATH, or named by CHROMIUM).
They also need the two packages that the page loads from a public address, in the same
versions, in the folder MICROGPT_NODE_MODULES:

    pip install playwright
    npm install pyodide@314.0.7 uplot@1.6.32
    MICROGPT_NODE_MODULES=node_modules python -m pytest tests/page
"""

import functools
import http.server
import io
import mimetypes
import os
import re
import shutil
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import EXAMPLES, ROOT, draws, probabilities
from tracing import TracedGPT

import microgpt
from microgpt import END, GPT, CharTokenizer, Config

NODE_MODULES = Path(os.environ.get("MICROGPT_NODE_MODULES", "no such folder"))
BROWSERS = map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, BROWSERS), None)
INDEX = (EXAMPLES / "playground" / "index.html").read_text(encoding="utf-8")
CDN = sorted(set(re.findall(r"https://cdn[\w./@-]+?/(?:v|uplot@)[\d.]+/", INDEX)))
VERSIONS = dict(re.findall(r"/(pyodide|uplot)[/@]v?([\d.]+)/", INDEX))
PYODIDE = "https://cdn.jsdelivr.net/pyodide/**"
SLIDERS = {
    name: [float(x) for x in values.split()]
    for name, values in re.findall(r'name="(\w+)"[^>]*data-values="([^"]+)"', INDEX)
}


def missing():
    """What these tests need and do not have, or None."""
    if CHROMIUM is None:
        return "Chromium is missing: install it, or name it in CHROMIUM"
    for name, version in VERSIONS.items():
        package = NODE_MODULES / name / "package.json"
        if not package.exists() or f'"version": "{version}"' not in package.read_text():
            return f"{name}@{version} is not in the folder MICROGPT_NODE_MODULES"
    return None


sync_api = pytest.importorskip("playwright.sync_api")
if missing():
    pytest.skip(missing(), allow_module_level=True)

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8}
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}

# This runs before the page's own scripts. It remembers the charts that are drawn and
# how far the wheel turns and for how long.
WATCH = """
window.charts = []; window.turns = [];
let made;
Object.defineProperty(window, "uPlot", { get: () => made, set: (uPlot) => {
  made = new Proxy(uPlot, { construct: (target, args) => {
    window.charts.push(new target(...args));
    return window.charts.at(-1);
  } });
} });
const animate = Element.prototype.animate;
Element.prototype.animate = function(frames, options) {
  window.turns.push([options.duration, parseFloat(frames.rotate[1])]);
  return animate.call(this, frames, options);
};
"""


# --- Serving and opening the page ---


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def base():
    serve = functools.partial(Server, directory=str(ROOT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def visit(base):
    """visit(query, pyodide): open the page -> it, its requests and its troubles."""
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)

        def opened(query="", pyodide=answer):
            context = browser.new_context(
                viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
            )
            context.set_default_timeout(30000)
            context.add_init_script(WATCH)
            page = context.new_page()
            here = SimpleNamespace(page=page, context=context, requests=[], troubles=[])
            context.on("request", lambda request: here.requests.append(request.url))
            page.on("console", lambda message: here.troubles.append(message.text))
            page.on(
                "pageerror", lambda error: here.troubles.append(f"uncaught {error}")
            )
            context.route("https://**", lambda route: route.abort())
            context.route("https://cdn.jsdelivr.net/npm/**", answer)
            context.route(PYODIDE, pyodide)
            context.route("**/own-pyodide/**", answer)
            page.goto(f"{base}/examples/playground/{query}", wait_until="load")
            return here

        yield opened
        browser.close()


def npm_file(address):
    """Where npm's package has a file of one of the public addresses."""
    folder = "pyodide" if "pyodide/" in address else "uplot/dist"
    return NODE_MODULES / folder / address.rpartition("/")[2]


def answer(route):
    path = npm_file(route.request.url)
    kinds = {".mjs": "text/javascript", ".wasm": "application/wasm"}
    route.fulfill(
        path=path,
        content_type=kinds.get(path.suffix) or mimetypes.guess_type(path.name)[0],
        headers={"access-control-allow-origin": "*"},
    )


def until(page, true, seconds=60):
    """Wait until a function returns something true, and return it.

    (The page's security policy forbids page.wait_for_function.)
    """
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, page.inner_text("header")
        page.wait_for_timeout(20)
    return result


def told_of_failure(page):
    """The message of a page that cannot start Python."""
    until(page, lambda: page.locator("#status.error").count())
    assert not page.is_visible("#loading") and not page.is_enabled("#go")
    return page.inner_text("#status")


def booted(page):
    failed = page.locator("#status.error")
    until(page, lambda: page.is_enabled("#go") or failed.count(), 300)
    assert page.is_enabled("#go"), page.inner_text("#status")
    until(page, lambda: page.locator("#graph g").count())  # the last that is set up


PANELS = ["train", "generate", "inside", "value", "keep"]
BUTTONS = "go stop again draw write look back-one back-all download open".split()


@pytest.fixture(scope="module")
def here(visit):
    """The visit that most tests share. At first, Pyodide is on its way."""
    held = []
    here = visit(pyodide=lambda route: held.append(route))
    page = here.page
    until(page, lambda: len(held) >= 3)
    here.first = {
        "panels": [name for name in PANELS if page.is_visible(f"#{name} h2")],
        "enabled": [name for name in BUTTONS if page.is_enabled(f"#{name}")],
        "loading": page.is_visible("#loading"),
        "narrow": is_narrow(page),
        "status": page.inner_text("#status"),
    }
    here.context.unroute(PYODIDE)
    here.context.route(PYODIDE, answer)
    for route in held:
        answer(route)
    booted(page)
    here.first["troubles"] = list(here.troubles)
    return here


@pytest.fixture
def page(here):
    """Nothing may go wrong behind the scenes."""
    here.troubles.clear()
    yield here.page
    assert here.troubles == []


@pytest.fixture(scope="module")
def ours():
    """100 steps with the names and SHAPE, by this Python."""
    documents = microgpt.load_documents(ROOT / "data" / "names.txt")
    tokenizer = CharTokenizer(documents)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE), seed=42)
    config = microgpt.TrainConfig(steps=100, batch_size=4, lr=0.03, seed=42)
    trainer = microgpt.Trainer(model, tokenizer, documents, config)
    list(trainer)
    return trainer


@pytest.fixture
def opened(page, ours, tmp_path):
    """The page with the model that was trained here, and nothing typed."""
    page.check("[name=text][value=names]")
    open_model(page, tmp_path, ours.model, ours.tokenizer)
    return page


# --- What a person does ---


def slide(page, **values):
    for name, value in values.items():
        place = SLIDERS[name].index(value) if name in SLIDERS else value
        page.fill(f"[name={name}], #{name}", str(place))


def step(page):
    return page.eval_on_selector("#progress", "(bar) => bar.value")


def curve(page):
    """What the chart shows: the steps, and their losses."""
    return page.evaluate("charts.at(-1).data.slice(0, 2)")


def ask(page, method, *args):
    """Ask the page's Python, past its panels."""
    question = """async ([method, args]) => {
      const { python } = await import("/examples/playground/python.js");
      return python[method](...args);
    }"""
    return page.evaluate(question, [method, args])


def settle(page):
    """Wait until the page has shown all that it has asked Python for."""
    for _ in range(8):
        ask(page, "parameter_count", 3, {})


def number(page, place):
    return int(re.sub(r"\D", "", page.inner_text(place)))


def begin(page, least=3, **options):
    """Train for a few steps, and come back while it goes on."""
    slide(page, **options)
    page.click("#go")
    until(page, lambda: page.is_enabled("#stop") and step(page) >= least)


def stop(page):
    page.click("#stop")
    until(page, lambda: page.is_enabled("#go"))
    settle(page)


def train(page, **options):
    """Train to the end -> what the page then says."""
    slide(page, **options)
    page.evaluate("document.getElementById('reading').textContent = ''")
    page.click("#go")
    until(page, lambda: page.inner_text("#reading"))
    settle(page)
    assert not page.is_visible("#train-error")
    return page.inner_text("#reading")


def give(page, element, contents, name="file"):
    page.set_input_files(element, {"name": name, "mimeType": "", "buffer": contents})
    settle(page)


def open_model(page, tmp_path, model, tokenizer):
    """With the panel "Save and open"; the panel "Generate" is as at the beginning."""
    microgpt.save_model(model, str(tmp_path / "model"), tokenizer)
    give(page, "#open", zipped(tmp_path / "model"))
    assert not page.is_visible("#keep-error"), page.inner_text("#keep-error")
    slide(page, temperature=1, top_k=0, top_p=1)
    page.click("#clear")
    settle(page)


def zipped(directory):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for path in directory.iterdir():
            opened.write(str(path), f"model/{path.name}")
    return file.getvalue()


def type_prefix(page, text):
    page.fill("#prefix", text)
    settle(page)


def look(page, text):
    page.fill("#text", text)
    page.click("#look")
    settle(page)


def draw_graph(page, expression, numbers):
    page.fill("#expression", expression)
    page.fill("#numbers", numbers)
    page.click("#draw-graph")
    settle(page)


def says(page, place, told=""):
    """An error's message is one line without names from the code."""
    until(page, lambda: page.is_visible(place))
    message = page.inner_text(place)
    assert told in message and "\n" not in message and 10 < len(message) < 300
    code = "Error|Errno|Exception|Traceback|/playground|undefined|null|Pyodide"
    assert not re.search(code, message), message


def bars(page):
    """[height of what the model has, height of what is drawn] of each token, in %."""
    heights = """(bars) => bars.map((bar) => [...bar.querySelectorAll("i")]
      .map((height) => parseFloat(height.style.height)))"""
    return page.eval_on_selector_all("#bars .bar", heights)


def grads(page):
    """What is written in each box of the graph: {label: gradient}."""
    boxes = """(boxes) => boxes.map((box) => [box.querySelector("title").textContent,
      box.textContent.match(/grad (.*)$/)[1]])"""
    found = page.eval_on_selector_all("#graph g", boxes)
    return {label: float(grad) for label, grad in found}


def is_narrow(page):
    """Does the page fit into a window that is 360 pixels wide?"""
    size = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(100)
    width = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size(size)
    return width <= 360


def logits(ours, prefix):
    """The logits after a beginning."""
    return ours.model([ours.tokenizer.end, *ours.tokenizer.encode(prefix)])[-1]


# --- The files ---


def test_what_comes_from_elsewhere_is_known_by_its_hash():
    """The browser compares the hashes."""
    tags = [
        tag for tag in re.findall(r"<(?:link|script)\b[^>]*>", INDEX) if "://" in tag
    ]
    assert len(tags) == 2
    assert all('integrity="sha384-' in x and "crossorigin=" in x for x in tags)


def test_the_security_policy_lets_in_no_code_but_these_files():
    policy = re.search(r'"Content-Security-Policy" content="([^"]+)"', INDEX)[1]
    rules = {name: values for name, *values in map(str.split, policy.split(";"))}
    code = {"'self'", "'wasm-unsafe-eval'", *CDN}
    assert rules["default-src"] == ["'none'"] and set(rules["script-src"]) == code
    allowed = {word for values in rules.values() for word in values}
    assert allowed == {*code, "'none'", "data:"} and len(CDN) == 2
    worker = (EXAMPLES / "playground" / "worker.js").read_text(encoding="utf-8")
    assert f"/v{VERSIONS['pyodide']}/" in worker


# --- Coming in ---


def test_the_page_is_there_before_python_is(here, page):
    status = here.first.pop("status")
    expected = {"enabled": [], "loading": True, "narrow": True, "troubles": []}
    assert here.first == {**expected, "panels": PANELS}
    assert "Python" in status != page.inner_text("#status")
    assert not page.is_visible("#loading")


@pytest.mark.parametrize(
    "query, told", [("", "Python"), ("?pyodide=https://example.org/", "example.org")]
)
def test_python_that_cannot_be_had_is_told_in_words(visit, query, told):
    there = visit(query, lambda route: route.abort())
    message = told_of_failure(there.page)
    assert told in message and "\n" not in message
    assert not [x for x in there.requests if x.startswith("https://example.org")]
    assert not [x for x in there.troubles if "uncaught" in x]


def test_pyodide_can_come_from_a_folder_of_this_site(visit, base):
    there = visit("?pyodide=/own-pyodide", lambda route: route.abort())
    page = there.page
    booted(page)
    assert not [x for x in there.requests if "cdn.jsdelivr.net/pyodide" in x]
    # These might crash Python, so they are not tried in the visit that tests share.
    for deep in ("(" * 150 + "a" + ")" * 150, "+".join("a" * 3000), "-" * 5000 + "a"):
        draw_graph(page, deep, "a=1")
        says(page, "#value-error")
    draw_graph(page, "a * a", "a=3")
    assert len(grads(page)) == 2 and there.troubles == []


# --- Training ---


def test_a_training_that_is_stopped_on_the_way_is_that_of_this_python(page, ours):
    slide(page, **SHAPE, steps=100, lr=0.03)
    settle(page)
    assert number(page, "#parameters") == microgpt.parameter_count(ours.model.config)
    begin(page)
    assert not page.is_enabled("#go")
    stop(page)
    stopped = step(page)
    told = [row["model"] for row in ask(page, "next_tokens", "", 1, 0, 1)]
    heights = [100 * p / max(told) for p in told]
    assert [faint for faint, _ in bars(page)] == pytest.approx(heights, abs=0.01)
    page.wait_for_timeout(200)
    assert 3 <= stopped == step(page) < 100
    reading = train(page)
    steps, losses = curve(page)
    assert steps == list(range(1, 101))
    assert losses == pytest.approx(ours.losses, abs=1e-9)
    loss = microgpt.evaluate(ours.model, ours.val_windows)
    scale = microgpt.baselines(ours.windows, ours.val_windows[:500], 27)
    assert f"{loss:.3f}" in reading
    assert microgpt.reading(ours.losses, loss, scale) in reading
    assert page.locator("#samples li").count() >= 1


def test_what_is_changed_makes_a_new_training(page):
    page.fill("#own-text", "ab\nba\nabba\nbaab")
    page.check("[name=text][value=names]")
    begin(page, 20, **SMALL, steps=200)
    first = curve(page)[1][:3]
    page.click("#again")  # the same once more
    until(page, lambda: 3 <= step(page) < 20)
    stop(page)
    steps, losses = curve(page)
    assert steps[0] == 1 and losses[:3] == first and len(steps) == step(page)
    slide(page, n_embd=16)
    settle(page)
    shape = {**SMALL, "n_embd": 16}
    assert number(page, "#parameters") == ask(page, "parameter_count", 27, shape)
    for text in ("names", "own"):
        page.check(f"[name=text][value={text}]")
        page.click("#go")
        until(page, lambda: page.is_enabled("#stop"))
        stop(page)
        about = ask(page, "about")
        assert about["n_embd"] == 16 and len(curve(page)[0]) == about["step"]
    assert about["vocab"] == ["a", "b", END]


def test_what_is_no_text_to_learn_from_is_refused_in_words_and_other_text_learned(page):
    for contents, told in (
        (b"", "empty"),
        (b"one line", "single"),
        (b"\xe9", "UTF-8"),
    ):
        give(page, "#own-file", contents)
        page.click("#go")
        says(page, "#train-error", told)
    for text, told in (("", "empty"), ("alone", "single")):
        page.fill("#own-text", "x")
        page.fill("#own-text", text)
        page.click("#go")
        says(page, "#train-error", told)
    page.click("#clear")
    give(page, "#own-file", "\ufeffrené\r\nzoë\r\n\r\nnoé".encode())
    assert "rené zoë noé" in page.inner_text("#own-opened")
    train(page, **SMALL, steps=100)
    assert ask(page, "about")["vocab"] == [*sorted(set("renézoënoé")), END]
    assert len(bars(page)) == 8


def test_a_text_that_is_pasted_is_learned_and_known_again(page):
    """Thirty times the same: drawn at temperature 0 it can be nothing else."""
    page.fill("#own-text", "abba\n" * 30)
    train(page, **SMALL, steps=100, lr=0.1)
    assert len(bars(page)) == 3 and page.get_attribute("#top_k", "max") == "3"
    slide(page, temperature=0, top_k=0, top_p=1)
    for prefix, line in [
        ("", r"abba\s+in the training text"),
        ("bb", r"bb[ab]*\s+new"),
    ]:
        page.click("#clear")
        page.fill("#prefix", prefix)
        page.click("#write")
        until(page, lambda: page.locator("#written li").count() == 10)
        written = page.locator("#written li").all_inner_texts()
        assert all(re.fullmatch(line, text) for text in written)


def test_a_file_is_learned_as_a_whole_until_something_is_typed(page):
    """The page shows its beginning, which is not the text to learn from."""
    contents = "abba\n" * 3000 + "xyz\n"
    for name, shown in (("big.txt", "big.txt"), ("x\u202etxt.exe", "x\ufffdtxt.exe")):
        page.fill("#own-text", "ab\nba")
        give(page, "#own-file", contents.encode(), name)
        told = page.inner_text("#own-opened")
        assert shown in told and "15,004" in told and len(told) < 200
        assert page.input_value("#own-text") == ""
        begin(page, **SMALL, steps=100)
        stop(page)
        assert ask(page, "about")["vocab"] == [*"abxyz", END]
    page.fill("#own-text", "cd\ndc")
    assert page.inner_text("#own-opened") == ""
    begin(page, **SMALL, steps=100)
    stop(page)
    assert ask(page, "about")["vocab"] == ["c", "d", END]


STANZAS = "ab\nba\n\nabba\nba\n\n"


def test_the_visitor_chooses_what_a_document_is(page, tmp_path):
    assert page.input_value("#kind") == "line"
    page.fill("#own-text", STANZAS * 2)
    for kind, count in (("line", 7), ("paragraph", 3), ("file", 1)):
        page.select_option("#kind", kind)
        begin(page, **SMALL, steps=1000)
        stop(page)
        about = ask(page, "about")
        assert about["document"] == kind and about["documents"] == count
    kept = downloaded(page, tmp_path)
    page.check("[name=text][value=names]")
    begin(page, **SMALL, steps=1000)
    stop(page)
    assert ask(page, "about")["document"] == "line"
    page.select_option("#kind", "line")
    assert page.is_checked("[name=text][value=own]")
    give(page, "#open", kept)
    assert page.input_value("#kind") == "file" and "training" in page.inner_text(
        "#kept"
    )
    page.select_option("#kind", "line")


def test_samples_and_prompts_with_line_ends_are_shown_in_lines(page, tmp_path):
    n, end = "\n", END
    tokenizer = CharTokenizer(["a\n"])
    assert list(tokenizer.vocab) == [n, "a", end]
    open_model(page, tmp_path, draws(1, 0, 0), tokenizer)
    page.fill("#prefix", "aa\na")
    page.click("#draw")
    settle(page)
    assert page.input_value("#prefix") == "aa\na\n"
    assert page.text_content("#so-far") == "aa\na\n"
    assert page.inner_text("#drawn").startswith("Drawn: ↵")
    assert page.inner_text("#bars").split() == ["↵", "a", "•"]
    open_model(page, tmp_path, draws(0, 0.5, 0.5), tokenizer)
    page.fill("#prefix", "aa\na")
    page.click("#write")
    until(page, lambda: page.locator("#written li").count() == 10)
    assert page.locator("#written li.lines").count() == 10
    lines = page.inner_text("#written li >> nth=0").split("\n")
    assert lines[:2] == ["new", "aa"] and re.fullmatch("a+", lines[2])
    height = "(x) => x.getBoundingClientRect().height"
    low, high = [
        page.eval_on_selector(f"#written li {x}", height) for x in ("small", "bdi")
    ]
    assert high > 1.5 * low
    page.fill("#text", "a")
    page.press("#text", "End")
    page.press("#text", "Shift+Enter")
    page.press("#text", "Enter")
    settle(page)
    assert page.locator("#scores tbody tr").count() == 3
    assert page.input_value("#text") == "a\n"
    assert page.inner_text("#scores caption").startswith("a↵:")


# --- Names of tokens ---

ACCENT, JOINER, TURN, BELL = "\u0301", "\u200d", "\u202e", "\x07"
ODD = CharTokenizer(["e" + ACCENT + JOINER + TURN + BELL + "👩\n "])


def test_names_of_tokens_hide_nothing_and_turn_nothing_round(page, tmp_path):
    model = GPT(Config(ODD.vocab_size, n_head=1, n_embd=2), seed=1)
    open_model(page, tmp_path, model, ODD)
    names = {
        BELL: "U+0007",
        "\n": "↵",
        " ": "␣",
        "e": "e",
        ACCENT: "◌" + ACCENT,
        JOINER: "U+200D",
        TURN: "U+202E",
        "👩": "👩",
    }
    assert page.inner_text("#bars").split() == [*names.values(), "•"]
    look(page, "".join(names))
    cells = page.locator("#scores tbody tr td:first-child").all_inner_texts()
    assert cells == [*names.values(), "end"]
    labels = page.locator("#attention svg >> nth=0 >> text").all_text_contents()
    firsts = ["•", *"\ufffd↵␣e", "◌" + ACCENT, *"\ufffd\ufffd👩"]
    assert labels[::2] == labels[1::2] == firsts
    page.fill("#prefix", "e" + TURN + "\n" + BELL)
    page.click("#write")
    until(page, lambda: page.locator("#written li").count() == 10)
    text = page.inner_text("#written")
    assert "e\ufffd\n\ufffd" in text
    assert not {TURN, BELL} & set(page.evaluate("document.body.innerText"))


def test_what_is_one_character_is_coloured_as_one(page, tmp_path):
    open_model(page, tmp_path, draws(*[1 / 9] * 9), ODD)
    woman = "👩" + JOINER + "👩"
    page.fill("#prefix", "e" + ACCENT + woman + "e")
    page.click("#write")
    until(page, lambda: page.locator("#written li").count() == 10)
    spans = page.locator("#written li >> nth=0 >> span").all()
    assert spans[1].inner_text() == woman
    shares = [span.get_attribute("title") for span in spans[:2]]
    assert shares == ["1.2%", "0.1%"]  # of two and of three tokens, each 1/9


@pytest.fixture
def half(page, tmp_path):
    """The page with a model of bytes that draws the second half of é."""
    tokenizer = microgpt.BPETokenizer.train(["ada"], 257)
    second = tokenizer.encode("é")[1]
    model = draws(*[float(i == second) for i in range(257)])
    open_model(page, tmp_path, model, tokenizer)
    return page, tokenizer


def test_a_token_that_is_half_a_character_is_kept_as_it_is(half):
    page, tokenizer = half
    first, second = tokenizer.encode("é")
    question = """async ([token]) => {
      const { python } = await import("/examples/playground/python.js");
      return python.draw("", 1, 0, 1, [token]);
    }"""
    given = {"id": first, "token": "", "probability": 0.5}
    told = page.evaluate(question, [given])
    assert told["text"] == "é"
    assert told["parts"] == [{"text": "é", "probability": 0.5}]
    page.click("#draw")
    settle(page)
    assert page.inner_text("#drawn") == "Drawn: \ufffdA9 (100%)"
    assert page.text_content("#so-far") == "\ufffd" and not page.input_value("#prefix")
    page.click("#draw")
    settle(page)
    assert page.text_content("#so-far") == "\ufffd\ufffd"


def test_what_was_typed_while_the_wheel_turned_is_kept(half):
    page, _ = half
    page.emulate_media(reduced_motion="no-preference")
    page.click("#draw")
    until(page, lambda: not page.is_enabled("#draw"))
    page.fill("#prefix", "ada")
    until(page, lambda: page.is_enabled("#draw"))
    settle(page)
    assert page.input_value("#prefix") == page.text_content("#so-far") == "ada"
    page.emulate_media(reduced_motion="reduce")


def test_tokens_of_another_model_are_not_kept(half, tmp_path):
    """They are numbers, which mean something else there, or nothing."""
    page, tokenizer = half
    page.fill("#prefix", "ada")
    page.click("#draw")
    settle(page)
    smaller = draws(0, 1, 0)
    microgpt.save_model(smaller, str(tmp_path / "smaller"), CharTokenizer(["ad"]))
    give(page, "#open", zipped(tmp_path / "smaller"))
    assert page.input_value("#prefix") == page.text_content("#so-far") == "ada"
    assert not page.is_visible("#generate-error") and len(bars(page)) == 3


def test_a_model_of_bytes_knows_every_text(half, ours, tmp_path):
    page, tokenizer = half
    page.fill("#text", "Zoë")
    open_model(page, tmp_path, draws(*[1 / 257] * 257), tokenizer)
    assert page.input_value("#text") == "Zoë"
    assert page.inner_text("#scores caption").startswith("Zoë:")


def test_an_example_that_is_shown_is_not_cut_within_a_character(page):
    page.fill("#text", "?")
    page.fill("#own-text", f"{'👩' * 39}e\u0301e\n" * 2)
    begin(page, **SMALL, steps=100)
    stop(page)
    assert page.input_value("#text") == "👩" * 39 + "e\u0301"


def test_the_beginning_of_a_file_is_not_cut_within_a_character(page):
    woman = "👩" + JOINER + "👩" + JOINER + "👧"  # 18 bytes: 22 fit into 400
    give(page, "#own-file", ("a" + woman * 40).encode())
    shown = page.inner_text("#own-opened").partition("“")[2].rstrip("”")
    assert len(shown) > 80 and "\ufffd" not in shown
    page.fill("#own-text", "")


def test_a_message_hides_nothing(page):
    draw_graph(page, "a", "a" + TURN + BELL + "=?")
    assert "a\ufffd\ufffd=?" in page.inner_text("#value-error")
    draw_graph(page, "a * a", "a=3")


def test_the_name_of_a_model_hides_nothing(page, tmp_path):
    microgpt.save_model(draws(0, 0, 1), str(tmp_path / "ab"), CharTokenizer(["ab"]))
    give(page, "#open", zipped(tmp_path / "ab"), "x" + TURN + "piz.exe")
    assert "x\ufffdpiz.exe" in page.inner_text("#kept")


def test_labels_of_bars_do_not_overlap(half):
    page, _ = half
    widths = """(bars) => bars.map((bar) => [bar.scrollWidth, bar.clientWidth])"""
    found = page.eval_on_selector_all("#bars .bar", widths)
    assert len(found) == 100 and all(inside <= room for inside, room in found)
    assert is_narrow(page)


def test_letters_of_a_graph_are_not_cut(page):
    name = "\U00020000" * 18 + "x" + "\u0304" + "y" * 3
    draw_graph(page, name, f"{name}=2")
    label = page.text_content("#graph g text >> nth=0")
    assert label == "\U00020000" * 18 + "x\u0304" + "…"


# --- Generation ---


def test_the_bars_are_what_sample_draws_with(opened, ours):
    seen = set()
    for settings in ((1, 0, 1), (0.5, 0, 1), (1, 3, 1), (1, 0, 0.6), (0, 0, 1)):
        slide(opened, **dict(zip(("temperature", "top_k", "top_p"), settings)))
        type_prefix(opened, "ma")
        told = ask(opened, "next_tokens", "ma", *settings)
        both = [[row["model"], row["drawn"]] for row in told]
        most = max(map(max, both))  # faint and full bars have one scale
        heights = [[100 * p / most for p in pair] for pair in both]
        assert bars(opened) == [pytest.approx(pair, abs=0.01) for pair in heights]
        model = [p for p, _ in both]
        assert model == pytest.approx(probabilities(logits(ours, "ma")), abs=1e-9)
        seen.add(tuple(round(drawn, 3) for _, drawn in both))
    assert len(seen) == 5  # each slider made a difference


def test_an_unknown_character_is_told_in_words_and_then_forgotten(opened):
    for button in (None, "#draw", "#write"):
        opened.fill("#prefix", "7")
        if button:
            opened.click(button)
        says(opened, "#generate-error", "7")
        type_prefix(opened, "m")
        assert not opened.is_visible("#generate-error")
    assert len(bars(opened)) == 27


def test_a_token_that_is_drawn_joins_the_beginning(opened, ours):
    """At temperature 0, it is the likeliest."""
    slide(opened, temperature=0)
    text = ""
    for _ in range(3):
        row = logits(ours, text)
        text += ours.tokenizer.decode([row.index(max(row))])
        opened.click("#draw")
        settle(opened)
        assert opened.input_value("#prefix") == opened.inner_text("#so-far") == text
    assert END not in text and opened.inner_text("#drawn")
    opened.click("#clear")
    assert opened.input_value("#prefix") == opened.inner_text("#so-far") == ""


def test_the_end_adds_nothing_and_sliders_fit_the_model_that_is_opened(
    opened, tmp_path
):
    slide(opened, top_k=27)
    microgpt.save_model(draws(0, 0, 1), str(tmp_path / "ab"), CharTokenizer(["ab"]))
    give(opened, "#open", zipped(tmp_path / "ab"))
    shown = opened.inner_text("label:has(#top_k) output")
    assert len(bars(opened)) == 3 and shown == opened.input_value("#top_k") == "3"
    type_prefix(opened, "ab")
    opened.click("#draw")
    until(opened, lambda: "end" in opened.inner_text("#drawn"))
    settle(opened)
    assert opened.input_value("#prefix") == "ab"
    assert not opened.is_visible("#generate-error")


def test_the_wheel_stops_where_the_token_is_that_was_drawn(page, tmp_path):
    """It turns the middle of the token's sector to the left, where sectors begin.

    If the user wants less motion, it turns at once.
    """
    open_model(page, tmp_path, draws(0.1, 0.2, 0.3, 0.4), CharTokenizer(["abc"]))
    middles = {"a": 0.05, "b": 0.2, "c": 0.45, "": 0.8}
    for motion in ["reduce"] * 4 + ["no-preference"]:
        page.emulate_media(reduced_motion=motion)
        page.click("#clear")
        settle(page)
        page.click("#draw")
        until(page, lambda: page.inner_text("#drawn"))
        settle(page)
        duration, turned = page.evaluate("turns.at(-1)")
        middle = middles[page.input_value("#prefix")]
        assert (-turned / 360) % 1 == pytest.approx(middle, abs=1e-6)
        assert (duration == 0) == (motion == "reduce")
    page.emulate_media(reduced_motion="reduce")


# --- Looking inside ---


def test_the_table_is_score(opened, ours):
    look(opened, "marianna")
    scored = microgpt.score(ours.model, ours.tokenizer, "marianna")
    lines = opened.locator("#scores tbody tr").all()
    assert len(lines) == len(scored) == 9
    for line, one in zip(lines, scored):
        _, id, percent, loss, likeliest = line.locator("td").all_inner_texts()
        rounded = 0.5 if one.probability >= 0.1 else 0.05
        share = float(percent.strip().rstrip("%"))
        assert share == pytest.approx(100 * one.probability, abs=rounded + 1e-6)
        assert float(loss) == pytest.approx(one.loss, abs=0.0051)
        assert int(id) == one.id
        tokens = ["end" if token == END else token for token, _ in one.likeliest]
        assert re.findall(r"(\S+)\s+[\d.]+%", likeliest) == tokens
    loss = microgpt.mean([one.loss for one in scored])
    assert f"{loss:.3f}" in opened.inner_text("#scores caption")


def test_attention_is_a_map_for_every_head(opened, ours):
    look(opened, "maria")
    squares = """(maps) => maps.map((map) => [...map.querySelectorAll("rect")].map(
      (rect) => ["y", "x", "fill-opacity"].map((name) => +rect.getAttribute(name))))"""
    traced = TracedGPT(ours.model)
    traced([ours.tokenizer.end, *ours.tokenizer.encode("maria")])
    heads = [head for i in range(2) for head in traced.trace[f"h.{i}.attn"]]
    maps = opened.eval_on_selector_all("#attention svg", squares)
    assert len(maps) == len(heads) == 4
    for shown, head in zip(maps, heads):
        shades = [0.06 + 0.94 * weight for row in head for weight in row]
        assert [(i, j) for i, j, _ in shown] == [
            (i, j) for i in range(6) for j in range(i + 1)
        ]
        assert [shade for _, _, shade in shown] == pytest.approx(shades)
    opened.focus("#attention svg >> nth=1")
    last = opened.inner_text("#attention-note")
    opened.keyboard.press("ArrowUp")
    assert last and opened.inner_text("#attention-note") not in ("", last)
    opened.hover("#attention svg >> nth=0 >> rect >> nth=0")
    assert "100%" in opened.inner_text("#attention-note")  # the first has only itself


def test_the_embedding_has_every_token_where_it_is(opened, ours):
    places = """(texts) => texts.map((text) =>
      [text.textContent, +text.getAttribute("x"), -text.getAttribute("y")])"""
    shown = opened.eval_on_selector_all("#embedding svg text", places)
    told = ask(opened, "embedding")["points"]
    most = max(max(abs(at["x"]), abs(at["y"])) for at in told)
    assert [name for name, _, _ in shown] == [*"abcdefghijklmnopqrstuvwxyz", "end"]
    for (_, x, y), at in zip(shown, told):
        assert (x, y) == pytest.approx((100 * at["x"] / most, 100 * at["y"] / most))


def test_a_map_of_a_part_of_a_text_says_so(opened):
    look(opened, "maximiliana")
    assert "first 8 tokens" in opened.inner_text("#attention-note")
    look(opened, "maximil")  # the start and seven letters
    assert opened.inner_text("#attention-note") == ""
    assert opened.inner_text("#embedding p").startswith("27 tokens.")


def test_an_embedding_in_part_says_so(half):
    page, _ = half
    assert "The last 100 of 257 tokens." in page.inner_text("#embedding")


def test_a_name_that_cannot_be_looked_at_is_told_in_words(opened):
    look(opened, "mari4")
    says(opened, "#inside-error", "4")
    look(opened, "")
    assert opened.locator("#scores tbody tr").count() == 1
    assert not opened.is_visible("#inside-error")


# --- The chain rule ---


def test_the_gradient_goes_back_one_node_at_a_time(page):
    draw_graph(page, "a * b + a ** 2", "a=2 b=-3")
    labels = ["a * b + a ** 2", "a * b", "a ** 2", "a", "b"]
    assert grads(page) == dict(zip(labels, [1, 0, 0, 0, 0]))
    page.click("#back-one")
    assert grads(page) == dict(zip(labels, [1, 1, 1, 0, 0]))
    page.click("#back-all")
    assert grads(page) == dict(zip(labels, [1, 1, 1, 1, 2]))
    assert not page.is_enabled("#back-one") and not page.is_enabled("#back-all")
    draw_graph(page, "a * b + a ** 2", "a=2 b=-3")
    for _ in range(5):
        page.click("#back-one")
    assert grads(page)["a"] == 1 and not page.is_enabled("#back-one")


def test_what_is_no_expression_is_told_in_words(page):
    for expression, numbers in (
        ("a +", "a=1"),
        ("1 / a", "a=0"),
        ("a", "a"),
        ("a", "a=x"),
    ):
        draw_graph(page, expression, numbers)
        says(page, "#value-error")
        draw_graph(page, "a * a", "a=3")
        assert not page.is_visible("#value-error") and len(grads(page)) == 2


# --- Saving and opening ---


def downloaded(page, folder):
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(str(folder / "downloaded.zip"))
    with zipfile.ZipFile(str(folder / "downloaded.zip")) as file:
        file.extractall(str(folder / "unzipped"))
    return (folder / "downloaded.zip").read_bytes()


def test_a_training_that_is_kept_opens_here_and_there_and_goes_on(page, tmp_path):
    page.fill("#own-text", "ada\nbob\ncleo\nabel\nada")
    begin(page, **SMALL, steps=100)
    stop(page)
    kept = downloaded(page, tmp_path)
    model = microgpt.load_model(str(tmp_path / "unzipped" / "model"))
    tokenizer = microgpt.load_tokenizer(str(tmp_path / "unzipped" / "model"))
    told = ask(page, "next_tokens", "ab", 1, 0, 1)
    assert [row["token"] for row in told] == list(tokenizer.vocab)
    theirs = probabilities(model([tokenizer.end, *tokenizer.encode("ab")])[-1])
    assert [row["model"] for row in told] == pytest.approx(theirs, abs=1e-12)
    made = int(step(page))
    train(page)
    losses = curve(page)[1]
    open_model(page, tmp_path, draws(0, 0, 1), CharTokenizer(["ab"]))
    assert len(bars(page)) == 3
    give(page, "#open", kept)
    assert ask(page, "next_tokens", "ab", 1, 0, 1) == told
    assert step(page) == made and f"step {made} of 100" in page.inner_text("#kept")
    train(page)
    assert curve(page) == [[*range(made + 1, 101)], losses[made:]]


def test_a_model_that_is_opened_while_another_trains_stays_as_it_is(
    page, ours, tmp_path
):
    page.check("[name=text][value=names]")
    begin(page, **SMALL, steps=1000)
    microgpt.save_training(ours, str(tmp_path / "model"))
    give(page, "#open", zipped(tmp_path / "model"))
    told = ask(page, "next_tokens", "ma", 1, 0, 1)
    theirs = probabilities(logits(ours, "ma"))
    assert [row["model"] for row in told] == pytest.approx(theirs)
    assert not page.is_visible("#train-error") and not page.is_enabled("#stop")


def test_a_file_that_is_no_model_is_told_in_words_and_changes_nothing(opened):
    type_prefix(opened, "ma")
    before = bars(opened)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "hello")
    for contents in (b"", b"no zip at all", other.getvalue()):
        give(opened, "#open", contents)
        says(opened, "#keep-error")
    type_prefix(opened, "mar")
    type_prefix(opened, "ma")
    assert bars(opened) == before


# --- Without a mouse, without eyes, on a phone, in the dark ---


def test_tab_reaches_everything_that_can_be_used(opened):
    wanted = """() => [...document.querySelectorAll(
        "a[href], button, input, textarea, [tabindex]:not([tabindex='-1'])")]
      .filter((element) => !element.disabled && element.checkVisibility()
        && !(element.type === "radio" && !element.checked))"""
    opened.evaluate("""() => {
      window.reached = new Set();
      document.addEventListener("focusin", (event) => reached.add(event.target));
    }""")
    count = opened.evaluate(f"({wanted})().length")
    assert count > 30
    for _ in range(count + 15):
        opened.keyboard.press("Tab")
    left = f"({wanted})().filter((x) => !reached.has(x)).map((x) => x.outerHTML)"
    assert opened.evaluate(left) == []


def test_training_and_other_buttons_go_by_keyboard(opened):
    focused = "document.activeElement.id"
    slide(opened, **SMALL, steps=1000)
    opened.focus("[name=n_layer]")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("label:has([name=n_layer]) output") == "2"
    opened.focus("[name=lr]")
    opened.keyboard.press("Tab")
    assert opened.evaluate(focused) == "go"
    opened.keyboard.press("Enter")
    until(opened, lambda: opened.is_enabled("#stop") and step(opened) > 2)
    opened.keyboard.press("Tab")
    assert opened.evaluate(focused) == "stop"
    opened.keyboard.press("Enter")
    until(opened, lambda: opened.is_enabled("#go"))
    settle(opened)
    assert 2 < step(opened) < 1000 and ask(opened, "about")["n_layer"] == 2
    opened.fill("#text", "anna")
    opened.press("#text", "Enter")
    settle(opened)
    assert opened.locator("#scores tbody tr").count() == 5
    opened.fill("#numbers", "a=3")
    opened.fill("#expression", "a * a")
    opened.press("#expression", "Enter")
    settle(opened)
    opened.press("#back-one", "Enter")
    assert grads(opened) == {"a * a": 1, "a": 6}


def test_every_chapter_opens_beside_the_page_and_escape_goes_back(page):
    program = (ROOT / "microgpt.py").read_text(encoding="utf-8")
    buttons = page.locator("button.chapter").all()
    assert len(buttons) >= 5
    for button in buttons:
        button.press("Enter")
        until(page, lambda: page.is_visible("#reader"))
        chapter = page.text_content("#reader code")
        number, title = re.match(r"# === (\d+)\. (.+?) =", chapter).groups()
        assert chapter in program and len(chapter) > 1000
        assert len(re.findall(r"(?m)^# (?:=== \d+\. |Part )", chapter)) == 1
        assert title == button.get_attribute("data-chapter")
        assert title in button.inner_text()
        assert f"{number}, “{title}”" in page.inner_text("#reader-title")
        page.keyboard.press("Escape")
        assert not page.is_visible("#reader")
        assert button.evaluate("(button) => document.activeElement === button")
    page.keyboard.press("Enter")
    until(page, lambda: page.is_visible("#reader"))
    page.keyboard.press("Enter")  # on Close
    assert not page.is_visible("#reader")


def test_everything_that_can_be_used_has_a_name(opened):
    look(opened, "maria")
    kinds = "textbox|slider|button|radio|link|progressbar|img|table|checkbox|combobox"
    tree = opened.locator("body").aria_snapshot()
    assert len(re.findall(rf'(?m)^\s*- (?:{kinds}) "[^"]', tree)) > 40
    assert re.findall(rf'(?m)^\s*- (?:{kinds})\b(?! "[^"]).*', tree) == []


def test_a_phone_scrolls_one_way_only(opened):
    look(opened, "mariannamaximiliana")
    draw_graph(opened, "tanh(w * x + b) ** 2", "w=0.5 x=2 b=-0.4")
    assert is_narrow(opened)
    type_prefix(opened, "7" * 60)  # a long message
    look(opened, "7" * 60)
    assert is_narrow(opened)
    opened.fill("#prefix", "ma")
    opened.click("#write")
    look(opened, "maria")
    opened.locator("button.chapter").first.click()
    until(opened, lambda: opened.is_visible("#reader"))
    assert is_narrow(opened)
    opened.keyboard.press("Escape")
    begin(opened, **SMALL, steps=100)
    assert is_narrow(opened)
    stop(opened)


def contrast(one, other):
    """Of two colours like #fff or #1d2129, as WCAG 2 defines it."""
    light = []
    for colour in (one, other):
        digits = colour[1:] if len(colour) == 7 else "".join(x + x for x in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [
            x / 12.92 if x < 0.04 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
        ]
        light.append(microgpt.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)
    return max(light) / min(light)


def test_all_colours_can_be_read_by_day_and_by_night(opened):
    names = "paper card ink soft blue orange green red".split()
    told = "(name) => getComputedStyle(document.body).getPropertyValue('--' + name)"
    for scheme in ("dark", "light"):
        opened.emulate_media(color_scheme=scheme)
        paper, card, *inks = [opened.evaluate(told, name).strip() for name in names]
        assert all(contrast(ink, x) > 4.5 for ink in inks for x in (paper, card))
        assert (contrast(paper, "#fff") > 4.5) == (scheme == "dark")


# --- In all that ---


def test_the_page_has_asked_nobody_but_its_own_site_and_two_addresses(here, base):
    allowed = (base + "/", *CDN, "data:", f"blob:{base}/")
    assert [x for x in here.requests if not x.startswith(allowed)] == []
    assert all(any(x.startswith(cdn) for x in here.requests) for cdn in CDN)
    assert base + "/microgpt.py" in here.requests
