import mmap

from vis_d2.utils.memory import peak_resident_mb, resident_mb

SIZE = 64 * 2**20


def test_memory_in_use_is_seen_and_given_back():
    before = resident_mb()
    with mmap.mmap(-1, SIZE) as block:  # past the allocator, which may reuse what it holds
        for offset in range(0, SIZE, mmap.PAGESIZE):
            block[offset] = 1
        during = resident_mb()
    after = resident_mb()
    assert 60 < during - before < 68
    assert after < during - 60
    assert peak_resident_mb() > during - 20
