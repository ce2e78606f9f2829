#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: stable+server
# timeout: 900
# takes: 180
# group: vm
# What attach must refuse: one line that says what and why, exit status 1, the file as it was, no device left.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

# refused MESSAGE FILE [OPTION...]
refused() {
	local message=$1 file=$2 before='' there
	shift 2
	there=$(everything)
	if [ -f "$file" ]; then before=$(sum "$file"; stat -c '%s %Y %a' "$file"); fi
	expect 1 ublk-qcow2 attach "$@" -- "$file"
	one_error
	says "$message"
	[ ! -f "$file" ] || [ "$before" = "$(sum "$file"; stat -c '%s %Y %a' "$file")" ] || fail "$file changed"
	[ "$there" = "$(everything)" ] || fail "left behind: $(everything)"
}

# A good image, then one header field replaced: broken OFFSET BYTES MESSAGE [OPTION...]
broken() {
	local offset=$1 bytes=$2 message=$3
	shift 3
	[ -e good.qcow2 ] || image good.qcow2 64M
	cp good.qcow2 broken.qcow2
	patch broken.qcow2 "$offset" "$bytes"
	refused "$message" broken.qcow2 "$@"
}

case_not_an_image() {
	echo hello >text
	: >empty
	printf 'QFI\xfb' >magic
	head -c 1M /dev/zero >zeroes
	mkfifo fifo
	mkdir dir
	ln -s loop loop
	ln -s nowhere dangling
	python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
	refused "text: not a qcow2 image" text
	refused "empty: not a qcow2 image" empty
	refused "magic: header: cut off" magic
	refused "zeroes: not a qcow2 image" zeroes
	refused "zeroes: not a qcow2 image" zeroes --read-only
	refused "fifo: is a fifo" fifo
	refused "dir: is a directory" dir
	refused "is a directory" dir/
	refused "socket: is a socket" socket
	refused "/dev/null: is a character device" /dev/null
	refused "missing: cannot be opened" missing
	refused "missing: cannot be opened: No such file or directory" dir/missing
	refused "No such file or directory" nowhere/missing
	refused "No such file or directory" dangling
	refused "cannot be opened" loop
	refused "cannot be opened: Not a directory" text/image
	refused "cannot be opened" ""
	refused "cannot be opened" "$(printf 'x%.0s' {1..300})"
}

case_permission() {
	image a.qcow2 64M
	chattr +i a.qcow2
	refused "a.qcow2: cannot be opened for writing: Operation not permitted" a.qcow2
	attach --read-only a.qcow2
	detach "$dev"
	chattr -i a.qcow2
	mkdir ro
	mount --bind "$work" ro
	mount -o remount,bind,ro ro
	refused "ro/a.qcow2: cannot be opened for writing: Read-only file system" ro/a.qcow2
	umount ro
	# not root: neither the device nor the image
	chmod 755 /root "$base" "$work"
	expect 1 setpriv --reuid=65534 --regid=65534 --clear-groups ublk-qcow2 attach "$work/a.qcow2"
	one_error
	nothing_left
	chmod 000 a.qcow2
	expect 1 setpriv --reuid=65534 --regid=65534 --clear-groups ublk-qcow2 info "$work/a.qcow2"
	one_error
	says "a.qcow2: cannot be opened: Permission denied"
	chmod 700 /root
}

