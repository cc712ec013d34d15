"""Step 11, the memory. Why not just remember every text, and look up what comes next?

File each token of every text under what came before it: under nothing, under the last
token, under the last two, and so on. To predict, look under the longest ending that has
been seen before. The less the memory has seen there, the more weight it gives to the
next shorter ending. There are no slopes and no steps: the texts are read once.

This works very well for names. It does not work for sentences, because a memory can
only say what followed the same words. After "cats see foxes because", the right word is
"cats". A memory that has not read this sentence has read only about other animals that
see foxes. So it bets on those: on every animal but the right one. A longer memory does
not help. Attention learned a rule instead: look at the first animal. (Source: Shannon
1951, "Prediction and Entropy of Printed English"; Cleary and Witten 1984 for the tree;
Witten and Bell 1991, "The Zero-Frequency Problem", method C, for the weights.)

    python examples/ladder/11_memory.py         # 5 seconds

In microgpt.py: chapter "Looking inside", `baselines`. Before: 10_gpt.py. After this,
read microgpt.py itself.
"""

import math
import sys
from collections import Counter
from heapq import heappop, heappush
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, read_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
LONGEST = [1, 2, 3, 5, 10]  # how many tokens are remembered


class Node:
    """What came next after an ending of a text. It is a node in the tree of endings."""

    def __init__(self):
        self.next = Counter()
        self.earlier = {}  # token -> the Node of the ending that begins with it


def remember(documents, longest):
    """Build the tree. Its root counts all tokens, whatever came before them."""
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
    """The probability of each next token.

    Begin with equal probabilities. Mix in what came next after nothing, after the last
    token, after the last two, and so on. Each time, the weight of the earlier
    probabilities is the number of different tokens that came next.
    """
    p = [1 / vocab_size] * vocab_size
    node = root
    for token in [*reversed(tokens), None]:
        total = sum(node.next.values())
        kinds = len(node.next)
        p = [(node.next[i] + kinds * p[i]) / (total + kinds) for i in range(vocab_size)]
        node = node.earlier.get(token)
        if node is None:  # this ending has never been seen
            break
    return p


def completions(root, beginning, vocab, k):
    """The k likeliest documents with this beginning: [(probability, tokens), ...].

    Always extend the likeliest text so far. Extending a text can only make it less
    likely, so the first one that ends is the best.
    """
    names = list(vocab)
    queue = [(0.0, [vocab[token] for token in [END, *beginning]])]  # (-log p, ids)
    found = []
    while len(found) < k:
        cost, ids = heappop(queue)
        if len(ids) > 1 and names[ids[-1]] == END:
            found.append((math.exp(-cost), [names[i] for i in ids[1:-1]]))
            continue
        for i, p in enumerate(predict(root, ids, len(vocab))):
            heappush(queue, (cost - math.log(p), [*ids, i]))
    return found


def mean_loss(root, documents, vocab, after=None):
    """The mean loss at all tokens, or at those that come after a certain one."""
    losses = []
    for tokens in documents:
        for i in range(1, len(tokens)):
            if after is None or tokens[i - 1] == after:
                p = predict(root, tokens[:i], len(vocab))
                losses.append(-math.log(p[tokens[i]]))
    return sum(losses) / len(losses)


def tokens_of(documents, vocab):
    """Each document as ids, between two <|endoftext|>."""
    return [[vocab[token] for token in [END, *document, END]] for document in documents]


def count_numbers(node):
    """How many counts are there in the tree below this node?"""
    return len(node.next) + sum(map(count_numbers, node.earlier.values()))


def show_completions(root, beginning, vocab, space):
    print(f'The likeliest completions of "{space.join(beginning)}":')
    for p, tokens in completions(root, beginning, vocab, 4):
        print(f"    {p:5.1%}  {space.join(tokens)}")


def main():
    sentences = [line.split() for line in read_documents(DATA / "sentences.txt")]
    words = CharTokenizer(sentences).vocab
    known_sentences, new_sentences = split_documents(sentences, 0.25, seed=42)
    read = tokens_of(known_sentences, words)
    unread = tokens_of(new_sentences, words)
    names = read_documents(DATA / "names.txt")
    letters = CharTokenizer(names).vocab
    known_names, new_names = split_documents(names, seed=42)
    names = tokens_of(known_names, letters)
    held_out = tokens_of(new_names[:500], letters)

    print("Tokens        Loss of the animal after       Loss of names,")
    print("remembered    so       because               known, unknown")
    for longest in LONGEST:
        root = remember(read, longest)
        so = mean_loss(root, unread, words, words["so"])
        because = mean_loss(root, unread, words, words["because"])
        root = remember(names, longest)
        known = mean_loss(root, names[:500], letters)
        unknown = mean_loss(root, held_out, letters)
        print(f"{longest:10} {so:8.3f} {because:10.3f}", end="")
        print(f"          {known:10.3f} {unknown:7.3f}")
    print(
        f"A guess among six animals has a loss of {math.log(6):.3f}.\n"
        "With attention, step 8 has a loss of 0.020 after because."
    )

    sentence = next(s for s in new_sentences if "because" in s)
    show_completions(remember(read, 10), sentence[:4], words, " ")
    root = remember(names, 3)
    show_completions(root, "ma", letters, "")
    show_completions(root, "chi", letters, "")
    loss = mean_loss(root, held_out, letters)
    print(f"memory: {count_numbers(root):,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - How many tokens must it remember to get "because" right? (No number is enough: it
#   cannot look up what it has never read. From three tokens on, it is sure of the wrong
#   animals.)
# - Why do ten tokens predict names worse than three? (What was seen once proves little.
#   It knows the names it has read by heart, so its loss on them says nothing.)
# - Which is the better model of names? (This one, after a second, is as good as the GPT
#   of step 10 after two minutes, with STEPS = 5000. But the GPT has 4,000 numbers, and
#   the memory has 28,433.)
