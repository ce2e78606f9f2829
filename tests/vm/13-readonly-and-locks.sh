#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: stable+kernel
# timeout: 900
# takes: 60
# group: vm
# Who may use an image at the same time: read-only devices, QEMU's locks in both directions, shared backing files,
# several devices.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

fill() { # IMAGE BYTE: 4 MiB
	qemu-io -c "write -P $2 0 4M" "$1" >"$work/out" 2>"$work/err" || fail "qemu-io write"
}

# reads BYTE AT-MIB: one MiB of $dev
reads() {
	[ "$(dd if="$dev" bs=1M skip="$2" count=1 iflag=direct status=none | tr -d "\\$(printf %o "$1")" | wc -c)" = 0 ] ||
		fail "$dev: not byte $1 at $2 MiB"
}

writes() { # BYTE AT-MIB
	head -c 1M /dev/zero | tr '\0' "\\$(printf %o "$1")" |
		dd of="$dev" bs=1M seek="$2" oflag=direct conv=notrunc,fsync iflag=fullblock status=none
}

# QEMU must not get in: "Failed to get ... lock".
qemu_refused() {
	expect 1 "$@"
	grep -q 'Failed to get .* lock' "$work/err" "$work/out" || fail "refused for another reason"
}

case_read_only() {
	image ro.qcow2 64M
	fill ro.qcow2 7
	sum ro.qcow2 >before
	attach --read-only ro.qcow2
	[ "$(blockdev --getro "$dev")" = 1 ] || fail "not read-only"
	reads 7 3
	reads 0 5
	if writes 1 0 2>"$work/err"; then fail "a write succeeded"; fi
	if blkdiscard -q "$dev" 2>"$work/err"; then fail "a discard succeeded"; fi
	if blkdiscard -z "$dev" 2>"$work/err"; then fail "writing zeroes succeeded"; fi
	if blockdev --setrw "$dev" 2>"$work/err" && writes 1 0 2>"$work/err"; then fail "a write succeeded after --setrw"; fi
	sync "$dev"
	reads 7 0
	expect 0 ublk-qcow2 list --json
	json '.[0].read_only'
	# other readers are welcome, writers are not
	expect 0 qemu-io -r -c 'read -P 7 0 4M' ro.qcow2
	qemu_refused qemu-io -c 'write 0 64k' ro.qcow2
	detach "$dev"
	[ "$(sum ro.qcow2)" = "$(cat before)" ] || fail "the image changed"
}

# Not even root's permission to write is needed: the file is on a read-only file system.
case_read_only_host() {
	mkdir host
	image host/a.qcow2 16M
	fill host/a.qcow2 9
	mount --bind host host
	mount -o remount,bind,ro host
	attach --read-only host/a.qcow2
	reads 9 1
	detach "$dev"
	expect 1 ublk-qcow2 attach host/a.qcow2
	one_error
	umount host
}

# The dirty and autoclear bits and the like: a read-only device changes none of them.
case_read_only_snapshot() {
	image s.qcow2 32M
	fill s.qcow2 3
	qemu-img snapshot -c one s.qcow2
	fill s.qcow2 4
	sum s.qcow2 >before
	attach --read-only s.qcow2
	reads 4 2
	detach "$dev"
	[ "$(sum s.qcow2)" = "$(cat before)" ] || fail "the image changed"
}

case_qemu_refused() {
	image a.qcow2 64M
	attach a.qcow2
	writes 5 1
	qemu_refused qemu-io -c 'write 0 64k' a.qcow2
	qemu_refused qemu-io -r -c 'read 0 64k' a.qcow2
	qemu_refused qemu-img snapshot -c one a.qcow2
	qemu_refused qemu-img check a.qcow2
	qemu_refused qemu-img resize a.qcow2 128M
	expect 0 qemu-img info -U a.qcow2
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	says "ublk-qcow2 (pid "
	expect 1 ublk-qcow2 attach --read-only a.qcow2
	one_error
	detach a.qcow2
	expect 0 qemu-io -r -c 'read -P 5 1M 1M' a.qcow2
	clean a.qcow2
}

