# SPDX-License-Identifier: GPL-2.0-or-later
"""Random I/O on a block device whose content is known: a shadow in memory is what the device must read as."""
import fcntl
import mmap
import os
import random
import struct
import subprocess
import threading

K, M = 1024, 1024 * 1024
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
THREADS = 16
MAX_IO = 1 * M


def run(*argv, status=0):
    """Standard output of a command that must exit with `status`."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != status:
        raise AssertionError("`%s` exited with %d, not %d:\n%s" % (" ".join(argv), done.returncode, status, done.stdout))
    return done.stdout


class Device:
    """Direct I/O on the device. It may be shorter than the shadow: a device has whole blocks."""

    def __init__(self, path, shadow, block, name, writable=True):
        self.path, self.shadow, self.block, self.name = path, shadow, block, name
        self.size = len(shadow) // block * block
        self.fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT)

    def close(self):
        os.close(self.fd)

    def expect(self, got, off, what):
        want = self.shadow[off:off + len(got)]
        if got != want:
            bad = next(i for i in range(len(got)) if got[i] != want[i])
            raise AssertionError("%s [%d, %d): differs from the shadow at %d" % (what, off, off + len(got), off + bad))

    def read_all(self, buffered=False, learn=False):
        """All of it against the shadow, or into the shadow."""
        fd = os.open(self.path, os.O_RDONLY | (0 if buffered else os.O_DIRECT))
        buf = mmap.mmap(-1, MAX_IO)
        try:
            for off in range(0, self.size, MAX_IO):
                got = os.preadv(fd, [buf], off)
                assert got == min(MAX_IO, self.size - off), "read of %d at %d" % (got, off)
                if learn:
                    self.shadow[off:off + got] = buf[:got]
                self.expect(buf[:got], off, "page cache" if buffered else "direct read")
        finally:
            os.close(fd)


class Hand:
    """One thread's buffer and random numbers."""

    def __init__(self, dev, seed):
        self.dev, self.rng = dev, random.Random("%s %s" % (dev.name, seed))
        self.map = mmap.mmap(-1, MAX_IO + 4096)
        self.skip = self.rng.choice([0, 512])  # direct I/O does not need page alignment
        self.buf = memoryview(self.map)[self.skip:]

    def pread(self, off, n):
        done = 0
        while done < n:
            got = os.preadv(self.dev.fd, [self.buf[done:n]], off + done)
            assert got > 0, "read [%d, %d): %d" % (off, off + n, got)
            done += got
        return bytes(self.buf[:n])

    def read(self, off, n):
        self.dev.expect(self.pread(off, n), off, "read")

    def write(self, off, n):
        data = self.rng.randbytes(n) if self.rng.randrange(4) else bytes([self.rng.randrange(1, 256)]) * n
        self.buf[:n] = data
        assert os.pwritev(self.dev.fd, [self.buf[:n]], off) == n, "short write"
        self.dev.shadow[off:off + n] = data

    def zero(self, off, n):
        fcntl.ioctl(self.dev.fd, BLKZEROOUT, struct.pack("QQ", off, n))
        self.dev.shadow[off:off + n] = bytes(n)

    def discard(self, off, n):
        """A hint: every sector reads as before or as zeroes."""
        fcntl.ioctl(self.dev.fd, BLKDISCARD, struct.pack("QQ", off, n))
        for pos in range(off, off + n, MAX_IO):
            self.discarded(pos, min(MAX_IO, off + n - pos))

    def discarded(self, off, n):
        got, old = self.pread(off, n), self.dev.shadow[off:off + n]
        if got == old:
            return
        for i in range(0, n, 512):
            sector = got[i:i + 512]
            assert sector == old[i:i + 512] or not any(sector), "discarded, but neither old nor zero at %d" % (off + i)
        self.dev.shadow[off:off + n] = got

    def flush(self, _off, _n):
        os.fsync(self.dev.fd)

    def step(self, start, end):
        """One random operation somewhere within [start, end), both multiples of the block size."""
        block = self.dev.block
        op = self.rng.choices([self.write, self.read, self.zero, self.discard, self.flush], [10, 4, 2, 2, 1])[0]
        most = 4 * MAX_IO if op in (self.zero, self.discard) else MAX_IO
        n = min(self.rng.choice([512, 4 * K, 4 * K, 16 * K, 64 * K, 200 * K, most]), end - start)
        n = max(n // block * block, block)
        off = start + self.rng.randrange((end - start - n) // block + 1) * block
        op(off, n)


def one_by_one(dev, count):
    hand = Hand(dev, "single")
    for _ in range(count):
        hand.step(0, dev.size)


def side_by_side(dev, granule, count):
    """THREADS at once, `count` operations each. Granule g belongs to thread g % THREADS: neighbours share clusters, nobody
    shares sectors."""
    granule = -(-granule // dev.block) * dev.block
    errors = []

    def work(me):
        hand = Hand(dev, "%d %d" % (granule, me))
        mine = range(me * granule, dev.size, THREADS * granule)
        try:
            for _ in range(count if mine else 0):
                start = hand.rng.choice(mine)
                hand.step(start, min(start + granule, dev.size))
        except BaseException as e:  # a thread's failure is the test's
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def by_page_cache(dev, count):
    """Writes of any length at any byte, through the page cache."""
    rng = random.Random(dev.name + " buffered")
    with open(dev.path, "r+b", buffering=0) as f:
        for _ in range(count):
            n = rng.choice([1, 100, 4 * K, 50000])
            off = rng.randrange(dev.size - n)
            data = rng.randbytes(n)
            assert os.pwrite(f.fileno(), data, off) == n
            dev.shadow[off:off + n] = data
        os.fsync(f.fileno())


def by_fio(dev, depth):
    """Three verifying jobs at once, one of them at depth 1; the shadow becomes what they left."""
    part = dev.size // 3 // 65536 * 65536
    common = ["--ioengine=libaio", "--direct=1", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--fsync=50",
              "--filename=" + dev.path, "--verify_fatal=1", "--minimal", "--randrepeat=1", "--allow_mounted_write=0"]
    jobs = []
    for i, (iodepth, bs, n) in enumerate([(1, 4096, 150), (depth, 4096, 400), (depth, 16384, 100)]):
        size = min(n * bs, part) // bs * bs
        jobs += ["--name=qd%d-%d" % (iodepth, bs), "--iodepth=%d" % iodepth, "--bs=%d" % bs, "--offset=%d" % (i * part),
                 "--size=%d" % size]
    run("fio", *common, *jobs)
    dev.read_all(learn=True)
