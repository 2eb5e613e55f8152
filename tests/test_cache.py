"""The promises of the cache, each tried for real: damage, races, killed processes, bad disks."""

import logging
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from dlc import config
from dlc.errors import ArgumentError, CacheError, CacheWarning
from dlc.runtime import cache as module
from dlc.runtime.cache import CHECKSUM, Cache, code_version, default, digest

KEY = digest("a kernel")
VALUE = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "kernels", limit=1 << 20)


def files(cache):
    return sorted(os.listdir(cache.path))


def only_warning(recorded):
    """The text of the one warning among `recorded`."""
    (warning,) = recorded
    assert warning.category is CacheWarning
    return str(warning.message)


# What is stored comes back.


def test_a_value_comes_back(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert Cache(cache.path).get(KEY) == VALUE


def test_an_empty_value_is_a_value(cache):
    cache.put(KEY, b"")
    assert cache.get(KEY) == b""


def test_a_value_is_replaced(cache):
    cache.put(KEY, b"old")
    cache.put(KEY, b"new")
    assert cache.get(KEY) == b"new"
    assert files(cache) == [KEY]


def test_get_or_makes_once(cache):
    made = []

    def make():
        made.append(1)
        return VALUE

    assert cache.get_or(KEY, make) == VALUE
    assert cache.get_or(KEY, make) == VALUE
    assert made == [1]


def test_get_or_stores_nothing_when_making_fails(cache):
    with pytest.raises(ZeroDivisionError):
        cache.get_or(KEY, lambda: 1 // 0)
    assert cache.get(KEY) is None


def test_stats_and_clear(cache):
    assert cache.stats() == module.Stats(0, 0, 0, 0, cache.path)
    cache.put(KEY, VALUE)
    cache.put(digest("b"), VALUE)
    cache.get(KEY)
    cache.get(digest("c"))
    size = 2 * (CHECKSUM + len(VALUE))
    assert cache.stats() == module.Stats(2, size, 1, 1, cache.path)
    cache.clear()
    assert cache.stats() == module.Stats(0, 0, 1, 1, cache.path)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE


def test_clear_leaves_foreign_files_alone(cache):
    cache.put(KEY, VALUE)
    with open(os.path.join(cache.path, "notes.txt"), "w") as file:
        file.write("mine")
    cache.clear()
    assert files(cache) == ["notes.txt"]


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, KEY + "0", KEY[:-1] + "/"])
def test_a_key_is_a_digest(cache, key):
    with pytest.raises(ArgumentError, match=r"cache\.digest"):
        cache.get(key)
    with pytest.raises(ArgumentError, match=r"cache\.digest"):
        cache.put(key, VALUE)


# Keys.


def test_digest_keeps_parts_apart():
    sequences = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (b"abc",), (), ("",)]
    assert len({digest(*parts) for parts in sequences}) == len(sequences)


def test_digest_and_code_version_are_the_same_in_every_process(run_python):
    program = """
        import sys
        from dlc.runtime import cache
        print(cache.digest("ab", b"c"), cache.code_version())
        assert not {"numba", "llvmlite", "numpy"} & set(sys.modules)
    """
    expected = f"{digest('ab', b'c')} {code_version()}\n"
    assert [run_python(program, PYTHONHASHSEED=seed) for seed in "12"] == [expected] * 2


def test_code_version_follows_the_sources(tmp_path, monkeypatch):
    def version():
        code_version.cache_clear()
        return code_version()

    source = tmp_path / "passes" / "fuse.py"
    source.parent.mkdir()
    source.write_text("limit = 4")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime" / "cache.py"))
    first = version()
    assert version() == first
    source.write_text("limit = 5")
    second = version()
    source.rename(source.with_name("fusion.py"))
    third = version()
    (tmp_path / "frontend").mkdir()
    (tmp_path / "frontend" / "nn.py").write_text("generates nothing")
    fourth = version()
    monkeypatch.setattr(sys, "version", "3.99")
    assert len({first, second, third, version()}) == 4
    assert fourth == third
    code_version.cache_clear()


def test_code_version_follows_the_compilers(tmp_path, monkeypatch):
    found = []
    for version in ("0.68.1", "0.68.2"):
        package = tmp_path / version / "numba"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('found, not imported')")
        (package / "_version.py").write_text(f"version = '{version}'")
        monkeypatch.delitem(sys.modules, "numba", raising=False)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / version)
            code_version.cache_clear()
            found.append(code_version())
    code_version.cache_clear()
    assert len({*found, code_version()}) == 3


