#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Engine kernel and the module where things go wrong or pile up: every file system under the image and over the device, an image
# on a logical volume, a frozen file system, a truncated image, disks within disks, long chains, many devices, attaching and
# detaching again and again, and calls to the module that fail half way.
# kernels: stable backports
# engines: kernel
# sample: backports+kernel
# takes: 320
# timeout: 2400
# group: vm long
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

build=$(readlink -f "$(dirname "$0")/../../build")
bpf_disk=$build/tests/vm/bpf-disk
long=''
[ "${TEST_SCALE:-}" != long ] || long=1

# Sets $dev and $id.
kattach() {
	attach --engine=kernel "$@"
	[[ $dev = /dev/ublkbpf* ]] || fail "$dev is not the module's"
	id=${dev#/dev/ublkbpf}
}

counter() { "$bpf_disk" stats "$id" | tr ' ' '\n' | sed -n "s/^$1=//p"; } # the module's own

# verified FILE FIO-OPTION...: writes all over it, reads back, compares. io_uring asks for I/O that does not wait first.
verified() {
	fio --output="$work/fio.$BASHPID" --name=v --filename="$1" --direct=1 --ioengine=io_uring --rw=randwrite --bsrange=4k-64k --iodepth=16 \
		--verify=crc32c --verify_fatal=1 "${@:2}" || fail "fio: $(tail -n 20 "$work/fio.$BASHPID")"
}

# A file system of its own under host/.
host() { # TYPE
	truncate -s 600M host.raw
	loop=$(losetup --find --show --direct-io=on host.raw) || fail "losetup"
	modprobe "$1"
	"mkfs.$1" -q "$loop" || fail "mkfs.$1"
	mkdir -p host
	mount "$loop" host || fail "mount"
}
unhost() {
	umount host || fail "umount"
	losetup -d "$loop"
	rm host.raw
}

# ---- under the image and over the device ----

held_by() { # TYPE OVER-IT
	host "$1"
	image host/a.qcow2 512M
	kattach host/a.qcow2
	verified "$dev" --size=16M --io_size=12M
	verified "$dev" --size=16M --io_size=12M # all mapped now
	"mkfs.$2" -q "$dev" >out 2>err || fail "mkfs.$2"
	mkdir over
	mount "$dev" over || fail "mount"
	cp -a /usr/lib/python3*/[a-c]* over/
	(cd over && find . -type f -exec sha256sum {} +) >sums
	umount over
	echo "$1, $2 over it: $("$bpf_disk" stats "$id")"
	(($(stat_of kernel_hits) > 300)) || fail "few hits"
	(($(counter failed) == 0)) || fail "failed hits"
	detach "$dev"
	sound host/a.qcow2
	kattach host/a.qcow2
	mount "$dev" over || fail "mount"
	(cd over && sha256sum --quiet -c ../sums) || fail "files differ"
	umount over
	detach "$dev"
	sound host/a.qcow2
	unhost
}

case_ext4() { held_by ext4 xfs; }
case_xfs() { held_by xfs ext4; }
case_btrfs() { held_by btrfs ext4; }

case_volume() {
	truncate -s 300M host.raw
	loop=$(losetup --find --show --direct-io=on host.raw) || fail "losetup"
	expect 0 vgcreate robust "$loop"
	expect 0 lvcreate -y -n image -L 200M robust
	image /dev/robust/image 128M
	kattach /dev/robust/image
	verified "$dev" --size=24M --io_size=16M
	verified "$dev" --size=24M --io_size=16M
	(($(stat_of kernel_hits) > 300)) || fail "few hits"
	# Its I/O stands still for a while, and goes on.
	verified "$dev" --size=24M --io_size=16M & local load=$!
	sleep 1
	dmsetup suspend robust-image
	sleep 1
	dmsetup resume robust-image
	wait $load || fail "fio"
	put 50000 z
	detach "$dev"
	sound /dev/robust/image
	kattach /dev/robust/image
	has 50000 z
	detach "$dev"
	expect 0 vgremove -f robust
	losetup -d "$loop"
}

# ---- the image file is touched ----

# Reads go on, writes wait for the thaw, and nothing that withdraws a mapping has to.
case_frozen() {
	local load waiting
	host ext4
	image host/a.qcow2 128M
	kattach host/a.qcow2
	dd if=/dev/urandom of="$dev" bs=1M count=16 oflag=direct conv=fsync status=none
	put 60000 a
	put 61000 a
	verified "$dev" --size=16M --io_size=24M & load=$!
	sleep 1
	for _ in 1 2 3; do
		expect 0 fsfreeze -f host
		expect 0 timeout 10 "$bpf_disk" drain "$id" 0 0
		has 60000 a
		put 61000 b & waiting=$!
		sleep 1
		kill -0 $waiting || fail "a write to a frozen file system"
		expect 0 timeout 10 "$bpf_disk" drain "$id" 0 0
		expect 0 fsfreeze -u host
		wait $waiting || fail "a write failed"
		has 61000 b
		put 61000 a
	done
	wait $load || fail "fio"
	(($(counter refused) > 0)) || fail "nothing was refused"
	expect 0 fsfreeze -f host
	(sleep 2; fsfreeze -u host) &
	detach "$dev"
	wait
	sound host/a.qcow2
	kattach host/a.qcow2
	has 60000 a
	has 61000 a
	detach "$dev"
	unhost
}

# A read behind the new end is an error, as no zeroes are stored there, and no hit makes the file longer.
case_truncated() {
	local at start before writes
	image a.qcow2 64M
	kattach a.qcow2
	dd if=/dev/urandom of=data bs=64k count=32 status=none
	dd if=data of="$dev" bs=64k oflag=direct conv=fsync status=none
	cmp data <(dd if="$dev" bs=64k count=32 iflag=direct status=none) || fail "other data"
	# what comes last in the image
	read -r start at <<<"$(qemu-img map -U --output=json a.qcow2 | jq -r '[.[] | select(.data)] | max_by(.offset) |
		"\(.start + .length - 65536) \(.offset + .length - 65536)"')"
	[ -n "$at" ] || fail "no map"
	tail -c +$((at + 1)) a.qcow2 >end
	before=$(counter refused) writes=$(counter writes)
	truncate -s "$at" a.qcow2
	expect 1 dd if="$dev" of=got bs=64k count=1 skip=$((start / 65536)) iflag=direct status=none
	says "Input/output error"
	[ "$(stat -c %s a.qcow2)" = "$at" ] || fail "the file grew"
	(($(counter refused) > before)) || fail "not refused"
	has 32000 '\0'
	dd if=data of="$dev" bs=64k count=1 skip=$((start / 65536)) seek=$((start / 65536)) oflag=direct conv=notrunc status=none ||
		fail "write"
	[ "$(counter writes)" = "$writes" ] || fail "a hit wrote behind the end"
	dd if=end of=a.qcow2 bs=64k seek=$((at / 65536)) conv=notrunc status=none # metadata may have been there
	cmp data <(dd if="$dev" bs=64k count=32 iflag=direct status=none) || fail "other data"
	detach "$dev"
	sound a.qcow2
}

# The limit for files of the process that writes to the device is not meant for the image.
case_file_size_limit() {
	local punts
	image a.qcow2 64M
	kattach a.qcow2
	put 0 a
	punts=$(counter punts)
	(ulimit -f 1 && put 0 b) || fail "a limited process cannot write"
	has 0 b
	(($(counter punts) > punts)) || fail "not given to the worker"
	detach "$dev"
	sound a.qcow2
}

# I/O is charged to the group that asked for it, whoever starts it.
case_cgroup() {
	local group=/sys/fs/cgroup/robust disk
	charged() { sed -n "s/^$disk .*wbytes=\([0-9]*\).*/\1/p" $group/io.stat; }
	image a.qcow2 64M
	disk=$(lsblk -n -o MAJ:MIN /dev/vda | head -n 1 | tr -d ' ')
	kattach a.qcow2
	dd if=/dev/zero of="$dev" bs=1M count=8 oflag=direct conv=fsync status=none
	echo +io >/sys/fs/cgroup/cgroup.subtree_control
	mkdir $group
	(echo $BASHPID >$group/cgroup.procs; dd if=/dev/zero of="$dev" bs=1M count=4 oflag=direct conv=notrunc status=none)
	(($(charged) >= 4 << 20)) || fail "inline: $(cat $group/io.stat)"
	(echo $BASHPID >$group/cgroup.procs; ulimit -f 1; dd if=/dev/zero of="$dev" bs=1M count=4 oflag=direct conv=notrunc status=none)
	(($(charged) >= 8 << 20)) || fail "worker: $(cat $group/io.stat)"
	(($(counter punts) > 0)) || fail "not given to the worker"
	rmdir $group
	detach "$dev"
	sound a.qcow2
}

case_trace() {
	local t=/sys/kernel/tracing
	image a.qcow2 64M
	kattach a.qcow2
	put 0 a
	echo 1 >$t/events/ublk_bpf/enable
	put 0 b
	put 1000 a
	has 32000 '\0'
	echo 0 >$t/events/ublk_bpf/enable
	cat $t/trace >out
	prints "ublk_bpf_queue: ublkbpf$id write 0+4096 file slot 0 offset "
	prints "ublk_bpf_queue: ublkbpf$id write 1024000+4096 below slot 0 offset 0"
	prints "ublk_bpf_queue: ublkbpf$id read 32768000+4096 result slot 0 offset 0"
	prints "ublk_bpf_complete: ublkbpf$id 0 result 0"
	echo >$t/trace
	detach "$dev"
	sound a.qcow2
}

# What finds no memory goes below, whole.
case_no_memory() {
	local refused hits
	image -o cluster_size=4k a.qcow2 64M
	kattach a.qcow2
	verified "$dev" --size=16M --io_size=24M
	refused=$(counter refused) hits=$(counter hits)
	echo 3 >/sys/module/ublk_bpf/parameters/test_no_memory
	verified "$dev" --size=16M --io_size=16M
	echo 0 >/sys/module/ublk_bpf/parameters/test_no_memory
	"$bpf_disk" stats "$id"
	(($(counter refused) - refused > 100 && $(counter hits) - hits > 100)) || fail "nothing was refused, or everything"
	detach "$dev"
	sound a.qcow2
}

# ---- many ----

# An image on a file system on another disk of ours; and no file of a disk may lie on it, however deep.
case_nested() {
	local outer outer_id inner load
	image outer.qcow2 512M
	kattach outer.qcow2
	outer=$dev outer_id=$id
	mkfs.ext4 -q "$outer"
	mkdir mnt within
	mount "$outer" mnt
	image mnt/inner.qcow2 200M
	kattach mnt/inner.qcow2
	inner=$dev
	verified mnt/file --size=16M --io_size=24M & load=$!
	verified "$inner" --size=16M --io_size=24M
	verified "$inner" --size=16M --io_size=12M
	wait $load || fail "fio on the outer disk"
	(($(stat_of kernel_hits) > 300)) || fail "few hits"
	mkfs.ext4 -q "$inner"
	mount "$inner" within
	cp /usr/bin/qemu-img within/
	sync -f within
	for file in mnt/file mnt/inner.qcow2 "$inner" within/qemu-img; do
		expect 1 "$bpf_disk" file "$outer_id" 1 "$file" ro
		says "Too many levels"
	done
	expect 1 ublk-qcow2 detach "$outer"
	umount within
	detach "$inner"
	sound mnt/inner.qcow2
	kattach mnt/inner.qcow2
	mount "$dev" within
	cmp /usr/bin/qemu-img within/qemu-img || fail "other data"
	umount within
	detach "$dev"
	umount mnt
	detach "$outer"
	sound outer.qcow2
}

# More files than the module has slots.
case_chain() {
	local i misses
	image 0.qcow2 16M
	for i in {0..19}; do
		[ "$i" = 0 ] || image -b $((i - 1)).qcow2 -F qcow2 "$i.qcow2"
		qemu-io -c "write -q -P $((i + 1)) $((i * 256))k 256k" "$i.qcow2" || fail "qemu-io"
		head -c 256k /dev/zero | tr '\0' "\\$(printf %o $((i + 1)))"
	done >expected
	head -c 4M /dev/zero >>expected
	sha256sum {0..18}.qcow2 >sums
	reads() { cmp expected <(dd if="$dev" bs=64k count=144 iflag=direct status=none) || fail "other data"; }
	kattach 19.qcow2
	reads
	misses=$(counter misses)
	reads
	misses=$(($(counter misses) - misses))
	((misses == 4 * 4)) || fail "$misses went below, and not what 4 files without a slot hold"
	for i in {0..19}; do
		printf 'new%05d' "$i" | dd of=expected bs=4k seek=$((i * 64 + 8)) conv=notrunc,sync status=none
		dd if=expected of="$dev" bs=4k skip=$((i * 64 + 8)) seek=$((i * 64 + 8)) count=1 oflag=direct conv=notrunc status=none
	done
	reads
	reads
	detach "$dev"
	sha256sum --quiet -c sums || fail "a backing file changed"
	sound 19.qcow2
	kattach 19.qcow2
	reads
	detach "$dev"
}

# Each device goes as soon as it has done its work; the others go on.
case_several() {
	local i devs=() loads=()
	for i in 1 2 3 4 5 6; do
		image $i.qcow2 64M
		kattach $i.qcow2
		devs+=("$dev")
		verified "$dev" --size=16M --io_size=$((i * 4))M --randseed=$i & loads+=($!)
	done
	for i in 0 1 2 3 4 5; do
		wait "${loads[i]}" || fail "fio"
		dev=${devs[i]}
		(($(stat_of kernel_hits) > 10)) || fail "few hits"
		detach "$dev"
		sound $((i + 1)).qcow2
	done
}

# KiB of the kernel's that nothing can take back.
kernel_memory() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	sleep 2 # what waits for a grace period
	awk '/^(SUnreclaim|VmallocUsed|Percpu|PageTables|KernelStack):/ { n += $2 } END { print n }' /proc/meminfo
}
objects() { for what in prog map link; do bpftool -j $what list | jq length; done | tr '\n' ' '; }

