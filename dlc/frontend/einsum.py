"""dlc.einsum: sums of products by named axes, as matrix products.

Each pair of operands becomes one batched matrix product between transposes and reshapes, which the
passes then remove or fold; so it is as fast as the product written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.scope import here
from dlc.frontend.tensors import as_tensor
from dlc.ir.node import Node
from dlc.ir.sizes import Size, equal, product, shape_text


def einsum(equation: str, *operands: object) -> Node:
    """Sum the products of operands over the axes that the result does not have.

    Parameters
    ----------
    equation : str
        A letter an axis, such as ``"bik,bkj->bij"``; without an arrow the result has the letters
        that occur once, in alphabetical order.
    *operands : Tensor
        Taken together from left to right.

    Raises
    ------
    ArgumentError
        The equation is malformed, repeats a letter within one operand, or has an ellipsis.
    ShapeError
        A letter stands for two sizes, or an operand has another number of axes.
    """
    inputs, output = _parse(equation, len(operands))
    tensors = [as_tensor(operand) for operand in operands]
    sizes = _sizes(equation, inputs, tensors)
    axes, result = inputs[0], tensors[0]
    for i in range(1, len(inputs)):
        needed = {*output, *"".join(inputs[i + 1 :])}
        axes, result = _multiply(axes, result, inputs[i], tensors[i], needed, sizes)
    axes, result = _sum_out(axes, result, set(output))
    return result.permute([axes.index(letter) for letter in output]) if axes != output else result


def _parse(equation: str, count: int) -> tuple[list[str], str]:
    """The letters of each operand and of the result."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    letters = "".join(inputs)
    if not arrow:
        output = "".join(sorted(letter for letter in letters if letters.count(letter) == 1))
    repeated = [part for part in (*inputs, output) if len(set(part)) < len(part)]
    known = all(letter.isalpha() for letter in letters) and set(output) <= set(letters)
    if not known or repeated or len(inputs) != count:
        expected = f"letters for {count} operands, each letter once in each, such as 'ik,kj->ij'"
        raise ArgumentError(explain("einsum", expected, repr(equation), where=here()))
    return inputs, output


def _sizes(equation: str, inputs: list[str], tensors: list[Node]) -> dict[str, Size]:
    """The size that each letter stands for."""
    sizes: dict[str, Size] = {}
    for axes, tensor in zip(inputs, tensors, strict=True):
        if len(axes) != tensor.ndim:
            expected = f"{len(axes)} axes for {axes!r} in {equation!r}"
            got = shape_text(tensor.shape)
            raise ShapeError(explain("einsum", expected, got, where=here()))
        for letter, size in zip(axes, tensor.shape, strict=True):
            if not equal(sizes.setdefault(letter, size), size):
                expected = f"one size for {letter!r} in {equation!r}"
                got = f"{sizes[letter]} and {size}"
                raise ShapeError(explain("einsum", expected, got, where=here()))
    return sizes


def _multiply(
    left: str, a: Node, right: str, b: Node, needed: set[str], sizes: dict[str, Size]
) -> tuple[str, Node]:
    """The product of two operands, summed over the letters that nothing needs any more."""
    left, a = _sum_out(left, a, needed | set(right))
    right, b = _sum_out(right, b, needed | set(left))
    batch = [letter for letter in left if letter in right and letter in needed]
    summed = [letter for letter in left if letter in right and letter not in needed]
    rows = [letter for letter in left if letter not in right]
    columns = [letter for letter in right if letter not in left]
    y = _grouped(left, a, (batch, rows, summed), sizes) @ _grouped(
        right, b, (batch, summed, columns), sizes
    )
    axes = "".join([*batch, *rows, *columns])
    return axes, y.reshape([sizes[letter] for letter in axes])


def _grouped(axes: str, tensor: Node, groups: Iterable[list[str]], sizes: dict[str, Size]) -> Node:
    """A tensor with one axis for each group of letters."""
    groups = list(groups)
    order = [axes.index(letter) for group in groups for letter in group]
    shape = [product(sizes[letter] for letter in group) for group in groups]
    return tensor.permute(order).reshape(shape)


def _sum_out(axes: str, tensor: Node, needed: set[str]) -> tuple[str, Node]:
    """A tensor summed over the letters that nothing needs."""
    done = [i for i, letter in enumerate(axes) if letter not in needed]
    if not done:
        return axes, tensor
    return "".join(letter for letter in axes if letter in needed), tensor.sum(done)
