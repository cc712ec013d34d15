"""Look inside a forward pass: what a saved model does with one text, layer by layer.

    python microgpt.py --save names
    python examples/xray.py names emma                  # in brief: seen from the last token
    python examples/xray.py names emma --attention      # who looks at whom, in every head
    python examples/xray.py names emma --residual       # each token's row of numbers, as it grows
    python examples/xray.py names emma --neighbours     # tokens that have similar embeddings
    python examples/xray.py names emma --json emma.json # every number, and every gradient
    python examples/xray.py --compare emma.json port.json

It prints shaded grids and lists, as plain text, in a second for a small model. The text is read as
a document: <|endoftext|> is its first token, and the target of its last. Only the first window of
a text longer than the model's block is shown and written, and a line says so.

--compare is for ports: run the same text on the same parameters (they are in model.safetensors)
through your own code, write the same form, and learn where the two part first. It goes through the
activations in forward order, then through the gradients in backward order, for what is wrong in one
place spoils all that comes after it. It needs no model. The exit status is 0 if all is equal, 1 if
not, 2 for bad input.

The form that --json writes is a JSON object. Its lists are row by row, n is the number of tokens,
and floats have all their digits (no NaN, no Infinity). The order of names does not matter.
    format, version     "microgpt trace", 1
    engine              "tensor" or "value", or the name of what else computed it; not compared
    config              {"vocab_size", "block_size", "n_layer", "n_head", "n_embd"}: whole numbers
    tokens, positions   [n]: the ids that are read, <|endoftext|> first, and 0 to n - 1
    targets             [n]: the ids to be predicted: tokens, one place on
    loss                the mean over the n predictions of -log(probability of the target)
    activations         {name: numbers}, for each block i from 0 on:
        embeddings                      [n][n_embd]     of token and position, added
        h.i.ln_1                        [n][n_embd]     the first layernorm
        h.i.attn.c_attn                 [n][3 n_embd]   queries, keys, values, in this order
        h.i.attn                        [n_head][n][1 to n]     the weights after softmax: a
                                        token's row is as long as the tokens it sees, with itself
        h.i.attn.c_proj                 [n][n_embd]     what attention adds to the residual stream
        h.i.ln_2                        [n][n_embd]     the second layernorm
        h.i.mlp.c_fc                    [n][4 n_embd]   before gelu
        h.i.mlp.c_proj                  [n][n_embd]     what the MLP adds to the residual stream
        h.i                             [n][n_embd]     the residual stream after the block
        ln_f                            [n][n_embd]     the last layernorm
        logits                          [n][vocab_size]
    gradients           {name: numbers}, d loss / d each number: of all activations but the
                        attention weights, under the same names, and of all parameters, under
                        GPT-2's: wte.weight, h.0.attn.c_attn.bias and so on. Weights of linear
                        layers are [n_out][n_in] here; in model.safetensors they lie transposed.
"""

import argparse
import json
import math
import os
import sys
from bisect import bisect
from contextlib import suppress
from dataclasses import asdict
from heapq import nlargest
from itertools import zip_longest
from operator import itemgetter
from unicodedata import category, east_asian_width

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import microgpt  # noqa: E402

FORMAT, VERSION = "microgpt trace", 1
WIDTH, LABEL, NEAREST = 79, 8, 4  # columns in a line, in a label; neighbours shown
BLOCKS, PLAIN = "·░▒▓█", ".:+*#"  # shades, from light to dark
SHARES = [0.02, 0.1, 0.25, 0.5]  # of attention, where the next shade begins


# --- Shaded grids --------------------------------------------------------------------------------


def can_show(text):
    """Can the output write this text?"""
    try:
        return bool(text.encode(getattr(sys.stdout, "encoding", None) or "utf-8"))
    except UnicodeError:
        return False


def safe(text):
    """The text in characters that fill one column each: _ for a space, \\n, \\u5929 and the like
    for what is unprintable, wide, combining, or unknown to the output."""
    return "".join(
        "_"
        if c == " "
        else c
        if c.isprintable()
        and east_asian_width(c) not in "WF"
        and category(c)[0] != "M"
        and can_show(c)
        else c.encode("unicode_escape").decode()
        for c in text
    )


def label(tokenizer, token):
    """A token in at most LABEL columns: <|> for <|endoftext|>, ~ at the end of one cut short."""
    text = "<|>" if token == tokenizer.end else safe(tokenizer.decode([token]))
    return text if len(text) <= LABEL else text[: LABEL - 1] + "~"


def shades():
    return BLOCKS if can_show(BLOCKS) else PLAIN


