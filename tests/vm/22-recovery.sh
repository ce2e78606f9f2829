#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 3600
# takes: 400
# group: vm long
# A killed worker, with and without its supervisor, is not a power cut: the device stays, no client sees an error, what
# was written is there, flushed or not, and the image ends without leaks.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

# In each of the two guests of ./test.
kills=5
restarts=8 # before they left their rings open, one in 15 lost a request for ever (6.12)
recoveries=5
[ "${TEST_SCALE:-default}" != long ] || kills=200 restarts=60 recoveries=100

is_unlocked() { qemu-img info "$1" >/dev/null 2>&1; }

# The worker, though it may not serve yet.
any_worker() { pgrep -f '^ublk-qcow2 worker '; }

pss() { awk '/^Pss_Anon:/ { print $2 }' "/proc/$1/smaps_rollup"; }

is_small() { (($(pss "$1") + $(pss "$2") < 4096)); } # for an idle device

case_idle() {
	local first
	image a.qcow2 64M
	attach a.qcow2
	put 0 a
	put 1000 b
	# 6.12 looks only that often whether a process died that had all tags of a queue
	[ "$(cat "$(lower_sys)/queue/io_timeout")" = 1000 ] || fail "a long timeout"
	first=$(member pid)
	echo "Pss_Anon of worker and supervisor, KiB: $(pss "$first") $(pss "$(member supervisor_pid)")"
	until_true is_small "$first" "$(member supervisor_pid)" # what requests had goes back after a second
	kill -9 "$first"
	has 0 a
	has 1000 b
	until_true is_state live
	[ "$(member pid)" != "$first" ] || fail "the same process"
	expect 0 ublk-qcow2 stats "$dev" --json
	json '.daemon_restarts == 1'
	# the next one dies while it comes up
	for _ in 2 3; do
		kill -9 "$(any_worker)"
		until_true any_worker >pids
		kill -9 "$(cat pids)"
		until_true is_state live
	done
	has 1000 b
	expect 0 ublk-qcow2 recover "$dev"
	silent
	detach "$dev"
	nothing_left
	sound a.qcow2
}

case_read_only() {
	image base.qcow2 64M
	qemu-io -c 'write -P 97 0 1M' base.qcow2 >out
	image -b base.qcow2 -F qcow2 a.qcow2
	attach --read-only a.qcow2
	kill -9 "$(member pid)"
	has 0 a
	[ ! -e "$(rundir)/journal" ] || fail "a journal"
	until_true is_state live
	# the locks never went away: nobody could write meanwhile
	expect 1 qemu-io -c 'write 0 64k' base.qcow2
	detach "$dev"
}

case_both() {
	image a.qcow2 64M
	attach --queues=2 --depth=8 --discard=ignore a.qcow2
	put 0 a
	sync "$dev"
	put 1000 b
	put 0 c
	kill_both
	is_state failed || fail "not failed"
	expect 0 ublk-qcow2 recover "$dev"
	silent
	has 0 c
	has 1000 b
	expect 0 ublk-qcow2 list --json
	json '.[0].state == "live" and .[0].queues == 2 and .[0].depth == 8'
	jq -e '.options.discard == "ignore"' "$(rundir)/state" >out || fail "an option is lost"
	put 2000 d
	kill_both
	expect 0 ublk-qcow2 recover --all
	has 2000 d
	# detach alone does it, too: nothing is lost
	put 3000 e
	kill_both
	detach a.qcow2
	nothing_left
	sound a.qcow2
	[ "$(qemu-io -r -c 'read -P 99 0 4k' -c 'read -P 100 2000k 4k' -c 'read -P 101 3000k 4k' a.qcow2 | grep -c '^read 4096')" = 3 ] ||
		fail "data is not in the image"
}

