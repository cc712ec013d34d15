"""Step 10, the GPT. How do the parts become one model that trains well and writes?

Take blocks as in step 9. Give every sum a bias, every norm a gain, and let one table
both read tokens and write them. That is GPT-2. This one has one block, four heads, and
rows of 16 numbers. It is trained with Adam, which keeps two averages for every weight
and uses them to move the weight. (At the start it also corrects them.)

    trend = 0.8 * trend + 0.2 * slope               # its recent direction
    size = 0.97 * size + 0.03 * slope ** 2          # how large its slopes are
    weight -= rate * trend / size ** 0.5

So a step is about as long as the rate, whether the slopes are large or small. For such
a small model, plain descent is as good, once you have found the right rate by trial and
error. Adam saves you the search. (Source: Radford et al. 2019; Kingma and Ba 2015,
"Adam: A Method for Stochastic Optimization".)

    python examples/ladder/10_gpt.py            # 15 seconds

In microgpt.py: chapters "GPT", "Optimizer", "Training" and "Generation"; for the fast
versions, "Engines", "Trainer" and "Writing". Before: 09_block.py.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import (
    GPT,
    AdamW,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    Trainer,
    evaluate,
    for_each,
    generate,
    learning_rate,
    parameter_count,
    read_documents,
    to_rows,
)

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS = 500
SEED = 42
COMPARED = 40  # steps in the comparison of Adam with plain descent


class Descent:
    """Plain gradient descent. It is used like AdamW."""

    def __init__(self, params):
        self.params = params

    def step(self, gradients, lr):
        for name, slopes in gradients.items():
            for row, row_slopes in zip(to_rows(self.params[name]), to_rows(slopes)):
                row[:] = [x - lr * slope for x, slope in zip(row, row_slopes)]


def loss_after(batches, config, optimizer_class, rate, factor):
    """Train on these batches, with slopes that are multiplied by a factor.

    Returns the mean training loss of the last 20 steps.
    """

    def multiply(slope):
        return slope * factor

    model = GPT(config, seed=SEED)
    optimizer = optimizer_class(model.params)
    engine = TensorEngine()
    losses = []
    for step, batch in enumerate(batches):
        loss, gradients = engine.gradients(model, batch)
        if not loss < 100:  # it may even be nan, which is "not a number"
            return math.inf
        losses.append(loss)
        gradients = {name: for_each(multiply, x) for name, x in gradients.items()}
        optimizer.step(gradients, learning_rate(step, STEPS, rate, warmup=40))
    return sum(losses[-20:]) / 20


def compare(batches, config):
    """Adam against plain descent."""
    print(
        f"Loss after {len(batches)} steps, "
        "with slopes multiplied by 1, by 100 and by 1/100:"
    )
    ways = [("Adam", AdamW, 0.01), ("plain descent", Descent, 0.3)]
    for name, optimizer_class, rate in ways:
        shown = []
        for factor in (1, 100, 1 / 100):
            loss = loss_after(batches, config, optimizer_class, rate, factor)
            shown.append(f"{loss:10.3f}" if loss < 10 else "  diverges")
        print(f"    {name:13} rate {rate:4}", *shown)


def main():
    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    config = Config(tokenizer.vocab_size)
    model = GPT(config, seed=SEED)
    trainer = Trainer(model, tokenizer, names, TrainConfig(steps=STEPS, seed=SEED))
    compare([trainer.batch(step) for step in range(COMPARED)], config)

    print("Training:")
    for step in trainer:
        if step.step % 100 == 0:
            loss = sum(trainer.losses[-100:]) / 100
            print(f"step {step.step:3}  loss {loss:.3f}")
    for temperature in (0, 0.5, 1, 2):
        written = []
        for seed in range(6):
            name = generate(model, tokenizer, temperature=temperature, seed=seed)
            written.append(name[:20])
        print(f"temperature {temperature}:", ", ".join(written))
    loss = evaluate(model, trainer.val_windows)
    print(f"gpt: {parameter_count(config):,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - The temperature divides the logits. What does the model write at 0, and at 1000? (At
#   0, always the likeliest letter, so always the same name. At 1000, what the die of
#   step 1 writes.)
# - STEPS = 5000. (It takes two minutes, and gets to 2.44: as good as the memory of step
#   11.)
# - Why does Adam not notice the factor? (It divides by it: the trend and the square
#   root of the size grow by the same factor.)