case_cycles() {
	local i count=50 memory='' objects grown
	[ -z "$long" ] || count=1000
	image a.qcow2 64M
	objects=$(objects)
	for ((i = 1; i <= count; i++)); do
		kattach a.qcow2
		[ $i = 1 ] || has 0 x
		put 0 x
		has 0 x
		detach "$dev"
		[ $i != 10 ] || memory=$(kernel_memory)
		((i % 100)) || echo "$i devices, $SECONDS s"
	done
	nothing_left
	grown=$(($(kernel_memory) - memory))
	echo "$count devices, $grown KiB more after the tenth, $SECONDS s"
	# A forgotten disk alone has 60 KiB, a forgotten table 1 MiB.
	((grown < (long ? 8192 : 1536))) || fail "$grown KiB more"
	[ "$(objects)" = "$objects" ] || fail "BPF objects: $objects, now $(objects)"
	sound a.qcow2
}

unload() { until_true rmmod ublk_bpf 2>err; } # the kernel frees the programs a little later

case_module() {
	local i count=10
	[ -z "$long" ] || count=200
	image a.qcow2 64M
	for ((i = 0; i < count; i++)); do
		unload
		modprobe ublk_bpf || fail "modprobe"
		if ((i % 5 == 4)); then
			kattach a.qcow2
			put 0 a
			expect 1 rmmod ublk_bpf
			says "in use"
			has 0 a
			detach "$dev"
		fi
		((i % 20 != 19)) || echo "loaded $((i + 1)) times, $SECONDS s"
	done
	sound a.qcow2
}

