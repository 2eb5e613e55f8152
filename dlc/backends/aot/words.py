"""Where the words of a library's tables and of an open model lie: constants and nothing else.

`tables.py` writes the tables, native code (`program.py`) reads them and keeps its own words, so
that they are written down in one place, as `dlc.runtime.frame` does for calls. All words are int64.
"""

# What the functions of a library return.
OK = 0
BAD_ARGUMENT = 1
BAD_SIZE = 2
BAD_INDEX = 3
UNREADABLE_WEIGHTS = 4
OTHER_WEIGHTS = 5
UNSUPPORTED_PROCESSOR = 6
OUT_OF_MEMORY = 7
OUT_OF_THREADS = 8

# A library: how many levels it has been compiled for, then a row for each, the best one first.
LIBRARY_LEVELS = 0
LIBRARY_ROWS = 1
LEVEL_FEATURES = 0  # bits that `system.features` must have
LEVEL_MODEL = 1  # address
LEVEL_WORDS = 2

# A model, as it was compiled for one level. What ends in TABLE or names a program is an address.
MODEL_NAME = 0  # address of the level's name
MODEL_HEADER = 1  # address of the first bytes of the weights' file: its length and JSON header
MODEL_HEADER_WORDS = 2
MODEL_WEIGHTS_BYTES = 3  # of the whole file
MODEL_CONSTANTS = 4  # address
MODEL_PREPARED_BYTES = 5
MODEL_ARENA_BYTES = 6
MODEL_SCRATCH_BYTES = 7  # for each thread
MODEL_DIMS = 8
MODEL_RANGE_TABLE = 9  # rows of the least and the greatest value
MODEL_POINTERS = 10  # the caller's arrays
MODEL_SIZES = 11  # how many sizes, the dims first
MODEL_SIZE_TABLE = 12  # programs of those behind the dims, see `program.evaluate`
MODEL_PREPARE = 13
MODEL_MAIN = 14
MODEL_SITE_TABLE = 15  # texts: what each op that may meet an index out of range expects
MODEL_WORDS = 16

# A program: steps, and the words that their kernels get.
PROGRAM_STEPS = 0
PROGRAM_STEP_TABLE = 1
PROGRAM_ARGUMENTS = 2
PROGRAM_ARGUMENT_TABLE = 3
PROGRAM_WORDS = 4
# A row of the step table has the form of a frame's, with a position in place of the arguments'
# address. A row of the argument table: which base, which size; the word is their sum.
ARGUMENT_BASE = 0
ARGUMENT_SIZE = 1
ARGUMENT_WORDS = 2

# Bases: what an argument's address is counted from. The caller's arrays follow.
BASE_NONE = 0  # the word is a size
BASE_FRAME = 1
BASE_SCRATCH = 2
BASE_ARENA = 3
BASE_PREPARED = 4
BASE_WEIGHTS = 5
BASE_CONSTANTS = 6
BASE_ARRAYS = 7

# An open model (`lenet_t *`): addresses, 0 where there is nothing yet, and bytes to give back.
NET_MODEL = 0
NET_THREADS = 1
NET_POOL = 2
NET_POOL_BYTES = 3
NET_PREPARED = 4
NET_WEIGHTS = 5
NET_LEASES = 6  # the last lease that was made; each knows the one before
NET_BAD_INDEX = 7  # the last index out of range: what its kernel reported, 0 if there was none
NET_BAD_VALUE = 8  # and the index itself
NET_PROCESSORS = 16  # for counting them
PROCESSOR_WORDS = 128
NET_WORDS = NET_PROCESSORS + PROCESSOR_WORDS

# A lease: the memory of one call. Behind its words come the frame with its steps and arguments,
# the bases and the sizes, then scratch and arena.
LEASE_TAKEN = 0
LEASE_BEFORE = 1
LEASE_BYTES = 2
LEASE_ARGUMENTS = 3  # addresses
LEASE_BASES = 4
LEASE_SIZES = 5
LEASE_WORDS = 16

THREADS_MAX = 1024
