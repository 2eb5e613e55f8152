"""The native program that runs a compiled call: a step interpreter over a pool of threads.

It is native, so that a call leaves Python once and a library needs none of it; it is built like the
kernels, through Numba and LLVM, into one object that needs pthreads and system calls only. The
words it works on, of pool and frame, are laid out in `dlc.runtime.frame`.

How a call goes
    1. The caller *offers* the call to as many workers as the frame wants, by their mailboxes, and
       wakes those that sleep.
    2. Workers take the offer and report. When all have, the team starts; where one does not within
       the frame's patience (its processor is busy with something else), the caller closes the team
       and goes on with those who are there, alone if need be. Results do not depend on the number
       of threads, so that a late worker costs time, never bits.
    3. Every thread walks the table of steps; they meet at the barriers.
    4. The caller returns when all have arrived at the end.

    One call has the workers at a time: a caller that finds them taken runs its frame alone rather
    than wait. The caller's floating-point mode is set to IEEE's meanwhile.

How a thread waits
    It spins, for longer than a wake-up takes, then sleeps on a futex. A shorter spin would make
    every barrier a sleep and a wake-up, each waiting for the last; an endless one would keep from
    its processor the thread that is waited for. The last to arrive wakes those that sleep, if any
    do. A thread yields only where processors are fewer than threads: beside other programs, who
    yields has to wait for his next time slice, whereas who slept may interrupt. (60 short steps
    beside a busy PyTorch took 392 ms at worst with yielding, 72 without.)

How it copes with a crowded machine
    A caller that has waited long looks at whom it waits for. A thread whose processor time stands
    still is starved. If its processor is one that its own team uses, it is moved to another; if it
    is a stranger's, the worker is *excused* from calls for a while, as the work is divided evenly
    and the slowest thread decides how long all take. The time doubles if that goes on.
"""

from __future__ import annotations

from dlc.backends.native.isa import Isa
from dlc.backends.native.machine import (
    Words,
    add,
    address,
    affinity,
    at,
    fence,
    float_mode,
    futex,
    give_way,
    ieee_mode,
    join,
    load,
    nanoseconds,
    nanosleep,
    pause,
    pointer,
    processor,
    program,
    run_kernel,
    set_affinity,
    set_float_mode,
    signal_mask,
    spawn,
    store,
    swap,
    thread_id,
)
from dlc.runtime.frame import (
    ASLEEP,
    BARRIER,
    ERROR,
    ERROR_POSITION,
    EXCUSED,
    FRAME_PATIENCE,
    GUARDED,
    HANDLE,
    HOME,
    IDLE,
    MAILBOX,
    MEMBER,
    MET,
    NUMBER,
    OFFERED,
    PENALTY,
    POOL_ARRIVED,
    POOL_BUSY,
    POOL_CHECKED,
    POOL_CPUS,
    POOL_CROWDED,
    POOL_FRAME,
    POOL_JOINED,
    POOL_LINES,
    POOL_PAUSE,
    POOL_SCRATCH,
    POOL_SLEEPERS,
    POOL_STARTED,
    POOL_TEAM,
    POOL_THREADS,
    POOL_WHOLE,
    PROCESSOR,
    RUN_TIME,
    SCRATCH_WORDS,
    STEP_ARGUMENTS,
    STEP_COUNT,
    STEP_FLAGS,
    STEP_KERNEL,
    STEP_WORDS,
    STEPS,
    STOP,
    STOPPED,
    TAKEN,
    TEAM_CLOSED,
    THREAD_ID,
    THREAD_WORDS,
    THREADS,
)

# The symbols of libc that the program needs.
SYSTEM = (
    "clock_gettime",
    "pthread_create",
    "pthread_join",
    "sched_getcpu",
    "sched_yield",
    "syscall",
)

# Nanoseconds, measured on Linux 6.18 with two processors, idle and beside a busy PyTorch.
SPIN = 100_000  # a wake-up takes 30 to 60 us where the processor is free
CROWDED_SPIN = 5_000  # in a call one of whose threads lacks a processor: keep its right to preempt
YIELD = 50_000  # where threads are more than processors, in place of spinning
PATIENCE = 300_000  # for workers that slept to report, where the frame does not say
HOT_PATIENCE = 20_000  # for workers to report where none slept: usual is 0.1 us
PENALTY_MIN, PENALTY_MAX = 10_000_000, 320_000_000  # without a worker that lacked a processor
CPU_CHECK = 5_000_000  # between two counts of the processors, of 0.3 us each
STOP_PAUSE = 500_000  # between two looks whether the last call has ended

LOOKS = 16  # looks at a word, a pause after each, between two looks at the clock: about 0.3 us

CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE = 1, 6
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
EVERYONE = 0x7FFFFFFF
SIG_SETMASK = 2
CRASHES = 0b101_1111_1000  # SIGILL, TRAP, ABRT, BUS, FPE, (KILL,) SEGV: a worker takes its own


def build(isa: Isa) -> bytes:
    """Build the interpreter: an object whose entries are `dlc_call`, `dlc_start` and `dlc_stop`.

    Parameters
    ----------
    isa : Isa
        The level; there is no arithmetic in the object, so that the lowest level of an
        architecture serves all.

    Returns
    -------
    bytes
        A relocatable ELF object; undefined in it are symbols of `SYSTEM` only.
    """
    return program([dlc_call, dlc_start, dlc_stop], isa, SYSTEM, internal=[worker])


def dlc_call(pool: Words, frame: Words) -> int:
    """Run a frame; how many threads took part."""
    mode = float_mode()
    if mode != ieee_mode():
        set_float_mode(ieee_mode())
    frame[ERROR] = 0
    frame[ERROR_POSITION] = 0
    line = thread_line(pool, 0)
    team = 1
    if frame[THREADS] > 1 and swap(at(pool, POOL_BUSY), 0, 1) != 0:
        team = gather(pool, frame)
        meeting = walk(pool, frame, line, team)
        if team > 1:
            meet(pool, line, meeting + team)
        add(at(pool, POOL_BUSY), -1)
    else:
        walk(pool, frame, line, 1)
    if float_mode() != mode:  # its exception flags count too
        set_float_mode(mode)
    return team


def walk(pool: Words, frame: Words, line: Words, team: int) -> int:
    """Do a thread's share of every step; how many arrivals at barriers its team has had."""
    thread = line[NUMBER]
    steps = pointer(frame[STEPS])
    count = frame[STEP_COUNT]
    meeting = 0
    for i in range(count):
        step = at(steps, i * STEP_WORDS)
        if step[STEP_FLAGS] & GUARDED == 0 or load(at(frame, ERROR)) == 0:
            run_kernel(step[STEP_KERNEL], pointer(step[STEP_ARGUMENTS]), thread, team)
        if team > 1 and step[STEP_FLAGS] & BARRIER != 0 and i + 1 < count:
            meeting += team
            meet(pool, line, meeting)
    return meeting


def worker(line: Words) -> int:
    """The life of a worker: take what the mailbox offers until it says stop."""
    set_float_mode(ieee_mode())
    pool = pointer(line[HOME])
    mailbox = at(line, MAILBOX)
    line[THREAD_ID] = thread_id()
    line[PROCESSOR] = processor()
    add(at(line, ASLEEP), -1)
    while True:
        wait_for(pool, mailbox, OFFERED, at(line, ASLEEP), 0)
        if load(mailbox) == STOP:
            return 0
        if swap(mailbox, OFFERED, TAKEN) == 0:
            continue  # too late, the team was closed
        report(pool, line)
        team = pool[POOL_TEAM]
        meeting = walk(pool, pointer(pool[POOL_FRAME]), line, team)
        store(mailbox, IDLE)  # before the arrival, after which the next offer may come
        arrive(pool, line, meeting + team)


# Teams.


def gather(pool: Words, frame: Words) -> int:
    """Bring a team together for a frame; how many threads it has."""
    if pool[POOL_STARTED] == 0 and pool[POOL_THREADS] > 1:
        dlc_start(pool)
    now = nanoseconds(CLOCK_MONOTONIC_COARSE)
    whole = pool[POOL_WHOLE] != 0
    allowed = pool[POOL_THREADS] if whole else processors(pool, now)
    wanted = min_of(frame[THREADS], allowed)
    caller = thread_line(pool, 0)
    caller[MEMBER] = 1
    caller[PROCESSOR] = processor()
    team = 1
    for number in range(1, pool[POOL_STARTED] + 1):
        line = thread_line(pool, number)
        line[MEMBER] = 0
        if team < wanted and (whole or now >= line[EXCUSED]):
            line[MEMBER] = 1
            line[NUMBER] = team
            team += 1
    if team == 1:
        return 1
    pool[POOL_FRAME] = address(frame)
    pool[POOL_TEAM] = team
    pool[POOL_CROWDED] = 0
    store(at(pool, POOL_JOINED), 0)
    store(at(pool, POOL_ARRIVED), 0)
    patience = offer(pool, frame[FRAME_PATIENCE])
    if whole:
        patience = 0
    if wait_for(pool, at(pool, POOL_JOINED), team - 1, at(pool, POOL_SLEEPERS), patience) != 0:
        return team
    return close_team(pool)


