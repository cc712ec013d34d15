"""Chapter 15 and the transformers library: each opens what the other saves.

Both then compute the same.
"""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: all that is tested is local

import pytest

import microgpt
from microgpt import (
    GPT,
    AdamW,
    BPETokenizer,
    CharTokenizer,
    Config,
    Sampling,
    TensorEngine,
    TrainConfig,
    Trainer,
    cut_windows,
    evaluate,
    load_model,
    load_tokenizer,
    parameter_shapes,
    save_model,
    save_training,
    stream,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2Tokenizer,
    GPT2TokenizerFast,
)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FOUR = transformers.__version__.startswith("4.")
END = "<|endoftext|>"
DOCUMENTS = [
    "a low lower lowest tower",
    "a slow slower snow, and so on",
    "  who?  Café Noël! ",
    "it's 'n' we'll 👩\u200d👧 🙂🙂 naïve ...",
    "x_1 = 25½ . , ; y",
    "天地玄黃 いろは",
    "e\u0301\t\u200b",
]
TEXTS = [
    *DOCUMENTS,
    "",
    " ",
    "  ",
    " a",
    "a ",
    "  a  ",
    "a  b",
    "a   low",
    "no .",
    "so , on ?",
    "!",
    "wow ! n't 's",
    END,
    END + END,
    f"{END}a low",
    f"a {END} b",
    f"a{END}  b{END}",
    "é",
    "🙂",
    " 🙂 ",
    "we 'll do n't",
    "<|endo",
    "|>",
    "a\tb",
    " \t ",
    "½ 1½",
    "snow天 地",
    "'S we'LL",
]
SHAPES = [(8, 1, 1, 4), (16, 2, 2, 8), (12, 3, 3, 6), (24, 1, 4, 16), (9, 2, 1, 5)]
TOKENIZERS = {
    "char": CharTokenizer(text.replace(END, "") for text in TEXTS),
    "bpe": BPETokenizer.train(DOCUMENTS, 300),
}


def close(a, b, relative):
    """Are these logits the same to a relative error, that of the largest?"""
    a, b = (
        x if torch.is_tensor(x) else torch.tensor(x, dtype=torch.float64)
        for x in (a, b)
    )
    return a.shape == b.shape and (a - b).abs().max() <= relative * b.abs().max()


def logits_there(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].double()


def greedy_there(model, inputs, n, end):
    ids = model.eval().generate(
        **inputs, do_sample=False, max_new_tokens=n, pad_token_id=end
    )[0]
    ids = ids[inputs["input_ids"].shape[1] :].tolist()
    return ids[: ids.index(end)] if end in ids else ids


def greedy_here(model, ids, n, end):
    return list(stream(model, ids, Sampling(temperature=0), end=end, max_tokens=n))


def inputs_of(ids):
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids)).long(),
    }


def some_ids(n, vocab_size):
    return torch.randint(
        vocab_size, (n,), generator=torch.Generator().manual_seed(n)
    ).tolist()


# --- ours, opened there ---------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_model_computes_the_same_there(tmp_path, shape, kind):
    tokenizer = TOKENIZERS[kind]
    model = GPT(Config(tokenizer.vocab_size, *shape), seed=1)
    step(model)
    save_model(model, tmp_path, tokenizer)
    theirs, info = GPT2LMHeadModel.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.dtype == torch.float64
    for n in (1, 2, shape[0]):
        ids = some_ids(n, tokenizer.vocab_size)
        assert close(model(ids), logits_there(theirs, ids), 1e-9)


def step(model):
    """One step of training, so that no biases are 0 and no gains 1."""
    size = model.config.vocab_size
    batch = [some_ids(min(n, model.config.block_size + 1), size) for n in (2, 5, 9)]
    _, gradients = TensorEngine().gradients(model, batch)
    AdamW(model.params).step(gradients, 0.05)


