"""Chapter 15 and the transformers library: each opens what the other saves.

Both then compute the same.
"""

import copy

import pytest
from helpers import close, flat, shaken

import microgpt
from microgpt import END, GPT, Config, load_model, load_tokenizer, save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

FOUR = transformers.__version__.startswith("4.")
DOCUMENTS = """
a low lower lowest tower
a slow slower snow, and so on
  who?  Café Noël!
it's 'n' we'll 👩\u200d👧 🙂🙂 naïve ...
x_1 = 25½ . , ; y
天地玄黃 いろは
e\u0301\t\u200b
""".strip().split("\n")
TEXTS = [*DOCUMENTS, END, END + END, f"{END}a low", f"a {END} b", f"a{END}  b{END}"]
TEXTS += "| |  | a|a |  a  |a  b|a   low|no .|so , on ?|!|wow ! n't 's|é|🙂".split("|")
TEXTS += " 🙂 |we 'll do n't|a\tb| \t |½ 1½|snow天 地|'S we'LL".split("|")
TEXTS += ["<|endo", "|>"]
SHAPES = [(8, 1, 1, 4), (16, 2, 2, 8), (12, 3, 3, 6), (24, 1, 4, 16), (9, 2, 1, 5)]
TOKENIZERS = {
    "char": microgpt.CharTokenizer(text.replace(END, "") for text in TEXTS),
    "bpe": microgpt.BPETokenizer.train(DOCUMENTS, 300),
}
every_tokenizer = pytest.mark.parametrize("ours", TOKENIZERS.values(), ids=TOKENIZERS)


def some_ids(n, vocab_size):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(vocab_size, (n,), generator=generator).tolist()


def assert_same_logits(ours, theirs, ids, relative=1e-9):
    """The error is relative to the largest logit."""
    with torch.no_grad():
        there = theirs.eval()(torch.tensor([ids])).logits[0].double()
    here = torch.tensor(ours(ids), dtype=torch.float64)
    assert here.shape == there.shape
    assert (here - there).abs().max() <= relative * there.abs().max()


def assert_writes_the_same(ours, theirs, ids, end, n=20):
    """n tokens, the likeliest each time, or fewer if the end comes before."""
    n = min(n, ours.config.block_size - len(ids))
    likeliest = microgpt.Sampling(temperature=0)
    here = list(microgpt.stream(ours, ids, likeliest, end=end, max_tokens=n))
    options = {"do_sample": False, "max_new_tokens": n, "pad_token_id": end}
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    there = theirs.eval().generate(tokens, attention_mask=mask, **options)[0].tolist()
    there = there[len(ids) :]
    assert here == (there[: there.index(end)] if end in there else there)
    return here


# --- ours, opened there ---


@every_tokenizer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_model_computes_and_writes_the_same_there(tmp_path, shape, ours):
    model = shaken(GPT(Config(ours.vocab_size, *shape), seed=1))
    save_model(model, tmp_path, ours)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert type(theirs) is GPT2LMHeadModel and theirs.dtype == torch.float64
    assert not any(info.values()), info
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    found = dict(theirs.transformer.named_parameters())
    assert found.keys() == model.params.keys()
    for name, x in model.params.items():
        there = found[name].T if microgpt.is_linear_weight(name) else found[name]
        assert there.tolist() == x
    for n in (1, 2, shape[0]):
        assert_same_logits(model, theirs, some_ids(n, ours.vocab_size))
    assert_writes_the_same(model, theirs, ours.encode(f"{END}a l"), ours.end)