case_locked() {
	local pid
	image a.qcow2 64M
	mkfifo go
	qemu-io a.qcow2 <go >/dev/null & pid=$!
	exec 8>go
	for _ in {1..100}; do grep -q OFDLCK /proc/$pid/fdinfo/* 2>/dev/null && break; sleep 0.1; done
	sleep 0.3
	refused "a.qcow2: is locked: in use for writing by qemu-io (pid $pid)" a.qcow2
	refused "a.qcow2: is locked: in use for writing by qemu-io (pid $pid)" a.qcow2 --read-only
	for command in info check map; do
		expect 1 ublk-qcow2 $command a.qcow2
		says "in use for writing by qemu-io (pid $pid)"
	done
	exec 8>&-
	wait $pid
	rm go
	attach a.qcow2
	detach "$dev"
	# the same for a backing file that somebody writes
	image base.qcow2 64M
	image -b base.qcow2 -F qcow2 over.qcow2
	attach base.qcow2
	refused "base.qcow2: is locked: in use for writing by ublk-qcow2" over.qcow2
	detach "$dev"
	attach over.qcow2
	expect 1 ublk-qcow2 attach base.qcow2
	says "in use for reading by ublk-qcow2"
	expect 1 qemu-io -c quit base.qcow2
	detach "$dev"
}

# over BACKING FORMAT: an overlay whose backing file nobody looked at
over() {
	qemu-img create -q -u -f qcow2 -b "$1" -F "$2" over.qcow2 64M >/dev/null || fail "qemu-img create -u -b $1"
}

case_backing() {
	image base.qcow2 64M
	mkdir -p dir
	mkfifo fifo
	over missing.qcow2 qcow2
	refused "missing.qcow2: cannot be opened: No such file or directory" over.qcow2
	refused "over.qcow2: backing file: $PWD/missing.qcow2: cannot be opened: No such file or directory" over.qcow2 --read-only
	over dir raw
	refused "dir: is a directory" over.qcow2
	over fifo raw
	refused "fifo: is a fifo" over.qcow2
	over /dev/null raw
	refused "/dev/null: is a character device" over.qcow2
	echo text >text
	over text qcow2
	refused "text: not a qcow2 image" over.qcow2
	over base.qcow2 vmdk
	refused "vmdk" over.qcow2
	over base.qcow2 qcow2
	forget_backing_format over.qcow2
	refused "over.qcow2" over.qcow2
	over 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}' qcow2
	refused "json:" over.qcow2
	over nbd://localhost/x raw
	refused "nbd:" over.qcow2
	over self.qcow2 qcow2
	mv over.qcow2 self.qcow2
	refused "self.qcow2" self.qcow2
	over a.qcow2 qcow2
	qemu-img create -q -u -f qcow2 -b over.qcow2 -F qcow2 a.qcow2 64M
	refused "qcow2" over.qcow2
	refused "qcow2" over.qcow2 --read-only
	# what the overlay is made of is never touched
	over base.qcow2 qcow2
	attach over.qcow2
	detach "$dev"
}

# (A dirty image is repaired: 20-cli.)
case_features() {
	broken 72 '\0\0\0\0\0\0\0\2' "marked corrupt"
	broken 72 '\0\0\0\0\0\0\0\4' "external data file"
	broken 72 '\0\0\0\0\0\0\0\20' "extended L2"
	broken 72 '\0\0\0\0\0\0\1\0' "incompatible feature bit 8"
	broken 72 '\200\0\0\0\0\0\0\0' "bit 63" --read-only
	broken 32 '\0\0\0\1' "encryption (AES"
	broken 32 '\0\0\0\2' "encryption (LUKS"
}

case_header() {
	broken 4 '\0\0\0\1' "version is 1"
	broken 4 '\0\0\0\4' "version is 4"
	broken 20 '\0\0\0\0' "cluster_bits is 0"
	broken 20 '\0\0\0\077' "cluster_bits is 63"
	broken 24 '\177\377\377\377\377\377\377\377' "l1_size is"
	broken 36 '\377\377\377\377' "l1_size is"
	broken 40 '\0\0\0\0\0\0\2\1' "L1 table"
	broken 40 '\177\377\377\377\377\377\0\0' "L1 table"
	broken 48 '\0\0\0\0\377\377\0\0' "refcount table"
	broken 56 '\0\0\0\0' "refcount_table_clusters is 0"
	broken 56 '\377\377\377\377' "refcount_table_clusters"
	broken 60 '\377\377\377\377' "nb_snapshots"
	broken 96 '\0\0\0\77' "refcount_order is 63"
	broken 100 '\0\0\0\1' "header_length is 1"
	head -c 100 good.qcow2 >short.qcow2
	refused "cut off" short.qcow2
	head -c 65536 good.qcow2 >header-only.qcow2
	refused "header-only.qcow2" header-only.qcow2
}

# The same for those who only look: no crash, an answer or one line.
case_inspect() {
	local bytes
	image good.qcow2 64M
	for bytes in 4 20 24 36 40 48 56 60 72 96 100; do
		cp good.qcow2 broken.qcow2
		patch broken.qcow2 $bytes '\377\377\377\377'
		for command in info check map; do
			timeout 20 ublk-qcow2 $command broken.qcow2 >out 2>err
			case $? in
			0 | 2 | 3) ;;
			1) [ "$(wc -l <err)" = 1 ] || fail "$command at $bytes: not one line" ;;
			*) fail "$command at $bytes" ;;
			esac
		done
	done
}

# rmmod, and keep it from coming back.
case_no_driver() {
	image a.qcow2 64M
	echo 'install ublk_drv /bin/false' >/etc/modprobe.d/cli-test.conf
	modprobe -r ublk_drv || fail "modprobe -r"
	refused "ublk" a.qcow2
	says "the kernel has no ublk_drv"
	expect 0 ublk-qcow2 features
	prints "ublk control: missing"
	prints "auto takes:   none"
	expect 0 ublk-qcow2 features --json
	json '.auto == null and .ublk_control == false'
	expect 0 ublk-qcow2 list --json
	json '. == []'
	rm /etc/modprobe.d/cli-test.conf
	attach a.qcow2
	detach "$dev"
}

run_cases "$@"
