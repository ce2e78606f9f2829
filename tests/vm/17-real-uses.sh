#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# timeout: 1800
# sample: backports+kernel
# takes: 520
# group: vm long
# Uses with a second witness: whatever fio does to the device it does to a loop device as well, and both must hold the same
# in the end. Two queues at depth 32; images on a host with 4096-byte blocks, with clusters below, at and above those; an
# overlay over a base, committed and rebased afterwards.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

long=''
if [ "${TEST_SCALE:-}" = long ]; then long=1; fi
modprobe loop

settle() { # IMAGE: at rest, and both checkers agree
	clean "$1"
	expect 0 ublk-qcow2 check "$1"
}

# fio_on DEVICE ARG...: the same arguments leave the same content, on any device. The patterns are made of the block's place and a
# constant, so blocks of another place or of another job are noticed.
fio_on() {
	local target=$1
	shift
	expect 0 fio --ioengine=libaio --direct=1 --filename="$target" --allow_file_create=0 --randrepeat=1 --verify=pattern \
		--verify_fatal=1 --minimal "$@"
}

# A raw file of the size of an image, as a device; sets $shadow. What the image holds is in it.
shadow_of() { # IMAGE
	qemu-img convert -O raw "$1" "$work/shadow.raw"
	shadow=$(losetup --find --show --direct-io=on "$work/shadow.raw")
}

# On both.
fio_both() {
	fio_on "$dev" "$@"
	fio_on "$shadow" "$@"
}

zero_both() { # OFFSET LENGTH
	blkdiscard -z -o "$1" -l "$2" "$dev"
	blkdiscard -z -o "$1" -l "$2" "$shadow"
}

same_as_shadow() { # DEVICE-OR-FILE
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$1" "$shadow" || fail "$1 is not what its shadow is"
}

# image_is_shadow IMAGE [ATTACH]: at rest, by QEMU's eyes; then through a device that cannot be written.
image_is_shadow() {
	settle "$1"
	sync "$shadow"
	expect 0 qemu-img compare -f raw -F qcow2 "$shadow" "$1"
	"${2:-attach}" --read-only "$1"
	same_as_shadow "$dev"
	detach "$dev"
}

drop_shadow() {
	losetup -d "$shadow"
	rm "$work/shadow.raw"
}

