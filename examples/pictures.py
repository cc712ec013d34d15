"""Four pictures of a small GPT: how it learns, where it looks, which tokens it holds to be alike,
and what temperature does to what it writes. They need matplotlib:

    python -m pip install matplotlib
    python examples/pictures.py                             # the bundled names -> pictures/*.png
    python examples/pictures.py poems.txt --out poems       # your own text, a document a line
    python examples/pictures.py --model DIR                 # a model kept by --save: no training

loss.png          the training loss of every step and its running mean, the held-out loss along the
                  way, and for scale the losses of models that only count (`baselines`).
attention.png     what each token of a document looks at, in every head of every block. The document
                  is a held-out one of about 8 characters, unless --text gives another.
embedding.png     the tokens' embeddings, n_embd numbers each, seen from where they differ most:
                  along their first two principal components.
temperature.png   for temperatures from 0 to 2 the share of samples that differ from one another,
                  and that are new; how likely the model itself finds them; and some of them.

Without --model it trains a model of two blocks, which takes about two minutes; with --steps 3000
it takes five, and there is more to be seen. With --model there is no loss.png, and FILE, or the
bundled names, stands in for the training text and for the held-out one. Chance follows from --seed,
so the same command gives the same numbers; it prints those of the curves.
"""

import argparse
import io
import math
import os
import random
import sys
import unicodedata
from collections import namedtuple
from itertools import permutations

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import microgpt  # noqa: E402

END = "<|endoftext|>"
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 16}
TEMPERATURES = [i / 4 for i in range(9)]

# The colours are told apart by the colour-blind too: Okabe and Ito 2008, "Color Universal Design".
BLUE, RED, GREEN, INK, GREY, PALE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#222222",
    "#777777",
    "#EEEEEE",
)
STYLE = {  # 8 inches are 800 pixels in a README, and twice as many in the file
    "savefig.dpi": 200,
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
    "text.parse_math": False,
}  # a $ is a $

# Of the samples, the share of different ones, and of different ones that are not training
# documents; the mean loss of their tokens, by the model itself.
Variety = namedtuple("Variety", "temperature samples different new loss")


# --- Numbers -------------------------------------------------------------------------------------


def learn(trainer):
    """Train to the end -> (losses of all steps, held-out ones [(step, loss), ...], baselines)."""
    losses, held_out = [], []
    for step in trainer:
        losses.append(step.loss)
        if step.val_loss is not None:
            held_out.append((step.step, step.val_loss))
            print(
                f"step {step.step:,}/{trainer.config.steps:,}  held out {step.val_loss:.3f}",
                flush=True,
            )
    measured = trainer.val_windows[:500]  # by `evaluate`: so by the baselines, too
    vocab_size = trainer.model.config.vocab_size
    return losses, held_out, microgpt.baselines(trainer.windows, measured, vocab_size)


def running_mean(losses, n):
    """The mean of each loss and the n - 1 before it, or of as many as there are."""
    parts = (losses[max(0, i + 1 - n) : i + 1] for i in range(len(losses)))
    return [sum(part) / len(part) for part in parts]


def attention_maps(model, tokenizer, text):
    """-> (the tokens of a text's first window, for each block its heads' weights)."""
    window = microgpt.windows(text, tokenizer, model.config.block_size)[0][:-1]
    trace = {}
    model(window, trace=trace)
    return (
        [tokenizer.decode([token]) for token in window],
        [trace[f"h.{i}.attn"] for i in range(model.config.n_layer)],
    )


def principal_components(rows, k=2):
    """-> (where each row lies on the k axes of most variance, the shares of variance on these)."""
    import numpy  # matplotlib has brought it

    rows = numpy.array(rows) - numpy.mean(rows, axis=0)
    u, s, _ = numpy.linalg.svd(numpy.pad(rows, ((0, k), (0, k))), full_matrices=False)
    points = (u * s)[:-k, :k]
    farthest = points[
        abs(points).argmax(axis=0), range(k)
    ]  # an axis has no sign of its own:
    points = points * numpy.where(
        farthest < 0, -1, 1
    )  # let its farthest row be at plus
    return points.tolist(), (s[:k] ** 2 / (sum(s**2) or 1)).tolist()


