"""Kernel source to unoptimised LLVM text, with Numba typing and lowering it.

Numba is used as a front end only, and this is the one file that touches its internals, so that a
new Numba is checked against one page. It relies on, and breaks if Numba changes:

- `compiler.compile_extra` taking a `library` and a `pipeline_class`, and its flags `no_compile`,
  `no_cpython_wrapper`, `no_cfunc_wrapper`, `error_model`, `nrt`: they keep Python, the reference
  counts and the exceptions of integer division out of the code;
- the six passes listed in `_front_end`: what is left of Numba's pipeline without the rewrites that
  are for array expressions, closures and `prange`, and without SSA form and the ends of lifetimes,
  which scalars do not need: each variable of the source has one type;
- `codegen.JITCodeLibrary` being given each module by `add_ir_module`, and every other library by
  `add_linking_library`, Numba's runtime always among them: overridden, so that the module stays as
  it was lowered, before LLVM has seen it;
- `TypeInferer.resolve_call` asking its context for the signature of each call, which takes most of
  the time of typing: `_Remembering` answers what was asked before;
- `Lower.lower_binop` being given an operator of `operator` and finding its types in
  `fndesc.calltypes`: `_lowering` emits the usual ones itself, where Numba tries every operand as a
  literal first;
- Numba's calling convention `i32 f(ret*, exception*, args...)`, and `arg.` before a parameter's
  name: `_wrapper` calls it, `_body` marks its pointers.

A kernel that could raise calls `objects.RAISED` on that path. Where the path is dead, as in a loop
whose step is constant, LLVM removes it; where not, `objects.build` finds the symbol and refuses.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dlc.backends.native.isa import Isa
from dlc.backends.native.objects import RAISED
from dlc.errors import CompileError, explain
from dlc.runtime.exclusive import exclusive, importing

_POINTEES = frozenset({"float32", "float64", "int64", "int32", "uint8"})
_LLVM = {"int64": "i64", "int32": "i32", "float64": "double", "float32": "float"}


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel or of an extern.

    Attributes
    ----------
    name : str
        Its name in the source.
    type : str
        "int64", "int32", "float32", "float64", or a pointer: "float32*", "uint8*" and so on.
    noalias : bool
        For a pointer: no other parameter reaches the memory that this one reads or writes.
    """

    name: str
    type: str
    noalias: bool = True

    def __post_init__(self) -> None:
        if self.type.removesuffix("*") not in (_POINTEES if self.is_pointer else _LLVM):
            known = [*_LLVM, *(f"{each}*" for each in sorted(_POINTEES))]
            message = explain(f"parameter {self.name}", f"one of {', '.join(known)}", self.type)
            raise CompileError(message)

    @property
    def is_pointer(self) -> bool:
        return self.type.endswith("*")

    @property
    def llvm(self) -> str:
        """Its type in LLVM's text."""
        return "ptr" if self.is_pointer else _LLVM[self.type]


@dataclass(frozen=True)
class Extern:
    """A native function, `void name(params...)` in C, that kernel source may call."""

    name: str
    params: tuple[Param, ...]


_TO_POINTER = "inttoptr i64 %word.{0} to ptr"
_FROM_WORD = {
    "int64": "add i64 %word.{0}, 0",
    "int32": "add i32 %half.{0}, 0",
    "float64": "bitcast i64 %word.{0} to double",
    "float32": "bitcast i32 %half.{0} to float",
}
_DECLARE = f"declare void @{RAISED}()\n"
_SHARE = (Param("thread", "int64"), Param("threads", "int64"))


