#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 1200
# group: long
"""A virtual machine whose disks are ours: QEMU, without KVM, in the guest, with the kernel that the guest itself runs.

/dev/ublkbN is its virtio disk (cache=none, aio=io_uring, discard=unmap), a read-only attach a second one (aio=native).
Its PID 1 (inner-init.c) obeys a script: it checks what was here before, writes, discards and zeroes, and switches off.
Then the device, and after detach the image, must hold what the script says, and both checkers must be content.
"""
import ctypes
import json
import lzma
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time

K, M = 1024, 1024 * 1024
SIZE, RO_SIZE = 64 * M, 8 * M
WORK = "/root/qemu-guest"
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KERNEL = os.uname().release
MODULES = ["drivers/virtio/virtio_mmio", "drivers/block/virtio_blk"]
BOOT_LIMIT = 1000  # seconds; emulation within emulation
# What nobody here needs and what takes an emulated emulator seconds each.
NEEDLESS = ["load_system_certificate_list", "inet6_init", "param_sysfs_builtin_init", "slab_late_init", "init_encrypted", "cmos_init"]
APPEND = ["console=ttyS0", "quiet", "panic=-1", "tsc_early_khz=1000000", "lpj=4000000", "no_timer_check", "mitigations=off", "lsm=",
          "rodata=off", "init_on_alloc=0", "noreplace-smp", "ibt=off", "cfi=off", "nokaslr", "initcall_blacklist=" + ",".join(NEEDLESS)]


