"""Step 10, the GPT. How are all these parts put together, trained well, and made to write?

Blocks as in step 9, with a bias for each sum, a gain for each norm, and one table that both reads
tokens and writes them: that is GPT-2. Here it has one block, four heads, rows of 16. It is trained
with Adam, which keeps two averages for every weight, and with them moves it (but for a correction
at the start):

    trend = 0.8 * trend + 0.2 * slope               # which way, of late
    size = 0.97 * size + 0.03 * slope ** 2          # and how large its slopes are
    weight -= rate * trend / size ** 0.5

So a step is as long as the rate, for weights with large slopes and with small ones. With a rate
that was found by trial plain descent keeps up, on so small a model; Adam spares one the trial.
(Source: Radford et al. 2019; Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization".)

    python examples/ladder/10_gpt.py            # 15 seconds

In microgpt.py: chapters "GPT", "Optimizer", "Training", "Generation". Before: 09_block.py.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import (
    GPT,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    evaluate,
    generate,
    load_documents,
    parameter_count,
)

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS, COMPARED, SEED = 500, 40, 42


class Descent:
    """Plain gradient descent, to stand where a Trainer has its AdamW."""

    def __init__(self, params):
        self.params = params

    def step(self, gradients, lr, factor=1.0):
        for name, slopes in gradients.items():
            for row, row_slopes in zip(rows(self.params[name]), rows(slopes)):
                row[:] = [x - lr * factor * slope for x, slope in zip(row, row_slopes)]


def rows(x):
    return [x] if isinstance(x[0], float) else x  # gains and biases are single rows


class InOtherUnits:
    """An optimizer that is shown the slopes of the loss times a number."""

    def __init__(self, optimizer, times):
        self.optimizer, self.times = optimizer, times

    def step(self, gradients, lr, factor=1.0):
        self.optimizer.step(gradients, lr, factor * self.times)


def after(steps, model, tokenizer, names, rate, descent=False, times=1):
    """The mean training loss of the last 20 steps."""
    trainer = Trainer(model, tokenizer, names, TrainConfig(lr=rate, clip=0, seed=SEED))
    optimizer = Descent(model.params) if descent else trainer.optimizer
    trainer.optimizer = InOtherUnits(optimizer, times)
    try:
        for step in trainer:
            if step.step == steps or step.loss > 100:
                break
        return sum(trainer.losses[-20:]) / 20
    except ArithmeticError:  # what a Trainer raises at nan
        return math.inf


def main():
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    config = Config(tokenizer.vocab_size)

    print(
        f"Loss after {COMPARED} steps, if its slopes are multiplied by 1, by 100 and by 1/100:"
    )
    for optimizer, rate, descent in ("Adam", 0.01, False), ("plain descent", 0.3, True):
        losses = [
            after(
                COMPARED, GPT(config, seed=SEED), tokenizer, names, rate, descent, times
            )
            for times in (1, 100, 1 / 100)
        ]
        print(
            f"    {optimizer:13} rate {rate:4}",
            *(f"{loss:10.3f}" if loss < 10 else "  diverges" for loss in losses),
        )

    model = GPT(config, seed=SEED)
    trainer = Trainer(model, tokenizer, names, TrainConfig(steps=STEPS, seed=SEED))
    for step in trainer:
        if step.step % 100 == 0:
            print(f"step {step.step:3}  loss {sum(trainer.losses[-100:]) / 100:.3f}")
    for temperature in 0, 0.5, 1, 2:
        written = [
            generate(model, tokenizer, temperature=temperature, seed=i)
            for i in range(6)
        ]
        print(f"temperature {temperature}:", ", ".join(name[:20] for name in written))
    loss = evaluate(model, trainer.val_windows)
    print(f"gpt: {parameter_count(config):,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - The temperature divides the logits. What is written at 0, and at 1000? (Always the likeliest
#   letter, so always the same name; and what the die of step 1 wrote.)
# - STEPS = 5000: (Two minutes, and 2.44: as good as the memory of step 11.)
# - Why does Adam not notice a factor? (It divides by it: trend and the root of size grow alike.)
