"""Where the sentences of the ladder come from: all that a small grammar makes, each once.

    python examples/ladder/grammar.py           # writes data/sentences.txt from data/grammar.txt

data/grammar.txt has two parts. First classes: a name in capitals, then its words. After a blank
line patterns: a name stands for a word of that class, and with a number, as ANIMAL1 and ANIMAL2,
for the same word wherever it has the same number and for another one where it has another.

What is the best loss that a model of these sentences can have? All are equally likely, so one
who knows the grammar (but not which sentences were held out) gives each 1 / n: a sentence costs
log n, and a token log n / (tokens in a sentence), on average. Step 9 holds its losses against
that of its pattern, log 180 / 7.
"""

import random
from itertools import permutations, product
from pathlib import Path

GRAMMAR = Path(__file__).resolve().parents[2] / "data" / "grammar.txt"


def read_grammar(path=GRAMMAR):
    """-> (classes, patterns): {name: words} and a list of lines."""
    classes, patterns = Path(path).read_text(encoding="utf-8").strip().split("\n\n")
    lines = [line.split() for line in classes.split("\n")]
    return {name: words for name, *words in lines}, patterns.split("\n")


def sentences_of(pattern, classes):
    """All sentences of one pattern: its places filled in every way."""
    places = {
        name: sorted(
            {word for word in pattern.split() if word.rstrip("0123456789") == name}
        )
        for name in classes
    }
    ways = [permutations(words, len(places[name])) for name, words in classes.items()]
    for chosen in product(*ways):
        words = {
            place: word
            for name, some in zip(classes, chosen)
            for place, word in zip(places[name], some)
        }
        yield " ".join(words.get(word, word) for word in pattern.split())


def all_sentences(path=GRAMMAR, seed=0):
    """Every sentence of the grammar once, in an order that the seed shuffles."""
    classes, patterns = read_grammar(path)
    sentences = [s for pattern in patterns for s in sentences_of(pattern, classes)]
    random.Random(seed).shuffle(sentences)
    return sentences


def main():
    sentences = all_sentences()
    path = GRAMMAR.with_name("sentences.txt")
    path.write_bytes("".join(f"{sentence}\n" for sentence in sentences).encode())
    print(
        f"{len(sentences)} sentences in {path}, such as", *sentences[:6], sep="\n    "
    )


if __name__ == "__main__":
    main()
