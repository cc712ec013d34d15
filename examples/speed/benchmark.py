"""How fast is microgpt? Measure it, and compare it with others, in alternating rounds.

    python examples/speed/benchmark.py
    python examples/speed/benchmark.py names.txt --baseline reference.py
    python examples/speed/benchmark.py --gpt2
    python examples/speed/benchmark.py --engines --nanogpt path/to/nanoGPT

README.md in this folder says what each line means, and how to measure the tables of the
other READMEs again.
"""

import os
import platform
import random
import sys
from contextlib import ExitStack

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from _common import make_parser, not_empty, run_command
from baseline import BLOCK, FIRST_STEPS, Baseline
from gpt2 import gpt2
from library import bpe
from other_engines import compare_engines, installed_engines
from rounds import Plan, row, rows, steps_in_rounds, watch

import microgpt

TAKES = "It takes a minute or two, and several more with --engines."
GPT2_TAKES = "It takes half a gigabyte of disk and of memory, and two minutes."


def default_run(path, plan):
    """Rows on the whole default command."""
    command = [sys.executable, os.path.abspath(microgpt.__file__), path]
    if plan.quick:
        command += ["--steps", "5", "--samples", "2"]
    seconds, peak, _ = watch("default run", command)
    row("default run, time", seconds, "s", "5 steps only" if plan.quick else "")
    row("default run, peak memory", peak or "not available", "MB")


def new_trainer(documents, tokenizer, engine=None, **options):
    """A Trainer of a new model for the usual job, which will not come to its end."""
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    config = microgpt.TrainConfig(steps=10**9, clip=0.0, val_fraction=0.0, **options)
    return microgpt.Trainer(model, tokenizer, documents, config, engine)


def training(documents, tokenizer, plan, baseline, engines):
    """Rows on steps of one document, of all engines: {name: a function that makes one}.

    The baseline warms up in each round, as it starts anew.
    """
    others = {"baseline": lambda: baseline.training(plan)} if baseline else {}
    steps = {}
    for name, make_engine in engines.items():
        trainer = new_trainer(documents, tokenizer, make_engine(), batch_size=1)
        steps[name] = trainer.__next__
    times = steps_in_rounds("training", steps, plan, others)
    rows("training", times, "ms/document", 1000, to="baseline")


def workers(documents, tokenizer, plan):
    """Rows on batches of 32 documents with 1 and with 2 processes."""
    with ExitStack() as stack:
        steps = {}
        for n, name in [(1, "1 worker"), (2, "2 workers")]:
            trainer = new_trainer(documents, tokenizer, batch_size=32, workers=n)
            stack.callback(trainer.close)
            steps[name] = trainer.__next__
        times = steps_in_rounds("batch of 32", steps, plan)
    rows("batch of 32", times, "ms/step", 1000, to="1 worker")


def write_names(model, end):
    """Names without end: yields when a token is drawn, and it may be the end of one."""
    rng = random.Random(0)
    while True:
        n_written = 0
        for token in microgpt.stream(model, [end], rng=rng, max_tokens=BLOCK):
            n_written += 1
            yield token
        if n_written < BLOCK:
            yield end


def writing(documents, tokenizer, plan, baseline):
    """Rows on writing, after as few steps as the baseline makes."""
    trainer = new_trainer(documents, tokenizer, batch_size=1)
    for _ in range(FIRST_STEPS):
        next(trainer)
    steps = {"tensor": write_names(trainer.model, tokenizer.end).__next__}
    others = {"baseline": baseline.writing} if baseline else {}
    times = steps_in_rounds("writing", steps, plan, others)
    if None in times.get("baseline", []):
        del times["baseline"]
        row("writing, baseline", "not measured")
    rows("writing", times, "ms/token", 1000, to="baseline")


def measure(options):
    """Measure everything, and print the table."""
    path = options.file or microgpt.find_beside("data", "names.txt")
    documents = microgpt.load_documents(path)
    baseline = None
    if options.baseline:
        baseline = Baseline(options.baseline, options.baseline_python, documents)
    python = platform.python_implementation()
    plan = Plan(3.0, 1.0 if python == "CPython" else 5.0, quick=False)
    if options.quick:
        plan = Plan(0.05, 0.05, quick=True)
    print(
        f"microgpt {microgpt.__version__}, {python} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors\n"
    )
    default_run(path, plan)  # while this process is small
    if options.gpt2:
        gpt2(plan)
    tokenizer = microgpt.CharTokenizer(documents)
    documents = [document[: BLOCK - 1] for document in documents]
    engines = dict(microgpt.ENGINES)
    if options.engines:
        engines.update(installed_engines())
    training(documents, tokenizer, plan, baseline, engines)
    workers(documents, tokenizer, plan)
    writing(documents, tokenizer, plan, baseline)
    bpe(plan)
    if options.engines:
        compare_engines(
            engines, documents, tokenizer, plan, options.nanogpt, options.gpt2
        )


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("benchmark", __doc__, TAKES)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=not_empty,
        help="Documents, one a line (bundled names).",
    )
    for name, word, sentence in [
        ("--baseline", "SCRIPT.py", "Compare with another GPT, a script."),
        ("--baseline-python", "PYTHON", "The interpreter that runs it (this one)."),
        ("--nanogpt", "PATH", "With --engines: also nanoGPT, where its model.py is."),
    ]:
        parser.add_argument(name, metavar=word, type=not_empty, help=sentence)
    for name, sentence in [
        ("--engines", "Also measure the engines of examples/engines/, if installed."),
        ("--gpt2", f"Also measure a model of GPT-2's smallest shape. {GPT2_TAKES}"),
        ("--quick", "Measure badly, in a few seconds."),
    ]:
        parser.add_argument(name, action="store_true", help=sentence)
    parser.set_defaults(baseline_python=sys.executable)
    return run_command("benchmark", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