# The next worker is what is installed now; if that does not work, what runs goes on.
case_restart() {
	local program=$work/bin/ublk-qcow2 first
	mkdir bin
	cp "$(command -v ublk-qcow2)" bin/
	image a.qcow2 64M
	expect 0 "$program" attach a.qcow2
	dev=$(cat out)
	put 0 a
	first=$(member pid)
	cp bin/ublk-qcow2 bin/new
	mv bin/new bin/ublk-qcow2
	[ "$(readlink "/proc/$first/exe")" != "$program" ] || fail "it runs the new one already"
	expect 0 ublk-qcow2 restart "$dev"
	silent
	is_state live || fail "not live"
	[ "$(readlink "/proc/$(member pid)/exe")" = "$program" ] || fail "not the new one: $(readlink "/proc/$(member pid)/exe")"
	put 1000 b
	printf '#!/bin/false\n' >bin/new
	chmod +x bin/new
	mv bin/new bin/ublk-qcow2
	expect 1 ublk-qcow2 restart "$dev"
	one_error
	says "$dev: the device process ended with status 1"
	is_state live || fail "not live"
	rm bin/ublk-qcow2
	expect 0 ublk-qcow2 restart "$dev"
	has 0 a
	has 1000 b
	detach "$dev"
	nothing_left
	sound a.qcow2
}

# The supervisor alone dies: the worker serves on, and detaches.
case_supervisor() {
	local supervisor worker
	image a.qcow2 64M
	attach a.qcow2
	supervisor=$(member supervisor_pid)
	kill -9 "$supervisor"
	until_true is_dead "$supervisor"
	put 0 a
	until_true is_state live
	[ "$(member supervisor_pid)" = null ] || fail "a dead supervisor"
	worker=$(member pid)
	expect 0 ublk-qcow2 restart "$dev"
	silent
	is_dead "$worker" || fail "the same worker"
	is_state live || fail "not live"
	has 0 a
	supervisor=$(member supervisor_pid)
	[ "$supervisor" != null ] || fail "no supervisor"
	put 1000 b
	kill -9 "$supervisor"
	until_true is_dead "$supervisor"
	until_true is_state live
	kill -9 "$(member pid)"
	until_true is_state failed
	expect 0 ublk-qcow2 recover "$dev"
	has 0 a
	has 1000 b
	[ "$(member supervisor_pid)" != null ] || fail "no supervisor"
	kill -9 "$(member supervisor_pid)"
	sleep 0.5
	detach "$dev"
	nothing_left
	sound a.qcow2
}

# The disk in the kernel has the image open as long as hits may write to it: nobody else can, nor hide it from its device.
held_by_the_kernel() {
	image a.qcow2 64M
	attach a.qcow2
	put 0 a
	kill_both
	expect 1 qemu-io -c 'write 0 64k' a.qcow2
	says 'lock'
	mv a.qcow2 b.qcow2
	image a.qcow2 64M
	expect 0 ublk-qcow2 recover "$dev"
	silent
	has 0 a
	put 1000 b
	kill_both
	expect 1 qemu-io -c 'write 0 64k' b.qcow2
	says 'lock'
	detach "$dev"
	nothing_left
	sound a.qcow2
	sound b.qcow2
	[ "$(qemu-io -r -c 'read -P 97 0 4k' -c 'read -P 98 1000k 4k' b.qcow2 | grep -c '^read 4096')" = 2 ] || fail "data is not in the image"
}

