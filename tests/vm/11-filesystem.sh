#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: stable+kernel
# timeout: 1800
# takes: 300
# group: vm
# What people do with it: a file system on the device, a tree of sources and one of odd files in it, detach, attach again,
# everything still there.
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

mnt=$work/mnt

mounted() {
	mkdir -p "$mnt"
	mount "$1" "$mnt" || fail "mount $1: $(dmesg | tail -n 3)"
}

write_tree() { # DIRECTORY
	local i
	mkdir -p "$1/deep/er"
	for i in {1..60}; do head -c $((i * 1499)) /dev/urandom >"$1/small-$i"; done
	head -c 12M /dev/urandom >"$1/large"
	truncate -s 20M "$1/deep/sparse"
	echo end >>"$1/deep/sparse"
	cp "$1/large" "$1/deep/er/copy"
	ln -s ../large "$1/deep/link"
}

# A real tree of sources, this project's own, as a tar archive and unpacked on the guest's root: $base/source and copies of it.
copies=8
top=$(cd "$(dirname "$0")/../.." && pwd)
have_source() {
	if [ -d "$base/source" ]; then return; fi
	tar -C "$top" --exclude=./build --exclude=./.git -cf "$base/source.tar" .
	mkdir "$base/source"
	tar -C "$base/source" -xf "$base/source.tar"
	[ "$(find "$base/source" -type f | wc -l)" -gt 100 ] || fail "$top: hardly any files"
}

unpack() { # DIRECTORY
	local i
	for ((i = 0; i < copies; i++)); do
		mkdir -p "$1/$i"
		tar -C "$1/$i" -xf "$base/source.tar"
	done
}

same_source() { # DIRECTORY COUNT: the first COUNT copies, byte for byte, and nothing else
	local i
	[ "$(find "$1" -mindepth 1 -maxdepth 1 | wc -l)" = "$2" ] || fail "$1: not $2 copies"
	for ((i = 0; i < $2; i++)); do
		diff -r --no-dereference "$base/source" "$1/$i" >"$work/out" || fail "$1/$i: not what was unpacked"
	done
}

sums_of() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

same_tree() { # DIRECTORY SUMS
	echo 3 >/proc/sys/vm/drop_caches
	sums_of "$1" | cmp - "$2" || fail "$1: another content"
}

settle() { # IMAGE: at rest, and both checkers agree
	clean "$1"
	expect 0 ublk-qcow2 check "$1"
}

# life IMAGE MKFS...: the whole life of a file system, discards included.
life() {
	local image=$1 i
	shift
	attach "$image"
	expect 0 "$@" "$dev"
	mounted "$dev"
	write_tree "$mnt/tree"
	have_source
	unpack "$mnt/source"
	sums_of "$mnt/tree" >"$work/sums"
	same_tree "$mnt/tree" "$work/sums"
	expect 1 ublk-qcow2 detach "$dev"	# mounted
	says "$mnt"
	umount "$mnt"
	detach "$dev"
	settle "$image"

	attach "$image"
	mounted "$dev"
	same_tree "$mnt/tree" "$work/sums"
	same_source "$mnt/source" $copies
	for ((i = 2; i < copies; i++)); do rm -r "$mnt/source/$i"; done
	rm -r "$mnt/tree/deep" "$mnt/tree/large"
	cp -r "$mnt/tree" "$mnt/again"
	(cd "$mnt/tree" && sums_of .) >"$work/sums"
	sync -f "$mnt"	# blocks are free only when the removal is committed
	expect 0 fstrim "$mnt"
	umount "$mnt"
	detach "$image"
	settle "$image"

	attach --read-only "$image"
	mkdir -p "$mnt"
	mount -o ro "$dev" "$mnt" || fail "mount read-only"
	same_tree "$mnt/again" "$work/sums"
	same_source "$mnt/source" 2
	umount "$mnt"
	detach "$dev"
}

case_ext4() {
	image ext4.qcow2 256M
	life ext4.qcow2 mkfs.ext4 -q
	# fstrim gave back what the removed files had; two copies of the sources are left
	local used source
	used=$(qemu-img info --output=json ext4.qcow2 | jq '."actual-size"')
	source=$(($(du -s --block-size=4K "$base/source" | cut -f 1) << 12))
	[ "$used" -lt $((2 * source + (15 << 20))) ] || fail "trim gave nothing back: $used bytes, the sources have $source"
}

case_xfs_small_clusters() {
	image -o cluster_size=4k xfs.qcow2 400M
	life xfs.qcow2 mkfs.xfs -q
}

case_ext4_over_backing() {
	image base.qcow2 256M
	attach base.qcow2
	expect 0 mkfs.ext4 -q "$dev"
	mounted "$dev"
	write_tree "$mnt/base"
	sums_of "$mnt/base" >base.sums
	umount "$mnt"
	detach "$dev"
	sum base.qcow2 >base.sum
	image -b base.qcow2 -F qcow2 over.qcow2
	attach over.qcow2
	mounted "$dev"
	same_tree "$mnt/base" "$work/base.sums"
	write_tree "$mnt/over"
	sums_of "$mnt/over" >over.sums
	rm -r "$mnt/base/deep"
	umount "$mnt"
	detach "$dev"
	settle over.qcow2
	attach over.qcow2
	mounted "$dev"
	same_tree "$mnt/over" "$work/over.sums"
	umount "$mnt"
	detach "$dev"
	[ "$(sum base.qcow2)" = "$(cat base.sum)" ] || fail "the backing file changed"
}

# A partition table inside: its partitions appear and are usable when attach returns.
case_partitions() {
	local id='/dev/disk/by-id/qcow2-part_1_.qcow2'
	image 'part(1).qcow2' 256M
	attach 'part(1).qcow2'
	printf 'label: gpt\nsize=64M\nsize=128M\n' | sfdisk -q "$dev" >"$work/out" 2>"$work/err" || fail "sfdisk"
	detach "$dev"
	attach 'part(1).qcow2'
	[ -b "${dev}p2" ] || fail "no partition after attach: $(lsblk "$dev")"
	udevadm settle
	[ "$(readlink -f "$id" "$id"-part[12] | tr '\n' ' ')" = "$dev ${dev}p1 ${dev}p2 " ] || fail "links: $(ls -l "$id"*)"
	[ "$(readlink -f "/dev/disk/by-partuuid/$(lsblk -n -o PARTUUID "${dev}p1")")" = "${dev}p1" ] || fail "no link by partition"
	[ "$(find /dev -name 'ublkb*p1' | wc -l)" = 1 ] || fail "partitions twice: $(ls /dev/ublkb*)"
	expect 0 mkfs.ext4 -q "${dev}p2"
	mounted "${dev}p2"
	write_tree "$mnt/tree"
	expect 1 ublk-qcow2 detach "$dev"
	says "$mnt"
	umount "$mnt"
	detach "$dev"
	udevadm settle
	[ -z "$(ls -d "$id"* 2>/dev/null)" ] || fail "links are left: $(ls -d "$id"*)"
	settle 'part(1).qcow2'
}

run_cases "$@"
