#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: backports+kernel
# timeout: 1800
# takes: 320
# group: vm
# The image's file system gets full while the image grows: writers are told, nothing else is damaged, it works again when
# there is space, and the image is clean afterwards.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

host=$work/host
mib=$((1 << 20))

# A small ext4 of its own, mounted at $host.
small_host() { # MiB [BLOCK-SIZE]
	modprobe loop
	truncate -s "$1M" "$work/host.img"
	loop=$(losetup --find --show -b "${2:-512}" "$work/host.img")
	mkfs.ext4 -q -b 4096 -m 0 "$loop"
	mkdir -p "$host"
	mount "$loop" "$host"
}

no_host() {
	umount "$host"
	losetup -d "$loop"
	rm "$work/host.img"
}

# pattern FILE OFFSET-MIB COUNT-MIB: what belongs there, whoever wrote it.
pattern() { { seq $((1000000 + $1)) 9999999 || true; } | head -c $(($2 * mib)); }

write_at() { # OFFSET-MIB COUNT-MIB DD-OPTION...
	local at=$1 count=$2
	shift 2
	pattern "$at" "$count" | dd of="$dev" bs=64k seek=$((at * 16)) iflag=fullblock status=none "$@"
}

holds() { # OFFSET-MIB COUNT-MIB
	echo 3 >/proc/sys/vm/drop_caches
	dd if="$dev" bs=1M skip="$1" count="$2" iflag=direct status=none | cmp - <(pattern "$1" "$2") ||
		fail "[$1, +$2) MiB differs"
}

# A writer that must fail for want of space.
is_refused() {
	if "$@" 2>"$work/err"; then fail "writing succeeded on a full host: $(df -h "$host")"; fi
	grep -q -e 'No space left' -e 'Input/output error' "$work/err" || fail "another error"
}

full() { # MiB to leave free
	fallocate -l $(($(df --output=avail -B1 "$host" | tail -n 1) - $1 * mib)) "$host/filler"
}

life() { # ATTACH IMAGE-OPTION...
	local attach=$1
	shift
	image "$@" "$host/a.qcow2" 256M
	$attach "$host/a.qcow2"
	write_at 0 8 oflag=direct conv=notrunc,fsync
	full 6

	is_refused write_at 16 24 oflag=direct conv=notrunc
	holds 0 8
	is_refused write_at 64 24 conv=notrunc,fsync	# by the page cache
	holds 0 8
	write_at 0 8 oflag=direct conv=notrunc	# in place: needs no space
	holds 0 8
	# what a reader sees where a write failed may be old or new, but it can be read
	dd if="$dev" of=/dev/null bs=1M count=128 iflag=direct status=none || fail "unreadable"
	expect 0 ublk-qcow2 list --json
	json '.[0].state == "live" and .[0].read_only == false'

	rm "$host/filler"
	write_at 16 24 oflag=direct conv=notrunc,fsync || fail "still refused after space was freed"
	write_at 100 8 conv=notrunc,fsync
	holds 0 8
	holds 16 24
	holds 100 8
	detach "$dev"
	clean "$host/a.qcow2"
	expect 0 ublk-qcow2 check "$host/a.qcow2"

	$attach --read-only "$host/a.qcow2"
	holds 0 8
	holds 16 24
	holds 100 8
	detach "$dev"
	rm "$host/a.qcow2"
}

# Detached while the host is still full: what was flushed is there, and the image is clean; if detach said that it could
# not write everything, clusters may be leaked, but nothing is worse.
closed_full() {
	image "$@" "$host/b.qcow2" 256M
	attach "$host/b.qcow2"
	write_at 0 8 oflag=direct conv=notrunc,fsync
	full 3
	is_refused write_at 16 24 oflag=direct conv=notrunc
	if timeout 60 ublk-qcow2 detach "$dev" >"$work/out" 2>"$work/err"; then
		clean "$host/b.qcow2"
	else
		one_error
		qemu-img check "$host/b.qcow2" >"$work/out" 2>"$work/err" || [ $? = 3 ] || fail "more than leaks"
	fi
	rm "$host/filler"
	attach --read-only "$host/b.qcow2"
	holds 0 8
	detach "$dev"
	rm "$host/b.qcow2"
}

case_direct() {
	small_host 96
	life attach
	life attach -o cluster_size=4k
	closed_full -o cluster_size=4k
	no_host
}

case_4k_blocks() {
	small_host 96 4096
	life attach -o cluster_size=2M
	life attach_buffered -o cluster_size=512
	no_host
}

run_cases "$@"
