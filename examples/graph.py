"""Backpropagation to check by eye: the graph of Values behind a small expression, as a tree.

    python examples/graph.py                                    # a neuron and its loss
    python examples/graph.py "a * b + a ** 2" a=2 b=-3
    python examples/graph.py "b = a + a; c = b + b; b + c" a=3  # names for what is used again
    python examples/graph.py --layer softmax                    # a real layer of three Values
    python examples/graph.py --dot | dot -Tsvg > graph.svg      # for Graphviz

It takes no time and prints, for the second one:

                    data  grad  local × parent's grad
    a * b + a ** 2    -2     1
    ├ a * b           -6     1   1 × 1 = 1
    │ ├ a              2     1  -3 × 1 = -3
    │ └ b             -3     2   2 × 1 = 2
    └ a ** 2           4     1   1 × 1 = 1
      └ a (above)                4 × 1 = 4

Each line is a node below its parent, the Value that was computed from it. `local` is d parent / d
node, from the moment the parent was computed. The chain rule: a node's grad is the sum of local ×
parent's grad over all of its parents. So here a's is -3 + 4 = 1. A node with several parents is
drawn in full for one of them and only named, "(above)", for the others; what would lead too far to
the right is drawn by itself, "(below)". A plain number, like the 2, is no node: it stays inside the
operation. And as a - b is computed as a + (-b), and a / b as a * b ** -1, that is what is drawn.

`tree` and `dot` draw any Value, once its backward() has run, also those of your own code.
"""

import argparse
import ast
import math
import operator
import os
import sys
import warnings
from collections import Counter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import microgpt
from microgpt import Value

DEFAULT = "y = tanh(w * x + b); (y - 1) ** 2 + 0.1 * w ** 2", ["w=0.5", "x=2", "b=-0.4"]
WIDTH, LEVELS = 80, 6  # columns; how many levels a tree may have below its root
BOX, ASCII = "│├└×…", "||`x~"
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
FUNCTIONS = {
    "exp": microgpt.exp,
    "log": microgpt.log,
    "tanh": microgpt.tanh,
    "relu": lambda x: x.relu() if isinstance(x, Value) else max(0.0, x),
}
ALLOWED = "numbers, names, + - * / ** and " + ", ".join(FUNCTIONS)
# Some operations make a second node, which no part of the expression stands for. It is called:
HIDDEN = {
    ast.Sub: lambda left, right: ast.UnaryOp(ast.USub(), right),
    ast.Div: lambda left, right: ast.BinOp(right, ast.Pow(), ast.Constant(-1)),
    ast.Pow: lambda left, right: left,
}
LAYERS = {
    "softmax": microgpt.softmax,
    "layernorm": lambda x: microgpt.layernorm([x], [1.0] * len(x), [0.0] * len(x))[0],
    "gelu": lambda x: microgpt.gelu([x])[0],
}


# --- Drawing any Value ---------------------------------------------------------------------------


def nodes(value):
    """Every Value that this one was computed from, and itself, once: parents come first."""
    found, stack = {}, [value]  # a list of our own: Python's stack would overflow
    while stack:
        node = stack.pop()
        if callable(node.local_grads):
            raise TypeError(
                "a Tensor has no local gradients to draw, only a rule: use Values"
            )
        if id(node) not in found:
            found[id(node)] = node
            stack.extend(reversed(node.children))
    return list(found.values())


def labels(value, names):
    """{id of a node: its name, or v1, v2, ...}, each printable and no two the same."""
    found, uses = {}, Counter()
    for n, node in enumerate(nodes(value), 1):
        name = "".join(
            c if c.isprintable() else " " for c in names.get(id(node), f"v{n}")
        )
        uses[name] += 1
        found[id(node)] = name if uses[name] == 1 else f"{name} #{uses[name]}"
    return found