# ---- the module says no ----

# A module that was built without BTF would load, and no program ever would.
case_without_btf() {
	unload
	sed 's/\x00\.BTF\x00/\x00.NO!\x00/' "$(modinfo -n ublk_bpf)" >ublk_bpf.ko
	echo "now without BTF" >/dev/kmsg
	expect 1 insmod ./ublk_bpf.ko
	says "ublk_bpf.ko"
	dmesg | sed '1,/now without BTF/d' >out
	prints "ublk_bpf: built without BTF: it needs pahole, and vmlinux in the kernel's build folder"
	[ ! -e /sys/module/ublk_bpf ] || fail "loaded"
	modprobe ublk_bpf || fail "modprobe"
}

nullb() { # NAME: a disk of this name
	mkdir "/sys/kernel/config/nullb/$1"
	echo 16 >"/sys/kernel/config/nullb/$1/size"
	echo 1 >"/sys/kernel/config/nullb/$1/memory_backed"
	echo 1 >"/sys/kernel/config/nullb/$1/power" || fail "null_blk $1"
	udevadm settle
}
no_nullb() {
	udevadm settle
	echo 0 >"/sys/kernel/config/nullb/$1/power"
	rmdir "/sys/kernel/config/nullb/$1"
}

# refused WORDS ARG...: CREATE, and nobody has the lower disk afterwards.
refused() {
	expect 1 "$bpf_disk" create "${@:2}"
	says "$1"
	is_free
}
is_free() {
	python3 -c 'import os; os.open("/dev/lower", os.O_RDWR | os.O_EXCL)' 2>err || fail "the lower disk is held"
	[ -z "$(ls /sys/block/lower/holders)" ] || fail "the lower disk has a holder"
	[ -z "$(ls -d /sys/block/ublkbpf[0-9]* /sys/kernel/debug/block/ublkbpf[0-9]* 2>/dev/null)" ] || fail "a disk was left"
}

