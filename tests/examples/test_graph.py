"""examples/graph.py draws the true graph, with the derivatives that nudging finds."""

import ast
import math
import os
import re
import subprocess
import sys
from collections import Counter

import graph
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import Value

GRAPH = graph.__file__
NODE = re.compile(r'  (n\d+) \[label="((?:[^"\\]|\\.)*)\\ndata (\S+)\\ngrad (\S+)"\];')
EDGE = re.compile(r'  (n\d+) -> (n\d+) \[label="(\S+)"\];')
LINE = re.compile(
    r"([ │├└]*)(\S.*?)( \(above\)| \(below\))?(?:  +(\S+) +(\S+))?"
    r"(?:  +(\S+) × +(\S+) = (\S+))?"
)
PLAIN = {
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "relu": lambda x: max(0.0, x),
}

expressions = st.recursive(
    st.sampled_from(["a", "b", "c", "2", "0.5", "3"]),
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-*/"), part).map(
            "({0[0]} {0[1]} {0[2]})".format
        ),
        st.tuples(part, st.sampled_from(["2", "-1", "0.5", "b"])).map(
            "({0[0]}) ** {0[1]}".format
        ),
        st.tuples(st.sampled_from(["-", *PLAIN]), part).map("{0[0]}({0[1]})".format),
    ),
    max_leaves=8,
)
inputs = st.fixed_dictionaries(
    {name: st.floats(0.5, 2) | st.floats(-2, -0.5) for name in "abc"}
)


def computed(text, at):
    """An expression's Value after backward(), and its names. If none, try others."""
    try:
        value, names = graph.compute(text, at)
    except ValueError:
        assume(False)
    value.backward()
    return value, names


def read_dot(text):
    """DOT -> ([(key, label, data, grad), ...], [(parent, child, local), ...])."""
    first, shape, *lines, last = text.split("\n")
    assert (first, shape, last) == ("digraph {", "  node [shape=box];", "}")
    nodes = [NODE.fullmatch(line).groups() for line in lines if "->" not in line]
    edges = [EDGE.fullmatch(line).groups() for line in lines if "->" in line]
    return (
        [(key, label, float(data), float(grad)) for key, label, data, grad in nodes],
        [(parent, child, float(local)) for parent, child, local in edges],
    )


def read_tree(text):
    """A tree -> [(guides, label, note, (data, grad), (local, grad, share)), ...]."""
    title, *lines = [line for line in text.split("\n") if line]
    assert title.split() == ["data", "grad", "local", "×", "parent's", "grad"]
    found = [LINE.fullmatch(line).groups() for line in lines]
    return [
        (
            guide,
            label,
            note,
            tuple(float(x) for x in numbers[:2] if x),
            tuple(float(x) for x in numbers[2:] if x),
        )
        for guide, label, note, *numbers in found
    ]


def reachable(value):
    found = {}
    queue = [value]
    for node in queue:
        if id(node) not in found:
            found[id(node)] = node
            queue += node.children
    return found


def add_up(edges):
    """[(node, share of its grad), ...] -> their sums, and the sums of their sizes."""
    sums = Counter()
    sizes = Counter()
    for node, share in edges:
        sums[node] += share
        sizes[node] += abs(share)
    return sums, sizes


def bare(text):
    return re.sub(r"[\s()]", "", text)


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, GRAPH, *args],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


# --- The drawings are true ------------------------------------------------------------


@given(expressions, inputs)
def test_data_and_grads_are_those_of_nudging_the_plain_formula(text, at):
    def f(**nudged):
        return eval(text, {**PLAIN, **at, **nudged})

    value, names = computed(text, at)
    for node in reachable(value).values():  # not next to where there is no derivative
        assume(all(abs(x) < 100 for x in (node.data, *node.local_grads)))
    nodes, _ = read_dot(graph.dot(value, names))
    assert nodes[0][2] == pytest.approx(f(), rel=1e-5, abs=1e-12)
    for _, label, data, grad in nodes:
        if label in at:
            step = 1e-6
            up = (f(**{label: at[label] + step}) - f()) / step
            down = (f() - f(**{label: at[label] - step})) / step
            assume(abs(up - down) < 1e-3 * max(1, abs(up)))  # no kink, as relu has at 0
            assert data == pytest.approx(at[label], rel=1e-5)
            assert grad == pytest.approx((up + down) / 2, rel=1e-3, abs=1e-3)


