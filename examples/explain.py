"""How likely a model finds a text: token by token, and several texts against each other.

    python microgpt.py explain DIR TEXT...
    python examples/explain.py DIR TEXT...

DIR is a model that `--save` has kept, or any GPT-2 directory. A text is a document: <|endoftext|>
stands before it and is predicted after it. For every token there is its id, the probability that
it was given, a bar of that length, its loss in nats, and what was likeliest in its place. On a
terminal the text is also shown in colour, from red (below 5 %) over yellow to green (30 % and
more). Several texts are ranked, the likeliest first. It takes no longer than reading the texts.
"""

import argparse
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if (ROOT / "microgpt.py").exists():
    sys.path.insert(0, str(ROOT))

import microgpt  # noqa: E402

WIDTH = 79
COLUMNS = f"{'token':16} {'id':>6}  probability         {'loss':>6}  likeliest"


def shown(token):
    """A token as it can stand in a table: quoted, at most 16 characters."""
    text = ascii(token) if not token.isprintable() else repr(token)
    return text if len(text) <= 16 else text[:13] + "..."


def encodable(text):
    """The text, with plain characters for those that the output does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        "█".encode(encoding)
    except UnicodeError:
        text = text.replace("█", "#")
    return text.encode(encoding, "backslashreplace").decode(encoding)


def row(scored):
    """One line of the table for one token."""
    likeliest = "  ".join(f"{shown(token)} {p:.0%}" for token, p in scored.likeliest)
    bar = "█" * round(12 * scored.probability)
    return (f"{shown(scored.token):16} {scored.id:6} {scored.probability:6.1%} {bar:12} "
            f"{scored.loss:6.2f}  {likeliest}")[:WIDTH]


def coloured(scored):
    """The text, every token in the colour of its probability."""
    colours = [1 if x.probability < 0.05 else 3 if x.probability < 0.3 else 2 for x in scored]
    parts = [f"\x1b[3{colour}m{x.token}" for colour, x in zip(colours, scored[:-1])]
    return "".join(parts) + "\x1b[0m"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="explain", description=__doc__.split("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="a model that --save has kept")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="documents")
    args = parser.parse_args(argv)
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    try:
        model = microgpt.GPT.load(args.directory)
        tokenizer = microgpt.load_tokenizer(args.directory)
        documents = [(text, microgpt.score(model, tokenizer, text)) for text in args.texts]
        for text, scored in documents:
            mean = sum(x.loss for x in scored) / len(scored)
            print(encodable(coloured(scored) if in_colour else text))
            print(COLUMNS)
            for x in scored:
                print(encodable(row(x)))
            print(f"{mean:.3f} nats a token, a perplexity of {math.exp(mean):.1f}\n")
    except (OSError, ValueError) as error:
        print(f"explain: {error}", file=sys.stderr)
        return 1
    if len(documents) > 1:
        rank(documents)
    return 0


def rank(documents):
    """All texts, the most probable first: a long one is less probable than each of its parts, so
    the loss per token stands beside the probability of the whole."""
    totals = sorted((sum(x.loss for x in scored), len(scored), text) for text, scored in documents)
    print("  rank  probability  nats a token  text")
    for n, (total, count, text) in enumerate(totals, 1):
        exponent = f"10^{-total / math.log(10):.1f}"
        print(encodable(f"{n:6}  {exponent:11}  {total / count:12.3f}  {text}"[:WIDTH]))


if __name__ == "__main__":
    sys.exit(main())
