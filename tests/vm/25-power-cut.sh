#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Power cuts under a real kernel. The image lies on ext4 on dm-log-writes, which logs what the host writes as it becomes
# durable; after the work the log is replayed (log-replay.c) to FLUSH and FUA entries and to promises made to the guest: in the group
# long to every one, else to a few. What the disk holds there, and now and then besides a part of what was in its cache, is mounted
# and judged: no errors for qemu-img check and ours, and in the attached device all that was promised and nothing foreign (coherence.c, ledger.c;
# or files and fio). Another disk drops all writes from some moment on. UBLK_QCOW2_ENGINE is who writes; who judges is always `server`.
# kernels: stable backports
# timeout: 7200
# group: long
# vm: --mem=3G
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

build=$(readlink -f "$(dirname "$0")/../../build")
cp "$build/tests/vm/coherence" "$build/tests/crash/log-replay" "$base" # from a share each start is slow
coherence=$base/coherence
log_replay=$base/log-replay
sectors=$((96 << 11)) # of the host's disk

# How much is done, at how many stops it is judged (evenly spaced), and who looks before leaks are repaired.
ios=300 files=4 rewrites=30 cuts=(8) judged=6 first=(ublk-qcow2)
if [ "${TEST_SCALE:-}" = long ]; then ios=600 files=8 rewrites=100 cuts=(1 8 20) judged=1000000 first=(ublk-qcow2 qemu-img); fi
both=(ublk-qcow2 qemu-img)

# udev would look at every device that comes and goes, which takes as long as the judging.
udevadm control --exit
export DM_DISABLE_UDEV=1

# ---- the host: its disks are files in memory, a power cut is what the log or the table says ----

disks() {
	ram=$work/ram host=$work/host inside=$work/inside
	mkdir -p "$ram" "$host" "$inside"
	mount -t tmpfs -o size=2G none "$ram"
	truncate -s $((sectors * 512)) "$ram/disk"
	truncate -s 1200M "$ram/log"
	disk=$(losetup --find --show "$ram/disk")
	log=$(losetup --find --show "$ram/log")
	mkfs.ext4 -q -b 4096 -m 0 -N 64 -J size=4 "$disk"
	mount "$disk" "$host"
}

no_disks() {
	losetup -d "$disk" "$log"
	umount "$ram"
}

# From here on the log has everything; $ram/before is what it starts from.
start_log() {
	umount "$host"
	sync "$disk"
	cp --sparse=always "$ram/disk" "$ram/before"
	dmsetup create powerlog --table "0 $sectors log-writes $disk $log"
	mount /dev/mapper/powerlog "$host"
}

end_log() {
	umount "$host"
	! dmsetup status powerlog | grep logging_disabled || fail "the log is not complete"
	dmsetup remove --retry powerlog
}

# ---- judging: each of these says what is wrong, and nothing if nothing is ----

# errors STATUS CHECKER...: which may also end with STATUS.
errors() {
	local checker got
	for checker in "${@:2}"; do
		got=0
		$checker check "$host/image.qcow2" >"$work/out" 2>"$work/err" || got=$?
		[ $got = 0 ] || [ $got = "$1" ] || echo "$checker check: $got"
	done
}

blocks() { # PROMISES
	"$coherence" "$dev" --ledger="$ledger" --judge="$1" >"$work/out" 2>"$work/err" || echo "blocks: $(head -n 3 "$work/err")"
}

# The image on the host when so many promises had been made: content is judged by `$content PROMISES`.
verdict() { # PROMISES
	local errors
	errors=$(errors 3 "${first[@]}") # leaks are allowed
	if [ -n "$errors" ]; then
		echo "$errors"
	elif ! ublk-qcow2 attach --engine=server --repair=leaks "$host/image.qcow2" >"$work/out" 2>"$work/err"; then
		echo "attach: $(cat "$work/err")"
	else
		dev=$(cat "$work/out")
		$content "$1"
		ublk-qcow2 detach "$dev" || echo "detach"
		# again: a leak behind the end of the file is seen only when the file has grown
		ublk-qcow2 check --repair=leaks "$host/image.qcow2" >"$work/out" 2>"$work/err" || echo "repair"
		errors 0 "${both[@]}"
	fi
}

