"""Chapter 17: every option of every command. It is taken, or refused by name."""

import os
import re

import pytest
from helpers import NAMES, TINY, fails, is_one_line, samples, works

import microgpt
from microgpt import DEFAULTS, GPT, CharTokenizer, Config, TensorEngine, TrainConfig

MODEL = ["n-layer", "n-head", "n-embd", "block-size", "tokenizer", "vocab-size"]
TRAINING = [
    "steps",
    "batch-size",
    "lr",
    "warmup",
    "weight-decay",
    "clip",
    "val-fraction",
    "eval-every",
    "engine",
    "workers",
    "seed",
]
WRITING = ["samples", "prompt", "temperature", "top-k", "top-p", "max-tokens"]
KEEPING = ["save", "resume", "quiet"]
ALL = {*MODEL, *TRAINING, *WRITING, *KEEPING}


class Mine(TensorEngine):
    """An engine that a program brings. It notes what is asked of it."""

    name = "mine"

    def __init__(self):
        self.asked = []

    def new_model(self, config, seed):
        self.asked.append(f"new model, {config.n_embd} wide, of seed {seed}")
        return super().new_model(config, seed)

    def gradients(self, model, batch):
        self.asked.append("gradients")
        return super().gradients(model, batch)

    def write_tensors(self, tensors, dtype="F64", **metadata):
        self.asked.append("write")
        return super().write_tensors(tensors, dtype, **metadata)

    def about(self):
        return "my own arithmetic"

    def rate(self, tokens_per_second):
        return "as fast as it is"

    def close(self):
        self.asked.append("close")


def beginning():
    """A model, and its tokenizer, to be trained further."""
    tokenizer = CharTokenizer(NAMES)
    model = GPT(Config(tokenizer.vocab_size, block_size=9, n_embd=12), seed=3)
    return model, tokenizer


def engine_and_start(has_engine, has_start):
    """The arguments of main() after argv."""
    return {
        "engine": Mine() if has_engine else None,
        "start": beginning() if has_start else None,
    }


