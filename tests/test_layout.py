"""Where values lie: channels last around convolutions, halos as needed, rows for the user."""

import numpy as np
import pytest
from helpers.random_networks import networks, values
from helpers.schedules import labels, main
from hypothesis import given, settings

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.driver import optimise
from dlc.frontend import models
from dlc.ir.plan import Layout
from dlc.passes.layout import CHANNELS_LAST, CONVOLUTIONS, PLANES, AssignLayouts, layouts
from dlc.passes.schedule import schedule
from dlc.passes.select import SelectAlgorithms

IMAGE = dlc.TensorSpec((2, 16, 12, 12))


def convolutions(made):
    return [group.anchor for group in made.groups if group.anchor.op.name in CONVOLUTIONS]


def halo(made, node):
    """The zeros around the rows and columns of a value."""
    return made.layouts[node].halo[2:]


def covers(have, need):
    return all(a[0] >= b[0] and a[1] >= b[1] for a, b in zip(have, need, strict=True))


def strided(**options):
    """A convolution with a stride, for which there is one algorithm."""
    return nn.Conv2d(16, 16, 3, stride=2, **options)


# The layout itself.


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
def test_a_layout_is_where_numpy_puts_it(order):
    shape, widths = (2, 3, 4, 5), ((0, 0), (0, 1), (2, 1), (1, 0))
    layout = Layout(order, widths)
    framed = np.pad(np.arange(120).reshape(shape), widths, constant_values=-1)
    memory = np.ascontiguousarray(framed.transpose(order))
    assert layout.count(shape) == memory.size
    assert layout.extents(shape) == framed.shape
    flat, start, strides = memory.ravel(), layout.start(shape), layout.strides(shape)
    for index in np.ndindex(shape):
        element = start + sum(i * stride for i, stride in zip(index, strides, strict=True))
        assert flat[element] == np.ravel_multi_index(index, shape)


def test_only_rows_without_a_halo_are_plain():
    assert Layout.rows(4).plain
    assert not Layout(CHANNELS_LAST, ((0, 0),) * 4).plain
    assert not Layout((0, 1), ((0, 0), (1, 0))).plain


# Choices.


def test_a_chain_of_convolutions_is_laid_out_once():
    blocks = [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)] * 2
    made = main(nn.Sequential(*blocks), IMAGE)
    assert labels(made).count("relayout") == 2  # the user's image in, the result out
    inner = [node for group in made.groups for node in group.outputs if node.ndim == 4][:-1]
    assert all(made.layouts[node].order == CHANNELS_LAST for node in inner)


def test_what_the_user_gives_and_gets_is_in_rows():
    made = main(models.resnet18().eval(), dlc.TensorSpec((2, 3, 64, 64)))
    for node in (*made.graph.inputs, *made.graph.outputs):
        assert made.buffers[node].layout.plain


def test_a_result_that_is_read_on_is_not_moved_about():
    """A result lies in rows; the convolution reads a copy with channels last."""
    layer = strided(padding=1)
    made = main(lambda x: (y := F.relu(x), layer(y)), IMAGE)
    assert all(made.buffers[node].layout.plain for node in made.graph.outputs)


def test_a_halo_is_as_wide_as_the_widest_reader_needs():
    readers = [
        strided(padding=1),
        nn.Conv2d(16, 16, 5, stride=2, padding=2),
        nn.Conv2d(16, 16, (1, 7), stride=2, padding=(0, 3)),
        nn.Conv2d(16, 16, 3, padding=4, dilation=4),
    ]
    for count in range(1, 5):
        used = readers[:count]
        made = main(lambda x, used=used: [layer(F.relu(x)) for layer in used], IMAGE)
        (source,) = {node.inputs[0] for node in convolutions(made)}
        widest = [max(np.ravel(layer.padding)[[axis]][0] for layer in used) for axis in (0, -1)]
        assert halo(made, source) == tuple((width, width) for width in widest)


def test_without_padding_there_is_no_halo():
    layer = strided()
    made = main(lambda x: layer(F.relu(x)), IMAGE)
    assert halo(made, convolutions(made)[0].inputs[0]) == ((0, 0), (0, 0))


def test_first_layers_read_planes():
    layer = nn.Conv2d(3, 32, 7, stride=2, padding=3)
    made = main(layer, dlc.TensorSpec((1, 3, 32, 32)))
    (node,) = convolutions(made)
    assert made.layouts[node.inputs[0]].order == PLANES
    assert made.layouts[node].order == CHANNELS_LAST


def test_pointwise_work_takes_the_order_of_its_image():
    first, second, scale = strided(), strided(), nn.Parameter(np.ones((16, 1, 1), "float32"))

    def function(x):
        y = first(x)
        return second(F.avg_pool2d(y, 1) * scale + y)

    made = main(function, IMAGE)
    assert labels(made) == [
        "relayout",
        "conv2d+add",
        "avg_pool2d+mul+add",
        "conv2d+add",
        "relayout",
    ]


# Any graph.


@settings(max_examples=40)
@given(networks())
def test_every_reader_finds_what_it_needs(graph):
    for made in schedule(optimise(graph))[:2]:
        for node in convolutions(made):
            have = made.layouts[node.inputs[0]]
            planes = node.op.name == "conv2d_planes" or node.attrs.get("planes")
            assert have.order == (PLANES if planes else CHANNELS_LAST)
            assert covers(have.halo[2:], node.attrs["padding"])
            assert made.buffers[node.inputs[0]].role == "arena"  # slack behind it, not the user's
        for node in made.graph.outputs:
            assert made.layouts[node].plain


@settings(max_examples=25)
@given(networks())
def test_layouts_change_no_value(graph):
    graph = optimise(graph, "O0")
    arrays = values(graph, np.random.default_rng(0))
    expected = reference.run(graph, arrays)
    chosen = SelectAlgorithms()(graph)
    moved = AssignLayouts()(chosen)
    for ours, theirs in zip(reference.run(moved, arrays), reference.run(chosen, arrays)):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(reference.run(moved, arrays), expected):
        np.testing.assert_allclose(ours, theirs, 1e-3, 1e-3)
    places = layouts(moved)
    for node in moved.nodes:
        if node.op.name == "relayout":
            assert places[node] == Layout(node.attrs["order"], node.attrs["halo"])
