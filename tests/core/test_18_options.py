"""Chapter 18: every option of every command. It is taken, or refused by name."""

import inspect
import os
import re
import sys
from unittest.mock import Mock

import pytest
from helpers import NAMES, TINY, table

import microgpt
from microgpt import DEFAULTS, GPT, CharTokenizer, Config, TensorEngine, TrainConfig

pytestmark = pytest.mark.usefixtures("kept")

# Every option, with its default. Those of sample differ in two.
MODEL = {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 16}
MODEL.update(tokenizer="char", vocab_size=512)
TRAINING = {"steps": 500, "batch_size": 4, "lr": 0.01, "warmup": 40}
TRAINING.update(weight_decay=0.0, clip=1.0, val_fraction=0.1, eval_every=0)
TRAINING.update(engine="tensor", workers=1, seed=42, windows="consecutive")
WRITING = {"samples": 20, "prompt": "", "temperature": 0.7, "top_k": 0, "top_p": 1.0}
WRITING.update(max_tokens=200)
SAVING = {"save": "", "resume": "", "quiet": False}
TEXT = {"document": "line"}
ALL = {"tie_word_embeddings": True, **TEXT, **MODEL, **TRAINING, **WRITING, **SAVING}

# Whatever else has defaults, of all that a program may import
OTHER_DEFAULTS = """
    Value(children=(), local_grads=()) slope(step=1e-05) linear(bias=None)
    layernorm(eps=1e-05) Config(block_size=16, n_layer=1, n_head=4, n_embd=16,
        tie_word_embeddings=True)
    GPT(params=None, seed=0)
    AdamW(beta1=0.8, beta2=0.97, eps=1e-08, weight_decay=0.0) learning_rate(warmup=0)
    write(prompt='', temperature=1.0, max_tokens=100) tutorial(path='data/names.txt')
    Tensor(inputs=(), rule=None) PackedGPT(params=None, seed=0) Workers(executor=None)
    FastAdamW(beta1=0.8, beta2=0.97, eps=1e-08, weight_decay=0.0)
    gradcheck(engine=None, step=1e-05, tolerance=1e-06)
    TrainConfig(steps=500, batch_size=4, lr=0.01, warmup=40, weight_decay=0.0, clip=1.0,
        val_fraction=0.1, eval_every=0, engine='tensor', workers=1, seed=42,
        document='line', windows='consecutive')
    Trainer(config=None, engine=None) split_documents(val_fraction=0.1, seed=0)
    hold_out_ends(val_fraction=0.1)
    evaluate(most=500) Sampling(temperature=1.0, top_k=0, top_p=1.0)
    stream(sampling=None, rng=None, end=None, max_tokens=200)
    generate(prompt='', seed=None, max_tokens=200)
    save_model(tokenizer=None, also=None, write=None) load_training(engine=None)
    write_tensors(dtype='F64') read_tensors(code=None, is_exact=True)
    parameter_count(part='')
    score(k=3) reading(copied=0.0) load_documents(document='line')
    main(argv=None, engine=None, start=None)
"""

# An option, values that it refuses, and the least and the most that it takes.
LIMITED = """
    n-layer       0 -1 1000 1.5 nan        1 999
    n-head        0 -1 1000001 1.5         1 1000000
    n-embd        0 -1 1000001 1.5         1 1000000
    block-size    0 -1 1000001 1.5         1 1000000
    vocab-size    0 256 1000001 1.5        257 1000000
    steps         0 -1 1000000001 1.5 nan  1 1000000000
    batch-size    0 -1 100001 1.5          1 100000
    workers       0 -1 100001 1.5          1 100000
    max-tokens    0 -1 1000000001 1.5      1 1000000000
    warmup        -1 1000000001 1.5        0 1000000000
    eval-every    -1 1000000001 1.5        0 1000000000
    top-k         -1 1000000001 1.5        0 1000000000
    seed          1.5 nan inf              -inf inf
    lr            -0.001 100.1 nan inf     0 100
    weight-decay  -0.001 100.1 nan         0 100
    clip          -0.001 1000000001.0 inf  0 1000000000
    temperature   -0.001 1000001.0 inf     0 1000000
    val-fraction  -0.001 0.991 1.0 nan     0 0.99
    top-p         -0.001 1.001 nan         0 1
"""
LIMITED = [line.split() for line in LIMITED.strip().splitlines()]
NUMBERS = [(x, y, *rest[-2:]) for x, *rest in LIMITED for y in [*rest[:-2], "many", ""]]