def shaded(row, limits):
    """Numbers -> shades: the lightest below limits[0], the darkest from limits[-1] on."""
    scale = shades()
    return [scale[bisect(limits, x)] for x in row]


def legend(limits, form):
    return "a shade begins at:  " + "  ".join(
        f"{shade} {x:{form}}" for shade, x in zip(shades(), [0, *limits])
    )


def grid(labels, rows, columns=(), ends=()):
    """A grid as text: a label, shades, an end; over them the columns' labels, written downward."""
    left, right = max(map(len, labels)), max(map(len, ends), default=0)
    wide = 2 if left + 1 + 2 * max(map(len, rows)) + right <= WIDTH else 1
    height = max(map(len, columns), default=0)
    above = zip(*[name.rjust(height) for name in columns])
    lines = [
        " " * left + " " + "".join(f"{c:{wide}}" for c in letters) for letters in above
    ]
    lines += [
        f"{name:>{left}} {''.join(wide * shade for shade in row)}{end}"
        for name, row, end in zip_longest(labels, rows, ends, fillvalue="")
    ]
    return "\n".join(map(str.rstrip, lines))


# --- Attention, residual stream, neighbours ------------------------------------------------------


def show_attention(trace, config, labels, brief):
    """Every head's weights, or in brief those of the last token only; of many tokens the last."""
    heads = {
        f"h.{i} head {j}": rows
        for i in range(config.n_layer)
        for j, rows in enumerate(trace[f"h.{i}.attn"])
    }
    panels = {
        f"{name}: rows look at columns": (labels, rows) for name, rows in heads.items()
    }
    if brief:
        panels = {
            f"the last token, {labels[-1]}, in each head": (
                list(heads),
                [rows[-1] for rows in heads.values()],
            )
        }
    print(
        "\nAttention: how much of its look a token gives to each token so far, itself too;\n"
        + legend(SHARES, ".0%")
    )
    for title, (names, rows) in panels.items():
        first = max(0, len(labels) - (WIDTH - max(map(len, names)) - 1))
        cut = (
            f" (the last {len(labels) - first} of {len(labels)} tokens)"
            if first
            else ""
        )
        kept = [
            (name, shaded(row[first:], SHARES))
            for name, row in zip(names, rows)
            if len(row) > first
        ]
        print(f"\n{title}{cut}\n{grid(*zip(*kept), labels[first:])}")


def grouped(row, size):
    """The mean absolute value of the first so many numbers, of the next, and of those left over."""
    parts = [row[i : i + size] for i in range(0, len(row), size)]
    return [sum(map(abs, part)) / len(part) for part in parts]


def show_residual(trace, config, labels, brief):
    """The rows of all tokens after the embeddings and after each block; in brief the last's."""
    depths = ["embeddings", *(f"h.{i}" for i in range(config.n_layer))]
    panels = {
        f"{name}: rows are tokens, columns dimensions": (labels, trace[name])
        for name in depths
    }
    if brief:
        panels = {
            f"the last token, {labels[-1]}, at each depth: columns are dimensions": (
                depths,
                [trace[name][-1] for name in depths],
            )
        }
    room = WIDTH - max(len(name) for names, _ in panels.values() for name in names) - 13
    size = math.ceil(config.n_embd / room)
    cells = {
        title: [grouped(row, size) for row in rows]
        for title, (_, rows) in panels.items()
    }
    largest = max(max(map(max, rows)) for rows in cells.values())
    limits = [(largest or 1) / 2**i for i in (4, 3, 2, 1)]
    cell = (
        "a number"
        if size == 1
        else f"the mean of {size} numbers (the last: of the rest)"
    )
    print(
        f"\nResidual stream: absolute values; the end of a row is its root mean square;\n"
        f"a cell is {cell}, at most {largest:.3g};\n{legend(limits, '.3g')}"
    )
    for title, (names, rows) in panels.items():
        ends = [f"  {math.sqrt(microgpt.dot(row, row) / len(row)):.4g}" for row in rows]
        print(
            f"\n{title}\n"
            f"{grid(names, [shaded(row, limits) for row in cells[title]], ends=ends)}"
        )


def show_neighbours(model, tokenizer, tokens):
    """Each different token, and those whose rows of wte point most nearly its way."""
    table = model.params["wte.weight"]
    lengths = [math.sqrt(microgpt.dot(row, row)) for row in table]
    print(
        "\nNeighbours: the nearest tokens in wte, the token embedding, by cosine\n"
        "(1: the same direction, 0: nothing in common, -1: opposite directions)\n"
    )
    for token in dict.fromkeys(tokens):
        cosines = [
            (microgpt.dot(table[token], row) / (lengths[token] * lengths[i] or 1), -i)
            for i, row in enumerate(table)
            if i != token
        ]
        print(
            f"{label(tokenizer, token):>{LABEL}}  "
            + "  ".join(
                f"{label(tokenizer, -i):>{LABEL}} {cosine:5.2f}"
                for cosine, i in nlargest(NEAREST, cosines)
            )
        )


