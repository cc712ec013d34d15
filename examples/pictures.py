"""Draw four pictures of a small GPT, from its loss to its samples.

They need matplotlib:

    python -m pip install matplotlib
    python examples/pictures.py                     # of the bundled names, in pictures/
    python examples/pictures.py poems.txt --out poems   # your text
    python examples/pictures.py --model DIR         # a saved model

loss.png          The training loss of every step and its running mean, the held-out
                  loss along the way, and for comparison the losses of models that only
                  count (`baselines`).
attention.png     What each token of a document looks at, in every head of every block.
                  The document is a held-out one of about 8 characters, unless --text
                  gives another.
embedding.png     The tokens' embeddings, n_embd numbers each, along the two directions
                  in which they differ most: their first two principal components.
temperature.png   For temperatures from 0 to 2: the share of samples that differ from
                  one another, and the share that are new; how likely the model itself
                  finds them; and some of them.

Without --model it trains a model of two blocks. That takes about two minutes; with
--steps 3000 it takes five, and the pictures show more. With --model there is no
loss.png, and FILE, or the bundled names, serves both as the training text and as the
held-out text. All random numbers depend on --seed, so the same command gives the same
results. It also prints the numbers in the curves.
"""

import io
import math
import os
import random
import sys
import unicodedata
import warnings
from collections import namedtuple
from itertools import permutations

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for python -I

from _common import (
    escape,
    fit,
    is_safe,
    load,
    make_parser,
    not_empty,
    paragraph,
    progress,
    run_command,
    visible,
    waiting,
    write_whole,
)
from components import principal_components
from tracing import TracedGPT

import microgpt
from microgpt import END

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 16}
TEMPERATURES = [i / 4 for i in range(9)]

# People who are colour-blind can tell these colours apart, too.
# Source: Okabe and Ito 2008, "Color Universal Design".
BLUE = "#0072B2"
RED = "#D55E00"
GREEN = "#009E73"
INK = "#222222"
GREY = "#777777"
PALE = "#EEEEEE"
COLOURS = {"vowels": RED, "consonants": BLUE, "other tokens": GREY, END: GREEN}
STYLE = {
    "savefig.dpi": 200,  # 8 inches are 800 pixels in a README, twice as many in a file
    "font.size": 9,
    "axes.titlesize": 11,
    "figure.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a $ is a $
}

# The samples at one temperature. `different` is the share of different samples,
# `new` the share of different ones that are not training documents, and `loss` the mean
# loss of all their tokens, by the model itself.
Variety = namedtuple("Variety", "temperature samples different new loss")


# --- Numbers --------------------------------------------------------------------------


def learn(trainer):
    """Train to the end -> (losses, held-out losses [(step, loss), ...], baselines)."""
    losses = []
    held_out = []
    with progress() as show:
        for step in trainer:
            losses.append(step.loss)
            now = f"step {step.step:,}/{trainer.config.steps:,}"
            if step.val_loss is not None:
                held_out.append((step.step, step.val_loss))
                show("")
                print(paragraph(f"{now}  held out {step.val_loss:.3f}"), flush=True)
            show(f"{now}  loss {step.loss:.3f}")
    measured = trainer.val_windows[:500]  # those that `evaluate` measures
    vocab_size = trainer.model.config.vocab_size
    return losses, held_out, microgpt.baselines(trainer.windows, measured, vocab_size)


def running_mean(losses, n):
    """The mean of each loss and the n - 1 before it, or of as many as there are."""
    means = []
    for i in range(len(losses)):
        means.append(microgpt.mean(losses[max(0, i + 1 - n) : i + 1]))
    return means


def attention_maps(model, tokenizer, text):
    """-> (the tokens of a text's first window, for each block its heads' weights)."""
    window = microgpt.cut_windows(text, tokenizer, model.config.block_size)[0][:-1]
    traced = TracedGPT(model)
    traced(window)
    blocks = [traced.trace[f"h.{i}.attn"] for i in range(model.config.n_layer)]
    return [tokenizer.decode([token]) for token in window], blocks