def my_engine():
    """An engine that a program brings. Its `method_calls` are what was asked of it."""
    engine = Mock(wraps=TensorEngine())
    engine.about.return_value = "my own arithmetic"
    engine.rate.return_value = "as fast as it is"
    return engine


def asked_of(engine):
    return [call[0] for call in engine.method_calls]


def beginning():
    """A model, and its tokenizer, to be trained further."""
    tokenizer = CharTokenizer(NAMES)
    model = GPT(Config(tokenizer.vocab_size, block_size=9, n_embd=12), seed=3)
    return model, tokenizer


# How a command begins, what main() gets beside it, and the options that there are then.
ENGINE = {"engine": my_engine()}
START = {"start": beginning()}
GROUPS = {
    "text": TEXT,
    "model": MODEL,
    "training": TRAINING,
    "writing": WRITING,
    "saving": SAVING,
}
FOR_SAMPLE = {"writing": {**WRITING, "samples": 5, "seed": ""}}


def all_but(*names):
    """The groups of options without these."""
    left = {}
    for title, group in GROUPS.items():
        left[title] = {name: x for name, x in group.items() if name not in names}
    return {title: group for title, group in left.items() if group}


EACH_COMMAND = pytest.mark.parametrize(
    "argv, brought, groups",
    [
        (["train"], {}, GROUPS),
        ([], {}, GROUPS),
        (["names.txt"], {}, GROUPS),
        (["names.txt"], ENGINE, all_but("engine", "workers")),
        (["names.txt"], START, all_but(*MODEL, "resume")),
        (
            ["names.txt"],
            {**ENGINE, **START},
            all_but(*MODEL, "resume", "engine", "workers"),
        ),
        (["sample", "kept"], {**ENGINE, **START}, FOR_SAMPLE),
        (["tokenize", "kept", "ada"], {**ENGINE, **START}, {}),
    ],
)


def dashes(name):
    return name.replace("_", "-")


# --- defaults and limits --------------------------------------------------------------


def test_these_are_all_the_defaults():
    assert repr(sorted(DEFAULTS.items())) == repr(sorted(ALL.items()))  # 0.0 is not 0
    assert (microgpt.MOST_PARAMETERS, microgpt.SAVE_EVERY) == (10**7, 60)
    found = []
    for name in microgpt.__all__:
        thing = getattr(microgpt, name)
        parameters = inspect.signature(thing).parameters if callable(thing) else {}
        defaults = []
        for parameter in parameters.values():
            if parameter.default is not parameter.empty:
                defaults.append(f"{parameter.name}={parameter.default!r}")
        if defaults and name not in ("differentiable", "make_parser"):
            found.append(f"{name}({', '.join(defaults)})")
    assert " ".join(found) == " ".join(OTHER_DEFAULTS.split())


@pytest.mark.parametrize("name, value, least, most", NUMBERS)
def test_a_number_that_cannot_be_is_refused_with_what_can_be(
    run, name, value, least, most
):
    kind = type(ALL[name.replace("-", "_")])
    number = "a whole number" if kind is int else "a number"
    words = [f"is {value}: must be {number} from {least} to {most}\n"]
    try:
        kind(value)
    except ValueError:
        words = [f"--{name}", f"invalid {kind.__name__} value: '{value}'"]
    run.fails(["names.txt", "--tokenizer=bpe", f"--{name}={value}"], *words)
    if name.replace("-", "_") in WRITING:
        run.fails(["sample", "kept", f"--{name}={value}"], *words)


@pytest.mark.parametrize("name, least, most", [(x[0], *x[-2:]) for x in LIMITED])
def test_the_least_and_the_most_are_taken(name, least, most):
    name = name.replace("-", "_")
    if name in MODEL:
        for x in (int(least), int(most)):
            Config(**{"vocab_size": 9, "n_head": 1, "n_embd": x, name: x})
    elif name != "seed":
        kind = type(ALL[name])
        for x in (kind(least), kind(most)):
            assert microgpt.out_of_range(name, x) is None