@every_tokenizer
def test_our_tokenizer_gives_the_same_ids_and_text_there(tmp_path, ours):
    save_model(GPT(Config(ours.vocab_size, *SHAPES[0])), tmp_path, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size and theirs.get_vocab() == ours.vocab
    for text in TEXTS:
        found = theirs(text)
        assert set(found) == {"input_ids", "attention_mask"}  # and no token_type_ids
        ids = ours.encode(text)
        assert found["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
    several = theirs(["a low", "a"])["input_ids"]
    assert several == [ours.encode("a low"), ours.encode("a")]


@every_tokenizer
def test_our_end_is_begin_and_end_there(tmp_path, ours):
    save_model(GPT(Config(ours.vocab_size, *SHAPES[0])), tmp_path, ours)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for holder in (tokenizer, model.config, model.generation_config):
        assert holder.bos_token_id == holder.eos_token_id == ours.end
    assert tokenizer.bos_token == tokenizer.eos_token == END
    assert tokenizer.all_special_ids == [ours.end]
    ids = ours.encode(f"{END}a low{END}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a low"


def test_our_trained_model_has_the_same_loss_there_and_writes_the_same(tmp_path):
    documents = ["ada likes bob", "bob likes cleo", "cleo likes ada"]
    ours = microgpt.CharTokenizer(documents)
    model = GPT(Config(ours.vocab_size, 20, 1, 2, 8))
    options = microgpt.TrainConfig(steps=60, weight_decay=0.1, lr=0.03, val_fraction=0)
    trainer = microgpt.Trainer(model, ours, documents, options)
    assert len(list(trainer)) == 60
    microgpt.save_training(trainer, tmp_path)  # what is only for us is not in the way
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for document in documents:
        window = ours.encode(END + document + END)
        ids = torch.tensor([window])
        expected = microgpt.evaluate(model, [window])
        with torch.no_grad():
            there = theirs.eval()(ids, labels=ids)
        assert flat(there.loss) == close(expected, 1e-6)  # computed in 4-byte numbers
        loss = torch.nn.functional.cross_entropy(there.logits[0, :-1], ids[0, 1:])
        assert flat(loss) == close(expected, 1e-9)
        written = assert_writes_the_same(model, theirs, window[:3], ours.end)
        assert len(set(written)) > 3


# --- theirs, opened here ---


@pytest.fixture(scope="module")
def trained_there(tmp_path_factory):
    """A folder with the vocab.json and merges.txt of a tokenizer trained there."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    options = {"special_tokens": [END], "show_progress": False}
    tokenizer.train_from_iterator(DOCUMENTS * 2, 290, **options)
    tokenizer.save_model(str(folder))
    return folder


def open_tokenizer(folder, kind="GPT2TokenizerFast"):
    kind = getattr(transformers, kind)
    if FOUR:
        return kind(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return kind.from_pretrained(folder)


def their_model(shape, **options):
    """A model with random numbers in it everywhere, large enough for a varied text."""
    torch.manual_seed(sum(shape))
    names = ("n_positions", "n_layer", "n_head", "n_embd")
    options = {"vocab_size": 290, "bos_token_id": 0, "eos_token_id": 0, **options}
    config = GPT2Config(**dict(zip(names, shape)), initializer_range=0.5, **options)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() == 1:
                x += 0.3 * torch.randn_like(x)
        model.transformer.wpe.weight *= 4
    return model.eval()


@pytest.mark.parametrize("compact", [False, True], ids=["lists", "arrays"])
@pytest.mark.parametrize("dtype", "float32 float16 bfloat16 float64".split())
@pytest.mark.parametrize("shape", [(24, 1, 2, 8), (32, 2, 4, 16), (24, 3, 1, 5)])
def test_their_model_computes_and_writes_the_same_here(
    tmp_path, monkeypatch, trained_there, shape, dtype, compact
):
    theirs = their_model(shape).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    open_tokenizer(trained_there).save_pretrained(tmp_path)
    if compact:
        monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1)  # so it counts as large
    ours = load_model(tmp_path)
    row = ours.params["wte.weight"][0]
    assert isinstance(row, microgpt.array if compact else list)
    end = load_tokenizer(tmp_path).end
    assert end == 0
    ids = some_ids(shape[0], 290)
    models = {copy.deepcopy(theirs).double(): 1e-9}  # the same numbers, computed finely
    if compact and dtype == "float64":
        models = {copy.deepcopy(theirs).double(): 1e-5}  # arrays have 4-byte numbers
    if dtype == "float32":
        models[theirs] = 1e-5
    for model, tolerance in models.items():
        assert_same_logits(ours, model, ids, tolerance)
        assert_writes_the_same(ours, model, [end], end)
        assert len(set(assert_writes_the_same(ours, model, ids[:3], end))) > 3


@pytest.mark.parametrize("kind", ["GPT2TokenizerFast"] + ["GPT2Tokenizer"] * FOUR)
def test_their_tokenizer_gives_the_same_ids_and_text_here(
    tmp_path, trained_there, kind
):
    theirs = open_tokenizer(trained_there, kind)
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists() == (kind == "GPT2TokenizerFast")
    ours = load_tokenizer(tmp_path)
    assert ours.vocab == theirs.get_vocab() and ours.end == theirs.eos_token_id
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        there = theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == there == text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_their_model_without_a_head_has_the_same_parameters(tmp_path, dtype):
    theirs = their_model(SHAPES[1]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "with")
    theirs.transformer.save_pretrained(tmp_path / "without")
    models = [load_model(tmp_path / name) for name in ("with", "without")]
    assert models[0].config == models[1].config == Config(290, *SHAPES[1])
    assert models[0].params == models[1].params
    table = theirs.transformer.wte.weight
    assert models[1].params["wte.weight"] == table.tolist()


def test_what_went_there_and_back_is_what_it_was(tmp_path):
    ours = TOKENIZERS["bpe"]
    model = shaken(GPT(Config(ours.vocab_size, *SHAPES[1]), seed=3))
    save_model(model, tmp_path / "ours", ours)
    there = tmp_path / "theirs"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="float64")
    theirs.save_pretrained(there)
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(there)
    back = load_model(there)
    assert repr((back.config, back.params)) == repr((model.config, model.params))
    tokenizer = load_tokenizer(there)
    assert tokenizer.vocab == ours.vocab and tokenizer.end == ours.end
    for text in TEXTS:
        assert tokenizer.encode(text) == ours.encode(text)


@pytest.mark.parametrize(
    "name, value",
    [
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("n_inner", 7),
        ("scale_attn_weights", False),
    ],
)
def test_their_model_of_another_kind_is_refused(tmp_path, name, value):
    their_model(SHAPES[0], **{name: value}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name):
        load_model(tmp_path)
