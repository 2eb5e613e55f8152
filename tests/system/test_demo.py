"""The demo, small, and its page in a real browser."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from dlc import cli

pytestmark = pytest.mark.system

QUICK = ("--seeds", "1", "--epochs", "2", "--rounds", "1", "--seconds", "0.03")
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--enable-logging=stderr"),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What a small demo prints, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "dlc", "demo", *QUICK, "--json", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def browse(page, folder, *options):
    """Let the browser load a page: what it printed, and what it complained of."""
    profile = f"--user-data-dir={folder / 'browser'}"
    command = [*CHROMIUM, profile, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_demo_finds_everything_out(demo):
    told, folder = demo
    assert set(told["accuracy"]) == {"k-NN", "SVM", "MLP", "LeNet-5"}
    assert all(len(values) == 1 and values[0] > 0.5 for values in told["accuracy"].values())
    assert told["diff"] is True
    assert told["c"] is True
    assert told["apart"]["dlc"] < 0.1
    assert {side: set(times) for side, times in told["times"].items()} == {
        side: {"step", "many", "one"} for side in ("dlc", "PyTorch")
    }
    assert sorted(each.name for each in (folder / "c").iterdir()) == [
        *("classify", "classify.c", "lenet.h", "lenet.safetensors", "lenet.so")
    ]


def test_what_the_machine_lacks_is_left_out_and_said(demo, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "torch" else find(n))
    monkeypatch.setattr("shutil.which", lambda name: None)
    folder = tmp_path / "made"
    assert cli.main(["demo", *QUICK, "--folder", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert not err
    for words in ("LeNet-5", "training step, 64 images", "apt install gcc", "pip install"):
        assert words in out
    assert [each.name for each in folder.iterdir()] == ["index.html"]
    page = (folder / "index.html").read_text()
    for words in ("PyTorch is not installed", "no C compiler", "conv2d", "of peak"):
        assert words in page


def test_the_page_holds_all_it_shows(demo):
    text = (demo[1] / "index.html").read_text()
    assert "<script" not in text
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses
    assert all(each.startswith(("data:", "#")) for each in addresses)


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_page_renders(demo, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    _, complaints = browse(
        demo[1] / "index.html",
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={width},3000",
        "--hide-scrollbars",
        f"--screenshot={shot}",
    )
    assert not complaints
    dark = brightness(shot) < 100
    assert dark == (scheme == 0)


def brightness(path):
    """The median brightness of a picture, from 0 to 255."""
    import numpy as np
    from PIL import Image

    return float(np.median(np.asarray(Image.open(path).convert("L"))))


def test_the_page_is_no_wider_than_a_phone(demo, tmp_path):
    """Wide tables scroll by themselves: the page says how wide its content is."""
    probe = tmp_path / "probe.html"
    script = "<script>document.title = document.documentElement.scrollWidth</script>"
    probe.write_text((demo[1] / "index.html").read_text().replace("</body>", f"{script}</body>"))
    dom, _ = browse(probe, tmp_path, "--window-size=500,2000", "--dump-dom")
    assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= 500


def test_a_complaint_of_the_browser_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('broken')</script>")
    assert browse(page, tmp_path, "--dump-dom")[1]