def variety(model, tokenizer, temperature, n, seed, training_documents):
    """Write n samples at a temperature, from a seed -> a Variety."""
    rng = random.Random(seed)
    samples = []
    with progress() as show:
        for i in range(n):
            show(f"temperature {temperature:.2f}  sample {i + 1:,}/{n:,}")
            options = {"temperature": temperature, "seed": rng}
            samples.append(microgpt.generate(model, tokenizer, **options))
        loss = mean_loss(model, tokenizer, samples)  # while it shows the last
    different = set(samples)
    new = different - set(training_documents)
    return Variety(temperature, samples, len(different) / n, len(new) / n, loss)


def mean_loss(model, tokenizer, documents):
    """The mean loss of the documents' tokens."""
    windows = []
    for document in documents:
        windows += microgpt.cut_windows(document, tokenizer, model.config.block_size)
    return microgpt.evaluate(model, windows, most=len(windows))


def spread(points, gap):
    """Push points apart until all are (nearly) a gap or more from one another.

    Labels need this space. All points move at once, so they keep their order.
    """
    for _ in range(100):
        pushed = [list(point) for point in points]
        for (i, a), (j, b) in permutations(enumerate(points), 2):
            distance = math.dist(a, b)
            if distance < gap:
                for axis, step in enumerate(direction(a, b, i > j)):
                    pushed[i][axis] += (gap - distance) / 3 * step
        points = pushed
    return points


def direction(a, b, is_first):
    """The direction from point b to point a. If they coincide, the order decides."""
    distance = math.dist(a, b)
    if distance == 0:
        return [1.0 if is_first else -1.0] * len(a)
    return [(x - y) / distance for x, y in zip(a, b)]


def kind(token):
    """The kind of a token. Each kind has its own colour in the embedding."""
    if token == END:
        return END
    if len(token) > 1 or not token.isalpha():
        return "other tokens"
    letter = unicodedata.normalize("NFD", token)[0].lower()  # without its accents
    return "vowels" if letter in "aeiou" else "consonants"


# --- Drawing --------------------------------------------------------------------------


def plain(token):
    """A token as a label: short, and visible."""
    token = token.replace(END, "<|>").replace(" ", "\u2423")
    return token if token.isprintable() else repr(token)[1:-1]


def choose_fonts(characters):
    """The fonts that draw these characters, and the characters that no font has.

    matplotlib's own font comes first. Of the installed ones, those with most of what is
    still missing follow.
    """
    from matplotlib.font_manager import fontManager

    own = "DejaVu Sans"
    fonts = {}
    for font in fontManager.ttflist:
        if not font.name.startswith("Last Resort"):  # it has boxes for everything
            fonts.setdefault(font.name, font.fname)
    names = [own]
    missing = set(characters) - characters_in(fonts.pop(own))
    found = {}
    if missing:
        found = {name: missing & characters_in(fonts[name]) for name in sorted(fonts)}
    while missing:
        gains = {name: len(found[name] & missing) for name in found}
        best = max(gains, key=gains.get, default=None)
        if not gains.get(best):
            break
        names.append(best)
        missing -= found[best]
    return names, sorted(missing)


