#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: stable+server
# timeout: 900
# takes: 120
# group: vm
# The processes of a device end while it is at work, in every way they can. Killed, they are brought back and clients only
# wait; asked to end, they end in order; a device in use is not taken away.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

acked_at=192 # MiB: above is the acknowledging writer's, below is fio's

# Random reads and writes until stopped or refused; sets $load.
load() { # FIO-OPTION...
	fio --name=load --filename="$dev" --size=${acked_at}M --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bs=4k-64k \
		--time_based --runtime=900 --norandommap --randrepeat=1 --allow_file_create=0 "$@" >"$work/fio" 2>&1 & load=$!
}

# Writes one block after another and flushes each; $work/acked names those that were. Sets $acker.
acknowledge() {
	(
		exec 2>/dev/null
		for ((i = 0; i < 4096; i++)); do
			block $i | dd of="$dev" bs=4k count=1 seek=$((acked_at * 256 + i)) iflag=fullblock oflag=direct conv=notrunc,nocreat,fsync \
				status=none || exit 1
			echo $i >>"$work/acked"
		done
	) & acker=$!
}

block() { printf '%04096d' "$1"; }

# What was acknowledged is in the device.
acked_is_there() {
	local i n
	n=$(wc -l <"$work/acked")
	dd if="$dev" bs=4k skip=$((acked_at * 256)) count="$n" iflag=direct status=none >"$work/got" || fail "unreadable"
	for ((i = 0; i < n; i++)); do block $i; done | cmp - "$work/got" || fail "one of $n acknowledged writes is lost"
}

reads_done() { awk '{print $1}' "/sys/block/${dev#/dev/}/stat"; }

# Both are at work: fio reads, the other one does not.
busy() {
	: >"$work/acked"
	load
	acknowledge
	for _ in {1..300}; do
		if [ "$(wc -l <"$work/acked")" -ge 8 ] && [ "$(reads_done)" -ge 50 ]; then return 0; fi
		sleep 0.1
	done
	fail "nothing happens"
}

# They end by themselves, with an error, soon.
both_fail() {
	local i
	for ((i = 0; i < 300; i++)); do
		[ -d "/proc/$load" ] || [ -d "/proc/$acker" ] || break
		sleep 0.1
	done
	[ $i -lt 300 ] || fail "a client hangs"
	! wait "$load" || fail "fio noticed nothing"
	! wait "$acker" || fail "the writer noticed nothing"
}

ended() { # PID
	for _ in {1..300}; do
		[ -d "/proc/$1" ] || return 0
		sleep 0.1
	done
	fail "process $1 does not end"
}

# Clients that waited go on, without an error; then they are told to end.
both_go_on() {
	local n
	n=$(wc -l <"$work/acked")
	until_true more_acked "$n"
	[ -d "/proc/$load" ] || fail "fio ended: $(tail -n 5 "$work/fio")"
	[ -d "/proc/$acker" ] || fail "the writer ended"
	kill "$acker"
	kill -INT "$load"
	wait "$acker" || true
	wait "$load" || true
	! grep -q -i "error=" "$work/fio" || fail "fio: $(tail -n 5 "$work/fio")"
}
more_acked() { [ "$(wc -l <"$work/acked")" -gt $(($1 + 3)) ]; }

survives() { # IMAGE: works as if nothing had been
	attach "$1"
	acked_is_there
	block 7 | dd of="$dev" bs=4k count=1 iflag=fullblock oflag=direct conv=notrunc,fsync status=none || fail "unwritable"
	detach "$dev"
	clean "$1"
}

case_killed() {
	image a.qcow2 256M
	attach a.qcow2
	busy
	kill_both
	is_state failed || fail "not failed"
	expect 0 ublk-qcow2 recover "$dev"
	both_go_on
	acked_is_there
	detach "$dev"
	nothing_left
	sound a.qcow2
	survives a.qcow2
}

# Somebody wants to remove it then, but clients still wait for it: refused, and nothing is lost by that.
case_killed_and_detached() {
	image -o cluster_size=4k b.qcow2 256M
	attach b.qcow2
	busy
	kill_both
	expect 1 ublk-qcow2 detach "$dev"
	one_error
	says "$dev: is in use: "
	expect 0 ublk-qcow2 recover "$dev"
	both_go_on
	detach "$dev"
	nothing_left
	sound b.qcow2
	survives b.qcow2
}

# A file system on it waits, and lacks nothing afterwards, synced or not.
case_killed_below_a_file_system() {
	local waiter
	image c.qcow2 256M
	attach c.qcow2
	mkfs.ext4 -q "$dev"
	mkdir mnt
	mount "$dev" mnt
	seq 1 100000 >mnt/kept
	sync -f mnt
	seq 1 200000 >mnt/written
	kill_both
	dd if=/dev/zero of=mnt/waits bs=64k count=1 conv=fsync 2>"$work/dd" & waiter=$!
	sleep 0.5
	[ -d "/proc/$waiter" ] || fail "a sync did not wait"
	expect 0 ublk-qcow2 recover "$dev"
	wait $waiter || fail "dd: $(cat "$work/dd")"
	umount mnt
	detach "$dev"
	sound c.qcow2
	attach c.qcow2
	e2fsck -fp "$dev" >"$work/out" 2>"$work/err" || fail "e2fsck -fp"
	mount "$dev" mnt
	cmp mnt/kept <(seq 1 100000) || fail "a synced file differs"
	cmp mnt/written <(seq 1 200000) || fail "a file differs"
	umount mnt
	detach "$dev"
	clean c.qcow2
}

# Asked to end (a service manager would), they do: no new requests, everything written back, no leaks.
case_terminated() {
	local who pid
	for who in supervisor_pid pid; do
		image $who.qcow2 256M
		attach $who.qcow2
		busy
		pid=$(member $who)
		kill -TERM "$pid"
		ended "$pid"
		both_fail
		until_true gone
		sound $who.qcow2
		survives $who.qcow2
	done
}
gone() { ! everything >"$work/left"; }

# Detach does not take a device from its users, and they do not notice that somebody tried.
case_in_use() {
	local reader
	image e.qcow2 256M
	attach e.qcow2
	load --rw=randread --rate_iops=20 # until it is killed: the other one may be faster than three refusals
	reader=$load
	load --runtime=4 --rw=randwrite --verify=crc32c --verify_fatal=1 --norandommap=0 --time_based=0 --size=96M
	for _ in {1..100}; do
		[ "$(awk '{print $5}' "/sys/block/${dev#/dev/}/stat")" -lt 20 ] || break
		sleep 0.1
	done
	for _ in 1 2 3; do
		expect 1 ublk-qcow2 detach "$dev"
		one_error
		says "$dev: is in use: "
		says "opened by fio"
		expect 1 ublk-qcow2 detach --all
	done
	wait "$load" || fail "fio: $(tail -n 5 "$work/fio")"
	kill "$reader"
	wait "$reader" || true
	detach "$dev"
	clean e.qcow2
}

# Each time a little is written, and at once it goes: what the last ones wrote is there for the next.
case_again_and_again() {
	local i
	image -o cluster_size=4k f.qcow2 256M
	: >"$work/acked"
	for ((i = 0; i < 12; i++)); do
		attach --queues=$((1 + i % 2)) f.qcow2
		block $i | dd of="$dev" bs=4k count=1 seek=$((acked_at * 256 + i)) iflag=fullblock oflag=direct conv=notrunc status=none
		echo $i >>"$work/acked"
		acked_is_there
		detach "$dev"
	done
	clean f.qcow2
	survives f.qcow2
}

run_cases "$@"