@given(expressions, inputs)
def test_in_dot_every_grad_is_the_sum_of_local_times_parents_grad(text, at):
    nodes, edges = read_dot(graph.dot(*computed(text, at)))
    grad = {key: grad for key, _, _, grad in nodes}
    sums, sizes = add_up(
        (child, local * grad[parent]) for parent, child, local in edges
    )
    assert grad.pop("n0") == 1
    for key in grad:  # all numbers are rounded to six digits
        assert grad[key] == pytest.approx(sums[key], rel=1e-5, abs=2e-5 * sizes[key])


@given(expressions, inputs)
def test_dot_has_every_node_once_and_every_edge_once(text, at):
    value, names = computed(text, at)
    nodes, edges = read_dot(graph.dot(value, names))
    labels = {key: label for key, label, _, _ in nodes}
    assert (
        len(labels) == len(nodes) == len(set(labels.values())) == len(reachable(value))
    )
    drawn = Counter(
        (labels[parent], labels[child], local) for parent, child, local in edges
    )
    name = graph.labels(value, names)
    assert drawn == Counter(
        (name[id(node)], name[id(child)], float(f"{local:.6g}"))
        for node in reachable(value).values()
        for child, local in zip(node.children, node.local_grads)
    )


@given(expressions, inputs)
def test_a_tree_has_every_node_in_full_once_and_a_line_for_every_edge(text, at):
    value, names = computed(text, at)
    lines = read_tree(graph.tree(value, {}))  # v1, v2, ...: names that fit
    full = {label: numbers for _, label, note, numbers, _ in lines if not note}
    name = graph.labels(value, {})
    assert sum(not note for _, _, note, _, _ in lines) == len(full)
    for key, node in reachable(value).items():
        assert full[name[key]] == (
            float(graph.number(node.data)),
            float(graph.number(node.grad)),
        )
    assert sum(len(edge) == 3 for *_, edge in lines) == sum(
        len(node.children) for node in reachable(value).values()
    )
    sums, _ = add_up((label, edge[2]) for _, label, *_, edge in lines if edge)
    _, sizes = add_up((label, abs(edge[2])) for _, label, *_, edge in lines if edge)
    for label in full.keys() - {"v1"}:  # two digits at least, in -1.2e-05
        assert full[label][1] == pytest.approx(sums[label], abs=0.11 * sizes[label])


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=30)
)
def test_what_is_above_is_above_and_what_is_below_is_below(pairs):
    made = [Value(0.5), Value(1.5), Value(-1.0)]
    for i, j in pairs:  # a graph that is deep, with much sharing
        made.append(made[-i] * made[-j] + 1.0)
    lines = read_tree(graph.tree(made[-1]))
    place = {label: i for i, (_, label, note, *_) in enumerate(lines) if not note}
    assert len(place) == len(reachable(made[-1]))
    for i, (_, label, note, *_) in enumerate(lines):
        assert note is None or (note == " (above)") == (place[label] < i)


def test_the_graph_that_explains_the_topological_order_is_drawn_as_small_as_it_is():
    value, names = graph.compute("b = a + a; c = b + b; b + c", {"a": 3.0})
    value.backward()
    assert read_tree(graph.tree(value, names)) == [
        ("", "b + c", None, (18, 1), ()),
        ("├ ", "b = a + a", None, (6, 3), (1, 1, 1)),
        ("│ ├ ", "a", None, (3, 6), (1, 3, 3)),
        ("│ └ ", "a", " (above)", (), (1, 3, 3)),
        ("└ ", "c = b + b", None, (12, 1), (1, 1, 1)),
        ("  ├ ", "b", " (above)", (), (1, 1, 1)),
        ("  └ ", "b", " (above)", (), (1, 1, 1)),
    ]


def test_a_chain_of_doublings_takes_two_lines_a_node_and_no_more():
    value = leaf = Value(1.0)
    for _ in range(40):  # 2 ** 40 paths
        value = value + value
    value.backward()
    lines = read_tree(graph.tree(value))
    assert sum(bool(edge) for *_, edge in lines) == 80
    assert leaf.grad == 2.0**40


def test_depth_is_no_limit():
    value = leaf = Value(1.0)
    for _ in range(5_000):
        value = value + leaf
    value.backward()
    lines = graph.tree(value).split("\n")
    assert sum("×" in line for line in lines[1:]) == 10_000
    assert max(map(len, lines)) <= 80
    assert graph.dot(value).count("->") == 10_000


