"""What comes next: the likeliest next tokens, and the likeliest ways to finish a document.

    python microgpt.py lookahead DIR [PROMPT]       # DIR: a model that --save has kept
    python examples/lookahead.py DIR [PROMPT]       # the same

prints both, with their probabilities, at once for a small model. A way to go on is cut after 20
tokens; one that ends before has <|endoftext|>. autocomplete.py uses the same functions as you type.
"""

import argparse
import heapq
import math
import os
import sys
from unicodedata import east_asian_width

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import microgpt

WIDTH = 79


def predict(model, tokenizer, prompt="", k=5):
    """The k likeliest next tokens after a prompt: [(token, probability), ...], likeliest first. Of
    a long prompt the last block_size tokens are read."""
    tokens = [tokenizer.end] + tokenizer.encode(prompt)
    logits = model(tokens[-model.config.block_size :], last=True)[0]
    probs = microgpt.softmax(logits)
    likeliest = heapq.nlargest(k, range(len(logits)), key=logits.__getitem__)
    return [(tokenizer.decode([i]), probs[i]) for i in likeliest]


def completions(model, tokenizer, prompt="", k=5, max_tokens=20, beam=10):
    """The k likeliest ways to go on: [(text, probability), ...], likeliest first. Each ends with
    <|endoftext|> or after max_tokens tokens.

    A greedy choice of tokens would miss texts that begin modestly and go on well; to try all texts
    would take vocab_size ** max_tokens steps. Beam search lies between: of all beginnings of one
    length the `beam` likeliest are followed. So a text may still be missed, if at some length more
    than `beam` beginnings are likelier than its own; the larger the beam, the rarer.
    Raises ValueError for characters that the tokenizer does not know, and unless 1 <= k <= beam and
    1 <= max_tokens.
    """
    if not 1 <= k <= beam or max_tokens < 1:
        raise ValueError(
            f"k is {k}, max_tokens {max_tokens}, beam {beam}: k must be from 1 to "
            "beam, and max_tokens at least 1"
        )
    start = [tokenizer.end] + tokenizer.encode(prompt)
    texts, done = (
        [(0.0, [], model.new_cache())],
        [],
    )  # log probability, ids, keys and values
    for n in range(1, max_tokens + 1):
        longer = []
        for log_p, ids, cache in texts:
            for i, p in enumerate(next_probabilities(model, start, ids, cache)):
                if p > 0:
                    longer.append((log_p + math.log(p), ids + [i], cache))
        ended = [
            text[:2]
            for text in longer
            if text[1][-1] == tokenizer.end or n == max_tokens
        ]
        texts = heapq.nlargest(
            beam,
            [text for text in longer if text[1][-1] != tokenizer.end],
            key=lambda text: text[0],
        )
        texts = [
            (log_p, ids, [(keys[:], values[:]) for keys, values in cache])
            for log_p, ids, cache in texts
        ]  # each reads on by itself
        done = heapq.nlargest(k, done + ended)
        if (
            not texts or len(done) == k and texts[0][0] <= done[-1][0]
        ):  # none gets likelier
            break
    return [(tokenizer.decode(ids), math.exp(log_p)) for log_p, ids in done]


def next_probabilities(model, start, ids, cache):
    """The probabilities of the token after start + ids. While the text fits into the block, only
    what is not in the cache is read; after that, the last block_size tokens at every step."""
    context = start + ids
    if len(context) > model.config.block_size:
        return microgpt.softmax(
            model(context[-model.config.block_size :], last=True)[0]
        )
    return microgpt.softmax(
        model(context[len(cache[0][0]) :], cache=cache, last=True)[0]
    )


def can_show(text):
    """Can the output write this text?"""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        return True
    except UnicodeError:
        return False


def quoted(text):
    """A text in quotes, with escapes for what is unprintable or unknown to the output."""
    return repr(text) if can_show(text) else ascii(text)


def columns(text):
    """How many columns a text takes on a terminal: Chinese characters, for one, are wide."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def fit(text, width=WIDTH):
    """A text of one line, cut to at most so many columns."""
    if columns(text) <= width:
        return text
    while columns(text) > width - 3:
        text = text[:-1]
    return text + "..."


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="lookahead", description=__doc__.split("\n")[0]
    )
    parser.add_argument("directory", metavar="DIR", help="a model that --save has kept")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="", help="how it begins"
    )
    parser.add_argument("-k", type=int, default=5, help="how many of each (5)")
    args = parser.parse_intermixed_args(argv)
    try:
        model = microgpt.GPT.load(args.directory)
        tokenizer = microgpt.load_tokenizer(args.directory)
        ways = completions(model, tokenizer, args.prompt, args.k, beam=max(10, args.k))
        show("next token", predict(model, tokenizer, args.prompt, args.k))
        show("to the end", ways)
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"lookahead: {error}", file=sys.stderr)
        return 1
    return 0


def show(title, found):
    print(title)
    for text, p in found:
        print(fit(f"  {p:7.2%}  {quoted(text)}"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