# Somebody changed the image while nobody held its locks: its journal is refused, and kept.
case_changed_behind() {
	local dir first
	if [ "$engine" = kernel ]; then held_by_the_kernel; return; fi
	image a.qcow2 64M
	image b.qcow2 64M
	attach a.qcow2
	first=$dev
	dir=$(rundir)
	put 0 a
	kill_both
	until_true is_unlocked a.qcow2
	qemu-io -c 'write -P 1 32M 64k' -c 'write -P 2 0 64k' a.qcow2 >out || fail "qemu-io"
	sum a.qcow2 >before
	expect 1 ublk-qcow2 recover "$dev"
	one_error
	says "a.qcow2"
	expect 1 ublk-qcow2 detach "$dev"
	one_error
	says "detach --force"
	[ -e "$dir/journal" ] || fail "the journal is gone"
	[ "$(sum a.qcow2)" = "$(cat before)" ] || fail "the image changed"
	# a new L2 entry beside those that the journal knows, for the cluster that it has given away: only the time tells
	attach b.qcow2
	put 0 a
	kill_both
	sleep 3
	qemu-io -c 'write -P 1 32M 64k' b.qcow2 >out || fail "qemu-io"
	expect 1 ublk-qcow2 recover "$dev"
	one_error
	says "b.qcow2: was changed by somebody else after its process had died"
	expect 0 ublk-qcow2 detach --force "$dev"
	sound b.qcow2
	rm /run/ublk-qcow2/journal.* b.qcow2 || fail "no journal was kept"
	dev=$first
	# another file under that name is not the image
	mv a.qcow2 b.qcow2
	image a.qcow2 64M
	expect 1 ublk-qcow2 recover "$dev"
	says "is not the file that was attached"
	expect 0 ublk-qcow2 detach --force "$dev"
	says "$dev: removed; its image lacks the last changes: they are in /run/ublk-qcow2/journal."
	rm /run/ublk-qcow2/journal.* || fail "no journal was kept"
	nothing_left
	sound a.qcow2
	sound b.qcow2
}

# Workers that die at any instant of their recovery: 6.12 wants to be handled with care by the next one.
case_recovering() {
	local i writer
	image a.qcow2 64M
	attach --queues=2 --depth=16 a.qcow2
	for ((i = 0; i < recoveries; i++)); do
		until_true is_state live
		put $((i * 4)) a & writer=$!
		kill -9 "$(member pid)"
		for _ in 1 2 3; do
			until any_worker >pids; do sleep 0.003; done
			sleep "0.$(printf %03d $((RANDOM % 120)))"
			kill -9 "$(cat pids)" 2>/dev/null
		done
		wait $writer || fail "an error"
	done
	until_true is_state live
	for ((i = 0; i < recoveries; i++)); do has $((i * 4)) a; done
	detach "$dev"
	nothing_left
	sound a.qcow2
}

# Workers that die again and again: the supervisor gives up until it is told to try again.
case_failed() {
	image a.qcow2 64M
	attach a.qcow2
	put 0 a
	mv /dev/ublk-control /dev/away
	kill -9 "$(member pid)"
	until_true is_state failed
	[ "$(member supervisor_pid)" != null ] || fail "no supervisor"
	[ "$(member pid)" = null ] || fail "a worker"
	expect 1 qemu-io -c 'write 0 64k' a.qcow2 # it has the locks
	expect 1 ublk-qcow2 recover "$dev"
	one_error
	says "/dev/ublk-control: cannot open"
	is_state failed || fail "not failed"
	mv /dev/away /dev/ublk-control
	expect 0 ublk-qcow2 recover "$dev"
	has 0 a
	detach "$dev"
	sound a.qcow2
}

# Another worker than PID serves.
is_replaced() {
	local now
	now=$(member pid)
	[ "$now" != null ] && [ "$now" != "$1" ]
}

# The dead worker's write is still on its way to the disk: nobody may overtake it.
case_late_write() {
	local loop start at writer old
	truncate -s 256M disk
	modprobe loop
	loop=$(losetup --find --show disk) || fail "no loop device"
	mkfs.ext4 -q "$loop"
	mkdir mnt
	mount "$loop" mnt
	qemu-img create -q -f qcow2 -o preallocation=full mnt/full.qcow2 32M
	image mnt/empty.qcow2 32M
	image mnt/table.qcow2 32M
	umount mnt
	dmsetup create slow --table "0 $(blockdev --getsz "$loop") delay $loop 0 0 $loop 0 2000" || fail "no dm-delay"
	mount /dev/mapper/slow mnt
	for at in full empty table; do
		attach --queues=1 mnt/$at.qcow2
		[ $at != full ] || has 0 '\0' # its mapping is known: the queue's ring writes, else the metadata ring
		[ $at != table ] || put 64 t
		if [ $at = table ]; then sync "$dev" & else put 0 o & fi # the L2 table itself is on its way
		writer=$!
		sleep 0.7
		old=$(member pid)
		kill -9 "$old"
		start=${EPOCHREALTIME/./}
		until_true is_replaced "$old"
		[ $((${EPOCHREALTIME/./} - start)) -gt 800000 ] || fail "$at: recovered while a write was on its way"
		wait $writer || fail "an error"
		put 0 n # in the same sectors, or the same L2 block
		[ $at != table ] || sync "$dev"
		sleep 2.5
		has 0 n
		detach "$dev"
	done
	umount mnt
	dmsetup remove --retry slow
	mount "$loop" mnt
	[ "$(qemu-io -r -c 'read -P 116 64k 4k' mnt/table.qcow2 | grep -c '^read 4096')" = 1 ] || fail "an L2 entry is lost"
	for at in full empty table; do
		sound mnt/$at.qcow2
		[ "$(qemu-io -r -c 'read -P 110 0 4k' mnt/$at.qcow2 | grep -c '^read 4096')" = 1 ] || fail "$at: the old write landed later"
	done
	umount mnt
	losetup -d "$loop"
}