def variety(model, tokenizer, temperatures, n, seed, training_documents):
    """Write n samples at each temperature, each time from the same seed -> [Variety, ...]."""
    found, known = [], set(training_documents)
    for temperature in temperatures:
        rng = random.Random(seed)
        samples = [
            microgpt.generate(model, tokenizer, temperature=temperature, seed=rng)
            for _ in range(n)
        ]
        found.append(
            Variety(
                temperature,
                samples,
                len(set(samples)) / n,
                len(set(samples) - known) / n,
                mean_loss(model, tokenizer, samples),
            )
        )
    return found


def mean_loss(model, tokenizer, documents):
    """The mean loss of the documents' tokens."""
    windows = [
        window
        for document in documents
        for window in microgpt.windows(document, tokenizer, model.config.block_size)
    ]
    return microgpt.evaluate(model, windows, most=len(windows))


def spread(points, gap):
    """Push points apart until all are (nearly) a gap or more from one another: labels need room."""
    for _ in range(100):
        pushed = [
            list(point) for point in points
        ]  # all at once: so they keep their order
        for (i, a), (j, b) in permutations(enumerate(points), 2):
            distance = math.dist(a, b)
            if distance < gap:
                away = (
                    [(x - y) / distance for x, y in zip(a, b)]
                    if distance
                    else [1.0] * len(a)
                )
                side = 1 if distance or i > j else -1
                pushed[i] = [
                    x + side * (gap - distance) / 3 * y for x, y in zip(pushed[i], away)
                ]
        points = pushed
    return points


def kind(token):
    """Which colour a token has in the embedding."""
    if token == END:
        return END
    if len(token) > 1 or not token.isalpha():
        return "other tokens"
    letter = unicodedata.normalize("NFD", token)[0].lower()  # without its accents
    return "vowels" if letter in "aeiou" else "consonants"


# --- Drawing -------------------------------------------------------------------------------------


def plain(token):
    """A token as a label: short, and visible."""
    token = token.replace(END, "<|>").replace(" ", "\u2423")
    return token if token.isprintable() else repr(token)[1:-1]


