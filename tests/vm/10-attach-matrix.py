#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 900
# group: vm long
"""The end-to-end matrix: images made by qemu-img are attached, compared, changed at random and detached.

Every image: the device must read as `qemu-img convert` says, by the page cache and by O_DIRECT; random writes, zeroes and
discards are kept in a shadow (depth 1, 16 threads, the page cache, fio with verify); after detach both checkers must be
content, the image must equal the shadow, and snapshots and backing files what they were.

10-attach-matrix.py [CASE...]: only these. A case's random numbers depend on its name alone (threads may interleave).
"""
import fcntl
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import traceback

K, M = 1024, 1024 * 1024
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
THREADS = 16
SCALE = 10 if os.environ.get("TEST_SCALE") == "long" else 1
WORK = "/root/matrix"
WORK_4K = "/root/matrix-4k"  # ext4 on a device with 4096-byte blocks
MAX_IO = 1 * M


def run(*argv, status=0):
    """Standard output of a command that must exit with `status`."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != status:
        raise AssertionError("`%s` exited with %d, not %d:\n%s" % (" ".join(argv), done.returncode, status, done.stdout))
    return done.stdout


# -- images -------------------------------------------------------------------------------------------------------------
def content(rng, size):
    """Random data, zeroes and repeated text in pieces of any size."""
    out = bytearray(size)
    pos = 0
    while pos < size:
        n = min(rng.choice([512, 4 * K, 60 * K, 300 * K, 1 * M]), size - pos)
        kind = rng.randrange(4)
        if kind == 0:
            out[pos:pos + n] = rng.randbytes(n)
        elif kind == 1:
            out[pos:pos + n] = (b"%08x compressible\n" % pos * (n // 16 + 1))[:n]
        pos += n
    return out


def scribble(rng, image, size, count):
    """Some data and zeroes on top of an image, by qemu-io."""
    commands = []
    for _ in range(count):
        off = rng.randrange(size // 512) * 512
        n = min(rng.choice([512, 4 * K, 64 * K, 200 * K]), size - off)
        what = rng.choice(["write -P %d" % rng.randrange(1, 255), "write -P %d" % rng.randrange(1, 255), "write -z"])
        commands += ["-c", "%s %d %d" % (what, off, n)]
    run("qemu-io", "-f", "qcow2", *commands, image)


def options(opts):
    return ["-o", opts] if opts else []


class Case:
    """One row of the matrix. opts: for qemu-img -o. base: how the backing file is made. attach: more options."""

    def __init__(self, name, size, opts="", where=WORK, convert=(), base=None, snapshot=False, empty=False, attach=()):
        self.name, self.size, self.opts, self.where = name, size, opts, where
        self.convert, self.base, self.snapshot, self.empty = list(convert), base, snapshot, empty
        self.attach = list(attach)
        self.rng = random.Random(name)
        self.files = []  # the backing chain

    def path(self, suffix):
        return os.path.join(self.where, self.name + suffix)

    def raw(self, suffix, size):
        path = self.path(suffix)
        with open(path, "wb") as f:
            f.write(content(self.rng, size))
        return path

    def make_base(self):
        """The backing chain, bottom first: (format, size, options) each. Returns the top's (path, format)."""
        below = None
        for i, (fmt, size, opts) in enumerate(self.base):
            raw = self.raw(".%d.raw" % i, size)
            path = raw
            if fmt == "qcow2" and not below:
                path = self.path(".%d.qcow2" % i)
                run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options(opts), raw, path)
            elif fmt == "qcow2":
                path = self.path(".%d.qcow2" % i)
                run("qemu-img", "create", "-q", "-f", "qcow2", *options(opts), "-b", os.path.basename(below[0]),
                    "-F", below[1], path, str(size))
                scribble(self.rng, path, size, 12)
            below = (path, fmt)
            self.files.append(path)
        return below

    def make(self):
        self.image = self.path(".qcow2")
        if self.base:
            path, fmt = self.make_base()
            run("qemu-img", "create", "-q", "-f", "qcow2", *options(self.opts), "-b", os.path.basename(path), "-F", fmt,
                self.image, str(self.size))
            scribble(self.rng, self.image, self.size, 12)
        elif self.empty:
            run("qemu-img", "create", "-q", "-f", "qcow2", *options(self.opts), self.image, str(self.size))
        else:
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options(self.opts), *self.convert,
                self.raw(".raw", self.size), self.image)
        if self.snapshot:
            run("qemu-img", "snapshot", "-c", "one", self.image)
            scribble(self.rng, self.image, self.size, 8)
            run("qemu-img", "snapshot", "-c", "two", self.image)
        info = json.loads(run("qemu-img", "info", "--output=json", self.image))
        self.cluster = info["cluster-size"]
        assert info["virtual-size"] == self.size, info

    def read_image(self, *source):
        out = self.path(".convert")
        run("qemu-img", "convert", "-O", "raw", *source, self.image, out)
        with open(out, "rb") as f:
            data = f.read()
        os.unlink(out)
        return data