def characters_in(path):
    """The characters in the file of a font; none if matplotlib cannot read it."""
    from matplotlib.ft2font import FT2Font

    try:
        return set(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return set()


def use_fonts(texts):
    """Have matplotlib draw these texts as well as it can, and tell where it cannot."""
    characters = set(filter(str.isprintable, set().union(*texts)))
    if "".join(characters).isascii():  # which all fonts have
        return
    import matplotlib

    names, missing = choose_fonts(characters)
    matplotlib.rcParams["font.family"] = names
    if missing:
        shown = visible("".join(missing))
        print(
            fit(f"boxes       for {len(missing)} characters in no font here: {shown}")
        )


def new_figure(width, height):
    """A figure that needs no display: it is drawn straight to a file."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def label_ends(axes, lines, labels):
    """Write labels, [(height, text, colour), ...], to the right of axes.

    `lines` is the height of the axes, in lines of text.
    """
    low, high = axes.get_ylim()
    heights = [(height,) for height, _, _ in labels]
    places = spread(heights, (high - low) / lines)
    for (height,), (_, text, colour) in zip(places, labels):
        axes.annotate(
            text,
            (1, height),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def draw_loss(losses, held_out, scale):
    """The losses over the steps, and the levels of models that only count."""
    n = max(1, len(losses) // 25)
    mean = running_mean(losses, n)
    steps = range(1, len(losses) + 1)
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.4)
    for loss in scale.values():
        axes.axhline(loss, color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(steps, mean, color=BLUE, linewidth=1.8)
    dots = {"marker": "o", "markersize": 4, "clip_on": False}
    axes.plot(*zip(*held_out), color=RED, linewidth=1.2, **dots)
    axes.set(title="Loss, in nats a token", xlabel="step", xlim=(0, len(losses)))
    labels = [(loss, f"{loss:.2f}  {name}", GREY) for name, loss in scale.items()]
    last = mean[-1]
    labels.append((last, f"{last:.2f}  training, mean of {n} steps", BLUE))
    last = held_out[-1][1]
    labels.append((last, f"{last:.2f}  held out", RED))
    label_ends(axes, 20, labels)
    return figure


def draw_attention(tokens, blocks):
    """A map for each head: a row for each token that looks, a column for each seen."""
    from matplotlib.colors import LinearSegmentedColormap

    n_heads = len(blocks[0])
    size = max(1.6, 8 / max(4, n_heads))
    figure = new_figure(max(6, size * n_heads), (size + 0.2) * len(blocks) + 0.4)
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE, "#00263D"])
    maps = figure.subplots(len(blocks), n_heads, squeeze=False)
    for block, heads in enumerate(blocks):
        for head, weights in enumerate(heads):
            axes = maps[block][head]
            draw_head(axes, [plain(token) for token in tokens], weights, shades)
            title = f"block {block}, head {head}"
            axes.set_title(title, fontsize=9, pad=4, loc="center")
    figure.suptitle(
        "Attention: what each token (a row) looks at, from white, 0, to dark, 1",
        x=0.01,
        ha="left",
    )
    return figure


def draw_head(axes, labels, weights, shades):
    """The map of one head."""
    n = len(labels)
    unseen = [math.nan]  # is not drawn, so that the background shows
    square = [row + unseen * (n - len(row)) for row in weights]
    axes.set_facecolor(PALE)
    axes.imshow(square, shades, vmin=0, vmax=1)
    size = min(8.5, 80 / n)
    turned = 90 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(n), labels, fontsize=size, rotation=turned)
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def to_draw(tokens, most=200):
    """Which tokens to draw: those that can be read, or about `most` of them -> ids."""
    readable = []
    for i, token in enumerate(tokens):
        if token.isprintable() and "\ufffd" not in token:
            readable.append(i)
    every = math.ceil(len(readable) / most)
    return readable[::-every]  # from the end, because the last is <|endoftext|>


def draw_embedding(tokens, points, shares):
    """Each token at its place, or beside it where it would cover another."""
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    axes.scatter(*zip(*points), s=0)  # invisible, but it sets the limits
    width, height = [max(column) - min(column) for column in zip(*points)]
    places = spread(points, max(width / 45, height / 22))
    for place, token in zip(places, tokens):
        axes.text(
            *place,
            END if token == END else plain(token),
            ha="center",
            va="center",
            color=COLOURS[kind(token)],
            size=12 if len(token) < 2 else 9,
        )
    name_kinds(axes, tokens)
    axes.set(
        title="Token embeddings, along their first two principal components",
        xticks=[],
        yticks=[],
        xlabel=f"first component: {shares[0]:.0%} of the variance",
        ylabel=f"second component: {shares[1]:.0%}",
    )
    axes.margins(0.06)
    axes.set_aspect("equal", adjustable="datalim")  # so that distances can be compared
    return figure


def name_kinds(axes, tokens):
    """Name the kinds of tokens above the embedding, each in its colour."""
    kinds = {kind(token) for token in tokens} - {END}
    for i, name in enumerate(sorted(kinds)):
        axes.annotate(
            name,
            (1, 1),
            (-80 * i, 10),
            xycoords="axes fraction",
            ha="right",
            textcoords="offset points",
            color=COLOURS[name],
        )


def draw_temperature(found, own, whose):
    """Variety and loss over the temperature, and some samples.

    `own` is the loss of real text, and `whose` says which text that is.
    """
    figure = new_figure(8, 5.2)
    top, bottom = figure.subplots(2, sharex=True)
    x = [v.temperature for v in found]
    dots = {"marker": "o", "markersize": 4, "clip_on": False}
    top.plot(x, [v.different for v in found], color=BLUE, **dots)
    top.plot(x, [v.new for v in found], color=RED, **dots)
    bottom.plot(x, [v.loss for v in found], color=BLUE, **dots)
    bottom.axhline(own, color=GREY, linewidth=0.8, linestyle="--")
    top.set(
        title=f"Share of {len(found[0].samples)} samples",
        ylim=(0, 1),
        yticks=[0, 0.5, 1],
        yticklabels=["0%", "50%", "100%"],
    )
    bottom.set(
        title="Their loss by the model itself, in nats a token",
        xlabel="temperature",
        xticks=x,
        xticklabels=[f"{t:g}" for t in x],
        xlim=(x[0] - 0.1, x[-1] + 0.1),
    )
    last = found[-1]
    shares = [(last.new, "different and new", RED), (last.different, "different", BLUE)]
    label_ends(top, 9, shares)
    label_ends(bottom, 9, [(last.loss, "samples", BLUE), (own, whose, GREY)])
    write_samples(bottom, found)
    return figure


def write_samples(axes, found, most=3):
    """Write some samples below each temperature."""
    below = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "va": "top",
        "size": 8,
        "annotation_clip": False,
    }
    for v in found:
        lines = []
        for text in list(dict.fromkeys(v.samples))[:most]:
            text = "".join(c if is_safe(c) else escape(c) for c in text)
            lines.append(fit(text, 10, "\u2026"))
        place = (v.temperature, 0)
        axes.annotate("\n".join(lines), place, (0, -40), ha="center", **below)
    place = (found[-1].temperature + 0.1, 0)
    axes.annotate("some samples", place, (8, -40), color=GREY, **below)


# --- The command ----------------------------------------------------------------------


def new_trainer(documents, steps, seed):
    """A Trainer for a new model. Its block holds documents of up to 64 characters."""
    if len(documents) < 2:
        raise ValueError("it takes two documents or more, because some are held out")
    tokenizer = microgpt.CharTokenizer(documents)
    block_size = min(64, 1 + max(map(len, documents)))
    shape = microgpt.Config(tokenizer.vocab_size, block_size, **SHAPE)
    config = microgpt.TrainConfig(
        steps=steps, batch_size=8, eval_every=max(1, steps // 10), seed=seed
    )
    return microgpt.Trainer(
        microgpt.GPT(shape, seed=seed), tokenizer, documents, config
    )


def draw(options, documents, save):
    """Compute what the pictures show. save(name, function, ...) draws and saves one."""
    trainer = None
    known = documents
    others = documents
    whose = "the text itself"
    if options.model is not None:
        model, tokenizer = load(options.model)
    else:
        trainer = new_trainer(documents, options.steps, options.seed)
        model = trainer.model
        tokenizer = trainer.tokenizer
        known = trainer.documents
        others = trainer.val_documents
        whose = "held-out text"
    text = text_to_read(options, others, tokenizer)
    tokens = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    shown = to_draw(tokens)
    tokens = [tokens[i] for i in shown]
    use_fonts([text, *tokens, *documents])

    if trainer is not None:
        losses, held_out, scale = learn(trainer)
        tell_baselines(scale)
        save("loss.png", draw_loss, losses, held_out, scale)

    with waiting("computing the attention"):
        maps = attention_maps(model, tokenizer, text)
    save("attention.png", draw_attention, *maps)

    with waiting("finding the principal components"):
        table = model.params["wte.weight"]
        points, shares = principal_components([table[i] for i in shown])
    print("variance   ", ", ".join(f"{share:.1%}" for share in shares))
    save("embedding.png", draw_embedding, tokens, points, shares)

    found = write_at_all_temperatures(model, tokenizer, options, known)
    with waiting("measuring the loss of the text"):
        own = mean_loss(model, tokenizer, others[:500])
    save("temperature.png", draw_temperature, found, own, whose)


def tell_baselines(scale):
    """Print the losses of models that only count."""
    counted = ", ".join(f"{name} {loss:.3f}" for name, loss in scale.items())
    print(paragraph(f"baselines   {counted}"))


def text_to_read(options, documents, tokenizer):
    """The document whose attention is drawn. An error comes before the training."""
    text = options.text
    if text is None:
        text = min(documents, key=lambda document: abs(len(document) - 8))[:12]
    try:
        microgpt.encode_text(tokenizer, text)
    except ValueError as error:
        if options.model is None or options.text is not None:
            raise
        path = options.file or "the bundled names"
        raise ValueError(
            f"{path}: {error}: name a text that is like the model's, as FILE"
        ) from None
    return text


def write_at_all_temperatures(model, tokenizer, options, known):
    """Write samples, and print what there is to say about them -> [Variety, ...]."""
    found = []
    for t in TEMPERATURES:
        v = variety(model, tokenizer, t, options.samples, options.seed, known)
        shares = f"different {v.different:.2f}  new {v.new:.2f}"
        line = f"temperature {t:.2f}  {shares}  loss {v.loss:.3f}"
        print(paragraph(line), flush=True)
        found.append(v)
    return found


def draw_all(options):
    """Read the text, and draw into the directory."""
    try:
        with waiting("loading matplotlib"):
            import matplotlib.style
            from PIL import Image
    except ImportError:
        raise ValueError(
            "matplotlib is missing: python -m pip install matplotlib"
        ) from None

    def save(name, function, *numbers):
        path = os.path.join(options.out, name)
        with waiting(f"drawing {name}"):
            file = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of fonts, time and again
                function(*numbers).savefig(file)
            picture = Image.open(file).convert("RGB").quantize(256)  # a third as large
            smaller = io.BytesIO()
            picture.save(smaller, "PNG", optimize=True)
            write_whole(path, smaller.getvalue())
        print("drawn      ", visible(path), flush=True)

    if options.samples < 1:
        raise ValueError(f"samples is {options.samples}: must be 1 or more")
    path = options.file or microgpt.find_beside("data", "names.txt")
    documents = microgpt.load_documents(path)
    os.makedirs(options.out, exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        draw(options, documents, save)


def arguments(argv):
    """The options on the command line."""
    takes = "It takes about two minutes, or a few seconds with a small saved model."
    parser = make_parser("pictures", __doc__, takes)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=not_empty,
        help="A text file, one document per line (the bundled names).",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="pictures",
        type=not_empty,
        help="The directory for the pictures (pictures).",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=not_empty,
        help="Draw the model that --save has written there.",
    )
    parser.add_argument(
        "--text", type=not_empty, help="The document whose attention is drawn."
    )
    numbers = {
        "steps": (1000, "How many steps to train, of 8 windows each (1000)."),
        "samples": (100, "How many samples to write at each temperature (100)."),
        "seed": (42, "The seed of the random numbers (42)."),
    }
    for name, (default, sentence) in numbers.items():
        parser.add_argument(
            f"--{name}", metavar="N", type=int, default=default, help=sentence
        )
    return parser.parse_args(argv)


def main(argv=None):
    """The command; returns the exit status."""
    return run_command("pictures", draw_all, arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
