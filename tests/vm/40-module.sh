#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The module ublk_bpf with its self-test programs, over a memory-backed null_blk: what the program says is what happens, the
# refusals, a full load with detach, replacement and drains, and that everything can be taken away again.
# kernels: stable backports
# engines: kernel
# timeout: 900
# takes: 140
# group: vm
set -eu -o pipefail
build=$(dirname "$(readlink -f "$0")")/../../build
d=$build/tests/vm/bpf-disk
pin=/sys/fs/bpf/link
dir=$(mktemp -d /root/module.XXXXXX)
cd "$dir"
size=16	# MiB, of disk and files

step() { echo "== $*"; }
# refused WORDS COMMAND: fails, and says so with these words
refused() {
	local words=$1; shift
	if "$@" 2>err >out; then echo "$*: was not refused"; return 1; fi
	grep -q -e "$words" err || { echo "$*: refused otherwise: $(cat err)"; return 1; }
}
word() { "$d" "$1" "$id" | tr ' ' '\n' | sed -n "s/^$2=//p"; }
detach() {
	rm "$pin"
	for _ in {1..100}; do [ "$(word info attached)" = 1 ] || return 0; sleep 0.1; done
	echo "still attached"; return 1
}
attach() { "$d" attach "$id" "$build/bpf/$1.bpf.o" "$pin" "${@:2}"; }
# A short-lived probe of udev may have it open.
destroy() {
	for _ in {1..100}; do
		if "$d" destroy "$id" 2>err; then return 0; fi
		grep -q busy err || break
		sleep 0.1
	done
	cat err; return 1
}
random_file() { head -c $((size << 20)) /dev/urandom >"$1"; sync "$1"; }
# The disk's content, in requests of BLOCK bytes, is that of the file.
reads_as() { dd if="$disk" bs="$2" iflag=direct status=none | cmp - "$1"; }
verify() {
	fio --output=fio.log --name=verify --filename="$disk" --ioengine=libaio --direct=1 --size="${size}M" --verify=crc32c \
		--verify_fatal=1 "$@" || { cat fio.log; return 1; }
}

step "load and unload"
for _ in {1..10}; do modprobe ublk_bpf; rmmod ublk_bpf; done
modprobe ublk_bpf

modprobe null_blk nr_devices=0
lower=/sys/kernel/config/nullb/nullb0
mkdir $lower
echo $size >$lower/size
echo 1 >$lower/memory_backed
echo 1 >$lower/irqmode
echo 1 >$lower/cache_size	# else the block layer drops FUA before anybody sees it
echo 1 >$lower/power
random_file server
random_file file0
random_file file1
dd if=server of=/dev/nullb0 bs=1M oflag=direct status=none

step "create, and what is refused"
refused "out of range" "$d" create /dev/nullb0 15
refused "Block device required" "$d" create server 25
id=$("$d" create /dev/nullb0 20)
disk=/dev/ublkbpf$id
udevadm settle
[ -b "$disk" ]
[ -e /sys/block/ublkbpf"$id"/slaves/nullb0 ]
[ "$(blockdev --getsize64 "$disk")" = $((size << 20)) ]
refused "busy" "$d" create /dev/nullb0 20
refused "Device or resource busy" "$d" create "$disk" 20
refused "in use" rmmod ublk_bpf
refused "No such device" "$d" info 77
refused "Invalid argument" "$d" file "$id" 0 file0 rw buffered
refused "Invalid argument" "$d" file "$id" 0 /dev/zero rw
refused "Bad file descriptor" "$d" file "$id" 0 file0 liar
refused "Too many levels" "$d" file "$id" 0 "$disk" rw
refused "Too many levels" "$d" file "$id" 0 /dev/nullb0 rw
refused "Numerical result out of range" "$d" file "$id" 16 file0 rw
refused "No such file" "$d" sizefile "$id" 3
reads_as server 64k		# no program yet
exec 9<"$disk"
refused "busy" "$d" destroy "$id"
exec 9<&-

