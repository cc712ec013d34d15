"""Show backpropagation: the graph of an expression, as a tree to check by eye.

    python examples/graph.py                                # a neuron and its loss
    python examples/graph.py "a * b + a ** 2" a=2 b=-3
    python examples/graph.py "b = a + a; c = b * b; b + c" a=3   # with definitions
    python examples/graph.py --layer softmax                # a layer of three Values
    python examples/graph.py --dot | dot -Tsvg > graph.svg  # for Graphviz

The second command prints:

                    data  grad  local × parent's grad
    a * b + a ** 2    -2     1
    ├ a * b           -6     1   1 × 1 = 1
    │ ├ a              2     1  -3 × 1 = -3
    │ └ b             -3     2   2 × 1 = 2
    └ a ** 2           4     1   1 × 1 = 1
      └ a (above)                4 × 1 = 4

Each line is a node. It stands below its parent, the Value that was computed from it.
`local` is d parent / d node, which was stored when the parent was computed. The chain
rule: a node's grad is the sum of local × parent's grad over all its parents. So a's
grad is -3 + 4 = 1.

A node with several parents is drawn in full for one of them. For the others, only its
name is drawn, marked "(above)". A branch that would reach too far to the right is
marked "(below)", and drawn separately. A plain number, like the 2, is not a node: it is
part of the operation. a - b is computed as a + (-b), and a / b as a * b ** -1, so the
tree shows them in this form. On a narrow terminal, the numbers stand below the names.

`tree` and `dot` draw any Value after its backward(), including those in your own code.
"""

import ast
import math
import operator
import os
import sys
import warnings
from collections import Counter
from unicodedata import normalize

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import microgpt
from microgpt import Tensor, Value

DEFAULT = "y = tanh(w * x + b); (y - 1) ** 2 + 0.1 * w ** 2"
DEFAULT_NUMBERS = ["w=0.5", "x=2", "b=-0.4"]
WIDTH = 79  # columns in a line, unless a terminal has fewer
LEVELS = 6  # how many levels a tree may have below its root
LABEL = 12  # at least so many columns are for the names, or else the tree is stacked
BOX = "│├└×…"
ASCII = "||`x~"


def relu(x):
    """max(0, x), for a float or a Value: an operation that microgpt.py does not have.

    This is how to add one: compute the result, and say which Values it was computed
    from and what its derivative is with respect to each of them.
    """
    if not isinstance(x, Value):
        return 0.0 if x <= 0 else x  # max(0.0, x) would turn nan into 0
    slope = 0.0 if x.data <= 0 else 1.0
    return Value(relu(x.data), (x,), (slope,))


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
    "relu": relu,
}
ALLOWED = "numbers, names, + - * / ** and " + ", ".join(FUNCTIONS)


# --- Drawing any Value ----------------------------------------------------------------


def nodes(value):
    """Every Value that this one was computed from, and itself, once: parents first."""
    found = {}
    stack = [value]  # a function that calls itself would exceed Python's limit
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            raise TypeError("a Tensor has a rule, not local gradients: use Values")
        if id(node) not in found:
            found[id(node)] = node
            stack.extend(reversed(node.children))
    return list(found.values())


def labels(value, names):
    """{id of a node: its name, or v1, v2, ...}, each printable and no two the same."""
    found = {}
    uses = Counter()
    for n, node in enumerate(nodes(value), start=1):
        name = names.get(id(node), f"v{n}")
        name = "".join(c if c.isprintable() else " " for c in name)
        uses[name] += 1
        found[id(node)] = name if uses[name] == 1 else f"{name} #{uses[name]}"
    return found


