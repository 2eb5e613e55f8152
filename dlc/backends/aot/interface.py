"""The C functions of one model: the header that documents them, and the code behind their names.

Their form follows from the model alone: named dimensions, then arguments, then results, each array
as a pointer to its elements in row-major order. Everything else is the same for all models.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from dlc.backends.aot import words
from dlc.backends.aot.tables import llvm_text, text_row
from dlc.errors import ArgumentError, explain
from dlc.ir.plan import Plan
from dlc.ir.sizes import Dim, shape_text
from dlc.ir.types import TensorType

_C_TYPES = {
    "bool": "uint8_t",
    "uint8": "uint8_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "float64": "double",
}
_RESERVED = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int int32_t int64_t linux long mutable namespace
    net new noexcept not not_eq nullptr operator or or_eq private protected public register
    reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast
    struct switch template this thread_local throw true try typedef typeid typename typeof
    typeof_unqual uint8_t union unix unsigned using virtual void volatile wchar_t while xor xor_eq
"""

# The statuses by name, in the order of their numbers in `words.py`, and what a user is told.
_STATUSES = (
    ("OK", "no error"),
    (
        "BAD_ARGUMENT",
        "an argument is a null pointer, or the number of threads is not in 0..{threads}",
    ),
    ("BAD_SIZE", "a size is out of range: {name}_run expects {ranges}"),
    ("BAD_INDEX", "the data hold an index that is out of range; {name}_bad_index says which"),
    ("UNREADABLE_WEIGHTS", "the weights' file cannot be opened and read"),
    (
        "OTHER_WEIGHTS",
        "the weights' file is not one for this model: it must be complete, with the names, types "
        "and shapes of {name}.safetensors",
    ),
    ("UNSUPPORTED_PROCESSOR", "this library needs a processor of level {level} or better"),
    ("OUT_OF_MEMORY", "there is not enough memory"),
    ("OUT_OF_THREADS", "the system does not grant that many threads"),
)


@dataclass(frozen=True)
class Interface:
    """What the C functions of a model take and give.

    Attributes
    ----------
    name : str
        The prefix of all names.
    dims : tuple of (str, Dim)
    inputs, outputs : tuple of (str, TensorType)
        With the names that they have in C.
    level : str
        The least level that a processor must have.
    """

    name: str
    dims: tuple[tuple[str, Dim], ...]
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[tuple[str, TensorType], ...]
    level: str

    @property
    def functions(self) -> tuple[str, ...]:
        """The symbols of the library, all of them."""
        kinds = ("create", "run", "destroy", "error", "bad_index", "level")
        return tuple(f"{self.name}_{kind}" for kind in kinds)

    @property
    def messages(self) -> list[str]:
        """What each status means."""
        known = {
            "name": self.name,
            "threads": words.THREADS_MAX,
            "ranges": ", ".join(f"{n} in {d.min}..{d.max}" for n, d in self.dims) or "no sizes",
            "level": self.level,
        }
        return [message.format(**known) for _, message in _STATUSES]

    def header(self) -> str:
        """The text of the header."""
        prefix = self.name.upper()
        codes = "\n".join(
            f"{_comment(text)}\n    {prefix}_{status} = {number},"
            for number, ((status, _), text) in enumerate(zip(_STATUSES, self.messages, strict=True))
        )
        return _HEADER.format(
            name=self.name,
            prefix=prefix,
            codes=codes.removesuffix(","),
            ranges="".join(
                f"#define {prefix}_{name.upper()}_MIN {dim.min}\n"
                f"#define {prefix}_{name.upper()}_MAX {dim.max}\n"
                for name, dim in self.dims
            ),
            parameters=",\n".join(f"    {line}" for line in self._parameters()),
            documentation="".join(f"\n *   {line}" for line in self._documentation()),
            call=", ".join(
                ["net", *(name for name, _ in (*self.dims, *self.inputs, *self.outputs))]
            ),
        )

    def code(self) -> str:
        """The functions as LLVM text; they call those of `program.py`."""
        count = len(self.dims) + len(self.inputs) + len(self.outputs)
        kinds = ["i64"] * len(self.dims) + ["ptr"] * (count - len(self.dims))
        stores = "".join(
            f"  %at.{i} = getelementptr i64, ptr %row, i64 {i}\n"
            f"  store {kind} %a.{i}, ptr %at.{i}\n"
            for i, kind in enumerate(kinds)
        )
        texts = {f"message.{i}": text_row(text) for i, text in enumerate(self.messages)}
        texts["message.unknown"] = text_row("not a status of this library")
        texts["messages"] = list(texts)
        return llvm_text(texts) + _CODE.format(
            name=self.name,
            parameters="".join(f", {kind} %a.{i}" for i, kind in enumerate(kinds)),
            count=max(count, 1),
            stores=stores,
            statuses=len(_STATUSES),
        )

    def _parameters(self) -> list[str]:
        inputs = (f"const {_C_TYPES[type.dtype]} *{name}" for name, type in self.inputs)
        outputs = (f"{_C_TYPES[type.dtype]} *{name}" for name, type in self.outputs)
        dims = (f"int64_t {name}" for name, _ in self.dims)
        return [f"{self.name}_t *net", *dims, *inputs, *outputs]

    def _documentation(self) -> list[str]:
        lines = [f"{name}: from {dim.min} to {dim.max}" for name, dim in self.dims]
        for kind, arrays in (("in", self.inputs), ("out", self.outputs)):
            lines += [f"{n} ({kind}): {t.dtype} {shape_text(t.shape)}" for n, t in arrays]
        return lines


