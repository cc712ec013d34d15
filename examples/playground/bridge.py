"""What the playground's page shows, computed by microgpt.py: all that is Python in the playground.

The page's worker calls these functions with plain numbers and texts, and gets such back. They are
ordinary Python, and tested without a browser.
"""

import io
import math
import os
import random
import re
import shutil
import time
import zipfile
import zlib
from contextlib import suppress
from heapq import nlargest
from itertools import accumulate

import graph  # examples/graph.py

import microgpt

LOOK = 60  # held-out windows in a look at the held-out loss
SHOWN = 100  # tokens in a picture, if a model has more
DEEPEST = 30  # brackets in brackets: more would overflow the stack


class Playground:
    """A model that is being trained, with its documents. `directory` is for files of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.model = self.tokenizer = self.trainer = self.names = None

    def start(self, text, shape, training):
        """Begin anew: bytes of text, a document a line; options for Config and TrainConfig."""
        documents = self._documents(text)
        tokenizer = microgpt.CharTokenizer(documents)
        config = microgpt.Config(tokenizer.vocab_size, **shape)
        training = microgpt.TrainConfig(**training)
        model = microgpt.GPT(config, seed=training.seed)
        self.trainer = microgpt.Trainer(model, tokenizer, documents, training)
        self.model, self.tokenizer, self.names = model, tokenizer, names_of(tokenizer)
        return self.about()

    def _documents(self, text):
        path = os.path.join(self.directory, "documents.txt")
        with open(path, "wb") as file:
            file.write(text)
        try:
            return microgpt.load_documents(path)
        except ValueError as error:
            raise ValueError(str(error).replace(path, "this text")) from None

    def about(self):
        """What is being trained, or was loaded."""
        config = self.model.config
        about = {
            "parameters": microgpt.parameter_count(config),
            "block_size": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "vocab": self.names,
            "documents": 0,
            "example": "",
        }
        if self.trainer:
            trainer = self.trainer
            about.update(
                documents=len(trainer.documents),
                held_out=len(trainer.val_documents),
                step=trainer.step,
                steps=trainer.config.steps,
                example=trainer.documents[0],
            )
        return about

    def scale(self):
        """The losses of models that only count, to hold the model's against."""
        seen, held_out = self.trainer.windows, self.trainer.val_windows
        return microgpt.baselines(
            seen, (held_out or seen)[:500], self.model.config.vocab_size
        )

    def train(self, milliseconds=50):
        """Steps for about so long -> {step, steps, losses: theirs, speed: in tokens a second}"""
        started, losses, speed = time.perf_counter(), [], 0
        for step in self.trainer:
            losses.append(step.loss)
            speed = step.tokens_per_second
            if (time.perf_counter() - started) * 1000 > milliseconds:
                break
        return {
            "step": self.trainer.step,
            "steps": self.trainer.config.steps,
            "losses": losses,
            "speed": speed,
        }

    def held_out(self):
        """The loss on some of the held-out documents, or None if there are none."""
        held_out = self.trainer.val_windows[:LOOK]
        return microgpt.evaluate(self.model, held_out) if held_out else None

    def reading(self):
        """What the training came to: the held-out loss, and a sentence."""
        trainer = self.trainer
        loss = microgpt.evaluate(self.model, trainer.val_windows or trainer.windows)
        sentence = trainer.losses and microgpt.reading(
            trainer.losses, loss, self.scale()
        )
        return {"loss": loss, "sentence": sentence or ""}

    def write(self, n, prompt, seed, options):
        """New documents, and whether they were in training; options as for `generate`."""
        known = set(self.trainer.documents if self.trainer else ())
        rng, written = random.Random(seed), []
        for _ in range(n):
            text = microgpt.generate(
                self.model, self.tokenizer, prompt, seed=rng, **options
            )
            written.append({"text": text, "known": text in known})
        return written

    def next_tokens(self, prompt, temperature, top_k, top_p):
        """What may come next: each token's probability, as the model has it and as it is drawn."""
        logits = self._logits(prompt)
        drawn = Drawn()
        token = microgpt.sample(logits, temperature, top_k, top_p, drawn)
        drawn.weights = drawn.weights or {
            token: 1.0
        }  # at temperature 0 nothing is drawn
        total = sum(drawn.weights.values())
        shown = sorted(nlargest(SHOWN, range(len(logits)), key=logits.__getitem__))
        probs = microgpt.softmax(logits)
        return [
            {
                "token": self.names[i],
                "model": probs[i],
                "drawn": drawn.weights.get(i, 0.0) / total,
            }
            for i in shown
        ]

    def draw(self, prompt, temperature, top_k, top_p):
        """One token that comes next."""
        token = microgpt.sample(self._logits(prompt), temperature, top_k, top_p)
        return self.names[token]

    def _logits(self, prompt):
        tokens = [self.tokenizer.end] + self.tokenizer.encode(prompt)
        return self.model(tokens[-self.model.config.block_size :], last=True)[0]

    def score(self, text):
        """Every token of a text with its probability and loss, and what was likelier."""
        return [
            scored._asdict()
            for scored in microgpt.score(self.model, self.tokenizer, text)
        ]

    def attention(self, text):
        """Tokens of a text, and for each block and head how much each looks at those before it."""
        tokens = ([self.tokenizer.end] + self.tokenizer.encode(text))[
            : self.model.config.block_size
        ]
        trace = {}
        self.model(tokens, trace=trace)
        return {
            "tokens": [self.names[token] for token in tokens],
            "blocks": [trace[f"h.{i}.attn"] for i in range(self.model.config.n_layer)],
        }

    def embedding(self):
        """Each token's place in the plane in which the embeddings differ most."""
        points, share = plane(self.model.params["wte.weight"][-SHOWN:])
        return {
            "share": share,
            "points": [
                {"token": token, "x": x, "y": y}
                for token, (x, y) in zip(self.names[-SHOWN:], points)
            ],
        }

    def save(self):
        """The model's directory, as the bytes of a zip file."""
        directory = os.path.join(self.directory, "model")
        shutil.rmtree(directory, ignore_errors=True)
        self.trainer.save(directory) if self.trainer else self.model.save(
            directory, self.tokenizer
        )
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            for name in sorted(os.listdir(directory)):
                file.write(os.path.join(directory, name), f"model/{name}")
        return packed.getvalue()

    def load(self, packed, text):
        """Open what `save` gave, or any model of microgpt.py's or GPT-2's in a zip file. If this is
        the text that its training began with, the training can go on."""
        directory = os.path.join(self.directory, "loaded")
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as file:
                if sum(info.file_size for info in file.infolist()) > 200_000_000:
                    raise ValueError(
                        "this model is too large for a page: 200 MB at most"
                    )
                for info in file.infolist():
                    name = os.path.basename(
                        info.filename
                    )  # flat, so that nothing leads out
                    if name in FILES:
                        with open(os.path.join(directory, name), "wb") as kept:
                            kept.write(file.read(info))
                        if name.endswith(".json"):
                            refuse_depth(os.path.join(directory, name))
            model, trainer = microgpt.GPT.load(directory), None
            tokenizer = microgpt.load_tokenizer(directory)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise ValueError(f"this is not a zip file with a model: {error}") from None
        except OSError as error:
            name = os.path.basename(error.filename or "a file")
            raise ValueError(
                f"there is no {name} of a model in this zip file"
            ) from None
        except ValueError as error:
            raise ValueError(str(error).replace(directory, "the model")) from None
        if os.path.exists(os.path.join(directory, "trainer.safetensors")):
            with suppress(ValueError):
                trainer = microgpt.Trainer.load(
                    directory, self._documents(text), workers=1, eval_every=0
                )
                model = trainer.model
        self.model, self.tokenizer, self.trainer = model, tokenizer, trainer
        self.names = names_of(tokenizer)
        return self.about()


