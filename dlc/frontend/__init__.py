"""The DSL: what users write models in, in the order in which a reader needs it.

hook         what a Module calls when it is called with arrays
scope        the trace under way: names of parameters, module paths, new values of buffers
parameter    arrays that a model owns: parameters and buffers
module       nn.Module, as PyTorch's
numeric      numbers that users give, checked
tree         nested tuples, lists and dicts of arguments and results
met          what a trace met, and whether it still is as it was
trace        runs a function on symbols and gives its graph
tensors      functions of tensors: dlc.exp, dlc.cat;  einsum: dlc.einsum
functional   functions of neural networks: F.conv2d, F.softmax
gradient     gradients of functions, and of values in others
losses       loss functions;  optim: optimisers and schedules of their learning rates
random       the generator behind dlc.seed;  init: initial values of parameters
nn           layers, a family a file
weights      safetensors files
data         data sets, splits, batches, augmentations
models       the zoo: LeNet, MLP, ResNet, VGG
"""