CASES = [
    Case("c64k", 32 * M + 1536),
    Case("c512", 8 * M, "cluster_size=512"),
    Case("c4k-rc1", 16 * M, "cluster_size=4k,refcount_bits=1"),
    Case("c2m-rc64", 64 * M, "cluster_size=2M,refcount_bits=64"),
    Case("empty-rc8", 48 * M, "refcount_bits=8", empty=True),
    Case("v2", 24 * M, "compat=0.10"),
    Case("v2-over-short-raw", 24 * M, "compat=0.10", base=[("raw", 10 * M + 512, "")]),
    Case("zlib", 16 * M, convert=["-c"]),
    Case("over-long-qcow2", 16 * M, "", base=[("qcow2", 24 * M + 512, "cluster_size=4k")]),
    Case("snapshot", 24 * M, "", snapshot=True),
    Case("snapshot-c4k-rc64", 8 * M, "cluster_size=4k,refcount_bits=64", snapshot=True),
    Case("h4k-c512-rc64", 6 * M + 512, "cluster_size=512,refcount_bits=64", WORK_4K),
    Case("h4k-zstd-c4k", 8 * M, "compression_type=zstd,cluster_size=4k", WORK_4K, ["-c"]),
    Case("h4k-zstd-snapshot", 8 * M, "compression_type=zstd", WORK_4K, ["-c"], snapshot=True),
    Case("h4k-c64k", 32 * M + 512, "", WORK_4K),
    Case("h4k-metadata-c2m", 32 * M, "preallocation=metadata,cluster_size=2M", WORK_4K, empty=True),
    Case("h4k-full", 16 * M, "preallocation=full", WORK_4K, empty=True),
    Case("h4k-over-long-raw", 12 * M + 512, "", WORK_4K, base=[("raw", 20 * M + 1536, "")]),
    Case("h4k-chain", 20 * M, "cluster_size=4k", WORK_4K,
         base=[("raw", 6 * M + 512, ""), ("qcow2", 16 * M + 512, ""), ("qcow2", 12 * M, "cluster_size=128k")]),
    Case("h4k-bs4096", 16 * M + 512, "", WORK_4K, attach=["--block-size=4096", "--queues=1", "--depth=4"]),
]


# -- a device and its shadow --------------------------------------------------------------------------------------------
class Device:
    """Direct I/O on the device; the shadow holds what it must read as."""

    def __init__(self, path, shadow, block):
        self.path, self.shadow, self.block = path, shadow, block
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.size = len(shadow)

    def close(self):
        os.close(self.fd)

    def expect(self, got, off, what):
        want = self.shadow[off:off + len(got)]
        if got != want:
            bad = next(i for i in range(len(got)) if got[i] != want[i])
            raise AssertionError("%s [%d, %d): differs from the shadow at %d" % (what, off, off + len(got), off + bad))


