#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kernels: stable backports
# sample: backports+kernel
# timeout: 1800
# takes: 270
# group: vm
# The command from its user's side: attach, list, stats, info, detach, their options, and who is in the way.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

write_pattern() { # DEVICE OFFSET-MIB BYTE
	head -c 1M /dev/zero | tr '\0' "$3" | dd of="$1" bs=1M seek="$2" oflag=direct conv=notrunc,fsync status=none ||
		fail "write to $1"
}

has_pattern() {
	[ "$(dd if="$1" bs=1M skip="$2" count=1 iflag=direct status=none | tr -d "$3" | wc -c)" = 0 ] || fail "$1: other data"
}

case_features() {
	expect 0 ublk-qcow2 features
	silent
	prints "$(uname -r)"
	prints "kernel  available"
	prints "auto takes:   kernel"
	expect 0 ublk-qcow2 features --json
	json '.ublk_control and .auto == "kernel" and (.features | index("CMD_IOCTL_ENCODE"))'
	json '[.engines[] | .name] == ["kernel", "uring", "server"]'
	json '.engines[] | select(.name == "kernel") | .available and .why_not == null'
	json '.engines[] | select(.name == "server") | .available and (has("why_not") | not)'
	json '.engines[] | select(.name == "uring") | .available == false and (.why_not | length > 0)'
	json '.zero_copy == ((.features | index("AUTO_BUF_REG")) != null)'
}

case_first_use() {
	image a.qcow2 256M
	attach a.qcow2
	[ "$(blockdev --getsize64 "$dev")" = $((256 << 20)) ] || fail "size"
	[ "$(blockdev --getro "$dev")" = 0 ] || fail "read-only"
	write_pattern "$dev" 5 a
	has_pattern "$dev" 5 a

	expect 0 ublk-qcow2 list
	silent
	prints "$work/a.qcow2"
	expect 0 ublk-qcow2 list --json
	json "length == 1 and .[0].device == \"$dev\" and .[0].image == \"$work/a.qcow2\" and .[0].engine == \"$engine\""
	json '.[0].state == "live" and .[0].size == 268435456 and .[0].read_only == false'
	json '.[0].pid != .[0].supervisor_pid'
	[ "$(cat "/proc/$(jq '.[0].pid' <out)/comm")" = ublk-qcow2 ] || fail "pid"
	[ "$(cat "/proc/$(jq '.[0].supervisor_pid' <out)/comm")" = ublk-qcow2 ] || fail "supervisor_pid"

	expect 0 ublk-qcow2 stats "$dev" --json
	json ".device == \"$dev\" and .engine == \"$engine\" and .daemon_restarts == 0"
	json '[.hits, .misses, .reads, .writes, .read_bytes, .write_bytes, .flushes, .commits, .withdrawals, .drains, .slices] | all(type == "number")'
	json '.write_bytes >= 1048576 and .writes >= 1 and .reads >= 1 and .hits + .misses >= 2'
	expect 0 ublk-qcow2 stats "$dev"
	prints "write_bytes"

	detach "$dev"
	nothing_left
	clean a.qcow2
	[ "$(qemu-io -r -c 'read -P 97 5M 1M' a.qcow2 | grep -c 'read 1048576')" = 1 ] || fail "data is not in the image"
	expect 0 ublk-qcow2 check a.qcow2
	prints "No errors were found on the image."
	expect 0 ublk-qcow2 list --json
	json '. == []'
}

