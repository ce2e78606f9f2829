#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 3600
# takes: 600
# group: vm long
# engines: both
# vm: --cpus=4
"""The end-to-end matrix: images made by qemu-img are attached, compared, changed at random and detached.

The images: a pairwise covering set of the FACTORS, some by hand, and those kept in tests/images. Each has one of the engines
(UBLK_QCOW2_ENGINE: all have that one), and each kernel every other one of an engine's. With TEST_SCALE=long each kernel has
all of them, with each engine.

Every image: the device must read as `qemu-img convert` says, by the page cache and by O_DIRECT; random writes, zeroes,
discards and flushes are kept in a shadow (one by one, 16 threads, the page cache; on deep queues fio with verify); after
detach both checkers must be content, the image must equal the shadow, and snapshots and backing files what they were.

10-attach-matrix.py [CASE...]: only these. A case's random numbers depend on its name alone (threads may interleave).
"""
import faulthandler
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback

from pairs import Factors
from workload import K, M, Device, by_fio, by_page_cache, one_by_one, run, side_by_side

LONG = os.environ.get("TEST_SCALE") == "long"
SCALE = 10 if LONG else 1
WORK = "/root/matrix"
HOST = {512: WORK + "/h512", 4096: WORK + "/h4096"}  # ext4 on devices with such blocks
ENGINE = os.environ.get("UBLK_QCOW2_ENGINE")
KEPT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../images")

PREALLOCATED = ("metadata", "falloc", "full")
FACTORS = Factors({
    "cluster": ("512", "1k", "4k", "16k", "64k", "256k", "2M"),
    "refcount": (16, 1, 2, 4, 8, 32, 64),
    "compat": ("1.1", "0.10"),
    "data": ("plain", "empty", "zlib", "zstd", *PREALLOCATED, "snapshot"),
    "backing": ("none", "short", "long", "qcow2", "chain"),
    "host": (512, 4096),
    "queues": (1, 2, 4),
    "depth": (1, 4, 32, 128),
    "block": (512, 4096),
    "engine": ("server", "kernel"),
}, [(("compat", "0.10"), ("refcount", bits)) for bits in (1, 2, 4, 8, 32, 64)] +
    [(("compat", "0.10"), ("data", "zstd")),
     (("refcount", 1), ("data", "snapshot"))] +
    [(("data", data), ("backing", backing)) for data in PREALLOCATED for backing in ("short", "long", "qcow2", "chain")])

# Small, but with several L2 tables and refcount blocks where the clusters are small.
SIZES = {"512": 2 * M, "1k": 3 * M, "4k": 4 * M, "16k": 5 * M, "64k": 6 * M, "256k": 8 * M, "2M": 12 * M}


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