FILES = (
    "config.json",
    "model.safetensors",
    "trainer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


class Drawn:
    """Stands where `sample` takes random numbers from, and remembers what it would draw from."""

    weights = None

    def choices(self, ids, weights):
        self.weights = dict(zip(ids, weights))
        return ids[:1]


def names_of(tokenizer):
    """What each token stands for, by its id."""
    return [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]


def refuse_depth(path):
    """ValueError for JSON with so many brackets in brackets that to read it would end Python."""
    with open(path, "rb") as file:
        signs = re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}]', b"", file.read(), flags=re.DOTALL)
    if deepest(signs.decode()) > DEEPEST:
        raise ValueError(f"{os.path.basename(path)} is nested too deeply")


def deepest(text):
    return max(accumulate((c in "([{") - (c in ")]}") for c in text), default=0)


def parameter_count(vocab_size, shape):
    return microgpt.parameter_count(microgpt.Config(vocab_size, **shape))


def plane(rows, rounds=200):
    """Rows -> ((x, y) of each, the share of the variance): their two principal components, found
    by power iteration: a direction that is multiplied by the covariance again and again turns to
    its longest axis."""
    n = len(rows)
    means = [sum(column) / n for column in zip(*rows)]
    rest = [[x - mean for x, mean in zip(row, means)] for row in rows]
    variance = sum(x * x for row in rest for x in row) or 1.0
    axes, kept = [], 0.0
    for axis in range(2):
        direction = [random.Random(axis).gauss(0, 1) for _ in means]
        for _ in range(rounds):
            along = [microgpt.dot(row, direction) for row in rest]
            direction = [microgpt.dot(along, column) for column in zip(*rest)]
            length = math.hypot(*direction) or 1.0
            direction = [x / length for x in direction]
        along = [microgpt.dot(row, direction) for row in rest]
        rest = [
            [x - a * d for x, d in zip(row, direction)] for row, a in zip(rest, along)
        ]
        kept += sum(a * a for a in along)
        axes.append(along)
    return list(zip(*axes)), kept / variance


def expression(text, values):
    """A small expression of Values, after backward -> its nodes, parents first, each with what it
    hands on to each of its children."""
    if len(text) > 200 or deepest(text) > DEEPEST:
        raise ValueError(
            f"this is too much for a picture: 200 characters, {DEEPEST} brackets in "
            "brackets at most"
        )
    try:
        value, names = graph.compute(text, values)
        value.backward()
    except (RecursionError, MemoryError):
        raise ValueError("this is nested too deeply") from None
    nodes = graph.nodes(value)
    labels = graph.labels(value, names)
    order, done = [], set()
    waiting = {id(node): 0 for node in nodes}
    for node in nodes:
        for child in node.children:
            waiting[id(child)] += 1
    ready = [value]
    while ready:  # those whose parents have all handed on
        node = ready.pop(0)
        order.append(node)
        for child in node.children:
            waiting[id(child)] -= 1
            if not waiting[id(child)] and id(child) not in done:
                done.add(id(child))
                ready.append(child)
    place = {id(node): i for i, node in enumerate(order)}
    return [
        {
            "label": labels[id(node)],
            "data": node.data,
            "grad": node.grad,
            "children": [
                {"node": place[id(child)], "local": local, "share": local * node.grad}
                for child, local in zip(node.children, node.local_grads)
            ],
        }
        for node in order
    ]