case_inspect() {
	image base.qcow2 16M
	qemu-io -c 'write -P 1 0 1M' -c 'write -z 2M 128k' base.qcow2 >/dev/null
	image -b base.qcow2 -F qcow2 over.qcow2
	qemu-io -c 'write -P 2 512k 64k' over.qcow2 >/dev/null
	qemu-img snapshot -c 'first one' over.qcow2
	expect 0 ublk-qcow2 info over.qcow2
	prints "backing file:     base.qcow2"
	prints "first one"
	expect 0 ublk-qcow2 info --json over.qcow2
	json '.format == "qcow2" and .virtual_size == 16777216 and .cluster_size == 65536 and .compat == "1.1"'
	json '.backing_file == "base.qcow2" and .backing_format == "qcow2" and .snapshots[0].name == "first one"'
	json '.refcount_bits == 16 and .compression_type == "zlib" and (.dirty or .corrupt | not) and .in_use_by == null'
	qemu-img map --output=json over.qcow2 >want
	expect 0 ublk-qcow2 map --json over.qcow2
	[ "$(jq -c . want)" = "$(jq -c . out)" ] || fail "map differs from qemu-img's: $(cat want)"
	expect 0 ublk-qcow2 check --json over.qcow2
	json '.errors == 0 and .leaks == 0 and .leaks_fixed == 0 and .errors_fixed == 0 and .clusters == 256 and .allocated == 1'
	# neither info nor check needs the backing file
	mv base.qcow2 elsewhere
	expect 0 ublk-qcow2 info over.qcow2
	expect 0 ublk-qcow2 check over.qcow2
	expect 1 ublk-qcow2 map over.qcow2
	says "base.qcow2"
}

# a.qcow2 is sound. Refcounts of a data cluster: one too many is a leak (leak.qcow2), none at all is an error
# (error.qcow2).
damaged_images() {
	local refcounts
	image a.qcow2 16M
	qemu-io -c 'write -P 1 0 1M' a.qcow2 >/dev/null
	refcounts=$(($(od -An -tu8 --endian=big -j $(($(od -An -tu8 --endian=big -j48 -N8 a.qcow2))) -N8 a.qcow2)))
	cp a.qcow2 leak.qcow2
	truncate -s +64K leak.qcow2
	patch leak.qcow2 $((refcounts + 2 * 21)) '\0\1' # the first cluster after the last
	cp a.qcow2 error.qcow2
	patch error.qcow2 $((refcounts + 2 * 8)) '\0\0'
}

case_check_status() {
	damaged_images
	expect 3 ublk-qcow2 check leak.qcow2
	prints "leaked clusters were found"
	says "LEAK"
	expect 3 ublk-qcow2 check --json leak.qcow2
	json '.leaks == 1 and .errors == 0'
	expect 2 ublk-qcow2 check error.qcow2
	prints "errors were found on the image"
	expect 1 ublk-qcow2 check /etc/passwd
	one_error
}

same_data() { qemu-img compare -q a.qcow2 "$1" || fail "$1: the guest sees something else"; }

case_check_repair() {
	local before
	damaged_images
	cp leak.qcow2 l.qcow2
	expect 0 ublk-qcow2 check --repair=leaks l.qcow2
	prints "1 refcount was lowered."
	prints "Fixed: 0 errors, 1 leaked clusters."
	prints "No errors were found on the image."
	clean l.qcow2 && same_data l.qcow2
	before=$(sum l.qcow2)
	expect 0 ublk-qcow2 check --repair=all --json l.qcow2
	silent
	json '.leaks_fixed == 0 and .errors_fixed == 0 and .errors == 0 and .leaks == 0'
	[ "$(sum l.qcow2)" = "$before" ] || fail "nothing to repair, but changed"
	expect 0 ublk-qcow2 check --repair=leaks --json leak.qcow2
	json '.image == "leak.qcow2" and .leaks_fixed == 1 and .errors_fixed == 0 and .errors == 0 and .leaks == 0'
	before=$(sum error.qcow2)
	expect 2 ublk-qcow2 check --repair=leaks error.qcow2
	prints "Left as it is: nothing was freed"
	[ "$(sum error.qcow2)" = "$before" ] || fail "leaks only, but changed"
	expect 0 ublk-qcow2 check --repair=all error.qcow2
	says "ERROR: cluster 8: refcount 0, but 1 references"
	prints "1 refcount was raised."
	clean error.qcow2 && same_data error.qcow2
	# an entry that nobody can put right
	cp a.qcow2 left.qcow2
	patch left.qcow2 $((4 * 65536 + 8)) '\x80\0\0\x7f\0\0\0\0'
	expect 2 ublk-qcow2 check --repair=all --json left.qcow2
	json '.errors > 0'
	expect 2 ublk-qcow2 check --repair=all left.qcow2
	prints "Left as it is: "
}