def run(*argv, status=0):
    """Standard output of a command that must exit with `status`."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert done.returncode == status, "`%s` exited with %d, not %d:\n%s" % (" ".join(argv), done.returncode, status, done.stdout)
    return done.stdout


def pattern(at, length, salt):
    """As word() in inner-init.c: each word depends on where it lies and on the salt; salt 0 is zeroes."""
    if not salt:
        return bytes(length)
    words = [(at + i + salt) * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for i in range(0, length, 8)]
    return struct.pack("<%dQ" % len(words), *words)


# -- the machine --------------------------------------------------------------------------------------------------------
def extract_kernel(path):
    """vmlinux out of a bzImage with a zstd payload: QEMU starts an ELF file as it is, so that nothing is unpacked in there."""
    with open("/boot/vmlinuz-" + KERNEL, "rb") as f:
        image = f.read()
    offset, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length
    start = (image[0x1F1] + 1) * 512 + offset  # setup_sects
    payload, (size,) = image[start:start + length - 4], struct.unpack_from("<I", image, start + length - 4)
    zstd = ctypes.CDLL("libzstd.so.1")
    zstd.ZSTD_decompress.restype = ctypes.c_size_t
    out = mmap.mmap(-1, size)
    got = zstd.ZSTD_decompress((ctypes.c_char * size).from_buffer(out), ctypes.c_size_t(size), payload,
                               ctypes.c_size_t(len(payload)))
    assert got == size, "vmlinuz-%s: payload is not zstd, or damaged" % KERNEL
    with open(path, "wb") as f:
        f.write(memoryview(out)[:size])


def cpio(files):
    """An archive in the "newc" format: (name, mode, content) each."""
    out = bytearray()
    for i, (name, mode, data) in enumerate(files + [("TRAILER!!!", 0, b"")]):
        name = name.encode() + b"\0"
        fields = (i + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def make_initrd(path, script):
    with open(TOP + "/build/tests/vm/inner-init", "rb") as f:
        files = [("init", 0o100755, f.read()), ("modules", 0o40755, b""), ("script", 0o100644, script.encode())]
    for i, name in enumerate(MODULES):
        with lzma.open("/usr/lib/modules/%s/kernel/%s.ko.xz" % (KERNEL, name)) as f:
            files.append(("modules/%d.ko" % i, 0o100644, f.read()))
    data = cpio(files)
    # Whole pages: QEMU puts it at the end of memory, aligned, over its own ACPI tables if they are in the same page.
    data += bytes(-len(data) % 4096)
    with open(path, "wb") as f:
        f.write(data)


def disk(name, device, options):
    return ["-drive", "if=none,id=%s,file=%s,format=raw,cache=none,%s" % (name, device, options),
            "-device", "virtio-blk-device,drive=%s,serial=%s" % (name, name)]


def boot(script, one, two):
    """Runs the machine to its end; returns the seconds it took."""
    extract_kernel(WORK + "/vmlinux")
    make_initrd(WORK + "/initrd", script)
    argv = ["qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", "256", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-kernel", WORK + "/vmlinux", "-initrd", WORK + "/initrd",
            "-append", " ".join(APPEND), "-serial", "file:%s/console" % WORK,
            *disk("rw", one, "aio=io_uring,discard=unmap"), *disk("ro", two, "aio=native,readonly=on")]
    start = time.monotonic()
    try:
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=BOOT_LIMIT)
        status, said = said.returncode, said.stdout
    except subprocess.TimeoutExpired:
        status, said = "none: not done after %d s" % BOOT_LIMIT, ""
    with open(WORK + "/console", errors="replace") as f:
        console = f.read()
    last = console.strip().rsplit("\n", 1)[-1].strip()
    want = "inner: done, %d lines" % script.count("\n")
    assert status == 0 and want in console, "QEMU's exit status %s, last line \"%s\":\n%s\n%s" % (
        status, last, said, console[-3000:])
    return time.monotonic() - start


# -- the disk and what it must hold ---------------------------------------------------------------------------------------------
class Disk:
    """What is written to a disk, by whom ever: as a script for the machine, and as the content that must come out."""

    def __init__(self, size):
        self.content = bytearray(size)
        self.lines = []

    def put(self, at, length, salt, word=None):
        self.content[at:at + length] = pattern(at, length, salt)
        if word:
            self.lines.append("%s %d %d %d" % (word, at, length, salt))

    def check(self, at, length, salt):
        assert self.content[at:at + length] == pattern(at, length, salt), "the script expects what nobody wrote"
        self.lines.append("check %d %d %d" % (at, length, salt))

    def say(self, *words):
        self.lines.append(" ".join(map(str, words)))


def write_before(device, d):
    """Two places with data, an hour before the machine is switched on."""
    with open(device, "r+b", buffering=0) as f:
        for at, length, salt in [(0, 64 * K, 1), (16 * M, 4 * M, 1), (SIZE - 64 * K, 64 * K, 1)]:
            d.put(at, length, salt)
            f.seek(at)
            assert f.write(d.content[at:at + length]) == length
        os.fsync(f.fileno())


def work_of_machine(d):
    """What the machine does to its disk. Returns the number of its flushes and the range that it gave back."""
    d.say("disk", "rw")
    d.say("size", SIZE)
    d.check(0, 64 * K, 1)
    d.check(16 * M, 4 * M, 1)
    d.check(40 * M, 128 * K, 0)
    # into data, into nothing, across clusters, single sectors, the last one
    for at, length in [(4 * K, 4 * K), (M - 512, 1536), (8 * M + 3 * K, 3 * M), (17 * M + 512, 512), (33 * M, 64 * K), (SIZE - 512, 512)]:
        d.put(at, length, 2, "write")
    d.say("sync")
    d.check(0, 4 * K, 1)
    d.check(4 * K, 4 * K, 2)
    d.check(8 * K, 56 * K, 1)
    d.check(M - 512, 1536, 2)
    d.check(8 * M + 3 * K, 3 * M, 2)
    d.check(17 * M, 512, 1)
    d.check(17 * M + 512, 512, 2)
    d.put(24 * M + 1536, 300 * K, 3, "cached")
    d.say("sync")
    d.check(24 * M + 1536, 300 * K, 3)
    d.say("discard", 18 * M, M)
    d.put(18 * M, M, 0)
    d.say("zero", 9 * M + 512, 100 * K)
    d.put(9 * M + 512, 100 * K, 0)
    d.check(18 * M, M, 0)
    d.check(18 * M - 4 * K, 4 * K, 1)
    d.check(9 * M + 512, 100 * K, 0)
    d.put(18 * M + 256 * K + 512, 512, 4, "write")
    d.say("sync")
    d.check(18 * M + 256 * K + 512, 512, 4)
    return 3, (18 * M + 512 * K, 512 * K)


def given_back(image, at, length):
    """Nothing of [at, at + length) takes space."""
    for e in json.loads(run("qemu-img", "map", "--output=json", image)):
        overlaps = e["start"] < at + length and e["start"] + e["length"] > at
        assert not (overlaps and e["data"]), "discarded, but still there: %s" % e


def stats(device):
    return json.loads(run("ublk-qcow2", "stats", "--json", device))


def holds(device, content):
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")
    with open(device, "rb") as f:
        for at in range(0, len(content), M):
            assert f.read(M) == content[at:at + M], "%s: not what it must hold, within %d MiB" % (device, at // M)
        assert not f.read(1)


def judge(image, content):
    """The image at rest."""
    run("qemu-img", "check", "-q", image)
    run("ublk-qcow2", "check", image)
    with open(WORK + "/shadow", "wb") as f:
        f.write(content)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", WORK + "/shadow", image)


def make_read_only(image):
    d = Disk(RO_SIZE)
    with open(WORK + "/raw", "wb") as f:
        d.put(3 * M + 512, 2 * M, 5)
        f.write(d.content)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", WORK + "/raw", image)
    d.say("disk", "ro")
    d.say("size", RO_SIZE)
    d.say("readonly")
    d.check(0, M, 0)
    d.check(3 * M + 512, 2 * M, 5)
    return d


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    os.mkdir(WORK)
    image, locked = WORK + "/disk.qcow2", WORK + "/ro.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE))
    ro = make_read_only(locked)
    sum_before = run("sha256sum", locked)
    device, ro_device = run("ublk-qcow2", "attach", image).strip(), run("ublk-qcow2", "attach", "--read-only", locked).strip()
    rw = Disk(SIZE)
    write_before(device, rw)
    flushes, (gone, gone_length) = work_of_machine(rw)
    before = stats(device)
    took = boot("\n".join(rw.lines + ro.lines) + "\n", device, ro_device)
    after = stats(device)
    assert after["flushes"] - before["flushes"] >= flushes, "the machine's flushes did not arrive: %s, %s" % (before, after)
    assert after["discards"] > before["discards"], "its discard did not arrive: %s, %s" % (before, after)
    holds(device, rw.content)
    holds(ro_device, ro.content)
    run("ublk-qcow2", "detach", device)
    run("ublk-qcow2", "detach", ro_device)
    judge(image, rw.content)
    given_back(image, gone, gone_length)
    assert run("sha256sum", locked) == sum_before, "the read-only image changed"
    print("ok: a machine with Linux %s used both disks and was off after %.0f s; %d writes, %d flushes, %d discards of it arrived" % (
        KERNEL, took, *(after[k] - before[k] for k in ("writes", "flushes", "discards"))))


sys.exit(main())
