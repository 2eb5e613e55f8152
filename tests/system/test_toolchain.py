"""The system tools that other tests build on: a C compiler, for here and for aarch64, and qemu.

A missing tool is a failure, not a skip: `.ci/apt.txt` lists what to install.
"""

import platform
import subprocess

import pytest

pytestmark = pytest.mark.system

PROGRAM = r"""
#include <math.h>
#include <pthread.h>
#include <stdio.h>

static void *work(void *argument) {
    *(double *)argument = fma(3.0, 5.0, 0.5);
    return 0;
}

int main(void) {
    pthread_t thread;
    double result = 0;
    pthread_create(&thread, 0, work, &result);
    pthread_join(thread, 0);
#if defined(__aarch64__)
    const char *machine = "aarch64";
#elif defined(__x86_64__)
    const char *machine = "x86_64";
#else
    const char *machine = "unknown";
#endif
    printf("%s %.1f\n", machine, result);
    return 0;
}
"""


def compiled(compiler, directory):
    """Compile the program, its threads and mathematics included; return the path of the binary."""
    source, binary = directory / "program.c", directory / "program"
    source.write_text(PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-pthread"]
    subprocess.run([compiler, *flags, source, "-o", binary, "-lm"], check=True)
    return binary


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_c_program_runs_here(tmp_path):
    assert output(compiled("cc", tmp_path)) == f"{platform.machine()} 15.5\n"


def test_an_aarch64_program_runs_in_qemu(tmp_path):
    """Dynamically linked, as libraries of dlc will be; -L is where its C library is."""
    binary = compiled("aarch64-linux-gnu-gcc", tmp_path)
    assert output("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", binary) == "aarch64 15.5\n"