# A repair changes what is its own alone to change.
case_check_repair_refused() {
	damaged_images
	attach a.qcow2
	expect 1 ublk-qcow2 check --repair=all a.qcow2
	one_error
	says "a.qcow2: is locked: in use for writing by ublk-qcow2"
	detach a.qcow2
	mkdir ro
	mount --bind . ro || fail "mount"
	mount -o remount,bind,ro ro || fail "mount"
	expect 1 ublk-qcow2 check --repair=leaks ro/leak.qcow2
	one_error
	says "leak.qcow2: cannot be opened for writing: Read-only file system"
	expect 3 ublk-qcow2 check ro/leak.qcow2
	umount ro
	image -o extended_l2=on extended.qcow2 16M
	expect 1 ublk-qcow2 check --repair=all extended.qcow2
	one_error
}

case_attach_repair() {
	damaged_images
	expect 0 ublk-qcow2 attach --repair=leaks leak.qcow2
	says "leak.qcow2: 1 leaked clusters freed"
	dev=$(cat out)
	cmp -n 1M "$dev" <(head -c 1M /dev/zero | tr '\0' '\1') || fail "other data"
	detach "$dev"
	clean leak.qcow2 && same_data leak.qcow2
	attach --repair=leaks leak.qcow2 # nothing to say this time
	detach "$dev"
	expect 1 ublk-qcow2 attach --repair=leaks error.qcow2
	one_error
	says "errors keep leaked clusters from being freed"
}

# QEMU with lazy refcounts that died, and an image that something found corrupt.
case_attach_dirty_or_corrupt() {
	local before
	image -o lazy_refcounts=on a.qcow2 64M
	qemu-io -c 'write -P 7 0 20M' -c abort a.qcow2 >/dev/null 2>&1 || true
	qemu-img info a.qcow2 >out
	cp a.qcow2 corrupt.qcow2
	before=$(sum a.qcow2)
	attach --read-only a.qcow2
	detach "$dev"
	[ "$(sum a.qcow2)" = "$before" ] || fail "attached read-only, but changed"
	expect 0 ublk-qcow2 attach a.qcow2
	says "a.qcow2: was not closed by its last user: repaired"
	dev=$(cat out)
	cmp -n 20M "$dev" <(head -c 20M /dev/zero | tr '\0' '\7') || fail "other data"
	dd if=/dev/urandom of="$dev" bs=1M count=4 seek=18 conv=fsync status=none || fail "write"
	detach "$dev"
	clean a.qcow2
	attach a.qcow2
	detach "$dev"
	patch corrupt.qcow2 79 '\3'
	before=$(sum corrupt.qcow2)
	expect 1 ublk-qcow2 attach corrupt.qcow2
	one_error
	says "marked corrupt (incompatible bit 1): use \`attach --read-only\`, or repair it with \`ublk-qcow2 check --repair=all\`"
	expect 1 ublk-qcow2 attach --repair=leaks corrupt.qcow2
	one_error
	[ "$(sum corrupt.qcow2)" = "$before" ] || fail "refused, but changed"
	expect 0 ublk-qcow2 check --repair=all corrupt.qcow2
	prints "The dirty bit was cleared."
	prints "The corrupt bit was cleared."
	clean corrupt.qcow2
	attach corrupt.qcow2
	detach "$dev"
}