def test_a_store_that_keeps_nothing(cache, monkeypatch):
    makes = []

    def make():
        makes.append(len(makes))
        return VALUE

    monkeypatch.setattr(module, "default", lambda: cache)
    for store, made in ((module.Store(), 2), (module.CodeStore(), 1)):
        makes.clear()
        assert [store.get_or(("object", 1, "name"), make) for _ in range(2)] == [VALUE] * 2
        assert len(makes) == made
        assert store.get(("object", 1, "name")) == (None if made == 2 else VALUE)


# Where it is.


def test_the_directory_is_private(cache):
    cache.put(KEY, VALUE)
    assert os.stat(cache.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(cache.path, KEY)).st_mode & 0o777 == 0o600


def test_reading_makes_no_directory(cache):
    assert cache.get(KEY) is None
    assert not cache.check()
    cache.clear()
    assert not os.path.exists(cache.path)


def test_a_directory_removed_meanwhile_is_made_again(cache, tmp_path):
    cache.put(KEY, VALUE)
    (tmp_path / "deep").rename(tmp_path / "gone")
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE


def test_default_follows_the_options(tmp_path, monkeypatch):
    with config.override(cache_dir=tmp_path / "a", cache_size="1M"):
        first = default()
        assert first is default()
        assert (first.path, first.limit) == (str(tmp_path / "a"), 1 << 20)
    with config.override(cache_dir=None):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default().path == str(tmp_path / "xdg" / "dlc")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert default().path == str(tmp_path / ".cache" / "dlc")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default().path == str(tmp_path / ".cache" / "dlc")


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with config.override(cache_dir=None):
        cache = Cache(limit=1 << 20)
    with pytest.warns(CacheWarning) as recorded:
        assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert "set DLC_CACHE_DIR" in only_warning(recorded)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write_is_refused(cache, mode):
    cache.put(KEY, b"planted")
    os.chmod(cache.path, mode)
    other = Cache(cache.path)
    with pytest.warns(CacheWarning) as recorded:
        assert other.get_or(KEY, lambda: VALUE) == VALUE
        assert other.get_or(KEY, lambda: VALUE) == VALUE
    assert f"chmod 700 {cache.path}" in only_warning(recorded)
    with pytest.raises(CacheError, match="nobody else may write to"):
        other.clear()
    os.chmod(cache.path, 0o700)
    assert other.get(KEY) == b"planted"


def test_a_directory_of_another_user_is_refused(cache, monkeypatch):
    cache.put(KEY, b"planted")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(CacheWarning) as recorded:
        assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert f"a directory of user {os.getuid() + 1}" in only_warning(recorded)


# Bad entries.


@pytest.mark.parametrize("position", [0, CHECKSUM - 1, CHECKSUM, CHECKSUM + 5000, -1])
def test_a_damaged_entry_is_removed(cache, caplog, position):
    cache.put(KEY, VALUE)
    path = os.path.join(cache.path, KEY)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[position] ^= 1
        file.seek(0)
        file.write(data)
    with caplog.at_level(logging.WARNING, "dlc.cache"):
        assert cache.get(KEY) is None
    assert f"removed a damaged entry of {len(data)} bytes: {path}" in caplog.text
    assert files(cache) == []
    assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert cache.get(KEY) == VALUE


@pytest.mark.parametrize("length", [0, 1, CHECKSUM - 1, CHECKSUM, CHECKSUM + len(VALUE) - 1, 20000])
def test_an_entry_of_the_wrong_length_is_removed(cache, length):
    cache.put(KEY, VALUE)
    os.truncate(os.path.join(cache.path, KEY), length)
    assert cache.get(KEY) is None
    assert files(cache) == []


def test_an_entry_under_another_key_is_damaged(cache):
    cache.put(KEY, VALUE)
    os.rename(os.path.join(cache.path, KEY), os.path.join(cache.path, digest("other")))
    assert cache.get(digest("other")) is None


def test_a_damaged_entry_that_cannot_be_removed(cache, monkeypatch):
    cache.put(KEY, VALUE)
    os.truncate(os.path.join(cache.path, KEY), 100)

    def refuse(path):
        raise PermissionError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.warns(CacheWarning, match="Read-only"):
        assert cache.get(KEY) is None