def walk(value, label, levels=LEVELS):
    """The lines of the tree: (guide, label, note, numbers).

    The numbers are data, grad, local, parent's grad and their product. What is not
    shown is None. No line is more than so many levels below a root.
    """
    seen = set()
    roots = [value]
    for root in roots:  # the list grows during the loop
        stack = []
        if id(root) not in seen:
            stack.append((0, "", "", root, [None, None, None]))
        while stack:
            depth, guide, below, node, edge = stack.pop()
            name = label[id(node)]
            if id(node) in seen:
                yield guide, short(name), " (above)", [None, None, *edge]
            elif depth == levels and node.children:
                yield guide, short(name), " (below)", [None, None, *edge]
                roots.append(node)
            else:
                seen.add(id(node))
                yield guide, name, "", [node.data, node.grad, *edge]
                stack.extend(branches(node, depth + 1, below))


def short(name):
    """The name in a definition such as "b = a + a"."""
    return name.partition(" = ")[0]


def branches(node, depth, below):
    """What walk pushes onto its stack for a node's children, the last child first."""
    found = []
    for child, local in zip(node.children, node.local_grads):
        edge = [local, node.grad, local * node.grad]
        found.append((depth, below + "├ ", below + "│ ", child, edge))
    if found:
        *_, child, edge = found.pop()
        found.append((depth, below + "└ ", below + "  ", child, edge))
    return reversed(found)


def number(x, longest=8):
    """A number with up to five digits, in at most eight characters; None is nothing."""
    if x is None:
        return ""
    text = f"{x:.5g}"
    for digits in (4, 3, 2, 1):
        if len(text) > longest:
            text = f"{x:.{digits}g}"
    return text


def tree(value, names=None, width=WIDTH):
    """A Value's graph as lines of text. `names` maps id(node) to a label."""
    from _common import columns, fit, pad

    label = labels(value, names or {})
    lines = list(walk(value, label))
    texts = [[number(x) for x in numbers] for *_, numbers in lines]
    data, grad, local, parent, share = (max(map(len, column)) for column in zip(*texts))
    data = max(4, data)
    grad = max(4, grad)
    title = "local × parent's grad"
    room = width - data - grad - max(local + parent + share + 6, len(title)) - 6
    longest = max(columns(guide + name + note) for guide, name, note, _ in lines)
    if room < min(longest, 2 * LEVELS + LABEL):
        return stacked(value, label, width)
    room = min(room, longest)
    drawn = [f"{'':{room}}  {'data':>{data}}  {'grad':>{grad}}  {title}"]
    for (guide, name, note, _), (x, y, *edge) in zip(lines, texts):
        name = fit(name, room - len(guide + note), "…")
        line = f"{pad(guide + name + note, room)}  {x:>{data}}  {y:>{grad}}  "
        if edge[0]:
            line += f"{edge[0]:>{local}} × {edge[1]:>{parent}} = {edge[2]}"
        if not guide and len(drawn) > 1:
            drawn.append("")  # before what is drawn by itself
        drawn.append(line.rstrip())
    return "\n".join(drawn)