# --- A trace as JSON -----------------------------------------------------------------------------


def forward_names(n_layer):
    """The activations in the order in which they are computed."""
    layers = (
        ".ln_1 .attn.c_attn .attn .attn.c_proj .ln_2 .mlp.c_fc .mlp.c_proj".split()
        + [""]
    )
    blocks = [f"h.{i}{layer}" for i in range(n_layer) for layer in layers]
    return ["embeddings", *blocks, "ln_f", "logits"]


def backward_names(config):
    """What has a gradient, in the order in which the gradients are complete."""
    parameters, names = microgpt.parameter_shapes(config), []
    for name in reversed(forward_names(config.n_layer)):
        if not name.endswith(".attn"):
            names.append(name)
        names += [
            f"{name}.{kind}"
            for kind in ("weight", "bias")
            if f"{name}.{kind}" in parameters
        ]
    return [*names, "wpe.weight", "wte.weight"]


def plain(x):
    """Floats, Values, rows of them, or a Tensor -> floats in the same shape."""
    return (
        [plain(y) for y in x] if isinstance(x, (list, tuple)) else getattr(x, "data", x)
    )


def full_trace(model, window, engine):
    """All that --json writes, for one window."""
    lifted, trace = (
        model.lift({"tensor": microgpt.Tensor, "value": microgpt.Value}[engine]),
        {},
    )
    loss = lifted.loss([window], trace=trace)
    loss.backward()
    everything = {**trace, **lifted.params}
    gradients = microgpt.gradients(
        {name: everything[name] for name in backward_names(model.config)}
    )
    tokens, positions, targets = microgpt.pack([window])
    return {
        "format": FORMAT,
        "version": VERSION,
        "engine": engine,
        "config": asdict(model.config),
        "tokens": tokens,
        "positions": positions,
        "targets": targets,
        "loss": float(loss),
        "activations": {name: plain(x) for name, x in trace.items()},
        "gradients": gradients,
    }


def write_json(path, contents):
    """Write the whole file or, if that fails, leave what was there."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(contents, allow_nan=False) + "\n")
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


# --- Comparing two -------------------------------------------------------------------------------


def check_numbers(x):
    """Raise ValueError unless x is a number, or lists of them, however deep."""
    if isinstance(x, list):
        for y in x:
            check_numbers(y)
    elif type(x) not in (int, float) or (isinstance(x, int) and abs(x) > 2**63):
        raise ValueError(f"{str(x)[:20]!r} is where a number should be")


def read_trace(path):
    """Read what --json wrote here, or a port elsewhere; ValueError if it is anything else."""
    kinds = {
        "config": dict,
        "tokens": list,
        "positions": list,
        "targets": list,
        "loss": (int, float),
        "activations": dict,
        "gradients": dict,
    }
    with open(path, encoding="utf-8-sig") as file:
        try:
            trace = json.load(file)
            if not isinstance(trace, dict) or trace.get("format") != FORMAT:
                raise ValueError(f'it does not say "format": "{FORMAT}"')
            if trace.get("version") != VERSION:
                raise ValueError(f"it is not of version {VERSION}")
            for field, kind in kinds.items():
                if not isinstance(trace.get(field), kind):
                    raise ValueError(f"{field} is missing, or is something else")
                for x in trace[field].values() if kind is dict else [trace[field]]:
                    check_numbers(x)
            microgpt.Config(**trace["config"])
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path!r} is not a trace: {error}") from None
    return trace


def differences(a, b, tolerance, index=""):
    """Where numbers or lists differ: (index, a, b, by how much). Of two lists that differ in length
    only these are told; the difference is infinite then, or if one number is infinite or none."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, tolerance, f"{index}[{i}]")
    elif None in (a, b) or isinstance(a, list) or isinstance(b, list):
        yield index, a, b, math.inf
    elif not (
        math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (a != a and b != b)
    ):
        yield index, a, b, abs(a - b) if math.isfinite(a - b) else math.inf


def pairs(a, b):
    """What two traces have: (its name, in a, in b), in the order of computing; None: not there."""
    config = microgpt.Config(**a["config"])
    for kind, known in [
        ("activation", forward_names(config.n_layer)),
        ("gradient", backward_names(config)),
    ]:
        ours, theirs = a[kind + "s"], b[kind + "s"]
        for name in dict.fromkeys([*known, *sorted({*ours, *theirs})]):
            if name in ours or name in theirs:
                yield f"{kind:10} {safe(name)}", ours.get(name), theirs.get(name)
        if kind == "activation":
            yield "loss", a["loss"], b["loss"]


