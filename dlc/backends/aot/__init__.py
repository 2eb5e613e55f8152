"""A compiled model as a library that needs no Python: its plan as data, its kernels as they are.

Nothing is generated for a model but tables and the C functions of its name. What reads the tables
is one native program, the same for every model, and it works as `dlc.runtime.runner` does in
Python: so that the bits are those of the JIT, whose kernels and step interpreter are linked in.

In processing order:

- `words.py`: where the words of the tables lie, and what the functions return;
- `tables.py`: a plan as rows of words, its symbolic sizes as little programs;
- `interface.py`: the C functions of one model, as a header and as code;
- `system.py`: what the native program needs of Linux;
- `program.py`: the native program: open a model, run it, close it;
- `library.py`: all objects of a library, and their linking by a C compiler.
"""