# How often each queue's thread slept: it does so between requests.
sleeps() {
	local pid task
	pid=$(ublk-qcow2 list --json | jq -r --arg d "$dev" '.[] | select(.device == $d).pid')
	for task in "/proc/$pid/task"/*; do
		if [ "$(cat "$task/comm")" = "queue$1" ]; then awk '/^voluntary/ {print $2}' "$task/status"; fi
	done
}

case_two_queues() {
	local before=() q job jobs=()
	[ "$(nproc)" -ge 2 ] || fail "this test wants two CPUs"
	image two.qcow2 192M
	shadow_of two.qcow2
	attach --queues=2 --depth=64 two.qcow2
	[ "$(find "$(lower_sys)/mq" -mindepth 1 -maxdepth 1 | wc -l)" = 2 ] || fail "not two queues"
	for q in 0 1; do
		[ -n "$(sleeps $q)" ] || fail "no thread queue$q"
		before+=("$(sleeps $q)")
	done
	# One writer on each CPU, side by side, and sequential readers of both parts meanwhile.
	for job in 0 1; do
		jobs+=(--name="w$job" --cpus_allowed="$job" --offset="$((job * 12))m" --size=12m --iodepth=32 --rw=randrw --rwmixread=25
			--bssplit=512/10:4k/50:20k/20:64k/15:256k/5 --verify_pattern="0xa${job}a${job}%o")
	done
	fio_both "${jobs[@]}" --do_verify=1
	for q in 0 1; do
		[ $(($(sleeps $q) - before[q])) -gt 50 ] || fail "queue $q was hardly used: ${before[q]}, now $(sleeps $q)"
	done
	same_as_shadow "$dev"
	detach "$dev"
	settle two.qcow2
	# Another process of ours, other queues: the data is still what fio wrote.
	attach --queues=1 two.qcow2
	fio_on "$dev" "${jobs[@]}" --verify_only
	detach "$dev"
	image_is_shadow two.qcow2
	drop_shadow
}

# A device with such blocks; sets $loop.
host_of() { # BLOCK-SIZE
	truncate -s 400M "$work/host.img"
	loop=$(losetup --find --show -b "$1" "$work/host.img") || return
	[ "$(blockdev --getss "$loop")" = "$1" ] || fail "no $1-byte blocks"
}

# neighbours CLUSTER: jobs at once whose requests share DIO blocks and clusters, without ever sharing a sector.
neighbours() {
	local area=$((4096 * 128)) full
	full=$(($1 * ($1 < 4096 ? 512 : 32)))
	local -a sectors=(--bs=512 --rw=write:512 --size="$area" --do_verify=1) clusters=(--bs="$1" --size="$full")
	fio_both --bs=64k --rw=write --do_verify=0 \
		--name=low --size=$((area / 2)) --verify_pattern=0x11%o --name=high --offset=4m --size=$full --verify_pattern=0x44%o
	# sectors by turns: over data, then over nothing; clusters by turns: one written, one discarded, in what was full
	fio_both --iodepth=16 \
		--name=even "${sectors[@]}" --offset=0 --verify_pattern=0x22%o \
		--name=odd "${sectors[@]}" --offset=512 --verify_pattern=0x33%o \
		--name=trim "${clusters[@]}" --offset=4m --rw="trim:$1" --do_verify=0 \
		--name=write "${clusters[@]}" --offset=$((4194304 + $1)) --rw="write:$1" --verify_pattern=0x55%o --do_verify=1
	# any place and size, sector by sector, with zeroes between two rounds
	zero_both $((2097152 + 512)) 100352
	fio_both --name=any --size=12m --io_size=1m --rw=randwrite --iodepth=32 --bssplit=512/60:1536/20:8704/20 \
		--verify_pattern=0x66%o --do_verify=1
	zero_both $((3145728 - 1024)) 70144
}

# life_4k IMAGE CLUSTER REFCOUNT-BITS DIRECT: the page cache is used if a cluster is less than a block, and nobody has to guess.
life_4k() {
	local attach=attach
	[ "$4" = true ] || attach=attach_buffered
	image -o "cluster_size=$2,refcount_bits=$3" "$1" 16M
	shadow_of "$1"
	$attach "$1"
	expect 0 ublk-qcow2 list --json
	json ".[0].direct_io == $4"
	neighbours "$(numfmt --from=iec "${2^^}")"
	same_as_shadow "$dev"
	detach "$dev"
	image_is_shadow "$1" $attach
	drop_shadow
}

# Clusters of 64 KiB over a base whose clusters no direct I/O can take alone.
over_4k() { # BASE
	local before
	before=$(sum "$1")
	image -b "$(basename "$1")" -F qcow2 host/over.qcow2
	shadow_of host/over.qcow2
	attach host/over.qcow2
	same_as_shadow "$dev"
	fio_both --name=any --size=6m --io_size=1m --rw=randwrite --iodepth=16 --bssplit=512/50:1536/50 --verify_pattern=0xaa%o --do_verify=1
	same_as_shadow "$dev"
	detach "$dev"
	image_is_shadow host/over.qcow2
	[ "$(sum "$1")" = "$before" ] || fail "the base changed"
	drop_shadow
}

case_4k_file() {
	host_of 4096
	mkdir host
	mkfs.ext4 -q -b 4096 "$loop"
	mount "$loop" host
	life_4k host/a.qcow2 512 8 false
	[ -z "$long" ] || life_4k host/b.qcow2 1k 64 false
	life_4k host/c.qcow2 64k 1 true
	over_4k host/a.qcow2
	umount host
	losetup -d "$loop"
}

case_4k_device() {
	host_of 4096
	life_4k "$loop" 1k 1 false
	[ -z "$long" ] || life_4k "$loop" 512 64 false
	[ -z "$long" ] || life_4k "$loop" 64k 32 true
	losetup -d "$loop"
}

# Blocks larger than a page, where the kernel has them: our metadata goes by 4096 bytes.
case_16k_device() {
	if ! host_of 16384 2>"$work/err"; then
		echo "not on this kernel: $(cat "$work/err")"
		return
	fi
	life_4k "$loop" 64k 16 false
	losetup -d "$loop"
}

# People keep a base and throw overlays away, or keep them: commit and rebase are QEMU's part.
case_overlay() {
	local before
	image base.qcow2 48M
	qemu-io -c 'write -P 1 0 20M' -c 'write -P 2 30M 5M' -c 'write -z 4M 2M' base.qcow2 >"$work/out"
	before=$(sum base.qcow2)
	image -b base.qcow2 -F qcow2 over.qcow2
	shadow_of over.qcow2
	attach over.qcow2
	same_as_shadow "$dev"
	fio_both --name=any --size=40m --io_size=6m --rw=randwrite --iodepth=32 --bssplit=512/30:4k/50:72k/20 --verify_pattern=0x77%o \
		--do_verify=1
	zero_both $((8388608 + 1536)) $((3145728 + 4096))
	# in what the overlay has: a discard does not hide what is the base's
	fio_both --name=full --offset=12m --size=2m --rw=write --bs=64k --verify_pattern=0x78%o --do_verify=0
	fio_both --name=trim --offset=12m --size=2m --rw=trim:64k --bs=64k --do_verify=0
	fio_both --name=again --offset=8m --size=6m --io_size=512k --rw=randwrite --iodepth=16 --bs=512 --verify_pattern=0x88%o --do_verify=1
	same_as_shadow "$dev"
	detach "$dev"
	[ "$(sum base.qcow2)" = "$before" ] || fail "the base changed"
	image_is_shadow over.qcow2
	[ "$(sum base.qcow2)" = "$before" ] || fail "the base changed, read-only"

	cp over.qcow2 alone.qcow2
	expect 0 qemu-img rebase -f qcow2 -b '' alone.qcow2
	image_is_shadow alone.qcow2
	cp base.qcow2 merged.qcow2
	cp over.qcow2 top.qcow2
	expect 0 qemu-img rebase -u -f qcow2 -b merged.qcow2 -F qcow2 top.qcow2
	expect 0 qemu-img commit -q top.qcow2
	image_is_shadow merged.qcow2
	# and what was merged goes on living
	attach merged.qcow2
	fio_both --name=on --size=40m --io_size=2m --rw=randwrite --iodepth=16 --bs=4k --verify_pattern=0x99%o --do_verify=1
	detach "$dev"
	image_is_shadow merged.qcow2
	drop_shadow
}

run_cases "$@"
