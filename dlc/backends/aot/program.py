"""The native program of a library: it opens a model, runs it and closes it, all from tables.

It does in native code what `dlc.runtime.runner` does in Python: bind the named dimensions, lease
the memory of a call, write its argument words, enter the step interpreter once. It is one program
for all models, built like the interpreter through Numba and LLVM; what differs is in the tables.

Memory
    Pages come straight from the system. The weights' file is mapped, not read, so that processes
    share it and what only `prepare` reads can leave memory again.

Calls at the same time
    Each takes a lease: an idle one, or a new one, which then belongs to the model until it is
    closed. Leases form a list that only grows, so that taking one needs no lock.

Fork
    The pool's pages read as zeros in a forked child: a pool without threads. The next call there
    says how many it should have, and the interpreter starts them.
"""

from __future__ import annotations

from dlc.backends.aot.system import (
    FEATURES,
    INTERPRETER,
    SYSTEM,
    WIPE_ON_FORK,
    advise,
    call,
    close_file,
    copy,
    features,
    file_memory,
    file_size,
    free_memory,
    new_memory,
    open_file,
    start,
    stop,
)
from dlc.backends.aot.words import (
    ARGUMENT_BASE,
    ARGUMENT_SIZE,
    ARGUMENT_WORDS,
    BAD_ARGUMENT,
    BAD_INDEX,
    BAD_SIZE,
    BASE_ARENA,
    BASE_ARRAYS,
    BASE_CONSTANTS,
    BASE_FRAME,
    BASE_PREPARED,
    BASE_SCRATCH,
    BASE_WEIGHTS,
    LEASE_ARGUMENTS,
    LEASE_BASES,
    LEASE_BEFORE,
    LEASE_BYTES,
    LEASE_SIZES,
    LEASE_TAKEN,
    LEASE_WORDS,
    LEVEL_FEATURES,
    LEVEL_MODEL,
    LEVEL_WORDS,
    LIBRARY_LEVELS,
    LIBRARY_ROWS,
    MODEL_ARENA_BYTES,
    MODEL_CONSTANTS,
    MODEL_DIMS,
    MODEL_HEADER,
    MODEL_HEADER_WORDS,
    MODEL_MAIN,
    MODEL_NAME,
    MODEL_POINTERS,
    MODEL_PREPARE,
    MODEL_PREPARED_BYTES,
    MODEL_RANGE_TABLE,
    MODEL_SCRATCH_BYTES,
    MODEL_SITE_TABLE,
    MODEL_SIZE_TABLE,
    MODEL_SIZES,
    MODEL_WEIGHTS_BYTES,
    NET_BAD_INDEX,
    NET_BAD_VALUE,
    NET_LEASES,
    NET_MODEL,
    NET_POOL,
    NET_POOL_BYTES,
    NET_PREPARED,
    NET_PROCESSORS,
    NET_THREADS,
    NET_WEIGHTS,
    NET_WORDS,
    OK,
    OTHER_WEIGHTS,
    OUT_OF_MEMORY,
    OUT_OF_THREADS,
    PROCESSOR_WORDS,
    PROGRAM_ARGUMENT_TABLE,
    PROGRAM_ARGUMENTS,
    PROGRAM_STEP_TABLE,
    PROGRAM_STEPS,
    THREADS_MAX,
    UNREADABLE_WEIGHTS,
    UNSUPPORTED_PROCESSOR,
)
from dlc.backends.native.interpreter import count_ones
from dlc.backends.native.isa import Isa
from dlc.backends.native.machine import (
    Words,
    address,
    affinity,
    at,
    load,
    pointer,
    program,
    store,
    swap,
)
from dlc.ir.plan import SITES, SLACK
from dlc.runtime.frame import (
    ERROR,
    ERROR_POSITION,
    HEADER_WORDS,
    LINE,
    POOL_LINES,
    POOL_THREADS,
    STEP_ARGUMENTS,
    STEP_COUNT,
    STEP_FLAGS,
    STEP_KERNEL,
    STEP_WORDS,
    STEPS,
    THREAD_WORDS,
    THREADS,
)

ENTRIES = ("dlc_create", "dlc_run", "dlc_destroy", "dlc_bad_index", "dlc_level", "dlc_copy")


def build(isa: Isa) -> bytes:
    """Build the program: an object whose symbols are `ENTRIES`, for the processors of `isa`."""
    entries = [dlc_create, dlc_run, dlc_destroy, dlc_bad_index, dlc_level, dlc_copy]
    return program(entries, isa, (*SYSTEM, *INTERPRETER, "syscall"))


