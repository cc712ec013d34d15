"""Chapter 7: the plain training loop, against chapter 12's Trainer."""

from helpers import close, flat

from microgpt import GPT, CharTokenizer, Config, TrainConfig, Trainer, train


class Batches:
    """In the place of a random.Random: gives out these batches."""

    def __init__(self, batches):
        self.batches = batches

    def sample(self, windows, size):
        batch = self.batches.pop(0)
        assert size == len(batch) and all(window in windows for window in batch)
        return batch


def test_the_loop_takes_the_steps_of_a_trainer_that_does_not_clip(capsys):
    documents = ["ab", "ba", "abba", "b"]
    tokenizer = CharTokenizer(documents)
    config = Config(tokenizer.vocab_size, 4, n_head=1, n_embd=4)
    options = TrainConfig(101, 2, lr=0.02, warmup=20, clip=0, val_fraction=0)
    trainer = Trainer(GPT(config, seed=1), tokenizer, documents, options)
    batches = [trainer.batch(step) for step in range(101)]
    losses = [step.loss for step in trainer]

    model = GPT(config, seed=1)
    train(model, trainer.windows, 101, 2, peak=0.02, rng=Batches(batches))
    assert flat(model.params) == close(trainer.model.params, 1e-6)
    means = [sum(losses[:50]) / 50, sum(losses[50:100]) / 50]
    assert capsys.readouterr().out.splitlines() == [
        f"step {n}: training loss {mean:.2f}" for n, mean in zip((50, 100), means)
    ]
    assert means[1] < means[0] - 0.05