def lower(
    source: str,
    name: str,
    params: Sequence[Param],
    isa: Isa,
    externs: Sequence[Extern] = (),
) -> str:
    """Lower a kernel to LLVM text that defines `void name(int64_t *args, int64_t, int64_t)`.

    Word i of `args` is parameter i: an address, an integer, or the bits of a float in its low end.
    The two other arguments are the thread and the number of threads.

    Parameters
    ----------
    source : str
        Python source of one function `name`, whose parameters are `params`, then `thread` and
        `threads`: scalars, subscripts of pointers, choices, loops, and the functions of
        `intrinsics.namespace`. A float literal in it is float32, unless a parameter is float64.
    name : str
        Name of the function, and of the symbol.
    params : sequence of Param
        Types of its parameters, `thread` and `threads` left out.
    isa : Isa
        Decides what `fma` is; the text is otherwise that of every level of one processor family.
    externs : sequence of Extern
        Native functions that the source calls.

    Raises
    ------
    CompileError
        If Numba cannot type or lower the source, if it computes in float64 though no parameter is
        float64, or if it calls something that Numba would compile along.
    """
    body = _lower_body(source, name, (*params, *_SHARE), isa, externs, {})
    return body + _wrapper(name, params)


def lower_function(
    source: str,
    name: str,
    params: Sequence[Param],
    isa: Isa,
    externs: Sequence[Extern] = (),
    intrinsics: Mapping[str, Any] | None = None,
    result: str = "",
) -> str:
    """Lower a function that is no kernel: the text defines `result name(params...)`, a C function.

    `intrinsics` are more names that the source may use, as for the step interpreter's system calls;
    `result` is a type as in `Param`, or empty for void. The rest is as in `lower`.
    """
    body = _lower_body(source, name, params, isa, externs, intrinsics or {}, result)
    declared = ", ".join(f"{param.llvm} %p.{param.name}" for param in params)
    kind = Param("", result).llvm if result else "void"
    call = _call(name, params, kind)
    return f"{body}\ndefine {kind} @{name}({declared}) {{\n{call}}}\n\n{_DECLARE}"


@exclusive()
def _lower_body(
    source: str,
    name: str,
    params: Sequence[Param],
    isa: Isa,
    externs: Sequence[Extern],
    intrinsics: Mapping[str, Any],
    result: str = "",
) -> str:
    """LLVM text of the source's function, as an internal function `name.body`."""
    with importing():
        from numba.core import errors, types
        from numba.core.compiler_lock import global_compiler_lock

        from dlc.backends.native.intrinsics import namespace

    single = not any(param.type.startswith("float64") for param in params)
    with global_compiler_lock:
        names = dict(namespace(isa)) | dict(intrinsics)
        for extern in externs:
            kinds = [_numba_type(param) for param in extern.params]
            names[extern.name] = types.ExternalFunction(extern.name, types.void(*kinds))
        kinds = [_numba_type(param) for param in params]
        returned = _numba_type(Param("result", result)) if result else types.void
        try:
            function = _function(source, name, names, single)
            described, module = _compile(function, kinds, returned, name)
        # A call with the wrong number of operands is a TypeError of the intrinsic's definition.
        except (errors.NumbaError, SyntaxError, TypeError) as error:
            raise CompileError(f"kernel {name} cannot be lowered: {error}\n{source}") from error
    if single and "f64(" not in source:
        _check_single(described.typemap, name, source)
    return _body(module, described.llvm_func_name, name, params)


def _function(source: str, name: str, names: dict[str, Any], single: bool) -> Any:
    """The Python function that the source defines among `names`."""
    if single:
        names |= {"inf": np.float32(np.inf), "nan": np.float32(np.nan)}
    tree = _Literals(names, single).visit(ast.parse(source))
    exec(compile(tree, f"<kernel {name}>", "exec"), names)
    if name not in names:
        raise CompileError(f"the source of kernel {name} does not define {name}\n{source}")
    return names[name]


