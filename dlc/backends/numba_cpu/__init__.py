"""The CPU backend: each group of a schedule becomes the Python source of one kernel.

In processing order:

lower        a schedule becomes a plan; each group goes to one of the writers below, by its kind
writer       what they share: parameters, addresses, scalar expressions
loops        pointwise groups, and movement of whatever form
moves        movement that copies runs or transposes matrices
reduce       reductions, several in one kernel
totals       what reductions and windows begin with, and how two of them join
window       pooling
pool         gradients of pooling
opaque       pooling's indices, scattered sums
halo         the zeros around an image

contraction  a group's convolution or matrix product: which kernel, its epilogue, its sizes
contract     the kernel of matrix products and convolutions, around the register tiles of `tiles`
winograd     3x3 convolutions by fewer products, between the functions of `transforms`
weights      what it multiplies with, where that changes from call to call
strided      gradients of weights and products of a transposed matrix, around `strided_tiles`
planes       convolutions of few channels, pixels in the vector lanes
depthwise    one filter a channel
kernel       kernel source as those generators hand it over
tiles        the innermost loops of contractions, in registers
strided_tiles  the same where both operands are read with strides
transforms   into the form in which Winograd's algorithm multiplies, and back
transpose    a block of a matrix transposed in registers
vectors      what functions written in LLVM share

probes       kernels that measure: the clock between two steps, the machine's peak, its meetings
"""
