"""Generate the ladder's sentences: all sentences of a small grammar, each once.

    python examples/ladder/grammar.py    # data/grammar.txt -> data/sentences.txt

data/grammar.txt has two parts. The first lists classes: a name in capitals, then the
words of the class. After a blank line, the second lists patterns. In a pattern, the
name of a class stands for one of its words. A name with a number, such as ANIMAL1,
stands for the same word wherever it has the same number, and for a different word where
it has a different number.

What is the best loss that a model of these sentences can have? All n sentences are
equally likely. A model that knows the grammar (but not which sentences are held out)
gives each of them the probability 1 / n. So the loss of a sentence is log n, and the
mean loss of a token is log n / (tokens in a sentence). Step 9 compares its losses with
this best loss for its pattern, log 180 / 7.
"""

import random
import sys
from itertools import permutations, product
from pathlib import Path

GRAMMAR = Path(__file__).resolve().parents[2] / "data" / "grammar.txt"


def read_grammar(path=GRAMMAR):
    """-> (classes, patterns): {name: words} and a list of lines."""
    text = Path(path).read_text(encoding="utf-8").strip()
    first_part, second_part = text.split("\n\n")
    classes = {}
    for line in first_part.split("\n"):
        name, *words = line.split()
        classes[name] = words
    return classes, second_part.split("\n")


def sentences_of(pattern, classes):
    """All sentences of one pattern: fill its places in every way."""
    pattern = pattern.split()
    places = {name: [] for name in classes}
    for word in sorted(set(pattern)):
        name = word.rstrip("0123456789")
        if name in classes:
            places[name].append(word)
    ways = [permutations(words, len(places[name])) for name, words in classes.items()]
    for choice in product(*ways):
        word_at = {}
        for name, words in zip(classes, choice):
            word_at.update(zip(places[name], words))
        yield " ".join(word_at.get(word, word) for word in pattern)


def all_sentences(path=GRAMMAR, seed=0):
    """Every sentence of the grammar once, in the order that the seed gives."""
    classes, patterns = read_grammar(path)
    sentences = []
    for pattern in patterns:
        sentences.extend(sentences_of(pattern, classes))
    random.Random(seed).shuffle(sentences)
    return sentences


def main():
    if "--help" in sys.argv:
        print(__doc__)
        return
    sentences = all_sentences()
    path = GRAMMAR.with_name("sentences.txt")
    path.write_bytes("".join(f"{sentence}\n" for sentence in sentences).encode())
    print(f"{len(sentences)} sentences in {path}, such as")
    for sentence in sentences[:6]:
        print("   ", sentence)


if __name__ == "__main__":
    main()