def test_an_entry_that_cannot_be_read(cache):
    cache.put(KEY, VALUE)
    os.mkdir(os.path.join(cache.path, digest("a directory")))
    with pytest.warns(CacheWarning, match="Is a directory"):
        assert cache.get(digest("a directory")) is None
    assert cache.get(KEY) == VALUE


# Bad disks. Tests may run as root, whom permissions do not stop; these obstacles stop root too.


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "kernels"):
        cache = Cache(path, limit=1 << 20)
        with pytest.warns(CacheWarning) as recorded:
            assert cache.get_or(KEY, lambda: VALUE) == VALUE
            assert cache.get_or(KEY, lambda: VALUE) == VALUE
        assert "dlc compiles afresh" in only_warning(recorded)
        assert cache.stats().entries == 0


def test_a_directory_that_cannot_be_written():
    cache = Cache("/proc/self/task", limit=1 << 20)  # ours, mode 0555, and nobody makes files there
    assert cache.get(KEY) is None
    with pytest.warns(CacheWarning) as recorded:
        for _ in range(3):
            assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert "cannot be written" in only_warning(recorded)


def test_a_directory_that_cannot_be_made():
    cache = Cache("/proc/self/task/kernels", limit=1 << 20)
    with pytest.warns(CacheWarning) as recorded:
        assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert "is not used, dlc compiles afresh" in only_warning(recorded)


def test_no_space_while_writing(tmp_path, run_python):
    """The kernel itself stops the write half way: files may grow to 4096 bytes only."""
    program = """
        import os, resource, sys, warnings
        from dlc.runtime.cache import Cache, digest

        cache = Cache(sys.argv[1], limit=1 << 20)
        cache.put(digest("small"), b"fits")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert cache.get_or(digest("large"), lambda: bytes(100_000)) == bytes(100_000)
        assert [w.category.__name__ for w in caught] == ["CacheWarning"], caught
        assert "File too large" in str(caught[0].message)
        assert os.listdir(cache.path) == [digest("small")]
        assert cache.get(digest("small")) == b"fits"
    """
    run_python(program, tmp_path / "kernels")


def test_no_space_at_the_flush(cache, monkeypatch):
    """Where blocks are allocated late, a full disk shows at fsync."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    cache.put(KEY, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(CacheWarning) as recorded:
            cache.put(KEY, VALUE)
            cache.put(digest("b"), VALUE)
    assert "No space left" in only_warning(recorded)
    assert files(cache) == [KEY]
    assert cache.get(KEY) == b"old"
    cache.put(KEY, VALUE)  # there is space again
    assert cache.get(KEY) == VALUE


# The size.


def age(cache, key, seconds):
    """Make an entry look unused for `seconds`."""
    then = time.time() - seconds
    os.utime(os.path.join(cache.path, key), (then, then))


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    size = CHECKSUM + len(VALUE)
    cache = Cache(tmp_path, limit=4 * size)
    os.chmod(tmp_path, 0o700)
    keys = [digest(str(i)) for i in range(5)]
    for seconds, key in zip((400, 300, 200, 100), keys, strict=False):
        cache.put(key, VALUE)
        age(cache, key, seconds)
    assert cache.stats().entries == 4
    assert cache.get(keys[0]) == VALUE  # used just now
    cache.put(keys[4], VALUE)
    assert files(cache) == sorted([keys[0], keys[3], keys[4]])
    assert cache.stats().bytes <= cache.limit


def test_what_was_just_written_stays(tmp_path):
    cache = Cache(tmp_path / "kernels", limit=3 * len(VALUE))
    for i in range(2):
        cache.put(digest(str(i)), VALUE)
        age(cache, digest(str(i)), -1000)  # a clock that ran ahead
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert cache.stats().bytes <= cache.limit


def test_the_size_holds_over_many_writes_of_many_processes(tmp_path):
    first, second = (Cache(tmp_path / "kernels", limit=100_000) for _ in range(2))
    for i in range(100):
        (first, second)[i % 2].put(digest(str(i)), VALUE)
        assert (first, second)[i % 2].get(digest(str(i))) == VALUE
    assert Cache(first.path).stats().bytes <= 2 * 100_000  # each counts what it wrote itself


def test_an_entry_larger_than_the_cache(tmp_path):
    cache = Cache(tmp_path / "kernels", limit=1000)
    cache.put(KEY, b"small")
    with pytest.warns(CacheWarning, match="exceeds its limit of 1000"):
        cache.put(digest("large"), VALUE)
    assert files(cache) == [KEY]


def test_a_limit_of_zero_turns_it_off(tmp_path):
    cache = Cache(tmp_path / "kernels", limit=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get_or(KEY, lambda: VALUE) == VALUE
        assert cache.get_or(KEY, lambda: VALUE) == VALUE
    assert not os.path.exists(cache.path)
    assert cache.stats().misses == 2


# Other processes and threads.

FILL = """
import sys
from dlc.runtime.cache import Cache, digest

