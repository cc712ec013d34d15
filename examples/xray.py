"""Look inside a forward pass: what a saved model does with a text.

    python microgpt.py --save names
    python examples/xray.py names emma                  # in brief, for the last token
    python examples/xray.py names emma --attention      # what each token looks at
    python examples/xray.py names emma --residual       # each token's row, by block
    python examples/xray.py names emma --neighbours     # tokens with similar embeddings
    python examples/xray.py names emma --json emma.json # every number and gradient
    python examples/xray.py --compare emma.json port.json

It prints shaded grids and lists as plain text.
The text is read as a document: <|endoftext|> is its first token, and the target of its
last one. If the text is longer than the model's block, only its first window is shown
and written, and a line says so.

--compare is for ports of the model. Run your own code on the same text, with the same
parameters (they are in model.safetensors), and write the same format. Then --compare
shows where the two first differ. The activations are compared in the order of the
forward pass, and after them the gradients in the order of the backward pass: an error
affects everything after it, so the first difference is the one to look at. This needs
no model. The exit status is 0 if everything is equal, 1 if not, and 2 for bad input.

--json writes a JSON object. Lists are row by row, n is the number of tokens, and floats
have all their digits (no NaN, no Infinity). The order of names does not matter.

    format, version     "microgpt trace", 1
    engine              "tensor" or "value", or the name of your own program; it is
                        not compared
    config              {"vocab_size", "block_size", "n_layer", "n_head", "n_embd"};
                        for an untied head also {"tie_word_embeddings": false}
    tokens, positions   [n]: the ids that are read, <|endoftext|> first, and 0 to n - 1
    targets             [n]: the ids to predict, which are the tokens shifted by one
    loss                the mean over the n predictions of -log(target's probability)
    activations         {name: numbers}, with the names and shapes in tracing.py
    gradients           {name: numbers}, d loss / d each number: of all activations but
                        attention's weights, under the same names, and of all
                        parameters under GPT-2's, such as h.0.attn.c_attn.bias. The
                        weights of linear layers are [n_out][n_in] here; in
                        model.safetensors they are transposed.
"""

import json
import math
import os
import sys
from bisect import bisect
from dataclasses import asdict
from heapq import nlargest
from itertools import zip_longest
from operator import itemgetter
from unicodedata import category

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for python -I

from _common import (
    can_show,
    columns,
    escape,
    fit,
    flow,
    load,
    make_parser,
    not_empty,
    paragraph,
    run_command,
    visible,
    waiting,
    width,
    write_whole,
)
from tracing import TracedGPT

import microgpt

FORMAT = "microgpt trace"
VERSION = 1
LABEL = 8  # columns in a label
NEAREST = 4  # neighbours shown
SHARES = [0.02, 0.1, 0.25, 0.5]  # of attention, where the next shade begins


# --- Shaded grids ---------------------------------------------------------------------


def safe(text):
    """A text in characters that take one column each, with _ for a space.

    Characters that are unprintable, wide, combining, joining or unknown to the output
    are escaped.
    """
    shown = []
    for c in text:
        if c == " ":
            shown.append("_")
        elif columns(c) != 1 or category(c).startswith("M"):
            shown.append(escape(c))
        else:
            shown.append(visible(c))
    return "".join(shown)


def label(tokenizer, token):
    """A token in at most LABEL columns. <|> stands for <|endoftext|>, ~ for a cut."""
    if token == tokenizer.end:
        return "<|>"
    text = safe(tokenizer.decode([token]))
    return text if len(text) <= LABEL else text[: LABEL - 1] + "~"


def shades():
    """Five characters, from light to dark."""
    blocks = "·░▒▓█"
    return blocks if can_show(blocks) else ".:+*#"


def shaded(row, limits):
    """Numbers -> shades: the lightest below limits[0], the darkest from the last on."""
    scale = shades()
    return [scale[bisect(limits, x)] for x in row]


def legend(limits, form):
    """Where each shade begins."""
    begins = [f"{shade} {x:{form}}" for shade, x in zip(shades(), [0, *limits])]
    return flow(["a shade begins at:", *begins], "  ")


