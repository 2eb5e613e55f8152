"""nn.Module: a tree of layers with named parameters, PyTorch's in names and behaviour.

State dicts move between dlc and PyTorch, so names, order and sharing follow PyTorch exactly. Each
change is noted (`touch`), so that compiled calls never outlive it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, WeightsError, explain
from dlc.frontend import hook
from dlc.frontend.parameter import Buffer, Parameter, Variable, as_array, touch
from dlc.frontend.scope import active
from dlc.ir.sizes import shape_text
from dlc.ir.types import DTYPES, FLOATS, as_dtype, is_float

T = TypeVar("T")


class LoadResult(NamedTuple):
    """What `Module.load_state_dict` did not use or find."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of all layers and models: assign layers and parameters as attributes, write ``forward``.

    Calling a module with NumPy arrays runs it compiled, NumPy in and NumPy out; while it is traced
    the same call builds the graph.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`; batch norm and dropout behave accordingly.

    Examples
    --------
    >>> class Net(Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = Parameter([1.0, 2.0])
    ...     def forward(self, x):
    ...         return x * self.scale
    >>> list(Net().state_dict())
    ['scale']
    """

    training: bool
    _born: int
    _changed: int
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]

    def __init__(self) -> None:
        self.__dict__.update(
            training=True,
            _parameters={},
            _buffers={},
            _modules={},
        )
        self._begin()

    def _begin(self) -> None:
        touch(self)
        self.__dict__["_born"] = self._changed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass says."""
        raise Error(
            f"{type(self).__name__} has no forward; define `def forward(self, x): ...` in it"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scope = active()
        if scope is None:
            return hook.call_module(self, args, kwargs)
        with scope.inside(self):
            return self.forward(*args, **kwargs)

    # Registration.

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Parameter, Buffer, Module)):
            self._register(name, value)
        elif name in self.__dict__.get("_parameters", ()):
            self._clear(name, "_parameters", value, "a Parameter")
        elif name in self.__dict__.get("_modules", ()):
            self._clear(name, "_modules", value, "a Module")
        elif name in self.__dict__.get("_buffers", ()):
            self._set_buffer(name, value)
        else:
            self._set_plain(name, value)

    def _register(self, name: str, value: Parameter | Buffer | Module) -> None:
        """Register ``value`` by its kind; the name means nothing else from now on."""
        kind = next(kind for kind in _TABLES if isinstance(value, kind))
        if isinstance(value, Module) and any(part is self for part in value.modules()):
            subject, got = f"{type(self).__name__}.{name}", "one that contains this module"
            advice = "Keep it in a list, [module], to refer to it without containing it."
            raise ArgumentError(explain(subject, "another module", got, advice=advice))
        self._put(name, self._table(_TABLES[kind]), value)

    def _put(self, name: str, table: dict[str, Any], value: object) -> None:
        for other in (self.__dict__, self._parameters, self._buffers, self._modules):
            if other is not table:
                other.pop(name, None)
        table[name] = value
        touch(self)

    def _clear(self, name: str, table: str, value: object, expected: str) -> None:
        """Take ``None`` for a registered name; nothing else of another kind."""
        if value is not None:
            advice = "Assign to its .data to change a value; `del` it first to reuse the name."
            subject = f"{type(self).__name__}.{name}"
            got = type(value).__name__
            raise DTypeError(explain(subject, f"{expected} or None", got, advice=advice))
        self.__dict__[table][name] = None
        touch(self)

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self.__dict__:
            raise Error(
                f"{type(self).__name__} was assigned a layer or a parameter before "
                "Module.__init__ ran; call super().__init__() first"
            )
        table: dict[str, Any] = self.__dict__[name]
        return table

    def _set_buffer(self, name: str, value: Any) -> None:
        """Give a buffer a value: a symbolic one inside a trace, an array of any shape outside."""
        old, scope = self._buffers[name], active()
        if scope is not None and old is not None and value is not None:
            scope.assign(old, value)
            return
        array = None if value is None else Buffer(value)
        if old is not None and array is not None and old.type == array.type:
            old.data = array._array
            return
        if old is not None and array is not None:
            array.persistent = old.persistent
        self._buffers[name] = array
        touch(self)

    def _set_plain(self, name: str, value: Any) -> None:
        """Set an attribute that is none of the above.

        What ``forward`` sets while it is traced belongs to that trace and re-keys nothing; the
        training flags are compared by themselves (`Met`).
        """
        if name in self.__dict__ and self.__dict__[name] is value:
            return
        object.__setattr__(self, name, value)
        if active() is None:
            touch(None if name == "training" else self)

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            found = self.__dict__.get(table, {})
            if name in found:
                scope, part = active(), found[name]
                if scope is not None:
                    scope.meet(self, *([part] if isinstance(part, Module) else []))
                return part
        advice = _INSTEAD.get(name, "")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{advice}")

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                break
        else:
            object.__delattr__(self, name)
        touch(self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Register a parameter, or None to say that there is none of this name."""
        self._register_checked(name, param, Parameter)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Register an array that is no parameter, or None; if persistent, of the state dict."""
        if tensor is not None and not isinstance(tensor, Buffer):
            tensor = Buffer(tensor, persistent)
        self._register_checked(name, tensor, Buffer)

    def register_module(self, name: str, module: Module | None) -> None:
        """Register a submodule, as assigning it to an attribute does."""
        self._register_checked(name, module, Module)

    add_module = register_module

    def _register_checked(self, name: str, value: object, kind: type) -> None:
        table = self._table(_TABLES[kind])
        subject = f"{type(self).__name__}: a registered name"
        if not name or "." in name:
            raise ArgumentError(explain(subject, "one word without dots", repr(name)))
        if hasattr(self, name) and name not in table:
            taken = f"{name!r}, which is a {type(getattr(self, name)).__name__} already"
            raise ArgumentError(explain(subject, "a new one", taken))
        if value is None:
            return self._put(name, table, value)
        if not isinstance(value, kind):
            got = type(value).__name__
            raise DTypeError(explain(f"{subject} {name!r}", f"a {kind.__name__} or None", got))
        self._register(name, value)

    # Walking the tree, in PyTorch's order.

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Path and module, this one first; a shared one once, or by every path it has."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Module]:
        """This module and all below it; a shared one once, unless asked otherwise."""
        named = self.named_modules(remove_duplicate=remove_duplicate)
        return (module for _, module in named)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Name and module of the direct submodules."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        return (module for _, module in self.named_children())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Path and parameter; a shared one under its first name only, unless asked otherwise."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, a shared one once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Buffer]]:
        """Path and buffer; a shared one under its first name only, unless asked otherwise."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Buffer]:
        """All buffers, a shared one once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def named_variables(self, prefix: str = "") -> Iterator[tuple[str, Variable]]:
        """Path of every parameter, then of every buffer."""
        yield from self.named_parameters(prefix)
        yield from self.named_buffers(prefix)

    def _named(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules if recurse else [(prefix, self)]:
            for name, variable in module.__dict__[table].items():
                if variable is None or (remove_duplicate and variable in seen):
                    continue
                seen.add(variable)
                yield f"{path}.{name}" if path else name, variable

    def get_submodule(self, target: str) -> Module:
        """The submodule at a path such as ``layer1.0.conv1``."""
        return self._at(target, Module)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a path such as ``layer1.0.conv1.weight``."""
        return self._at(target, Parameter)

    def get_buffer(self, target: str) -> Buffer:
        """The buffer at a path such as ``bn1.running_mean``."""
        return self._at(target, Buffer)

    def _at(self, target: str, kind: type[T]) -> T:
        found: Any = self
        for name in target.split(".") if target else ():
            found = getattr(found, name)
        if not isinstance(found, kind):
            raise AttributeError(f"{target!r} is a {type(found).__name__}, no {kind.__name__}")
        return found

    # State.

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and persistent buffers, by PyTorch's names, in its order."""
        return {prefix + name: variable.numpy().copy() for name, variable in self._state()}

    def _state(self) -> Iterator[tuple[str, Variable]]:
        """Names and variables of the state dict; a shared variable under each of its names."""
        for path, module in self.named_modules(remove_duplicate=False):
            below = f"{path}." if path else ""
            for name, variable in (*module._parameters.items(), *module._buffers.items()):
                if variable is not None and getattr(variable, "persistent", True):
                    yield below + name, variable

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Take over the values of a state dict, of dlc or of PyTorch.

        Parameters
        ----------
        state_dict : mapping of str to array
            NumPy arrays or torch tensors, by name; converted to the element types of this model.
        strict : bool
            Refuse names that are missing or unexpected.

        Returns
        -------
        LoadResult
            ``missing_keys`` and ``unexpected_keys``.

        Raises
        ------
        WeightsError
            Something is misshapen or of no fitting element type, or ``strict`` refuses it; the
            message lists all of it, and nothing was changed.
        """
        own = dict(self._state())
        found = _arrays(state_dict, own)
        missing = [name for name in own if name not in found]
        unexpected = [name for name in state_dict if name not in own]
        problems = [text for name, value in found.items() if (text := _misfit(name, value, own))]
        if strict:
            problems += [f"missing: {name} {shape_text(own[name].shape)}" for name in missing]
            problems += [f"unexpected: {name}" for name in unexpected]
        if problems:
            head = f"the weights do not fit {type(self).__name__}, and nothing was loaded:"
            raise WeightsError("\n  ".join([head, *problems]))
        for name, value in found.items():
            own[name].copy_(value)
        return LoadResult(missing, unexpected)

    def to(self, dtype: object) -> Self:
        """Convert all floating-point parameters and buffers to ``dtype``; returns the module."""
        name = str(dtype).removeprefix("torch.")
        if name == "cpu":  # where models are anyway
            return self
        if name in DTYPES or not isinstance(dtype, str):
            name = as_dtype(dtype)
        if name not in FLOATS:
            advice = "Models compute on the CPU, in float32 or float64."
            expected = f"{' or '.join(FLOATS)}, or 'cpu'"
            got = repr(name)
            raise DTypeError(explain(f"{type(self).__name__}.to", expected, got, advice=advice))
        for _, variable in self.named_variables():
            if is_float(variable.dtype):
                variable.retype(name)
        return self

    def float(self) -> Self:
        """Convert to float32."""
        return self.to("float32")

    def double(self) -> Self:
        """Convert to float64."""
        return self.to("float64")

    # Modes.

    def train(self, mode: bool = True) -> Self:
        """Set the training flag of this module and all below it; returns the module."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Set inference mode: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def apply(self, fn: Callable[[Module], object]) -> Self:
        """Call ``fn`` on every module below this one and then on it; returns the module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # Copies and pickles, which share nothing with the module and compile for themselves.

    def __getstate__(self) -> dict[str, Any]:
        tables = {name: dict(self.__dict__[name]) for name in _TABLES.values()}
        return {**self.__dict__, **tables, "_dlc_calls": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    # What is printed.

    def extra_repr(self) -> str:
        """The arguments that `repr` shows; layers say theirs."""
        return ""

    def __repr__(self) -> str:
        extra, parts = self.extra_repr(), self._repr_children()
        if not parts:
            return f"{type(self).__name__}({extra})"
        lines = [extra, *parts] if extra else parts
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"

    def _repr_children(self) -> list[str]:
        return [f"({name}): {module!r}" for name, module in self._modules.items()]


#: What to do in place of methods that PyTorch's modules have.
_INSTEAD = {
    "half": "; models compute in float32 or float64",
    "bfloat16": "; models compute in float32 or float64",
    "cuda": "; models compute on the CPU",
    "register_forward_hook": "; wrap the layer in a module that does what the hook would",
    "register_forward_pre_hook": "; wrap the layer in a module that does what the hook would",
    "zero_grad": "; gradients are values (dlc.grad, dlc.train_step) and are never accumulated",
    "compile": "; dlc.compile(module, *specs) compiles it ahead of the first call",
}


def _arrays(state_dict: Any, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The values of a state dict under these names, as NumPy reads them."""
    if not isinstance(state_dict, Mapping):
        advice = "Of a PyTorch module, its state_dict(); of a file, dlc.load_weights(model, path)."
        got = f"{state_dict!r}" if isinstance(state_dict, str) else f"a {type(state_dict).__name__}"
        if state_dict is None:
            got = "None"
        expected = "a mapping of names to arrays"
        raise WeightsError(explain("load_state_dict", expected, got, advice=advice))
    found = {}
    for name in names:
        if name in state_dict:
            value = state_dict[name]
            if getattr(value, "is_meta", False):
                raise WeightsError(f"{name} is a tensor of PyTorch's meta device, without values")
            try:
                found[name] = as_array(value)
            except ValueError as error:
                raise WeightsError(f"{name} cannot be read as an array: {error}") from None
    return found


#: Where a module keeps what is assigned to it.
_TABLES = {Parameter: "_parameters", Buffer: "_buffers", Module: "_modules"}


def _misfit(name: str, value: np.ndarray[Any, Any], own: Mapping[str, Variable]) -> str:
    """Why a value does not fit the variable of its name; nothing where it does."""
    variable = own[name]
    if value.dtype.kind not in "biuf":
        return f"mistyped: {name} expects {variable.dtype}, got {value.dtype}"
    if value.shape != variable.shape:
        expected, got = shape_text(variable.shape), shape_text(value.shape)
        return f"misshapen: {name} expects {expected}, got {got}"
    if not np.can_cast(value.dtype, variable.dtype, "same_kind"):
        return f"mistyped: {name} expects {variable.dtype}, got {value.dtype}"
    return ""
