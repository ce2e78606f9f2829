#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 1200
# takes: 240
# group: vm long
# vm: --mem=512M
# A guest with little memory: swap space on the device, and more dirty pages than memory holds, over an empty image and over
# an overlay. Nothing hangs, nothing is lost, none of our processes is killed or paged out, and an idle device is small.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

processes() { member pid; member supervisor_pid; }

# What the device may need is in memory and stays there (a BPF map does, without a lock: engine kernel's table); no allocation of a thread that does I/O waits for I/O.
is_locked() {
	local pid task flags
	for pid in $(processes); do
		awk '/^VmSwap:/ && $2 { exit 1 }' "/proc/$pid/status" || fail "$pid is swapped out"
		awk '/^[0-9a-f]+-/ { map = /anon_inode:bpf-map/ } /^(Pss|Locked):/ && !map { v[$1] += $2 }
			END { exit v["Pss:"] > v["Locked:"] + 256 }' "/proc/$pid/smaps" ||
			fail "$pid: not locked: $(grep -E '^(Pss|Locked)' "/proc/$pid/smaps_rollup" | tr '\n' ' ')"
		[ "$(cat "/proc/$pid/oom_score_adj")" -le -900 ] || fail "$pid: oom_score_adj"
		for task in "/proc/$pid/task/"*; do # io_uring's threads, too
			flags=$(sed 's/.*) //' "$task/stat" 2>/dev/null | cut -d ' ' -f 7)
			((!${#flags} || (flags & 0x80000))) || fail "$(cat "$task/comm"): no PF_MEMALLOC_NOIO"
		done
	done
}

# Whether the threads of both processes have SCHED_RR (2), or SCHED_OTHER; those that fill memory ahead are SCHED_BATCH (3).
are_urgent() { # yes|no
	local pid task policy
	for pid in $(processes); do
		for task in "/proc/$pid/task/"*; do
			policy=$(sed 's/.*) //' "$task/stat" 2>/dev/null | cut -d ' ' -f 39)
			case $1:$(cat "$task/comm" 2>/dev/null):${policy:-gone} in
			*:memory:3 | yes:*:2 | no:*:0 | *:gone) ;;
			*) return 1 ;;
			esac
		done
	done
}

# MiB that can be had without swapping.
available() { awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo; }

# Two processes that write and read more memory than there is.
hogs() { # MIB: of each
	cat >"$work/hog.py" <<-'PY'
		import mmap, os, sys
		pages, seed = int(sys.argv[1]) << 8, os.urandom(4064)
		mem = mmap.mmap(-1, pages << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
		page = lambda turn, i: b"%16x%16x" % (turn, i) + seed
		for turn in range(2):
		    for i in range(pages):
		        if turn and mem[i << 12:(i + 1) << 12] != page(turn - 1, i):
		            sys.exit(f"page {i} in turn {turn}: another content")
		        mem[i << 12:(i + 1) << 12] = page(turn, i)
	PY
	local pids=() pid
	for _ in 1 2; do
		python3 "$work/hog.py" "$1" >>"$work/out" 2>&1 &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid" || fail "a process got another status than 0: $?"
	done
}

calm() { # IMAGE: at the end
	local killed
	killed=$(dmesg | grep -E 'oom-kill|Out of memory|blocked for more than') && fail "$killed"
	detach "$dev"
	clean "$1"
	expect 0 ublk-qcow2 check "$1"
	prints "No errors were found on the image."
}

hits() {
	expect 0 ublk-qcow2 stats "$dev" --json
	jq .hits "$work/out"
}

# Whether a mapped read is a hit; udev may read as well.
reads_hit() { # yes|no
	local before more
	expect 0 dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct
	before=$(hits)
	expect 0 dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct
	more=$(($(hits) - before))
	if [ "$1" = yes ]; then ((more > 0)); else ((more == 0)); fi
}

swap_on() { # IMAGE
	local before
	attach "$1"
	expect 0 mkswap "$dev"
	reads_hit yes || fail "no hits"
	expect 0 swapon --discard "$dev"
	until_true are_urgent yes
	if [ "$engine" = kernel ]; then until_true reads_hit no; fi # they would be served by whoever comes by
	before=$(hits)
	hogs $((($(available) + 120) / 2))
	[ "$engine" = server ] || [ "$(hits)" = "$before" ] || fail "hits in the kernel: $before, now $(hits)"
	grep -q "^$dev " /proc/swaps || fail "no swap space"
	is_locked
	are_urgent yes || fail "not all are urgent any more"
	expect 0 swapoff "$dev"
	until_true are_urgent no
	until_true reads_hit yes
	expect 0 ublk-qcow2 stats "$dev" --json
	json '.writes > 1000 and .misses > 100'
	calm "$1"
}

storm_on() { # IMAGE
	local mib=$(($(available) + 100)) i
	attach "$1"
	expect 0 mkfs.ext4 -q -F "$dev"
	mkdir -p mnt
	mount "$dev" mnt || fail "mount"
	head -c 4M /dev/urandom >seed
	for ((i = 0; i < mib; i += 4)); do
		{ echo $i; cat seed; } >"mnt/$i" || fail "write"
	done
	sync -f mnt || fail "sync"
	is_locked
	echo 3 >/proc/sys/vm/drop_caches
	for ((i = 0; i < mib; i += 4)); do
		{ echo $i; cat seed; } | cmp - "mnt/$i" || fail "mnt/$i: another content"
	done
	umount mnt || fail "umount"
	calm "$1"
}

backed() { # IMAGE MIB
	local at writes=()
	image base.qcow2 "$2M"
	for ((at = 0; at < $2; at += 20)); do writes+=(-c "write -q -P 97 ${at}M 20M"); done
	qemu-io "${writes[@]}" base.qcow2 >out || fail "qemu-io"
	image -b base.qcow2 -F qcow2 "$1"
}

case_idle() {
	local pid sum=0
	image a.qcow2 1T
	attach a.qcow2
	for pid in $(processes); do
		# shellcheck disable=SC2046
		set -- $(awk '/^Pss_(Anon|Shmem):/ { print $2 }' "/proc/$pid/smaps_rollup")
		echo "$pid: Pss_Anon $1 KiB, Pss_Shmem (journal) $2 KiB"
		((sum += $1 + $2))
	done
	[ "$engine" = kernel ] || ((sum -= 1024)) # the mapping table; a BPF map is not among these
	# 4 MiB are the aim. Measured: 4136
	((sum <= 4352)) || fail "$sum KiB for an idle device"
	is_locked
	calm a.qcow2
}

# Room in /run is taken when the device is attached: later it would be a signal.
case_run_is_full() {
	image a.qcow2 64M
	mkdir run
	mount -t tmpfs -o size=1M tmpfs run || fail "mount"
	expect 1 env UBLK_QCOW2_RUNDIR="$work/run" ublk-qcow2 attach a.qcow2
	one_error
	says "No space left on device"
	umount run
}

case_swap() {
	image a.qcow2 1G
	swap_on a.qcow2
}

# Swap space that is ours, or not.
ours() {
	until_true are_urgent yes
	[ "$engine" = server ] || until_true reads_hit no
}
not_ours() { # of engine kernel the hits too
	sleep 0.5
	are_urgent no || fail "urgent for the swap space of another disk"
	reads_hit yes || fail "no hits for the swap space of another disk"
}

swap_file() { # PATH
	touch "$1"
	chattr +C "$1" 2>err || true # btrfs wants that
	dd if=/dev/zero of="$1" bs=1M count=32 status=none || fail "dd"
	chmod 600 "$1"
	expect 0 mkswap "$1"
}

# Which swap space is ours: not somebody else's, but that on a volume, in a partition or in a file on the device.
case_whose_swap() {
	local n loop type
	image a.qcow2 320M
	attach a.qcow2
	modprobe null_blk nr_devices=1 gb=1 memory_backed=1 || fail "null_blk"
	expect 0 mkswap /dev/nullb0
	expect 0 swapon /dev/nullb0
	not_ours
	modprobe loop
	truncate -s 32M loop.raw
	loop=$(losetup --find --show loop.raw) || fail "losetup"
	expect 0 mkswap "$loop"
	expect 0 swapon "$loop"
	not_ours
	expect 0 swapoff "$loop"
	losetup -d "$loop"
	printf 'label: gpt\n,64M\n,,\n' | sfdisk -q "$dev" >out 2>&1 || fail "sfdisk: $(cat out)"
	udevadm settle
	expect 0 mkswap "$dev"p1
	expect 0 swapon "$dev"p1
	ours
	expect 0 swapoff "$dev"p1
	until_true are_urgent no
	n=$(blockdev --getsz "$dev"p2)
	dmsetup create vol --table "0 $n linear ${dev}p2 0" || fail "dmsetup"
	mkdir -p mnt
	for type in btrfs ext4; do # the last one stays
		modprobe $type
		wipefs -q -a /dev/mapper/vol
		expect 0 mkfs.$type -q /dev/mapper/vol
		mount /dev/mapper/vol mnt || fail "mount"
		swap_file "mnt/a file"
		loop=$(losetup --find --show "mnt/a file") || fail "losetup"
		expect 0 mkswap "$loop"
		expect 0 swapon "$loop"
		ours
		expect 0 swapoff "$loop"
		losetup -d "$loop"
		until_true are_urgent no
		expect 0 swapon "mnt/a file"
		ours
		if [ $type = btrfs ]; then
			expect 0 swapoff "mnt/a file"
			umount mnt || fail "umount"
		fi
	done
	kill -9 "$(member pid)"
	until_true is_state live
	are_urgent yes || fail "the next worker is not urgent"
	[ "$engine" = server ] || reads_hit no || fail "the next worker publishes"
	kill_both
	expect 0 ublk-qcow2 recover "$dev"
	until_true is_state live
	are_urgent yes || fail "recovered, and not urgent"
	[ "$engine" = server ] || reads_hit no || fail "recovered, and publishes"
	expect 0 swapoff -a
	until_true are_urgent no
	umount mnt
	dmsetup remove vol
	rmmod null_blk
	calm a.qcow2
}

case_swap_on_overlay() {
	backed a.qcow2 600
	swap_on a.qcow2
}

case_storm() {
	echo 90 >/proc/sys/vm/dirty_ratio
	echo 80 >/proc/sys/vm/dirty_background_ratio
	image a.qcow2 2G
	storm_on a.qcow2
}

case_storm_on_overlay() {
	backed a.qcow2 700
	storm_on a.qcow2
}

# With the swap space's worker dead: nothing that the supervisor needs may have to come from there.
case_killed() {
	local pid
	image a.qcow2 1G
	attach a.qcow2
	expect 0 mkswap "$dev"
	expect 0 swapon "$dev"
	pid=$(member pid)
	(sleep 3; kill -9 "$pid") &
	hogs $((($(available) + 120) / 2))
	wait
	until_true is_state live
	[ "$(member pid)" != "$pid" ] || fail "it was not killed"
	is_locked
	expect 0 swapoff "$dev"
	calm a.qcow2
}

# Most of it takes minutes each: ./test long.
[ $# -gt 0 ] || [ "${TEST_SCALE:-}" = long ] || set -- idle run_is_full whose_swap swap
run_cases "$@"
