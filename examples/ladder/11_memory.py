"""Step 11, the memory. Would it do to remember everything that one has read, and look it up?

Each token of every text is filed under what stood before it: under nothing, under the last
token, the last two, and so on. To predict, look under the longest ending that was ever seen, and
where that was seldom, lean on the next shorter one. No slopes, no steps: one reading, and it
knows all that a table can. (Source: Shannon 1951, "Prediction and Entropy of Printed English";
Witten and Bell 1991, "The Zero-Frequency Problem", method C; Cleary and Witten 1984 for the
tree.)

    python examples/ladder/11_memory.py         # 2 seconds

In microgpt.py: chapter "Looking inside", `baselines`. Before: 10_gpt.py. After: microgpt.py
itself.
"""

import math
import sys
from collections import Counter
from heapq import heappop, heappush
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # where microgpt.py is

from microgpt import END, CharTokenizer, load_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
LONGEST = 3


class Node:
    """What came next, and under `earlier` the nodes of endings that are one token longer."""
    def __init__(self):
        self.next, self.earlier = Counter(), {}


def remember(root, tokens):
    for i in range(1, len(tokens)):
        node = root
        node.next[tokens[i]] += 1
        for token in reversed(tokens[max(0, i - LONGEST):i]):
            node = node.earlier.setdefault(token, Node())
            node.next[tokens[i]] += 1


def predict(root, tokens, vocab_size):
    """The probability of each next token: for longer and longer endings, what came next there,
    mixed with the prediction before it, the more so the more different tokens came."""
    p, node, endings = [1 / vocab_size] * vocab_size, root, reversed(tokens[-LONGEST:])
    while node:
        total, kinds = sum(node.next.values()), len(node.next)
        p = [(node.next[token] + kinds * p[token]) / (total + kinds) for token in range(vocab_size)]
        node = node.earlier.get(next(endings, None))
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
            heappush(queue, (cost - math.log(p), [*tokens, token], f"{text} {names[token]}"))
    return found


def read(documents, val_fraction):
    """-> (root of the tree, unseen documents, vocab): a token for each letter or word."""
    vocab, root = CharTokenizer(documents).vocab, Node()
    known, unseen = ([[vocab[END], *map(vocab.get, document), vocab[END]] for document in part]
                     for part in split_documents(documents, val_fraction, seed=42))
    for tokens in known:
        remember(root, tokens)
    return root, unseen, vocab


def mean_loss(root, documents, vocab, after=None):
    """Of all tokens, or of those after a certain one."""
    losses = [-math.log(predict(root, tokens[:i], len(vocab))[tokens[i]]) for tokens in documents
              for i in range(1, len(tokens)) if after in (None, tokens[i - 1])]
    return sum(losses) / len(losses)


def main():
    sentences = [line.split() for line in load_documents(DATA / "sentences.txt")]
    root, unseen, words = read(sentences, 0.25)
    for beginning in "cats chase", "foxes meet dogs so":
        tokens = [words[END], *map(words.get, beginning.split())]
        for p, text in completions(root, tokens, words, 3):
            print(f"    {p:6.1%}  {beginning} ...{text}")
    print("Loss of the animal after so and after because, in unseen sentences: "
          f"{mean_loss(root, unseen, words, words['so']):.3f},"
          f" {mean_loss(root, unseen, words, words['because']):.3f}")

    root, held_out, letters = read(load_documents(DATA / "names.txt"), 0.1)
    for beginning in "ma", "chi":
        found = completions(root, [letters[END], *map(letters.get, beginning)], letters, 4)
        print(f"    {beginning} ...", *(f"{text.replace(END, '.')} {p:.1%} " for p, text in found))
    def counts(node): return len(node.next) + sum(map(counts, node.earlier.values()))
    print(f"memory: {counts(root):,} parameters, "
          f"held-out loss {mean_loss(root, held_out[:500], letters):.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - LONGEST = 2 is the model "triples" of microgpt.py: 2.48. And 15, everything? (2.54: what was
#   seen once proves little. On the names that it has read, 1.4: it knows them by heart.)
# - Who plays? For "because" it has 2.5, worse than a guess among six, log 6 = 1.79. Why? (What
#   it has seen after "meet dogs because" are the animals that this sentence is not about: it was
#   not read yet. Attention, step 8, has 0.02: it does not know sentences, it knows where to
#   look.)
# - Which is the better model of names? (After a minute's training the GPT; before, this one.)
