#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: backports+kernel
# timeout: 1800
# takes: 430
# group: vm
# Read and write errors of the host reach exactly the requests they belong to, and when the host is well again so is the
# device. The image lies on a device-mapper device (offset in the image = offset on it) whose chosen sectors fail.
# Disks of 512-byte blocks with clusters of 4 KiB, and of 4096-byte blocks with clusters of 16 KiB.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

disk=/dev/mapper/hosterr
sectors=$((48 << 11)) # of the disk, 512 bytes each

# ---- the disk and its faults ----

declare -i unit=0    # bytes in a block of the disk
declare -i cluster=0 # bytes
declare -i per=0     # units in a cluster
declare -i table=0   # units an L2 table maps

make_disk() { # UNIT CLUSTER
	unit=$1 cluster=$2
	per=$((cluster / unit))
	table=$((per * cluster / 8))
	truncate -s $((sectors * 512)) "$work/disk.raw"
	loop=$(losetup --find --show -b "$unit" --direct-io=on "$work/disk.raw")
	dmsetup create hosterr --table "0 $sectors linear $loop 0"
}

drop_disk() {
	udevadm settle
	dmsetup remove --retry hosterr
	losetup -d "$loop"
	rm "$work/disk.raw"
}

# The live disk gets the table on standard input.
switch() {
	dmsetup load hosterr
	dmsetup suspend --noflush --nolockfs hosterr
	dmsetup resume hosterr
}

piece() { # FIRST END TARGET: one line of a table, in sectors
	[ "$1" -lt "$2" ] || return 0
	case $3 in
	linear) echo "$1 $(($2 - $1)) linear $loop $1" ;;
	error) echo "$1 $(($2 - $1)) error" ;;
	readonly) echo "$1 $(($2 - $1)) flakey $loop $1 0 1 1 error_writes" ;; # and flushes fail, which `error` lets through
	esac
}