def feature_bits(isa: Isa) -> int:
    """What `features` must have for a level."""
    return sum(1 << FEATURES[name] for name in isa.requires if name in FEATURES)


# Opening.


def dlc_create(library: Words, result: Words, weights: Words, threads: int) -> int:
    """Open a model with the parameters in the file `weights`; 0 threads are one per processor."""
    if address(result) == 0:
        return BAD_ARGUMENT
    result[0] = 0
    if address(weights) == 0 or threads < 0 or threads > THREADS_MAX:
        return BAD_ARGUMENT
    model = best_model(library)
    if model == 0:
        return UNSUPPORTED_PROCESSOR
    location = new_memory(8 * NET_WORDS)
    if location == 0:
        return OUT_OF_MEMORY
    net = pointer(location)
    net[NET_MODEL] = model
    status = furnish(net, weights, threads)
    if status == OK:
        result[0] = location
    else:
        dlc_destroy(net)
    return status


def best_model(library: Words) -> int:
    """The address of the first model that this processor can run, or 0."""
    present = features()
    for i in range(library[LIBRARY_LEVELS]):
        row = at(library, LIBRARY_ROWS + LEVEL_WORDS * i)
        if row[LEVEL_FEATURES] & present == row[LEVEL_FEATURES]:
            return row[LEVEL_MODEL]
    return 0


def furnish(net: Words, weights: Words, threads: int) -> int:
    """Give a new model its parameters, its threads, and memory for the first call."""
    status = open_weights(net, weights)
    if status == OK:
        status = open_pool(net, threads)
    if status == OK:
        status = prepare(net)
    if status == OK:
        lease = take_lease(net)
        if lease == 0:
            return OUT_OF_MEMORY
        store(at(pointer(lease), LEASE_TAKEN), 0)
    return status


def open_weights(net: Words, path: Words) -> int:
    """Map the file of the parameters, if it has the very names, types and shapes of this model."""
    model = pointer(net[NET_MODEL])
    file = open_file(path)
    if file < 0:
        return UNREADABLE_WEIGHTS
    size = file_size(file)
    location = 0
    if size == model[MODEL_WEIGHTS_BYTES]:
        location = file_memory(file, size)
    close_file(file)
    if size != model[MODEL_WEIGHTS_BYTES]:
        return OTHER_WEIGHTS
    if location == 0:
        return UNREADABLE_WEIGHTS
    net[NET_WEIGHTS] = location
    expected = pointer(model[MODEL_HEADER])
    found = pointer(location)
    for i in range(model[MODEL_HEADER_WORDS]):
        if found[i] != expected[i]:
            return OTHER_WEIGHTS
    return OK