def grid(labels, rows, above=(), ends=()):
    """A grid as text. Each row has a label, its shades, and perhaps an end.

    `above` are the labels of the columns, which are written downward.
    """
    left = max(map(len, labels))
    right = max(map(len, ends), default=0)
    longest = max(map(len, rows))
    cell = 2 if left + 1 + 2 * longest + right <= width() else 1
    height = max(map(len, above), default=0)
    lines = []
    for letters in zip(*[name.rjust(height) for name in above]):
        lines.append(f"{'':{left}} " + "".join(f"{c:{cell}}" for c in letters))
    for name, row, end in zip_longest(labels, rows, ends, fillvalue=""):
        shown = "".join(cell * shade for shade in row)
        lines.append(f"{name:>{left}} {shown}{end}")
    return "\n".join(line.rstrip() for line in lines)


# --- Attention, residual stream, neighbours -------------------------------------------


def show_attention(trace, config, labels, brief):
    """Print every head's weights; in brief, only those of the last token."""
    heads = {}
    for i in range(config.n_layer):
        for j, rows in enumerate(trace[f"h.{i}.attn"]):
            heads[f"h.{i} head {j}"] = rows
    what = "Attention: how much of its attention a token gives to each token that it "
    what += "sees, including itself;"
    print(f"\n{paragraph(what)}\n{legend(SHARES, '.0%')}")
    if brief:
        title = f"the last token, {labels[-1]}, in each head"
        show_weights(title, list(heads), [rows[-1] for rows in heads.values()], labels)
        return
    for name, rows in heads.items():
        show_weights(f"{name}: rows look at columns", labels, rows, labels)


def show_weights(title, names, rows, labels):
    """Print a grid of weights. If it is too wide, only the last tokens are drawn."""
    room = max(1, width() - max(map(len, names)) - 1)
    first = max(0, len(labels) - room)
    if first:
        title += f" (the last {len(labels) - first} of {len(labels)} tokens)"
    kept_names = []
    kept_rows = []
    for name, row in zip(names, rows):
        if len(row) > first:
            kept_names.append(name)
            kept_rows.append(shaded(row[first:], SHARES))
    print(f"\n{paragraph(title)}\n{grid(kept_names, kept_rows, labels[first:])}")


def grouped(row, size):
    """The mean absolute value of each group of `size` numbers, and of the rest."""
    parts = [row[i : i + size] for i in range(0, len(row), size)]
    return [sum(map(abs, part)) / len(part) for part in parts]


def root_mean_square(row):
    """The root mean square of a row's numbers."""
    return math.sqrt(microgpt.dot(row, row) / len(row))


def show_residual(trace, config, labels, brief):
    """Print the rows of all tokens at each depth; in brief, only the last token's."""
    depths = ["embeddings", *(f"h.{i}" for i in range(config.n_layer))]
    panels = []  # title, labels of the rows, rows
    if brief:
        title = f"the last token, {labels[-1]}, at each depth: columns are dimensions"
        panels.append((title, depths, [trace[name][-1] for name in depths]))
    else:
        for name in depths:
            title = f"{name}: rows are tokens, columns dimensions"
            panels.append((title, labels, trace[name]))
    longest = max(len(name) for _, names, _ in panels for name in names)
    room = width() - longest - 1
    is_wide = room >= 30  # else there is no room for the root mean squares
    size = math.ceil(config.n_embd / (room - 12 if is_wide else max(1, room)))
    cells = [[grouped(row, size) for row in rows] for _, _, rows in panels]
    largest = max(x for rows in cells for row in rows for x in row)
    limits = [(largest or 1) / 2**i for i in (4, 3, 2, 1)]
    cell = "a number"
    if size > 1:
        cell = f"the mean of {size} numbers (the last: of the rest)"
    what = "Residual stream: absolute values;"
    if is_wide:
        what += " a row ends with its root mean square;"
    print(f"\n{paragraph(what)}")
    print(paragraph(f"a cell is {cell}, at most {largest:.3g};"))
    print(legend(limits, ".3g"))
    for (title, names, rows), shown in zip(panels, cells):
        ends = [f"  {root_mean_square(row):.4g}" for row in rows if is_wide]
        drawn = grid(names, [shaded(row, limits) for row in shown], ends=ends)
        print(f"\n{paragraph(title)}\n{drawn}")


