"""`dlc diff`: the command, on models of a file."""

import json

import pytest

MODELS = """
import dlc
import torch
from dlc import nn


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.first(x))


class Wrong(Ours):
    def forward(self, x):
        return self.norm(self.first(x) * 1.01)


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.first(x))
"""


@pytest.fixture
def command(tmp_path, capsys):
    """Runs `dlc diff` on models of a file: the exit code, and what is printed."""
    file = tmp_path / "models.py"
    file.write_text(MODELS)

    def run(ours, theirs, *options):
        from dlc.cli import main

        code = main(["diff", f"{file}:{ours}", "3x4", "--torch", f"{file}:{theirs}", *options])
        return code, capsys.readouterr()

    return run


def test_the_command(command, tmp_path):
    code, printed = command("Ours", "Theirs", "--gradients", "--html", str(tmp_path / "page.html"))
    assert code == 0
    assert "clean: nothing differs by more than rounding" in printed.out
    assert "Ours" in (tmp_path / "page.html").read_text()


def test_the_command_finds_a_difference(command):
    code, printed = command("Wrong", "Theirs", "--json")
    found = json.loads(printed.out)
    assert code == 1
    assert not found["ok"]
    assert found["rows"][1]["name"] == "norm"
    assert found["rows"][1]["where"] == "models.py:18"
    assert "1.01 times" in found["rows"][1]["hints"][0]


def test_the_command_keeps_weights(command):
    code, printed = command("Ours", "Theirs", "--keep-weights")
    assert code == 1
    assert printed.out.startswith("The weights differ:")


def test_the_command_wants_a_pytorch_model(command):
    code, printed = command("Ours", "Ours")
    assert code == 1
    assert "a torch.nn.Module" in printed.err


def test_the_command_looks_for_the_folder_of_the_page_first(command):
    code, printed = command("Ours", "Missing", "--html", "nowhere/page.html")
    assert code == 1
    assert "--html nowhere/page.html: there is no folder 'nowhere'" in printed.err
