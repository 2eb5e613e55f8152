"""Parse the text form of graphs; `dlc.ir.text` prints it and says what it is for.

Written by hand, one method a construct, so that each error knows its line, its column and what
could have stood there.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dlc.errors import DTypeError, Error, ParseError, ShapeError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Node, Origin
from dlc.ir.op import OPS, Array
from dlc.ir.sizes import Dim, Size, as_size, bounds
from dlc.ir.types import DTYPES, TensorType, TupleType, Type


def parse(text: str, arrays: Mapping[str, Array] | None = None) -> Graph:
    """The graph that a text describes.

    Parameters
    ----------
    text : str
        As `print_graph` writes it.
    arrays : mapping, optional
        Large constants by digest, as `arrays` gives them.

    Raises
    ------
    ParseError
        With the line, the column, what was expected and what came.
    """
    return _Parser(arrays or {}).parse(text)


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<comment>\#.*)
    | (?P<digest>sha256:[0-9a-f]+)
    | (?P<float>[0-9]+(?:\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+))
    | (?P<int>[0-9]+)
    | (?P<value>%(?:[\w.]+|"(?:[^"\\]|\\.)*"))
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<name>[^\W\d][\w.]*)
    | (?P<mark>//|\.\.|[-+*=:,()\[\]])
    """,
    re.VERBOSE,
)


@contextlib.contextmanager
def _blame(line: _Line, column: int) -> Iterator[None]:
    """Give errors of types, sizes and numbers their place in the text."""
    try:
        yield
    except ParseError:
        raise
    except (Error, TypeError, ValueError, ArithmeticError) as error:
        raise line.error(str(error), column) from error


class _Line:
    """The tokens of one line, with the one place that makes errors."""

    def __init__(self, number: int, text: str):
        self.number = number
        self.text = text
        self.origins: frozenset[Origin] = frozenset()
        self.tokens = list(self._tokens())
        self.at = 0

    def _tokens(self) -> Iterator[_Token]:
        position = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                self.fail("a name, a number or a mark", repr(self.text[position]), position)
            if match.lastgroup == "comment":
                self.origins = _origins(match.group()[1:])
            elif match.lastgroup != "space":
                yield _Token(str(match.lastgroup), match.group(), position)
            position = match.end()
        yield _Token("end", "", len(self.text.rstrip()))

    def fail(self, expected: str, got: str, column: int) -> NoReturn:
        raise self.error(f"expected {expected}, got {got}", column)

    def error(self, message: str, column: int) -> ParseError:
        place = f"line {self.number}, column {column + 1}"
        return ParseError(f"{place}: {message}\n  {self.text}\n  {' ' * column}^")

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def unexpected(self, expected: str) -> NoReturn:
        token = self.next
        self.fail(expected, repr(token.text) if token.text else "the end of the line", token.column)

    def accept(self, text: str) -> bool:
        found = self.next.text == text and self.next.kind in ("mark", "name")
        self.at += found
        return found

    def accept_call(self, name: str) -> bool:
        """Accept ``name`` if a parenthesis follows; a dimension may have the name, too."""
        behind = self.tokens[self.at + 1 :]
        return bool(behind) and behind[0].text == "(" and self.accept(name)

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.unexpected(repr(text))

    def take(self, kind: str, expected: str) -> str:
        if self.next.kind != kind:
            self.unexpected(expected)
        self.at += 1
        return self.tokens[self.at - 1].text

    def name(self, expected: str) -> str:
        """A bare or quoted name."""
        return self.string() if self.next.kind == "string" else self.take("name", expected)

    def string(self) -> str:
        with _blame(self, self.next.column):
            return str(json.loads(self.take("string", "a string in double quotes")))

    def reference(self) -> int | str:
        """The number or the name of a value: ``%3`` is number 3, ``%"3"`` has the name 3."""
        with _blame(self, self.next.column):
            text = self.take("value", "a value such as %0")[1:]
            if re.fullmatch("[0-9]+", text):
                return int(text)
            return str(json.loads(text)) if text.startswith('"') else text