def test_equal_parts_are_two_nodes_and_what_python_hides_is_named():
    value, names = graph.compute("(a * b) - (a * b) / b + 2 ** a", {"a": 2.0, "b": 4.0})
    value.backward()
    labels = [label for _, label, _, _ in read_dot(graph.dot(value, names))[0]]
    assert sorted(labels) == sorted(
        [
            "a * b - a * b / b + 2 ** a",
            "a * b - a * b / b",
            "a * b",
            "a",
            "b",
            "-(a * b / b)",
            "a * b / b",
            "a * b #2",
            "b ** -1",
            "2 ** a",
            "2",
        ]
    )


def test_numbers_alone_and_names_alone_are_graphs_of_one_node():
    for text in ("1 + 2 * 3 - -1", "x = 8; x", "x"):
        value, names = graph.compute(text, {"x": 8.0} if text == "x" else {})
        assert (value.data, value.children) == (8.0, ())
        value.backward()
        [(guide, _, note, numbers, edge)] = read_tree(graph.tree(value, names))
        assert (guide, note, numbers, edge) == ("", None, (8, 1), ())


@pytest.mark.parametrize("name", graph.LAYERS)
def test_layers_are_microgpts_own(name, capsys):
    assert graph.main(["--layer", name, "--dot"]) == 0
    nodes, edges = read_dot(capsys.readouterr().out.rstrip("\n"))
    x = [1.0, -0.5, 2.0]
    layer = {
        "softmax": lambda: microgpt.softmax(x),
        "gelu": lambda: microgpt.gelu([x])[0],
        "layernorm": lambda: microgpt.layernorm([x], [1.0] * 3, [0.0] * 3)[0],
    }[name]
    assert nodes[0][1:3] == (f"{name}(x)[0]", pytest.approx(layer()[0], rel=1e-5))
    assert {label: data for _, label, data, _ in nodes if label[:2] == "x["} == {
        f"x[{i}]": x[i] for i in range(1 if name == "gelu" else 3)
    }


def test_a_tensor_is_refused():
    with pytest.raises(TypeError, match="use Values"):
        graph.tree(microgpt.Tensor([1.0, 2.0])[0] * 2.0)


# --- How they look --------------------------------------------------------------------


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.text(max_size=99))
def test_any_numbers_and_names_fit_into_80_columns(x, y, name):
    a = Value(x)
    value = a
    for _ in range(9):
        value = Value(y, (value, a), (x, y))
    value.grad = a.grad = y
    for line in graph.tree(value, {id(a): name}).split("\n"):
        assert len(line) <= 80 and line.isprintable()


@given(st.floats(allow_nan=False))
def test_a_number_has_eight_characters_and_the_digits_that_fit_into_them(x):
    text = graph.number(x)
    assert len(text) <= 8
    assert float(text) == pytest.approx(x, rel=0.5) or x == 0 or math.isinf(float(text))
    if 1e-2 <= abs(x) < 1e5:
        assert float(text) == pytest.approx(x, rel=6e-4)


@given(st.text())
def test_labels_are_escaped_for_dot(name):
    value = Value(1.0)
    [(_, label, data, _)], [] = read_dot(graph.dot(value, {id(value): name}))
    assert re.sub(r"\\(.)", r"\1", label) == "".join(
        c if c.isprintable() else " " for c in name
    )
    assert data == 1


def test_it_prints_what_its_docstring_shows():
    child = run("a * b + a ** 2", "a=2", "b=-3")
    assert child.returncode == 0 and child.stderr == ""
    assert len(child.stdout.split("\n")) == 8
    assert child.stdout in re.sub("^    ", "", graph.__doc__, flags=re.MULTILINE)


def test_without_arguments_it_draws_something_with_a_shared_node():
    child = run()
    assert (
        child.returncode == 0 and "tanh" in child.stdout and "(above)" in child.stdout
    )


def test_where_the_output_has_no_guides_they_are_drawn_in_ascii():
    boxed = run()
    plain = run(PYTHONIOENCODING="ascii")
    assert not boxed.stdout.isascii() and plain.stdout.isascii()
    assert plain.stdout == boxed.stdout.translate(str.maketrans("│├└×", "||`x"))
    letters = run("\u03b1 * 2", "\u03b1=1", PYTHONIOENCODING="ascii")
    assert letters.returncode == 0 and "\\u03b1 * 2" in letters.stdout