def show_neighbours(model, tokenizer, tokens):
    """Print each token, and the tokens with the most similar directions in wte."""
    what = "Neighbours: the nearest tokens in wte, the token embedding, by cosine "
    what += "(1: the same direction, 0: nothing in common, -1: opposite directions)"
    print(f"\n{paragraph(what)}\n")
    table = model.params["wte.weight"]
    for token in dict.fromkeys(tokens):
        cells = [f"{label(tokenizer, token):>{LABEL}}"]
        with waiting("comparing"):
            nearest = neighbours(table, token)
        for cosine, i in nearest:
            cells.append(f"{label(tokenizer, i):>{LABEL}} {cosine:5.2f}")
        below = " " * (LABEL + 2 if width() >= 30 else 2)
        print(flow(cells, below), flush=True)


def neighbours(table, token):
    """The rows of a table that are nearest to a token's row: [(cosine, id), ...]."""
    cosines = []
    for i, row in enumerate(table):
        if i != token:
            cosines.append((cosine(table[token], row), -i))
    return [(x, -i) for x, i in nlargest(NEAREST, cosines)]


def cosine(a, b):
    """The cosine of the angle between two rows; 0 if one of them is all zeros."""
    lengths = math.sqrt(microgpt.dot(a, a)) * math.sqrt(microgpt.dot(b, b))
    return microgpt.dot(a, b) / (lengths or 1)


# --- A trace as JSON ------------------------------------------------------------------


def forward_names(n_layer):
    """The activations in the order in which they are computed."""
    layers = "ln_1 attn.c_attn attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj".split()
    names = ["embeddings"]
    for i in range(n_layer):
        names += [f"h.{i}.{layer}" for layer in layers] + [f"h.{i}"]
    return [*names, "ln_f", "logits"]


def backward_names(config):
    """The names that have gradients, in the order in which these are complete."""
    parameters = microgpt.parameter_shapes(config)
    names = []
    if not config.tie_word_embeddings:
        names.append("lm_head.weight")
    for name in reversed(forward_names(config.n_layer)):
        if not name.endswith(".attn"):
            names.append(name)
        for parameter in (f"{name}.weight", f"{name}.bias"):
            if parameter in parameters:
                names.append(parameter)
    return [*names, "wpe.weight", "wte.weight"]


def to_floats(x):
    """A Tensor, or rows of floats or Values -> rows of floats."""
    return microgpt.for_each(float, x.data if isinstance(x, microgpt.Tensor) else x)


def to_json(config):
    """A Config as --json writes it: the sizes, and whether the head is untied."""
    contents = asdict(config)
    if config.tie_word_embeddings:
        del contents["tie_word_embeddings"]
    return contents


def full_trace(model, window, engine):
    """Everything that --json writes, for one window."""
    params = {name: engine.convert(x) for name, x in model.params.items()}
    traced = TracedGPT(microgpt.GPT(model.config, params))
    loss = traced.loss([window])
    loss.backward()
    everything = {**traced.trace, **params}
    gradients = {}
    for name in backward_names(model.config):
        gradients[name] = engine.gradient(everything[name])
    return {
        "format": FORMAT,
        "version": VERSION,
        "engine": engine.name,
        "config": to_json(model.config),
        "tokens": window[:-1],
        "positions": list(range(len(window) - 1)),
        "targets": window[1:],
        "loss": float(loss),
        "activations": {name: to_floats(x) for name, x in traced.trace.items()},
        "gradients": gradients,
    }


def write_json(path, contents):
    """Write the whole file or, if that fails, keep the old one."""
    try:
        text = json.dumps(contents, allow_nan=False)
    except ValueError:
        raise ValueError("the trace has numbers that are not finite") from None
    write_whole(path, f"{text}\n".encode())


# --- Comparing two --------------------------------------------------------------------

KINDS = {
    "config": dict,
    "tokens": list,
    "positions": list,
    "targets": list,
    "loss": (int, float),
    "activations": dict,
    "gradients": dict,
}


