"""examples/xray.py shows and writes what the model computes, and compares two."""

import copy
import io
import json
import math
import os
import re
import sys

import pytest
import xray
from helpers import close, flat, is_one_line, shaken

import microgpt

TEXT = "bobcleo"
LONG = "acdo" * 40


@pytest.fixture(scope="module")
def watched(model):
    """A small model with two blocks of two heads."""
    return shaken(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, watched, tokenizer):
    """Its directory."""
    directory = tmp_path_factory.mktemp("saved")
    microgpt.save_model(watched, directory, tokenizer)
    return directory


@pytest.fixture(scope="module")
def window(tokenizer):
    return microgpt.cut_windows(TEXT, tokenizer, 8)[0]


def written(path, directory, text, *options):
    """What --json writes."""
    assert xray.main([str(directory), text, "--json", str(path), *options]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kept(saved, tmp_path_factory):
    return written(tmp_path_factory.mktemp("trace") / "trace.json", saved, TEXT)


@pytest.fixture
def trace(kept):
    """What --json writes for TEXT: a copy, which a test may change."""
    return copy.deepcopy(kept)


@pytest.fixture
def shown(capsys):
    """A function that runs the command -> what it prints."""

    def run(*arguments, status=0):
        capsys.readouterr()
        assert xray.main([str(x) for x in arguments]) == status
        out, err = capsys.readouterr()
        assert err == ""
        for line in out.split("\n"):
            assert len(line) <= 79 or line.startswith("written to ")
        return out

    return run


@pytest.fixture
def refused(capsys):
    """A function that runs the command -> the line that says what is wrong."""

    def run(*arguments):
        assert xray.main([str(x) for x in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and is_one_line(err, "xray"), arguments
        return err

    return run


@pytest.fixture
def compared(shown, tmp_path):
    """A function that compares two traces -> the lines that it prints."""

    def run(a, b, *options, status=1):
        for name, contents in ("A", a), ("B", b):
            (tmp_path / name).write_text(json.dumps(contents), encoding="utf-8")
        files = tmp_path / "A", tmp_path / "B"
        return shown("--compare", *files, *options, status=status).split("\n")

    return run


# --- The JSON ---


def test_it_says_what_was_read_and_its_loss(kept, watched, window):
    assert kept["tokens"] == window[:-1]
    assert kept["targets"] == window[1:]
    assert kept["positions"] == list(range(8))
    assert kept["loss"] == pytest.approx(watched.loss([window]), rel=1e-12)


def test_it_has_every_activation_and_gradient(kept, watched, window):
    """The gradients are in the order in which backward() completes them."""
    traced = xray.TracedGPT(watched)
    traced(window[:-1])
    assert list(kept["activations"]) == list(traced.trace) == xray.forward_names(2)
    assert flat(kept["activations"]) == close(traced.trace)
    both = {**traced.trace, **watched.params}
    del both["h.0.attn"], both["h.1.attn"]
    names = list(kept["gradients"])
    first = "logits ln_f ln_f.weight ln_f.bias h.1 h.1.mlp.c_proj".split()
    last = "h.0.ln_1.bias embeddings wpe.weight wte.weight".split()
    assert (names[:6], names[-4:]) == (first, last)
    assert set(names) == set(both)
    for name, gradient in kept["gradients"].items():
        assert len(gradient) == len(both[name])
        assert len(flat(gradient)) == len(flat(both[name])), name


def test_gradients_of_parameters_are_what_nudging_finds(kept, watched, window):
    for name, x in watched.params.items():
        gradient = kept["gradients"][name]
        if isinstance(x[0], list):
            x = x[1]
            gradient = gradient[1]
        before = x[3]
        x[3] = before + 1e-5
        up = watched.loss([window])
        x[3] = before - 1e-5
        down = watched.loss([window])
        x[3] = before
        assert gradient[3] == pytest.approx((up - down) / 2e-5, abs=1e-8), name
        assert abs(gradient[3]) > 1e-7, name  # 0 would be equal too easily


def test_both_engines_write_the_same(compared, tmp_path, saved, trace):
    other = written(tmp_path / "value.json", saved, TEXT, "--engine", "value")
    assert (trace["engine"], other["engine"]) == ("tensor", "value")
    said = compared(trace, other, "--tolerance", "1e-12", status=0)
    count = len(trace["activations"]) + len(trace["gradients"])
    expected = f"equal within 1e-12: {count} activations and gradients, the loss"
    assert said == [expected, ""]


def test_of_a_long_text_only_the_first_window_is_read(
    shown, tmp_path, saved, tokenizer
):
    first = microgpt.cut_windows(LONG, tokenizer, 8)[0]
    assert written(tmp_path / "long.json", saved, LONG)["targets"] == first[1:]
    assert "only the first 8 of 161 tokens" in shown(saved, LONG)
    assert "only" not in shown(saved, TEXT)


def test_a_failed_write_leaves_what_was_there(monkeypatch, refused, tmp_path, saved):
    path = tmp_path / "trace.json"
    path.write_text("old", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    said = refused(saved, TEXT, "--json", path)
    assert said == f"xray: {str(path)!r}: No space left on device\n"
    assert os.listdir(tmp_path) == ["trace.json"]
    assert path.read_text(encoding="utf-8") == "old"


def test_infinite_numbers_are_not_written(refused, tmp_path, model, tokenizer):
    model = shaken(model)
    model.params["ln_f.weight"][:] = [1.7e308] * 8  # times a little more: infinite
    microgpt.save_model(model, tmp_path / "huge", tokenizer)
    refused(tmp_path / "huge", TEXT, "--json", tmp_path / "trace.json")
    assert os.listdir(tmp_path) == ["huge"]


# --- Comparing ---


def test_the_change_is_named(compared, kept, trace):
    trace["activations"]["h.0.attn"][1][7][2] = 3
    before = kept["activations"]["h.0.attn"][1][7][2]
    assert compared(kept, trace)[:6] == [
        "first difference: activation h.0.attn[1][7][2]",
        f"A           {before!r}",
        "B           3",
        f"difference  {3 - before:.3g}",
        "",
        "others that differ: 0 of 64; the largest of each:",
    ]


def test_the_first_is_the_one_that_is_computed_first(compared, kept, trace):
    """Here, each change comes before all the earlier ones."""
    gradients = trace["gradients"]
    activations = trace["activations"]
    gradients["h.0.ln_1.bias"][0] += 9
    gradients["h.1.ln_2"][0][0] += 1
    gradients["ln_f"][2][3] += 1
    gradients["ln_f"][4][5] += 2
    gradients["ln_f"][6][7] += 1
    said = compared(kept, trace)
    assert said[0] == "first difference: gradient ln_f[2][3]"
    assert [line.split() for line in said[6:-1]] == [
        ["gradient", "h.1.ln_2[0][0]", "1"],
        ["gradient", "h.0.ln_1.bias[0]", "9"],
    ]
    trace["loss"] += 0.5
    said = compared(kept, trace)
    assert said[0] == "first difference: loss"
    assert said[6].split() == ["gradient", "ln_f[4][5]", "2"]  # the largest of three
    activations["h.1.ln_1"][6][7] -= 1
    assert "activation h.1.ln_1[6][7]" in compared(kept, trace)[0]
    activations["h.0.attn.c_proj"][0][0] += 1
    trace["activations"] = dict(sorted(activations.items(), reverse=True))
    for pair in (kept, trace), (trace, kept):  # whatever the order in a file is
        assert "activation h.0.attn.c_proj[0][0]" in compared(*pair)[0]


@pytest.mark.parametrize(
    "a, b, status",
    [
        (1e6, 1e6 + 0.9e-3, 0),
        (1e6, 1e6 + 1.1e-3, 1),
        (1e-6, 1e-6 + 0.9e-9, 0),
        (1e-6, 1e-6 + 1.1e-9, 1),
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.inf, -math.inf, 1),
        (math.nan, 0.0, 1),
    ],
)
def test_the_tolerance_is_relative_to_the_larger_or_to_1(
    compared, kept, trace, a, b, status
):
    kept = copy.deepcopy(kept)
    kept["activations"]["logits"][0][0] = a
    trace["activations"]["logits"][0][0] = b
    for pair in (kept, trace), (trace, kept):
        compared(*pair, status=status)
    if a == 1e6:
        compared(kept, trace, "--tolerance", "1e-11")
        compared(kept, trace, "--tolerance", "1e-8", status=0)


def test_infinity_is_the_largest_difference(compared, kept, trace):
    trace["activations"]["embeddings"][0][0] += 1
    trace["activations"]["ln_f"][0][:2] = [5.0, math.nan]
    words = compared(kept, trace)[6].split()
    assert words == ["activation", "ln_f[0][1]", "inf"]


def test_names_and_numbers_that_are_missing_are_told(compared, kept, trace):
    del trace["activations"]["h.1.ln_2"]
    trace["activations"]["h.1.mlp.c_fc"][3].append(0.0)
    trace["gradients"]["wpe.weight"] = flat(trace["gradients"]["wpe.weight"])
    trace["gradients"]["h.0.attn.dropout"] = [0.0]
    said = compared(kept, trace)
    assert said[:4] == [
        "first difference: activation h.1.ln_2",
        "A           8 items",
        "B           missing",
        "difference  8 items in A, missing in B",
    ]
    assert [re.split("  +", line) for line in said[6:-1]] == [
        ["activation h.1.mlp.c_fc[3]", "32 items in A, 33 items in B"],
        ["gradient", "wpe.weight", "8 items in A, 64 items in B"],
        ["gradient", "h.0.attn.dropout", "missing in A, 1 items in B"],
    ]


def test_traces_of_different_things_are_not_compared(compared, kept):
    for field in "tokens", "positions", "targets", "config":
        trace = copy.deepcopy(kept)
        trace[field]["n_head" if field == "config" else 2] = 4
        lines = compared(kept, trace)
        assert lines[0].startswith(f"{field} differ") and len(lines) == 4


# --- The drawings ---


def panels(out):
    """The grids in a text: {title: its lines}."""
    parts = [part.split("\n") for part in out.rstrip("\n").split("\n\n")[1:]]
    about = "Attention: ", "Residual stream: "
    return {title: lines for title, *lines in parts if not title.startswith(about)}


def shades(weights):
    """Attention's weights as they are drawn."""
    drawn = ""
    for weight in weights:
        drawn += "·░▒▓█"[sum(weight >= limit for limit in (0.02, 0.1, 0.25, 0.5))]
    return drawn


def size(row):
    return math.sqrt(sum(x * x for x in row) / len(row))


def test_attention_has_a_cell_for_each_token_and_each_it_sees(shown, saved, kept):
    out = shown(saved, TEXT, "--attention")
    assert "· 0%  ░ 2%  ▒ 10%  ▓ 25%  █ 50%" in out
    grids = panels(out)
    assert len(grids) == 4
    for i, j in (0, 0), (0, 1), (1, 0), (1, 1):
        lines = grids[f"h.{i} head {j}: rows look at columns"]
        drawn = [["<"], ["|"], [">", *TEXT]]
        for name, row in zip(["<|>", *TEXT], kept["activations"][f"h.{i}.attn"][j]):
            drawn.append([name, "".join(2 * shade for shade in shades(row))])
        assert [line.split() for line in lines] == drawn


def test_the_residual_stream_is_shaded_as_the_legend_says(shown, saved, kept):
    """Each shade stands for the numbers between its own number and the next one's."""
    depths = ["embeddings", "h.0", "h.1"]
    out = shown(saved, TEXT, "--residual")
    largest = max(abs(x) for name in depths for x in flat(kept["activations"][name]))
    assert f"a cell is a number, at most {largest:.3g};" in out
    begins = [float(x) for x in re.findall(r"[·░▒▓█] ([0-9][-+.e0-9]*)", out)]
    assert begins[1:] == pytest.approx([largest / n for n in (16, 8, 4, 2)], rel=0.01)
    grids = panels(out)
    assert list(grids) == [f"{x}: rows are tokens, columns dimensions" for x in depths]
    used = set()
    for name, lines in zip(depths, grids.values()):
        for line, row in zip(lines, kept["activations"][name]):
            _, cells, end = line.split()
            assert float(end) == pytest.approx(size(row), rel=1e-3)
            assert len(cells) == 2 * len(row)
            for shade, x in zip(cells[::2], map(abs, row)):
                k = "·░▒▓█".index(shade)
                limit = [*begins, math.inf][k + 1]
                assert begins[k] * 0.99 <= x <= limit * 1.01
            used.update(cells)
    assert len(used) >= 4


def test_wide_rows_are_grouped_into_mean_absolute_values(shown, tmp_path, tokenizer):
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, 8, n_head=2, n_embd=148))
    for name, x in model.params.items():
        model.params[name] = microgpt.for_each(lambda _: 0.0, x)
    for row in model.params["wte.weight"]:
        row[:3] = [-8.0, 0.0, 4.0]  # the mean of a group of three is 4
        row[-1] = -4.0  # and so is that of the rest
    microgpt.save_model(model, tmp_path, tokenizer)
    out = shown(tmp_path, "ada", "--residual")
    assert "the mean of 3 numbers" in out and "at most 4;" in out and "█ 2" in out
    for lines in panels(out).values():
        for line in lines:
            end = f"{math.sqrt(96 / 148):.4g}"
            assert line.split()[1:] == ["█" + 48 * "·" + "█", end]


def test_in_brief_it_shows_the_last_token(shown, saved, kept):
    attention, residual = panels(shown(saved, TEXT)).values()
    rows = [kept["activations"][f"h.{i}.attn"][j][-1] for i in (0, 1) for j in (0, 1)]
    expected = ["".join(2 * shade for shade in shades(row)) for row in rows]
    assert [line.split()[-1] for line in attention[-4:]] == expected
    rows = [kept["activations"][name][-1] for name in ("embeddings", "h.0", "h.1")]
    ends = [float(line.split()[-1]) for line in residual]
    assert ends == pytest.approx(list(map(size, rows)), rel=1e-3)


def test_neighbours_are_the_nearest_by_angle(shown, tmp_path):
    """b points as a does, c is 45 degrees off, d opposite, e at a right angle."""
    tokenizer = microgpt.CharTokenizer(["abcde"])
    model = microgpt.GPT(microgpt.Config(6, 8, n_head=1, n_embd=2))
    table = [[1.0, 0.0], [9.0, 0.0], [2.0, 2.0], [-3.0, 0.0], [0.0, 5.0], [0.0, 0.0]]
    model.params["wte.weight"] = table
    microgpt.save_model(model, tmp_path, tokenizer)
    lines = shown(tmp_path, "aada", "--neighbours").rstrip("\n").split("\n")
    assert [" ".join(line.split()) for line in lines[-3:]] == [
        "<|> a 0.00 b 0.00 c 0.00 d 0.00",
        "a b 1.00 c 0.71 e 0.00 <|> 0.00",
        "d e 0.00 <|> 0.00 c -0.71 a -1.00",
    ]


ODD = " extraordinarily\n\t\x1b[31m 天地 e\u0301 \u200b \U0001f642 \u05d0 \x85 " * 6


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """A model with subword tokens and a block of 100, which is too long for a line."""
    tokenizer = microgpt.BPETokenizer.train(["extraordinarily " * 9], 270)
    directory = tmp_path_factory.mktemp("awkward")
    model = microgpt.GPT(microgpt.Config(270, 100, n_head=2, n_embd=70))
    microgpt.save_model(model, directory, tokenizer)
    return directory


GRIDS = "--attention --residual --neighbours".split()


def test_odd_and_many_tokens_do_not_break_the_lines(shown, awkward):
    for options in [], GRIDS:
        out = shown(awkward, ODD, *options)  # it looks at their length
        assert {c for c in out if not c.isprintable()} == {"\n"}
        assert not set(out) & set("天地\u0301\U0001f642")
        assert "only the first 100 of " in out


def test_where_not_all_tokens_fit_the_last_are_drawn(shown, awkward):
    traced = xray.TracedGPT(microgpt.load_model(awkward))
    tokenizer = microgpt.load_tokenizer(awkward)
    traced(microgpt.cut_windows(ODD, tokenizer, 100)[0][:-1])
    grids = panels(shown(awkward, ODD, "--residual", "--attention"))
    depth = grids["h.0: rows are tokens, columns dimensions"]
    names = [line.split()[0] for line in depth]
    for head, weights in enumerate(traced.trace["h.0.attn"]):
        title = f"h.0 head {head}: rows look at columns (the last 70 of 100 tokens)"
        lines = grids[title]
        assert len(lines) == max(map(len, names[30:])) + 70
        assert [line.split() for line in lines[-70:]] == [
            [names[t], shades(weights[t][30:])] for t in range(30, 100)
        ]
        above = [line.ljust(79)[9:] for line in lines[:-70]]
        columns = ["".join(column).strip() for column in zip(*above)]
        assert columns == names[30:]


def test_odd_characters_are_spelt_out(shown, tmp_path):
    text = "a \n天\u0301\x1b\u200b\u200d\U0001f642"
    tokenizer = microgpt.CharTokenizer([text])
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    microgpt.save_model(model, tmp_path, tokenizer)
    names = r"<|> a _ \n \u5929 \u0301 \x1b \u200b \u200d \U0001f~".split()
    for lines in panels(shown(tmp_path, text, "--residual")).values():
        assert [line.split()[0] for line in lines] == names
        assert len({line.index(line.split()[1]) for line in lines}) == 1


@pytest.mark.parametrize(
    "encoding, dark", [("ascii", "#"), ("latin-1", "#"), ("utf-8", "█")]
)
def test_shades_are_what_the_output_can_show(monkeypatch, saved, encoding, dark):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # it would raise
    monkeypatch.setattr(sys, "stdout", output)
    assert xray.main([str(saved), TEXT, *GRIDS]) == 0
    assert f"{dark} 50%" in output.buffer.getvalue().decode(encoding)


# --- Bad input ---


def test_bad_input_is_told_in_one_line(refused, tmp_path, saved, kept):
    good, cut, deep, other = (tmp_path / name for name in "good cut deep other".split())
    good.write_text(json.dumps(kept), encoding="utf-8")
    cut.write_text(json.dumps(kept)[:-9], encoding="utf-8")
    deep.write_text("[" * 10**5, encoding="utf-8")
    other.write_bytes(b"\xff\xfe\x00")
    refused()
    refused(saved)
    refused(saved, "")
    refused(saved, "x!")
    refused(tmp_path / "none", "ada")
    refused(saved, "ada", "--json", tmp_path)
    refused(saved, "ada", "--json", tmp_path / "none" / "x.json")
    refused(saved, "ada", "--compare", good, good)
    for bad in cut, deep, other, tmp_path / "none":
        refused("--compare", good, bad)
    for tolerance in "-1", "nan", "inf":
        refused("--compare", good, good, "--tolerance", tolerance)
    for folder in tmp_path, tmp_path.parent:
        assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    "field, value",
    [
        ("format", "another"),
        ("version", 2),
        ("config", {}),
        ("config", {"vocab_size": "9"}),
        ("tokens", 3),
        ("tokens", ["a"]),
        ("loss", None),
        ("loss", "1"),
        ("loss", True),
        ("activations", []),
        ("activations", {"logits": [["1"]]}),
        ("gradients", {"logits": [2**64]}),
        ("gradients", {"logits": {}}),
    ],
)
def test_a_spoiled_trace_is_refused(refused, tmp_path, trace, field, value):
    good = tmp_path / "good"
    bad = tmp_path / "bad"
    good.write_text(json.dumps(trace), encoding="utf-8")
    bad.write_text(json.dumps({**trace, field: value}), encoding="utf-8")
    for pair in (good, bad), (bad, good):
        assert "bad' is not a trace: " in refused("--compare", *pair)
