"""examples/xray.py shows and writes what the model computes, and compares two."""

import copy
import io
import json
import math
import os
import re
import subprocess
import sys

import pytest
import xray

import microgpt

XRAY = xray.__file__
TEXT = "bobcleo"
LONG = "acdo" * 40
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}


def shaken(model):
    """A copy of the model in which no bias is 0 and no gain 1, as if trained."""
    params = {
        name: [
            [x + 0.1 * math.sin(i + j) for j, x in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        if isinstance(rows[0], list)
        else [x + 0.1 * math.cos(3 * i) for i, x in enumerate(rows)]
        for name, rows in model.params.items()
    }
    return microgpt.GPT(model.config, params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, tokenizer):
    """The directory of a small model with two blocks of two heads."""
    directory = tmp_path_factory.mktemp("saved")
    microgpt.save_model(shaken(model), directory, tokenizer)
    return directory


@pytest.fixture(scope="module")
def trace(saved, tmp_path_factory):
    """What --json writes for TEXT. Tests that change it take a copy."""
    return written(tmp_path_factory.mktemp("trace") / "trace.json", saved, TEXT)


def written(path, directory, text, *options):
    """What --json writes."""
    assert xray.main([str(directory), text, "--json", str(path), *options]) == 0
    return load(path)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def shown(capsys, *arguments, status=0):
    """What the command prints."""
    capsys.readouterr()
    assert xray.main([str(x) for x in arguments]) == status
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    lines = out.split("\n")
    assert max(len(line) for line in lines if not line.startswith("written to ")) <= 80
    return out


def compared(capsys, folder, a, b, *options, status):
    """What --compare prints for two traces."""
    for name, contents in ("A", a), ("B", b):
        (folder / name).write_text(json.dumps(contents), encoding="utf-8")
    return shown(
        capsys, "--compare", folder / "A", folder / "B", *options, status=status
    )


def child(*arguments, **env):
    """The command as a process of its own, its output not decoded."""
    return subprocess.run(
        [sys.executable, XRAY, *map(str, arguments)],
        capture_output=True,
        env={**ENV, **env},
        timeout=300,
    )


def panels(out):
    """The grids in a text: {title: its lines}."""
    parts = [part.split("\n") for part in out.rstrip("\n").split("\n\n")[1:]]
    return {
        title: lines
        for title, *lines in parts
        if not title.startswith(("Attention: ", "Residual stream: "))
    }


def numbers(x):
    """All numbers of nested lists, in one row."""
    return [z for y in x for z in numbers(y)] if isinstance(x, list) else [x]


# --- The JSON -------------------------------------------------------------------------


def test_attention_weights_sum_to_1_and_are_causal(trace):
    config = trace["config"]
    for i in range(config["n_layer"]):
        heads = trace["activations"][f"h.{i}.attn"]
        assert len(heads) == config["n_head"]
        for rows in heads:
            assert [len(row) for row in rows] == [p + 1 for p in trace["positions"]]
            assert all(
                sum(row) == pytest.approx(1, abs=1e-12) and min(row) > 0 for row in rows
            )


def test_tokens_targets_and_positions_are_those_of_the_document(trace, tokenizer):
    ids = tokenizer.encode(TEXT)
    assert trace["tokens"] == [tokenizer.end, *ids]
    assert trace["targets"] == [*ids, tokenizer.end]
    assert trace["positions"] == list(range(len(ids) + 1))


def test_the_loss_is_the_model_s_and_the_mean_score(trace, saved, tokenizer):
    model = microgpt.load_model(saved)
    losses = [x.loss for x in microgpt.score(model, tokenizer, TEXT)]
    assert trace["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    (window,) = microgpt.cut_windows(TEXT, tokenizer, model.config.block_size)
    assert trace["loss"] == pytest.approx(model.loss([window]), rel=1e-12)


def test_the_residual_stream_adds_up(trace, saved):
    """Embeddings are token plus position; each block adds what its two parts give."""
    params = microgpt.load_model(saved).params
    x = trace["activations"]
    for row, token, position in zip(
        x["embeddings"], trace["tokens"], trace["positions"]
    ):
        sums = [
            a + b
            for a, b in zip(params["wte.weight"][token], params["wpe.weight"][position])
        ]
        assert row == pytest.approx(sums, abs=1e-12)
    for before, h in ("embeddings", "h.0"), ("h.0", "h.1"):
        parts = (x[before], x[h + ".attn.c_proj"], x[h + ".mlp.c_proj"])
        sums = [sum(three) for three in zip(*map(numbers, parts))]
        assert numbers(x[h]) == pytest.approx(sums, abs=1e-12)


def test_a_trace_has_every_activation_and_gradient_in_the_documented_order(trace):
    config = microgpt.Config(**trace["config"])
    assert list(trace["activations"]) == xray.forward_names(config.n_layer)
    assert list(trace["gradients"]) == xray.backward_names(config)
    assert set(trace["gradients"]) == {
        *microgpt.parameter_shapes(config),
        *trace["activations"],
    } - {"h.0.attn", "h.1.attn"}


def test_gradients_have_the_shapes_of_what_they_are_of(trace, saved):
    params = microgpt.load_model(saved).params
    for name, gradient in trace["gradients"].items():
        x = {**params, **trace["activations"]}[name]
        assert len(gradient) == len(x) and len(numbers(gradient)) == len(numbers(x)), (
            name
        )


@pytest.mark.parametrize(
    "name, place",
    [
        ("h.0.attn.c_attn.weight", (9, 3)),
        ("h.1.mlp.c_fc.bias", (5,)),
        ("ln_f.weight", (2,)),
        ("wte.weight", (1, 4)),
        ("wpe.weight", (3, 0)),
    ],
)
def test_a_parameter_s_gradient_is_a_finite_difference(
    trace, saved, tokenizer, name, place
):
    losses = []
    for nudge in 1e-5, -1e-5:
        model = microgpt.load_model(saved)
        *outer, last = place
        row = model.params[name][outer[0]] if outer else model.params[name]
        row[last] += nudge
        losses.append(
            model.loss(microgpt.cut_windows(TEXT, tokenizer, model.config.block_size))
        )
    gradient = trace["gradients"][name]
    for i in place:
        gradient = gradient[i]
    assert abs(gradient) > 1e-6  # 0 would be equal too easily
    assert gradient == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8)


def test_an_activation_s_gradient_is_a_finite_difference(trace, saved):
    """The last block's output reaches the loss through ln_f and the logits only."""
    params = microgpt.load_model(saved).params
    rows = trace["activations"]["h.1"]
    losses = []
    for nudge in 1e-5, -1e-5:
        nudged = copy.deepcopy(rows)
        nudged[2][3] += nudge
        x = microgpt.layernorm(nudged, params["ln_f.weight"], params["ln_f.bias"])
        losses.append(
            microgpt.cross_entropy(
                microgpt.linear(x, params["wte.weight"]), trace["targets"]
            )
        )
    gradient = trace["gradients"]["h.1"][2][3]
    assert abs(gradient) > 1e-6
    assert gradient == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8)


def test_both_engines_write_the_same(capsys, tmp_path, saved, trace):
    other = written(tmp_path / "value.json", saved, TEXT, "--engine", "value")
    assert (trace["engine"], other["engine"]) == ("tensor", "value")
    out = compared(capsys, tmp_path, trace, other, "--tolerance", "1e-12", status=0)
    count = len(trace["activations"]) + len(trace["gradients"])
    assert out == f"equal within 1e-12: {count} activations and gradients, the loss\n"


def test_only_the_first_window_of_a_long_text_is_traced(
    capsys, tmp_path, saved, tokenizer
):
    model = microgpt.load_model(saved)
    path = tmp_path / "long.json"
    out = shown(capsys, saved, LONG, "--json", path)
    assert "only the first 8 of 161 tokens" in out
    first = microgpt.cut_windows(LONG, tokenizer, 8)[0]
    assert load(path)["tokens"] == first[:-1] and load(path)["targets"] == first[1:]
    assert load(path)["loss"] == pytest.approx(model.loss([first]), rel=1e-12)


def test_a_text_that_fits_is_not_called_too_long(capsys, saved):
    assert "8 tokens" in shown(capsys, saved, TEXT) and "only" not in shown(
        capsys, saved, TEXT
    )


def test_a_failed_write_leaves_what_was_there(monkeypatch, capsys, tmp_path, saved):
    path = tmp_path / "trace.json"
    path.write_text("old", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert xray.main([str(saved), TEXT, "--json", str(path)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (
        os.listdir(tmp_path) == ["trace.json"]
        and path.read_text(encoding="utf-8") == "old"
    )


def test_a_trace_without_finite_numbers_is_not_written(
    capsys, tmp_path, model, tokenizer
):
    model = shaken(model)
    model.params["ln_f.weight"][:] = [1.7e308] * 8  # times a little more: infinite
    microgpt.save_model(model, tmp_path / "huge", tokenizer)
    assert (
        xray.main(
            [str(tmp_path / "huge"), TEXT, "--json", str(tmp_path / "trace.json")]
        )
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["huge"]


# --- Comparing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, name",
    [
        ("activation", "embeddings"),
        ("activation", "h.0.attn"),
        ("activation", "h.0.mlp.c_fc"),
        ("activation", "h.1"),
        ("activation", "logits"),
        ("gradient", "logits"),
        ("gradient", "h.1.attn.c_attn.weight"),
        ("gradient", "wte.weight"),
    ],
)
def test_the_number_that_was_changed_is_named(capsys, tmp_path, trace, kind, name):
    other = copy.deepcopy(trace)
    row = other[kind + "s"][name]
    index = ""
    while isinstance(row[-1], list):
        index = f"{index}[{len(row) - 1}]"
        row = row[-1]
    before = row[1]
    row[1] += 0.25
    out = compared(capsys, tmp_path, trace, other, status=1).split("\n")
    assert out[:4] == [
        f"first difference: {kind} {name}{index}[1]",
        f"A           {before!r}",
        f"B           {row[1]!r}",
        "difference  0.25",
    ]
    assert out[5].startswith("others that differ: 0 of ")


def test_the_first_of_several_differences_is_the_earliest_computed(
    capsys, tmp_path, trace
):
    """Forward comes before backward, which starts at the loss. Others are listed."""
    other = copy.deepcopy(trace)
    other["gradients"]["h.0.ln_1.bias"][0] += 9
    other["gradients"]["h.1.ln_2"][0][0] += 1
    other["gradients"]["ln_f"][2][3] += 1
    other["gradients"]["ln_f"][4][5] += 2
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith("first difference: gradient ln_f[2][3]\n")
    assert [line.split() for line in out.split("\n")[6:-1]] == [
        ["gradient", "h.1.ln_2[0][0]", "1"],
        ["gradient", "h.0.ln_1.bias[0]", "9"],
    ]
    other["loss"] += 0.5
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith("first difference: loss\n") and "gradient   ln_f[4][5]" in out
    other["activations"]["h.1.ln_1"][6][7] -= 1
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith("first difference: activation h.1.ln_1[6][7]\n")


def test_the_order_of_names_in_a_file_does_not_matter(capsys, tmp_path, trace):
    other = copy.deepcopy(trace)
    for kind in "activations", "gradients":
        other[kind] = dict(sorted(other[kind].items(), reverse=True))
    compared(capsys, tmp_path, other, trace, status=0)
    other["activations"]["h.0.ln_1"][0][0] += 1
    other["activations"]["h.1.ln_1"][0][0] += 1
    out = compared(capsys, tmp_path, other, trace, status=1)
    assert out.startswith("first difference: activation h.0.ln_1[0][0]")


def test_the_tolerance_is_relative_to_the_larger_or_to_1(capsys, tmp_path, trace):
    other = copy.deepcopy(trace)
    logits = trace["activations"]["logits"]
    for value, changed in (1e6, 1e6 + 1e-4), (1e-6, 1e-6 + 1e-10):
        big = copy.deepcopy(trace)
        big["activations"]["logits"][0][0] = value
        other["activations"]["logits"] = copy.deepcopy(logits)
        other["activations"]["logits"][0][0] = changed
        compared(capsys, tmp_path, big, other, status=0)
        compared(capsys, tmp_path, big, other, "--tolerance", "1e-11", status=1)
        other["activations"]["logits"][0][0] = value + 1e-8 * max(1, value)
        compared(capsys, tmp_path, big, other, status=1)


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_finite_number_differs_from_any_that_is(
    capsys, tmp_path, trace, odd
):
    other = copy.deepcopy(trace)
    other["activations"]["ln_f"][0][0] = float(odd)
    for pair in (trace, other), (other, trace):
        out = compared(capsys, tmp_path, *pair, status=1)
        assert out.startswith("first difference: activation ln_f[0][0]\n")
    compared(capsys, tmp_path, other, other, status=0)
    other["activations"]["embeddings"][0][0] += 1
    other["activations"]["ln_f"][0][1] += 1  # less than infinitely much
    other["activations"]["ln_f"][1][0] = float(odd)
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert re.search(r"^activation ln_f\[0\]\[0\] +inf$", out, re.M)


def test_names_that_one_trace_lacks_are_named(capsys, tmp_path, trace):
    other = copy.deepcopy(trace)
    del other["activations"]["h.1.ln_2"]
    other["gradients"]["h.0.attn.dropout"] = [0.0]
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith(
        "first difference: activation h.1.ln_2\nA           8 items\n"
        "B           missing\n"
    )
    assert re.search(
        r"^gradient +h\.0\.attn\.dropout +missing in A, 1 items in B$", out, re.M
    )


def test_lists_of_other_lengths_are_named(capsys, tmp_path, trace):
    other = copy.deepcopy(trace)
    other["activations"]["h.0.mlp.c_fc"][3].append(0.0)
    other["gradients"]["wpe.weight"] = numbers(other["gradients"]["wpe.weight"])
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith(
        "first difference: activation h.0.mlp.c_fc[3]\nA           32 items\n"
        "B           33 items\n"
    )
    assert re.search(r"^gradient +wpe\.weight +8 items in A, 64 items in B$", out, re.M)


@pytest.mark.parametrize("field", ["tokens", "positions", "targets", "config"])
def test_traces_of_different_things_are_not_compared(capsys, tmp_path, trace, field):
    other = copy.deepcopy(trace)
    if field == "config":
        other["config"]["n_head"] = 1
    else:
        other[field][2] += 1
    out = compared(capsys, tmp_path, trace, other, status=1)
    assert out.startswith(f"{field} differ") and out.count("\n") == 3


# --- A port ---------------------------------------------------------------------------


def port(torch, model, window):
    """The trace of one window by PyTorch: GPT-2 by hand, derivatives by autograd."""
    F = torch.nn.functional
    c = model.config
    kept = {}
    p = {
        name: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for name, x in model.params.items()
    }

    def keep(name, x):
        x.retain_grad()
        kept[name] = x
        return x

    def norm(name, x):
        return keep(
            name,
            F.layer_norm(x, [c.n_embd], p[name + ".weight"], p[name + ".bias"], 1e-5),
        )

    def linear(name, x):
        return keep(name, x @ p[name + ".weight"].T + p[name + ".bias"])

    tokens = torch.tensor(window[:-1])
    n = len(window) - 1
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    x = keep("embeddings", p["wte.weight"][tokens] + p["wpe.weight"][:n])
    for h in (f"h.{i}" for i in range(c.n_layer)):
        q, k, v = (
            part.view(n, c.n_head, -1).transpose(0, 1)
            for part in linear(h + ".attn.c_attn", norm(h + ".ln_1", x)).split(
                c.n_embd, dim=1
            )
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(c.n_embd // c.n_head)
        weights = keep(h + ".attn", scores.masked_fill(future, -math.inf).softmax(2))
        x = x + linear(
            h + ".attn.c_proj", (weights @ v).transpose(0, 1).reshape(n, c.n_embd)
        )
        hidden = F.gelu(
            linear(h + ".mlp.c_fc", norm(h + ".ln_2", x)), approximate="tanh"
        )
        x = keep(h, x + linear(h + ".mlp.c_proj", hidden))
    logits = keep("logits", norm("ln_f", x) @ p["wte.weight"].T)
    loss = F.cross_entropy(logits, torch.tensor(window[1:]))
    loss.backward()
    seen = {
        name: [[row[: t + 1] for t, row in enumerate(rows)] for rows in x.tolist()]
        if name.endswith(".attn")
        else x.tolist()
        for name, x in kept.items()
    }
    return {
        "format": "microgpt trace",
        "version": 1,
        "engine": "PyTorch",
        "config": {name: getattr(c, name) for name in c.__dataclass_fields__},
        "tokens": window[:-1],
        "positions": list(range(n)),
        "targets": window[1:],
        "loss": loss.item(),
        "activations": seen,
        "gradients": {
            name: x.grad.tolist()
            for name, x in {**p, **kept}.items()
            if not name.endswith(".attn")
        },
    }


def test_a_port_to_pytorch_is_equal_and_its_mistake_is_found(
    capsys, tmp_path, saved, trace
):
    torch = pytest.importorskip("torch")
    model = microgpt.load_model(saved)
    window = trace["tokens"] + trace["targets"][-1:]
    compared(capsys, tmp_path, trace, port(torch, model, window), status=0)
    model.params["h.1.ln_2.bias"][5] += 1e-3
    out = compared(capsys, tmp_path, trace, port(torch, model, window), status=1)
    assert out.startswith("first difference: activation h.1.ln_2[0][5]\n")
    assert "activation logits" in out and "gradient   wte.weight" in out
    assert "activation h.0" not in out


# --- The drawings ---------------------------------------------------------------------


def test_attention_is_drawn_as_it_is(capsys, saved, trace):
    """There is a row for each token, and in it a cell for each token that it sees."""
    grids = panels(shown(capsys, saved, TEXT, "--attention"))
    assert [title.split(":")[0] for title in grids] == [
        "h.0 head 0",
        "h.0 head 1",
        "h.1 head 0",
        "h.1 head 1",
    ]
    labels = ["<|>", *TEXT]
    for title, lines in grids.items():
        assert [line.split() for line in lines[:3]] == [["<"], ["|"], [">", *TEXT]]
        i, j = map(int, re.findall("[0-9]", title))
        weights = trace["activations"][f"h.{i}.attn"][j]
        assert [line.split() for line in lines[3:]] == [
            [name, "".join(2 * share(w) for w in row)]
            for name, row in zip(labels, weights)
        ]


def share(weight):
    return (
        "█"
        if weight >= 0.5
        else "▓"
        if weight >= 0.25
        else "▒"
        if weight >= 0.1
        else "░"
        if weight >= 0.02
        else "·"
    )


def test_the_legend_of_attention_says_what_the_shades_are(capsys, saved):
    assert "· 0%  ░ 2%  ▒ 10%  ▓ 25%  █ 50%" in shown(
        capsys, saved, TEXT, "--attention"
    )


def test_the_residual_rows_end_in_their_lengths(capsys, saved, trace):
    grids = panels(shown(capsys, saved, TEXT, "--residual"))
    assert [title.split(":")[0] for title in grids] == ["embeddings", "h.0", "h.1"]
    for title, lines in grids.items():
        rows = trace["activations"][title.split(":")[0]]
        printed = [float(line.split()[-1]) for line in lines]
        lengths = [math.sqrt(sum(x * x for x in row) / len(row)) for row in rows]
        assert printed == pytest.approx(lengths, rel=1e-3) and len(rows) == 8


def test_the_residual_s_shades_are_as_the_legend_says(capsys, saved, trace):
    """Each shade stands for the numbers between its own number and the next one's."""
    out = shown(capsys, saved, TEXT, "--residual")
    begins = [float(x) for x in re.findall(r"[·░▒▓█] ([0-9][-+.e0-9]*)", out)]
    largest = max(
        abs(x)
        for name in ("embeddings", "h.0", "h.1")
        for x in numbers(trace["activations"][name])
    )
    assert f"at most {largest:.3g};" in out and begins[-1] == pytest.approx(
        largest / 2, rel=0.01
    )
    shades = set()
    for title, lines in panels(out).items():
        for line, row in zip(lines, trace["activations"][title.split(":")[0]]):
            cells = line.split()[1][::2]
            assert len(cells) == len(row)
            for cell, x in zip(cells, map(abs, row)):
                k = "·░▒▓█".index(cell)
                assert x >= begins[k] * 0.99 and (k == 4 or x <= begins[k + 1] * 1.01)
            shades.update(cells)
    assert len(shades) >= 4


def test_wide_embeddings_are_grouped_honestly(capsys, tmp_path, tokenizer):
    """150 dimensions make groups, whose mean absolute values are what is drawn."""
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, 8, n_head=2, n_embd=150))
    for row in model.params["wpe.weight"]:
        row[:] = [0.0] * 150
    for row in model.params["wte.weight"]:
        row[:] = [-8.0, 0.0, 4.0] + [
            0.0
        ] * 147  # the group's mean is 4, if it is of three
    for name in "attn.c_proj", "mlp.c_proj":
        model.params[f"h.0.{name}.weight"] = [
            [0.0] * len(row) for row in model.params[f"h.0.{name}.weight"]
        ]
    microgpt.save_model(model, tmp_path, tokenizer)
    out = shown(capsys, tmp_path, "ada", "--residual")
    assert "mean of 3 numbers" in out and "at most 4;" in out and "█ 2" in out
    for lines in panels(out).values():
        for line in lines:
            assert line.split() == [
                line.split()[0],
                "█" + 49 * "·",
                f"{math.sqrt(80 / 150):.4g}",
            ]


def test_in_brief_it_shows_what_the_last_token_sees(capsys, saved, trace):
    attention, residual = panels(shown(capsys, saved, TEXT)).values()
    rows = [trace["activations"][f"h.{i}.attn"][j][-1] for i in (0, 1) for j in (0, 1)]
    assert [line.split()[-1] for line in attention[-4:]] == [
        "".join(2 * share(w) for w in row) for row in rows
    ]
    ends = [
        math.sqrt(sum(x * x for x in trace["activations"][name][-1]) / 8)
        for name in ("embeddings", "h.0", "h.1")
    ]
    assert [float(line.split()[-1]) for line in residual] == pytest.approx(
        ends, rel=1e-3
    )


def test_neighbours_are_the_nearest_by_angle(capsys, tmp_path):
    """b points as a does, c is 45 degrees off, d opposite, e at a right angle."""
    tokenizer = microgpt.CharTokenizer(["abcde"])
    model = microgpt.GPT(microgpt.Config(6, 8, n_head=1, n_embd=2))
    model.params["wte.weight"][:] = [
        [1.0, 0.0],
        [9.0, 0.0],
        [2.0, 2.0],
        [-3.0, 0.0],
        [0.0, 5.0],
        [0.0, 0.0],
    ]
    microgpt.save_model(model, tmp_path, tokenizer)
    lines = (
        shown(capsys, tmp_path, "aada", "--neighbours").rstrip("\n").split("\n")[-3:]
    )
    assert [line.split() for line in lines] == [
        ["<|>", "a", "0.00", "b", "0.00", "c", "0.00", "d", "0.00"],
        ["a", "b", "1.00", "c", "0.71", "e", "0.00", "<|>", "0.00"],
        ["d", "e", "0.00", "<|>", "0.00", "c", "-0.71", "a", "-1.00"],
    ]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """A model with subword tokens and a block of 100, which is too long for a line."""
    tokenizer = microgpt.BPETokenizer.train(["extraordinarily " * 9], 270)
    directory = tmp_path_factory.mktemp("awkward")
    model = microgpt.GPT(microgpt.Config(270, 100, n_head=2, n_embd=100))
    microgpt.save_model(model, directory, tokenizer)
    return directory


ODD = (
    " extraordinarily\n\t\x1b[31m 天地 e\u0301 \u200b \U0001f642 \u05d0 \x85 \u2028" * 6
)


@pytest.mark.parametrize("option", ["--", "--attention", "--residual", "--neighbours"])
def test_odd_and_many_tokens_do_not_break_the_grid(capsys, awkward, option):
    """No line is too long (`shown` looks), and each character takes one column."""
    out = shown(capsys, option, awkward, ODD)
    assert {c for c in out if not c.isprintable()} == {"\n"}
    assert not set(out) & set("天地\u0301\U0001f642")
    assert "only the first 100 of " in out


def test_only_the_last_tokens_are_drawn_where_not_all_fit(capsys, awkward):
    traced = xray.TracedGPT(microgpt.load_model(awkward))
    tokenizer = microgpt.load_tokenizer(awkward)
    traced(microgpt.cut_windows(ODD, tokenizer, 100)[0][:-1])
    grids = panels(shown(capsys, awkward, ODD, "--attention"))
    names = [
        line.split()[0]
        for line in panels(shown(capsys, awkward, ODD, "--residual"))[
            "h.0: rows are tokens, columns dimensions"
        ]
    ]
    for (title, lines), rows in zip(grids.items(), traced.trace["h.0.attn"]):
        n = int(re.search(r"\(the last (\d+) of 100 tokens\)$", title).group(1))
        above = lines[:-n]
        below = [line.split() for line in lines[-n:]]
        assert (
            70 <= n < 100
            and below
            == [
                [name, "".join(map(share, row[100 - n :]))]
                for name, row in zip(names, rows)
            ][-n:]
        )
        left = len(above[-1]) - n
        columns = zip(*[line.ljust(left + n)[left:] for line in above])
        assert ["".join(column).strip() for column in columns] == names[-n:]


def test_odd_characters_are_spelt_out(capsys, tmp_path):
    tokenizer = microgpt.CharTokenizer(["a \n天\u0301\x1b\u200b\U0001f642"])
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    microgpt.save_model(model, tmp_path, tokenizer)
    out = shown(capsys, tmp_path, "a \n天\u0301\x1b\u200b\U0001f642", "--residual")
    for lines in panels(out).values():
        assert [line.split()[0] for line in lines] == [
            "<|>",
            "a",
            "_",
            r"\n",
            r"\u5929",
            r"\u0301",
            r"\x1b",
            r"\u200b",
            r"\U0001f~",
        ]
        assert len(set(map(len, (line.rstrip("0123456789.e-") for line in lines)))) == 1


def test_an_output_that_knows_only_ascii_gets_only_ascii(saved):
    for options in [], ["--attention", "--residual", "--neighbours"]:
        result = child(saved, TEXT, *options, PYTHONIOENCODING="ascii")
        assert (result.returncode, result.stderr) == (0, b"")
        assert (
            result.stdout.isascii()
            and b"\x1b" not in result.stdout
            and b"#" in result.stdout
        )


def test_a_letter_that_the_output_lacks_is_spelt_out(monkeypatch, tmp_path):
    tokenizer = microgpt.CharTokenizer(["caf\xe9"])
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    microgpt.save_model(model, tmp_path, tokenizer)
    for encoding, letter, shade in (
        ("ascii", r"\xe9", "."),
        ("latin-1", "\xe9", "."),
        ("utf-8", "\xe9", "·"),
    ):
        output = io.TextIOWrapper(
            io.BytesIO(), encoding=encoding
        )  # strict: it would raise
        monkeypatch.setattr(sys, "stdout", output)
        assert xray.main([str(tmp_path), "caf\xe9", "--residual"]) == 0
        last = output.buffer.getvalue().decode(encoding).split()[-3:]
        assert last[0] == letter and shade in last[1]


def test_a_piped_output_has_blocks_and_no_escape_codes(saved):
    result = child(saved, TEXT, "--attention", PYTHONIOENCODING="utf-8")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"\x1b" not in result.stdout and "█" in result.stdout.decode("utf-8")


# --- Bad input ------------------------------------------------------------------------


def test_bad_input_is_said_in_one_line(capsys, tmp_path, saved, trace):
    for name, contents in [
        ("text", "hello"),
        ("list", "[1, 2]"),
        ("other", '{"a": 1}'),
        ("deep", "[" * 10**5),
        ("cut", json.dumps(trace)[:-9]),
    ]:
        (tmp_path / name).write_text(contents, encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good").write_text(json.dumps(trace), encoding="utf-8")
    good = str(tmp_path / "good")
    for arguments in (
        [],
        [str(saved)],
        [str(saved), ""],
        [str(saved), "x!"],
        [str(tmp_path / "none"), "ada"],
        [str(tmp_path), "ada"],
        [str(saved), "ada", "--json", str(tmp_path)],
        [str(saved), "ada", "--json", str(tmp_path / "none" / "x.json")],
        [str(saved), "ada", "--compare", good, good],
        ["--compare", good, good, "--tolerance", "-1"],
        ["--compare", good, good, "--tolerance", "nan"],
        *(
            ["--compare", good, str(tmp_path / name)]
            for name in ("text", "list", "other", "deep", "cut", "bytes", "none")
        ),
    ):
        assert xray.main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("xray: ") and err.count("\n") == 1, (
            arguments
        )
    for folder in tmp_path, tmp_path.parent:
        assert not [name for name in os.listdir(folder) if name.endswith(".part")]


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
        ("activations", {"logits": None}),
        ("gradients", {"logits": [10**400]}),
        ("gradients", {"logits": {}}),
    ],
)
def test_a_spoiled_trace_is_refused(capsys, tmp_path, trace, field, value):
    (tmp_path / "A").write_text(json.dumps(trace), encoding="utf-8")
    (tmp_path / "B").write_text(json.dumps({**trace, field: value}), encoding="utf-8")
    for names in "AB", "BA":
        assert xray.main(["--compare", *(str(tmp_path / name) for name in names)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "is not a trace" in err


def test_the_exit_statuses_are_those_of_the_process(tmp_path, saved, trace):
    (tmp_path / "A").write_text(json.dumps(trace), encoding="utf-8")
    (tmp_path / "B").write_text(json.dumps({**trace, "loss": 0}), encoding="utf-8")
    for names, status in ("AA", 0), ("AB", 1), ("AC", 2):
        result = child("--compare", *(tmp_path / name for name in names))
        assert result.returncode == status
        assert result.stderr.count(b"\n") == (status == 2)