# The disk as it is at $position; with SEED also some of what comes next. Sets $wrong.
judge_state() { # [SEED]
	local last seen=$promises
	dmsetup create "$cut" --table "0 $sectors snapshot $replay $cow N 8"
	if [ $# -gt 0 ]; then
		last=$("$log_replay" --some="$1" "$log" "/dev/mapper/$cut" "$position") || [ $? = 3 ] || fail "log-replay"
		[ "${last#* }" = - ] || seen=${last#* }
	fi
	mount "/dev/mapper/$cut" "$host"
	wrong=$(verdict "$seen")
	umount "$host"
	dmsetup remove --retry "$cut"
	states=$((states + 1))
	[ -z "$wrong" ] || echo "at $position, $seen promises${1:+, some of seed $1}: $wrong"
}

# One of $judges: judges every so many-th stop of the log until somebody finds something wrong or the log ends.
judge() { # NUMBER
	local status=0 last stop=0 wrong=''
	work=$work/judge$1 host=$work/host inside=$work/inside cut=cut$1
	mkdir -p "$host" "$inside"
	position=0 promises=0 states=0
	cp --sparse=always "$ram/before" "$ram/replay$1"
	truncate -s $((sectors * 512)) "$ram/cow$1"
	replay=$(losetup --find --show "$ram/replay$1")
	cow=$(losetup --find --show "$ram/cow$1")
	while [ $status = 0 ] && [ ! -e "$ram/found" ]; do
		last=$("$log_replay" "$log" "$replay" "$position" "$step") || status=$?
		[ $status = 0 ] || [ $status = 3 ] || fail "log-replay: $status"
		position=${last% *} last=${last#* }
		[ "$last" = - ] || promises=$last
		stop=$((stop + 1))
		[ $((stop % judges)) = "$1" ] || continue
		judge_state
		if [ -z "$wrong" ] && [ $((states % 3)) = 2 ]; then judge_state "$states"; fi
		[ -z "$wrong" ] || : >"$ram/found"
	done
	sync "$replay"
	losetup -d "$replay" "$cow"
	if [ $status = 3 ]; then cmp "$ram/disk" "$ram/replay$1" || fail "the log is not what was written"; fi
	echo "$states $promises" >"$ram/judged$1"
	rm "$ram/cow$1" "$ram/replay$1"
}

# Sets $found, and $promises: how many there were.
replay() {
	local i stops states=0 pids=()
	judges=$(nproc)
	stops=$("$log_replay" --stops "$log")
	step=$(((stops + judged - 1) / judged))
	for ((i = 0; i < judges; i++)); do
		judge $i >"$work/verdict$i" 2>"$work/errors$i" & pids+=($!) # dmsetup warns that udev is told nothing
	done
	for ((i = 0; i < judges; i++)); do
		wait "${pids[i]}" || fail "a judge failed: $(cat "$work/verdict$i" "$work/errors$i")"
		read -r n promises <"$ram/judged$i"
		states=$((states + n))
	done
	found=$(cat "$work"/verdict*)
	echo "$SECONDS s: $states states judged, at every $step. of $stops stops, $promises promises"
}

# ---- random I/O of all kinds on the device ----

ledger=$base/ledger

work_on() { # CLUSTER COHERENCE-OPTION...
	"$coherence" "$dev" --cluster="$(numfmt --from=iec "$1")" --groups=12 --group-blocks=48 --ledger="$ledger" "${@:2}" \
		>"$work/out" 2>"$work/err"
}

random_io() { # KIND CLUSTER
	content=blocks
	if [ "$1" = snapshot ]; then
		truncate -s 24M "$ram/base"
		"$coherence" "$ram/base" --fill --cluster=4096 --groups=12 --group-blocks=48 >"$work/out"
		qemu-img convert -f raw -O qcow2 -o cluster_size="$2" "$ram/base" "$host/image.qcow2"
		qemu-img snapshot -c before "$host/image.qcow2"
	else
		image -o cluster_size="$2" "$host/image.qcow2" 24M
	fi
	start_log
	attach --cache-size=64K "$host/image.qcow2"
	work_on "$2" --ios=$ios --log=powerlog || fail "coherence"
	echo "$SECONDS s: $(cat "$work/out")"
	expect 0 ublk-qcow2 detach "$dev"
	end_log
}

survives() { # PROMISES: at least
	replay
	[ -z "$found" ] || fail "$found"
	[ "$promises" -ge "$1" ] || fail "only $promises promises"
	no_disks
}

case_empty() {
	disks
	random_io empty 4k
	survives 5
}

case_snapshot() {
	disks
	random_io snapshot 16k
	survives 5
}

# The debug build makes none of its fsyncs: if this test does not see that, it sees nothing.
case_without_fsync() {
	mkdir "$work/bin"
	ln -s "$build/tools/ublk-qcow2-guarded" "$work/bin/ublk-qcow2"
	disks
	PATH=$work/bin:$PATH UBLK_QCOW2_TEST_SKIP_FSYNC=1 random_io empty 4k
	replay
	[ -n "$found" ] || fail "nothing found"
	head -n 3 <<<"$found"
	no_disks
}

# ---- a file system on the device: every file is promised when it is durable, and fio rewrites one of its own ----

fio_file() {
	fio --name=f --filename="$inside/fio" --size=2M --bs=4k --direct=1 --verify=crc32c --minimal "$@" >"$work/fio" 2>&1
}

file_content() { seq "$1" $(($1 * 150)); }

files() { # PROMISES
	local i
	if ! mount "$dev" "$inside"; then
		echo "mount"
		return
	fi
	for ((i = 1; i <= $1; i++)); do cmp "$inside/$i" <(file_content $i) || echo "file $i"; done
	fio_file --rw=read --verify_fatal=1 || echo "fio"
	umount "$inside"
	e2fsck -fn "$dev" >"$work/out" 2>&1 || echo "e2fsck"
}

case_files() {
	local i rewriter
	disks
	content=files
	image -o cluster_size=4k "$host/image.qcow2" 32M
	attach "$host/image.qcow2"
	mkfs.ext4 -q -b 4096 -J size=4 "$dev"
	mount "$dev" "$inside"
	fio_file --rw=write --do_verify=0 --end_fsync=1
	umount "$inside"
	detach "$dev"
	start_log
	attach "$host/image.qcow2"
	mount "$dev" "$inside"
	fio_file --rw=randwrite --number_ios=$rewrites --randseed=2 --fsync=10 --do_verify=0 & rewriter=$!
	for ((i = 1; i <= files; i++)); do
		file_content $i >"$inside/new"
		sync "$inside/new"
		mv "$inside/new" "$inside/$i"
		sync "$inside"
		dmsetup message powerlog 0 mark $i
	done
	wait $rewriter || fail "fio"
	umount "$inside"
	detach "$dev"
	end_log
	survives $files
}

# ---- a disk that drops every write from some moment on, and says nothing; then the machine is gone ----

switch() { # TARGET [PARAMETER]...
	dmsetup load power --table "0 $sectors $1 $disk 0 ${*:2}"
	dmsetup suspend --noflush --nolockfs power
	dmsetup resume power
}

promised() { [ "$(grep -c '^mark' "$ledger")" -ge "$1" ]; }

cut_after() { # PROMISES
	local worker before
	image -o cluster_size=4k "$host/image.qcow2" 24M
	sync -f "$host"
	attach --cache-size=64K "$host/image.qcow2"
	: >"$ledger"
	work_on 4k --ios=1000000 & worker=$!
	until_true promised "$1"
	before=$(grep -c '^mark' "$ledger")
	switch flakey 0 1 1 drop_writes
	until_true promised $((before + 10))
	pkill -P $worker
	wait $worker || true # what it read since then is of no worth
	kill_both
	rm "/run/ublk-qcow2/${dev##*[a-z]}/journal"
	expect 0 ublk-qcow2 detach --force "$dev"
	umount "$host"
	switch linear
	mount /dev/mapper/power "$host"
	wrong=$(verdict "$before")
	echo "$SECONDS s: cut after $before promises"
	[ -z "$wrong" ] || fail "after $before promises: $wrong"
	rm "$host/image.qcow2"
}

case_dropped_writes() {
	local n
	disks
	content=blocks
	umount "$host"
	dmsetup create power --table "0 $sectors linear $disk 0"
	mount /dev/mapper/power "$host"
	for n in "${cuts[@]}"; do cut_after "$n"; done
	umount "$host"
	dmsetup remove --retry power
	no_disks
}

modprobe -a loop dm-mod dm-log-writes dm-snapshot dm-flakey
run_cases "$@"
