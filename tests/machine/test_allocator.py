import platform
import subprocess
import sys

import pytest

from inheritune.machine import allocator

FAULTS = """
import resource, sys
import torch
from inheritune.machine.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(40):
    torch.ones(2**24)  # 64 MiB: the first blocks are new in both cases, until one fits with its alignment
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


GAPS = """
import torch
from inheritune.machine.allocator import give_back_freed_memory, keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
assert keep_freed_memory()
blocks = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
del blocks[:-1]  # the last one keeps the end of the heap
before = resident()
give_back_freed_memory()
print(before - resident(), float(blocks[0].sum()))
"""


def faults(how):
    ended = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_a_block_that_was_freed_is_used_again_without_new_pages():
    pages = 10 * 2**26 // 2**12
    assert faults("kept") < pages / 100
    assert faults("given back") > pages / 1000  # a machine with huge pages faults in 2 MiB at a time


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_what_was_kept_is_given_back_when_asked_for():
    ended = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    given_back, kept = map(float, ended.stdout.split())
    assert given_back > 18 * 2**24
    assert kept == 2**22


def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        def mallopt(self, *_):
            pytest.fail("called")

        def malloc_trim(self, *_):
            pytest.fail("called")

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Musl())
    assert allocator.keep_freed_memory() is False
    allocator.give_back_freed_memory()


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("called"))
    assert allocator.keep_freed_memory() is False
    allocator.give_back_freed_memory()