class _Literals(ast.NodeTransformer):
    """Make float literals float32: those that f32() takes, and in a kernel that is ``single`` all
    but those that f64() takes. Numba takes them for float64, and what they meet with them.

    Each becomes a global of its own, put into `names`. Integers among the globals become literals:
    a variable that is given a global keeps the type of this one number.
    """

    def __init__(self, names: dict[str, Any], single: bool) -> None:
        self.names, self.single = names, single

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._float32(node) if self.single and isinstance(node.value, float) else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.names.get(node.id)
        given = isinstance(node.ctx, ast.Load) and type(value) is int
        return ast.copy_location(ast.Constant(value), node) if given else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(
                func=ast.Name(id="f64"),
                args=[ast.Constant() | ast.UnaryOp(operand=ast.Constant())],
            ):
                return node
            case ast.Call(func=ast.Name(id="f32"), args=[ast.Constant() as literal]):
                return self._float32(literal)
        return self.generic_visit(node)

    def _float32(self, node: ast.Constant) -> ast.expr:
        name = f"literal_{len(self.names)}"
        self.names[name] = np.float32(node.value)
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def _check_single(types: Mapping[str, Any], name: str, source: str) -> None:
    """Refuse float64 that crept in: it costs half of the lanes, and nobody asked for it."""
    double = [variable for variable, kind in types.items() if str(kind) == "float64"]
    if double:
        named = sorted({each.partition(".")[0] for each in double if not each.startswith("$")})
        what = ", ".join(named) if named else "a value in between"
        raise CompileError(
            f"kernel {name} has no float64 parameter, but computes {what} in float64: an integer "
            f"met a float. Write f32(n) for an integer n, or f64(x) to mean it.\n{source}"
        )


def _compile(function: Any, kinds: Sequence[Any], returned: Any, name: str) -> tuple[Any, Any]:
    """Numba's description of the lowered `function`, and the module that it lies in."""
    from numba.core import compiler, registry

    library_class, pipeline_class = _front_end()
    target = registry.cpu_target
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model, flags.nrt, flags.enable_ssa = "numpy", False, False
    library = library_class(target.target_context.codegen(), name)
    result = compiler.compile_extra(
        _remembering(),
        target.target_context,
        function,
        tuple(kinds),
        returned,
        flags,
        {},
        library=library,
        pipeline_class=pipeline_class,
    )
    if library.helpers:
        raise CompileError(
            f"kernel {name} makes Numba compile {', '.join(library.helpers)} along; use dlc's "
            f"intrinsics only (no min, max or ** of Python's)"
        )
    return result.fndesc, library.module


class _Remembering:
    """Numba's typing context, with the signatures of calls remembered.

    A signature follows from the types of the function and of its arguments. Numba looks for it
    among dozens of candidates for each operator, for each place in a source.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """The signature of a call, or None."""
        if kws:
            return self._context.resolve_function_type(func, args, kws)
        found = self._known.get((func, args))
        if found is None:
            found = self._context.resolve_function_type(func, args, kws)
            if found is not None:
                self._known[func, args] = found
        return found


@cache
def _remembering() -> Any:
    from numba.core import registry

    return _Remembering(registry.cpu_target.typing_context)


@cache
def _front_end() -> tuple[Any, Any]:
    """A code library that keeps its module as it is, and the shortest pipeline that makes it."""
    from numba.core import codegen, compiler, typed_passes, untyped_passes
    from numba.core.compiler_machinery import PassManager, register_pass
    from numba.core.runtime import rtsys

    class Library(codegen.JITCodeLibrary):
        def __init__(self, generator: Any, name: str) -> None:
            super().__init__(generator, name)
            self.helpers: list[str] = []
            self.module: Any = None

        def add_linking_library(self, library: Any) -> None:
            if library is not rtsys.library:
                self.helpers.append(library.name)

        def add_ir_module(self, module: Any) -> None:
            self.module = module

    @register_pass(mutates_CFG=True, analysis_only=False)
    class Lowering(typed_passes.NativeLowering):
        _name = "dlc_lowering"
        lowering_class = _lowering()

    class Pipeline(compiler.CompilerBase):
        def define_pipelines(self) -> list[PassManager]:
            manager = PassManager("dlc")
            for stage in (
                untyped_passes.TranslateByteCode,
                untyped_passes.FixupArgs,
                untyped_passes.IRProcessing,
                typed_passes.NopythonTypeInference,
                Lowering,
                typed_passes.NoPythonBackend,
            ):
                manager.add_pass(stage, stage.__name__)
            manager.finalize()
            return [manager]

    return Library, Pipeline


#: Operators that are one instruction, by the name of the builder's method for integers and floats.
_INSTRUCTIONS = {
    operator.add: ("add", "fadd"),
    operator.sub: ("sub", "fsub"),
    operator.mul: ("mul", "fmul"),
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


@cache
def _lowering() -> Any:
    """Numba's lowering, with operators of two numbers of one type as the instructions they are."""
    from numba.core import lowering, types

    plain = (types.int64, types.float32, types.float64)

    class Lower(lowering.Lower):
        def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
            kind, other = self.fndesc.calltypes[expr].args
            known = op in _INSTRUCTIONS or op in _COMPARISONS
            if not known or kind not in plain or kind != other:
                return super().lower_binop(resty, expr, op)
            sides = (
                self.context.cast(
                    self.builder, self.loadvar(side.name), self.typeof(side.name), kind
                )
                for side in (expr.lhs, expr.rhs)
            )
            real = kind in types.real_domain
            if op in _INSTRUCTIONS:
                flags = () if real else ("nsw",)  # sizes and places do not overflow
                made = getattr(self.builder, _INSTRUCTIONS[op][real])(*sides, flags=flags)
            elif not real:
                made = self.builder.icmp_signed(_COMPARISONS[op], *sides)
            elif op is operator.ne:
                made = self.builder.fcmp_unordered("!=", *sides)
            else:
                made = self.builder.fcmp_ordered(_COMPARISONS[op], *sides)
            result = self.fndesc.calltypes[expr].return_type
            return self.context.cast(self.builder, made, result, resty)

    return Lower


