#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 600
# group: vm
# Space reserved behind the end of a growing image: not before anything grows, bounded, given back by detach and
# restart, harmless when the processes are killed, nowhere but on ext4, and not when the host is nearly full.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

mib=$((1 << 20))
size() { stat -c %s "$1"; }
used() { qemu-img check --output=json "$1" | jq '."image-end-offset"'; }
longer() { [ "$(size "$1")" -gt "$2" ]; }

sound() {
	clean "$1"
	expect 0 ublk-qcow2 check "$1"
	prints "No errors were found on the image."
}

# put AT-MIB COUNT-MIB: a MiB is its own number over and over.
put() {
	for ((i = $1; i < $1 + $2; i++)); do yes $i | head -c $mib; done |
		dd of="$dev" bs=1M seek="$1" oflag=direct iflag=fullblock conv=notrunc status=none || fail "write to $dev"
}
holds() {
	for ((i = $1; i < $1 + $2; i++)); do yes $i | head -c $mib; done |
		cmp - <(dd if="$dev" bs=1M skip="$1" count="$2" iflag=direct status=none) || fail "[$1, +$2) MiB differs"
}
# cut_at_end IMAGE: nothing is left behind its last cluster
cut_at_end() { [ "$(size "$1")" -le "$(used "$1")" ] || fail "$(size "$1") bytes, $(used "$1") are used"; }

case_detach_gives_back() {
	local before
	image a.qcow2 256M
	before=$(size a.qcow2)
	attach a.qcow2
	dd if="$dev" of=/dev/null bs=1M count=4 iflag=direct status=none
	[ "$(size a.qcow2)" = "$before" ] || fail "a reader reserved something"
	put 0 1
	put 1 1
	until_true longer a.qcow2 $((3 * mib)) # 2 MiB and some metadata are used
	put 50 60
	until_true longer a.qcow2 $((65 * mib))
	[ "$(size a.qcow2)" -lt $((63 * mib + 16 * mib)) ] || fail "too far ahead: $(size a.qcow2)"
	expect 0 ublk-qcow2 restart "$dev"
	[ "$(size a.qcow2)" -lt $((63 * mib)) ] || fail "kept at restart: $(size a.qcow2)"
	put 200 4
	holds 0 1
	holds 50 60
	detach "$dev"
	cut_at_end a.qcow2
	sound a.qcow2
	attach --read-only a.qcow2
	holds 0 1
	holds 50 60
	holds 200 4
	detach "$dev"
}

case_killed() {
	local after
	image a.qcow2 256M
	attach a.qcow2
	put 0 40
	sync "$dev"
	until_true longer a.qcow2 $((44 * mib))
	kill_both
	after=$(size a.qcow2)
	[ "$after" -gt "$(used a.qcow2)" ] || fail "nothing was reserved"
	sound a.qcow2 # a longer file is no error
	expect 0 ublk-qcow2 recover "$dev"
	holds 0 40
	put 60 2 # goes where the space was reserved
	[ "$(size a.qcow2)" = "$after" ] || fail "reserved once more"
	holds 60 2
	detach "$dev"
	sound a.qcow2
}

case_other_hosts() {
	local before
	mkdir xfs shm
	truncate -s 320M xfs.img
	mkfs.xfs -q xfs.img
	mount -o loop xfs.img xfs
	mount -t tmpfs none shm
	for host in xfs shm; do
		image $host/a.qcow2 64M
		attach $host/a.qcow2
		put 0 8
		holds 0 8
		sync "$dev"
		[ "$(size $host/a.qcow2)" -lt $((9 * mib)) ] || fail "reserved on $host: $(size $host/a.qcow2)"
		detach "$dev"
		sound $host/a.qcow2
	done
	umount xfs shm
}

case_nearly_full() {
	mkdir host
	truncate -s 128M host.img
	mkfs.ext4 -q -m 0 host.img
	mount -o loop host.img host
	fallocate -l $(($(df --output=avail -B1 host | tail -n 1) - 12 * mib)) host/filler
	image host/a.qcow2 64M
	attach host/a.qcow2
	put 0 4
	sync "$dev"
	[ "$(size host/a.qcow2)" -lt $((5 * mib)) ] || fail "reserved the last space: $(size host/a.qcow2)"
	rm host/filler
	for at in 10 11 12 13; do put $at 1; done
	until_true longer host/a.qcow2 $((9 * mib))
	holds 0 4
	holds 10 4
	detach "$dev"
	cut_at_end host/a.qcow2
	sound host/a.qcow2
	umount host
}

run_cases "$@"
