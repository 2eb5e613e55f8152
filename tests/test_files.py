"""How files are written: in the place of regular files alone, through symbolic links, and never
over another run's checkpoint.
"""

import os

import pytest
from test_training import X, Y, trainer

import dlc
from dlc.errors import ArgumentError, CheckpointError, ExecutionError


def saved(path):
    trainer().save(path)


def weights(path):
    dlc.save_weights(trainer().model, path)


def plotted(path):
    dlc.History([{"epoch": 1, "loss": 1.0}], 1).plot(path)


WRITERS = {"run.ckpt": saved, "net.safetensors": weights, "curve.svg": plotted}
writers = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))


@writers
def test_what_is_no_regular_file_stays(tmp_path, name, write):
    path = tmp_path / name
    for make, words in ((os.mkfifo, "a pipe"), (os.mkdir, "a folder")):
        make(path)
        before = os.stat(path)
        with pytest.raises(ExecutionError, match=f"{name}': it is {words}, no regular file; what"):
            write(path)
        assert os.path.samestat(os.stat(path), before)
        assert os.listdir(tmp_path) == [name]
        path.rmdir() if path.is_dir() else path.unlink()


@writers
def test_a_symbolic_link_stays_and_what_it_links_to_is_written(tmp_path, name, write):
    (tmp_path / "disk").mkdir()
    real, path = tmp_path / "disk" / name, tmp_path / name
    path.symlink_to(real)
    for _ in ("made", "replaced"):
        write(path)
        assert path.is_symlink()
        assert real.stat().st_size > 100
        real.write_text("old")
    assert os.listdir(tmp_path / "disk") == [name]


def test_a_checkpoint_is_read_from_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "run.ckpt")
    with pytest.raises(CheckpointError, match="expects a checkpoint, got a pipe"):
        trainer().resume(tmp_path / "run.ckpt")


def test_fit_looks_where_its_checkpoint_goes_before_the_first_step(tmp_path):
    run = trainer()
    os.mkfifo(tmp_path / "run.ckpt")
    with pytest.raises(ArgumentError, match="checkpoint expects a file, got a pipe"):
        run.fit((X, Y), checkpoint=tmp_path / "run.ckpt")
    assert run.step == 0


def test_another_runs_checkpoint_is_not_overwritten(tmp_path):
    path, linked = tmp_path / "run.ckpt", tmp_path / "linked.ckpt"
    linked.symlink_to(path)
    first, other = trainer(), trainer()
    first.fit((X, Y), checkpoint=path)
    first.fit((X, Y), epochs=2, checkpoint=path)  # its own
    before = path.read_bytes()
    for name in (path, linked):
        with pytest.raises(ArgumentError, match=r"go on from it with trainer\.resume"):
            other.fit((X, Y), checkpoint=name)
    assert other.step == 0
    assert path.read_bytes() == before
    other.resume(linked)
    assert other.fit((X, Y), epochs=3, checkpoint=path)["epoch"] == [1, 2, 3]
    trainer().save(path)  # what is asked for is done


def test_other_batches_behind_a_checkpoint(tmp_path):
    class Stop(dlc.Callback):
        def on_step_end(self, trainer, figures):
            trainer.stop = trainer.step == 6  # of 4 an epoch

    path = tmp_path / "run.ckpt"
    trainer().fit((X, Y), epochs=9, batch_size=16, callbacks=[Stop()], checkpoint=path)
    run = trainer()
    run.resume(path, same_batches=False)
    assert run.fit((X, Y), epochs=2, batch_size=10)["epoch"] == [1, 2]
    assert run.step == 6 + 5  # the second epoch began anew


def test_notes_of_ones_own_come_back(tmp_path):
    run, same = trainer(), trainer()
    run.notes["classes"] = ["a", "b"]
    run.save(tmp_path / "run.ckpt")
    same.resume(tmp_path / "run.ckpt")
    assert same.notes == run.notes
