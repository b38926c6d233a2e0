import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inheritune.surgery import byte_range
from inheritune.surgery.byte_range import WAYS, by_reading, copy_range, preallocate


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(bytes(range(256)) * 40)
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def target(tmp_path):
    descriptor = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def refusing(number):
    def way(*_arguments):
        raise OSError(number, os.strerror(number))

    return way


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(begin=st.integers(0, 9000), length=st.integers(0, 1240), at=st.integers(0, 5000))
def test_range_arrives_at_its_place_whichever_way_it_goes(way, begin, length, at, source, target):
    os.ftruncate(target, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_range, "WAYS", (way,))
        patch.setattr(byte_range, "STEP_BYTES", 500)
        patch.setattr(byte_range, "BUFFER_BYTES", 70)
        assert copy_range(source, begin, target, at, length) == length
    assert os.pread(target, length, at) == (bytes(range(256)) * 40)[begin : begin + length]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
@pytest.mark.parametrize("refused", [1, 2])
def test_next_way_goes_where_one_cannot(refused, number, source, target, monkeypatch):
    ways = [refusing(number)] * refused + list(WAYS[refused:])
    monkeypatch.setattr(byte_range, "WAYS", tuple(ways))
    assert copy_range(source, 3, target, 5, 1000) == 1000
    assert os.pread(target, 1000, 5) == os.pread(source, 1000, 3)


def test_way_that_stops_in_the_middle_is_gone_on_with(source, target, monkeypatch):
    done = []

    def tired(*arguments):
        if done:
            raise OSError(errno.EXDEV, "other disk")
        done.append(by_reading(*arguments[:-1], 100))
        return done[0]

    monkeypatch.setattr(byte_range, "WAYS", (tired, lambda *_: 0, by_reading))
    assert copy_range(source, 0, target, 0, 1000) == 1000
    assert done == [100] and os.pread(target, 1000, 0) == os.pread(source, 1000, 0)


def test_source_that_ends_before_gives_what_there_is(source, target):
    assert copy_range(source, 10_000, target, 0, 1000) == 240


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_full_or_broken_disk_is_no_reason_to_try_another_way(number, source, target, monkeypatch):
    monkeypatch.setattr(byte_range, "WAYS", (refusing(number), by_reading))
    with pytest.raises(OSError, match=os.strerror(number)):
        copy_range(source, 0, target, 0, 10)


@pytest.mark.parametrize(("number", "is_fault"), [(errno.ENOSPC, True), (errno.EOPNOTSUPP, False)])
def test_only_a_full_disk_is_told_before_the_copy(number, is_fault, target, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refusing(number))
    if is_fault:
        with pytest.raises(OSError, match=os.strerror(number)):
            preallocate(target, 10)
    else:
        preallocate(target, 10)


def test_preallocated_file_has_its_size(target):
    preallocate(target, 1000)
    assert os.fstat(target).st_size == 1000
    preallocate(target, 0)