class Hand:
    """One thread's buffer and random numbers."""

    def __init__(self, dev, seed):
        self.dev, self.rng = dev, random.Random(seed)
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
        """One random operation somewhere within [start, end)."""
        block = self.dev.block
        op = self.rng.choices([self.write, self.read, self.zero, self.discard, self.flush], [10, 4, 2, 2, 1])[0]
        most = 4 * MAX_IO if op in (self.zero, self.discard) else MAX_IO
        n = min(self.rng.choice([512, 4 * K, 4 * K, 16 * K, 64 * K, 200 * K, most]), end - start)
        n = max(n // block * block, block)
        off = start + self.rng.randrange((end - start - n) // block + 1) * block
        op(off, n)


def read_all(dev, buffered):
    """The whole device against the shadow."""
    fd = os.open(dev.path, os.O_RDONLY | (0 if buffered else os.O_DIRECT))
    buf = mmap.mmap(-1, MAX_IO)
    try:
        for off in range(0, dev.size, MAX_IO):
            got = os.preadv(fd, [buf], off)
            assert got == min(MAX_IO, dev.size - off), "read of %d at %d" % (got, off)
            dev.expect(buf[:got], off, "page cache" if buffered else "direct read")
    finally:
        os.close(fd)


def one_by_one(case, dev):
    hand = Hand(dev, case.name + " single")
    for _ in range(120 * SCALE):
        hand.step(0, dev.size)


def side_by_side(case, dev, granule):
    """Granule g belongs to thread g % THREADS: neighbours share clusters, nobody shares sectors."""
    errors = []

    def work(me):
        hand = Hand(dev, "%s %d %d" % (case.name, granule, me))
        mine = range(me * granule, dev.size, THREADS * granule)
        try:
            for _ in range(25 * SCALE if mine else 0):
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


def by_page_cache(case, dev):
    rng = random.Random(case.name + " buffered")
    with open(dev.path, "r+b", buffering=0) as f:
        for _ in range(30 * SCALE):
            n = rng.choice([1, 100, 4 * K, 50000])
            off = rng.randrange(dev.size - n)
            data = rng.randbytes(n)
            assert os.pwrite(f.fileno(), data, off) == n
            dev.shadow[off:off + n] = data
        os.fsync(f.fileno())


def by_fio(case, dev):
    """Three verifying jobs at once, depth 1 and 16; the shadow becomes what they left."""
    part = dev.size // 3 // 65536 * 65536
    common = ["--ioengine=libaio", "--direct=1", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--fsync=50",
              "--filename=" + dev.path, "--verify_fatal=1", "--minimal", "--randrepeat=1", "--allow_mounted_write=0"]
    jobs = []
    for i, (depth, bs, n) in enumerate([(1, 4096, 200), (16, 4096, 400), (16, 16384, 150)]):
        size = min(n * bs, part) // bs * bs
        jobs += ["--name=qd%d-%d" % (depth, bs), "--iodepth=%d" % depth, "--bs=%d" % bs, "--offset=%d" % (i * part),
                 "--size=%d" % size]
    run("fio", *common, *jobs)
    hand = Hand(dev, "fio")
    for off in range(0, dev.size, MAX_IO):
        n = min(MAX_IO, dev.size - off)
        dev.shadow[off:off + n] = hand.pread(off, n)


# -- one case -----------------------------------------------------------------------------------------------------------
def sums(files):
    return [run("sha256sum", f) for f in files]


def change(case, path, shadow):
    dev = Device(path, shadow, 4096 if "--block-size=4096" in case.attach else 512)
    try:
        read_all(dev, buffered=False)
        read_all(dev, buffered=True)
        by_page_cache(case, dev)
        one_by_one(case, dev)
        side_by_side(case, dev, 12 * K)
        side_by_side(case, dev, 2 * case.cluster + 4 * K)
        read_all(dev, buffered=False)
        by_fio(case, dev)
        os.fsync(dev.fd)
    finally:
        dev.close()


def judge(case, shadow):
    """The image at rest."""
    run("qemu-img", "check", "-f", "qcow2", case.image)
    ours = json.loads(run("ublk-qcow2", "check", "--json", case.image))
    assert ours["errors"] == 0 and ours["leaks"] == 0, ours
    got = case.read_image()
    # a device has whole blocks: what is behind the last one cannot be reached
    assert len(got) == case.size and got[:len(shadow)] == shadow, "the image differs from the shadow"
    raw = case.path(".shadow")
    with open(raw, "wb") as f:
        f.write(got)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, case.image)
    os.unlink(raw)


def use(case, shadow):
    """The device's life; returns its statistics."""
    path = run("ublk-qcow2", "attach", *case.attach, case.image).strip()
    size = int(run("blockdev", "--getsize64", path))
    block = 4096 if "--block-size=4096" in case.attach else 512
    assert size == case.size // block * block, size
    del shadow[size:]
    try:
        change(case, path, shadow)
        stats = json.loads(run("ublk-qcow2", "stats", "--json", path))
    finally:
        run("ublk-qcow2", "detach", path)
    assert stats["hits"] > 0 and stats["misses"] > 0, stats
    assert not os.path.exists(path), "the device stayed"
    return stats


def run_case(case):
    start = time.monotonic()
    case.make()
    shadow = bytearray(case.read_image())
    snapshots = ["-l", "snapshot.name=one"], ["-l", "snapshot.name=two"]
    before = [case.read_image(*s) for s in snapshots] if case.snapshot else []
    chain = sums(case.files)
    stats = use(case, shadow)
    judge(case, shadow)
    after = [case.read_image(*s) for s in snapshots] if case.snapshot else []
    assert before == after, "a snapshot's content changed"
    assert chain == sums(case.files), "a backing file changed"
    for name in os.listdir(case.where):
        if name.startswith(case.name + "."):
            os.unlink(os.path.join(case.where, name))
    print("ok %-20s %5.1f s, %5d hits, %5d misses, %4d commits, %3d drains" % (
        case.name, time.monotonic() - start, stats["hits"], stats["misses"], stats["commits"], stats["drains"]), flush=True)


def make_4k_host():
    """ext4 on a loop device with 4096-byte blocks. (Not null_blk: with such blocks it takes memory as aligned that is
    not; 6.12 overwrites its own memory then, 7.2 mixes up the data.)"""
    run("modprobe", "loop")
    run("truncate", "-s", "768M", WORK + "/host")
    dev = run("losetup", "--find", "--show", "-b", "4096", WORK + "/host").strip()
    run("mkfs.ext4", "-q", "-b", "4096", dev)
    os.mkdir(WORK_4K)
    run("mount", dev, WORK_4K)


def main():
    wanted = sys.argv[1:]
    shutil.rmtree(WORK, ignore_errors=True)
    os.mkdir(WORK)
    make_4k_host()
    failed = []
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        try:
            run_case(case)
        except (AssertionError, OSError, subprocess.SubprocessError) as e:
            failed.append(case.name)
            print("FAILED " + case.name, *traceback.format_exception(e), sep="\n", flush=True)
    if failed:
        print("failed: " + " ".join(failed))
    return bool(failed)


sys.exit(main())