def walk(value, label):
    """The lines of the tree: (guides, label, note, [data, grad, local, parent's grad, share]),
    with None for what is not shown."""
    seen, roots = set(), [value]
    for root in roots:  # which grows on the way
        stack = [(0, "", "", root, [None] * 3)] * (id(root) not in seen)
        while stack:
            depth, guide, below, node, edge = stack.pop()
            name = label[id(node)]
            if id(node) in seen or (depth == LEVELS and node.children):
                note = " (above)" if id(node) in seen else " (below)"
                yield guide, name.partition(" = ")[0], note, [None, None, *edge]
                roots.append(node)  # if it has been drawn by then, it is passed over
                continue
            seen.add(id(node))
            yield guide, name, "", [node.data, node.grad, *edge]
            ends = ["├ "] * (len(node.children) - 1) + ["└ "]
            for child, local, end in reversed(
                list(zip(node.children, node.local_grads, ends))
            ):
                rest = below + ("  " if end == "└ " else "│ ")
                edge = [local, node.grad, local * node.grad]
                stack.append((depth + 1, below + end, rest, child, edge))


def number(x):
    """A number with up to five digits, in at most eight characters."""
    texts = ["" if x is None else f"{x:.{digits}g}" for digits in (5, 4, 3, 2, 1)]
    return next(text for text in texts if len(text) <= 8)


def tree(value, names=None):
    """A Value's graph as lines of text, 80 columns wide. `names` maps id(node) to a label."""
    lines = list(walk(value, labels(value, names or {})))
    texts = [[number(x) for x in numbers] for *_, numbers in lines]
    data, grad, local, parent, share = (max(map(len, column)) for column in zip(*texts))
    data, grad, title = max(4, data), max(4, grad), "local × parent's grad"
    room = WIDTH - data - grad - max(local + parent + share + 6, len(title)) - 6
    room = min(room, max(len(guide + label + note) for guide, label, note, _ in lines))
    drawn = [f"{'':{room}}  {'data':>{data}}  {'grad':>{grad}}  {title}"]
    for (guide, label, note, _), (x, y, *edge) in zip(lines, texts):
        space = room - len(guide + note)
        label = label if len(label) <= space else label[: space - 1] + "…"
        edge = (
            f"{edge[0]:>{local}} × {edge[1]:>{parent}} = {edge[2]}" if edge[0] else ""
        )
        line = f"{guide + label + note:{room}}  {x:>{data}}  {y:>{grad}}  {edge}"
        drawn += [""] * (not guide and len(drawn) > 1) + [line.rstrip()]
    return "\n".join(drawn)


def dot(value, names=None):
    """A Value's graph in Graphviz's language. The arrows go the way of the gradient, from parent to
    child, and carry the local gradient: times the grad at its tail, it is a share of the head's."""
    label, found = labels(value, names or {}), nodes(value)
    key = {id(node): f"n{n}" for n, node in enumerate(found)}
    lines = ["digraph {", "  node [shape=box];"]
    for node in found:
        name = label[id(node)].replace("\\", "\\\\").replace('"', '\\"')
        text = f"{name}\\ndata {node.data:.6g}\\ngrad {node.grad:.6g}"
        lines.append(f'  {key[id(node)]} [label="{text}"];')
        lines += [
            f'  {key[id(node)]} -> {key[id(child)]} [label="{local:.6g}"];'
            for child, local in zip(node.children, node.local_grads)
        ]
    return "\n".join([*lines, "}"])


# --- An expression, without eval -----------------------------------------------------------------