def stacked(value, label, width):
    """The same for few columns: a node's numbers stand below its name."""
    from _common import fit

    levels = max(1, min(LEVELS, (width - 17) // 2))
    drawn = []
    for guide, name, note, numbers in walk(value, label, levels):
        data, grad, local, parent, share = [number(x, 6) for x in numbers]
        pairs = [(f"data {data} ", f"grad {grad}")] if data else []
        if local:
            pairs.append((f"{local} × {parent}", f"= {share}"))
        below = guide.replace("├", "│").replace("└", " ") + "  "
        if not guide and drawn:
            drawn.append("")  # before what is drawn by itself
        drawn.append(guide + fit(name, width - len(guide + note), "…") + note)
        for pair in pairs:
            line = below + " ".join(pair)
            drawn += [line] if len(line) <= width else [below + text for text in pair]
    return "\n".join(drawn)


def dot(value, names=None):
    """A Value's graph in Graphviz's language.

    The arrows follow the gradient, from parent to child, and show the local gradient.
    Multiplied by the grad at the arrow's tail, it is a share of the grad at its head.
    """
    label = labels(value, names or {})
    found = nodes(value)
    key = {id(node): f"n{n}" for n, node in enumerate(found)}
    lines = ["digraph {", "  node [shape=box];"]
    for node in found:
        name = label[id(node)].replace("\\", "\\\\").replace('"', '\\"')
        text = f"{name}\\ndata {node.data:.6g}\\ngrad {node.grad:.6g}"
        lines.append(f'  {key[id(node)]} [label="{text}"];')
        for child, local in zip(node.children, node.local_grads):
            ends = f"{key[id(node)]} -> {key[id(child)]}"
            lines.append(f'  {ends} [label="{local:.6g}"];')
    return "\n".join([*lines, "}"])


# --- An expression, without eval ------------------------------------------------------


def compute(text, given):
    """An expression and {name: number} -> (a Value, {id(node): label} for its tree).

    Definitions may precede the expression: `name = expression;`. Raises ValueError for
    whatever is not allowed.
    """
    known = {name: Value(x) for name, x in given.items()}
    names = {id(value): name for name, value in known.items()}
    statements = parse(text)
    if not statements:
        raise ValueError(f"{text!r} is not an expression: it is empty")
    for statement in statements:
        part = getattr(statement, "value", None) or statement
        value = build(part, known, names)
        if not isinstance(value, Value):
            value = Value(value)
            names[id(value)] = ast.unparse(statement)
        target = defined_name(statement)
        if target is not None and target not in known:
            known[target] = value
            if value.children:
                names[id(value)] = ast.unparse(statement)
        elif not isinstance(statement, ast.Expr) or statement is not statements[-1]:
            raise not_allowed(statement)
    return value, names


def parse(text):
    """The statements in a text, as Python reads them. Their numbers are finite."""
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad literal will be refused anyway
            tree = ast.parse(text)
    except SyntaxError as error:
        problem = error.msg
        if problem.startswith("Exceeds the limit"):  # Python's own, of 4,300 digits
            problem = "a number has too many digits"
        raise ValueError(f"{text[:50]!r} is not an expression: {problem}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and is_too_large(node.value):
            typed = ast.get_source_segment(text, node)
            raise ValueError(f"{typed[:50]}: too large a number")
    return tree.body


def is_too_large(number):
    """Is it a number that is too large for a float?"""
    try:
        return isinstance(number, (int, float)) and math.isinf(number)
    except OverflowError:
        return True


def defined_name(statement):
    """The name that a statement defines, or None."""
    targets = getattr(statement, "targets", [])
    if len(targets) == 1 and isinstance(targets[0], ast.Name):
        return targets[0].id
    return None


def not_allowed(node):
    """The error for anything that is not arithmetic."""
    text = ast.unparse(node)[:50]
    return ValueError(f"{text!r} is not allowed here, only {ALLOWED}")


def build(node, known, names):
    """A part of the expression -> its Value, or a float if it has no names in it."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return apply(float, [node.value], node)
    if isinstance(node, ast.Name):
        if node.id not in known:
            raise no_value(node.id, known)
        return known[node.id]
    function, parts = operation(node)
    if function is None:
        raise not_allowed(node)
    value = apply(function, [build(part, known, names) for part in parts], node)
    if isinstance(value, Value):
        names[id(value)] = ast.unparse(node)
        for child in value.children:
            if id(child) not in names:
                names[id(child)] = ast.unparse(hidden(node.op, parts))
    return value


def no_value(name, known):
    """The error for a name without a value. Other names may look the same."""
    problem = f"{spelt(name)} has no value: add {name}=NUMBER"
    others = [spelt(other) for other in known if not (other + name).isascii()]
    if others:
        problem += f"; given: {', '.join(others)}"
    return ValueError(problem)


def spelt(name):
    """A name, with the code points of its characters if some are not ASCII."""
    if name.isascii():
        return name
    return f"{name} ({' '.join(f'U+{ord(c):04X}' for c in name)})"


def operation(node):
    """What a part of the expression does, and to which parts: (function, [part...]).

    The function is None if it is not allowed.
    """
    if isinstance(node, ast.BinOp):
        return OPERATORS.get(type(node.op)), [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return OPERATORS.get(type(node.op)), [node.operand]
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if is_call and len(node.args) == 1 and not node.keywords:
        return FUNCTIONS.get(node.func.id), node.args
    return None, []


def hidden(op, parts):
    """The extra node that some operations make. It is not a part of the expression."""
    if isinstance(op, ast.Sub):  # a - b is a + (-b)
        return ast.UnaryOp(ast.USub(), parts[1])
    if isinstance(op, ast.Div):  # a / b is a * b ** -1
        return ast.BinOp(parts[1], ast.Pow(), ast.Constant(-1))
    return parts[0]  # in 2 ** a, the 2 becomes a Value


def apply(function, args, node):
    """function(*args), or a ValueError that names the part where it fails."""
    try:
        value = function(*args)
        numbers = [value]
        if isinstance(value, Value):
            numbers = [value.data, *value.local_grads]
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


# --- The command ----------------------------------------------------------------------


def parse_numbers(words):
    """["a=2", ...] -> {"a": 2.0, ...}. Names are folded as Python does with its own."""
    given = {}
    for word in words:
        name, _, text = word.partition("=")
        name = normalize("NFKC", name)
        try:
            x = float(text)
        except ValueError:
            x = math.nan
        if not name.isidentifier() or not math.isfinite(x) or name in given:
            raise ValueError(
                f"{word[:50]!r} must be a name, =, and a number, as in a=2; "
                "each name once"
            )
        given[name] = x
    return given


def layernorm_of_row(x):
    """Layer normalisation of one row, with gains of 1 and biases of 0."""
    return microgpt.layernorm([x], [1.0] * len(x), [0.0] * len(x))[0]


def gelu_of_row(x):
    """gelu of one row."""
    return microgpt.gelu([x])[0]


LAYERS = {
    "softmax": microgpt.softmax,
    "layernorm": layernorm_of_row,
    "gelu": gelu_of_row,
}


def layer(name):
    """The first output of a layer of three Values, and the names of the nodes."""
    x = [Value(1.0), Value(-0.5), Value(2.0)]
    first = LAYERS[name](x)[0]
    names = {id(v): f"x[{i}]" for i, v in enumerate(x)}
    names[id(first)] = f"{name}(x)[0]"
    return first, names


def draw(options):
    """Compute what the options ask for, and print its graph."""
    from _common import can_show, width

    if options.layer and options.expression is not None:
        raise ValueError("give either an expression or a --layer, not both")
    try:
        if options.layer:
            value, names = layer(options.layer)
        elif options.expression is None:
            value, names = compute(DEFAULT, parse_numbers(DEFAULT_NUMBERS))
        else:
            given = parse_numbers(options.numbers)
            value, names = compute(options.expression, given)
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None
    value.backward()
    text = dot(value, names) if options.dot else tree(value, names, width())
    if not can_show(BOX):
        text = text.translate(str.maketrans(BOX, ASCII))
    if hasattr(sys.stdout, "reconfigure"):  # for names that it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    print(text)


def main(argv=None):
    """The command; returns the exit status."""
    # Not at the top, because the playground loads this file without the others.
    from _common import make_parser, run_command

    parser = make_parser("graph", __doc__)
    parser.add_argument(
        "expression",
        nargs="?",
        help=f"An expression of {ALLOWED}. If it begins with a minus, put it "
        "into parentheses.",
    )
    parser.add_argument(
        "numbers", nargs="*", metavar="NAME=NUMBER", help="The value of a name."
    )
    parser.add_argument(
        "--layer", choices=LAYERS, help="Draw a layer of three Values instead."
    )
    parser.add_argument(
        "--dot", action="store_true", help="Print the graph for Graphviz's dot."
    )
    return run_command("graph", draw, parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
