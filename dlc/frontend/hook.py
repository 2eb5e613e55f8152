"""What a Module calls when it is called with arrays: one variable that the driver sets.

The frontend builds graphs and knows no backend, so running one is the driver's part; this is the
only wire between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlc.errors import Error

if TYPE_CHECKING:
    from dlc.frontend.module import Module


def _unset(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    raise Error(
        f"{type(module).__name__} was called with arrays, and nothing is installed that runs "
        "models; `import dlc` installs it, the frontend alone only traces"
    )


#: ``call_module(module, args, kwargs)`` runs a module on arrays; the driver assigns it.
call_module: Callable[[Module, tuple[Any, ...], Mapping[str, Any]], Any] = _unset