def check_numbers(x):
    """Raise ValueError unless x is a number, or lists of them, however deep."""
    if isinstance(x, list):
        for y in x:
            check_numbers(y)
    elif type(x) not in (int, float) or (isinstance(x, int) and abs(x) > 2**63):
        raise ValueError(f"{str(x)[:20]!r} is where a number should be")


def check_trace(trace):
    """Raise ValueError or TypeError unless this is what --json writes."""
    if not isinstance(trace, dict) or trace.get("format") != FORMAT:
        raise ValueError(f'it does not say "format": "{FORMAT}"')
    if trace.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    for field, kind in KINDS.items():
        x = trace.get(field)
        if not isinstance(x, kind):
            raise ValueError(f"{field} is missing or has the wrong type")
        if kind is dict:
            tied = x.get("tie_word_embeddings", True)
            if tied is not True and tied is not False:
                raise ValueError(
                    f"tie_word_embeddings is {tied!r}: must be true or false"
                )
            x = [
                numbers for name, numbers in x.items() if name != "tie_word_embeddings"
            ]
        check_numbers(x)
    microgpt.Config(**trace["config"])


def read_trace(path):
    """Read a file in the format of --json; ValueError for anything else."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            trace = json.load(file)
            check_trace(trace)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path!r} is not a trace: {error}") from None
    return trace


def differences(a, b, tolerance, index=""):
    """Where numbers, or lists of them, differ: (index, a, b, by how much).

    If two lists have different lengths, only that is reported, as an infinite
    difference. The difference is also infinite if one of two numbers is not finite.
    """
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, tolerance, f"{index}[{i}]")
    elif None in (a, b) or isinstance(a, list) or isinstance(b, list):
        yield index, a, b, math.inf
    elif not equal(a, b, tolerance):
        yield index, a, b, abs(a - b) if math.isfinite(a - b) else math.inf


def equal(a, b, tolerance):
    """Are two numbers equal, relative to the larger or to 1? NaN is equal to NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def pairs(a, b):
    """What two traces contain, in the order of computation: (name, in a, in b).

    If one of them lacks a name, its entry is None.
    """
    config = microgpt.Config(**a["config"])
    known = forward_names(config.n_layer)
    yield from named_pairs("activation", known, a["activations"], b["activations"])
    yield "loss", a["loss"], b["loss"]
    known = backward_names(config)
    yield from named_pairs("gradient", known, a["gradients"], b["gradients"])


def named_pairs(kind, known, a, b):
    """The same for one kind: first the known names, then any others."""
    for name in dict.fromkeys([*known, *sorted({*a, *b})]):
        if name in a or name in b:
            yield f"{kind:10} {safe(name)}", a.get(name), b.get(name)


def described(x):
    """A number, a list or None, in words."""
    if x is None:
        return "missing"
    return f"{len(x)} items" if isinstance(x, list) else repr(x)


def amount(x, y, size):
    """By how much two entries differ: a number, or words if one is not a number."""
    if None in (x, y) or isinstance(x, list) or isinstance(y, list):
        return f"{described(x)} in A, {described(y)} in B"
    return f"{size:.3g}"


def compare(paths, tolerance):
    """Print where two traces differ -> an exit status."""
    with waiting("reading"):
        a, b = map(read_trace, paths)
    for name in "config", "tokens", "positions", "targets":
        if a[name] != b[name]:
            print(paragraph(f"{name} differ, so nothing else can be compared"))
            print(fit(f"A  {a[name]}"))
            print(fit(f"B  {b[name]}"))
            return 1
    found = {}
    with waiting("comparing"):
        for name, x, y in pairs(a, b):
            found[name] = list(differences(x, y, tolerance))
    count = len(found) - 1  # the loss is neither an activation nor a gradient
    if not any(found.values()):
        what = f"{count} activations and gradients, the loss"
        print(paragraph(f"equal within {tolerance:g}: {what}"))
        return 0
    tell_differences(found, count)
    return 1