case_create_fails() {
	nullb lower
	nullb other
	truncate -s 1M file
	for _ in 1 2 3; do
		refused "Numerical result out of range" /dev/lower 15
		refused "Numerical result out of range" /dev/lower 41
		refused "Invalid argument" /dev/lower 20 $((1 << 20))
		refused "Block device required" file 20
		"$bpf_disk" create /dev/other 20 7 >out
		udevadm settle
		expect 1 "$bpf_disk" create /dev/lower 20 7
		says "File exists"
		until_true "$bpf_disk" destroy 7 2>err
		is_free
	done
	exec 9< <(exec python3 -c 'import os, time; os.open("/dev/lower", os.O_RDWR | os.O_EXCL); print(flush=True); time.sleep(1000)')
	local holder=$!
	read -r -u 9
	expect 1 "$bpf_disk" create /dev/lower 20
	says "Device or resource busy"
	kill $holder
	exec 9<&-
	until_true is_dead $holder
	is_free
	# Somebody else has the name, so the disk cannot be added.
	no_nullb other
	nullb ublkbpf5
	expect 1 "$bpf_disk" create /dev/lower 20 5
	says "File exists"
	expect 1 "$bpf_disk" info 5
	says "No such device"
	no_nullb ublkbpf5
	is_free
	"$bpf_disk" create /dev/lower 20 5 >out
	udevadm settle
	until_true "$bpf_disk" destroy 5 2>err
	is_free
	fails_for_memory
	no_nullb lower
	unload
	modprobe ublk_bpf
}