case_in_use() {
	local pid
	image a.qcow2 64M
	attach a.qcow2
	pid=$(member pid)
	expect 1 ublk-qcow2 attach a.qcow2
	one_error
	grep -q -E "a.qcow2: is locked: in use for writing by ublk-qcow2 \(pid ($pid|$(member supervisor_pid))\)" err || fail "by whom?"
	expect 1 ublk-qcow2 attach --read-only a.qcow2
	says "in use for writing"
	expect 1 ublk-qcow2 info a.qcow2
	says "in use for writing"
	expect 0 ublk-qcow2 info -U a.qcow2
	prints "attached as:      $dev"
	prints "ublk-qcow2 (pid $pid) for writing"
	expect 0 ublk-qcow2 info --force-share --json a.qcow2
	json ".device == \"$dev\" and (.in_use_by | length > 0)"
	expect 0 ublk-qcow2 map -U a.qcow2
	expect 1 qemu-img info a.qcow2
	says 'Failed to get shared "write" lock'
	detach a.qcow2
}

case_names() {
	image 'a b.qcow2' 8M
	mkdir -p sub
	ln -sf "../a b.qcow2" sub/link.qcow2
	attach 'a b.qcow2'
	(cd /dev && expect 0 ublk-qcow2 stats "${dev#/dev/}") || exit 1
	(cd sub && expect 0 ublk-qcow2 detach link.qcow2) || exit 1
	nothing_left
	attach "$work/sub/../a b.qcow2"
	(cd /dev && expect 0 ublk-qcow2 detach "./${dev#/dev/}") || exit 1
	nothing_left
	attach 'a b.qcow2'
	ln -s "$dev" disk
	detach disk
	nothing_left
	printf -v odd 'new\nline \x01.qcow2'
	image "$odd" 8M
	attach "$odd"
	expect 0 ublk-qcow2 list
	[ "$(wc -l <out)" = 2 ] || fail "a name breaks the table"
	prints 'new\x0aline \x01.qcow2'
	expect 0 ublk-qcow2 list --json
	json ".[0].image == \"$work/new\\nline \\u0001.qcow2\""
	detach "$odd"
	attach -- 'a b.qcow2'
	mv 'a b.qcow2' renamed.qcow2
	detach renamed.qcow2
	# a link's backing file is looked for beside the link, as QEMU does
	image top.qcow2 8M
	mkdir images
	mv top.qcow2 images/
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -u images/top.qcow2 8M
	ln -s images/top.qcow2 top.qcow2
	image base.qcow2 8M
	attach top.qcow2
	detach top.qcow2
}

case_read_only() {
	local sum first
	image a.qcow2 64M
	qemu-io -c 'write -P 97 5M 1M' a.qcow2 >/dev/null
	sum=$(sum a.qcow2)
	attach --read-only a.qcow2
	[ "$(blockdev --getro "$dev")" = 1 ] || fail "writable"
	has_pattern "$dev" 5 a
	first=$dev
	attach --read-only a.qcow2
	[ "$first" != "$dev" ] || fail "the same device twice"
	expect 1 ublk-qcow2 attach a.qcow2
	says "in use for reading"
	expect 1 ublk-qcow2 detach a.qcow2
	one_error
	says "is attached 2 times: name the device: $first, $dev"
	expect 0 ublk-qcow2 list --json
	json 'length == 2 and (map(.read_only) | all)'
	detach "$first"
	detach a.qcow2
	[ "$sum" = "$(sum a.qcow2)" ] || fail "the image changed"
}