# Byte ranges that fail from now on, ascending.
fault() { # error|readonly [OFFSET BYTES]...
	local kind=$1 at=0
	shift
	{
		while [ $# -gt 0 ]; do
			piece $at $(($1 / 512)) linear
			piece $(($1 / 512)) $((($1 + $2) / 512)) "$kind"
			at=$((($1 + $2) / 512))
			shift 2
		done
		piece $at $sectors linear
	} | switch
}

heal() { fault none; }

# ---- the client: requests in units, direct; a byte fills a unit ----

fill() { head -c $(($2 * unit)) /dev/zero | tr '\0' "$1"; } # BYTE COUNT

try_write() { # BYTE FIRST COUNT
	fill "$1" "$3" | dd of="$dev" bs=$(($3 * unit)) count=1 iflag=fullblock oflag=direct,seek_bytes conv=notrunc \
		status=none seek=$(($2 * unit)) 2>"$work/err"
}

get() { # FIRST COUNT
	dd if="$dev" bs=$(($2 * unit)) count=1 iflag=direct,skip_bytes skip=$(($1 * unit)) status=none 2>"$work/err"
}

# The model: what the device must hold, all zero at first.
model() { # BYTE FIRST COUNT
	fill "$1" "$3" | dd of="$work/model" bs=$(($3 * unit)) count=1 iflag=fullblock oflag=seek_bytes conv=notrunc \
		status=none seek=$(($2 * unit))
}

in_model() { tail -c +$(($1 * unit + 1)) "$work/model" | head -c $(($2 * unit)) || true; } # FIRST COUNT

writes() { # BYTE FIRST COUNT
	try_write "$@" || fail "write $*: $(cat "$work/err")"
	model "$@"
}

reads() { # FIRST COUNT: what the model says
	get "$@" >"$work/got" || fail "read $*: $(cat "$work/err")"
	cmp -s "$work/got" <(in_model "$@") || fail "other data at $*"
}

is_eio() { grep -q 'Input/output error' "$work/err" || fail "another error: $(cat "$work/err")"; }

no_read() {
	! get "$@" >/dev/null || fail "read $* succeeded"
	is_eio
}

# The model keeps what was there; `settle` says what it is.
no_write() { # BYTE FIRST COUNT
	! try_write "$@" || fail "write $* succeeded"
	is_eio
}

# After a failed write each of its units holds old or new, and that is what it holds from then on.
settle() { # BYTE FIRST COUNT
	local i
	for ((i = $2; i < $2 + $3; i++)); do
		get $i 1 >"$work/got" || fail "unit $i: $(cat "$work/err")"
		if ! cmp -s "$work/got" <(in_model $i 1); then
			cmp -s "$work/got" <(fill "$1" 1) || fail "unit $i holds neither old nor new"
			model "$1" $i 1
		fi
	done
}

flushes() { sync "$dev" 2>"$work/err" || fail "flush: $(cat "$work/err")"; }
no_flush() {
	! sync "$dev" 2>"$work/err" || fail "a flush succeeded"
	is_eio
}

# ---- the image ----

fresh() { # MODEL-UNITS IMAGE-OPTION...: 4 L2 tables' worth
	rm -f "$work/model"
	truncate -s $(($1 * unit)) "$work/model"
	shift
	image -o cluster_size=$cluster "$@" "$disk" $((4 * table * unit))
	attach "$disk"
}

same() { # all that the model describes
	cmp <(dd if="$dev" bs=1M iflag=direct status=none count=$(($(stat -c %s "$work/model") + 1048575 >> 20)) |
		head -c "$(stat -c %s "$work/model")") "$work/model" || fail "the device differs from the model"
}

again() { # [FAULT]: cold caches; before the attach the fault, as udev looks around in every new device
	detach "$dev"
	[ $# = 0 ] || fault "$@"
	attach "$disk"
}

mode() { # rw|ro: and the device is alive
	local i read_only=false
	[ "$1" = rw ] || read_only=true
	for ((i = 0; i < 50; i++)); do
		expect 0 ublk-qcow2 list --json
		json '.[0].state == "live"'
		[ "$(jq '.[0].read_only' "$work/out")" != $read_only ] || return 0
		sleep 0.1 # told after the error that caused it
	done
	fail "not $1"
}

leaky() { # no errors by both, leaks allowed
	local checker
	for checker in qemu-img ublk-qcow2; do
		$checker check "$disk" >"$work/out" 2>"$work/err" || [ $? = 3 ] || fail "$checker check: more than leaks"
	done
}

finish() { # the whole life after a fault: all there, writable, closed clean, all there again
	flushes
	same
	writes z 1 $((per + 1))
	mode rw
	detach "$dev"
	sound "$disk"
	attach --read-only "$disk"
	same
	detach "$dev"
}

word() { od -An -tu8 --endian=big -j "$1" -N 8 "$disk" | tr -d ' '; } # OFFSET
address() { echo $(($1 & 0x00fffffffffffe00)); }
l2_of() { address "$(word $(($(word 40) + 8 * $1)))"; }		     # TABLE
refblock() { address "$(word "$(word 48)")"; }

# Where a guest cluster's data lie.
host_of() { # CLUSTER
	ublk-qcow2 map -U --json "$disk" |
		jq -e ".[] | select(.start <= $1 * $cluster and .start + .length > $1 * $cluster) | .offset + $1 * $cluster - .start"
}

image_end() {
	local end
	end=$(qemu-img check -U --output=json "$disk" | jq '."image-end-offset"')
	echo $(((end + cluster - 1) / cluster * cluster))
}

on_512() { # FUNCTION [ARG]...
	make_disk 512 4096
	"$@"
	drop_disk
}

on_4096() {
	make_disk 4096 16384
	"$@"
	drop_disk
}

both() {
	on_512 "$@"
	on_4096 "$@"
}

# ---- data ----

# Readers of what is well, all the while; they must not notice anything.
readers() {
	bystanders=()
	local i
	for i in 0 2; do
		while [ ! -e "$work/enough" ]; do
			dd if="$dev" bs=$((per * unit)) count=2 skip=$i iflag=direct status=none |
				cmp - <(in_model $((i * per)) $((2 * per))) || exit 1
			sleep 0.1 # or they take most of the test's time
		done & bystanders+=($!)
	done
}

no_readers() {
	local pid
	: >"$work/enough"
	for pid in "${bystanders[@]}"; do wait "$pid" || fail "a reader of good sectors got an error"; done
	rm "$work/enough"
}

# Unit 1 of guest cluster 5, the last unit of cluster 8 and the first one of cluster 9 are bad.
data() {
	local bad first
	fresh $((16 * per))
	writes a 0 $((16 * per))
	flushes
	bad=$(host_of 5)
	first=$(host_of 8)
	again
	for _ in cold warm; do
		fault error $((bad + unit)) $unit $((first + cluster - unit)) $((2 * unit))
		readers
		no_read $((5 * per + 1)) 1
		reads $((5 * per)) 1
		reads $((5 * per + 2)) $((per - 2))
		no_read $((4 * per)) $((3 * per)) # three clusters, the bad one in the middle
		reads $((4 * per)) $per
		reads $((6 * per)) $((2 * per))
		no_read $((8 * per)) $((2 * per))
		reads $((8 * per)) $((per - 1))
		reads $((9 * per + 1)) $((per - 1))
		no_write b $((5 * per + 1)) 1
		writes c $((5 * per)) 1
		no_write d $((4 * per + 1)) $((2 * per))
		writes e $((6 * per + 1)) $((per + 1))
		no_write f $((8 * per)) $((2 * per))
		flushes
		no_readers
		mode rw
		heal
		settle b $((5 * per + 1)) 1
		settle d $((4 * per + 1)) $((2 * per))
		settle f $((8 * per)) $((2 * per))
		same
	done
	# zeroes and discards of whole clusters need none of the bad sectors
	fault error $((bad + unit)) $unit
	blkdiscard -z -o $((5 * cluster)) -l $cluster "$dev"
	model '\0' $((5 * per)) $per
	reads $((4 * per)) $((3 * per))
	flushes
	heal
	finish
}
case_data() { both data; }

# A write to a part of a cluster that a snapshot shares copies the rest, and cannot read it; a whole cluster is not copied.
copied() {
	local bad
	fresh $((16 * per))
	writes a 0 $((8 * per))
	detach "$dev"
	qemu-img snapshot -c one "$disk"
	attach --read-only "$disk"
	bad=$(host_of 2)
	detach "$dev"
	attach "$disk"
	fault error $((bad + cluster - unit)) $unit
	no_write b $((2 * per)) 1
	reads $((2 * per)) $((per - 1))
	writes c $((3 * per)) 1
	flushes
	writes d $((1 * per)) $((2 * per)) # all of cluster 2
	reads 0 $((8 * per))
	heal
	finish
}
case_copied() { on_4096 copied; }

# ---- space ----

space() {
	local end
	fresh $((table + 16 * per))
	writes a 0 $((4 * per))
	flushes
	end=$(image_end)
	fault error "$end" $((sectors * 512 - end))
	no_write b $((4 * per)) $((4 * per))
	no_write b $((8 * per + 1)) 1
	no_write b $table 1 # wants a new L2 table as well
	no_write b $((3 * per)) $((2 * per)) # one cluster is there, one is not
	reads 0 $((3 * per))
	reads $((4 * per)) $((8 * per))
	reads $table $per
	writes c $per $per
	flushes
	mode rw
	settle b $((3 * per)) $per
	same
	heal
	writes d $((4 * per)) $((4 * per))
	writes e $table 1
	finish
	# some of the free space is bad: new clusters are had or refused, never wrong
	attach "$disk"
	end=$(image_end)
	fault error $((end + cluster)) $unit $((end + 3 * cluster)) $((2 * cluster))
	local i
	for ((i = 8; i < 16; i++)); do
		if try_write g $((i * per + 1)) 1; then model g $((i * per + 1)) 1; else is_eio; fi
	done
	flushes
	same
	heal
	writes h $((8 * per)) $((8 * per))
	finish
}
case_space() { both space; }

# ---- metadata that cannot be read ----

l2_unreadable() {
	local l2 i
	fresh $((3 * table + per))
	for i in 0 1 2 3; do writes a $((i * table)) $per; done
	flushes
	l2=$(l2_of 1)
	again error "$l2" "$cluster"
	no_read $table 1
	no_write b $table $per
	no_write b $((table + 5 * per)) $per
	! blkdiscard -z -o $((table * unit)) -l $cluster "$dev" 2>"$work/err" || fail "zeroes written without the table"
	no_read $((table - per)) $((2 * per))
	for i in 0 2 3; do
		reads $((i * table)) $per
		writes c $((i * table)) 1
	done
	writes d $((2 * table + per)) $per
	flushes
	mode rw
	heal
	reads $table $per
	writes e $table 1
	writes e $((table + 5 * per)) $per
	finish
}
case_l2_unreadable() { on_512 l2_unreadable; }

refblock_unreadable() {
	fresh $((16 * per))
	writes a 0 $((4 * per))
	flushes
	again error "$(refblock)" "$cluster"
	no_write b $((4 * per)) $per
	no_write b $((3 * per)) $((2 * per))
	no_write b $((5 * per)) 1
	reads 0 $((3 * per))
	reads $((4 * per)) $((4 * per))
	writes c 1 1
	flushes
	mode rw
	heal
	settle b $((3 * per)) $per
	writes d $((4 * per)) $((2 * per))
	finish
}
case_refblock_unreadable() { on_4096 refblock_unreadable; }

# ---- metadata that cannot be written: the flush fails, the changes stay and are written later ----

# The processes are killed when the late flush was answered, and their journal is lost as if power had failed: whatever
# was said to be durable is in the image.
unwritable() {
	no_flush
	mode rw
	reads 0 $((8 * per))
	writes c 1 2
	writes c $((6 * per)) $((2 * per))
	no_flush
	heal
	flushes
	same
	kill_both
	rm "$(rundir)/journal"
	expect 0 ublk-qcow2 detach --force "$dev"
	leaky
	attach "$disk"
	same
}

metadata() {
	local what
	fresh $((3 * table + per))
	writes a 0 $((4 * per))
	flushes
	for what in refblock "l2_of 0" "word 40"; do # the last: the L1 table's place
		fault error "$($what)" "$cluster" # it is in the cache, nobody reads it; and no commit by the clock is before the fault
		writes b $((2 * per)) $((3 * per))
		if [ "$what" = "word 40" ]; then writes b $table 1; fi
		unwritable
		blkdiscard -o $((4 * cluster)) -l $((4 * cluster)) "$dev"
		model '\0' $((4 * per)) $((4 * per))
		flushes
	done
	detach "$dev"
	qemu-img check -q -r leaks "$disk" >"$work/out" 2>&1 || fail "leaks stay"
	attach "$disk"
	finish
	# closed while it cannot be written: said so, and nothing worse than leaks; the next attach has all of it
	attach "$disk"
	try_write b $((2 * table)) $per
	fault error "$(word 40)" "$cluster"
	expect 1 ublk-qcow2 detach "$dev"
	one_error
	says "changes since the last flush may be lost"
	heal
	leaky
	expect 0 ublk-qcow2 attach "$disk"
	says "were applied"
	dev=$(cat "$work/out")
	model b $((2 * table)) $per
	same
	finish
}
case_metadata() { on_512 metadata; }

# ---- a failed fsync ----

# Nothing but a flush is left to do when flushes begin to fail: then it is over for good, even when the disk is well again.
failed_fsync() {
	fresh $((16 * per))
	writes a 0 $((8 * per))
	flushes
	again
	reads 0 $((8 * per))
	writes b $per $per
	fault readonly 0 $((sectors * 512))
	no_flush
	mode ro
	heal
	no_flush
	no_write c 0 1
	no_write c $((9 * per)) $per
	! blkdiscard -o 0 -l $cluster "$dev" 2>"$work/err" || fail "a discard succeeded"
	! blkdiscard -z -o 0 -l $cluster "$dev" 2>"$work/err" || fail "zeroes were written"
	same
	no_flush
	expect 1 ublk-qcow2 detach "$dev"
	one_error
	says "changes since the last flush may be lost"
	nothing_left
	sound "$disk"
	attach "$disk"
	finish
}
case_failed_fsync() { both failed_fsync; }

# ---- a backing file with bad sectors ----

backing() { # FORMAT
	local bad over=$work/over.qcow2
	rm -f "$work/model" "$over"
	truncate -s $((16 * per * unit)) "$work/model"
	image -f "$1" "$disk" $((16 * per * unit))
	if [ "$1" = qcow2 ]; then
		attach "$disk"
		writes a 0 $((16 * per))
		detach "$dev"
		bad=$(host_of 4)
	else
		dev=$disk writes a 0 $((16 * per))
		bad=$((4 * cluster))
	fi
	image -b "$disk" -F "$1" -o cluster_size=$cluster "$over" $((16 * per * unit))
	attach "$over"
	writes b $((2 * per)) $per
	writes b $((5 * per)) $per
	fault error $((bad + unit)) $unit
	no_read $((4 * per + 1)) 1
	no_read $((2 * per)) $((4 * per))
	no_write c $((4 * per)) 1 # has to copy the bad sector
	no_write c $((3 * per)) $((per + 1))
	reads $((4 * per)) 1
	reads $((5 * per)) $((2 * per))
	reads $((2 * per)) $per
	writes d $((5 * per + 1)) 1
	writes d $((6 * per + 1)) 1
	flushes
	writes e $((4 * per)) $per # the bad one is covered
	reads $((4 * per)) $((4 * per))
	mode rw
	heal
	settle c $((3 * per)) $per
	writes f $((7 * per)) 1
	flushes
	same
	detach "$dev"
	clean "$over"
	expect 0 ublk-qcow2 check "$over"
	attach --read-only "$over"
	same
	detach "$dev"
}
case_backing() {
	on_512 backing qcow2
	on_4096 backing raw
}

modprobe loop
modprobe dm-mod
modprobe dm-flakey
run_cases "$@"
