"""examples/graph.py draws the true graph, with the derivatives that nudging finds."""

import ast
import math
import re
from collections import Counter

import graph
import pytest
from helpers import is_one_line, program, works
from hypothesis import assume, example, given
from hypothesis import strategies as st

import microgpt
from microgpt import Value

NODE = re.compile(r'  (n\d+) \[label="((?:[^"\\]|\\.)*)\\ndata (\S+)\\ngrad (\S+)"\];')
EDGE = re.compile(r'  (n\d+) -> (n\d+) \[label="(\S+)"\];')
LINE = re.compile(
    r"([ │├└]*)(\S.*?)( \(above\)| \(below\))?(?:  +(\S+) +(\S+))?"
    r"(?:  +(\S+) × +(\S+) = (\S+))?"
)
PLAIN = {name: getattr(math, name) for name in "exp log tanh".split()}
PLAIN["relu"] = lambda x: max(0.0, x)


def grown(part):
    """Larger expressions from smaller ones."""
    binary = st.tuples(part, st.sampled_from("+-*/"), part)
    power = st.tuples(part, st.sampled_from("2 -1 0.5 b".split()))
    call = st.tuples(st.sampled_from(["-", *PLAIN]), part)
    return (
        binary.map("({0[0]} {0[1]} {0[2]})".format)
        | power.map("({0[0]}) ** {0[1]}".format)
        | call.map("{0[0]}({0[1]})".format)
    )


leaves = st.sampled_from("a b c 2 0.5 3".split())
expressions = st.recursive(leaves, grown, max_leaves=8)
numbers = st.floats(0.5, 2) | st.floats(-2, -0.5)
inputs = st.fixed_dictionaries(dict.fromkeys("abc", numbers))


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
    nodes = []
    edges = []
    for line in lines:
        if "->" in line:
            parent, child, local = EDGE.fullmatch(line).groups()
            edges.append((parent, child, float(local)))
        else:
            key, label, data, grad = NODE.fullmatch(line).groups()
            nodes.append((key, label, float(data), float(grad)))
    return nodes, edges


def read_tree(text):
    """A tree -> [(guides, label, note, (data, grad), (local, grad, share)), ...]."""
    title, *lines = [line for line in text.split("\n") if line]
    assert title.split() == ["data", "grad", "local", "×", "parent's", "grad"]
    found = []
    for line in lines:
        guides, label, note, *texts = LINE.fullmatch(line).groups()
        own = tuple(float(x) for x in texts[:2] if x)
        edge = tuple(float(x) for x in texts[2:] if x)
        found.append((guides, label, note, own, edge))
    return found


def reachable(value):
    """{id: node} of all that a Value was computed from, and of itself."""
    found = {}
    queue = [value]
    for node in queue:
        if id(node) not in found:
            found[id(node)] = node
            queue += node.children
    return found


# --- The drawings are true ---


@given(expressions, inputs)
@example("relu(a) + relu(b)", {"a": 1.5, "b": -0.5, "c": 1.0})
def test_data_and_grads_are_those_of_nudging_the_plain_formula(text, at):
    def f(**nudged):
        return eval(text, {**PLAIN, **at, **nudged})

    value, names = computed(text, at)
    for node in reachable(value).values():  # not next to where there is no derivative
        assume(all(abs(x) < 100 for x in (node.data, *node.local_grads)))
    nodes, _ = read_dot(graph.dot(value, names))
    assert nodes[0][2:] == (pytest.approx(f(), rel=1e-5, abs=1e-12), 1)
    for _, label, data, grad in nodes:
        if label in at:
            step = 1e-6
            up = (f(**{label: at[label] + step}) - f()) / step
            down = (f() - f(**{label: at[label] - step})) / step
            assume(abs(up - down) < 1e-3 * max(1, abs(up)))  # no kink, as relu has at 0
            assert data == pytest.approx(at[label], rel=1e-5)
            assert grad == pytest.approx((up + down) / 2, rel=1e-3, abs=1e-3)


def rounded(digits, *numbers):
    return tuple(float(digits(x)) for x in numbers)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=30))
