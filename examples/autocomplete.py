"""Complete what you type, and show how likely each completion is.

    python microgpt.py --save names                 # a model: see the README
    pip install prompt_toolkit
    python examples/autocomplete.py names

It starts at once. While you type, a menu shows the likeliest completions, which
lookahead.py finds. The percentage beside each one is its probability among all texts
that the model could write from here. The bottom line shows the likeliest next tokens:

    > mar
         a⏎     1.68%
         an⏎    0.881%
         in⏎    0.646%

    next: 'a' 14.8%  'i' 11.2%  'e' 7.13%  'd' 5.82%  'o' 5.79%

A ⏎ in the menu means that the document ends there. It counts towards the probability,
but it is not inserted into the line. Tab and the arrow keys choose a suggestion. Enter
accepts the line and prints how likely it is as a whole document. Ctrl-D or Ctrl-C
quits. All this is computed while you type, so it is meant for small models: with 10,000
parameters the menu takes a moment, with 100,000 several seconds.

Without a terminal, it does not need prompt_toolkit. It then reads lines, and prints the
suggestions for each:

    echo mar | python examples/autocomplete.py names -k 3
"""

import asyncio
import math
import os
import sys
from itertools import takewhile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for python -I

from _common import (
    add_directory,
    count,
    fit,
    load,
    make_parser,
    paragraph,
    perplexity,
    run_command,
    visible,
    waiting,
)
from lookahead import TAKES, always, completions, percent, predict, row, with_sign

from microgpt import END, encode_text, mean, score

# --- Texts to show --------------------------------------------------------------------


def suggest(model, tokenizer, text, k, max_tokens, go_on=always):
    """The likeliest ways to go on: [(what to insert, what to show, probability), ...].

    The inserted text has no sign for the end, and no part of a character. It stops
    before a character that could move the cursor.
    """
    suggestions = []
    for way, p in completions(model, tokenizer, text, k, max_tokens, go_on=go_on):
        inserted = way.replace(END, "").rstrip("\ufffd")
        safe = takewhile(lambda c: visible(c) == c, inserted)
        suggestions.append(("".join(safe), with_sign(way), p))
    return suggestions


def next_tokens(model, tokenizer, text, k):
    """The bottom line: the likeliest next tokens."""
    parts = []
    for token, p in predict(model, tokenizer, text, k):
        parts.append(f"'{with_sign(token)}' {percent(p)}")
    return "next: " + "  ".join(parts)


def verdict(model, tokenizer, text):
    """How likely a document is: its probability, and its loss."""
    losses = [token.loss for token in score(model, tokenizer, text, 1)]
    loss = mean(losses)
    return (
        f"probability 10^{-sum(losses) / math.log(10):.1f}, {len(losses)} tokens, "
        f"loss {loss:.3f} nats a token, a perplexity of {perplexity(loss):.4g}"
    )


# --- At a terminal --------------------------------------------------------------------


def make_prompt(model, tokenizer, k, max_tokens):
    """A prompt of prompt_toolkit, which suggests, validates and shows next tokens."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.output import ColorDepth
    from prompt_toolkit.validation import ValidationError, Validator

    class Suggestions(Completer):
        def get_completions(self, document, event):
            text = document.text_before_cursor
            app = get_app()

            def go_on():  # otherwise Ctrl-C would wait for the end of the search
                return not app.is_done

            try:
                ways = suggest(model, tokenizer, text, k, max_tokens, go_on)
            except ValueError:  # the validator reports it
                return
            for inserted, shown, p in ways:
                yield Completion(inserted, display=shown, display_meta=percent(p))

    class KnownCharacters(Validator):
        def validate(self, document):
            try:
                encode_text(tokenizer, document.text)
            except ValueError as error:
                raise ValidationError(len(document.text), str(error)) from None

    return PromptSession(
        "> ",
        completer=Suggestions(),
        complete_in_thread=True,
        validator=KnownCharacters(),
        bottom_toolbar=BottomLine(model, tokenizer, k).show,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )


class BottomLine:
    """The line of next tokens. It is computed in a thread, so typing stays smooth."""

    def __init__(self, model, tokenizer, k):
        self.model = model
        self.tokenizer = tokenizer
        self.k = k
        self.lines = {}  # text -> its line
        self.is_busy = False

    def show(self):
        """The line to show now. If it is not known yet, start computing it."""
        from prompt_toolkit.application import get_app

        app = get_app()
        text = app.current_buffer.document.text_before_cursor
        if text not in self.lines and not self.is_busy:
            self.is_busy = True
            app.create_background_task(self.compute(app, text))
        return fit(self.lines.get(text, "next: ..."))

    async def compute(self, app, text):
        """Compute a line and redraw, which also handles what was typed meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            self.lines[text] = await loop.run_in_executor(
                None, next_tokens, self.model, self.tokenizer, text, self.k
            )
        except ValueError:
            self.lines[text] = "next: ?"
        finally:
            self.is_busy = False
            app.invalidate()


def converse(prompt, model, tokenizer):
    """Read lines and print how likely each one is, until Ctrl-D or Ctrl-C."""
    keys = "Tab and the arrow keys choose, Enter accepts the line, Ctrl-D quits."
    print(paragraph(keys))
    while True:
        try:
            line = prompt.prompt()
        except (EOFError, KeyboardInterrupt):
            return
        print(paragraph(verdict(model, tokenizer, line), "  ", "  "), flush=True)


# --- The command ----------------------------------------------------------------------


def answer_lines(model, tokenizer, lines, k, max_tokens):
    """Print the suggestions for each line -> 1 if there was an error, else 0."""
    status = 0
    for line in lines:
        text = line.rstrip("\r\n")
        try:
            with waiting("looking ahead"):
                ways = suggest(model, tokenizer, text, k, max_tokens)
        except ValueError as error:
            print(f"autocomplete: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        print(visible(text))
        for _, shown, p in ways:
            answer = row(visible(text) + shown, p)
            print(fit(answer) if sys.stdout.isatty() else answer, flush=True)
    return status


def complete(options):
    """Prompt on a terminal, or read lines from a file or pipe -> an exit status."""
    model, tokenizer = load(options.directory)
    k = options.k
    max_tokens = options.max_tokens
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return answer_lines(model, tokenizer, sys.stdin, k, max_tokens)
    try:
        prompt = make_prompt(model, tokenizer, k, max_tokens)
    except ImportError:
        raise ValueError(
            "on a terminal, it needs prompt_toolkit: pip install prompt_toolkit"
        ) from None
    converse(prompt, model, tokenizer)
    return 0


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("autocomplete", __doc__, TAKES)
    add_directory(parser)
    parser.add_argument(
        "-k",
        type=count,
        default=5,
        metavar="N",
        help="How many suggestions to show (5).",
    )
    parser.add_argument(
        "--max-tokens",
        type=count,
        default=20,
        metavar="N",
        help="The longest suggestion, in tokens (20).",
    )
    return run_command("autocomplete", complete, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
