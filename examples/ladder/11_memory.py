"""Step 11, the memory. Would it do to remember everything that one has read, and look it up?

Each token of every text is filed under what stood before it: under nothing, under the last token,
the last two, and so on. To predict, look under the longest ending that was ever seen, and the less
that is worth, the more lean on the next shorter one. No slopes, no steps: it is read once.

For names that does very well. For sentences it does not do: a memory can only say what followed
the same words. "cats see foxes because": the cats play. Who has not read this sentence, but has
read of others that see foxes, bets on those others, on every animal but the right one, and a
longer memory does not help. Attention learned a rule instead: look at the first animal. (Source:
Shannon 1951, "Prediction and Entropy of Printed English"; Cleary and Witten 1984 for the tree;
Witten and Bell 1991, "The Zero-Frequency Problem", method C, for the leaning.)

    python examples/ladder/11_memory.py         # 5 seconds

In microgpt.py: chapter "Looking inside", `baselines`. Before: 10_gpt.py. After: microgpt.py itself.
"""

import math
import sys
from collections import Counter
from heapq import heappop, heappush
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, load_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
LONGEST = 1, 2, 3, 5, 10  # tokens that are remembered


class Node:
    """What came next, and under `earlier` the nodes of endings that are one token longer."""

    def __init__(self):
        self.next, self.earlier = Counter(), {}


def remember(documents, longest):
    """-> the root of the tree: what came next after nothing in particular"""
    root = Node()
    for tokens in documents:
        for i in range(1, len(tokens)):
            node = root
            node.next[tokens[i]] += 1
            for token in reversed(tokens[max(0, i - longest) : i]):
                node = node.earlier.setdefault(token, Node())
                node.next[tokens[i]] += 1
    return root


def predict(root, tokens, vocab_size):
    """The probability of each next token: what came next after the last token, the last two, ...,
    each mixed with the prediction before it, which counts as much as there were different ones."""
    p, node = [1 / vocab_size] * vocab_size, root
    for token in [*reversed(tokens), None]:
        total, kinds = sum(node.next.values()), len(node.next)
        p = [(node.next[i] + kinds * p[i]) / (total + kinds) for i in range(vocab_size)]
        node = node.earlier.get(token)
        if node is None:  # so much has never been seen together
            break
    return p


def completions(root, tokens, vocab, k):
    """The k likeliest ways to go on to the end, likeliest first. Of all beginnings the likeliest is
    always the one to be continued; as no continuation is likelier, the first to end is the best."""
    queue, found, names = [(0.0, tokens, "")], [], list(vocab)
    while len(found) < k:
        cost, tokens, text = heappop(queue)
        if text.endswith(END):
            found.append((math.exp(-cost), text))
            continue
        for token, p in enumerate(predict(root, tokens, len(vocab))):
            heappush(
                queue, (cost - math.log(p), [*tokens, token], f"{text} {names[token]}")
            )
    return found


def mean_loss(root, documents, vocab, after=None):
    """Of all tokens, or of those after a certain one."""
    losses = [
        -math.log(predict(root, tokens[:i], len(vocab))[tokens[i]])
        for tokens in documents
        for i in range(1, len(tokens))
        if after in (None, tokens[i - 1])
    ]
    return sum(losses) / len(losses)


def tokens_of(documents, vocab, val_fraction):
    """-> (known, unseen), each a list of lists of tokens"""
    return [
        [[vocab[END], *map(vocab.get, document), vocab[END]] for document in part]
        for part in split_documents(documents, val_fraction, seed=42)
    ]


def counts(node):
    return len(node.next) + sum(map(counts, node.earlier.values()))


def main():
    sentences = [line.split() for line in load_documents(DATA / "sentences.txt")]
    names = load_documents(DATA / "names.txt")
    words, letters = CharTokenizer(sentences).vocab, CharTokenizer(names).vocab
    sentences, unseen = tokens_of(sentences, words, 0.25)
    names, held_out = tokens_of(names, letters, 0.1)

    print("Tokens        Loss of the animal after       Loss of names,")
    print("remembered    so       because               known, unknown")
    for longest in LONGEST:
        root = remember(sentences, longest)
        so, because = (
            mean_loss(root, unseen, words, words[word]) for word in ("so", "because")
        )
        root = remember(names, longest)
        known, unknown = (
            mean_loss(root, some[:500], letters) for some in (names, held_out)
        )
        print(
            f"{longest:10} {so:8.3f} {because:10.3f}          {known:10.3f} {unknown:7.3f}"
        )
    print(
        "A guess among six animals has 1.792; attention, in step 8, has 0.020 after because."
    )

    root = remember(sentences, 10)
    tokens = next(tokens for tokens in unseen if words["because"] in tokens)[:5]
    beginning = " ".join(list(words)[token] for token in tokens[1:])
    for p, text in completions(root, tokens, words, 4):
        print(f"    {p:5.1%}  {beginning} ...{text.replace(END, '')}")

    root = remember(names, 3)
    for beginning in "ma", "chi":
        found = completions(
            root, [letters[END], *map(letters.get, beginning)], letters, 4
        )
        print(
            f"    {beginning} ...",
            *(f"{text.replace(END, '.')} {p:.1%} " for p, text in found),
        )
    loss = mean_loss(root, held_out[:500], letters)
    print(f"memory: {counts(root):,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - How much must be remembered to get "because" right? (No length is enough: what was never read
#   cannot be looked up. From three tokens on it is sure of the wrong animals.)
# - Why do ten tokens serve names worse than three? (What was seen once proves little. The names
#   that it has read it then knows by heart, and its loss on them is no measure of anything.)
# - Which is the better model of names? (This one, after a second; the GPT of step 10 after two
#   minutes, with STEPS = 5000. It then has 4,000 numbers, the memory 28,433.)
