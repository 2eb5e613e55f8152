"""Where the words of a call's frame and of a thread pool lie: constants, and the size of a pool.

Python fills these words in, native code (`dlc.backends.native.interpreter`) reads and writes them,
and a library's driver does the same, so that they are written down in one place.

A **frame** is everything one call needs, as one row of int64 words: a header, the table of steps,
the words that the steps' kernels get as arguments. A **pool** is the meeting place of the threads
that run a frame. All words are 8 bytes; what different threads write lies on lines of its own
(`LINE` words: two cache lines, because processors fetch them in pairs).
"""

# The header of a frame.
ERROR = 0  # the first error of this call, set by the kernel that found it; 0 where there is none
ERROR_POSITION = 1  # where it is: an index whose meaning belongs to the error
STEP_COUNT = 2
STEPS = 3  # address of the step table
THREADS = 4  # how many threads are wanted; 1 wakes nobody
FRAME_PATIENCE = 5  # nanoseconds to wait for workers that sleep; 0: the interpreter's own
LEASED = 6  # 1 while an entry (or Python, holding the GIL) uses the frame
HEADER_WORDS = 16

# A row of the step table.
STEP_KERNEL = 0  # address of the kernel: void(int64_t *arguments, int64_t thread, int64_t threads)
STEP_ARGUMENTS = 1  # address of its words
STEP_FLAGS = 2
STEP_WORDS = 3
BARRIER = 1  # flag: every thread finishes this step before any starts the next
GUARDED = 2  # flag: the step is left out once there is an error

# A pool: first what seldom changes, then the words that threads meet at, then the threads' own.
LINE = 16
POOL_THREADS = 0  # the caller and the workers
POOL_STARTED = 1  # workers alive: 0 before `dlc_start`, and in a child after fork
POOL_WHOLE = 2  # 1: every call waits for all the threads it asks for
POOL_CPUS = 3  # processors this process may use, as last seen
POOL_CHECKED = 4  # when that was, in nanoseconds of the coarse monotonic clock
POOL_BUSY = 1 * LINE  # 1 while a call has the workers; `STOPPED` more once the pool is stopped
POOL_PAUSE = 1 * LINE + 2  # two words for `dlc_stop`: how long it sleeps between two looks
POOL_FRAME = 2 * LINE  # the call's frame, and how many threads run it
POOL_TEAM = 2 * LINE + 1
POOL_CROWDED = 2 * LINE + 2  # 1 when a member of this call's team does not get a processor
POOL_JOINED = 3 * LINE  # workers that took part so far; `TEAM_CLOSED` and more: no more can
POOL_ARRIVED = 4 * LINE  # arrivals at this call's barriers
POOL_SLEEPERS = 5 * LINE  # threads asleep at a barrier
POOL_SCRATCH = 6 * LINE  # for system calls of the thread that holds POOL_BUSY
SCRATCH_WORDS = 8 * LINE
POOL_LINES = POOL_SCRATCH + SCRATCH_WORDS
THREAD_WORDS = 2 * LINE
STOPPED = 2
TEAM_CLOSED = 1 << 30  # within the half of a word that a sleeping thread looks at

# A thread of the pool, 0 being the caller: a line of its own, then one that only callers touch.
MAILBOX = 0
ASLEEP = 1  # 1 while the worker sleeps on its mailbox
NUMBER = 2  # which thread of the team it is; always 0 for the caller
MET = 3  # arrivals that its last barrier waits for
THREAD_ID = 4  # the kernel's number of the thread
PROCESSOR = 5  # where the thread ran when its last call began
HOME = 6  # address of its pool
HANDLE = LINE  # its pthread_t
MEMBER = LINE + 1  # 1 for the caller, and where this call was offered to the worker
EXCUSED = LINE + 2  # until when no call is offered to it, as it did not get a processor
PENALTY = LINE + 3  # how long that was
RUN_TIME = LINE + 4  # processor time that it had when last looked at

# What a mailbox holds.
IDLE, OFFERED, TAKEN, STOP = 0, 1, 2, 3

# The table of an entry (`dlc.runtime.entry`): first where everything is, then a row an argument.
ENTRY_CALL = 0  # address of dlc_call
ENTRY_POOL = 1
ENTRY_FRAME = 2
ENTRY_VIEWS = 3  # address of a Py_buffer for each argument
ENTRY_ARGUMENTS = 4  # how many there are
ENTRY_FREES_GIL = 5
ENTRY_ROWS = 6

# A row: what an argument must be, its sizes, then pairs: a word of the frame that takes the
# argument's address, and the bytes to add to it.
ROW_WORDS = 0  # of the row
ROW_REQUEST = 1  # flags of the buffer protocol
ROW_FORMAT = 2  # the letter of the element's type, and another one that is as good
ROW_FORMAT_TOO = 3
ROW_ITEM_BYTES = 4
ROW_ELEMENTS = 5
ROW_RANK = 6
ROW_PATCHES = 7
ROW_SHAPE = 8

# What an entry returns.
DONE = 0
MISFIT = 1  # an argument is not what the table says; nothing was run
BUSY = 2  # the frame is in use; nothing was run
FAILED = 3  # a kernel found an error, and the frame stays leased so that the header can be read


def flags(barrier: bool, guarded: bool = False) -> int:
    """The flags of a step."""
    return (BARRIER if barrier else 0) | (GUARDED if guarded else 0)


def pool_words(threads: int) -> int:
    """How many words a pool of `threads` threads (the caller included) takes."""
    return POOL_LINES + THREAD_WORDS * threads
