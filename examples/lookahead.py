"""Show what comes next: the likeliest next tokens, and the likeliest completions.

    python microgpt.py lookahead DIR [PROMPT]
    python examples/lookahead.py DIR [PROMPT]       # the same

DIR is the directory of a model that `--save` has written, or of any GPT-2. A completion
ends with <|endoftext|>, or it is cut off after 20 tokens. With a small model, the
answer is immediate. autocomplete.py uses the same functions while you type.
"""

import math
import sys
from heapq import nlargest

from _common import fit, make_parser, quoted, run_command

from microgpt import CachedGPT, load_model, load_tokenizer, softmax


def predict(model, tokenizer, prompt="", k=5):
    """The k likeliest next tokens: [(token, probability), ...], the likeliest first.

    If the prompt is longer than the block, only its last block_size tokens are read.
    """
    tokens = [tokenizer.end] + tokenizer.encode(prompt)
    probabilities = next_probabilities(CachedGPT(model), tokens)
    ids = range(len(probabilities))
    likeliest = nlargest(k, ids, key=probabilities.__getitem__)
    return [(tokenizer.decode([i]), probabilities[i]) for i in likeliest]


def completions(model, tokenizer, prompt="", k=5, max_tokens=20, beam=10):
    """The k likeliest completions: [(text, probability), ...], the likeliest first.

    Each ends with <|endoftext|> or after max_tokens tokens. Raises ValueError for a
    character that the tokenizer does not know, and unless 1 <= k <= beam and
    1 <= max_tokens.

    Always taking the likeliest token would miss texts whose beginning is unlikely and
    whose rest is likely. Trying all texts would take vocab_size ** max_tokens steps.
    Beam search is a compromise: of all beginnings of the same length, it keeps the
    `beam` likeliest. It can still miss a text if, at some length, `beam` other
    beginnings are likelier. A larger beam misses fewer texts.
    """
    if not 1 <= k <= beam or max_tokens < 1:
        raise ValueError(
            f"k is {k}, max_tokens {max_tokens}, beam {beam}: k must be from 1 to "
            "beam, and max_tokens at least 1"
        )
    start = [tokenizer.end] + tokenizer.encode(prompt)
    growing = [(0.0, [], CachedGPT(model))]  # log probability, ids, reader
    finished = []  # log probability, ids
    for n in range(1, max_tokens + 1):
        longer = one_token_longer(growing, start)
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


def one_token_longer(growing, start):
    """Every extension of one of these texts by a token."""
    longer = []
    for log_p, ids, reader in growing:
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


def look(options):
    """Find and print the next tokens and the completions."""
    model = load_model(options.directory)
    tokenizer = load_tokenizer(options.directory)
    k = options.k
    ways = completions(model, tokenizer, options.prompt, k, beam=max(10, k))
    show("next token", predict(model, tokenizer, options.prompt, k))
    show("to the end", ways)


def show(title, found):
    """Print a title, and a line for each (text, probability)."""
    print(title)
    for text, p in found:
        print(fit(f"  {p:7.2%}  {quoted(text)}"), flush=True)


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("lookahead", __doc__)
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="The directory of a saved model.",
    )
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        default="",
        help="How the document begins.",
    )
    parser.add_argument(
        "-k", type=int, default=5, metavar="N", help="How many of each to show (5)."
    )
    return run_command("lookahead", look, parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