class Image:
    """An image in a folder of its own, and how it is attached."""
    snapshots = ()
    leaks = 0  # after it was written to
    writable = True
    recorded = None  # SHA-256 of its content and {name: SHA-256} of its snapshots'

    def __init__(self, name, host=512, block=512, queues=None, depth=32, engine="server", attach=()):
        self.name, self.host, self.block, self.queues, self.depth, self.engine = name, host, block, queues, depth, engine
        self.dir = os.path.join(HOST[host], name)
        self.image = os.path.join(self.dir, "image.qcow2")
        self.attach = ["--block-size=%d" % block, "--depth=%d" % depth, *attach]
        self.attach += ["--queues=%d" % queues] if queues else []

    def files(self):
        """SHA-256 of the other files: the backing chain."""
        names = sorted(n for n in os.listdir(self.dir) if n.startswith("base"))
        return [(n, file_sum(os.path.join(self.dir, n))) for n in names]

    def read(self, *source):
        """What qemu-img convert says."""
        out = os.path.join(self.dir, "convert")
        run("qemu-img", "convert", "-O", "raw", *source, self.image, out)
        with open(out, "rb") as f:
            data = f.read()
        os.unlink(out)
        return data

    def read_snapshots(self):
        return {name: hashlib.sha256(self.read("-l", "snapshot.name=" + name)).hexdigest() for name in self.snapshots}

    def scribble(self, count):
        """Some data and zeroes on top of it, by qemu-io."""
        commands = []
        for _ in range(count):
            off = self.rng.randrange(self.size // 512) * 512
            n = min(self.rng.choice([512, 4 * K, 64 * K, 200 * K]), self.size - off)
            fill = "write -P %d" % self.rng.randrange(1, 255)
            commands += ["-c", "%s %d %d" % (self.rng.choice([fill, fill, "write -z"]), off, n)]
        run("qemu-io", "-f", "qcow2", *commands, self.image)

    def scribble_compressed(self, count):
        """Some compressed clusters, where nothing is allocated yet."""
        commands = []
        for i in self.rng.sample(range(self.size // self.cluster), count):
            commands += ["-c", "write -c -P %d %d %d" % (i % 255 + 1, i * self.cluster, self.cluster)]
        run("qemu-io", "-f", "qcow2", *commands, self.image)

    def look(self):
        info = json.loads(run("qemu-img", "info", "--output=json", self.image))
        self.cluster, self.size = info["cluster-size"], info["virtual-size"]


class Made(Image):
    """Made here. opts: for qemu-img -o. data: see FACTORS. backing: (format, size, options) each, bottom first."""

    def __init__(self, name, size, opts="", data="plain", backing=(), **attach):
        super().__init__(name, **attach)
        self.size, self.opts, self.data, self.backing = size, opts, data, backing
        self.rng = random.Random(name)
        if data in ("zlib", "zstd"):
            self.opts += ",compression_type=" + data if data == "zstd" else ""
        elif data in PREALLOCATED:
            self.opts += ",preallocation=" + data
        if data == "snapshot":
            self.snapshots = ("one", "two")

    def path(self, name):
        return os.path.join(self.dir, name)

    def create(self, path, size, below, opts=""):
        back = ["-b", os.path.basename(below[0]), "-F", below[1]] if below else []
        opts = ["-o", opts.strip(",")] if opts else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *opts, *back, path, str(size))

    def convert(self, size, path, opts, *more):
        raw = self.path("content")
        with open(raw, "wb") as f:
            f.write(content(self.rng, size))
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *(["-o", opts.strip(",")] if opts else []), *more, raw, path)
        os.unlink(raw)

    def make_backing(self):
        """Returns the top's (path, format) or None."""
        below = None
        for i, (fmt, size, opts) in enumerate(self.backing):
            path = self.path("base%d.%s" % (i, fmt))
            if fmt == "raw":
                with open(path, "wb") as f:
                    f.write(content(self.rng, size))
            elif not below:
                self.convert(size, path, opts, *(["-c"] if size <= 6 * M else []))  # more would take long
            else:
                self.create(path, size, below, opts)
                run("qemu-io", "-f", "qcow2", "-c", "write -P 7 %d 70000" % (size // 3), "-c", "write -z 0 9000", path)
            below = path, fmt
        return below

    def make(self):
        os.mkdir(self.dir)
        size, compressed = self.size, self.data in ("zlib", "zstd")
        below = self.make_backing()
        if below or self.data == "empty" or self.data in PREALLOCATED:
            self.create(self.image, size, below, self.opts)
        else:
            self.convert(size, self.image, self.opts, *(["-c"] if compressed else []))
        self.look()
        assert self.size == size, self.size
        if below and compressed:
            self.scribble_compressed(5)
        elif below and self.data != "empty" or self.data in PREALLOCATED:
            self.scribble(8)
        for name in self.snapshots:
            run("qemu-img", "snapshot", "-c", name, self.image)
            if name == "one":
                self.scribble(6)


class Kept(Image):
    """A folder of tests/images; its file `case` has lines `key: value`."""

    def __init__(self, name, **attach):
        super().__init__("kept-" + name, **attach)
        self.source = os.path.join(KEPT, name)
        self.recorded = self.says("sha256")[0], dict(line.split() for line in self.says("snapshot"))
        self.snapshots = tuple(self.recorded[1])
        self.writable = self.says("attach") == ["rw"]
        self.leaks = int(self.says("leaks-once-written")[0])

    def says(self, key):
        with open(os.path.join(self.source, "case")) as f:
            return [line[len(key) + 1:].strip() for line in f if line.startswith(key + ":")]

    def make(self):
        shutil.copytree(self.source, self.dir)
        self.look()


def covering(row, index):
    """The image of a row of the covering set."""
    size = SIZES[row["cluster"]] + (0, 512, 1536)[index % 3]
    backing = {
        "none": [],
        "short": [("raw", size // 2 // 512 * 512 + 300, "")],
        "long": [("raw", size * 5 // 4 // 512 * 512 + 512, "")],
        "qcow2": [("qcow2", size * 5 // 4 // 512 * 512, "cluster_size=4k")],
        "chain": [("raw", size // 3 // 512 * 512 + 512, ""), ("qcow2", size * 5 // 4 // 512 * 512, ""),
                  ("qcow2", size * 3 // 4 // 512 * 512, "cluster_size=128k")],
    }[row["backing"]]
    name = "c%(cluster)s-rc%(refcount)d-%(compat)s-%(data)s-%(backing)s-h%(host)d-q%(queues)d-d%(depth)d-b%(block)d" % row
    opts = "cluster_size=%(cluster)s,refcount_bits=%(refcount)d,compat=%(compat)s" % row
    return Made(name, size, opts, row["data"], backing, **{k: row[k] for k in ("host", "block", "queues", "depth", "engine")})


def all_images():
    rows = FACTORS.covering_set()
    images = [covering(row, i) for i, row in enumerate(rows)] + [
        Made("defaults", 32 * M + 1536, depth=64),
        Made("zstd-snapshot", 8 * M, "compression_type=zstd", "snapshot", host=4096, engine="kernel"),
        Made("lazy-refcounts", 4 * M, "cluster_size=4k,lazy_refcounts=on"),
        Made("small-cache", 12 * M, "cluster_size=512", engine="kernel", attach=["--cache-size=64K"]),
    ]
    kept = [name for name in sorted(os.listdir(KEPT)) if os.path.isdir(os.path.join(KEPT, name))]
    images += [Kept(name, engine=FACTORS.values["engine"][i % 2]) for i, name in enumerate(kept)]
    assert not FACTORS.uncovered(rows), "pairs without an image: %s" % FACTORS.uncovered(rows)
    assert len(rows) >= 60 and len({image.name for image in images}) == len(images), "%d images" % len(rows)
    return images


# -- one image ----------------------------------------------------------------------------------------------------------
def file_sum(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def change(image, dev):
    by_page_cache(dev, 12 * SCALE)
    one_by_one(dev, 40 * SCALE)
    side_by_side(dev, 12 * K, 8 * SCALE)
    side_by_side(dev, 2 * image.cluster + 4 * K, 8 * SCALE)
    dev.read_all()
    if image.depth >= 64:
        by_fio(dev, image.depth)
    os.fsync(dev.fd)


def features(image):
    """The compatible and autoclear bits."""
    with open(image.image, "rb") as f:
        header = f.read(96)
    words = [int.from_bytes(header[at:at + 8], "big") for at in (80, 88)]
    return words if int.from_bytes(header[4:8], "big") >= 3 else [0, 0]


def findings(status, *argv):
    """What a checker says in JSON, behind its messages."""
    out = run(*argv, status=status)
    return json.loads(out[out.index("{"):])


def check_clean(image):
    """Nothing but the leaks that must be, says each checker; without those, nothing at all."""
    theirs = "qemu-img", "check", "--output=json", "-f", "qcow2", image.image
    ours = "ublk-qcow2", "check", "--json", image.image
    if image.leaks:
        a, b = findings(3, *theirs), findings(3, *ours)
        assert a["leaks"] == b["leaks"] == image.leaks and b["errors"] == 0, (a, b)
        run("qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", image.image)
    a, b = findings(0, *theirs), findings(0, *ours)
    assert not any(found.get(kind) for found in (a, b) for kind in ("leaks", "errors", "corruptions", "check-errors")), (a, b)


def judge(image, shadow):
    """The image at rest."""
    check_clean(image)
    raw = os.path.join(image.dir, "shadow")
    with open(raw, "wb") as f:
        f.write(shadow)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image.image)


def attach(image, *more):
    engine = image.engine
    argv = "ublk-qcow2", "attach", *image.attach, *more, image.image
    if engine == "kernel" and image.cluster < image.host:
        assert "--engine=kernel: needs direct I/O" in run(*argv, "--engine=kernel", status=1)
        engine = "server"
    path = run(*argv, "--engine=" + engine).splitlines()[-1]  # behind what was repaired
    assert (engine == "kernel") == path.startswith("/dev/ublkbpf"), path
    with open("/sys/block/%s/size" % os.path.basename(path)) as f:
        size = int(f.read()) * 512
    assert size == image.size // image.block * image.block, size
    return path


def use(image, shadow):
    """The device's life; returns its statistics."""
    path = attach(image)
    try:
        queues = len(os.listdir("/sys/block/%s/mq" % os.path.basename(path).replace("bpf", "b")))
        assert not image.queues or queues == image.queues, "%d queues" % queues
        dev = Device(path, shadow, image.block, image.name)
        try:
            dev.read_all()
            dev.read_all(buffered=True)
            change(image, dev)
        finally:
            dev.close()
        stats = json.loads(run("ublk-qcow2", "stats", "--json", path))
    finally:
        run("ublk-qcow2", "detach", path)
    assert stats["hits"] > 0 and stats["misses"] > 0, stats
    assert (stats["engine"] == "kernel") == (stats["kernel_hits"] > 0), stats
    assert not os.path.exists(path), "the device stayed"
    return "%s, %5d hits, %5d misses, %4d commits, %3d drains" % tuple(
        stats[k] for k in ("engine", "hits", "misses", "commits", "drains"))


def look_only(image, shadow):
    """An image that must not be written to."""
    before = file_sum(image.image)
    run("ublk-qcow2", "attach", *image.attach, image.image, status=1)
    path = attach(image, "--read-only")
    dev = Device(path, shadow, image.block, image.name, writable=False)
    try:
        dev.read_all()
        dev.read_all(buffered=True)
    finally:
        dev.close()
        run("ublk-qcow2", "detach", path)
    assert file_sum(image.image) == before, "the image changed"
    return "read only"


def run_image(image):
    start = time.monotonic()
    image.make()
    shadow = bytearray(image.read())
    snapshots, chain, bits = image.read_snapshots(), image.files(), features(image)
    assert image.recorded in (None, (hashlib.sha256(shadow).hexdigest(), snapshots)), "not what its case file says"
    if image.writable:
        result = use(image, shadow)
        judge(image, shadow)
        assert features(image) == [bits[0], 0], "compatible and autoclear bits: %s, once %s" % (features(image), bits)
        assert snapshots == image.read_snapshots(), "a snapshot's content changed"
    else:
        result = look_only(image, shadow)
    assert chain == image.files(), "a backing file changed"
    shutil.rmtree(image.dir)
    print("ok %-60s %5.1f s, %s" % (image.name, time.monotonic() - start, result), flush=True)


# -- all ----------------------------------------------------------------------------------------------------------------
def make_hosts():
    """ext4 on the guest's own disk, and on a loop device with 4096-byte blocks. (Not null_blk: with such blocks it takes
    memory as aligned that is not; 6.12 overwrites its own memory then, 7.2 mixes up the data.)"""
    shutil.rmtree(WORK, ignore_errors=True)
    for path in (WORK, *HOST.values()):
        os.mkdir(path)
    run("modprobe", "loop")
    run("truncate", "-s", "768M", WORK + "/disk")
    dev = run("losetup", "--find", "--show", "-b", "4096", WORK + "/disk").strip()
    run("mkfs.ext4", "-q", "-b", "4096", dev)
    run("mount", dev, HOST[4096])


def selected(images, names):
    """(image, engine): those named; in ./test one half for each of the two kernels; else all, with each engine."""
    engines = (ENGINE,) if ENGINE else FACTORS.values["engine"]
    half = {"stable": 0, "backports": 1}.get(os.environ.get("TEST_KERNEL"))
    if names or LONG or half is None:
        return [(image, engine) for image in images if not names or image.name in names for engine in engines]
    runs = [(image, ENGINE or image.engine) for image in images]
    return [run for engine in engines for run in [r for r in runs if r[1] == engine][half::2]]


def main():
    images = all_images()
    make_hosts()
    failed = []
    for image, image.engine in selected(images, sys.argv[1:]):
        faulthandler.dump_traceback_later(120 * SCALE, exit=True)  # a device that hangs
        try:
            run_image(image)
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as e:
            failed.append(image.name)
            print("FAILED " + image.name, *traceback.format_exception(e), sep="\n", flush=True)
    if failed:
        print("failed: " + " ".join(failed))
    return bool(failed)


sys.exit(main())
