"""The drawings of the demo's page."""

import io
import re
import xml.etree.ElementTree as ET
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

import dlc
from dlc.cli.showcase import charts, figures, page


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (97.3, 99.9, [98, 99]),
        (1, 24, [5, 10, 15, 20]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.Axis(low, high, 0, 100).ticks() == pytest.approx(expected)


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten():
    axis = charts.Axis(1e-7, 1e-1, 100, 0, log=True)
    assert axis.ticks() == pytest.approx([10.0**n for n in range(-7, 0)])
    assert axis(1e-7) == 100
    assert axis(0) == 100  # what has no logarithm lies at the foot
    assert axis(1e-1) == 0


def points(svg):
    """The points of each curve."""
    return [
        [tuple(map(float, pair.split(","))) for pair in text.split()]
        for text in re.findall(r'points="([^"]*)"', svg)
    ]


@pytest.mark.parametrize("log", [False, True])
def test_curves_stay_inside(log):
    series = {"one & two": [3.0, 0.5, 0.0, 2.0], "three": [1.0, 1.0, 1.0, 1.0]}
    html = charts.lines(series, across="epoch", up="loss", log=log)
    ET.fromstring(f"<div>{html}</div>")  # well-formed
    first, second = points(html)
    for x, y in first + second:
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert first[0][1] < first[1][1]  # more is higher
    assert len({y for _, y in second}) == 1


def test_nothing_has_a_place_of_its_own_on_a_logarithmic_axis():
    """No error at all is less than the least error, and the axis says so."""
    html = charts.lines({"misread": [10.0, 0.1, 0.0]}, across="epoch", up="%", log=True)
    (curve,) = points(html)
    assert curve[1][1] < curve[2][1] == charts.HEIGHT - charts.BOTTOM
    texts = [each.text for each in ET.fromstring(f"<div>{html}</div>").iter("text")]
    assert texts[:4] == ["0", "0.1", "1", "10"]


def test_one_point_is_a_curve_too():
    assert len(points(charts.lines({"a": [1.0]}, across="epoch", up="loss"))[0]) == 1


def test_dots_show_each_value_and_the_mean():
    html = charts.dots({"SVM": [98.0, 99.0], "k-NN": [99.0, 99.0]}, across="accuracy")
    drawing = ET.fromstring(html)
    assert len(drawing.findall("circle")) == 4
    titles = [each.text for each in drawing.iter("title")]
    assert "SVM: 98.5 on average" in titles
    assert titles.count("k-NN: 99") == 2


def test_a_png_holds_the_image(rng):
    ink = rng.random((28, 20))
    kind, _, content = figures.png(ink).partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(b64decode(content)))
    image.verify()
    grey = np.asarray(Image.open(io.BytesIO(b64decode(content))))
    np.testing.assert_allclose(grey / 255, 1 - ink, atol=0.5 / 255)


def test_filters_tell_signs_apart():
    drawing = ET.fromstring(figures.weights(np.array([[0.5, -1.0]]), "a filter", 1.0))
    assert [(each.get("class"), each.get("fill-opacity")) for each in drawing.iter("rect")] == [
        *(("plus", "0.50"), ("minus", "1.00"))
    ]


def test_confusions_say_what_was_taken_for_what():
    counts = np.array([[5, 2, 0], [0, 0, 0], [1, 0, 9]])
    drawing = ET.fromstring(figures.confusions(counts, ["0", "1", "2"]))
    titles = [each.text for each in drawing.iter("title")]
    assert titles[1] == "2 of 7: a 0, read as 1"
    assert len(titles) == 9
    opacities = [float(each.get("fill-opacity")) for each in drawing.iter("rect")]
    assert opacities[2] == 0
    assert all(0 <= each <= 1 for each in opacities)


class Held:
    """The figures of a contest that the page's first lines tell."""

    def __init__(self):
        self.accuracies = {"LeNet-5": [0.99], "SVM": [0.98]}

    def mean(self, name):
        return self.accuracies[name][0]


def test_times_on_a_busy_machine_are_marked_wherever_they_stand(rng):
    sides = {"step": 1e-3, "one": 1e-4}
    model = dlc.nn.Linear(3, 2).eval()
    profile = dlc.compile(model, dlc.TensorSpec((2, 3))).profile(np.ones((2, 3), np.float32))
    profiles = {"Inference": profile, "Training step": profile}
    for busy in ("", "The machine was busy"):
        times = {"dlc": sides, "PyTorch": sides}
        story = page.Story(Held(), 1, times=times, busy=busy, profiles=profiles)
        assert page._tiles(story).count("on a busy machine") == (3 if busy else 0)
        assert page._compiled(story).count("The machine was busy") == (2 if busy else 0)