def open_pool(net: Words, threads: int) -> int:
    """Start the threads."""
    if threads == 0:
        mask = at(net, NET_PROCESSORS)
        size = affinity(0, 8 * PROCESSOR_WORDS, mask)
        threads = count_ones(mask, size // 8) if size > 0 else 1
    net[NET_THREADS] = threads
    size = 8 * (POOL_LINES + THREAD_WORDS * threads)
    location = new_memory(size)
    if location == 0:
        return OUT_OF_MEMORY
    net[NET_POOL] = location
    net[NET_POOL_BYTES] = size
    pool = pointer(location)
    advise(pool, size, WIPE_ON_FORK)
    pool[POOL_THREADS] = threads
    return OK if start(pool) == 0 else OUT_OF_THREADS


def prepare(net: Words) -> int:
    """Compute what depends on parameters only, with every dimension at its greatest."""
    model = pointer(net[NET_MODEL])
    net[NET_PREPARED] = new_memory(model[MODEL_PREPARED_BYTES])
    if net[NET_PREPARED] == 0:
        return OUT_OF_MEMORY
    steps = pointer(model[MODEL_PREPARE])
    location = new_lease(net, steps)
    if location == 0:
        return OUT_OF_MEMORY
    lease = pointer(location)
    status = execute(net, lease, steps)
    free_memory(lease, lease[LEASE_BYTES])
    return status


def dlc_destroy(net: Words) -> int:
    """Close a model, even one that was opened in part; no call may be under way."""
    if address(net) == 0:
        return OK
    model = pointer(net[NET_MODEL])
    if net[NET_POOL] != 0:
        stop(pointer(net[NET_POOL]))
        free_memory(pointer(net[NET_POOL]), net[NET_POOL_BYTES])
    location = net[NET_LEASES]
    while location != 0:
        lease = pointer(location)
        location = lease[LEASE_BEFORE]
        free_memory(lease, lease[LEASE_BYTES])
    if net[NET_PREPARED] != 0:
        free_memory(pointer(net[NET_PREPARED]), model[MODEL_PREPARED_BYTES])
    if net[NET_WEIGHTS] != 0:
        free_memory(pointer(net[NET_WEIGHTS]), model[MODEL_WEIGHTS_BYTES])
    free_memory(net, 8 * NET_WORDS)
    return OK


def dlc_level(net: Words) -> int:
    """The address of the name of the level that a model runs at."""
    return pointer(net[NET_MODEL])[MODEL_NAME]


# Running.


def dlc_run(net: Words, arguments: Words) -> int:
    """Run a model: `arguments` are the named dimensions, then the addresses of the arrays."""
    if address(net) == 0:
        return BAD_ARGUMENT
    model = pointer(net[NET_MODEL])
    status = check(model, arguments)
    if status != OK:
        return status
    location = take_lease(net)
    if location == 0:
        return OUT_OF_MEMORY
    lease = pointer(location)
    bind(model, lease, arguments)
    status = execute(net, lease, pointer(model[MODEL_MAIN]))
    store(at(lease, LEASE_TAKEN), 0)
    return status


def check(model: Words, arguments: Words) -> int:
    """Whether all dimensions are in their ranges and all arrays are there."""
    dims = model[MODEL_DIMS]
    ranges = pointer(model[MODEL_RANGE_TABLE])
    for i in range(dims):
        if arguments[i] < ranges[2 * i] or arguments[i] > ranges[2 * i + 1]:
            return BAD_SIZE
    for i in range(dims, dims + model[MODEL_POINTERS]):
        if arguments[i] == 0:
            return BAD_ARGUMENT
    return OK


def bind(model: Words, lease: Words, arguments: Words) -> int:
    """Take the caller's dimensions and arrays; sizes are computed when a dimension has changed."""
    dims = model[MODEL_DIMS]
    sizes = pointer(lease[LEASE_SIZES])
    changed = 0
    for i in range(dims):
        if sizes[i] != arguments[i]:
            sizes[i] = arguments[i]
            changed = 1
    if changed != 0:
        evaluate(pointer(model[MODEL_SIZE_TABLE]), sizes, dims, model[MODEL_SIZES])
    bases = pointer(lease[LEASE_BASES])
    for i in range(model[MODEL_POINTERS]):
        bases[BASE_ARRAYS + i] = arguments[dims + i]
    return 0


def evaluate(table: Words, sizes: Words, first: int, count: int) -> int:
    """Compute the sizes from the first one on, each from those before it.

    A size is a polynomial, divided by a number and rounded down. In the table: the divisor; the
    number of terms; for each its coefficient, the number of its factors and which sizes they are.
    """
    word = 0
    for i in range(first, count):
        divisor = table[word]
        terms = table[word + 1]
        word += 2
        total = 0
        for _ in range(terms):
            term = table[word]
            factors = table[word + 1]
            word += 2
            for j in range(factors):
                term *= sizes[table[word + j]]
            word += factors
            total += term
        sizes[i] = total // divisor
    return 0


def execute(net: Words, lease: Words, steps: Words) -> int:
    """Run a lease's frame: every argument word is a base plus a size."""
    arguments = pointer(lease[LEASE_ARGUMENTS])
    bases = pointer(lease[LEASE_BASES])
    sizes = pointer(lease[LEASE_SIZES])
    table = pointer(steps[PROGRAM_ARGUMENT_TABLE])
    for i in range(steps[PROGRAM_ARGUMENTS]):
        row = at(table, ARGUMENT_WORDS * i)
        arguments[i] = bases[row[ARGUMENT_BASE]] + sizes[row[ARGUMENT_SIZE]]
    pool = pointer(net[NET_POOL])
    if pool[POOL_THREADS] == 0:  # after a fork
        pool[POOL_THREADS] = net[NET_THREADS]
    frame = at(lease, LEASE_WORDS)
    call(pool, frame)
    if frame[ERROR] == 0:
        return OK
    net[NET_BAD_VALUE] = frame[ERROR_POSITION]
    store(at(net, NET_BAD_INDEX), frame[ERROR])
    return BAD_INDEX


def dlc_bad_index(net: Words, position: Words, index: Words) -> int:
    """The address of a text: which op met the last index out of range; 0 if there was none.

    Where that index stood among the others, and what it was, go where the arguments point.
    """
    if address(net) == 0:
        return 0
    code = load(at(net, NET_BAD_INDEX))
    if code == 0:
        return 0
    if address(position) != 0:
        position[0] = code // SITES
    if address(index) != 0:
        index[0] = net[NET_BAD_VALUE]
    texts = pointer(pointer(net[NET_MODEL])[MODEL_SITE_TABLE])
    return texts[code % SITES - 1]


# Leases.


def take_lease(net: Words) -> int:
    """The address of a lease for a call of `main`, now taken; 0 where there is no memory."""
    last = at(net, NET_LEASES)
    location = load(last)
    while location != 0:
        lease = pointer(location)
        if swap(at(lease, LEASE_TAKEN), 0, 1) != 0:
            return location
        location = lease[LEASE_BEFORE]
    location = new_lease(net, pointer(pointer(net[NET_MODEL])[MODEL_MAIN]))
    if location != 0:
        lease = pointer(location)
        lease[LEASE_TAKEN] = 1
        lease[LEASE_BEFORE] = load(last)
        while swap(last, lease[LEASE_BEFORE], location) == 0:
            lease[LEASE_BEFORE] = load(last)
    return location


def new_lease(net: Words, steps: Words) -> int:
    """The address of a new lease for a program, its dimensions at their greatest; or 0."""
    model = pointer(net[NET_MODEL])
    steps_at = LEASE_WORDS + HEADER_WORDS
    arguments_at = steps_at + STEP_WORDS * steps[PROGRAM_STEPS]
    bases_at = arguments_at + steps[PROGRAM_ARGUMENTS]
    sizes_at = bases_at + BASE_ARRAYS + model[MODEL_POINTERS]
    scratch_at = lines(8 * (sizes_at + model[MODEL_SIZES]))
    arena_at = scratch_at + lines(model[MODEL_SCRATCH_BYTES] * net[NET_THREADS] + SLACK)
    size = arena_at + model[MODEL_ARENA_BYTES] + SLACK
    location = new_memory(size)
    if location == 0:
        return 0
    lease = pointer(location)
    lease[LEASE_BYTES] = size
    lease[LEASE_ARGUMENTS] = address(at(lease, arguments_at))
    lease[LEASE_BASES] = address(at(lease, bases_at))
    lease[LEASE_SIZES] = address(at(lease, sizes_at))
    fill_frame(at(lease, LEASE_WORDS), steps, at(lease, arguments_at), net[NET_THREADS])
    bases = at(lease, bases_at)
    bases[BASE_FRAME] = address(at(lease, LEASE_WORDS))
    bases[BASE_SCRATCH] = location + scratch_at
    bases[BASE_ARENA] = location + arena_at
    bases[BASE_PREPARED] = net[NET_PREPARED]
    bases[BASE_WEIGHTS] = net[NET_WEIGHTS]
    bases[BASE_CONSTANTS] = model[MODEL_CONSTANTS]
    sizes = at(lease, sizes_at)
    ranges = pointer(model[MODEL_RANGE_TABLE])
    for i in range(model[MODEL_DIMS]):
        sizes[i] = ranges[2 * i + 1]
    evaluate(pointer(model[MODEL_SIZE_TABLE]), sizes, model[MODEL_DIMS], model[MODEL_SIZES])
    return location


def fill_frame(frame: Words, steps: Words, arguments: Words, threads: int) -> int:
    """Write a frame's header and its table of steps, which follows it."""
    count = steps[PROGRAM_STEPS]
    table = pointer(steps[PROGRAM_STEP_TABLE])
    frame[STEP_COUNT] = count
    frame[STEPS] = address(at(frame, HEADER_WORDS))
    frame[THREADS] = threads
    for i in range(count):
        row = at(table, STEP_WORDS * i)
        step = at(frame, HEADER_WORDS + STEP_WORDS * i)
        step[STEP_KERNEL] = row[STEP_KERNEL]
        step[STEP_ARGUMENTS] = address(at(arguments, row[STEP_ARGUMENTS]))
        step[STEP_FLAGS] = row[STEP_FLAGS]
    return 0


def lines(size: int) -> int:
    """Bytes rounded up to whole lines."""
    return (size + 8 * LINE - 1) // (8 * LINE) * (8 * LINE)


def dlc_copy(arguments: Words, thread: int, threads: int) -> int:
    """A kernel: copy bytes, for results that no other kernel writes."""
    if thread == 0:
        copy(pointer(arguments[0]), pointer(arguments[1]), arguments[2])
    return 0
