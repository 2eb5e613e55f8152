"""The table of options: read once, checked, overridable, and in step with its docs page."""

import doctest
from pathlib import Path

import pytest

from dlc import config
from dlc.errors import OptionError


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """Options as at the start of a process, in a clean environment."""
    monkeypatch.setattr(config, "_values", {})
    for option in config.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)


def test_names_and_variables_are_unique_and_documented():
    assert len({option.name for option in config.OPTIONS}) == len(config.OPTIONS)
    assert len({option.variable for option in config.OPTIONS}) == len(config.OPTIONS)
    for option in config.OPTIONS:
        assert option.doc[0].isupper()
        assert option.doc.endswith(".")


def test_defaults_are_values_of_their_kind():
    for option in config.OPTIONS:
        assert config.get(option.name) == option.default
        assert option.read(option.default) == option.default


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("DLC_DEBUG", "7", "debug", 7),
        ("DLC_DEBUG", " 0 ", "debug", 0),
        ("DLC_DEBUG", "", "debug", 0),
        ("DLC_ISA", "x86-64-v3", "isa", "x86-64-v3"),
        ("DLC_ISA", "AArch64", "isa", "aarch64"),
        ("DLC_NUM_THREADS", "2", "num_threads", 2),
        ("OMP_NUM_THREADS", "4,2", "omp_num_threads", 4),
        ("DLC_CACHE_DIR", "/var/kernels", "cache_dir", "/var/kernels"),
        ("DLC_COMPILE_HELPERS", "0", "compile_helpers", 0),
        ("DLC_CACHE_SIZE", "0", "cache_size", 0),
        ("DLC_CACHE_SIZE", "4096", "cache_size", 4096),
        ("DLC_CACHE_SIZE", "500M", "cache_size", 500 << 20),
        ("DLC_CACHE_SIZE", "2 GiB", "cache_size", 2 << 30),
        ("DLC_CACHE_SIZE", "1kb", "cache_size", 1024),
        ("DLC_VERIFY", "2", "verify", 2),
        ("DLC_PROGRESS", "never", "progress", "never"),
    ],
)
def test_read_from_the_environment(monkeypatch, variable, text, name, value):
    monkeypatch.setenv(variable, text)
    assert config.get(name) == value


@pytest.mark.parametrize(
    ("variable", "text", "name", "expected"),
    [
        ("DLC_DEBUG", "nine", "debug", "an integer from 0 to 7"),
        ("DLC_DEBUG", "8", "debug", "an integer from 0 to 7"),
        ("DLC_DEBUG", "-1", "debug", "an integer from 0 to 7"),
        ("DLC_ISA", "avx512", "isa", "x86-64-v4 or aarch64"),
        ("DLC_NUM_THREADS", "0", "num_threads", "an integer of at least 1"),
        ("DLC_NUM_THREADS", "1.5", "num_threads", "an integer of at least 1"),
        ("OMP_NUM_THREADS", "all", "omp_num_threads", "a number of threads"),
        ("DLC_CACHE_SIZE", "lots", "cache_size", "a number of bytes, such as 500M or 2G"),
        ("DLC_CACHE_SIZE", "-1", "cache_size", "a number of bytes"),
        ("DLC_CACHE_SIZE", "5X", "cache_size", "a number of bytes"),
        ("DLC_VERIFY", "yes", "verify", "an integer from 0 to 2"),
        ("DLC_PROGRESS", "maybe", "progress", "auto or always or never"),
    ],
)
def test_a_bad_value_says_what_would_be_good(monkeypatch, variable, text, name, expected):
    monkeypatch.setenv(variable, text)
    with pytest.raises(OptionError) as caught:
        config.get(name)
    message = str(caught.value)
    assert message.startswith(f"{variable} expects ")
    assert expected in message
    assert f"got '{text}'" in message
    assert "python -m dlc.config" in message


def test_a_relative_directory_is_fixed_at_first_use(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLC_CACHE_DIR", "kernels")
    assert config.get("cache_dir") == str(tmp_path / "kernels")
    monkeypatch.chdir("/")
    assert config.get("cache_dir") == str(tmp_path / "kernels")


def test_the_environment_is_read_once(monkeypatch):
    assert config.get("debug") == 0
    monkeypatch.setenv("DLC_DEBUG", "5")
    assert config.get("debug") == 0


def test_override_nests_and_ends():
    with config.override(debug=3, isa="x86-64-v2"):
        with config.override(debug="4"):
            assert config.get("debug") == 4
            assert config.get("isa") == "x86-64-v2"
        assert config.get("debug") == 3
    assert config.get("debug") == 0
    assert config.get("isa") is None


def test_override_ends_with_an_error():
    with pytest.raises(KeyError), config.override(debug=3):
        raise KeyError
    assert config.get("debug") == 0


def test_override_with_none_means_not_set(monkeypatch):
    monkeypatch.setenv("DLC_NUM_THREADS", "2")
    with config.override(num_threads=None):
        assert config.get("num_threads") is None
    assert config.get("num_threads") == 2


def test_override_replaces_a_bad_environment(monkeypatch):
    monkeypatch.setenv("DLC_DEBUG", "nine")
    with config.override(debug=1):
        assert config.get("debug") == 1
    with pytest.raises(OptionError, match="DLC_DEBUG"):
        config.get("debug")


@pytest.mark.parametrize("values", [{"debug": 9}, {"debug": None}, {"debug": True}, {"bug": 1}])
def test_a_bad_override_changes_nothing(values):
    with pytest.raises(OptionError), config.override(isa="aarch64", **values):
        pass
    assert config.get("isa") is None


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"one of debug, isa, .*got 'bug'"):
        config.get("bug")


def test_the_docs_page_is_in_step(run_python):
    page = Path(config.__file__).parent.parent / "docs" / "configuration.md"
    assert page.read_text() == config.page(), "run `make docs`"
    assert run_python("import runpy; runpy.run_module('dlc.config', run_name='__main__')") == (
        config.page()
    )


def test_the_documented_examples():
    assert doctest.testmod(config) == (0, 1)