step "null: all in the program"
attach null
refused "busy" "$d" attach "$id" "$build/bpf/null.bpf.o" /sys/fs/bpf/second
head -c $((size << 20)) /dev/zero | cmp - <(dd if="$disk" bs=128k iflag=direct status=none)
dd if=file0 of="$disk" bs=128k oflag=direct status=none
[ "$(word stats zeroed)" -ge 256 ]
detach
reads_as server 128k		# nothing was written

step "loop: all from the file, reads, writes, large and small"
"$d" file "$id" 0 file0 rw
[ "$("$d" sizefile "$id" 0)" = $((size << 20)) ]
attach loop
reads_as file0 4k
reads_as file0 512k		# split into eight, and asked again
dd if=file1 of="$disk" bs=96k oflag=direct status=none
cmp file0 file1
dd if="$disk" bs=1M count=1 skip=$((size - 1)) iflag=direct status=none | cmp - <(tail -c 1M file1)
dd if=/dev/nullb0 bs=1M iflag=direct status=none | cmp - server	# no write went below
[ "$(word stats refused)" = 0 ]
[ "$(word stats failed)" = 0 ]
verify --rw=randrw --bs=4k --iodepth=32 --number_ios=4000
verify --rw=randrw --bsrange=512-256k --iodepth=16 --number_ios=500
[ "$(word stats failed)" = 0 ]
accounted() { awk -v n="ublkbpf$id" '$3 == n {print $4, $6, $8, $10, $12}' /proc/diskstats; }
udevadm settle
read -ra was <<<"$(accounted)"
dd if="$disk" of=/dev/null bs=4k count=1000 iflag=direct status=none
dd if=file1 of="$disk" bs=32k count=100 oflag=direct status=none
read -ra is <<<"$(accounted)"
[ $((is[0] - was[0])) -ge 1000 ]
[ $((is[0] - was[0])) -lt 1100 ]
[ $((is[1] - was[1])) -ge 8000 ]
[ $((is[2] - was[2])) = 100 ]
[ $((is[3] - was[3])) = 6400 ]
udevadm settle
[ "$(accounted | cut -d' ' -f5)" = 0 ]

step "a flush and a forced write go below; so does a discard"
misses=$(word stats misses)
dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct,dsync status=none
[ "$(word stats misses)" -gt "$misses" ]
detach

step "mixed: file, server, zeroes, what cannot be done, error"
random_file file0
attach loop modes=01240124 chunk_shift=16	# server, file, zero, beyond, ...
blockdev --flushbufs /dev/nullb0		# nobody told its page cache of what came through the disk
python3 - <<-PY
	size, chunk = $size << 20, 65536
	server, file0 = open("/dev/nullb0", "rb").read(size), open("file0", "rb").read()
	out = open("expected", "wb")
	for at in range(0, size, chunk):
	    n = at // chunk % 4
	    out.write(bytes(chunk) if n == 2 else (file0 if n == 1 else server)[at:at + chunk])
PY
reads_as expected 4k
reads_as expected 48k
reads_as expected 1M
[ "$(word stats refused)" -gt 0 ]
refused "Device or resource busy" "$d" attach "$id" "$build/bpf/loop.bpf.o" /sys/fs/bpf/second
"$d" update "$pin" "$id" "$build/bpf/loop.bpf.o" modes=33333333
refused "Input/output error" dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct
"$d" update "$pin" "$id" "$build/bpf/loop.bpf.o" modes=00000000
refused "Invalid argument" "$d" update "$pin" $((id + 1)) "$build/bpf/loop.bpf.o"
verify --rw=randrw --bs=16k --iodepth=16 --number_ios=500	# complete server handling

