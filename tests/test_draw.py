"""Drawings: well formed, the same every time, boxes apart, edges downward, text safe."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from helpers.cases import BATCH, X, constant, f32, graph_of, param
from helpers.random_graphs import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.draw import COLOURS, svg
from dlc.ir.layers import GAP_X, GAP_Y, LANE, layout
from dlc.ir.node import Origin
from dlc.ir.op import Kind
from dlc.ir.pattern import op
from dlc.ir.text import parse
from dlc.passes import run

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing):
    return [text.text for text in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def boxes(drawing):
    """x, y, width and height of each box."""
    found = ElementTree.fromstring(drawing).iter(f"{SVG}rect")
    keys = ("x", "y", "width", "height")
    return [[float(r.get(key)) for key in keys] for r in found if r.get("class") == "box"]


def apart(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    return ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def residual(x):
    """Two residual blocks, each with its shortcut."""
    for name in ("one", "two"):
        y = op.conv2d(x, param(f"{name}.weight", 4, 4, 3, 3), padding=1)
        x = op.relu(op.relu(y + param(f"{name}.bias", 4, 1, 1)) + x)
    return x.mean((2, 3))


def network():
    return graph_of((f32(BATCH, 4, 8, 8),), residual)


# The drawing.


def test_a_drawing_shows_ops_parameters_shapes_and_dimensions():
    drawing = svg(network())
    shown = texts(drawing)
    for text in ("conv2d", "padding 1", "one.weight 4×4×3×3", "x0", "output", "batch 1..8"):
        assert any(text in line for line in shown), text
    assert shown.count("batch×4×8×8") == 11  # the input, and five ops a block
    assert shown.count("batch×4") == 1
    for kind in ("leaf", "pointwise", "contract", "reduce", "shortcut"):
        assert kind in shown
    assert "window" not in shown


def test_every_kind_has_a_colour_of_its_own():
    assert set(COLOURS) == set(Kind)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_what_depends_on_parameters_alone_is_a_line_unless_asked_for():
    graph = run(
        graph_of(
            (f32(BATCH, 4, 8, 8),),
            lambda x: op.conv2d(x, param("w", 4, 4, 1, 1)) * param("s", 4, 1, 1) + 1.0,
        ),
        "fold-bn",
    )
    short, whole = svg(graph), svg(graph, parametric=True)
    assert len(boxes(short)) == 4  # input, conv2d, add, output
    assert "4×4×1×1 of w, s" in texts(short)
    assert "1" in texts(short)
    assert len(boxes(whole)) == len(graph.nodes) + 1


def test_a_parametric_output_is_drawn():
    assert "mul" in texts(svg(graph_of(X, lambda x: (x, param("w", 4) * 2.0))))


def test_names_are_short_within_their_module():
    graph = graph_of(X, lambda x: op.linear(x, param("fc.weight", 2, 4), param("fc.bias", 2)))
    graph.outputs[0].origins |= {Origin("fc", "model.py", 3)}
    shown = texts(svg(graph))
    assert "fc" in shown
    assert "weight 2×4" in shown
    assert "bias 2" in shown


def test_large_constants_and_several_outputs_have_their_lines():
    def function(x):
        whole = op.batch_norm_train(x, param("g", 4), constant([1.0, 2.0, 3.0, 4.0]), eps=1e-5)
        return whole.project(0), whole.project(1)

    shown = texts(svg(replace(graph_of(X, function), aliases={1: "g"})))
    assert "constant 4" in shown
    assert "3×4, 4, 4" in shown
    assert "new value of g" in shown


def test_text_is_escaped_and_control_characters_are_replaced():
    graph = replace(graph_of(X, op.exp), name='<a & "b">', output_names=("y\x00<\x1b>",))
    shown = texts(svg(graph))
    assert '<a & "b">' in shown
    assert "y�<�>" in shown


def test_long_lines_are_cut_and_whole_in_the_tooltip():
    name = "encoder.layers.0.attention.output.projection.weight.parametrizations"
    graph = graph_of(X, lambda x: op.linear(x, param(name, 2, 4)))
    drawing = svg(graph)
    assert any(line.endswith("…") for line in texts(drawing))
    width = max(box[2] for box in boxes(drawing))
    assert width < 400


def test_a_drawing_is_the_same_in_every_process(run_python):
    program = """
        import dlc.passes
        from dlc.ir.text import parse
        from dlc.ir.draw import svg
        import sys
        print(svg(parse(sys.argv[1])), end="")
    """
    text = str(network())
    drawings = {run_python(program, text, PYTHONHASHSEED=str(seed)) for seed in (1, 2)}
    assert drawings == {svg(parse(text))}


def test_draw_writes_a_file(tmp_path):
    network().draw(str(tmp_path / "net.svg"))
    assert (tmp_path / "net.svg").read_text(encoding="utf-8") == svg(network())


@given(graphs(steps=20), st.booleans())
@settings(max_examples=40)
def test_drawings_are_well_formed_and_boxes_are_apart(graph, parametric):
    drawing = svg(graph, parametric=parametric)
    places = boxes(drawing)
    assert all(apart(a, b) for a, b in itertools.combinations(places, 2))
    root = ElementTree.fromstring(drawing)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in places)


def test_text_fits_its_box():
    root = ElementTree.fromstring(svg(network()))
    for group in root.iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect[@class='box']")
        for text in group.findall(f"{SVG}text") if box is not None else ():
            assert len(text.text) * 0.602 * 12 <= float(box.get("width"))


# The layout.


@st.composite
def dags(draw):
    count = draw(st.integers(1, 25))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(
        lambda pair: pair[0] < pair[1]
    )
    edges = draw(st.lists(pairs, unique=True, max_size=40)) if count > 1 else []
    sizes = draw(
        st.lists(st.tuples(st.floats(10, 300), st.floats(10, 120)), min_size=count, max_size=count)
    )
    return sizes, edges


SLACK = 1e-6  # of floating point


def places(plan, sizes):
    """x, y, width and height of each box."""
    centres = (plan.centres[i] for i in range(len(sizes)))
    return [(x - w / 2, y - h / 2, w, h) for (x, y), (w, h) in zip(centres, sizes)]


@given(dags())
@settings(max_examples=60)
def test_boxes_keep_their_gaps(dag):
    sizes, edges = dag
    plan = layout(sizes, edges)
    placed = places(plan, sizes)
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(placed, 2):
        beside = max(ax, bx) - min(ax + aw, bx + bw)
        below = max(ay, by) - min(ay + ah, by + bh)
        assert beside >= GAP_X - SLACK or below >= GAP_Y - SLACK
    assert all(x >= -SLACK and x + w <= plan.width + SLACK for x, _, w, _ in placed)
    assert all(y >= -SLACK and y + h <= plan.height + SLACK for _, y, _, h in placed)


@given(dags())
@settings(max_examples=60)
def test_edges_run_downward_beside_boxes(dag):
    sizes, edges = dag
    plan = layout(sizes, edges)
    placed = places(plan, sizes)
    assert set(plan.paths) == set(edges)
    for (a, b), points in plan.paths.items():
        (ax, ay, aw, ah), (bx, by, bw, _) = placed[a], placed[b]
        assert points[0] == pytest.approx((ax + aw / 2, ay + ah))
        assert points[-1] == pytest.approx((bx + bw / 2, by))
        assert all(p[1] <= q[1] + SLACK for p, q in itertools.pairwise(points))
        for (x, y), (px, py, w, h) in itertools.product(points[1:-1], placed):
            assert not (px - LANE / 2 < x < px + w + LANE / 2 and py < y < py + h)


def test_a_chain_is_straight_and_a_shortcut_is_marked():
    plan = layout([(40.0, 20.0)] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert plan.shortcuts == {(0, 3)}
    assert plan.centres[1][0] == pytest.approx(plan.centres[2][0])
    assert [plan.centres[i][1] for i in range(4)] == [10 + i * (20 + GAP_Y) for i in range(4)]
    lane = plan.paths[0, 3][1][0]
    assert abs(lane - plan.centres[1][0]) >= 20 + GAP_X + LANE / 2 - 1e-6


def test_sources_stand_next_to_their_first_reader():
    plan = layout([(40.0, 20.0)] * 4, [(0, 1), (1, 2), (3, 2)])
    assert plan.centres[3][1] == plan.centres[1][1]


def test_crossings_that_can_be_avoided_are():
    plan = layout([(40.0, 20.0)] * 4, [(0, 3), (1, 2)])
    assert (plan.centres[0][0] < plan.centres[1][0]) == (plan.centres[3][0] < plan.centres[2][0])


def test_nothing_at_all_has_a_layout():
    assert layout([], []).width == 0


def test_paths_are_vertical_at_their_ends():
    for path in re.findall(r'd="(M[^"]*)" fill="none"', svg(network())):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
        assert len(numbers) >= 4
