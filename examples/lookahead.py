"""Show what comes next: the likeliest next tokens, and the likeliest completions.

    python microgpt.py lookahead DIR [PROMPT]
    python examples/lookahead.py DIR [PROMPT]       # the same

DIR is the directory of a model that `--save` has written, or of any GPT-2. A completion
that comes to its end shows it as ⏎. The others are cut off after 20 tokens. With a
small model, the answer is immediate. A GPT-2 takes some minutes, as the search reads up
to ten tokens for each token of a completion. autocomplete.py uses the same functions
while you type.
"""

import math
import os
import sys
from heapq import nlargest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for python -I

from _common import (
    add_directory,
    can_show,
    count,
    fit,
    load,
    make_parser,
    run_command,
    visible,
    waiting,
    width,
)

from microgpt import END, CachedGPT, encode_text, softmax

TAKES = "With a small model it takes a moment, with a GPT-2 some minutes."

# --- The search -----------------------------------------------------------------------


def predict(model, tokenizer, prompt="", k=5):
    """The k likeliest next tokens: [(token, probability), ...], the likeliest first.

    If the prompt is longer than the block, only its last block_size tokens are read.
    """
    tokens = [tokenizer.end] + encode_text(tokenizer, prompt)
    probabilities = next_probabilities(CachedGPT(model), tokens)
    ids = range(len(probabilities))
    likeliest = nlargest(k, ids, key=probabilities.__getitem__)
    return [(tokenizer.decode([i]), probabilities[i]) for i in likeliest]


def always():
    """A search that nobody can give up goes on."""
    return True


def completions(
    model, tokenizer, prompt="", k=5, max_tokens=20, beam=None, go_on=always
):
    """The k likeliest completions: [(text, probability), ...], the likeliest first.

    Each ends with <|endoftext|> or after max_tokens tokens. ValueError for a character
    that the tokenizer does not know, and unless 1 <= k <= beam and 1 <= max_tokens.

    Always taking the likeliest token would miss texts whose beginning is unlikely and
    whose rest is likely. Trying all texts would take vocab_size ** max_tokens steps.
    Beam search is a compromise: of all beginnings of the same length, it keeps the
    `beam` likeliest. It can still miss a text if, at some length, `beam` other
    beginnings are likelier. A larger beam misses fewer: by default 10, or k if that is
    more. The search is given up when go_on() is no longer true.
    """
    beam = max(10, k) if beam is None else beam
    if not 1 <= k <= beam or max_tokens < 1:
        raise ValueError(
            f"k is {k}, max_tokens {max_tokens}, beam {beam}: k must be from 1 to "
            "beam, and max_tokens at least 1"
        )
    start = [tokenizer.end] + encode_text(tokenizer, prompt)
    growing = [(0.0, [], CachedGPT(model))]  # log probability, ids, reader
    finished = []  # without readers
    for n in range(1, max_tokens + 1):
        longer = one_token_longer(growing, start, go_on)
        growing = []
        for log_p, ids, reader in longer:
            if ids[-1] == tokenizer.end or n == max_tokens:
                finished.append((log_p, ids))
            else:
                growing.append((log_p, ids, reader))
        finished = nlargest(k, finished)
        growing = nlargest(beam, growing, key=lambda way: way[0])
        if not growing:
            break
        if len(finished) == k and growing[0][0] <= finished[-1][0]:
            break  # a longer text is only less likely
        growing = [(log_p, ids, copy_of(reader)) for log_p, ids, reader in growing]
    return [(tokenizer.decode(ids), math.exp(log_p)) for log_p, ids in finished]


def one_token_longer(growing, start, go_on):
    """Every extension of one of these texts by a token."""
    longer = []
    for log_p, ids, reader in growing:
        if not go_on():
            return []
        for i, p in enumerate(next_probabilities(reader, start + ids)):
            if p > 0:
                longer.append((log_p + math.log(p), ids + [i], reader))
    return longer


def next_probabilities(reader, tokens):
    """The probabilities of the token after these, of which a CachedGPT has read some.

    When they no longer fit into the block, the last block_size tokens are read again.
    """
    unread = tokens[reader.n_read :]
    block_size = reader.config.block_size
    if len(tokens) > block_size:
        reader = CachedGPT(reader)
        unread = tokens[-block_size:]
    return softmax(reader(unread)[-1])


def copy_of(reader):
    """A copy of a CachedGPT, with its own cache."""
    copy = CachedGPT(reader)
    copy.n_read = reader.n_read
    copy.past = {name: rows[:] for name, rows in reader.past.items()}
    return copy


# --- Output ---------------------------------------------------------------------------


def with_sign(text):
    """A text as it is shown, with a sign for its end."""
    if not text.endswith(END):
        return visible(text)
    sign = "⏎" if can_show("⏎") else "[end]"
    return visible(text[: -len(END)]) + sign


def percent(p):
    """A probability with three digits."""
    return f"{100 * p:.3g}%"


def row(shown, p):
    """A line for a text as it is shown, and its probability."""
    if width() < 40:
        return f"{percent(p):7}  {shown}"
    return f"  {percent(p):>9}  {shown}"


def look(options):
    """Find and print the next tokens and the completions."""
    model, tokenizer = load(options.directory)
    for title, find in [("next token", predict), ("to the end", completions)]:
        with waiting("looking ahead"):
            found = find(model, tokenizer, options.prompt, options.k)
        print(title)
        for text, p in found:
            print(fit(row(f"'{with_sign(text)}'", p)), flush=True)


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("lookahead", __doc__, TAKES)
    add_directory(parser)
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        default="",
        help="How the document begins.",
    )
    parser.add_argument(
        "-k", type=count, default=5, metavar="N", help="How many of each to show (5)."
    )
    return run_command("lookahead", look, parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
