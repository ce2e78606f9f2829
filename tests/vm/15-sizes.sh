#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Images of 64 TiB, and images cut off at every interesting length.
# kernels: stable backports
# sample: backports+server
# timeout: 900
# takes: 110
# group: vm
# shellcheck source=tests/vm/cli.bash
. "$(dirname "$0")/cli.bash"

# put_mib FILL OFFSET-IN-MIB: a block there, read back past the page cache
put_mib() {
	head -c 4096 /dev/zero | tr '\0' "$1" >block
	dd if=block of="$dev" bs=4k seek=$(($2 * 256)) oflag=direct conv=notrunc status=none || fail "write at $2 MiB"
	dd if="$dev" bs=4k count=1 skip=$(($2 * 256)) iflag=direct status=none | cmp - block || fail "read at $2 MiB"
}

case_64_tib() {
	local bits mib=$((64 * 1024 * 1024)) at
	for bits in 64k 2M; do
		image -o cluster_size=$bits big.qcow2 64T
		attach big.qcow2
		[ "$(blockdev --getsize64 "$dev")" = $((mib * 1024 * 1024)) ] || fail "size"
		for at in 0 1 $((mib / 2)) $((mib - 1)); do put_mib "$((at % 7))" $at; done
		sync "$dev"
		dd if="$dev" bs=1M count=1 skip=$((mib / 3)) iflag=direct status=none | cmp -n 1048576 - /dev/zero || fail "not zero"
		detach "$dev"
		clean big.qcow2
		[ "$(stat -c %b big.qcow2)" -lt $((64 * 1024 * 2)) ] || fail "the file takes more than 64 MiB"
		rm big.qcow2
	done
}

# Whatever is missing: a refusal in one line and an unchanged file, or a device that can be read and detached.
case_truncated() {
	local size length before mode used=0 refused=0
	image -o cluster_size=4k whole.qcow2 2M
	qemu-io -f qcow2 -c 'write -P 5 0 1M' -c 'write -z 1M 64k' whole.qcow2 >/dev/null
	size=$(stat -c %s whole.qcow2)
	for length in 0 1 4 71 72 103 104 111 112 511 4095 4096 4097 8192 12288 16383 16384 20480 24576 28672 \
		$((size / 2)) $((size - 8192)) $((size - 4096)) $((size - 1)); do
		for mode in '' --read-only; do
			cp whole.qcow2 cut.qcow2
			truncate -s "$length" cut.qcow2
			before=$(sum cut.qcow2)
			# shellcheck disable=SC2086
			if ublk-qcow2 attach $mode cut.qcow2 >"$work/out" 2>"$work/err"; then
				dev=$(cat "$work/out")
				dd if="$dev" of=/dev/null bs=64k iflag=direct status=none 2>"$work/err" || true
				detach "$dev"
				used=$((used + 1))
			else
				one_error
				says cut.qcow2
				[ "$before" = "$(sum cut.qcow2)" ] || fail "a refused image cut to $length bytes was changed"
				refused=$((refused + 1))
			fi
			[ -z "$mode" ] || [ "$before" = "$(sum cut.qcow2)" ] || fail "cut to $length bytes, changed by --read-only"
			[ -z "$(ls /dev/ublkb* 2>/dev/null)" ] || fail "a device is left"
		done
	done
	if [ $used -le 2 ] || [ $refused -le 20 ]; then fail "$used attached, $refused refused"; fi
}

run_cases "$@"