directory, limit, seed, rounds = sys.argv[1], *map(int, sys.argv[2:])
cache = Cache(directory, limit)
state = seed
for _ in range(rounds):
    state = (state * 1103515245 + 12345) % (1 << 31)
    number = (state >> 8) % 40
    expected = digest(str(number)).encode() * (10 + number)
    found = cache.get_or(digest(str(number)), lambda: expected)
    assert found == expected, number
print(cache.stats())
"""


@pytest.mark.parametrize("limit", [1 << 20, 20_000], ids=["roomy", "evicting"])
def test_processes_fill_one_cache(tmp_path, limit):
    command = [sys.executable, "-W", "error", "-c", FILL, str(tmp_path / "kernels"), str(limit)]
    workers = [
        subprocess.Popen([*command, str(seed), "300"], stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    for worker in workers:
        _, complaints = worker.communicate(timeout=60)
        assert (worker.returncode, complaints) == (0, "")
    cache = Cache(tmp_path / "kernels", limit)
    assert all(len(name) == 64 for name in files(cache))  # no temporary files
    assert all(cache.get(name) is not None for name in files(cache))
    if limit == 1 << 20:
        assert cache.stats().entries == 40


def test_threads_fill_one_cache(tmp_path):
    cache = Cache(tmp_path / "kernels", limit=50_000)
    wrong = []

    def fill(seed):
        for i in range(100):
            number = (i * 7 + seed) % 30
            expected = digest(str(number)).encode() * 50
            if cache.get_or(digest(str(number)), lambda expected=expected: expected) != expected:
                wrong.append(number)

    threads = [threading.Thread(target=fill, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(cache.get(name) is not None for name in files(cache))


def test_clearing_while_a_thread_writes(cache):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failed, written = [], threading.Event()

    def write():
        try:
            for number in range(300):
                cache.put(digest(str(number)), VALUE)
        except TypeError as error:
            failed.append(error)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not written.is_set():
            cache.clear()
    finally:
        sys.setswitchinterval(interval)
        writer.join()
    assert not failed
    cache.clear()
    assert cache.stats().entries == 0


def test_killed_between_writing_and_naming(cache):
    """What a process that died leaves is no entry, and goes away once it is old."""
    program = """
import os, signal, sys
from dlc.runtime.cache import Cache
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
Cache(sys.argv[1]).put(sys.argv[2], bytes(10_000))
"""
    died = subprocess.run([sys.executable, "-c", program, cache.path, KEY], timeout=60)
    assert died.returncode == -signal.SIGKILL
    (left,) = files(cache)
    assert left.startswith(module.TEMPORARY)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    cache.clear()
    assert files(cache) == [left]  # it could belong to a process that is writing now
    age(cache, left, module.ABANDONED + 1)
    assert cache.stats().entries == 1
    cache.clear()
    assert files(cache) == []


def test_killed_at_any_moment(tmp_path):
    """SIGKILL lands where it lands; every entry that is there is whole."""
    program = """
import itertools, sys
from dlc.runtime.cache import Cache, digest
cache = Cache(sys.argv[1])
for i in itertools.count():
    cache.put(digest(str(i % 4)), bytes([i % 256]) * 500_000)
    if i == 4:
        print("the cache is full", flush=True)
"""
    cache = Cache(tmp_path / "kernels")
    for moment in (0.01, 0.023, 0.037, 0.051):
        command = [sys.executable, "-c", program, cache.path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            worker.stdout.readline()
            time.sleep(moment)
            worker.kill()
        found = [cache.get(digest(str(i))) for i in range(4)]
        assert all(value == value[:1] * 500_000 for value in found)


def test_it_works_after_a_fork(cache):
    cache.put(KEY, VALUE)
    child = os.fork()
    if child == 0:
        cache.put(digest("child"), VALUE)
        os._exit(0 if cache.get(KEY) == VALUE else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get(digest("child")) == VALUE