class _Parser:
    """What has been read of a graph so far."""

    def __init__(self, arrays: Mapping[str, Array]):
        self.arrays = arrays
        self.builder = Builder()
        self.dims: dict[str, Dim] = {}
        self.nodes: dict[int | str, Node] = {}
        self.inputs: list[Node] = []
        self.outputs: list[Node] = []
        self.output_names: list[str] = []
        self.aliases: dict[int, str] = {}

    def parse(self, text: str) -> Graph:
        lines = [_Line(i, line) for i, line in enumerate(text.split("\n"), start=1)]
        lines = [line for line in lines if line.next.kind != "end"]
        if not lines:
            raise ParseError("line 1, column 1: expected 'graph' and a name, got an empty text")
        lines[0].expect("graph")
        name = lines[0].name("the name of the graph")
        self._end(lines[0])
        for line in lines[1:]:
            if line.next.kind == "value":
                self._node(line)
            elif line.accept("dim"):
                self._dim(line)
            elif line.accept("output"):
                self._output(line)
            else:
                line.unexpected("'dim', 'output' or a value such as %0")
            self._end(line)
        return Graph(
            tuple(self.outputs), tuple(self.inputs), tuple(self.output_names), self.aliases, name
        )

    def _end(self, line: _Line) -> None:
        if line.next.kind != "end":
            line.unexpected("the end of the line")

    def _dim(self, line: _Line) -> None:
        column = line.next.column
        name = line.take("name", "the name of a dimension")
        line.expect(":")
        low = int(line.take("int", "the least size"))
        line.expect("..")
        high = int(line.take("int", "the greatest size"))
        if name in self.dims:
            line.fail("a new dimension", repr(name), column)
        with _blame(line, column):
            self.dims[name] = Dim(name, low, high)

    def _output(self, line: _Line) -> None:
        self.output_names.append(line.name("the name of an output"))
        line.expect("=")
        self.outputs.append(self._operand(line))
        if line.accept("updates"):
            column = line.next.column
            target = line.reference()
            known = self.nodes.get(target)
            if isinstance(target, int) or (known is not None and known.name is None):
                line.fail("an input or a parameter", f"%{target}", column)
            self.aliases[len(self.outputs) - 1] = target

    def _operand(self, line: _Line) -> Node:
        column = line.next.column
        reference = line.reference()
        if reference not in self.nodes:
            line.fail("a value that is defined above", f"%{reference}", column)
        return self.nodes[reference]

    def _node(self, line: _Line) -> None:
        start = line.next.column
        reference = line.reference()
        if reference in self.nodes:
            line.fail("a new value", f"%{reference}", start)
        line.expect("=")
        column = line.next.column
        op = line.take("name", "the name of an op")
        if op not in OPS:
            line.fail("the name of an op", repr(op), column)
        inputs = self._operands(line)
        literal = self._array(line) if op == "constant" else None
        attrs = dict(self._attributes(line))
        declared, place = self._declared(line)
        if op in ("input", "parameter"):
            if isinstance(reference, int):
                line.fail(f"a name for the {op}, such as %x", f"%{reference}", start)
            if not isinstance(declared, TensorType):
                line.unexpected(f"':' and the type of the {op}")
            attrs |= {"name": reference, "dtype": declared.dtype, "shape": declared.shape}
        with _blame(line, column):
            if literal is not None:
                attrs["value"] = literal(declared)
            node = self.builder.node(op, inputs, attrs, line.origins)
        if declared not in (None, node.type):
            line.fail(f"the type {node.type}, which {op} has here", str(declared), place)
        self.nodes[reference] = node
        if op == "input":
            self.inputs.append(node)

    def _declared(self, line: _Line) -> tuple[Type | None, int]:
        """The type behind a colon, if there is one, and its column."""
        if not line.accept(":"):
            return None, line.next.column
        place = line.next.column
        return self._type(line), place

    def _operands(self, line: _Line) -> tuple[Node, ...]:
        found: list[Node] = []
        if line.accept("("):
            while not line.accept(")"):
                found.append(self._operand(line))
                if line.next.text != ")":
                    line.expect(",")
        return tuple(found)

    def _attributes(self, line: _Line) -> Iterator[tuple[str, Any]]:
        while line.next.kind == "name":
            name = line.take("name", "an attribute")
            line.expect("=")
            yield name, self._value(line)

    # Values: numbers, strings, tuples, and sizes as sums of products.

    def _value(self, line: _Line) -> Any:
        with _blame(line, line.next.column):
            return self._sum(line)

    def _sum(self, line: _Line) -> Any:
        total = self._product(line)
        while line.next.text in ("+", "-"):
            if line.accept("+"):
                total = total + self._product(line)
            else:
                line.expect("-")
                total = total - self._product(line)
        return total

    def _product(self, line: _Line) -> Any:
        total = self._atom(line)
        while line.next.text in ("*", "//"):
            if line.accept("*"):
                total = total * self._atom(line)
            else:
                line.expect("//")
                total = total // int(line.take("int", "a positive integer"))
        return total

    def _atom(self, line: _Line) -> Any:
        token = line.next
        if line.accept("-"):
            return -self._atom(line)
        if line.accept("("):
            return self._tuple(line)
        if line.accept_call("float"):
            return float(_special(self._words(line), "float64"))
        if token.kind == "string":
            return line.string()
        line.at += 1
        if token.kind in ("int", "float"):
            return int(token.text) if token.kind == "int" else float(token.text)
        if token.text in _WORDS:
            return _WORDS[token.text]
        if token.text in self.dims:
            return as_size(self.dims[token.text])
        line.at -= 1
        line.unexpected("a number, a string, '(' or a dimension declared above")

    def _words(self, line: _Line) -> str:
        """What stands in ``float("...")``."""
        line.expect("(")
        text = line.string()
        line.expect(")")
        return text

    def _tuple(self, line: _Line) -> Any:
        """A tuple, or what stands in parentheses without a comma."""
        items: list[Any] = []
        while not line.accept(")"):
            items.append(self._value(line))
            if line.accept(")"):
                return items[0] if len(items) == 1 else tuple(items)
            line.expect(",")
        return tuple(items)

    # Types and arrays.

    def _type(self, line: _Line) -> Type:
        if line.accept("("):
            elements = [self._tensor_type(line)]
            while line.accept(","):
                elements.append(self._tensor_type(line))
            line.expect(")")
            return TupleType(tuple(elements))
        return self._tensor_type(line)

    def _tensor_type(self, line: _Line) -> TensorType:
        if line.next.text not in DTYPES:
            line.unexpected(f"an element type ({', '.join(DTYPES)})")
        dtype = line.take("name", "an element type")
        line.expect("[")
        shape: list[Size] = []
        while not line.accept("]"):
            shape.append(self._size(line))
            if line.next.text != "]":
                line.expect(",")
        return TensorType(dtype, tuple(shape))

    def _size(self, line: _Line) -> Size:
        column = line.next.column
        with _blame(line, column):
            size = as_size(self._value(line))
        if bounds(size)[0] < 0:
            line.fail("a size that is not negative", str(size), column)
        return size

    def _array(self, line: _Line) -> Callable[[Type | None], Array]:
        """The value of a constant, once its type is known."""
        column = line.next.column
        if line.next.kind == "digest":
            digest = line.take("digest", "a digest").removeprefix("sha256:")
            if digest not in self.arrays:
                line.fail(
                    "an array of the table `arrays` (dlc.ir.text.arrays makes one)", digest, column
                )
            return lambda _: self.arrays[digest]
        repeated = line.accept("all")
        numbers = list(self._numbers(line))

        def array(declared: Type | None) -> Array:
            if not isinstance(declared, TensorType):
                raise DTypeError("expects a type, such as float32[2], behind its value")
            shape = tuple(operator.index(size) for size in declared.shape)
            flat = np.array([_element(n, declared.dtype) for n in numbers], declared.dtype)
            if flat.size != (1 if repeated else math.prod(shape)):
                raise ShapeError(f"expects the elements of {declared}, got {flat.size}")
            return np.full(shape, flat[0]) if repeated else flat.reshape(shape)

        return array

    def _numbers(self, line: _Line) -> Iterator[Any]:
        if line.accept("["):
            while not line.accept("]"):
                yield from self._numbers(line)
                if line.next.text != "]":
                    line.expect(",")
        elif line.accept_call("float"):
            yield _Special(self._words(line))
        else:
            yield self._atom(line)


class _Special(str):
    """A float that is written in words: ``nan``, ``-inf``, or a NaN by its bits."""


_WORDS: Mapping[str, Any] = {"None": None, "True": True, "False": False}


def _element(number: Any, dtype: str) -> Any:
    return _special(number, dtype) if isinstance(number, _Special) else np.dtype(dtype).type(number)


def _special(text: str, dtype: str) -> Any:
    kind = np.dtype(dtype)
    if text.startswith("nan:"):
        return np.array(int(text[4:], 16), f"u{kind.itemsize}").view(kind)[()]
    return kind.type(text)


def _origins(comment: str) -> frozenset[Origin]:
    places = re.sub(r"^\s*\[[^]]*\]", "", comment)  # which kernel computes it follows from the rest
    return frozenset(_origin(piece.strip()) for piece in places.split(";") if piece.strip())


def _origin(text: str) -> Origin:
    match = re.fullmatch(r"(?:(?P<module>.*), )?(?P<file>[^,]+):(?P<line>\d+)", text)
    if match is None:
        return Origin(text)
    return Origin(match["module"] or "", match["file"], int(match["line"]))