def test_both_drawings_have_every_node_once_and_every_edge_once(pairs):
    made = [Value(0.5), Value(1.5), Value(-1.0)]
    for i, j in pairs:  # a graph that is deep, with much sharing
        made.append(microgpt.tanh(made[-i] * made[-j]))
    made[-1].backward()
    nodes = reachable(made[-1])
    label = graph.labels(made[-1], {})
    in_dot, dot_edges = read_dot(graph.dot(made[-1]))
    lines = read_tree(graph.tree(made[-1]))
    full = {name: own for _, name, note, own, _ in lines if not note}
    place = {name: i for i, (_, name, note, *_) in enumerate(lines) if not note}
    assert len(nodes) == len(full) == sum(not note for _, _, note, *_ in lines)
    assert len(nodes) == len(in_dot)
    names = {key: name for key, name, *_ in in_dot}
    dot_edges = Counter((names[x], names[y], local) for x, y, local in dot_edges)
    tree_edges = Counter((name, edge) for _, name, _, _, edge in lines if edge)
    six = "{:.6g}".format
    for key, node in nodes.items():
        name = label[key]
        assert full[name] == rounded(graph.number, node.data, node.grad)
        assert (name, *rounded(six, node.data, node.grad)) in [x[1:] for x in in_dot]
        for child, local in zip(node.children, node.local_grads):
            child = label[id(child)]
            edge = local, node.grad, local * node.grad
            dot_edges[name, child, float(six(local))] -= 1
            tree_edges[child, rounded(graph.number, *edge)] -= 1
    assert not any(dot_edges.values()) and not any(tree_edges.values())
    for i, (_, name, note, _, edge) in enumerate(lines):
        if note:
            assert edge and (note == " (above)") == (place[name] < i)


def test_the_graph_that_explains_the_topological_order():
    value, names = graph.compute("b = a + a; c = b * b; b + c", {"a": 3.0})
    value.backward()
    assert read_tree(graph.tree(value, names)) == [
        ("", "b + c", None, (42, 1), ()),
        ("├ ", "b = a + a", None, (6, 13), (1, 1, 1)),
        ("│ ├ ", "a", None, (3, 26), (1, 13, 13)),
        ("│ └ ", "a", " (above)", (), (1, 13, 13)),
        ("└ ", "c = b * b", None, (36, 1), (1, 1, 1)),
        ("  ├ ", "b", " (above)", (), (6, 1, 6)),
        ("  └ ", "b", " (above)", (), (6, 1, 6)),
    ]


