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
from inheritune.machine.allocator import freed_memory_given_back, keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
assert keep_freed_memory()
blocks = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
del blocks[::2]  # gaps, and the last one keeps the end of the heap
before = resident()
try:
    with freed_memory_given_back():
        told = [before - resident()]
        large, after_it = torch.ones(2**24), torch.ones(2**16)  # 64 MiB
        del large
        told.append(resident())
        torch.ones(2**24)
        told[1] -= resident()
        before = resident()
        1 / 0
except ZeroDivisionError:
    pass
large, after_it = torch.ones(2**24), torch.ones(2**16)
del large
told.append(resident() - before)
print(*told, float(blocks[0].sum()))
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
def test_what_was_kept_is_given_back_for_other_work_and_kept_again_after_it():
    ended = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    given_back, left_inside, kept_after, kept = map(float, ended.stdout.split())
    assert given_back > 9 * 2**24
    assert abs(left_inside) < 2**22
    assert kept_after > 2**26 - 2**22
    assert kept == 2**22


@pytest.mark.parametrize("kept", [True, False])
def test_how_much_is_kept_is_the_programs_choice_alone(kept, monkeypatch):
    told = []

    class Glibc:
        def mallopt(self, name, value):
            told.append((name, value))

        def malloc_trim(self, _):
            told.append("trim")

    monkeypatch.setattr(allocator, "_glibc", Glibc)
    monkeypatch.setattr(allocator, "_is_kept", kept)
    with allocator.freed_memory_given_back():
        told.append("work")
    set_and_put_back = [(allocator.M_MMAP_THRESHOLD, 2**25), (allocator.M_MMAP_MAX, 65536)], [(allocator.M_MMAP_MAX, 0)]
    before, after = set_and_put_back if kept else ([], [])
    assert told == ["trim", *before, "work", *after, "trim"]


def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        def mallopt(self, *_):
            pytest.fail("called")

        def malloc_trim(self, *_):
            pytest.fail("called")

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Musl())
    assert allocator.keep_freed_memory() is False
    with allocator.freed_memory_given_back():
        pass


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("called"))
    assert allocator.keep_freed_memory() is False
    with allocator.freed_memory_given_back():
        pass
