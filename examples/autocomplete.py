"""A prompt that completes as you type, with the probabilities of what it suggests.

    python microgpt.py --save names                 # a model: see the README
    pip install prompt_toolkit
    python examples/autocomplete.py names

It starts at once. While you type, a menu shows the likeliest ways to go on (lookahead.py finds
them) and, of all texts that the model could write from here, the share that goes on like this; the
bottom line shows the likeliest next tokens:

    > mar
         a⏎     1.68%
         an⏎    0.881%
         in⏎    0.646%

    next: 'a' 14.8%  'i' 11.2%  'e' 7.13%  'd' 5.82%  'o' 5.79%

A ⏎ in the menu says that the document ends there; it is part of what has this probability, but not
of the text that is put in. Tab and the arrows choose, Enter takes the line and prints how likely it
is as a whole document, Ctrl-D or Ctrl-C leaves. All of this is worked out while you type, and thus
meant for small models: with 10,000 parameters the menu takes a moment, with 100,000 some seconds.

Without a terminal it reads lines and prints the suggestions for each as plain text, and needs no
prompt_toolkit:

    echo mar | python examples/autocomplete.py names -k 3
"""

import argparse
import asyncio
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(sys.path[0]))

from lookahead import completions, predict

import microgpt

END = "<|endoftext|>"


# --- What there is to say ------------------------------------------------------------------------


def percent(p):
    return f"{100 * p:.3g}%"


def end_sign():
    """How the end of a document is shown."""
    try:
        "⏎".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        return "⏎"
    except UnicodeError:
        return "[end]"


def visible(text):
    """A text as it is shown: its end as a sign, and what would disturb a terminal as a `?`."""
    ends = text.endswith(END)
    text = text[: -len(END)] if ends else text
    return "".join(c if c.isprintable() else "?" for c in text) + end_sign() * ends


def suggest(model, tokenizer, text, k, max_tokens):
    """The likeliest ways to go on: [(what to insert, what to show, probability), ...]."""
    found = completions(model, tokenizer, text, k, max_tokens, beam=max(10, k))
    return [
        (
            way.replace(END, "").rstrip(
                "\ufffd"
            ),  # which would be a character cut in half
            visible(way),
            p,
        )
        for way, p in found
    ]


def next_tokens(model, tokenizer, text, k):
    """The bottom line: the likeliest next tokens."""
    found = predict(model, tokenizer, text, k)
    return "next: " + "  ".join(
        f"{visible(token)!r} {percent(p)}" for token, p in found
    )


def verdict(model, tokenizer, text):
    """How likely a document is: its probability, and its loss."""
    losses = [scored.loss for scored in microgpt.score(model, tokenizer, text, 1)]
    mean = sum(losses) / len(losses)
    among = math.exp(mean) if mean < 700 else math.inf  # or exp would overflow
    return (
        f"probability 10^{-sum(losses) / math.log(10):.1f}, {len(losses)} tokens, "
        f"loss {mean:.3f} nats a token (as if among {among:.4g})"
    )


# --- In a terminal -------------------------------------------------------------------------------


def make_prompt(model, tokenizer, k, max_tokens):
    """A prompt_toolkit prompt that suggests, validates and shows the next tokens."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.output import ColorDepth
    from prompt_toolkit.validation import ValidationError, Validator

    class Suggestions(Completer):
        def get_completions(self, document, event):
            try:
                ways = suggest(
                    model, tokenizer, document.text_before_cursor, k, max_tokens
                )
            except ValueError:  # the validator tells
                return
            for text, shown, p in ways:
                yield Completion(text, display=shown, display_meta=percent(p))

    class KnownCharacters(Validator):
        def validate(self, document):
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValidationError(len(document.text), str(error)) from None

    lines, busy = {}, []  # what was worked out, and what is being worked out

    async def look(app, text):
        """Work out the bottom line in a thread, so that typing stays smooth."""
        try:
            lines[text] = await asyncio.get_running_loop().run_in_executor(
                None, next_tokens, model, tokenizer, text, k
            )
        except ValueError:
            lines[text] = "next: ?"
        finally:
            busy.clear()
            app.invalidate()  # draw it, and look at what was typed in between

    def toolbar():
        app = get_app()
        text = app.current_buffer.document.text_before_cursor
        if text not in lines and not busy:
            busy.append(text)
            app.create_background_task(look(app, text))
        return lines.get(text, "next: ...")

    return PromptSession(
        "> ",
        completer=Suggestions(),
        complete_in_thread=True,
        validator=KnownCharacters(),
        bottom_toolbar=toolbar,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )


def converse(prompt, model, tokenizer):
    """A line, its verdict, the next line: until Ctrl-D or Ctrl-C."""
    print("Tab and the arrows choose, Enter takes the line, Ctrl-D leaves.")
    while True:
        try:
            line = prompt.prompt()
        except (EOFError, KeyboardInterrupt):
            return
        print(f"  {verdict(model, tokenizer, line)}", flush=True)


# --- The command ---------------------------------------------------------------------------------


def plain(model, tokenizer, lines, k, max_tokens):
    """Print the suggestions for each line; returns the exit status, 1 if one was not understood."""
    status = 0
    for line in lines:
        text = line.rstrip("\r\n")
        try:
            ways = suggest(model, tokenizer, text, k, max_tokens)
        except ValueError as error:
            print(f"autocomplete: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        print(visible(text))
        for _, shown, p in ways:
            print(f"  {percent(p):>9}  {visible(text)}{shown}", flush=True)
    return status


def count(text):
    if not 1 <= int(text) <= 1000:
        raise ValueError
    return int(text)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="autocomplete", description="A prompt that completes what you type."
    )
    parser.add_argument(
        "directory", metavar="DIR", help="a model, as --save has written it"
    )
    parser.add_argument(
        "-k", type=count, default=5, metavar="N", help="how many suggestions (5)"
    )
    parser.add_argument(
        "--max-tokens",
        type=count,
        default=20,
        metavar="N",
        help="how many tokens they may have (20)",
    )
    args = parser.parse_args(argv)
    try:
        if hasattr(sys.stdout, "reconfigure"):  # for a terminal that lacks a letter
            sys.stdout.reconfigure(errors="backslashreplace")
        model = microgpt.GPT.load(args.directory)
        tokenizer = microgpt.load_tokenizer(args.directory)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return plain(model, tokenizer, sys.stdin, args.k, args.max_tokens)
        converse(
            make_prompt(model, tokenizer, args.k, args.max_tokens), model, tokenizer
        )
        return 0
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ImportError:
        problem, status = (
            "at a terminal it needs prompt_toolkit: pip install prompt_toolkit",
            1,
        )
    except (OSError, ValueError) as error:
        problem, status = str(error), 1
    except KeyboardInterrupt:
        problem, status = "interrupted", 130
    print(f"autocomplete: {problem}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