def compute(text, given):
    """An expression and {name: number} -> (a Value, {id(node): label} for `tree` and `dot`).
    Before it may stand definitions, `name = expression;`. ValueError says what is not allowed."""
    known = {name: Value(x) for name, x in given.items()}
    names = {id(value): name for name, value in known.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad literal will be refused anyway
            statements = ast.parse(text.strip()).body
    except SyntaxError as error:
        raise ValueError(f"{text[:50]!r} is not an expression: {error.msg}") from None
    value = None
    for statement in statements:
        value = build(getattr(statement, "value", None) or statement, known, names)
        if not isinstance(value, Value):
            value = Value(value)
            names[id(value)] = ast.unparse(statement)
        target, *others = getattr(statement, "targets", [None])
        if isinstance(target, ast.Name) and not others and target.id not in known:
            known[target.id] = value
            if value.children:
                names[id(value)] = ast.unparse(statement)
        elif not isinstance(statement, ast.Expr) or statement is not statements[-1]:
            refuse(statement)
    if value is None:
        raise ValueError(f"{text!r} is not an expression: it is empty")
    return value, names


def refuse(node):
    raise ValueError(f"{ast.unparse(node)[:50]!r} is not allowed here, only {ALLOWED}")


def build(node, known, names):
    """A part of the expression -> its Value, or a float if it has no names in it."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return apply(float, [node.value], node)
    if isinstance(node, ast.Name):
        if node.id not in known:
            raise ValueError(f"{node.id} has no value: add {node.id}=NUMBER")
        return known[node.id]
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        function, parts = FUNCTIONS.get(getattr(node.func, "id", None)), node.args
    else:
        function = OPERATORS.get(type(getattr(node, "op", None)))
        parts = (
            [node.operand]
            if isinstance(node, ast.UnaryOp)
            else [
                part
                for part in (getattr(node, "left", None), getattr(node, "right", None))
                if part
            ]
        )
    if not function or not parts:
        refuse(node)
    value = apply(function, [build(part, known, names) for part in parts], node)
    if isinstance(value, Value):
        names[id(value)] = ast.unparse(node)
        for child in value.children:
            if id(child) not in names:
                names[id(child)] = ast.unparse(HIDDEN[type(node.op)](*parts))
    return value


def apply(function, args, node):
    """function(*args), or a ValueError that names the part of the expression where it fails."""
    try:
        value = function(*args)
        numbers = (
            [value.data, *value.local_grads] if isinstance(value, Value) else [value]
        )
        problem = "" if all(map(math.isfinite, numbers)) else "not a finite number"
    except OverflowError:
        problem = "too large a number"
    except ZeroDivisionError:
        problem = "division by zero, in it or in its derivative"
    except TypeError:
        problem = "not a real number"  # but a complex one: the root of a negative
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{ast.unparse(node)[:50]}: {problem}")
    return value


# --- The command ---------------------------------------------------------------------------------


def parse_numbers(words):
    """["a=2", ...] -> {"a": 2.0, ...}"""
    given = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            x = float(text)
        except ValueError:
            x = math.nan
        if not name.isidentifier() or not math.isfinite(x) or name in given:
            raise ValueError(
                f"{word!r} must be a name, =, and a number, as in a=2; each name once"
            )
        given[name] = x
    return given


def layer(name):
    """The first output of a layer of three Values."""
    x = [Value(1.0), Value(-0.5), Value(2.0)]
    first = LAYERS[name](x)[0]
    names = {id(v): f"x[{i}]" for i, v in enumerate(x)}
    return first, {**names, id(first): f"{name}(x)[0]"}


def show(text):
    """Print; where the output cannot show the guides, with ASCII in their place."""
    try:
        BOX.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        text = text.translate(str.maketrans(BOX, ASCII))
    if hasattr(sys.stdout, "reconfigure"):  # for a name with letters that it lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    print(text, flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="graph", description="Draw the graph of Values of an expression."
    )
    parser.add_argument(
        "expression",
        nargs="?",
        help=f"of {ALLOWED}; one that begins with a minus goes in parentheses",
    )
    parser.add_argument(
        "numbers", nargs="*", metavar="NAME=NUMBER", help="what a name stands for"
    )
    parser.add_argument(
        "--layer", choices=LAYERS, help="draw a layer of three Values instead"
    )
    parser.add_argument(
        "--dot", action="store_true", help="print it for Graphviz's dot"
    )
    args = parser.parse_intermixed_args(argv)
    try:
        if args.layer and args.expression:
            raise ValueError("either an expression or a --layer, not both")
        text, words = (
            (args.expression, args.numbers) if args.expression is not None else DEFAULT
        )
        given = parse_numbers(words)
        value, names = layer(args.layer) if args.layer else compute(text, given)
        value.backward()
        show((dot if args.dot else tree)(value, names))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        deep = isinstance(error, (RecursionError, MemoryError))
        print(f"graph: {'it is nested too deeply' if deep else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