def _numba_type(param: Param) -> Any:
    from numba.core import types

    kind = getattr(types, param.type.rstrip("*"))
    return types.CPointer(kind) if param.is_pointer else kind


def _body(module: Any, mangled: str, name: str, params: Sequence[Param]) -> str:
    """The text of Numba's module, with the function under a stable name, internal, its pointers
    marked.
    """
    function = module.get_global(mangled)
    function.linkage = "internal"
    apart = {f"arg.{param.name}" for param in params if param.is_pointer and param.noalias}
    for argument in function.args:
        if argument.name in apart:
            argument.add_attribute("noalias")
    text = re.sub(r"^; ModuleID.*\n|^target .*\n", "", str(module), flags=re.M)
    text = re.sub(rf"_ZN08NumbaEnv{re.escape(mangled[3:])}", f"{name}.environment", text)
    return text.replace(mangled, f"{name}.body")


def _wrapper(name: str, params: Sequence[Param]) -> str:
    """The kernel's entry: unpacks the words of `args`, calls the body."""
    lines = []
    for i, param in enumerate(params):
        lines.append(f"  %at.{i} = getelementptr i64, ptr %args, i64 {i}")
        lines.append(f"  %word.{i} = load i64, ptr %at.{i}")
        if param.type in ("int32", "float32"):
            lines.append(f"  %half.{i} = trunc i64 %word.{i} to i32")
        lines.append(f"  %p.{param.name} = {_FROM_WORD.get(param.type, _TO_POINTER).format(i)}")
    unpack = "\n".join(lines)
    return (
        f"\ndefine void @{name}(ptr noalias readonly %args, i64 %p.thread, i64 %p.threads) {{\n"
        f"{unpack}\n{_call(name, (*params, *_SHARE))}}}\n\n{_DECLARE}"
    )


def _call(name: str, params: Sequence[Param], kind: str = "void") -> str:
    """The end of a C function: call the body; a status other than 0 must be impossible."""
    leave = "ret void"
    if kind != "void":
        leave = f"%value = load {kind}, ptr %result\n  ret {kind} %value"
    arguments = "".join(f", {param.llvm} %p.{param.name}" for param in params)
    return f"""  %result = alloca i64
  %exception = alloca ptr
  %status = call i32 @{name}.body(ptr %result, ptr %exception{arguments})
  %raised = icmp ne i32 %status, 0
  br i1 %raised, label %fail, label %done
fail:
  call void @{RAISED}()
  br label %done
done:
  {leave}
"""