def test_the_docstring_shows_what_it_prints(capsys):
    assert graph.main(["a * b + a ** 2", "a=2", "b=-3"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 7
    assert out in re.sub("^    ", "", graph.__doc__, flags=re.MULTILINE)


def test_a_deep_graph_is_not_too_deep_and_not_too_wide():
    value = leaf = Value(1.0)
    for _ in range(2_000):
        value = value + leaf
    value.backward()
    lines = graph.tree(value).split("\n")
    assert sum("×" in line for line in lines[1:]) == 4_000
    assert max(map(len, lines)) <= 79
    assert graph.dot(value).count("->") == 4_000


@pytest.mark.parametrize(
    "words, said",
    [
        (["1e999"], "1e999: too large a number"),
        (["a + 0x" + "1" * 5000, "a=1"], "0x" + "1" * 48 + ": too large a number"),
        (["1" * 400], "1" * 50 + ": too large a number"),
        (["\u0430 * 2", "a=1"], "\u0430 (U+0430) has no value: add .*; given: a$"),
        (["a * 2", "\u0430=1"], "a has no value: add a=.*; given: \u0430 (U+0430)$"),
        (["a * 2", "b=1"], "a has no value: add a=NUMBER$"),
        (["fi", "\ufb01=1", "fi=2"], "'fi=2' must be .* each name once"),
        (["a", "a=" + "1" * 5000], "'a=" + "1" * 48 + "' must be a name"),
    ],
)
def test_what_was_typed_is_what_is_blamed(words, said, capsys):
    assert graph.main(words) == 1
    out, error = capsys.readouterr()
    said = said.replace("(U+", r"\(U\+").replace(")", r"\)")
    assert out == "" and re.match(f"graph: {said}", error)


@pytest.mark.parametrize("n", [4301, 10_000])
def test_a_number_of_thousands_of_digits_is_blamed_itself(n, capsys):
    assert graph.main(["1" * n]) == 1
    error = capsys.readouterr().err
    assert len(error) < 150 and re.search("many digits|too large", error)


@pytest.mark.parametrize("name", ["\xb5", "\u03bc", "\ufb01", "\u212b"])
def test_names_are_folded_as_python_folds_them(name, capsys):
    assert graph.main([f"{name} * 2", f"{name}=3"]) == 0
    assert "* 2     6" in capsys.readouterr().out


def test_wide_names_and_accents_stand_in_straight_columns():
    wide = "\u5929"
    at = {wide: 1.0, "x\u0301": 2.0}
    value, names = graph.compute(f"{wide} * x\u0301", at)
    value.backward()
    title, *lines = graph.tree(value, names).split("\n")
    place = title.index("grad")
    for line, grad in zip(lines, "121"):
        line = line.replace(wide, "ab").replace("\u0301", "")
        assert line[place : place + 4] == f"   {grad}"


def test_equal_parts_are_two_nodes_and_what_python_hides_is_named():
    value, names = graph.compute("(a * b) - (a * b) / b + 2 ** a", {"a": 2.0, "b": 4.0})
    labels = sorted(graph.labels(value, names).values())
    assert "; ".join(labels) == (
        "-(a * b / b); 2; 2 ** a; a; a * b; a * b #2; a * b - a * b / b; "
        "a * b - a * b / b + 2 ** a; a * b / b; b; b ** -1"
    )


@pytest.mark.parametrize("text", ["1 + 2 * 3 - -1", "x = 8; x", "a"])
def test_a_number_and_a_name_are_graphs_of_one_node(text):
    value, names = graph.compute(text, {"a": 8.0})
    value.backward()
    [(guide, _, note, own, edge)] = read_tree(graph.tree(value, names))
    assert (guide, note, own, edge) == ("", None, (8, 1), ())


@pytest.mark.parametrize("name", graph.LAYERS)
def test_layers_are_microgpts_own(name, capsys):
    assert graph.main(["--layer", name, "--dot"]) == 0
    nodes, _ = read_dot(capsys.readouterr().out.rstrip("\n"))
    x = [1.0, -0.5, 2.0]
    result = {
        "softmax": microgpt.softmax(x),
        "gelu": microgpt.gelu([x])[0],
        "layernorm": microgpt.layernorm([x], [1.0] * 3, [0.0] * 3)[0],
    }[name]
    assert nodes[0][1:3] == (f"{name}(x)[0]", pytest.approx(result[0], rel=1e-5))
    inputs = {label: data for _, label, data, _ in nodes if label[:2] == "x["}
    seen = 1 if name == "gelu" else 3
    assert inputs == {f"x[{i}]": x[i] for i in range(seen)}


def test_a_tensor_is_refused():
    with pytest.raises(TypeError, match="use Values"):
        graph.tree(microgpt.Tensor([1.0, 2.0])[0] * 2.0)


# --- How they look ---


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.text(max_size=99))
@example(1.0, 2.0, "n" * 99)
@example(-1e-300, -1e-300, "n" * 99)
def test_any_numbers_and_names_fit_into_80_columns(x, y, name):
    a = Value(x)
    value = a
    for _ in range(9):
        value = Value(y, (value, a), (x, y))
    value.grad = a.grad = y
    for line in graph.tree(value, {id(a): name}).split("\n"):
        assert len(line) <= 79 and line.isprintable()


@given(st.floats(allow_nan=False))
@example(-1 / 30000)
def test_a_number_has_eight_characters_and_the_digits_that_fit_into_them(x):
    text = graph.number(x)
    assert len(text) <= 8
    assert float(text) == pytest.approx(x, rel=0.5) or x == 0 or math.isinf(float(text))
    if 1e-2 <= x < 1e5:
        assert float(text) == float(f"{x:.5g}")


@given(st.text())
@example('"\\n"')
def test_labels_are_escaped_for_dot(name):
    value = Value(1.0)
    [(_, label, *_)], [] = read_dot(graph.dot(value, {id(value): name}))
    printable = "".join(c if c.isprintable() else " " for c in name)
    assert re.sub(r"\\(.)", r"\1", label) == printable


def test_where_the_output_has_no_guides_they_are_drawn_in_ascii(capsys):
    graph.main([])
    boxed = capsys.readouterr().out
    assert "tanh" in boxed and "(above)" in boxed  # what it draws without arguments
    in_ascii = {"PYTHONIOENCODING": "ascii"}
    plain = works(script=program("graph"), env=in_ascii)
    assert plain == boxed.translate(str.maketrans("│├└×", "||`x"))
    letters = works("\u03b1 * 2", "\u03b1=1", script=program("graph"), env=in_ascii)
    assert "\\u03b1 * 2" in letters


@pytest.mark.parametrize("place", range(3))
def test_an_option_may_stand_anywhere(capsys, place):
    words = ["a * 2", "a=1"]
    words.insert(place, "--dot")
    assert graph.main(words) == 0
    assert capsys.readouterr().out.startswith("digraph {")


# --- What it refuses ---


@pytest.fixture
def refused(capsys):
    """A function that runs the command -> the line that says what is wrong."""

    def run(*words):
        assert graph.main(list(words)) == 1
        out, error = capsys.readouterr()
        assert out == "" and is_one_line(error, "graph")
        return error

    return run


NO_ARITHMETIC = """
__import__('os')|a.b|a.__class__|a[0]|exp(a, b)|exp(*a)|exp(x=a)|exp()|exp(a, x=b)|
print(a)|exp(a)(b)|(lambda: 1)()|[a for a in b]|a if b else c|a and b|not a|a < b|+a|
a // 2|a % 2|a @ b|~a|'a'|f'{a}'|True|None|2j|...|(a := 2)|a, b|{a}|import os|
del a|a += 1|a: int = 2|x = y = a|x, y = a|a.b = 2|a = 3|a; b|return a|
await a|*a"""


@pytest.mark.parametrize("text", NO_ARITHMETIC.replace("\n", "").split("|"))
def test_what_is_no_arithmetic_is_refused_and_named(text, refused):
    pattern = r"graph: (.*) is not (allowed here, only .*|an expression: .*)\n"
    named = re.fullmatch(pattern, refused(text, "a=2", "b=3"))
    without = str.maketrans("", "", " ()")
    assert ast.literal_eval(named[1]).translate(without) in text.translate(without)


@pytest.mark.parametrize(
    "text, named, problem",
    [
        ("a + 9 ** 9 ** 9 ** 9", "9 ** 9 ** 9:", "large"),
        ("a + exp(1000 * a)", "exp(1000 * a):", ""),
        ("1 + a / b", "a / b:", "zero"),
        ("log(-a) * 2", "log(-a):", ""),
        ("a + (-8) ** 0.5", "(-8) ** 0.5:", "real"),
        ("1e200 * a * 1e200", "a * 1e+200:", "finite"),
        ("a + 1e999", "1e999:", "large"),
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
def test_what_cannot_be_computed_is_named(text, named, problem, refused):
    error = refused(text, "a=2", "b=0")
    assert named in error and problem in error and len(error) < 300


@pytest.mark.parametrize("word", "a a= =2 a=b a=nan a=inf 1=2 a.b=2 b=1".split())
def test_what_is_not_a_name_and_its_number_is_refused(word, refused):
    assert repr(word) in refused("a * b", "b=1", word)


def test_an_expression_or_a_layer_but_not_both(refused):
    refused("a", "a=1", "--layer", "gelu")


@given(st.text(st.sampled_from("ab()+-*/.,=;:' \n1e9xpl\\\"#[]{}"), max_size=12))
def test_any_text_is_drawn_or_refused(text):
    try:
        value, names = graph.compute(text, {"a": 2.0, "b": -1.0})
    except (ValueError, RecursionError, MemoryError) as error:
        assert len(str(error).split("\n")) == 1
    else:
        value.backward()
        read_tree(graph.tree(value, names))
        read_dot(graph.dot(value, names))


def test_relu_of_what_is_not_a_number_is_not_a_number():
    assert math.isnan(graph.relu(math.nan))
    assert math.isnan(graph.relu(microgpt.Value(math.nan)).data)
    assert (graph.relu(-0.5), graph.relu(2.0)) == (0.0, 2.0)