def new_figure(width, height):
    """A figure that needs no display: without pyplot it is drawn by Agg, straight into a file."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def label_ends(axes, lines, labels):
    """Write [(height, text, colour), ...] to the right of axes that are `lines` lines high."""
    low, high = axes.get_ylim()
    heights = spread([(height,) for height, _, _ in labels], (high - low) / lines)
    for (height,), (_, text, colour) in zip(heights, labels):
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
    figure, n = new_figure(8, 4.5), max(1, len(losses) // 25)
    axes, steps, mean = (
        figure.subplots(),
        range(1, len(losses) + 1),
        running_mean(losses, n),
    )
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.4)
    for loss in scale.values():
        axes.axhline(loss, color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(steps, mean, color=BLUE, linewidth=1.8)
    axes.plot(
        *zip(*held_out),
        color=RED,
        linewidth=1.2,
        marker="o",
        markersize=4,
        clip_on=False,
    )
    axes.set(title="Loss, in nats a token", xlabel="step", xlim=(0, len(losses)))
    label_ends(
        axes,
        20,
        [(loss, f"{loss:.2f}  {name}", GREY) for name, loss in scale.items()]
        + [
            (mean[-1], f"{mean[-1]:.2f}  training, mean of {n} steps", BLUE),
            (held_out[-1][1], f"{held_out[-1][1]:.2f}  held out", RED),
        ],
    )
    return figure


def draw_attention(tokens, blocks):
    """A map for each head: a row for each token that looks, a column for each that it looks at."""
    from matplotlib.colors import LinearSegmentedColormap

    n, columns = len(tokens), len(blocks[0])
    size = max(1.6, 8 / max(4, columns))
    figure = new_figure(max(6, size * columns), (size + 0.2) * len(blocks) + 0.4)
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE, "#00263D"])
    labels, small = [plain(token) for token in tokens], min(8.5, 80 / n)
    turned = 90 if max(map(len, labels)) > 3 else 0
    for i, axes in enumerate(figure.subplots(len(blocks), columns, squeeze=False).flat):
        weights = blocks[i // columns][i % columns]
        axes.set_facecolor(PALE)  # what no token sees, as nan is not drawn
        axes.imshow(
            [row + [math.nan] * (n - len(row)) for row in weights],
            shades,
            vmin=0,
            vmax=1,
        )
        axes.set_title(
            f"block {i // columns}, head {i % columns}", fontsize=9, pad=4, loc="center"
        )
        axes.set_xticks(range(n), labels, fontsize=small, rotation=turned)
        axes.set_yticks(range(n), labels, fontsize=small)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.suptitle(
        "Attention: what each token (a row) looks at, from white, 0, to dark, 1",
        x=0.01,
        ha="left",
    )
    return figure


def draw_embedding(tokens, points, shares, most=200):
    """Each token that can be read, or about `most` of many, at its place, or beside it where it
    would cover another."""
    figure = new_figure(8, 4.2)
    axes, colours = (
        figure.subplots(),
        {"vowels": RED, "consonants": BLUE, "other tokens": GREY, END: GREEN},
    )
    axes.scatter(*zip(*points), s=0)  # invisible: it sets the limits
    widths = [max(column) - min(column) for column in zip(*points)]
    shown = [
        i
        for i, token in enumerate(tokens)
        if token.isprintable() and "\ufffd" not in token
    ]
    shown = shown[
        :: -math.ceil(len(shown) / most)
    ]  # backwards: the last is <|endoftext|>
    places = spread([points[i] for i in shown], max(widths[0] / 45, widths[1] / 22))
    for place, token in zip(places, map(tokens.__getitem__, shown)):
        axes.text(
            *place,
            END if token == END else plain(token),
            ha="center",
            va="center",
            color=colours[kind(token)],
            size=12 if len(token) < 2 else 9,
        )
    for i, name in enumerate(sorted(set(map(kind, tokens)) - {END})):
        axes.annotate(
            name,
            (1, 1),
            (-80 * i, 10),
            xycoords="axes fraction",
            ha="right",
            textcoords="offset points",
            color=colours[name],
        )
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


def draw_temperature(found, own, whose, n_examples=3):
    """Variety and loss over the temperature, and some samples; `own` is the loss of real text."""
    figure = new_figure(8, 5.2)
    x, (top, bottom) = [v.temperature for v in found], figure.subplots(2, sharex=True)
    for axes, name, colour in (
        (top, "different", BLUE),
        (top, "new", RED),
        (bottom, "loss", BLUE),
    ):
        axes.plot(
            x,
            [getattr(v, name) for v in found],
            color=colour,
            marker="o",
            markersize=4,
            clip_on=False,
        )
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
    label_ends(
        top,
        9,
        [
            (found[-1].new, "different and new", RED),
            (found[-1].different, "different", BLUE),
        ],
    )
    label_ends(bottom, 9, [(found[-1].loss, "samples", BLUE), (own, whose, GREY)])
    below = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "va": "top",
        "size": 8,
        "annotation_clip": False,
    }
    for v in found:
        texts = [repr(text)[1:-1] for text in dict.fromkeys(v.samples)][:n_examples]
        cut = [text if len(text) < 11 else text[:9] + "\u2026" for text in texts]
        bottom.annotate(
            "\n".join(cut), (v.temperature, 0), (0, -40), ha="center", **below
        )
    bottom.annotate("some samples", (x[-1] + 0.1, 0), (8, -40), color=GREY, **below)
    return figure


# --- Command -------------------------------------------------------------------------------------


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="pictures",
        description="Four pictures of a small GPT. The top of this script says what they show.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="UTF-8 text, a document a line",
        default=os.path.join(ROOT, "data", "names.txt"),
    )
    parser.add_argument(
        "--out", metavar="DIR", default="pictures", help="where they go (pictures)"
    )
    parser.add_argument("--model", metavar="DIR", help="draw this one, kept by --save")
    parser.add_argument("--text", help="the document whose attention is drawn")
    parser.add_argument(
        "--steps", metavar="N", type=int, default=1000, help="of 8 windows (1000)"
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=int,
        default=100,
        help="at each temperature (100)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=42, help="decides chance (42)"
    )
    return parser.parse_args(argv)


def new_trainer(documents, steps, seed):
    """A training that begins: the block holds any name, or 64 characters of longer documents."""
    tokenizer = microgpt.CharTokenizer(documents)
    block_size = min(64, 1 + max(map(len, documents)))
    config = microgpt.Config(tokenizer.vocab_size, block_size, **SHAPE)
    return microgpt.Trainer(
        microgpt.GPT(config, seed=seed),
        tokenizer,
        documents,
        microgpt.TrainConfig(
            steps=steps, batch_size=8, eval_every=max(1, steps // 10), seed=seed
        ),
    )


def draw(args, documents, save):
    """Compute and draw; each picture is saved, by `save(name, figure)`, as soon as it is done."""
    if args.model:
        model, tokenizer = (
            microgpt.GPT.load(args.model),
            microgpt.load_tokenizer(args.model),
        )
        known, others, whose = documents, documents, "the text itself"
    else:
        trainer = new_trainer(documents, args.steps, args.seed)
        model, tokenizer, whose = trainer.model, trainer.tokenizer, "held-out text"
        known, others = trainer.documents, trainer.val_documents
    text = args.text or min(others, key=lambda document: abs(len(document) - 8))[:12]
    tokenizer.encode(text)  # if it cannot be, say so before training

    if not args.model:
        losses, held_out, scale = learn(trainer)
        print(
            "baselines  ",
            ", ".join(f"{name} {loss:.3f}" for name, loss in scale.items()),
        )
        save("loss.png", draw_loss(losses, held_out, scale))
    save("attention.png", draw_attention(*attention_maps(model, tokenizer, text)))
    points, shares = principal_components(model.params["wte.weight"])
    print("variance   ", ", ".join(f"{share:.1%}" for share in shares))
    tokens = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    save("embedding.png", draw_embedding(tokens, points, shares))
    found = variety(model, tokenizer, TEMPERATURES, args.samples, args.seed, known)
    for v in found:
        print(
            f"temperature {v.temperature:.2f}  different {v.different:.2f}  new {v.new:.2f}  "
            f"loss {v.loss:.3f}"
        )
    own = mean_loss(model, tokenizer, others[:500])
    save("temperature.png", draw_temperature(found, own, whose))


def main(argv=None):
    args = arguments(argv)
    try:
        import matplotlib.style
        from PIL import Image
    except ImportError:
        print(
            "pictures: matplotlib is missing: python -m pip install matplotlib",
            file=sys.stderr,
        )
        return 1

    def save(name, figure):
        path, file = os.path.join(args.out, name), io.BytesIO()
        figure.savefig(file)
        Image.open(file).convert("RGB").quantize(256).save(
            path, optimize=True
        )  # a third as big
        print("drawn      ", path, flush=True)

    try:
        if args.samples < 1:
            raise ValueError(f"samples is {args.samples}: must be 1 or more")
        documents = microgpt.load_documents(args.file)
        os.makedirs(args.out, exist_ok=True)
        with matplotlib.style.context(["default", STYLE]):
            draw(args, documents, save)
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