def test_options_may_stand_anywhere(capsys):
    for args in (
        ["--dot", "a * 2", "a=1"],
        ["a * 2", "--dot", "a=1"],
        ["a * 2", "a=1", "--dot"],
    ):
        assert graph.main(args) == 0
        assert capsys.readouterr().out.startswith("digraph {")


# --- What it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.b",
        "a.__class__",
        "a[0]",
        "exp(a, b)",
        "exp(*a)",
        "exp(x=a)",
        "exp()",
        "exp(a, x=b)",
        "print(a)",
        "exp(a)(b)",
        "(lambda: 1)()",
        "[a for a in b]",
        "a if b else c",
        "a and b",
        "not a",
        "a < b",
        "+a",
        "a // 2",
        "a % 2",
        "a @ b",
        "~a",
        "'a'",
        "f'{a}'",
        "True",
        "None",
        "2j",
        "...",
        "(a := 2)",
        "a, b",
        "{a}",
        "import os",
        "def f(): pass",
        "del a",
        "a += 1",
        "a: int = 2",
        "x = y = a",
        "x, y = a",
        "a.b = 2",
        "a = 3",
        "a; b",
        "return a",
        "await a",
        "*a",
    ],
)
def test_what_is_no_arithmetic_is_refused_in_one_line_that_names_it(text, capsys):
    assert graph.main([text, "a=2", "b=3"]) == 1
    out, error = capsys.readouterr()
    named = re.fullmatch(
        r"graph: (.*) is not (allowed here, only .*|an expression: .*)\n", error
    )
    assert out == "" and bare(ast.literal_eval(named[1])) in bare(text)


@pytest.mark.parametrize(
    "text, named, problem",
    [
        ("a + 9 ** 9 ** 9 ** 9", "9 ** 9 ** 9:", "large"),
        ("a + exp(1000 * a)", "exp(1000 * a):", ""),
        ("1 + a / 0", "a / 0:", "zero"),
        ("1 + a / b", "a / b:", "zero"),
        ("b ** 0.5", "b ** 0.5:", ""),
        ("log(-a) * 2", "log(-a):", ""),
        ("log(b)", "log(b):", ""),
        ("(-a) ** 0.5", "(-a) ** 0.5:", ""),
        ("a + (-8) ** 0.5", "(-8) ** 0.5:", "real"),
        ("1e200 * a * 1e200", "a * 1e+200:", "finite"),
        ("a + 1e999", "1e309:", "finite"),
        ("log(a * 1e-320)", "log(a * 1e-320):", "finite"),
        ("a ** c", "c", "add c=NUMBER"),
        ("a +", "'a +'", "not an expression"),
        ("", "''", "empty"),
        ("a\0b", "", ""),
        ("a + \udc80", "", ""),
        ("1" + "0" * 400, "", "large"),
        ("0x" + "f" * 9000, "", ""),
        ("(" * 500 + "a" + ")" * 500, "", ""),
        ("a +" * 9000 + "a", "", "too deeply"),
        ("x-" + "-" * 9000 + "a", "", "too deeply"),
    ],
    ids=lambda text: text[:20],
)
def test_what_cannot_be_computed_is_one_line_that_names_the_part(
    text, named, problem, capsys
):
    assert graph.main([text, "a=2", "b=0"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("graph: ") and error.count("\n") == 1
    assert named in error and problem in error and len(error) < 300


@pytest.mark.parametrize(
    "word", ["a", "a=", "=2", "a=b", "a=nan", "a=inf", "1=2", "a.b=2", "b=1"]
)
def test_numbers_that_are_none_are_refused(word, capsys):
    assert graph.main(["a * b", "b=1", word]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and repr(word) in error


def test_an_expression_or_a_layer_but_not_both(capsys):
    assert graph.main(["a", "a=1", "--layer", "gelu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as exit:
        graph.main(["--layer", "attention"])
    assert exit.value.code == 2


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab()+-*/.,=;:' \n1e9xpl\\\"#[]{}"), max_size=12))
def test_any_text_is_drawn_or_refused(text):
    try:
        value, names = graph.compute(text, {"a": 2.0, "b": -1.0})
    except (ValueError, RecursionError, MemoryError) as error:
        assert len(str(error).split("\n")) == 1
    else:
        value.backward()
        read_tree(graph.tree(value))
        read_dot(graph.dot(value, names))