def test_every_parameter_there_is_ours(tmp_path):
    model = GPT(Config(7, *SHAPES[2]), seed=2)
    step(model)
    save_model(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
    found = {name[len("transformer.") :]: x for name, x in theirs.named_parameters()}
    assert found.keys() == parameter_shapes(model.config).keys()
    for name, x in model.params.items():
        ours = torch.tensor(x, dtype=torch.float64)
        linear = ".c_" in name and name.endswith("weight")
        assert torch.equal(found[name], ours.T if linear else ours)
    assert theirs.lm_head.weight is theirs.transformer.wte.weight


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_our_tokenizer_gives_the_same_ids_and_text_there(tmp_path, kind):
    ours = TOKENIZERS[kind]
    save_model(GPT(Config(ours.vocab_size, *SHAPES[0])), tmp_path, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert theirs.get_vocab() == ours.vocab
    for text in TEXTS:
        found = theirs(text)
        assert set(found) == {"input_ids", "attention_mask"}  # and no token_type_ids
        assert found["input_ids"] == ours.encode(text)
        assert (
            theirs.decode(found["input_ids"]) == ours.decode(found["input_ids"]) == text
        )
    several = theirs(["a low", "a"])
    assert several["input_ids"] == [ours.encode("a low"), ours.encode("a")]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_our_end_is_begin_and_end_there(tmp_path, kind):
    ours = TOKENIZERS[kind]
    save_model(GPT(Config(ours.vocab_size, *SHAPES[0])), tmp_path, ours)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(model) is GPT2LMHeadModel
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id) == (ours.end, ours.end)
    assert tokenizer.bos_token == tokenizer.eos_token == END
    assert tokenizer.all_special_ids == [ours.end]
    text = tokenizer.decode(ours.encode(f"{END}a low{END}"), skip_special_tokens=True)
    assert text == "a low"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_our_model_writes_the_same_there(tmp_path, kind, seed):
    ours = TOKENIZERS[kind]
    model = GPT(Config(ours.vocab_size, 24, 2, 2, 8), seed=seed)
    save_model(model, tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float64")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = f"{END}a l"
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = ours.encode(prompt)
    assert inputs["input_ids"].tolist() == [ids]
    n = 24 - len(ids)
    written = greedy_here(model, ids, n, ours.end)
    assert greedy_there(theirs, inputs, n, ours.end) == written
    assert tokenizer.decode(written) == ours.decode(written)


def test_our_trained_model_has_the_same_loss_there_and_writes_the_same(tmp_path):
    documents = ["ada likes bob", "bob likes cleo", "cleo likes ada"]
    ours = CharTokenizer(documents)
    trainer = Trainer(
        GPT(Config(ours.vocab_size, 20, 1, 2, 8)),
        ours,
        documents,
        TrainConfig(steps=60, weight_decay=0.1, lr=0.03, val_fraction=0),
    )
    losses = [step.loss for step in trainer]
    assert losses[-1] < 0.5 * losses[0]
    save_training(trainer, tmp_path)  # what is only for us is not in the way there
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for document in documents:
        (window,) = cut_windows(document, ours, 20)
        ids = tokenizer(END + document + END, return_tensors="pt")["input_ids"]
        assert ids.tolist() == [window]
        here = evaluate(trainer.model, [window])
        there = theirs.eval()(ids, labels=ids)
        assert there.loss.item() == pytest.approx(
            here, rel=1e-6
        )  # which is in 4-byte numbers
        loss = torch.nn.functional.cross_entropy(there.logits[0, :-1], ids[0, 1:])
        assert loss.item() == pytest.approx(here, rel=1e-9)
        prompt = window[:3]
        written = greedy_here(trainer.model, prompt, 17, ours.end)
        assert greedy_there(theirs, inputs_of(prompt), 17, ours.end) == written
        assert len(set(written)) > 3


# --- theirs, opened here --------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_there(tmp_path_factory):
    """A folder with the vocab.json and merges.txt of a tokenizer trained there."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        DOCUMENTS * 2, vocab_size=290, special_tokens=[END], show_progress=False
    )
    tokenizer.save_model(str(folder))
    return folder


def fast_tokenizer(folder):
    return (
        GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        if FOUR
        else GPT2TokenizerFast.from_pretrained(folder)
    )


def slow_tokenizer(folder):
    return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def their_model(shape, kind=GPT2LMHeadModel, vocab_size=290):
    """A model with random numbers in it everywhere, large enough for a varied text."""
    torch.manual_seed(sum(shape))
    block_size, n_layer, n_head, n_embd = shape
    model = kind(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=block_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.5,
        )
    )
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() == 1:
                x += 0.3 * torch.randn_like(x)
        (model if kind is GPT2Model else model.transformer).wpe.weight *= 4
    return model.eval()


DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@pytest.mark.parametrize("compact", [False, True], ids=["lists", "arrays"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(24, 1, 2, 8), (32, 2, 4, 16), (24, 3, 1, 5)], ids=str
)
def test_their_model_computes_and_writes_the_same_here(
    tmp_path, monkeypatch, trained_there, shape, dtype, compact
):
    theirs = their_model(shape).to(DTYPES[dtype])
    tokenizer = fast_tokenizer(trained_there)
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if compact:
        monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1)
    ours = load_model(tmp_path)
    rows = list if not compact else microgpt.array
    assert {
        type(x if name.endswith("bias") else x[0])
        for name, x in ours.params.items()
        if "ln_" not in name
    } == {rows}
    exact = (
        1e-9 if not compact or dtype != "float64" else 1e-5
    )  # arrays have 4-byte numbers
    ids = some_ids(shape[0], 290)
    if dtype == "float32":  # computed there in 4-byte numbers
        assert close(ours(ids), logits_there(theirs, ids), 1e-5)
    precise = copy.deepcopy(
        theirs
    ).double()  # the same rounded numbers, computed in 8 bytes
    assert close(ours(ids), logits_there(precise, ids), exact)

    end = load_tokenizer(tmp_path).end
    assert end == tokenizer.eos_token_id == 0
    for start in (ids[:3], [end]):
        written = greedy_here(ours, start, 20, end)
        assert greedy_there(precise, inputs_of(start), 20, end) == written
        if dtype == "float32":
            assert greedy_there(theirs, inputs_of(start), 20, end) == written
    assert len(set(greedy_here(ours, ids[:1], 20, -1))) > 3


@pytest.mark.parametrize("make", [fast_tokenizer] + [slow_tokenizer] * FOUR)
def test_their_tokenizer_gives_the_same_ids_and_text_here(
    tmp_path, trained_there, make
):
    theirs = make(trained_there)
    theirs.save_pretrained(tmp_path)
    if make is slow_tokenizer:
        assert not (tmp_path / "tokenizer.json").exists()
    their_model(SHAPES[0]).save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.vocab == theirs.get_vocab() and ours.end == theirs.eos_token_id
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert (
            ours.decode(ids)
            == text
            == theirs.decode(ids, clean_up_tokenization_spaces=False)
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_their_model_without_a_head_has_the_same_parameters(tmp_path, dtype):
    with_head = their_model(SHAPES[1]).to(DTYPES[dtype])
    with_head.save_pretrained(tmp_path / "with")
    with_head.transformer.save_pretrained(tmp_path / "without")
    ours = load_model(tmp_path / "without")
    assert (
        ours.config == load_model(tmp_path / "with").config == Config(290, *SHAPES[1])
    )
    assert ours.params == load_model(tmp_path / "with").params
    alone = their_model(SHAPES[1], GPT2Model)
    alone.save_pretrained(tmp_path / "alone")
    assert (
        load_model(tmp_path / "alone").params["wte.weight"] == alone.wte.weight.tolist()
    )


def test_what_went_there_and_back_is_what_it_was(tmp_path):
    ours = TOKENIZERS["bpe"]
    model = GPT(Config(ours.vocab_size, *SHAPES[1]), seed=3)
    step(model)
    save_model(model, tmp_path / "ours", ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="float64")
    theirs.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(
        tmp_path / "theirs"
    )
    back = load_model(tmp_path / "theirs")
    tokenizer = load_tokenizer(tmp_path / "theirs")
    assert repr((back.config, back.params)) == repr((model.config, model.params))
    assert tokenizer.vocab == ours.vocab and tokenizer.end == ours.end
    assert [tokenizer.encode(text) for text in TEXTS] == [
        ours.encode(text) for text in TEXTS
    ]


def test_their_model_of_another_kind_is_refused(tmp_path):
    for n, change in enumerate(
        [
            {"activation_function": "gelu"},
            {"layer_norm_epsilon": 1e-6},
            {"n_inner": 7},
            {"scale_attn_weights": False},
            {"tie_word_embeddings": False},
        ]
    ):
        config = GPT2Config(
            vocab_size=5, n_positions=4, n_layer=1, n_head=1, n_embd=4, **change
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / str(n))
        with pytest.raises(ValueError, match=next(iter(change))):
            load_model(tmp_path / str(n))