# ---- under load ----

cat >"$base/fio.job" <<'JOB'
[global]
filename=${DEVICE}
ioengine=libaio
direct=1
iodepth=32
group_reporting=1
randseed=0
[verified]
rw=randwrite
bs=4k
numjobs=2
size=6M
offset_increment=32M
verify=crc32c
verify_fatal=1
[churn]
offset=128M
size=32M
io_size=24M
rw=randwrite
bsrange=4k-128k
[discards]
offset=128M
size=32M
io_size=64M
rw=randtrim
bs=64k
iodepth=4
JOB

# Runs fio again and again, each time over other clusters, until the file `enough` appears; its failure is in the log.
load() {
	local round=0
	while [ ! -e enough ]; do
		sed "s/^size=6M/&\noffset=$((round % 3 * 8))M/; s/^randseed=.*/randseed=$((round + 1))/" "$base/fio.job" >fio.job
		DEVICE=$dev fio --output=fio.log fio.job || { echo failed >enough; return 1; }
		round=$((round + 1))
	done
	echo "$round rounds of fio"
}

# What fio, the clients, the supervisor and the requests have to say.
broken() {
	pkill -USR1 -f '^ublk-qcow2 worker '
	sleep 2
	fail "$1; fio: $(cat fio.log); supervisor: $(tail -n 20 daemon.log); $(tail -n 50 "/run/ublk-qcow2/${dev##*[a-z]}/"{state,dump})"
}

# kill_one FIND: what FIND prints is killed, as soon as there is such a process.
kill_one() {
	local pid from=$SECONDS
	until pid=$("$@") && [ "$pid" != null ] && kill -9 "$pid" 2>/dev/null; do
		((SECONDS - from < 60)) || broken "no worker to kill"
		sleep 0.02
	done
}

case_load() {
	local i loader supervisor
	image a.qcow2 512M
	ublk-qcow2 attach --foreground --queues=2 --depth=64 a.qcow2 >dev 2>daemon.log & supervisor=$!
	until_true test -s dev
	dev=$(cat dev)
	load >rounds & loader=$!
	for ((i = 0; i < kills; i++)); do
		sleep "$((RANDOM % 2)).$((RANDOM % 1000 + 1000))"
		kill_one member pid
		if ((i % 4 == 3)); then kill_one any_worker; fi # and its successor at once
		[ ! -e enough ] || broken "an error"
	done
	for ((i = 0; i < restarts; i++)); do
		until_true is_state live
		timeout 60 ublk-qcow2 restart "$dev" >out 2>err || broken "restart: $? $(cat err)"
		silent
		sleep 0.5
	done
	touch enough
	wait $loader || broken "an error"
	cat rounds
	expect 0 ublk-qcow2 stats "$dev" --json
	echo "$kills kills, $(jq .daemon_restarts <out) restarts, $SECONDS s"
	json ".daemon_restarts >= $kills + $restarts"
	kill_both # what the last round wrote, flushed or not
	wait $supervisor
	expect 0 ublk-qcow2 recover "$dev"
	DEVICE=$dev fio --output=fio.log --section=verified --verify_only fio.job || broken "data is lost"
	detach "$dev"
	nothing_left
	sound a.qcow2
}

run_cases "$@"
