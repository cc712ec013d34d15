"""What test_train_torch.py runs in two processes, which torchrun starts.

Each process writes down what it has seen: DIR/0.json and DIR/1.json.
"""

import json
import math
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
import train_torch
from train_torch import TorchEngine

import microgpt
from microgpt import CharTokenizer, Config, TrainConfig, Trainer

RANK = int(os.environ.get("RANK", 0))
DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()
SHAPE = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
OPTIONS = "abc.txt --n-embd 8 --n-head 2 --block-size 8 --samples 2 --max-tokens 20"
OPTIONS = f"{OPTIONS} --device cpu --peak 1".split()
SHOWN = [*OPTIONS, *"--steps 10 --eval-every 5 --dtype float64 --save kept".split()]
CASES = {  # what an engine has, and its TrainConfig
    "plain": ({}, {}),
    "a batch that 2 does not divide": ({}, {"batch_size": 7}),
    "accumulation": ({"accumulate": 3}, {"batch_size": 7, "clip": 0.1}),
    "parts of one window": ({"accumulate": 99}, {"batch_size": 3}),
    "decay, no clip": ({}, {"clip": 0, "weight_decay": 0.5, "batch_size": 3}),
    "held out": ({}, {"eval_every": 2, "val_fraction": 0.3}),
}


def new_engine(**options):
    return TorchEngine(**{"peak": 1.0, **options})


def new_trainer(engine=(), **options):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = microgpt.GPT(Config(tokenizer.vocab_size, **SHAPE), seed=1)
    options = {"steps": 6, "batch_size": 4, "warmup": 2, "lr": 0.03, **options}
    config = TrainConfig(**options)
    return Trainer(model, tokenizer, DOCUMENTS, config, new_engine(**dict(engine)))


def steps(trainer, stop=0):
    """What the steps report; after `stop` of them the first process ends it."""
    reports = []
    for step in trainer:
        reports.append([step.loss, step.val_loss or 0.0])
        if step.step == stop and trainer.engine.leads:
            break
    trainer.close()
    return reports


def error_of(trainer):
    try:
        steps(trainer)
    except (ArithmeticError, ValueError) as error:
        return str(error)
    finally:
        trainer.close()


def train_together(directory):
    """The cases, a training that is stopped and resumed, and what cannot be."""
    dist.init_process_group("gloo")
    results = {"peak": new_engine(peak=3.0).peak}
    for name, (engine, options) in CASES.items():
        results[name] = steps(new_trainer(engine, **options))
    for name, stop in (("stopped", 3), ("whole", 0)):
        trainer = new_trainer()
        steps(trainer, stop)
        microgpt.save_training(trainer, directory / name)
        dist.barrier()
    trainer = microgpt.load_training(directory / "stopped", DOCUMENTS, new_engine())
    steps(trainer)
    microgpt.save_training(trainer, directory / "resumed")
    trainer = new_trainer()
    if not trainer.engine.leads:  # a loss that is not finite in one process only
        trainer.model.params["wte.weight"][:] = math.nan
    results["not finite"] = error_of(trainer)
    results["too few"] = error_of(new_trainer(batch_size=1))
    dist.destroy_process_group()
    return results


def fail(*_, **__):
    raise OSError(28, "no space left")


def fail_in_the_second_step(engine, model, batch, right=TorchEngine.backward):
    return fail() if engine.longest else right(engine, model, batch)


def meet_as_if_anew():
    """Let each init_process_group be as if torchrun had just started the processes."""

    def init(backend):
        groups.append(dist.PrefixStore(str(len(groups)), store))
        right(backend, store=groups[-1], rank=RANK, world_size=2)

    groups = []
    right = dist.init_process_group
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, is_master=False)
    dist.init_process_group = init


def main(directory):
    meet_as_if_anew()
    results = train_together(directory)
    results["command"] = train_torch.main(SHOWN)
    options = [*OPTIONS, "--steps", "9", "--quiet", "--save", "failed"]
    microgpt.SAVE_EVERY = 0
    for where, failing, place, name, function in [
        ("save", 0, microgpt, "save_training", fail),
        ("first", 0, TorchEngine, "backward", fail_in_the_second_step),
        ("second", 1, TorchEngine, "backward", fail_in_the_second_step),
    ]:
        function = function if failing == RANK else getattr(place, name)
        with patch.object(place, name, function):
            results[where] = train_torch.main(options)
    (directory / f"{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
