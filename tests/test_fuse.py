"""Which nodes one kernel computes: counts for typical graphs, and what holds of every graph."""

import numpy as np
import pytest
from helpers.random_networks import networks
from helpers.schedules import check_convex, check_once, check_order, labels, main, scheduled
from hypothesis import given, settings

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.driver import optimise
from dlc.frontend import models
from dlc.ir.pattern import op
from dlc.ir.text import arrays
from dlc.passes.schedule import schedule

ROWS = dlc.TensorSpec((4, 10))
LINE = dlc.TensorSpec((10,))
IMAGE = dlc.TensorSpec((2, 16, 8, 8))


def conv(inputs=16, outputs=16, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


# One kernel.


@pytest.mark.parametrize("axis", [0, -1])
def test_softmax_is_one_kernel(axis):
    for name in ("softmax", "log_softmax"):
        made = main(lambda x, name=name: getattr(op, name)(x, axis=axis), ROWS)
        assert len(labels(made)) == 1
        assert made.arena == 0


def test_layer_norm_is_one_kernel_with_what_surrounds_it():
    norm = nn.LayerNorm(10)
    assert len(labels(main(norm, ROWS))) == 1
    made = main(lambda x, y: F.relu(norm(x + y)) * 2, ROWS, ROWS)
    assert len(labels(made)) == 1
    assert made.arena == 0


def test_attention_is_two_products_and_a_softmax():
    def attention(q, k, v):
        scores = q @ op.transpose(k, axes=(0, 2, 1)) * 0.1
        return op.softmax(scores, axis=-1) @ v

    names = labels(main(attention, *[dlc.TensorSpec((2, 6, 8))] * 3))
    computing = [name for name in names if name != "transpose"]
    assert computing == ["matmul+mul", "amax+sub+exp+sum+div", "matmul"]


def test_a_convolution_takes_batch_norm_and_activation_into_its_store():
    block = nn.Sequential(conv(3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    assert labels(main(block, dlc.TensorSpec((2, 3, 8, 8)))) == [
        "relayout",
        "conv2d+add+relu",
        "relayout",
    ]


def test_a_linear_layer_takes_its_bias_and_activation():
    layer = nn.Linear(10, 5)
    assert labels(main(lambda x: F.relu(layer(x)), ROWS)) == ["matmul+add+relu"]


def test_pooling_takes_what_follows_it():
    made = main(lambda x: F.relu(F.max_pool2d(x, 2)) + 1, IMAGE)
    assert labels(made) == ["max_pool2d+relu+add"]


def test_few_channels_are_pooled_at_the_store():
    layer = nn.Conv2d(1, 6, 5)
    made = main(lambda x: F.max_pool2d(F.relu(layer(x)), 2), dlc.TensorSpec((2, 1, 28, 28)))
    assert labels(made) == ["relayout", "conv2d+add+relu+max_pool2d", "relayout"]


def test_movement_is_index_arithmetic():
    def function(x, y):
        both = op.concat(x[:, 1:] + 1, op.flip(y, axes=(0,)), axis=1)
        return op.tanh(op.pad(both, low=(0, 1), high=(1, 0), value=2.0))

    assert labels(main(function, ROWS, ROWS)) == ["add+tanh"]


def test_a_reduction_takes_its_neighbours():
    made = main(lambda x: op.sqrt(op.sum(op.square(x), axes=(1,), keepdims=False)) + 1, ROWS)
    assert labels(made) == ["square+sum+sqrt+add"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = conv(bias=False), conv(bias=False)

    def forward(self, x):
        x = F.relu(x)
        return F.relu(self.second(F.relu(self.first(x))) + x)


def test_the_later_convolution_adds_the_shortcut():
    assert labels(main(Residual(), IMAGE)) == ["relu", "conv2d+relu", "conv2d+add+relu", "relayout"]


def test_of_two_convolutions_that_meet_the_later_one_adds():
    first, second = conv(bias=False), conv(bias=False)

    def function(x):
        y = first(x)
        return F.relu(y + second(F.relu(y)))

    names = labels(main(function, IMAGE))
    assert names == ["relayout", "conv2d", "relu", "conv2d+add+relu", "relayout"]


# Several results from one walk.


def test_siblings_share_their_loops():
    made = main(lambda x, y: (x + y, x - y, op.tanh(x)), LINE, LINE)
    assert len(labels(made)) == 1
    assert len(made.groups[0].outputs) == 3


def test_strangers_do_not():
    for specs in ((ROWS, LINE), (LINE, LINE)):  # of one shape, they still share no operand
        assert labels(main(lambda x, y: (op.tanh(x), op.exp(y)), *specs)) == ["tanh", "exp"]


def test_sibling_reductions_of_one_value_share_their_loops():
    def of(axes):
        return lambda x: (
            op.sum(x, axes=(1,), keepdims=False),
            op.amax(x, axes=axes, keepdims=False),
        )

    assert labels(main(of((1,)), ROWS)) == ["sum+amax"]
    assert labels(main(of((0,)), ROWS)) == ["sum", "amax"]


def test_a_reduction_that_reads_another_has_its_own_loops():
    def function(x):
        total = op.sum(x, axes=(1,), keepdims=True)
        return total, op.sum(x * total, axes=(1,), keepdims=True)

    assert len(labels(main(function, ROWS))) == 2


# What is written.


def test_a_value_that_two_kernels_read_is_computed_once():
    def function(x, w):
        y = op.exp(x)
        return op.softmax(y, axis=1), y @ w

    names = labels(main(function, ROWS, dlc.TensorSpec((10, 3))))
    assert names[0] == "exp"
    assert sum("exp" in name.split("+")[0] for name in names) == 1


def test_a_transposed_view_is_read_through_by_each_reader():
    def function(x):
        y = op.transpose(x, axes=(1, 0))
        return op.sum(y, axes=(0,), keepdims=False), op.tanh(y)

    assert len(labels(main(function, ROWS))) == 2


def test_results_that_are_also_read_are_written_once():
    made = main(lambda x: (y := op.exp(x), op.softmax(y, axis=1)), ROWS)
    assert labels(made) == ["exp", "amax+sub+exp+sum+div"]


# What a store refuses.


def test_an_operand_of_another_type_stays_outside():
    layer = nn.Linear(10, 5)

    def function(x, y):
        return op.cast(layer(x), dtype="float64") + y

    names = labels(main(function, ROWS, dlc.TensorSpec((4, 5), "float64")))
    assert names == ["matmul+add", "cast+add"]


def test_an_operand_of_another_layout_stays_outside():
    layer = conv(bias=False)
    names = labels(main(lambda x, y: layer(x) + y, IMAGE, IMAGE))  # the user's y is not NHWC
    assert names == ["relayout", "conv2d", "add"]


def test_an_operand_that_broadcasts_otherwise_stays_outside():
    layer = nn.Linear(10, 5)
    for shape in ((4, 1), (1,)):  # one value a row; a scalar that is no constant
        names = labels(main(lambda x, y: op.relu(layer(x) * y), ROWS, dlc.TensorSpec(shape)))
        assert names == ["matmul+add", "mul+relu"]


def test_a_convolution_of_few_channels_adds_no_image():
    """Its tile reads one value a channel only, and computes some lines twice."""
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    made = main(lambda x: second(y := F.relu(first(x))) + y, dlc.TensorSpec((2, 3, 9, 40)))
    assert [name for name in labels(made) if name != "relayout"] == [
        "conv2d+add+relu",
        "conv2d+add",
        "add",
    ]


def test_a_shared_result_is_not_taken_into_a_store():
    layer = nn.Linear(10, 10)

    def function(x):
        y = layer(x)
        return F.relu(y) + F.relu(layer(y))

    assert labels(main(function, ROWS)) == ["matmul+add", "relu+matmul+add+relu+add"]


def test_an_op_with_a_kernel_of_its_own_takes_nothing():
    def function(x, index):
        return op.relu(op.scatter_add(x, index, x, axis=0))

    index = dlc.TensorSpec((4, 10), "int64")
    assert labels(main(function, ROWS, index)) == ["scatter_add", "relu"]


# Whole models, and any graph.


def test_each_convolution_of_resnet18_is_one_kernel():
    prepare, made, _ = scheduled(models.resnet18().eval(), dlc.TensorSpec((2, 3, 64, 64)))
    names = labels(made)
    assert sum(name.startswith("conv2d") for name in names) == 20
    assert sum(name.startswith("conv2d+add+add") for name in names) == 8
    others = {name for name in names if not name.startswith("conv2d")}
    assert others <= {"relayout", "max_pool2d", "mean", "matmul+add"}
    for each in (prepare, made):
        check_order(each)
        check_convex(each)
        check_once(each)


@settings(max_examples=60)
@given(networks())
def test_groups_are_convex_and_complete(graph):
    for made in schedule(optimise(graph))[:2]:
        check_order(made)
        check_convex(made)
        check_once(made)


def test_the_pass_tells_which_kernel_computes_a_node():
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU()).eval()
    graph = dlc.trace(model, dlc.TensorSpec((1, 3, 8, 8)))
    fused = dlc.passes.run(graph, "fold-bn,fuse")
    relu = next(node for node in fused.nodes if node.op.name == "relu")
    assert fused.kernels[relu].endswith("conv2d_direct+add+relu")
    assert f"# [{fused.kernels[relu]}] 2, " in str(fused)
    again = dlc.parse(str(fused), arrays(fused))
    assert {str(o) for node in again.nodes for o in node.origins} == {
        str(o) for node in fused.nodes for o in node.origins
    }
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
    values = {str(graph.inputs[0].name): x.astype("float32"), **model.state_dict()}
    before, after = (reference.run(each, values)[0] for each in (graph, fused))
    np.testing.assert_allclose(after, before, 1e-5, 1e-5)
