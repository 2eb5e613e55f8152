"""Benchmarks: `python -m benchmarks` runs all of them, `python -m benchmarks models` one.

common        options, and the one way in which sides are measured and printed
models        whole models beside PyTorch
steps         whole training steps beside PyTorch
memory        what a process grows by while it trains, beside PyTorch
contractions  convolutions and matrix products beside PyTorch
compile_time  import, cold and warm start
gradients     of convolutions, for data and for weights, beside PyTorch
winograd      3x3 convolutions direct and by Winograd's algorithm, beside PyTorch
waiting       calls that find their threads awake, asleep, crowded or on one core
"""
