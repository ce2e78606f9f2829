#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: stable+kernel
# timeout: 900
# takes: 50
# group: vm
# What a device could not write into its image when it went is kept, and the next attach applies it; or refuses, changes
# nothing, and still keeps it.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

kept() { ls /run/ublk-qcow2/journal.* 2>/dev/null; }

# attach, with the news that it applied what was kept.
attach_applies() {
	expect 0 ublk-qcow2 attach "$@"
	says "the changes in /run/ublk-qcow2/journal."
	dev=$(cat "$work/out")
	[ -z "$(kept)" ] || fail "still kept: $(kept)"
}

# ---- the image cannot be written when it is closed ----

disk=/dev/mapper/kept sectors=$((40 << 11))

switch() { # its first 256 KiB, header to L1 table, become: linear|error|readonly
	local rest="512 $((sectors - 512)) linear $loop 512"
	case $1 in
	linear) echo "0 $sectors linear $loop 0" ;;
	error) echo "0 512 error"; echo "$rest" ;;
	readonly) echo "0 512 flakey $loop 0 0 1 1 error_writes"; echo "$rest" ;; # and flushes fail
	esac | dmsetup load kept
	dmsetup suspend --noflush --nolockfs kept
	dmsetup resume kept
}

case_unwritable() {
	modprobe -a loop dm-flakey
	local kind before
	truncate -s $((sectors * 512)) disk
	loop=$(losetup --find --show --direct-io=on disk) || fail "no loop device"
	dmsetup create kept --table "0 $sectors linear $loop 0"
	for kind in error readonly; do
		image $disk 32M
		attach $disk
		put 0 a
		switch $kind
		put 1000 b
		expect 1 ublk-qcow2 detach "$dev"
		one_error
		says "$disk: "
		says "; its image lacks the last changes: they are in $(kept), and the next attach applies them"
		[ ! -e "$dev" ] || fail "$dev is still there"
		expect 1 ublk-qcow2 attach $disk
		one_error
		switch linear
		before=$(sum "$(kept)")
		for option in --read-only --repair=leaks; do
			expect 1 ublk-qcow2 attach $option $disk
			one_error
			says "$disk: lacks changes that are kept in $(kept): attach it without ${option%=*} first"
		done
		expect 1 ublk-qcow2 check --repair=all $disk
		one_error
		says "$disk: lacks changes that are in $(kept): apply them first, with \`ublk-qcow2 attach\`"
		[ "$(sum "$(kept)")" = "$before" ] || fail "the journal changed"
		attach_applies $disk
		has 0 a
		has 1000 b
		# it is the journal of the new device from now on
		put 2000 c
		kill_both
		expect 0 ublk-qcow2 recover "$dev"
		has 2000 c
		detach "$dev"
		nothing_left
		sound $disk
		udevadm settle
	done
	dmsetup remove --retry kept
	losetup -d "$loop"
}

# ---- the image was not to be found when its device had to go ----

# Leaves a.qcow2 without its last changes: `a` at 0 is one of them.
give_up() {
	image a.qcow2 64M
	attach a.qcow2
	put 0 a
	kill_both
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	says "a.qcow2: the processes of $dev died with changes that it lacks: \`ublk-qcow2 recover $dev\` or detach that first"
	expect 1 ublk-qcow2 check --repair=leaks a.qcow2
	one_error
	says "apply them first, with \`ublk-qcow2 recover\`"
	mv a.qcow2 away
	expect 0 ublk-qcow2 detach --force "$dev"
	says "$dev: removed; its image lacks the last changes: they are in $(kept), and the next attach applies them"
	mv away a.qcow2
}

# The disk in the kernel has the image open, wherever its name went: nothing has to be kept.
held_by_the_kernel() {
	image a.qcow2 64M
	attach a.qcow2
	put 0 a
	kill_both
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	expect 1 ublk-qcow2 check --repair=leaks a.qcow2
	one_error
	says "is locked"
	mv a.qcow2 away
	detach "$dev"
	[ -z "$(kept)" ] || fail "kept: $(kept)"
	nothing_left
	sound away
	attach away
	has 0 a
	detach "$dev"
}

case_forced() {
	local first
	if [ "$engine" = kernel ]; then held_by_the_kernel; return; fi
	give_up
	first=$dev
	# another image has nothing to do with it, not even as the next device of that number
	image b.qcow2 64M
	attach b.qcow2
	[ "$dev" = "$first" ] || fail "not the same number"
	put 0 b
	detach "$dev"
	[ -n "$(kept)" ] || fail "it is gone"
	attach_applies a.qcow2
	has 0 a
	detach "$dev"
	nothing_left
	sound a.qcow2
	sound b.qcow2
}

# Somebody wrote the image meanwhile: refused, nothing changed, still kept; without the file all is forgotten.
case_changed() {
	local before
	if [ "$engine" = kernel ]; then return; fi # nobody can
	give_up
	qemu-io -c 'write -P 1 32M 64k' -c 'write -P 2 0 64k' a.qcow2 >out || fail "qemu-io"
	before=$(sum a.qcow2)
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	says "changed by somebody else"
	says "(changes that it lacks are kept in $(kept); without that file they are lost)"
	[ "$(sum a.qcow2)" = "$before" ] || fail "the image changed"
	[ ! -e "$dev" ] || fail "$dev is left behind"
	rm "$(kept)"
	attach a.qcow2
	has 0 '\002'
	detach "$dev"
	nothing_left
	sound a.qcow2
}

run_cases "$@"