def offer(pool: Words, patience: int) -> int:
    """Offer the call to the members of its team; how long to wait for them."""
    started = pool[POOL_STARTED]
    for number in range(1, started + 1):
        line = thread_line(pool, number)
        if line[MEMBER] != 0:
            store(at(line, MAILBOX), OFFERED)
    fence()
    slept = 0
    for number in range(1, started + 1):
        line = thread_line(pool, number)
        if line[MEMBER] != 0 and load(at(line, ASLEEP)) != 0:
            slept = 1
            part(pool, line)
            wake(at(line, MAILBOX), at(line, ASLEEP))
    if slept == 0:
        return HOT_PATIENCE
    return patience if patience > 0 else PATIENCE


def report(pool: Words, line: Words) -> int:
    """Join a team, and wait until it is complete or closed."""
    line[MET] = 0
    line[PROCESSOR] = processor()
    joined = at(pool, POOL_JOINED)
    others = load(at(pool, POOL_TEAM)) - 1  # it may be closed now, with another `NUMBER`
    if add(joined, 1) + 1 >= others:
        wake(joined, at(pool, POOL_SLEEPERS))
    else:
        wait_for(pool, joined, others, at(pool, POOL_SLEEPERS), 0)
    return 0


def close_team(pool: Words) -> int:
    """Take back the offers that nobody took, and number the threads anew; how many there are."""
    now = nanoseconds(CLOCK_MONOTONIC_COARSE)
    present = 1
    for number in range(1, pool[POOL_STARTED] + 1):
        line = thread_line(pool, number)
        if line[MEMBER] != 0:
            if swap(at(line, MAILBOX), OFFERED, IDLE) != 0:
                line[MEMBER] = 0
                excuse(line, now)
            else:  # it has taken the offer, whether it has reported or not
                line[NUMBER] = present
                present += 1
    store(at(pool, POOL_TEAM), present)
    store(at(pool, POOL_JOINED), TEAM_CLOSED)
    fence()
    wake(at(pool, POOL_JOINED), at(pool, POOL_SLEEPERS))
    return present


def excuse(line: Words, now: int) -> int:
    """Offer a worker no calls for a while, twice as long as the last time if that was just now."""
    again = now - line[EXCUSED] < line[PENALTY]
    line[PENALTY] = min_of(2 * line[PENALTY], PENALTY_MAX) if again else PENALTY_MIN
    line[EXCUSED] = now + line[PENALTY]
    return 0