def tell_differences(found, count):
    """Print the first difference, and the largest one of every other name."""
    first, *others = [name for name in found if found[name]]
    index, x, y, size = found[first][0]
    print(paragraph(fit(f"first difference: {' '.join(first.split())}{index}", 79)))
    print(paragraph(f"A           {described(x)}"))
    print(paragraph(f"B           {described(y)}"))
    print(paragraph(f"difference  {amount(x, y, size)}"))
    what = f"others that differ: {len(others)} of {count}; the largest of each:"
    print("\n" + paragraph(what))
    for name in others:
        index, x, y, size = max(found[name], key=itemgetter(3))
        if width() >= 60:
            print(fit(f"{name + index:44} {amount(x, y, size)}"))
        else:
            print(paragraph(" ".join(name.split()) + index))
            print(paragraph(amount(x, y, size), "  ", "  "))


# --- The command ----------------------------------------------------------------------


def look(options):
    """Show and write what the options ask for."""
    if options.text is None:
        raise ValueError(
            "give a model and a text, DIR TEXT, or --compare A.json B.json"
        )
    if not options.text:
        raise ValueError("the text is empty: there is nothing to look at")
    model, tokenizer = load(options.directory)
    microgpt.encode_text(tokenizer, options.text)  # its error says what would help
    block_size = model.config.block_size
    window, *rest = microgpt.cut_windows(options.text, tokenizer, block_size)
    tokens = window[:-1]
    if options.json:
        engine = microgpt.ENGINES[options.engine]()
        with waiting("computing all activations and gradients"):
            write_json(options.json, full_trace(model, window, engine))
    print(paragraph(f"{len(tokens)} tokens; <|> is <|endoftext|>, _ is a space"))
    if rest:
        total = len(tokens) + sum(len(window) - 1 for window in rest)
        what = f"only the first {len(tokens)} of {total} tokens"
        print(paragraph(f"{what}: the model cannot see more at once"))
    show(options, model, tokenizer, tokens)
    if options.json:
        print(f"\nwritten to {safe(options.json)}")
    return 0


def show(options, model, tokenizer, tokens):
    """Print the grids and lists. If none is asked for, print two of them in brief."""
    asked_for = [options.attention, options.residual, options.neighbours, options.json]
    brief = not any(asked_for)
    labels = [label(tokenizer, token) for token in tokens]
    trace = {}
    if options.attention or options.residual or brief:
        with waiting("computing"):
            trace = trace_of(model, tokens)
    if options.attention or brief:
        show_attention(trace, model.config, labels, brief)
    if options.residual or brief:
        show_residual(trace, model.config, labels, brief)
    if options.neighbours:
        show_neighbours(model, tokenizer, tokens)


def trace_of(model, tokens):
    """The activations of a forward pass, by name."""
    traced = TracedGPT(model)
    traced(tokens)
    return traced.trace


def look_or_compare(options):
    """Do what the options say -> an exit status."""
    if not 0 <= options.tolerance < math.inf:
        raise ValueError(f"tolerance is {options.tolerance}: must be 0 or more")
    if options.compare is None:
        return look(options)
    if options.directory:
        raise ValueError("--compare takes two files, but no DIR or TEXT")
    return compare(options.compare, options.tolerance)


FLAGS = {
    "--attention": "Show what each token looks at, as a grid for each head.",
    "--residual": "Show each token's row of numbers after each block.",
    "--neighbours": "Show the tokens that have the most similar embeddings.",
}


def main(argv=None):
    """The command; returns the exit status."""
    takes = "It takes a moment with a small model, some seconds a token with a GPT-2."
    parser = make_parser("xray", __doc__, takes)
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="The directory of a saved model.",
    )
    parser.add_argument("text", metavar="TEXT", nargs="?", help="The document to read.")
    for name, sentence in FLAGS.items():
        parser.add_argument(name, action="store_true", help=sentence)
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=not_empty,
        help="Write every activation and gradient to a file.",
    )
    parser.add_argument(
        "--engine",
        choices=list(microgpt.ENGINES),
        default="tensor",
        help="The engine that computes them for --json (tensor).",
    )
    parser.add_argument(
        "--compare",
        metavar=("A.json", "B.json"),
        nargs=2,
        help="Show where two files that --json wrote differ.",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=1e-9,
        help="Allowed difference, relative to the larger number or to 1 (1e-9).",
    )
    options = parser.parse_intermixed_args(argv)
    return run_command("xray", look_or_compare, options, status_of_errors=2)


if __name__ == "__main__":
    sys.exit(main())