def described(x):
    return (
        "missing"
        if x is None
        else f"{len(x)} items"
        if isinstance(x, list)
        else repr(x)
    )


def amount(x, y, size):
    """How much two differ, in a number or, where they are not two numbers, in words."""
    if None in (x, y) or isinstance(x, list) or isinstance(y, list):
        return f"{described(x)} in A, {described(y)} in B"
    return f"{size:.3g}"


def compare(paths, tolerance):
    """Print where two traces differ -> exit status."""
    a, b = map(read_trace, paths)
    for name in "config", "tokens", "positions", "targets":
        if a[name] != b[name]:
            print(f"{name} differ, so nothing else can be compared")
            print(f"A  {a[name]}"[:WIDTH], f"B  {b[name]}"[:WIDTH], sep="\n")
            return 1
    found = {name: list(differences(x, y, tolerance)) for name, x, y in pairs(a, b)}
    differing = [name for name in found if found[name]]
    if not differing:
        print(
            f"equal within {tolerance:g}: {len(found) - 1} activations and gradients, the loss"
        )
        return 0
    index, x, y, size = found[differing[0]][0]
    print(f"first difference: {' '.join(differing[0].split())}{index}"[:WIDTH])
    print(f"A           {described(x)}\nB           {described(y)}")
    print(
        f"difference  {amount(x, y, size)}\n\nothers that differ: {len(differing) - 1} of "
        f"{len(found) - 1}; where most, by how much"
    )
    for name in differing[1:]:
        index, x, y, size = max(found[name], key=itemgetter(3))
        print(f"{name + index:44} {amount(x, y, size)}"[:WIDTH])
    return 1


# --- The command ---------------------------------------------------------------------------------


def look(args):
    """Show and write what was asked for."""
    if args.text is None:
        raise ValueError(
            "say which model and which text: DIR TEXT (or --compare A.json B.json)"
        )
    if not args.text:
        raise ValueError("the text is empty: there is nothing to look at")
    model, tokenizer = (
        microgpt.GPT.load(args.directory),
        microgpt.load_tokenizer(args.directory),
    )
    config = model.config
    window, *rest = microgpt.windows(args.text, tokenizer, config.block_size)
    tokens, trace = window[:-1], {}
    labels = [label(tokenizer, token) for token in tokens]
    if args.json:
        write_json(args.json, full_trace(model, window, args.engine))
    print(f"{len(tokens)} tokens; <|> is <|endoftext|>, _ a space")
    if rest:
        print(
            f"only the first {len(tokens)} of {len(tokens) + sum(len(w) - 1 for w in rest)} "
            "tokens: the model sees no more at once"
        )
    brief = not (args.attention or args.residual or args.neighbours or args.json)
    model(tokens, trace=trace)
    if args.attention or brief:
        show_attention(trace, config, labels, brief)
    if args.residual or brief:
        show_residual(trace, config, labels, brief)
    if args.neighbours:
        show_neighbours(model, tokenizer, tokens)
    if args.json:
        print(f"\nwritten to {safe(args.json)}")
    return 0


def main(argv=None):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="xray",
        description="Look inside a forward pass of a saved model; the top of this "
        "script says more.",
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a saved model")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="one document")
    parser.add_argument(
        "--attention", action="store_true", help="each head's weights, as a grid"
    )
    parser.add_argument(
        "--residual", action="store_true", help="the residual stream, as it grows"
    )
    parser.add_argument(
        "--neighbours", action="store_true", help="tokens with similar embeddings"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write every activation and gradient"
    )
    parser.add_argument(
        "--engine",
        choices=["tensor", "value"],
        default="tensor",
        help="what computes those for --json (tensor)",
    )
    parser.add_argument(
        "--compare", metavar="JSON", nargs=2, help="find where two traces part"
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=1e-9,
        help="the difference allowed, relative to the larger or to 1 (1e-9)",
    )
    args = parser.parse_args(argv)
    try:
        if not 0 <= args.tolerance < math.inf:
            raise ValueError(
                f"tolerance is {args.tolerance}: must be a number from 0 on"
            )
        if args.compare and args.directory:
            raise ValueError("--compare takes two files, and no DIR and TEXT")
        status = compare(args.compare, args.tolerance) if args.compare else look(args)
        print(end="", flush=True)
        return status
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(f"xray: {error or 'not enough memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
