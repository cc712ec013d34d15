"""The Python of the playground: what its page shows, computed by microgpt.py.

The page's worker calls these functions with plain numbers and texts, and gets plain
numbers and texts back. The functions need no browser, and are tested without one.
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
from heapq import nlargest

import graph  # examples/graph.py
from components import principal_components  # examples/components.py
from tracing import TracedGPT  # examples/tracing.py

import microgpt

QUICK_WINDOWS = 60  # how many windows a quick look at the held-out loss takes
MOST_TOKENS = 100  # how many tokens a picture shows at most
MOST_CHARACTERS = 200  # in an expression
DEEPEST = 30  # brackets inside brackets; many more would overflow a browser's stack
LARGEST_MODEL = 200_000_000  # bytes, all files together
TRAINING = "trainer.safetensors"
MODEL_FILES = (
    TRAINING,
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",  # lists the parts of a large model
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
PART_OF_A_MODEL = r"model-[0-9]+-of-[0-9]+\.safetensors"
ZIP_ERRORS = (  # what zipfile raises if it cannot read a file
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class Playground:
    """One model, and its training run if it has one. Its files are in a directory."""

    def __init__(self, directory):
        self.directory = directory
        self.rng = random.Random()
        self.model = None
        self.tokenizer = None
        self.trainer = None
        self.is_bytewise = False  # may a token be a part of a character?
        self.names = None  # of each token, by its id: see name_of

    # Training

    def start(self, text, shape, training):
        """Start a new training run on a text, which is bytes.

        `shape` and `training` are options for Config and TrainConfig.
        """
        config = microgpt.TrainConfig(**training)
        documents = self.read_documents(text, config.document)
        is_whole = config.document == "file"
        if len(documents) == 1 and config.val_fraction > 0 and not is_whole:
            raise ValueError(
                f"this text has a single {config.document}: give two or more, or "
                "choose one long text"
            )
        tokenizer = microgpt.CharTokenizer(documents)
        shape = microgpt.Config(tokenizer.vocab_size, **shape)
        model = microgpt.GPT(shape, seed=config.seed)
        trainer = microgpt.Trainer(model, tokenizer, documents, config)
        if not trainer.documents:
            raise ValueError("this text is too short: write more")
        self.use(trainer.model, tokenizer, trainer)
        return self.about()

    def read_documents(self, text, document):
        """Bytes -> documents, by the rules of the command line."""
        path = os.path.join(self.directory, "documents.txt")
        with open(path, "wb") as file:
            file.write(text)
        try:
            return microgpt.load_documents(path, document=document)
        except ValueError as error:
            message = str(error).replace(path, "this text")
            raise ValueError(message.replace(" document per file", "")) from None

    def use(self, model, tokenizer, trainer):
        """From now on, show this model."""
        self.model = model
        self.tokenizer = tokenizer
        self.trainer = trainer
        plain = getattr(tokenizer, "tokenizer", tokenizer)  # without added tokens
        self.is_bytewise = isinstance(plain, microgpt.BPETokenizer)
        ids = range(model.config.vocab_size)
        self.names = [name_of(tokenizer, plain, i) for i in ids]

    def about(self):
        """What the page needs to know about the model and its training."""
        config = self.model.config
        about = {
            "parameters": microgpt.parameter_count(config),
            "block_size": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "vocab": self.names,
            "knows_all": self.is_bytewise,  # every text can be encoded
            "documents": 0,
            "example": "",
        }
        if self.trainer is not None:
            about["documents"] = len(self.trainer.documents)
            about["held_out"] = len(self.trainer.val_documents)
            about["step"] = self.trainer.step
            about["steps"] = self.trainer.config.steps
            about["document"] = self.trainer.config.document
            about["example"] = first_line(self.trainer.documents[0])
        return about

    def train(self, milliseconds=50):
        """Train for about this long, and for at least one step if any are left."""
        started = time.perf_counter()
        losses = []
        speed = 0
        for step in self.trainer:
            losses.append(step.loss)
            speed = step.tokens_per_second
            if (time.perf_counter() - started) * 1000 > milliseconds:
                break
        return {
            "step": self.trainer.step,
            "steps": self.trainer.config.steps,
            "losses": losses,  # of the steps of this call
            "speed": speed,  # in tokens per second
        }

    def held_out(self):
        """The loss on some held-out documents. None if no document is held out."""
        windows = self.trainer.val_windows[:QUICK_WINDOWS]
        if not windows:
            return None
        return microgpt.evaluate(self.model, windows)

    def scale(self):
        """The losses of models that only count, to compare the model's loss with."""
        windows = self.trainer.windows
        held_out = self.trainer.val_windows or windows
        vocab_size = self.model.config.vocab_size
        return microgpt.baselines(windows, held_out[:500], vocab_size)

    def reading(self):
        """The held-out loss at the end, and a sentence on how the training went."""
        trainer = self.trainer
        loss = microgpt.evaluate(self.model, trainer.val_windows or trainer.windows)
        sentence = ""
        if trainer.losses:  # a loaded training run has none at first
            sentence = microgpt.reading(trainer.losses, loss, self.scale())
        return {"loss": loss, "sentence": sentence}

    # Generation

    def write(self, n, prompt, seed, options, drawn=()):
        """Write n documents, and say which of them are training documents.

        They begin with the prompt and, after it, the tokens `drawn`: see `draw`.
        """
        rng = random.Random(seed)
        options = dict(options)
        most = options.pop("max_tokens")
        sampling = microgpt.Sampling(**options)
        n_prompt = len(self.encode(prompt))
        beginning = self.encode(prompt, drawn)
        end = self.tokenizer.end
        written = []
        for _ in range(n):
            tokens = [end] + beginning
            new = microgpt.stream(self.model, tokens, sampling, rng, end, most)
            ids = beginning + list(new)
            text = prompt + self.tokenizer.decode(ids[n_prompt:])
            known = self.trainer and microgpt.is_in_training(text, self.trainer)
            written.append({"text": text, "known": bool(known), "ids": ids})
        return written

    def next_tokens(self, prompt, temperature, top_k, top_p, drawn=()):
        """Two probabilities for each token that may come next.

        "model" is the model's own, and "drawn" is the one after temperature, top_k and
        top_p. If the vocabulary is large, only the likeliest tokens are listed.
        """
        logits = self.last_logits(prompt, drawn)
        sampling = microgpt.Sampling(temperature, top_k, top_p)
        model = microgpt.softmax(logits)
        probabilities = draw_probabilities(logits, sampling)
        shown = nlargest(MOST_TOKENS, range(len(logits)), key=logits.__getitem__)
        return [
            {
                "id": i,
                "token": self.names[i],
                "model": model[i],
                "drawn": probabilities[i],
            }
            for i in sorted(shown)
        ]

    def draw(self, prompt, temperature, top_k, top_p, drawn=()):
        """Draw the next token, after a prompt and the tokens that were drawn so far.

        A drawn token is kept as what it is, not as a text: a text of bytes may be half
        a character, and may be cut into other tokens. "text" is what can be read.
        """
        logits = self.last_logits(prompt, drawn)
        sampling = microgpt.Sampling(temperature, top_k, top_p)
        i = sampling.draw(logits, self.rng)
        probability = draw_probabilities(logits, sampling)[i]
        token = {"id": i, "token": self.names[i], "probability": probability}
        drawn = [*drawn, token]
        if i == self.tokenizer.end:
            drawn.pop()
        parts = self.parts(drawn)
        text = "".join(part["text"] for part in parts)
        if self.is_bytewise:
            text = text.rstrip("\ufffd")  # the rest of a character is yet to come
        return {**token, "drawn": drawn, "parts": parts, "text": prompt + text}

    def last_logits(self, prompt, drawn):
        """The logits after the prompt. If the prompt is long, only its end is read."""
        tokens = [self.tokenizer.end] + self.encode(prompt, drawn)
        reader = microgpt.CachedGPT(self.model)
        return reader(tokens[-self.model.config.block_size :])[-1]

    def encode(self, text, drawn=()):
        """The ids of a text and of the tokens that were drawn after it."""
        ids = microgpt.encode_text(self.tokenizer, text)
        for i in ids:
            if i >= len(self.names):  # an added token, which the model is too small for
                token = self.tokenizer.decode([i])
                raise ValueError(f"this model has no embedding for the token {token!r}")
        return ids + [token["id"] for token in drawn]

    # Looking inside

    def score(self, text):
        """Every token of a text, with its probability, loss and likeliest tokens."""
        return self.score_ids(self.encode(text))

    def score_ids(self, ids):
        """The same, for tokens."""
        tokenizer = Given(ids, self.names, self.tokenizer.end)
        scored = microgpt.score(self.model, tokenizer, "")
        return [one._asdict() for one in scored]

    def coloured(self, ids):
        """The parts of a text, from its tokens, with their probabilities."""
        scored = self.score_ids(ids)
        return self.parts([one for one in scored if one["id"] != self.tokenizer.end])

    def parts(self, tokens):
        """Put tokens together until they are whole characters.

        -> for each part, its text and the probability that all its tokens are drawn.
        """
        parts = []
        waiting = []
        for n, token in enumerate(tokens, start=1):
            waiting.append(token)
            text = self.tokenizer.decode([one["id"] for one in waiting])
            is_half = self.is_bytewise and text.endswith("\ufffd")
            if not is_half or n == len(tokens):
                probability = math.prod(one["probability"] for one in waiting)
                parts.append({"text": text, "probability": probability})
                waiting = []
        return parts

    def attention(self, text):
        """How much each token of a text looks at itself and those before it.

        "blocks" has, for each block and head, a row of weights for each token.
        """
        tokens = [self.tokenizer.end] + self.encode(text)
        tokens = tokens[: self.model.config.block_size]
        traced = TracedGPT(self.model)
        traced(tokens)
        n_layer = self.model.config.n_layer
        return {
            "tokens": [self.names[token] for token in tokens],
            "blocks": [traced.trace[f"h.{i}.attn"] for i in range(n_layer)],
        }

    def embedding(self):
        """A point in a plane for each token. Similar embeddings are close together."""
        rows = self.model.params["wte.weight"][-MOST_TOKENS:]
        points, shares = principal_components(rows)
        placed = []
        for name, (x, y) in zip(self.names[-MOST_TOKENS:], points):
            placed.append({"token": name, "x": x, "y": y})
        return {"share": sum(shares), "points": placed, "count": len(self.names)}

    # Saving the model

    def save(self):
        """The model and its training, if it has one, as the bytes of a zip file."""
        directory = self.empty_folder("model")
        if self.trainer is not None:
            microgpt.save_training(self.trainer, directory)
        else:
            microgpt.save_model(self.model, directory, self.tokenizer)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            for name in sorted(os.listdir(directory)):
                file.write(os.path.join(directory, name), f"model/{name}")
        return packed.getvalue()

    def load(self, packed, text):
        """Open a zip file made by `save`, or one with any model that microgpt.py opens.

        If it has a training run on this text, the run can continue.
        """
        directory = self.empty_folder("loaded")
        try:
            unpack(packed, directory)
            model = microgpt.load_model(directory)
            tokenizer = microgpt.load_tokenizer(directory)
        except FileNotFoundError as error:  # a part that the index lists
            name = os.path.basename(error.filename)
            raise ValueError(
                f"this zip file has no {microgpt.printable(name)}"
            ) from None
        except ZIP_ERRORS as error:
            raise ValueError(f"this file is not a zip file: {error}") from None
        except ValueError as error:
            message = str(error).replace(directory + os.sep, "")
            raise ValueError(message) from None
        trainer = self.saved_training(directory, text)
        if trainer is not None:
            model = trainer.model
        self.use(model, tokenizer, trainer)
        has_training = os.path.exists(os.path.join(directory, TRAINING))
        return {**self.about(), "has_training": has_training}

    def saved_training(self, directory, text):
        """A Trainer that continues a saved training run, or None if it cannot."""
        if not os.path.exists(os.path.join(directory, TRAINING)):
            return None
        changes = {"workers": 1, "eval_every": 0}  # a page cannot start processes
        try:
            document = microgpt.read_train_config(directory).document
            documents = self.read_documents(text, document)
            return microgpt.load_training(directory, documents, **changes)
        except ValueError:  # for example, the run was on another text
            return None

    def empty_folder(self, name):
        """An empty folder of this name in the playground's directory."""
        folder = os.path.join(self.directory, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return folder


def parameter_count(vocab_size, shape):
    """How many parameters a model of this shape would have."""
    return microgpt.parameter_count(microgpt.Config(vocab_size, **shape))


# --- Tokens ---------------------------------------------------------------------------


def name_of(tokenizer, plain, i):
    """How a token is named: by its text or, if it is half a character, by its bytes."""
    text = tokenizer.decode([i])
    if "\ufffd" in text and i in getattr(plain, "token_bytes", ()):
        return "\ufffd" + plain.token_bytes[i].hex(" ").upper()
    return text


def first_line(document):
    """The beginning of a document's first line that is not blank."""
    for line in document.split("\n"):
        if line.strip():
            return line[:200]
    return ""


class Given:
    """A stand-in for a tokenizer. The tokens of any text are those that are given."""

    def __init__(self, ids, names, end):
        self.ids = ids
        self.names = names
        self.end = end

    def encode(self, _):
        """The ids that are given."""
        return self.ids

    def decode(self, ids):
        """Ids -> their names."""
        return "".join(self.names[i] for i in ids)


# --- Generation -----------------------------------------------------------------------


class Recorder:
    """A stand-in for random.Random that records the weights of a draw."""

    weights = None

    def choices(self, ids, weights):
        """Keep the weights, and draw the first id."""
        self.weights = weights
        return [ids[0]]


def draw_probabilities(logits, sampling):
    """The probabilities that a Sampling really draws with."""
    recorder = Recorder()
    token = sampling.draw(logits, recorder)
    if recorder.weights is None:  # at temperature 0, nothing is left to chance
        return [1.0 if i == token else 0.0 for i in range(len(logits))]
    total = sum(recorder.weights)
    return [weight / total for weight in recorder.weights]


# --- Saving the model -----------------------------------------------------------------


def unpack(packed, directory):
    """Unpack the files of a model from the bytes of a zip file into a directory."""
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        if sum(info.file_size for info in file.infolist()) > LARGEST_MODEL:
            most = LARGEST_MODEL // 10**6
            raise ValueError(
                f"this model is too large for this page: at most {most} MB"
            )
        for info in file.infolist():
            name = os.path.basename(info.filename)  # so no file goes elsewhere
            if name not in MODEL_FILES and not re.fullmatch(PART_OF_A_MODEL, name):
                continue
            contents = file.read(info)
            if name.endswith(".json"):
                refuse_deep_nesting(name, contents)
            with open(os.path.join(directory, name), "wb") as unpacked:
                unpacked.write(contents)
    found = set(os.listdir(directory))
    needed = ["config.json"]
    if "model.safetensors.index.json" not in found:
        needed.append("model.safetensors")
    for name in needed:
        if name not in found:
            raise ValueError(f"this zip file has no {name}, so it contains no model")
    if "tokenizer.json" not in found and not {"vocab.json", "merges.txt"} <= found:
        raise ValueError("this zip file has no tokenizer.json to go with its model")


def refuse_deep_nesting(name, contents):
    """Raise ValueError for JSON that would overflow the stack when it is read."""
    strings_and_more = rb'"(?:[^"\\]|\\.)*"|[^][{}]'
    brackets = re.sub(strings_and_more, b"", contents, flags=re.DOTALL)
    if deepest(brackets.decode()) > DEEPEST:
        raise ValueError(f"{name} is nested too deeply")


# --- The chain rule -------------------------------------------------------------------


def expression(text, values):
    """The graph of an expression of Values, after backward().

    -> its nodes, in the order in which backward() lets them pass on their gradients.
    "share" is what a node passes on to a child: the local gradient times its own grad.
    """
    if len(text) > MOST_CHARACTERS or deepest(text) > DEEPEST:
        raise ValueError(
            f"this expression is too large to draw: write at most {MOST_CHARACTERS} "
            f"characters, with at most {DEEPEST} brackets inside each other"
        )
    try:
        root, names = graph.compute(text, values)
        root.backward()
    except (RecursionError, MemoryError):
        raise ValueError("this expression is nested too deeply") from None
    labels = graph.labels(root, names)
    nodes = backward_order(root)
    place = {id(node): i for i, node in enumerate(nodes)}
    described = []
    for node in nodes:
        children = []
        for child, local in zip(node.children, node.local_grads):
            share = local * node.grad
            children.append({"node": place[id(child)], "local": local, "share": share})
        described.append(
            {
                "label": labels[id(node)],
                "data": node.data,
                "grad": node.grad,
                "children": children,
            }
        )
    return described


def backward_order(root):
    """All nodes of a graph, parents before children. Nodes without any come last."""
    order = microgpt.topological_order(root)
    leaves = [node for node in graph.nodes(root) if not node.children]
    return order[::-1] + leaves


def deepest(text):
    """The deepest nesting of brackets."""
    depth = 0
    most = 0
    for character in text:
        if character in "([{":
            depth += 1
            most = max(most, depth)
        elif character in ")]}":
            depth -= 1
    return most