# How a command begins, whether main() gets an engine and a model, and the options that
# the command then has.
COMMANDS = {
    "train": (["train"], (False, False), ALL),
    "nothing": ([], (False, False), ALL),
    "file": (["names.txt"], (False, False), ALL),
    "engine": (["names.txt"], (True, False), ALL - {"engine", "workers"}),
    "start": (["names.txt"], (False, True), ALL - {*MODEL, "resume"}),
    "both": (
        ["names.txt"],
        (True, True),
        ALL - {*MODEL, "resume", "engine", "workers"},
    ),
    "sample": (["sample", "kept"], (False, False), {*WRITING, "seed"}),
    "tokenize": (["tokenize", "kept", "ada"], (False, False), set()),
}
EACH_COMMAND = pytest.mark.parametrize(
    "argv, brought, options", COMMANDS.values(), ids=COMMANDS
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder with names.txt, and with a model in kept/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    model, tokenizer = beginning()
    microgpt.save_model(model, "kept", tokenizer)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command in this process -> (its status, its output, its errors)"""

    def run_main(*argv, **brought):
        capsys.readouterr()
        status = microgpt.main(list(argv), **brought)
        return (status, *capsys.readouterr())

    return run_main


def succeeds(result):
    """It ended well -> what it printed."""
    status, output, error = result
    assert (status, error) == (0, "")
    return output


def refuses(result, *words):
    """It failed before it did anything, with one line that has these words."""
    status, output, error = result
    assert 0 < status < 128 and output == ""
    assert is_one_line(error), error
    for word in words:
        assert word in error


@pytest.fixture
def parser_of(monkeypatch):
    """The parser that main() makes for a command line."""

    def find_parser(argv, **brought):
        found = []

        def note_parser(command, parser, argv):
            found.append(parser)

        with monkeypatch.context() as patch:
            patch.setattr(microgpt, "parse", note_parser)
            assert microgpt.main(argv, **brought) == 0
        return found[0]

    return find_parser


def options_of(parser):
    """{option: whether it takes a value} of a parser, except for --n."""
    found = {}
    for action in parser._actions:
        for name in action.option_strings:
            if name != "--n":
                found[name[2:]] = action.nargs != 0
    return found


# --- what there is, and what is refused -----------------------------------------------


@EACH_COMMAND
def test_a_command_has_just_these_options(parser_of, argv, brought, options):
    parser = parser_of(argv, **engine_and_start(*brought))
    assert options_of(parser).keys() == options


@EACH_COMMAND
def test_every_other_option_is_refused_by_name(run, argv, brought, options):
    wrong = [f"--{name}" for name in ALL - options]
    wrong += ["--n_embd", "--step", "--Steps", "--help-me", "--bogus", "-x", "-n"]
    for option in wrong:
        for given in ([option, "1"], [option], [f"{option}=1"]):
            result = run(*argv, *given, **engine_and_start(*brought))
            name = "train" if "kept" not in argv else argv[0]
            refuses(result, f"{name} does not take the option {option}", "--help")
    assert os.listdir("kept") and not os.path.exists("1")


@pytest.mark.parametrize(
    "argv", [["names.txt"], ["sample", "kept"], ["tokenize", "kept", "ada"]]
)
def test_an_error_is_one_line_whatever_it_quotes(run, argv):
    for wrong in ("--a\nb", "a\nb", "--a\x1b[31m", "\ud800", "a\u2028"):
        status, output, error = run(*argv, wrong)
        assert 0 < status < 128 and output == ""
        assert is_one_line(error) and error.strip("\n").isprintable(), ascii(error)


@EACH_COMMAND
def test_an_option_without_its_value_is_refused(parser_of, run, argv, brought, options):
    takes_value = options_of(parser_of(argv, **engine_and_start(*brought)))
    for name in options:
        if takes_value[name]:
            result = run(*argv, f"--{name}", **engine_and_start(*brought))
            refuses(result, f"--{name}", "expected one argument")
        else:
            result = run(*argv, f"--{name}=1", **engine_and_start(*brought))
            refuses(result, f"--{name}", "'1'")


@pytest.mark.parametrize("value", ["char", "bpe"])
def test_the_tokenizer_of_a_saved_training_cannot_be_changed(run, value):
    succeeds(run(*TINY, "--save", "on", "--quiet"))
    resume = ["names.txt", "--resume", "on", "--steps", "9"]
    refuses(run(*resume, "--tokenizer", value), "--tokenizer", "--resume")
    refuses(run(*resume, "--vocab-size", "300"), "--vocab-size", "--resume")


def test_the_size_of_the_vocabulary_is_refused_where_characters_decide(run):
    refuses(run("names.txt", "--vocab-size", "300"), "--vocab-size", "--tokenizer bpe")
    char = ["--tokenizer", "char", "--vocab-size", "512"]
    refuses(run("names.txt", *char), "--vocab-size", "--tokenizer bpe")


@pytest.mark.parametrize("option", ["save", "resume"])
def test_a_directory_without_a_name_is_refused(run, option):
    refuses(run("names.txt", f"--{option}", ""), option, "''")


# --- numbers --------------------------------------------------------------------------

COUNTS = ["n-layer", "n-head", "n-embd", "block-size", "vocab-size"]
COUNTS += ["steps", "batch-size", "workers", "max-tokens"]
SHARES = ["lr", "weight-decay", "clip", "temperature"]
WRONG = [  # options, and values that they refuse
    (COUNTS, ["0", "-1", "1.5", "many", "nan", ""]),
    (["warmup", "eval-every", "top-k", "samples"], ["-1", "1.5", "many", "nan", ""]),
    (["seed"], ["1.5", "many", "nan", ""]),
    (SHARES, ["-1", "-0.001", "nan", "inf", "many", ""]),
    (["val-fraction"], ["-0.1", "1", "nan", "inf", "many", ""]),
    (["top-p"], ["-0.1", "1.1", "nan", "inf", "many", ""]),
]
CASES = [(x, y) for names, values in WRONG for x in names for y in values]
LEAST = {"vocab-size": "257", **dict.fromkeys(COUNTS[:4], "1")}


@pytest.mark.parametrize("name, value", CASES)
def test_a_number_that_cannot_be_is_refused_with_what_can_be(run, name, value):
    argv = ["names.txt", "--tokenizer", "bpe", f"--{name}", value]
    status, output, error = run(*argv)
    assert 0 < status < 128 and output == ""
    assert is_one_line(error), error
    assert name in error.replace("_", "-") and value in error
    if "must be" in error:  # it is a number
        low = microgpt.LIMITS.get(name.replace("-", "_"), (None, "0"))[1]
        assert f" {LEAST.get(name, low)} " in error
    else:
        assert re.search(f"invalid (int|float) value: '{value}'", error)


def test_these_are_all_the_options_that_take_a_number():
    numbers = []
    for name, default in DEFAULTS.items():
        if type(default) in (int, float):
            numbers.append(name.replace("_", "-"))
    assert sorted(numbers) == sorted(name for names, _ in WRONG for name in names)


@pytest.mark.parametrize("name, value", [case for case in CASES if case[0] in WRITING])
def test_sample_refuses_the_same_numbers(run, name, value):
    status, output, error = run("sample", "kept", f"--{name}", value)
    assert 0 < status < 128 and output == ""
    assert is_one_line(error) and name in error.replace("_", "-") and value in error


# --- defaults -------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_library():
    for kind in (TrainConfig(), Config(vocab_size=512)):
        for name, value in vars(kind).items():
            assert (DEFAULTS[name], type(DEFAULTS[name])) == (value, type(value))
    assert {name.replace("_", "-") for name in DEFAULTS} == ALL
    assert (DEFAULTS["samples"], DEFAULTS["temperature"]) == (20, 0.7)


def test_a_training_writes_20_samples_unless_told(run):
    assert len(samples(succeeds(run("names.txt", "--steps", "3")))) == 20


def without_speed(output):
    return re.sub(r"[\d,]+ tokens/s  \d+:\d\d left", "", output)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_to_give_the_defaults_changes_nothing(run, monkeypatch, kind):
    monkeypatch.setitem(DEFAULTS, "steps", 3)
    given = []
    for name, value in DEFAULTS.items():
        if name == "vocab_size" and kind == "char":
            continue
        if name not in ("save", "resume", "quiet", "tokenizer"):
            given.append(f"--{name.replace('_', '-')}={value}")
    plain = succeeds(run("names.txt", "--tokenizer", kind))
    full = succeeds(run("names.txt", "--tokenizer", kind, *given))
    assert without_speed(full) == without_speed(plain) != plain


def test_sample_has_defaults_of_its_own(run):
    assert len(succeeds(run("sample", "kept")).splitlines()) == 5
    plain = ["--seed", "1"]
    full = ["--n=5", "--temperature=0.7", "--top-k=0", "--top-p=1", "--max-tokens=200"]
    texts = succeeds(run("sample", "kept", *plain))
    assert succeeds(run("sample", "kept", *plain, *full)) == texts
    hotter = [*plain, "--temperature", "1"]
    assert succeeds(run("sample", "kept", *hotter)) != texts


@pytest.mark.parametrize("name", ["--samples", "--n"])
def test_the_number_of_samples_has_two_names(run, name):
    assert len(succeeds(run("sample", "kept", name, "3")).splitlines()) == 3
    assert len(samples(succeeds(run(*TINY, name, "7")))) == 7


def test_words_and_options_may_come_in_any_order(run):
    texts = succeeds(run("sample", "kept", "--seed", "1", "--n", "3"))
    assert succeeds(run("sample", "--seed", "1", "kept", "--n", "3")) == texts
    assert succeeds(run("sample", "--seed=1", "--n=3", "kept")) == texts
    trained = succeeds(run(*TINY, "--quiet"))
    assert succeeds(run(*TINY[1:], "--quiet", "names.txt")) == trained
    assert succeeds(run("train", *TINY[1:], "--quiet", "names.txt")) == trained


# --- help -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "--help"])
@EACH_COMMAND
def test_help_is_given_and_nothing_else_done(run, argv, brought, options, option):
    for given in ([*argv, option], [*argv, option, "--bogus", "--steps", "many"]):
        output = succeeds(run(*given, **engine_and_start(*brought)))
        assert output.startswith("usage: python microgpt.py ")
        listed = re.findall(r"^  --([a-z-]+)", output, re.MULTILINE)
        assert sorted(listed) == sorted(options)
    assert sorted(os.listdir()) == ["kept", "names.txt"]


@pytest.mark.parametrize("command", ["train", "sample", "tokenize"])
def test_help_needs_no_other_words(run, command):
    help_of_command = succeeds(run(command, "--help"))
    assert succeeds(run(command, "-h")) == help_of_command
    usage = help_of_command.splitlines()[0]
    words = {"train": "[train] [FILE]", "sample": "DIR", "tokenize": "DIR TEXT"}
    assert command in usage and words[command] in usage


@EACH_COMMAND
def test_help_tells_the_defaults(run, argv, brought, options):
    output = succeeds(run(*argv, "--help", **engine_and_start(*brought)))
    joined = re.sub(r"\n {10,}", " ", output)
    defaults = {"samples": 5, "seed": ""} if argv[0:1] == ["sample"] else {}
    for name in options:
        default = defaults.get(name, DEFAULTS[name.replace("-", "_")])
        line = re.search(f"^  --{name}.*$", joined, re.MULTILINE)[0]
        if default == "" or default is False:
            assert not line.endswith(")")
        else:
            assert line.endswith(f" ({default})")


@pytest.mark.parametrize("columns", [None, "80", "40", "1"])
@pytest.mark.parametrize("command", [[], ["sample"], ["tokenize"]])
def test_help_has_80_columns_at_most(monkeypatch, command, columns):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    environment.pop("COLUMNS", None)
    if columns is not None:
        environment["COLUMNS"] = columns
    output = works(*command, "--help", env=environment)
    assert max(map(len, output.splitlines())) <= 80


# --- words ----------------------------------------------------------------------------

PROGRAMS = ["train", "sample", "tokenize", "explain", "graph", "ladder", "_common"]


@pytest.mark.parametrize("name", [*PROGRAMS, "xray", "microgpt", "a b", "é"])
def test_a_file_with_the_name_of_a_command_is_trained_on(folder, run, name):
    os.rename("names.txt", name)
    for argv in ([name, *TINY[1:]], [os.path.join(".", name), *TINY[1:]]):
        output = succeeds(run(*argv))
        assert f"documents   {argv[0]}: 20, of which 2 held out\n" in output
        assert len(samples(output)) == 2


def test_a_directory_with_the_name_of_a_command_is_not_in_the_way(folder, run):
    for name in ("train", "sample", "tokenize"):
        os.rename("kept", name)
        assert len(succeeds(run("sample", name)).splitlines()) == 5
        assert "3 tokens" in succeeds(run("tokenize", name, "ada"))
        assert len(samples(succeeds(run("train", *TINY)))) == 2
        os.rename(name, "kept")


@pytest.mark.parametrize(
    "word", ["nothing", "trian", "_common", "__init__", "tracing", "../microgpt", "a.b"]
)
def test_a_word_that_is_neither_a_file_nor_a_command_is_a_missing_file(run, word):
    refuses(run(word), repr(word), "No such file")
    refuses(run("train", word), repr(word), "No such file")


def test_an_empty_word_is_a_missing_file(run):
    refuses(run(""), "''")
    refuses(run("train", ""), "''")


# --- main(argv, engine, start) --------------------------------------------------------


def test_main_computes_with_the_engine_that_it_is_given(run):
    engine = Mine()
    output = succeeds(run(*TINY, "--seed", "7", engine=engine))
    assert "lr 0.01, my own arithmetic\n" in output
    assert "  as fast as it is  " in output and "tokens/s" not in output
    assert engine.asked[0] == "new model, 8 wide, of seed 7"
    assert engine.asked[1:4] == ["gradients"] * 3
    assert set(engine.asked[4:]) == {"close"}
    plain = succeeds(run(*TINY, "--seed", "7"))
    assert output[output.index("\nloss") :] == plain[plain.index("\nloss") :]


def test_main_saves_and_goes_on_with_the_engine_that_it_is_given(run):
    engine = Mine()
    succeeds(run(*TINY, "--save", "on", engine=engine))
    assert engine.asked.count("write") == 2  # the model, and its averages
    engine.asked.clear()
    succeeds(run("names.txt", "--resume", "on", "--steps", "5", engine=engine))
    assert engine.asked.count("gradients") == 2 and engine.asked.count("write") == 2


def test_an_engine_may_train_a_model_that_is_too_large_for_lists(run, monkeypatch):
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1000)
    refuses(run(*TINY), "1,200 parameters", "n_embd")
    assert len(samples(succeeds(run(*TINY, engine=Mine())))) == 2


@pytest.mark.parametrize("engine", [None, Mine()])
def test_main_trains_the_model_that_it_is_given_further(run, engine):
    model, tokenizer = beginning()
    before = model.convert(float).params
    argv = ["names.txt", "--steps", "4", "--lr", "0.02", "--save", "on", "--seed", "3"]
    output = succeeds(run(*argv, engine=engine, start=(model, tokenizer)))
    assert "block_size 9" in output and "n_embd 12" in output
    config = TrainConfig(steps=4, lr=0.02, seed=3)
    same = microgpt.Trainer(GPT(model.config, before), tokenizer, NAMES, config)
    list(same)
    assert microgpt.load_model("on").params == same.model.params == model.params
    assert microgpt.load_tokenizer("on").vocab == tokenizer.vocab


def test_a_model_to_begin_with_must_know_the_characters_of_the_documents(run):
    model, _ = beginning()
    tokenizer = CharTokenizer([name.replace("a", "A") for name in NAMES])
    refuses(run(*TINY[:3], start=(model, tokenizer)), "'a'", "Abcdefghijklmnoprstuvy")


def test_main_does_not_change_the_arguments_that_it_is_given(run):
    argv = list(TINY)
    assert microgpt.main(argv) == 0
    assert argv == list(TINY)


def test_a_command_of_another_kind_takes_no_notice_of_engine_and_start(run):
    brought = engine_and_start(True, True)
    assert len(succeeds(run("sample", "kept", **brought)).splitlines()) == 5
    fails(["sample", "nowhere"], "nowhere")
