"""What the processes of a comparison run: a compiled model, a PyTorch model, the machine's peak."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from dlc.cli import naming
from dlc.cli.turns import Subject, timed


def compiled(
    model: Mapping[str, Any], at: Mapping[str, int], threads: int | None = None, opt: str = "O2"
) -> Subject:
    """A model compiled by dlc.

    Parameters
    ----------
    model : dict
        A command line's arguments, as `naming.add_arguments` adds them.
    at : dict of str to int
        Actual sizes.
    threads : int, optional
    opt : str
    """
    from dlc.driver import compile

    given = Namespace(**model)
    specs = naming.inputs(given)
    exe = compile(naming.model(given), *specs, threads=threads, opt=opt, progress=False)
    arrays = naming.arrays(specs, at)
    exe(*arrays)
    flops = exe.profile(*arrays, repeats=1).flops
    return Subject(timed(lambda: exe(*arrays)), {"flops": flops, "kernels": len(exe.kernels)})


def torch(
    model: Mapping[str, Any],
    at: Mapping[str, int],
    twin: str,
    threads: int,
    channels_last: bool = False,
) -> Subject:
    """A PyTorch model, called as its users call it: eagerly, without gradients.

    Parameters
    ----------
    model : dict
        The command line's arguments, for the inputs.
    at : dict of str to int
    twin : str
        Names the PyTorch model, in the same way as MODEL.
    threads : int
    channels_last : bool
        Give it weights and images in the order that suits its convolutions best.
    """
    import torch as library

    library.set_num_threads(threads)
    arrays = naming.arrays(naming.inputs(Namespace(**model)), at)
    network = naming.make(twin).train(model["train"])
    tensors = [library.from_numpy(array) for array in arrays]
    if channels_last:
        order = library.channels_last
        network = network.to(memory_format=order)
        tensors = [t.contiguous(memory_format=order) if t.ndim == 4 else t for t in tensors]

    def run() -> None:
        with library.inference_mode():
            network(*tensors)

    return Subject(timed(run), {"version": library.__version__})


def peak(threads: int, dtype: str = "float32") -> Subject:
    """The machine's peak: the fastest burst of each turn, in ``flops`` a second; and how long the
    threads took to meet, in ``meeting`` seconds.
    """
    from dlc.driver import bursts, meetings

    more = bursts(threads, dtype)
    between = meetings(more.pool)

    def measure(seconds: float) -> dict[str, float]:
        meeting = statistics.median(between.run() for _ in range(9))
        flops = max(more.run() for _ in range(max(5, int(seconds / 4e-3))))
        return {"flops": flops, "meeting": meeting}

    measure(0.1)
    return Subject(measure)