def part(pool: Words, line: Words) -> int:
    """Keep a worker off the processors of its team, if it shares one; 1 if that could be done.

    Some schedulers wake a thread where its waker runs, though another processor is idle.
    """
    mask = at(pool, POOL_SCRATCH)
    size = affinity(0, 8 * SCRATCH_WORDS, mask)
    if size <= 0 or line[THREAD_ID] == 0:
        return 0
    shared = 0
    for number in range(pool[POOL_STARTED] + 1):
        mate = thread_line(pool, number)
        if mate[MEMBER] != 0 and address(mate) != address(line):
            mask[mate[PROCESSOR] >> 6] &= ~(1 << (mate[PROCESSOR] & 63))
            if mate[PROCESSOR] == line[PROCESSOR]:
                shared = 1
    if shared == 0 or count_ones(mask, size // 8) == 0:
        return 0
    return 1 if set_affinity(line[THREAD_ID], size, mask) == 0 else 0


def processors(pool: Words, now: int) -> int:
    """How many processors the calling thread may use; asked for every `CPU_CHECK`."""
    if now - pool[POOL_CHECKED] >= CPU_CHECK:
        pool[POOL_CHECKED] = now
        mask = at(pool, POOL_SCRATCH)
        size = affinity(0, 8 * SCRATCH_WORDS, mask)
        if size > 0:
            pool[POOL_CPUS] = count_ones(mask, size // 8)
    return pool[POOL_CPUS]


def thread_line(pool: Words, number: int) -> Words:
    """The words of a thread of the pool."""
    return at(pool, POOL_LINES + number * THREAD_WORDS)


# Waiting.


def meet(pool: Words, line: Words, meeting: int) -> int:
    """Arrive at a barrier and wait until `meeting` arrivals are counted."""
    if arrive(pool, line, meeting) == 0:
        arrived = at(pool, POOL_ARRIVED)
        sleepers = at(pool, POOL_SLEEPERS)
        if line[NUMBER] == 0 and pool[POOL_CROWDED] == 0:
            watch(pool, meeting)
        wait_for(pool, arrived, meeting, sleepers, 0)
    return 0


def arrive(pool: Words, line: Words, meeting: int) -> int:
    """Count an arrival; 1 for the last one, which wakes those that sleep."""
    arrived = at(pool, POOL_ARRIVED)
    store(at(line, MET), meeting)
    if add(arrived, 1) + 1 != meeting:
        return 0
    wake(arrived, at(pool, POOL_SLEEPERS))
    return 1


def watch(pool: Words, meeting: int) -> int:
    """The caller's long wait at a barrier: excuse from later calls who does not get to run."""
    arrived = at(pool, POOL_ARRIVED)
    sleepers = at(pool, POOL_SLEEPERS)
    if wait_for(pool, arrived, meeting, sleepers, SPIN // 2) != 0:
        return 0
    started = pool[POOL_STARTED]
    for number in range(1, started + 1):
        line = thread_line(pool, number)
        if line[MEMBER] != 0:
            line[RUN_TIME] = nanoseconds(run_clock(line))
    if wait_for(pool, arrived, meeting, sleepers, SPIN // 2) != 0:
        return 0
    for number in range(1, started + 1):
        line = thread_line(pool, number)
        if line[MEMBER] == 0 or load(at(line, MET)) >= meeting:
            continue
        starved = nanoseconds(run_clock(line)) - line[RUN_TIME] < SPIN // 4
        if starved and part(pool, line) == 0:
            pool[POOL_CROWDED] = 1
            excuse(line, nanoseconds(CLOCK_MONOTONIC_COARSE))
    return 0


def run_clock(line: Words) -> int:
    """The clock of the processor time that a thread has had, as Linux numbers it."""
    return (~line[THREAD_ID] << 3) | 6


def wait_for(pool: Words, word: Words, target: int, sleepers: Words, patience: int) -> int:
    """Wait until a word is at least `target`; 0 if `patience` (0: endless) ran out before."""
    began = 0
    while True:
        for _ in range(LOOKS):
            if load(word) >= target:
                return 1
            pause()
        now = nanoseconds(CLOCK_MONOTONIC)
        if began == 0:
            began = now
        waited = now - began
        if patience > 0 and waited >= patience:
            return 0
        spin = SPIN
        politely = 0
        if pool[POOL_CROWDED] != 0:
            spin = CROWDED_SPIN
        elif pool[POOL_TEAM] > pool[POOL_CPUS]:
            spin = 0
            politely = YIELD
        if waited < spin:
            continue
        if patience > 0 or waited < politely:
            give_way()
        else:
            sleep(word, target, sleepers)


def sleep(word: Words, target: int, sleepers: Words) -> int:
    """Sleep until a word changes, unless it is at least `target` already."""
    add(sleepers, 1)
    seen = load(word)
    if seen < target:
        futex(word, FUTEX_WAIT_PRIVATE, seen, 0)
    add(sleepers, -1)
    return 0


def wake(word: Words, sleepers: Words) -> int:
    """Wake those that sleep on a word; it was changed, and a fence passed, before."""
    if load(sleepers) > 0:
        futex(word, FUTEX_WAKE_PRIVATE, EVERYONE, 0)
    return 0


# The beginning and the end of a pool.


def dlc_start(pool: Words) -> int:
    """Start the workers of a pool; 0, or the number of the error that kept one from starting."""
    every = at(pool, POOL_SCRATCH)
    usual = at(every, 1)
    every[0] = ~CRASHES
    signal_mask(SIG_SETMASK, every, usual, 8)  # signals are for the threads of the program
    error = 0
    number = 1
    while number < pool[POOL_THREADS] and error == 0:
        line = thread_line(pool, number)
        line[HOME] = address(pool)
        line[ASLEEP] = 1  # until it runs
        error = spawn(at(line, HANDLE), line)
        if error == 0:
            pool[POOL_STARTED] = number
        number += 1
    signal_mask(SIG_SETMASK, usual, pointer(0), 8)
    return error


def dlc_stop(pool: Words) -> int:
    """End the workers, after the call that they are in; later calls run alone."""
    busy = at(pool, POOL_BUSY)
    add(busy, STOPPED)  # from here on, no call gets the workers
    moment = at(pool, POOL_PAUSE)  # the scratch words belong to the call that may be under way
    moment[0] = 0
    moment[1] = STOP_PAUSE
    while load(busy) & 1 != 0:
        nanosleep(moment, 0)
    for number in range(1, pool[POOL_STARTED] + 1):
        line = thread_line(pool, number)
        store(at(line, MAILBOX), STOP)
        fence()
        wake(at(line, MAILBOX), at(line, ASLEEP))
        join(line[HANDLE], pointer(0))
    pool[POOL_STARTED] = 0
    return 0


# Arithmetic that Numba would take from its library.


def min_of(a: int, b: int) -> int:
    """The smaller one."""
    return a if a < b else b


def count_ones(words: Words, count: int) -> int:
    """The number of bits that are set in `count` words."""
    ones = 0
    for i in range(count):
        rest = words[i]
        while rest != 0:
            rest &= rest - 1
            ones += 1
    return ones
