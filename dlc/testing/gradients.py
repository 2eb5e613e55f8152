"""`gradcheck` and `gradgradcheck`: are gradients, and gradients of gradients, what differences say?

The compiled gradient is compared with central differences of the compiled function. The difference
quotient of a smooth function in float64 is good to about eps^2; in float32 it is noise, which is
why inputs are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, explain
from dlc.frontend.gradient import gradients
from dlc.frontend.parameter import as_array

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Function: TypeAlias = Callable[..., Any]


class GradcheckError(Error, RuntimeError):
    """A gradient differs from the differences of the function."""


def gradcheck(
    func: Function,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Compare the gradients of a function with central differences.

    Parameters
    ----------
    func : callable
        Of tensors; gives a tensor or several. Outputs that are not of floats are left out.
    inputs : array or sequence of arrays
        float64 where a gradient is checked; integers and booleans pass through.
    eps : float
        Step of the differences.
    atol, rtol : float
        Tolerances on each element of the Jacobian; in fast mode on the projected one.
    raise_exception : bool
        Raise rather than return False.
    nondet_tol : float
        How far two runs of the gradient may part; dlc's are equal bit for bit.
    check_grad_dtypes : bool
        Also check that each gradient has its input's element type.
    fast_mode : bool
        Check one random projection of the Jacobian rather than all of it.
    check_backward_ad : bool
        False checks nothing.
    check_undefined_grad, masked
        Taken for PyTorch's sake: there are no undefined gradients and no sparse layouts here.
    check_batched_grad, check_batched_forward_grad, check_forward_ad : bool
        dlc differentiates backward, one vector at a time: True is refused.

    Returns
    -------
    bool

    Raises
    ------
    GradcheckError
        A gradient is wrong; the message says which element, of which output in which input.
    ArgumentError, DTypeError
        What is asked for does not exist; no input is of float64.
    """
    refused = {
        "check_batched_grad": check_batched_grad,
        "check_batched_forward_grad": check_batched_forward_grad,
        "check_forward_ad": check_forward_ad,
    }
    for name, asked in refused.items():
        if asked:
            expected = f"{name}=False: dlc differentiates backward, one vector at a time"
            raise ArgumentError(explain("gradcheck", expected, "True"))
    if not check_backward_ad:
        return True
    subject = _Subject(func, inputs)
    try:
        for i, array in subject.differentiable():
            _check_input(subject, i, array, eps, atol, rtol, fast_mode, nondet_tol)
            if check_grad_dtypes:
                _check_dtype(subject, i, array)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Function,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Compare the gradients of a function's gradients with central differences.

    Parameters
    ----------
    func, inputs, eps, atol, rtol, raise_exception, nondet_tol, check_grad_dtypes, fast_mode
        As of `gradcheck`.
    grad_outputs : array or sequence of arrays, optional
        What the outputs are weighted with; by default random numbers, the same in every run.
    gen_non_contig_grad_outputs : bool
        Make these arrays with gaps between their elements.
    check_rev_over_rev : bool
        False checks nothing.
    check_undefined_grad, masked
        Taken for PyTorch's sake.
    check_batched_grad, check_fwd_over_rev : bool
        dlc differentiates backward, one vector at a time: True is refused.

    Returns
    -------
    bool

    Raises
    ------
    GradcheckError, ArgumentError, DTypeError
        As of `gradcheck`.
    """
    if check_fwd_over_rev:
        expected = "check_fwd_over_rev=False: dlc differentiates backward"
        raise ArgumentError(explain("gradgradcheck", expected, "True"))
    if not check_rev_over_rev:
        return True
    subject = _Subject(func, inputs)
    if grad_outputs is None:
        weights = subject.random_weights(gen_non_contig_grad_outputs)
    else:
        weights = _as_arrays(grad_outputs)
    count = len(subject.inputs)
    chosen = [i for i, _ in subject.differentiable()]

    def first(*tensors: Any) -> tuple[Any, ...]:
        return _gradients(func, tensors[:count], tensors[count:], chosen)

    return gradcheck(
        first,
        (*subject.inputs, *weights),
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
        nondet_tol=nondet_tol,
        check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad,
        fast_mode=fast_mode,
    )


class _Subject:
    """A function on its inputs, compiled once: its float outputs, and its gradients."""

    def __init__(self, func: Function, inputs: Any):
        from dlc.driver import jit

        self.inputs = _as_arrays(inputs)
        for i, array in enumerate(self.inputs):
            if array.dtype.kind == "f" and array.dtype != np.float64:
                advice = "Differences in float32 are noise: use .astype(np.float64)."
                expected = "inputs of float64"
                message = explain("gradcheck", expected, f"{array.dtype} in input {i}")
                raise DTypeError(f"{message}. {advice}")
        if not any(array.dtype.kind == "f" for array in self.inputs):
            raise DTypeError(explain("gradcheck", "an input of float64", "none"))
        self._values = jit(lambda *tensors: _float_outputs(func(*tensors)))
        self._vjp = jit(lambda tensors, weights, i: _gradients(func, tensors, weights, [i])[0])

    def differentiable(self) -> Iterator[tuple[int, Array]]:
        """Positions and arrays of the inputs of floats."""
        return ((i, array) for i, array in enumerate(self.inputs) if array.dtype.kind == "f")

    def values(self, i: int, array: Array) -> list[Array]:
        """The outputs with another array as input ``i``."""
        given = list(self.inputs)
        given[i] = array
        return list(self._values(*given))

    def vjp(self, i: int, weights: Sequence[Array]) -> Array:
        """The gradient in input ``i`` of the sum of the outputs times ``weights``."""
        found: Array = self._vjp(tuple(self.inputs), tuple(weights), i)
        return found

    def random_weights(self, gaps: bool = False) -> list[Array]:
        """One for each output."""
        rng = np.random.default_rng(0)
        shapes = [value.shape for value in self._values(*self.inputs)]
        if gaps:
            return [rng.normal(size=(*shape, 2))[..., 0] for shape in shapes]
        return [np.asarray(rng.normal(size=shape)) for shape in shapes]


def _check_input(
    subject: _Subject,
    i: int,
    array: Array,
    eps: float,
    atol: float,
    rtol: float,
    fast: bool,
    nondet_tol: float,
) -> None:
    """Check the Jacobian in one input: all its rows, or the projection of one random vector."""
    weights = subject.random_weights()
    twice = [subject.vjp(i, weights) for _ in range(2)]
    if np.abs(twice[0] - twice[1]).max(initial=0.0) > nondet_tol:
        raise GradcheckError(f"the gradient in input {i} differs from run to run")
    if fast:
        direction = np.asarray(np.random.default_rng(i + 1).normal(size=array.shape))
        norm = float(np.linalg.norm(direction)) or 1.0
        direction = np.asarray(direction / norm)
        columns = _differences(subject, i, array, direction, eps)
        numeric = sum(float((w * c).sum()) for w, c in zip(weights, columns, strict=True))
        analytic = float((twice[0] * direction).sum())
        _compare(np.asarray(analytic), np.asarray(numeric), i, "all outputs", atol, rtol)
        return
    analytic_rows = _analytic(subject, i, array)
    numeric_rows = _numeric(subject, i, array, eps)
    for number, (a, n) in enumerate(zip(analytic_rows, numeric_rows, strict=True)):
        _compare(a, n, i, f"output {number}", atol, rtol)


def _numeric(subject: _Subject, i: int, array: Array, eps: float) -> list[Array]:
    """The Jacobians in input ``i`` by differences: an output's elements times the input's."""
    columns = []
    for place in range(array.size):
        direction = np.zeros(array.size)
        direction[place] = 1.0
        columns.append(_differences(subject, i, array, direction.reshape(array.shape), eps))
    parts = zip(*columns, strict=True)
    return [np.stack([np.ravel(part) for part in each], axis=-1) for each in parts]


def _differences(
    subject: _Subject, i: int, array: Array, direction: Array, eps: float
) -> list[Array]:
    """(f(x + eps d) - f(x - eps d)) / 2 eps, for each output."""
    ahead, behind = (subject.values(i, array + sign * eps * direction) for sign in (1, -1))
    return [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]


def _analytic(subject: _Subject, i: int, array: Array) -> list[Array]:
    """The Jacobians in input ``i`` by gradients, row by row."""
    shapes = [value.shape for value in subject.values(i, array)]
    found = []
    for number, shape in enumerate(shapes):
        rows = []
        for place in range(int(np.prod(shape))):
            weights = [np.zeros(each) for each in shapes]
            weights[number].reshape(-1)[place] = 1.0
            rows.append(np.ravel(subject.vjp(i, weights)))
        found.append(np.stack(rows) if rows else np.zeros((0, array.size)))
    return found


def _compare(
    analytic: Array, numeric: Array, i: int, output: str, atol: float, rtol: float
) -> None:
    error = np.abs(analytic - numeric)
    wrong = ~(error <= atol + rtol * np.abs(numeric))
    if not wrong.any():
        return
    excess = np.where(np.isnan(error), np.inf, error)
    place = np.unravel_index(int(excess.argmax()), error.shape)
    at = tuple(int(n) for n in place)
    raise GradcheckError(
        f"the gradient of {output} in input {i} differs from differences in {int(wrong.sum())} of "
        f"{wrong.size} elements of the Jacobian; at {at} it is {analytic[place]:.9g}, differences "
        f"say {numeric[place]:.9g} (atol={atol}, rtol={rtol})"
    )


def _check_dtype(subject: _Subject, i: int, array: Array) -> None:
    found = subject.vjp(i, subject.random_weights()).dtype
    if found != array.dtype:
        raise GradcheckError(f"the gradient in input {i} has type {found}, not {array.dtype}")


def _gradients(
    func: Function, inputs: Sequence[Any], weights: Sequence[Any], chosen: Sequence[int]
) -> tuple[Any, ...]:
    """Inside a trace: gradients of the weighted sum of the outputs in some of the inputs."""
    outputs = _float_outputs(func(*inputs))
    if len(weights) != len(outputs):
        expected = f"grad_outputs for {len(outputs)} outputs"
        raise ArgumentError(explain("gradgradcheck", expected, str(len(weights))))
    total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
    return gradients(total, [inputs[i] for i in chosen])


def _float_outputs(result: Any) -> tuple[Any, ...]:
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    floats = tuple(y for y in outputs if y.dtype.startswith("float"))
    if not floats:
        raise DTypeError(explain("gradcheck", "a function with an output of floats", "none"))
    return floats


def _as_arrays(values: Any) -> list[Array]:
    several = isinstance(values, (tuple, list))
    return [as_array(value) for value in (values if several else (values,))]
