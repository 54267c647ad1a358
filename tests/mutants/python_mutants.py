"""The mistakes that can be planted in a Python file."""

from __future__ import annotations

import ast

from tests.mutants.mutant import Mutant

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
_SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Tests need not know the wording of messages.
_LONGEST_STRING = 20
# Type checking says whether these are right.
_TYPES_ONLY = ("TYPE_CHECKING", "overload")


def python_mutants(path: str, text: str) -> list[Mutant]:
    """All mistakes for a file, in the order of the text."""
    planter = _Planter(path, text)
    planter.visit(ast.parse(text))
    found = [one for one in planter.found if _compiles(one.planted(text))]
    return sorted(set(found), key=lambda one: (one.start, one.end, one.new))


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Planter(ast.NodeVisitor):
    def __init__(self, path: str, text: str) -> None:
        self.found: list[Mutant] = []
        self._path, self._text = path, text
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = text.splitlines()

    def _at(self, line: int, column: int) -> int:
        """A position in the text. The columns of a syntax tree count bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._at(node.lineno, node.col_offset),
            self._at(node.end_lineno, node.end_col_offset),
        )

    def _replace(self, node: ast.expr | ast.stmt, new: str, kind: str) -> None:
        self.found.append(Mutant(self._path, *self._span(node), new, kind))

    def _replace_between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        at = self._text.find(old, start, end)
        if at >= 0:
            self.found.append(Mutant(self._path, at, at + len(old), new, f"{old} to {new}"))

    def _code(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._text[start:end]

    def _negate(self, test: ast.expr) -> None:
        self._replace(test, f"(not ({self._code(test)}))", "condition negated")

    def _visit_all(self, nodes: list[ast.expr] | list[ast.stmt] | list[ast.keyword]) -> None:
        for node in nodes:
            self.visit(node)

    # Statements

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        decorators = [ast.unparse(one) for one in node.decorator_list]
        if any(name in _TYPES_ONLY for name in decorators):
            return
        self._visit_all(node.args.defaults)
        self._visit_all([one for one in node.args.kw_defaults if one is not None])
        self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Attribute) and node.value is not None:
            self._replace(node, "pass", "statement removed")

    def visit_Assign(self, node: ast.Assign) -> None:
        if ast.unparse(node.targets[0]) == "__all__":
            return
        self.visit(node.value)
        # Without the name, whatever reads it fails at once.
        if not any(isinstance(target, ast.Name) for target in node.targets):
            self._replace(node, "pass", "statement removed")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._replace(node, "pass", "statement removed")

    def visit_Delete(self, node: ast.Delete) -> None:
        self._replace(node, "pass", "statement removed")

    def visit_Raise(self, node: ast.Raise) -> None:
        if ast.unparse(node) == "raise NotImplementedError":  # subclasses override it
            return
        self._replace(node, "pass", "statement removed")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        self.visit(node.value)
        if isinstance(node.value, ast.Call | ast.Await):
            self._replace(node, "pass", "statement removed")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._replace(node, "pass", "statement removed")
            return
        self.visit(node.value)
        # Whoever asks whether something holds takes None for False.
        if not isinstance(node.value, ast.Constant) or node.value.value:
            self._replace(node, "return None", "returns None")

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue", "break to continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "break", "continue to break")

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in _TYPES_ONLY:
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self._visit_all(node.body)
        self.visit(node.test)

    # Expressions

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for place, operator in enumerate(node.ops):
            old, new = _COMPARISONS[type(operator)]
            self._replace_between(operands[place], operands[place + 1], old, new)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._replace_between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _OPERATORS:
            self._replace_between(node.left, node.right, *_OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._replace(node, self._code(node.operand), "not or minus removed")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "TypeVar":
            return
        if isinstance(node.func, ast.Name) and node.func.id in _SWAPPED_NAMES:
            new = _SWAPPED_NAMES[node.func.id]
            self._replace(node.func, new, f"{node.func.id} to {new}")
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "metadata":  # only described to readers of the API's description
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value), f"{value} to {not value}")
        elif isinstance(value, int | float):
            self._replace(node, f"({self._code(node)} + 1)", "number plus 1")
        elif isinstance(value, str | bytes) and len(value) <= _LONGEST_STRING and value:
            new = value + (b"X" if isinstance(value, bytes) else "X")  # type: ignore[operator]
            self._replace(node, repr(new), "string changed")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)