# Where the kernel can fail an allocation of our choice (a debug kernel; CONTRIBUTING.md): each one of CREATE and SET_FILE in turn.
fails_for_memory() {
	[ -e /proc/self/fail-nth ] || return 0
	echo 0 | tee /sys/kernel/debug/{failslab,fail_page_alloc}/verbose >out
	echo N >/sys/kernel/debug/failslab/ignore-gfp-wait
	echo N >/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait
	echo 0 >/sys/kernel/debug/fail_page_alloc/min-order
	cat >nth.py <<-'PY'
		import errno, fcntl, os, struct, sys, time
		number = lambda nr, write, size: (2 | write) << 30 | size << 16 | 0xbb << 8 | nr if write else 1 << 30 | size << 16 | 0xbb << 8 | nr
		control, lower = os.open("/dev/ublk-bpf-control", os.O_RDWR), os.open("/dev/lower", os.O_RDONLY)
		file = os.open("file", os.O_RDWR | os.O_DIRECT)
		nth = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
		def call(n, nr, write, arg):
		    cmd = number(nr, write, len(arg))
		    os.pwrite(nth, b"%d" % n, 0)
		    try:
		        fcntl.ioctl(control, cmd, arg)
		        result = 0
		    except OSError as e:
		        result = e.errno
		    left = int(os.pread(nth, 20, 0).split(b"\0")[0])
		    os.pwrite(nth, b"0", 0)
		    return result, left
		def destroy():
		    while call(0, 2, 0, bytearray(struct.pack("II", 3, 0)))[0] == errno.EBUSY:
		        time.sleep(0.05)
		def every(name, nr, arg, undo):
		    n, failed = 1, 0
		    while True:
		        result, left = call(n, nr, 1, bytearray(arg))
		        # EINVAL: add_disk() does not look whether its device got a name, device_add() does.
		        if result not in (0, errno.ENOMEM) and (name, result) != ("create", errno.EINVAL):
		            sys.exit(f"{name}, allocation {n}: {os.strerror(result)}")
		        failed += result != 0
		        if result == 0:
		            undo()
		        if left:
		            break
		        n += 1
		    print(f"{name}: {n - 1} allocations, {failed} of them needed", flush=True)
		    if not failed:
		        sys.exit("nothing ever failed")
		create = struct.pack("IiIIII", 3, lower, 0, 20, 0, 0)
		every("create", 1, create, destroy)
		if call(0, 1, 1, bytearray(create))[0]:
		    sys.exit("create fails")
		set_file = lambda fd: struct.pack("IIiIII", 3, 0, fd, 0, 0, 0)
		every("file", 3, set_file(file), lambda: call(0, 3, 1, bytearray(set_file(-1))))
		destroy()
	PY
	python3 nth.py >out 2>err || fail "nth.py" # each takes a second on such a kernel
	cat out
	is_free
}

modprobe ublk_drv
modprobe ublk_bpf
modprobe loop
modprobe null_blk nr_devices=0
# All of it takes minutes: ./test long.
[ $# -gt 0 ] || [ -n "$long" ] || set -- create_fails cycles file_size_limit frozen nested no_memory truncated without_btf
run_cases "$@"