case_options() {
	local auto
	image a.qcow2 64M
	attach --queues=1 --depth=8 --cache-size=256K --discard=ignore --block-size=4096 a.qcow2
	[ "$(blockdev --getss "$dev")" = 4096 ] || fail "block size"
	[ "$(cat "/sys/block/${dev#/dev/}/queue/discard_max_bytes")" = 0 ] || fail "discard"
	[ ! -e "$(lower_sys)/mq/1" ] || fail "queues"
	expect 0 ublk-qcow2 list --json
	json '.[0].queues == 1 and .[0].depth == 8'
	json ".[0].engine == \"$engine\""
	write_pattern "$dev" 1 z
	detach "$dev"
	clean a.qcow2
	expect 0 ublk-qcow2 features --json
	auto=$(jq -r .auto out)
	attach --engine=auto a.qcow2
	is_of_engine "$auto"
	detach "$dev"
	attach --lock=none --engine=server a.qcow2
	expect 0 qemu-img info a.qcow2
	[ "$(blockdev --getss "$dev")" = 512 ] || fail "default block size"
	detach "$dev"
	truncate -s 8M raw
	image -b raw -F raw over.qcow2
	forget_backing_format over.qcow2
	attach --backing-format=raw over.qcow2
	detach "$dev"
}

case_usage() {
	image a.qcow2 8M
	local args
	while read -r args; do
		# shellcheck disable=SC2086
		expect 2 ublk-qcow2 $args
		[ ! -s out ] || fail "usage on standard output"
		says "Try \`ublk-qcow2"
	done <<-LIST

		bogus
		--bogus
		attach
		attach a b
		attach --bogus a.qcow2
		attach --queues=0 a.qcow2
		attach --queues=65 a.qcow2
		attach --depth=1025 a.qcow2
		attach --depth= a.qcow2
		attach --cache-size=12x a.qcow2
		attach --cache-size=-1 a.qcow2
		attach --block-size=1024 a.qcow2
		attach --discard=maybe a.qcow2
		attach --engine=fast a.qcow2
		attach --lock a.qcow2
		attach --backing-format=vmdk a.qcow2
		attach --read-only=yes a.qcow2
		attach --repair=all a.qcow2
		attach --repair=leaks --read-only a.qcow2
		detach
		detach --all a.qcow2
		detach --force
		recover
		recover --all a.qcow2
		restart
		restart --all
		worker
		list a.qcow2
		stats
		stats --all
		info
		info a b
		map --repair=all a.qcow2
		check --repair
		check --repair=some a.qcow2
		check --repair=leaks --force-share a.qcow2
		features now
	LIST
	expect 1 ublk-qcow2 attach --engine=uring a.qcow2; one_error; says "not supported by this build"
	expect 1 ublk-qcow2 attach --snapshot=x a.qcow2; one_error; says "not supported by this build"
	for args in attach detach recover restart list stats info check map features; do
		expect 0 ublk-qcow2 $args --help
		silent
		prints "Usage: ublk-qcow2 $args"
		expect 0 ublk-qcow2 help $args
	done
	expect 0 ublk-qcow2 --help
	expect 0 ublk-qcow2 --version
	prints "ublk-qcow2 "
	expect 1 bash -c 'ublk-qcow2 --help >/dev/full'
	says "No space left"
}

case_unknown_device() {
	local arg command
	image a.qcow2 8M
	for arg in /dev/ublkb7 ublkb7 a.qcow2 missing /dev/vda /dev/null .; do
		expect 1 ublk-qcow2 detach $arg
		one_error
		says "is not attached"
		for command in stats recover restart; do
			expect 1 ublk-qcow2 $command $arg
			one_error
		done
	done
	detach --all
	expect 0 ublk-qcow2 recover --all
	silent
}

# ---- who is in the way ----

refuses_as() {
	expect 1 ublk-qcow2 detach "$dev"
	one_error
	says "ublk-qcow2: $dev: is in use: $1"
	expect 0 ublk-qcow2 stats "$dev"
}

case_busy() {
	local pid loop
	image a.qcow2 300M
	mkdir -p mnt
	attach a.qcow2
	{ mkfs.ext4 -q "$dev" && mount "$dev" mnt; } || fail "mkfs, mount"
	refuses_as "mounted on $work/mnt"
	umount mnt
	unshare --mount --propagation private bash -c "mount '$dev' mnt && exec sleep 1000" & pid=$!
	for _ in {1..100}; do grep -q "$dev" /proc/$pid/mountinfo && break; sleep 0.1; done
	refuses_as "mounted on $work/mnt in the mount namespace of "
	kill $pid; wait $pid 2>/dev/null
	sleep 0.5
	{ mkswap "$dev" >/dev/null 2>&1 && swapon "$dev"; } || fail "swapon"
	refuses_as "swap area $dev"
	swapoff "$dev"
	if dmsetup create clitest --table "0 1024 linear $dev 0" 2>/dev/null; then
		refuses_as "used by /dev/mapper/clitest"
		dmsetup remove --retry clitest
	fi
	if loop=$(losetup --find --show "$dev" 2>/dev/null); then
		refuses_as "used by $loop"
		losetup -d "$loop"
	fi
	# shellcheck disable=SC2217
	sleep 1000 <"$dev" & pid=$!
	sleep 0.3
	refuses_as "opened by sleep (pid $pid)"
	kill $pid; wait $pid 2>/dev/null
	echo ',' | sfdisk -q "$dev"
	udevadm settle
	[ -b "${dev}p1" ] || fail "no partition"
	{ mkfs.ext4 -q "${dev}p1" && mount "${dev}p1" mnt; } || fail "mkfs, mount of a partition"
	refuses_as "mounted on $work/mnt"
	expect 1 ublk-qcow2 detach "${dev}p1"
	says "is a partition: name the whole device"
	umount mnt
	detach "$dev"
	clean a.qcow2
}

case_several() {
	local i
	for i in 1 2 3 4; do
		image d$i.qcow2 8M
		attach --queues=1 d$i.qcow2
	done
	local pid
	# shellcheck disable=SC2217
	sleep 1000 <"$dev" & pid=$!
	sleep 0.3
	expect 0 ublk-qcow2 list --json
	json 'length == 4 and (map(.device) | . == sort)'
	expect 1 ublk-qcow2 detach --all
	says "$dev: is in use: opened by sleep"
	expect 0 ublk-qcow2 list --json
	json "length == 1 and .[0].device == \"$dev\""
	kill $pid; wait $pid 2>/dev/null
	detach --all
}

# udev still looks at the device when it is to go again.
case_at_once() {
	image a.qcow2 64M
	for _ in {1..8}; do
		attach a.qcow2
		detach "$dev"
		nothing_left
	done
	clean a.qcow2
}

# ---- processes ----

case_foreground() {
	local signal pid
	image a.qcow2 64M
	for signal in TERM INT; do
		: >dev
		# a background job of a script ignores SIGINT from birth: env gives it back
		env --default-signal=INT ublk-qcow2 attach --foreground a.qcow2 >dev 2>err & pid=$!
		for _ in {1..100}; do [ -s dev ] && break; sleep 0.1; done
		dev=$(cat dev)
		[ -b "$dev" ] || fail "no device"
		write_pattern "$dev" 3 q
		kill -$signal $pid
		wait $pid || fail "ended with $?"
		[ ! -s err ] || fail "errors"
		nothing_left
	done
	: >dev
	ublk-qcow2 attach --foreground a.qcow2 >dev 2>err & pid=$!
	for _ in {1..100}; do [ -s dev ] && break; sleep 0.1; done
	detach "$(cat dev)"
	wait $pid || fail "ended with $?"
	clean a.qcow2
	ublk-qcow2 attach --foreground missing.qcow2 >dev 2>err && fail "attached"
	says "missing.qcow2: cannot be opened"
}

case_background() {
	local pid supervisor process
	image a.qcow2 64M
	dev=$(ublk-qcow2 attach a.qcow2 2>&1) # returns only if nobody else holds the pipe
	pid=$(member pid) supervisor=$(member supervisor_pid)
	for process in "$pid" "$supervisor"; do
		[ "$(readlink "/proc/$process/cwd")" = / ] || fail "cwd"
		[ "$(readlink "/proc/$process"/fd/[012] | sort -u)" = /dev/null ] || fail "standard files"
		[ "$(ps -o sid= -p "$process" | tr -d ' ')" = "$supervisor" ] || fail "no session of its own"
	done
	[ "$(stat -c %a "$(rundir)")" = 700 ] || fail "run directory's mode"
	kill -HUP "$pid" "$supervisor"
	kill -USR1 "$pid"
	sleep 0.5
	[ -e "$(rundir)/dump" ] || fail "no dump"
	write_pattern "$dev" 3 q
	kill -TERM "$pid"
	until_true is_dead "$supervisor"
	nothing_left
	clean a.qcow2
	# stray descriptors do not follow
	exec 7</etc/passwd
	attach a.qcow2
	supervisor=$(member supervisor_pid)
	for process in $(member pid) $supervisor; do
		[ "$(readlink "/proc/$process/fd/7")" != /etc/passwd ] || fail "a stray descriptor"
	done
	exec 7<&-
	kill -TERM "$supervisor"
	until_true is_dead "$supervisor"
	nothing_left
	clean a.qcow2
}

# Both processes died: the device waits for whoever comes. More of that in 22-recovery.sh.
case_killed() {
	image a.qcow2 64M
	attach a.qcow2
	write_pattern "$dev" 3 q
	kill_both
	expect 0 ublk-qcow2 list --json
	json "length == 1 and .[0].state == \"failed\" and .[0].pid == null and .[0].image == \"$work/a.qcow2\""
	json '.[0].supervisor_pid == null'
	expect 1 ublk-qcow2 stats "$dev"
	one_error
	expect 1 ublk-qcow2 restart "$dev"
	one_error
	detach "$dev"
	nothing_left
	clean a.qcow2
	attach --read-only a.qcow2
	kill_both
	detach a.qcow2
	nothing_left
	# its number may be somebody else's by now: that device stays
	attach a.qcow2
	write_pattern "$dev" 4 q
	kill_both
	cp -r /run/ublk-qcow2 /run/other
	expect 0 env UBLK_QCOW2_RUNDIR=/run/other ublk-qcow2 detach "$dev"
	image b.qcow2 64M
	expect 0 env UBLK_QCOW2_RUNDIR=/run/other ublk-qcow2 attach b.qcow2
	[ "$(cat out)" = "$dev" ] || fail "another number"
	detach a.qcow2
	write_pattern "$dev" 3 q
	expect 0 env UBLK_QCOW2_RUNDIR=/run/other ublk-qcow2 detach b.qcow2
	rmdir /run/other
	clean b.qcow2
	clean a.qcow2
	[ "$(qemu-io -r -c 'read -P 113 3M 2M' a.qcow2 | grep -c 'read 2097152')" = 1 ] || fail "data is not in the image"
}

# The process dies with the device half made: what it had is deleted by the one that waits.
case_died_early() {
	image a.qcow2 64M
	# sched_setaffinity: a queue thread starts, after ADD_DEV and before START_DEV
	expect 1 strace -f -qq -o /dev/null -e trace=sched_setaffinity -e inject=sched_setaffinity:signal=KILL:when=1 \
		ublk-qcow2 attach a.qcow2
	one_error
	says "the device process was killed: Killed; /dev/ublkb0 is removed again"
	nothing_left
	attach a.qcow2
	detach a.qcow2
	clean a.qcow2
}

# Whoever waited for the device went away before it was ready: nobody would know of it, so it goes, too.
case_caller_gone() {
	local pid
	image a.qcow2 64M
	strace -f -qq -o /dev/null -e trace=sched_setaffinity -e inject=sched_setaffinity:delay_enter=2000000:when=1 \
		ublk-qcow2 attach a.qcow2 >dev 2>err & pid=$!
	for _ in {1..100}; do [ -e /dev/ublkc0 ] && break; sleep 0.1; done
	kill -TERM "$(pgrep -o -x ublk-qcow2)" || fail "nobody waits"
	wait $pid
	for _ in {1..100}; do [ -n "$(everything)" ] || break; sleep 0.1; done
	nothing_left
	[ ! -s dev ] || fail "a device was printed"
	clean a.qcow2
}

run_cases "$@"
