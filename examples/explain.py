"""How likely a model finds a text: token by token, and several texts against each other.

    python microgpt.py explain DIR TEXT...
    python examples/explain.py DIR TEXT...

DIR is a model that `--save` has kept, or any GPT-2 directory. A text is a document: <|endoftext|>
stands before it and is predicted after it. For every token there is its id, the probability that
it was given, a bar of that length, its loss in nats, and what was likeliest in its place; an `end`
without quotes is <|endoftext|>. On a terminal the text is shown in colour, from red (below 5 %)
over yellow to green (30 % and more). Several texts are ranked, the likeliest first. It takes no
longer than reading the texts.
"""

import argparse
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(sys.path[0]))

from lookahead import WIDTH, can_show, columns, fit, quoted

import microgpt

HEADER = f"{'token':16} {'id':>6}  probability        {'loss':>6}  likeliest"


def name(token):
    """A token as it can stand in a table, in at most 16 columns."""
    return "end" if token == microgpt.END else fit(quoted(token), 16)


def row(scored):
    """One line of the table for one token."""
    token = name(scored.token)
    token += " " * (16 - columns(token))
    bar = ("█" if can_show("█") else "#") * round(12 * scored.probability)
    likeliest = "  ".join(f"{name(other)} {p:.0%}" for other, p in scored.likeliest)
    return fit(
        f"{token} {scored.id:6} {scored.probability:6.1%} {bar:12} {scored.loss:6.2f}  "
        f"{likeliest}"
    )


def visible(text):
    """A text with escapes for what would disturb a terminal, or is unknown to it."""
    return "".join(
        c if c.isprintable() and can_show(c) else ascii(c)[1:-1] for c in text
    )


def pieces(scored, tokenizer):
    """The tokens but the last, the end: (text, probability). Those that are parts of the same
    character come together, with the product of their probabilities."""
    ids, p = [], 1.0
    for n, x in enumerate(scored[:-1], 2):
        ids, p = ids + [x.id], p * x.probability
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd") or n == len(scored):
            yield text, p
            ids, p = [], 1.0


def wrapped(parts):
    """Parts (mark, text) of a text as lines of at most WIDTH columns, of which marks take none."""
    out, room = "", WIDTH
    for mark, text in parts:
        out += mark
        for c in map(visible, text):
            room -= columns(c)
            if room < 0:
                out, room = out + "\n", WIDTH - columns(c)
            out += c
    return out


def coloured(scored, tokenizer):
    """The text, every token in the colour of its probability."""
    parts = [
        (f"\x1b[3{1 if p < 0.05 else 3 if p < 0.3 else 2}m", text)
        for text, p in pieces(scored, tokenizer)
    ]
    return wrapped(parts) + "\x1b[0m"


def explain(text, scored, tokenizer):
    """The text, its table, and the mean of its losses."""
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(coloured(scored, tokenizer) if in_colour else wrapped([("", text)]))
    print(HEADER)
    for x in scored:
        print(row(x))
    mean = sum(x.loss for x in scored) / len(scored)
    perplexity = math.exp(mean) if mean < 700 else math.inf  # or exp would overflow
    print(
        fit(f"{mean:.3f} nats a token, a perplexity of {perplexity:.4g}") + "\n",
        flush=True,
    )


def rank(documents):
    """All texts, the most probable first: a long one is less probable than each of its parts, so
    the loss per token stands beside the probability of the whole."""
    totals = sorted(
        (sum(x.loss for x in scored), len(scored), text) for text, scored in documents
    )
    print("  rank  probability  nats a token  text")
    for n, (total, count, text) in enumerate(totals, 1):
        exponent = f"10^-{total / math.log(10):.1f}"
        print(
            fit(f"{n:6}  {exponent:11}  {total / count:12.3f}  {visible(text)}"),
            flush=True,
        )


def main(argv=None):
    parser = argparse.ArgumentParser(prog="explain", description=__doc__.split("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="a model that --save has kept")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="documents")
    args = parser.parse_args(argv)
    try:
        model = microgpt.GPT.load(args.directory)
        tokenizer = microgpt.load_tokenizer(args.directory)
        documents = [
            (text, microgpt.score(model, tokenizer, text)) for text in args.texts
        ]
        for text, scored in documents:
            explain(text, scored, tokenizer)
        if len(documents) > 1:
            rank(documents)
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"explain: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