def _comment(text: str) -> str:
    """Text as a C comment of an enumerator."""
    return "\n".join(
        textwrap.wrap(f"/* {text} */", 96, initial_indent="    ", subsequent_indent="     * ")
    )


def interface_of(plan: Plan, name: str, level: str) -> Interface:
    """The interface of a plan under the prefix `name`.

    Raises
    ------
    ArgumentError
        If `name` cannot begin the names of C functions.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        advice = "Give the library one with name=."
        raise ArgumentError(
            explain("a library", "a C identifier as its name", repr(name), advice=advice)
        )
    inputs = [plan.buffers[number].type for number in plan.inputs]
    outputs = [plan.buffers[number].type for number in plan.outputs]
    dims = [dim.name for dim in plan.dims]
    names = iter(_c_names([*dims, *plan.input_names, *plan.output_names]))
    return Interface(
        name,
        tuple((next(names), dim) for dim in plan.dims),
        tuple((next(names), type) for type in inputs),
        tuple((next(names), type) for type in outputs),
        level,
    )


def _c_names(names: Iterable[str]) -> list[str]:
    """Names of C parameters, all different, as like the given ones as can be."""
    found: list[str] = []
    for name in names:
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not name or name[0].isdigit():
            name = f"_{name}"
        while name in found or re.search(rf"\b{name}\b", _RESERVED):
            name += "_"
        found.append(name)
    return found


_HEADER = """\
/* {name}.h: a compiled model as a C library. Written by dlc; do not edit.
 *
 *     {name}_t *net;
 *     int status = {name}_create(&net, "{name}.safetensors", 0);
 *     if (status == {prefix}_OK)
 *         status = {name}_run({call});
 *     if (status != {prefix}_OK)
 *         fprintf(stderr, "%s\\n", {name}_error(status));
 *     {name}_destroy(net);
 */
#ifndef {prefix}_H
#define {prefix}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{ranges}
/* What the functions return. */
enum {{
{codes}
}};

/* An open model: its parameters, its threads and the memory of its calls. */
typedef struct {name} {name}_t;

/* Open the model: *net is the open model, or null where there is an error.
 *
 *   weights: path of {name}.safetensors, or of another file with parameters of the same names,
 *     types and shapes. It must stay as it is while the model is open.
 *   threads: how many threads a call uses, the calling one included; 0 for one per processor.
 */
int {name}_create({name}_t **net, const char *weights, int threads);

/* Run the model. Arrays are in row-major order, with the alignment of their elements.
 *{documentation}
 *
 * Results do not depend on the number of threads. Several threads may run one model at the same
 * time: a call that finds its threads at work uses its own one alone. Results are undefined where
 * there is an error.
 */
int {name}_run(
{parameters});

/* Close the model, when no call is under way; null is fine. */
void {name}_destroy({name}_t *net);

/* What a returned value means. */
const char *{name}_error(int status);

/* Who met an index out of range in the last call that gave {prefix}_BAD_INDEX: the op, its module,
 * and what it expects; null if there was none. The index and its position among the others, in
 * row-major order, go where the pointers say, unless they are null. Of several such calls at the
 * same time, one is told about.
 */
const char *{name}_bad_index(const {name}_t *net, int64_t *position, int64_t *index);

/* The level of processors that the running code was compiled for, such as "x86-64-v3". */
const char *{name}_level(const {name}_t *net);

#ifdef __cplusplus
}}
#endif

#endif
"""

_CODE = """
declare i64 @dlc_create(ptr, ptr, ptr, i64)
declare i64 @dlc_run(ptr, ptr)
declare i64 @dlc_destroy(ptr)
declare i64 @dlc_bad_index(ptr, ptr, ptr)
declare i64 @dlc_level(ptr)

define i32 @{name}_create(ptr %net, ptr %weights, i32 %threads) {{
  %wide = sext i32 %threads to i64
  %status = call i64 @dlc_create(ptr @library, ptr %net, ptr %weights, i64 %wide)
  %result = trunc i64 %status to i32
  ret i32 %result
}}

define i32 @{name}_run(ptr %net{parameters}) {{
  %row = alloca [{count} x i64]
{stores}  %status = call i64 @dlc_run(ptr %net, ptr %row)
  %result = trunc i64 %status to i32
  ret i32 %result
}}

define void @{name}_destroy(ptr %net) {{
  %status = call i64 @dlc_destroy(ptr %net)
  ret void
}}

define ptr @{name}_error(i32 %status) {{
  %known = icmp ult i32 %status, {statuses}
  %number = select i1 %known, i32 %status, i32 {statuses}
  %at = getelementptr ptr, ptr @messages, i32 %number
  %message = load ptr, ptr %at
  ret ptr %message
}}

define ptr @{name}_bad_index(ptr %net, ptr %position, ptr %index) {{
  %location = call i64 @dlc_bad_index(ptr %net, ptr %position, ptr %index)
  %text = inttoptr i64 %location to ptr
  ret ptr %text
}}

define ptr @{name}_level(ptr %net) {{
  %location = call i64 @dlc_level(ptr %net)
  %level = inttoptr i64 %location to ptr
  ret ptr %level
}}
"""