# --- options --------------------------------------------------------------------------


@EACH_COMMAND
def test_help_lists_just_these_options_and_their_defaults(run, argv, brought, groups):
    output = run.works(*argv, "--help", **brought)
    assert max(map(len, output.splitlines())) <= 80
    assert run.works(*argv, *"-h --bogus --steps many".split(), **brought) == output
    assert run.works(*argv[:1], "--help", **brought) == output
    assert sorted(os.listdir()) == ["kept", "names.txt"]

    command = argv[0] if argv[:1] in (["sample"], ["tokenize"]) else "train"
    usage = inspect.getdoc(getattr(microgpt, f"{command}_command"))
    pattern = ""
    for title, group in groups.items():
        pattern += f"\n{title}:\n"
        for name, default in group.items():
            pattern += f"  --{dashes(name)}"
            pattern += "" if default is False else ".* X"
            pattern += r" .*[.]"
            if default != "" and default is not False:
                pattern += re.escape(f" ({default})")
            pattern += "\n"
    assert output.startswith(f"{usage}\n")
    listed = re.sub(r"\n {10,}", " ", output[len(usage) + 1 :])
    assert re.fullmatch(pattern, listed), listed


@EACH_COMMAND
def test_every_other_option_is_refused_by_name(run, argv, brought, groups):
    taken = {name for group in groups.values() for name in group}
    wrong = [f"--{dashes(name)}" for name in {*ALL} - taken]
    wrong += ["--n_embd", "--step", "--Steps", "--help-me", "--bogus", "-x", "-n"]
    for option in wrong:
        for given in ([option, "1"], [option], [f"{option}=1"]):
            name = "train" if "kept" not in argv else argv[0]
            message = f"{name} does not take the option {given[0]} (see --help)\n"
            run.fails([*argv, *given], message, **brought)
    assert not os.path.exists("1")


@EACH_COMMAND
def test_an_option_without_its_value_is_refused(run, argv, brought, groups):
    for group in groups.values():
        for name, default in group.items():
            wrong = [f"--{dashes(name)}", "expected one argument"]
            if default is False:
                wrong = [f"--{dashes(name)}=1", "'1'"]
            run.fails([*argv, wrong[0]], dashes(name), wrong[1], **brought)


@pytest.mark.parametrize("argv", ["names.txt", "sample kept", "tokenize kept ada"])
@pytest.mark.parametrize("word", ["--a\nb", "a\nb", "--a\x1b[31m", "\ud800", "a\u2028"])
def test_an_error_is_one_line_whatever_it_quotes(run, argv, word):
    run.fails([*argv.split(), word])


IMPOSSIBLE = """
    --vocab-size 300 -> --vocab-size|--tokenizer bpe
    --tokenizer char --vocab-size 512 -> --vocab-size|--tokenizer bpe
    --tokenizer words -> 'words'|char or bpe
    --engine magic -> 'magic'|tensor, value
    --workers 5 -> workers is 5|from 1 to 4
    --n-embd 18 -> n_embd is 18|n_head
    --n-embd 18 --tokenizer bpe --vocab-size 256 -> n_embd is 18|n_head
    --n-embd 1000000 -> parameters|n_embd
    --samples -1 -> samples is -1: must be 0 or more
    --prompt adz -> 'z'|'abcdefghijklmnoprstuvy'
    --save= -> save is ''|directory
    --resume= -> resume is ''|directory
    --save names.txt -> names.txt is a file: name a directory
    --resume nowhere -> nowhere|No such file
"""


@pytest.mark.parametrize("argv, words", table(IMPOSSIBLE))
def test_an_option_that_cannot_be_is_one_line(run, argv, words):
    run.fails(["names.txt", *argv.split()], *words.split("|"))
    run.fails(["train", *argv.split(), "names.txt"], words.split("|")[0])