step "a file that is too short, and one that must not be written"
dd if=/dev/nullb0 of=server bs=1M iflag=direct status=none
truncate -s $((size * 512))K file0
"$d" update "$pin" "$id" "$build/bpf/loop.bpf.o"
cat file0 >expected
tail -c +$((size * 512 * 1024 + 1)) server >>expected
reads_as expected 64k
"$d" file "$id" 0 file1 ro
cp file1 kept
dd if=server of="$disk" bs=64k oflag=direct status=none
cmp file1 kept
dd if=/dev/nullb0 bs=1M iflag=direct status=none | cmp - server
detach

step "stripe: two files"
random_file file0
random_file file1
"$d" file "$id" 0 file0 rw
"$d" file "$id" 1 file1 rw
attach stripe
python3 - <<-PY
	a, b, c = open("file0", "rb").read(), open("file1", "rb").read(), 65536
	half = range(0, $size << 19, c)
	open("expected", "wb").write(b"".join(a[i:i + c] + b[i:i + c] for i in half))
PY
reads_as expected 1M
verify --rw=randrw --bs=128k --iodepth=8 --number_ios=400
[ "$(word stats failed)" = 0 ]
detach

step "a file system on it, on half hits"
dd if=/dev/nullb0 of=file0 bs=1M iflag=direct status=none	# else they differ where the program changes
"$d" file "$id" 0 file0 rw
"$d" file "$id" 1 - rw
attach loop modes=11001100
mkfs.ext4 -q -F "$disk"
mkdir mnt
mount "$disk" mnt
cp -r /usr/lib/udev/rules.d /usr/bin/qemu-img mnt/
umount mnt
e2fsck -fn "$disk" >fsck.log || { cat fsck.log; exit 1; }
mount "$disk" mnt
diff -r /usr/lib/udev/rules.d mnt/rules.d
cmp /usr/bin/qemu-img mnt/qemu-img
umount mnt

step "under load: drains end, the program goes and comes, a file is replaced by itself"
dd if="$disk" of=all bs=1M iflag=direct status=none
dd if=all of=/dev/nullb0 bs=1M oflag=direct status=none	# from now on file and server agree
dd if=all of=file0 bs=1M oflag=direct conv=notrunc status=none
"$d" update "$pin" "$id" "$build/bpf/loop.bpf.o"
fio --output=load.log --name=load --filename="$disk" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=64 --numjobs=2 \
	--time_based --runtime=600 --size=${size}M &
load=$!
while [ "$(word stats hits)" -lt 20000 ]; do sleep 0.1; done
before=$(word stats hits)
"$d" drains "$id" 200
echo 1000 >/sys/module/ublk_bpf/parameters/test_delay_us	# now nearly always somebody is between lookup and I/O
for _ in {1..100}; do "$d" drain "$id" 0 0 nowait 2>err || break; done
grep -q "temporarily unavailable" err
"$d" drain "$id" 0 0
echo 0 >/sys/module/ublk_bpf/parameters/test_delay_us
for _ in {1..5}; do
	detach
	attach loop
	"$d" update "$pin" "$id" "$build/bpf/loop.bpf.o" modes=01010101
	"$d" file "$id" 0 file0 rw >/dev/null
done
refused "busy" "$d" destroy "$id"
[ "$(word stats hits)" -gt "$before" ]
kill -0 $load
kill $load
wait $load || true
grep -q 'err= 0' load.log || { cat load.log; exit 1; }
reads_as all 256k
udevadm settle
[ "$(accounted | cut -d' ' -f5)" = 0 ]	# nothing in flight
"$d" drain "$id" 0 0 nowait
[ "$(word stats drains)" -ge 200 ]
[ "$(word stats failed)" = 0 ]

step "the lower device goes: everything fails, nothing hangs"
echo 0 >$lower/power
[ "$(word info lower_dead)" = 1 ]
refused "Input/output error" dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct
detach

step "everything away"
destroy
[ ! -e "$disk" ]
refused "No such device" "$d" info "$id"
for _ in {1..100}; do ! rmmod ublk_bpf 2>err || break; sleep 0.1; done	# the programs go a grace period later
[ ! -e /sys/module/ublk_bpf ]
cd /
rm -r "$dir"