# hold OPTION...: qemu-nbd serves a.qcow2 with these options until released
hold() {
	qemu-nbd "$@" -t -f qcow2 -k "$work/nbd.sock" a.qcow2 >/dev/null 2>&1 & holder=$!
	for _ in {1..100}; do [ -S nbd.sock ] && break; sleep 0.1; done
	[ -S nbd.sock ] || fail "qemu-nbd does not come up"
}

release() {
	kill "$holder"
	wait "$holder" || true
	rm -f nbd.sock
}

case_attach_refused() {
	image a.qcow2 64M
	fill a.qcow2 1
	sum a.qcow2 >before
	hold
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	says "a.qcow2"
	says "qemu-nbd (pid $holder)"
	expect 1 ublk-qcow2 attach --read-only a.qcow2
	one_error
	nothing_left
	release
	hold -r
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	says "qemu-nbd"
	attach --read-only a.qcow2	# two readers
	reads 1 0
	detach "$dev"
	release
	[ "$(sum a.qcow2)" = "$(cat before)" ] || fail "a refused attach changed the image"
	attach a.qcow2
	detach "$dev"
}

case_shared_base() {
	local one two
	image base.qcow2 64M
	fill base.qcow2 8
	sum base.qcow2 >before
	image -b base.qcow2 -F qcow2 one.qcow2
	image -b base.qcow2 -F qcow2 -o cluster_size=4k two.qcow2
	attach one.qcow2
	one=$dev
	attach two.qcow2
	two=$dev
	writes 22 1
	dev=$one writes 11 2
	dev=$one reads 8 1
	dev=$one reads 11 2
	dev=$two reads 22 1
	dev=$two reads 8 2
	# nobody may write to the base now
	qemu_refused qemu-io -c 'write 0 64k' base.qcow2
	expect 1 ublk-qcow2 attach base.qcow2
	one_error
	detach "$one"
	expect 1 ublk-qcow2 attach base.qcow2
	one_error
	detach "$two"
	[ "$(sum base.qcow2)" = "$(cat before)" ] || fail "the base changed"
	clean one.qcow2
	clean two.qcow2
	expect 0 qemu-io -r -c 'read -P 8 1M 1M' -c 'read -P 11 2M 1M' one.qcow2
	expect 0 qemu-io -r -c 'read -P 22 1M 1M' -c 'read -P 8 2M 1M' two.qcow2
}

case_three_devices() {
	local i devices=()
	for i in 1 2 3; do
		image "$i.qcow2" 64M
		attach "$i.qcow2"
		devices+=("$dev")
	done
	[ "$(printf '%s\n' "${devices[@]}" | sort -u | wc -l)" = 3 ] || fail "two devices of one name: ${devices[*]}"
	expect 0 ublk-qcow2 list --json
	json 'length == 3 and all(.[]; .state == "live")'
	local writers=()
	for i in 1 2 3; do
		dev=${devices[i - 1]} writes "$i" "$i" & writers+=($!)
	done
	for i in "${writers[@]}"; do wait "$i" || fail "a writer"; done
	# the one in use stays, the others go
	exec 7<"${devices[1]}"
	expect 1 ublk-qcow2 detach --all
	says "${devices[1]}"
	expect 0 ublk-qcow2 list --json
	json "length == 1 and .[0].device == \"${devices[1]}\""
	exec 7<&-
	detach --all
	expect 0 ublk-qcow2 list --json
	json 'length == 0'
	for i in 1 2 3; do
		clean "$i.qcow2"
		expect 0 qemu-io -r -c "read -P $i ${i}M 1M" "$i.qcow2"
	done
	detach --all	# nothing to do is fine
}

run_cases "$@"
