"""The CPU backend: each group of a schedule becomes the Python source of one kernel.

In processing order:

lower        a schedule becomes a plan; each group goes to one of the writers below, by its kind
writer       what they share: parameters, addresses, scalar expressions
loops        pointwise and movement groups
reduce       reductions, several in one kernel
window       pooling
opaque       pooling's indices and gradients, scattered sums
halo         the zeros around an image

contraction  a group's convolution or matrix product: which kernel, its epilogue, its sizes
contract     the kernel of matrix products and convolutions, around the register tiles of `tiles`
winograd     3x3 convolutions by fewer products, between the functions of `transforms`
planes       convolutions of few channels, pixels in the vector lanes
depthwise    one filter a channel
kernel       kernel source as those generators hand it over
tiles        the innermost loops of contractions, in registers
transforms   into the form in which Winograd's algorithm multiplies, and back
vectors      what functions written in LLVM share

probes       kernels that measure: the clock between two steps, and the machine's peak
"""
