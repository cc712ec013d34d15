"""Show how likely a model finds a text, token by token, and rank several texts.

    python microgpt.py explain DIR TEXT...
    python examples/explain.py DIR TEXT...          # the same

DIR is the directory of a model that `--save` has written, or of any GPT-2. Each text is
a document: <|endoftext|> stands before it, and must be predicted after it. The table
has a row for each token: its id, the probability that the model gave it, a bar of that
length, its loss in nats, and the likeliest tokens in its place. `end`, without quotes,
stands for <|endoftext|>. A terminal of less than 60 columns gets fewer columns.

On a terminal, the text is also coloured: tokens below 5% are red, those below 30%
yellow, and all others green. Several texts are ranked, the likeliest first. All this
takes no longer than one forward pass over the texts.
"""

import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for python -I

from _common import (
    add_directory,
    can_show,
    columns,
    fit,
    in_colour,
    load,
    make_parser,
    pad,
    paragraph,
    perplexity,
    quoted,
    run_command,
    visible,
    waiting,
    width,
)

import microgpt

RED = "\x1b[31m"
GREEN = "\x1b[32m"
YELLOW = "\x1b[33m"
NO_COLOUR = "\x1b[0m"
TAKES = "With a small model it takes a moment, with a GPT-2 some seconds a token."


def name(token, room):
    """A token for the table, in at most so many columns."""
    return "end" if token == microgpt.END else fit(quoted(token), room)


def line_of(token, id, share, loss, likeliest):
    """A line of the table, with those of its columns that there is room for."""
    room = width()
    if room < 28:
        return f"{pad(token, room - 7)} {share:>6}"
    if room < 38:
        return f"{pad(token, room - 14)} {share:>6} {loss:>6}"
    if room < 60:
        return fit(f"{pad(token, 10)} {share:>6} {loss:>6}  {likeliest}")
    return fit(f"{pad(token, 16)} {id:>6} {share:19} {loss:>6}  {likeliest}")


def header():
    """The names of the columns."""
    share = "prob." if width() < 60 else " probability"
    return line_of("token", "id", share, "loss", "likeliest")


def row(scored):
    """One line of the table, for one token."""
    room = 10 if width() < 60 else 16
    share = f"{scored.probability:6.1%}"
    if width() >= 60:
        bar = "█" if can_show("█") else "#"
        share += " " + bar * round(12 * scored.probability)
    likeliest = "  ".join(f"{name(x, room)} {p:.0%}" for x, p in scored.likeliest)
    token = name(scored.token, width())
    return line_of(token, scored.id, share, f"{scored.loss:.2f}", likeliest)


def pieces(scored, tokenizer):
    """The text of the tokens and its probability: [(text, probability), ...].

    Tokens that are parts of one character are joined, and their probabilities
    multiplied. The last token, <|endoftext|>, is left out.
    """
    found = []
    ids = []
    p = 1.0
    tokens = scored[:-1]
    for n, token in enumerate(tokens, start=1):
        ids.append(token.id)
        p *= token.probability
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd") or n == len(tokens):
            found.append((text, p))
            ids = []
            p = 1.0
    return found


def wrapped(parts):
    """A text broken into lines of at most width() columns.

    Its parts are (mark, text). A mark, such as a colour, takes no room.
    """
    out = ""
    room = width()
    for mark, text in parts:
        out += mark
        for character in text:
            shown = visible(character)
            room -= columns(shown)
            if room < 0:
                out += "\n"
                room = width() - columns(shown)
            out += shown
    return out


def colour(probability):
    """The escape code for the colour of a probability."""
    if probability < 0.05:
        return RED
    return YELLOW if probability < 0.3 else GREEN


def coloured(scored, tokenizer):
    """The text, with every token in the colour of its probability."""
    parts = [(colour(p), text) for text, p in pieces(scored, tokenizer)]
    return wrapped(parts) + NO_COLOUR


def explain(text, scored, tokenizer):
    """Print a text, its table, and the mean of its losses."""
    if in_colour():
        print(coloured(scored, tokenizer))
    else:
        print(wrapped([("", text)]))
    print(header())
    for token in scored:
        print(row(token))
    loss = microgpt.mean([token.loss for token in scored])
    print(paragraph(f"{loss:.3f} nats a token, a perplexity of {perplexity(loss):.4g}"))
    print(flush=True)


def rank(documents):
    """Print all texts, the most probable first.

    A text is less probable than each of its parts. So the loss per token, which does
    not grow with the length, is printed beside the probability of the whole.
    """
    totals = []
    for text, scored in documents:
        totals.append((sum(token.loss for token in scored), len(scored), text))
    is_wide = width() >= 60
    if is_wide:
        print("  rank  probability  nats a token  text")
    for n, (total, count, text) in enumerate(sorted(totals), start=1):
        exponent = f"10^-{total / math.log(10):.1f}"
        if is_wide:
            line = f"{n:6}  {exponent:11}  {total / count:12.3f}  {visible(text)}"
        else:
            line = f"{n}. {exponent}  {visible(text)}"
        print(fit(line), flush=True)


def explain_all(options):
    """Score all texts, then print their tables and their ranking."""
    model, tokenizer = load(options.directory)
    documents = []
    with waiting("reading"):
        for text in options.texts:
            microgpt.encode_text(tokenizer, text)  # its error says what would help
            documents.append((text, microgpt.score(model, tokenizer, text)))
    for text, scored in documents:
        explain(text, scored, tokenizer)
    if len(documents) > 1:
        rank(documents)


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("explain", __doc__, TAKES)
    add_directory(parser)
    parser.add_argument(
        "texts", metavar="TEXT", nargs="+", help="A document, or several to compare."
    )
    return run_command("explain", explain_all, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