def test_words_and_options_may_come_in_any_order(run):
    texts = run.works("sample", "kept", "--seed", "1", "--n", "3")
    assert len(texts.splitlines()) == 3
    assert run.works("sample", "--seed", "1", "kept", "--samples=3") == texts
    trained = run.works(*TINY, "--quiet")
    assert run.works(*TINY[1:], "--quiet", "names.txt") == trained
    assert run.works("train", *TINY[1:], "--quiet", "names.txt") == trained


# --- words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", "train sample explain _common xray é".split() + ["a b"]
)
def test_a_file_with_the_name_of_a_command_is_trained_on(run, name):
    os.rename("names.txt", name)
    for path in (name, os.path.join(".", name)):
        output = run.works(path, *TINY[1:])
        assert f"documents   {path}: 20 lines, of which 2 held out\n" in output


def test_a_directory_with_the_name_of_a_command_is_not_in_the_way(run):
    for name in ("train", "sample", "tokenize"):
        os.rename("kept", name)
        assert len(run.works("sample", name).splitlines()) == 5
        assert "3 tokens" in run.works("tokenize", name, "ada")
        assert "step 3/3" in run.works("train", *TINY)
        os.rename(name, "kept")


@pytest.mark.parametrize(
    "word", ["nothing", "_common", "__init__", "tracing", "../microgpt", "a.b", ""]
)
def test_a_word_that_is_neither_a_file_nor_a_command_is_a_missing_file(run, word):
    run.fails([word], repr(word))
    run.fails(["train", word], repr(word))


def test_a_program_in_examples_gets_the_other_words(run, folder, monkeypatch):
    (folder / "examples").mkdir()
    text = "def main(argv):\n    print(argv)\n    return 7\n"
    (folder / "examples" / "program.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(microgpt, "find_beside", os.path.join)
    assert run.main(["program", "a", "--b"]) == (7, "['a', '--b']\n", "")
    assert sys.path[0] == "examples"


# --- main(argv, engine, start) --------------------------------------------------------


def test_main_computes_with_the_engine_that_it_is_given(run):
    engine = my_engine()
    output = run.works(*TINY, "--seed", "7", "--save", "on", engine=engine)
    assert "lr 0.01, my own arithmetic\n" in output
    assert "  as fast as it is  " in output and "tokens/s" not in output
    asked = asked_of(engine)
    assert engine.new_model.call_args[0][1] == 7 and asked[-1] == "close"
    assert asked.count("gradients") == 3
    assert asked.count("write_tensors") == 2  # the model, and its averages
    plain = run.works(*TINY, "--seed", "7")
    assert output[output.index("\n    ") :] == plain[plain.index("\n    ") :]
    engine.reset_mock()
    run.works("names.txt", "--resume", "on", "--steps", "5", engine=engine)
    asked = asked_of(engine)
    assert asked.count("gradients") == asked.count("write_tensors") == 2


def test_an_engine_may_train_a_model_that_is_too_large_for_lists(run, monkeypatch):
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1200)
    resume = ["names.txt", "--resume", "kept"]
    run.works(*TINY)
    run.works(*resume, "--steps", "4")
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1199)
    for argv in (TINY, [*resume, "--steps", "9"]):
        run.fails(argv, "1,200 parameters", "n_embd")
        run.works(*argv, engine=my_engine())


@pytest.mark.parametrize("engine", [None, my_engine()])
def test_main_trains_the_model_that_it_is_given_further(run, engine):
    model, tokenizer = beginning()
    same = GPT(model.config, model.convert(float).params)
    argv = ["names.txt", "--steps=4", "--lr=0.02", "--save=on", "--seed=3"]
    run.works(*argv, engine=engine, start=(model, tokenizer))
    config = TrainConfig(steps=4, lr=0.02, seed=3)
    list(microgpt.Trainer(same, tokenizer, NAMES, config))
    assert microgpt.load_model("on").params == same.params == model.params
    assert microgpt.load_tokenizer("on").vocab == tokenizer.vocab


def test_a_model_to_begin_with_must_know_the_characters_of_the_documents(run):
    model, _ = beginning()
    tokenizer = CharTokenizer([name.replace("a", "A") for name in NAMES])
    run.fails(TINY[:3], "'a'", "Abcdefghijklmnoprstuvy", start=(model, tokenizer))
