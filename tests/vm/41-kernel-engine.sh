#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Engine kernel: real use, that hits wake nobody, death and recovery of the processes, what may be seen of the lower device,
# and coherence, with a module that sleeps between a hit's lookup and its I/O; there the same test must find wrong
# reads when withdrawals do not drain.
# kernels: stable backports
# engines: kernel
# timeout: 9000
# takes: 240
# group: vm long
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/cli.bash"

build=$(readlink -f "$(dirname "$0")/../../build")
coherence=$build/tests/vm/coherence
scale=1
[ "${TEST_SCALE:-}" != long ] || scale=50
events=0
size=48M # 24 slices of 4 KiB clusters; the table holds 15
delay=/sys/module/ublk_bpf/parameters/test_delay_us

kattach() {
	attach --engine=kernel "$@"
	[[ $dev = /dev/ublkbpf* ]] || fail "$dev is not the module's"
	lower=/dev/ublkb${dev#/dev/ublkbpf}
}

case_features() {
	expect 0 ublk-qcow2 features --json
	json '.auto == "kernel" and (.engines[] | select(.name == "kernel") | .available)'
	image a.qcow2 64M
	attach --engine=auto a.qcow2
	expect 0 ublk-qcow2 list --json
	json '.[0].engine == "kernel" and (.[0].device | startswith("/dev/ublkbpf"))'
	expect 1 rmmod ublk_bpf
	detach --all
	until_true rmmod ublk_bpf 2>err # the kernel frees the program a little later
	env -u UBLK_QCOW2_ENGINE ublk-qcow2 attach a.qcow2 >out || fail "attach" # the module comes by itself
	[[ $(cat out) = /dev/ublkbpf* ]] || fail "$(cat out)"
	detach --all
	until_true rmmod ublk_bpf 2>err
	module=$(modinfo -n ublk_bpf)
	mv "$module" .
	expect 0 ublk-qcow2 features --json
	json '.auto == "server" and (.engines[] | select(.name == "kernel") | .why_not | startswith("the kernel has no module ublk_bpf"))'
	attach --engine=auto a.qcow2
	[[ $dev = /dev/ublkb[0-9]* ]] || fail "auto: $dev"
	detach --all
	expect 1 ublk-qcow2 attach --engine=kernel a.qcow2
	one_error
	says "a.qcow2: --engine=kernel: the kernel has no module ublk_bpf"
	mv ublk_bpf.ko "$module"
	modprobe ublk_bpf
}

# The number is taken by a disk that is not over our device: `auto` goes on without, with the device's partitions.
case_auto_falls_back() {
	image a.qcow2 64M
	kattach a.qcow2
	printf 'label: gpt\nsize=16M\n' | sfdisk -q "$dev" || fail "sfdisk"
	detach "$dev"
	modprobe null_blk nr_devices=1 gb=1 memory_backed=0
	"$build/tests/vm/bpf-disk" create /dev/nullb0 20 >out || fail "bpf-disk"
	[ "$(cat out)" = 0 ] || fail "another number"
	expect 1 ublk-qcow2 attach --engine=kernel a.qcow2
	one_error
	says "/dev/ublkbpf0: cannot be made: File exists"
	expect 0 ublk-qcow2 attach --engine=auto a.qcow2
	says "a.qcow2: engine server, not kernel: /dev/ublkbpf0: cannot be made: File exists"
	dev=$(cat out)
	[ "$dev" = /dev/ublkb0 ] || fail "$dev"
	until_true test -b /dev/ublkb0p1
	[ "$(property "$dev" SYSTEMD_READY)" != 0 ] || fail "udev still thinks that it is the lower one"
	put 40000 a
	has 40000 a
	expect 0 ublk-qcow2 list --json
	json '.[0].engine == "server"'
	detach "$dev"
	until_true "$build/tests/vm/bpf-disk" destroy 0
	rmmod null_blk
	sound a.qcow2
}

case_use() {
	image a.qcow2 512M
	kattach a.qcow2
	mkfs.ext4 -q "$dev"
	mkdir mnt
	mount "$dev" mnt
	expect 1 ublk-qcow2 detach "$dev"
	says "mounted on"
	cp -a /usr/lib/python3*/[a-e]* mnt/
	(cd mnt && find . -type f -exec sha256sum {} +) >sums
	umount mnt
	fio --output=fio.log --name=v --filename="$dev" --offset=400M --size=24M --direct=1 --ioengine=libaio --rw=randwrite --bs=4k-64k \
		--iodepth=32 --numjobs=2 --offset_increment=32M --io_size=16M --verify=crc32c --end_fsync=1 || fail "fio: $(tail -n 20 fio.log)"
	(($(stat_of kernel_hits) > 500)) || fail "few hits: $(ublk-qcow2 stats "$dev")"
	ublk-qcow2 stats "$dev"
	expect 0 ublk-qcow2 stats "$lower"
	detach "$lower"
	nothing_left
	sound a.qcow2
	kattach --read-only a.qcow2
	mount -o ro,noload "$dev" mnt
	(cd mnt && sha256sum --quiet -c ../sums) || fail "files differ"
	umount mnt
	expect 1 dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct
	detach a.qcow2
	sound a.qcow2
}

# What the worker used up: clock ticks, and how often each thread slept or was interrupted; without io_uring's own idle threads,
# which look at the time every 5 s.
usage_of() {
	awk '$2 !~ /iou-wrk/ { n += $14 + $15 } END { print "ticks", n }' /proc/"$1"/task/*/stat
	awk '/^Name:/ { name = $2 } /ctxt_switches/ && name !~ /^iou-wrk/ { n[name] += $2 } END { for (t in n) print t, n[t] }' \
		/proc/"$1"/task/*/status | sort
}

case_nobody_wakes() {
	local pid hits before
	image a.qcow2 64M
	kattach a.qcow2
	pid=$(member pid)
	dd if=/dev/urandom of="$dev" bs=1M count=32 oflag=direct conv=fsync status=none
	run() {
		fio --output=fio.log --name=mapped --filename="$dev" --size=32M --direct=1 --ioengine=libaio --rw=randrw --bs=4k-16k --iodepth=16 \
			--number_ios=2000 --randseed=1 || fail "fio: $(tail -n 20 fio.log)"
	}
	run
	udevadm settle
	sleep 7 # the periodic commit is over
	exec 9<>"$dev"
	hits=$(stat_of kernel_hits)
	sleep 1 # the answer is out of the door
	before=$(usage_of "$pid")
	run
	[ "$(usage_of "$pid")" = "$before" ] || fail "the worker worked: $before; $(usage_of "$pid")"
	exec 9>&-
	(($(stat_of kernel_hits) - hits >= 2000)) || fail "not all were hits"
	detach "$dev"
	sound a.qcow2
}

# Sixteen clusters that follow each other in the image are one I/O, to the slice's end.
case_large_hits() {
	local hits writes
	image a.qcow2 128M
	kattach a.qcow2
	dd if=/dev/urandom of="$dev" bs=1M count=40 oflag=direct conv=fsync status=none
	dd if="$dev" of=all bs=1M count=40 iflag=direct status=none # now it is all mapped
	udevadm settle
	udevadm control --stop-exec-queue # it looks at what was written, sooner or later
	hits=$(stat_of kernel_hits)
	for at in 0 3 30; do
		dd if="$dev" bs=1M skip=$at count=1 iflag=direct status=none | cmp - <(dd if=all bs=1M skip=$at count=1 status=none) ||
			fail "other data"
	done
	(($(stat_of kernel_hits) - hits == 3)) || fail "1 MiB is more than one I/O: $(($(stat_of kernel_hits) - hits)) for 3"
	dd if="$dev" bs=1M iflag=direct,skip_bytes skip=$(((32 << 20) - 524288)) count=1 status=none |
		cmp - <(tail -c +$(((32 << 20) - 524287)) all | head -c 1M) || fail "other data over the slice's end"
	(($(stat_of kernel_hits) - hits == 5)) || fail "not two I/Os over the slice's end"
	writes=$(stat_of writes)
	dd if=all of="$dev" bs=1M count=1 oflag=direct conv=notrunc status=none
	(($(stat_of writes) - writes == 1)) || fail "a write of 1 MiB is more than one I/O"
	udevadm control --start-exec-queue
	detach "$dev"
	sound a.qcow2
}

# Nobody serves the lower device: hits go on, misses wait.
case_killed_worker() {
	local supervisor waiting
	image a.qcow2 64M
	kattach a.qcow2
	put 0 a
	put 1000 b
	supervisor=$(member supervisor_pid)
	kill -STOP "$supervisor"
	kill -9 "$(member pid)"
	sleep 1
	has 0 a
	put 0 c
	has 0 c
	has 1000 b
	(put 20000 d) & waiting=$!
	sleep 1
	kill -0 $waiting || fail "a miss was answered by nobody"
	kill -CONT "$supervisor"
	wait $waiting || fail "a miss failed"
	until_true is_state live
	has 0 c
	has 1000 b
	has 20000 d
	[ "$(member device)" = "$dev" ] || fail "another device"
	(($(stat_of daemon_restarts) == 1)) || fail "not restarted"
	has 0 c
	has 0 c
	(($(stat_of kernel_hits) > 0)) || fail "no hits"
	expect 0 ublk-qcow2 restart "$dev"
	(($(stat_of kernel_hits) == 0)) || fail "hits that were counted for an earlier worker"
	has 20000 d
	detach "$dev"
	nothing_left
	sound a.qcow2
}

# Both processes die: the image stays locked as long as hits may write to it.
case_both_killed() {
	image a.qcow2 64M
	kattach a.qcow2
	put 0 a
	put 1000 b
	kill_both
	sleep 3
	has 0 a
	put 0 c
	expect 1 qemu-io -c 'write 0 64k' a.qcow2
	expect 0 ublk-qcow2 recover "$dev"
	silent
	has 0 c
	has 1000 b
	put 2000 d
	expect 1 qemu-io -c 'write 0 64k' a.qcow2
	kill_both
	detach a.qcow2
	nothing_left
	sound a.qcow2
	[ "$(qemu-io -r -c 'read -P 99 0 4k' -c 'read -P 98 1000k 4k' -c 'read -P 100 2000k 4k' a.qcow2 | grep -c '^read 4096')" = 3 ] ||
		fail "data is not in the image"
}

# Killed under load, again and again.
case_killed_under_load() {
	image a.qcow2 256M
	kattach --cache-size=64K a.qcow2
	fio --output=fio.log --name=v --filename="$dev" --size=128M --direct=1 --ioengine=libaio --rw=randwrite --bs=4k-32k --iodepth=32 \
		--io_size=48M --verify=crc32c --verify_fatal=1 & local fio=$!
	for _ in {1..5}; do
		sleep 1
		kill -9 "$(member pid)" 2>/dev/null || true
		until_true is_state live
	done
	wait $fio || fail "fio: $(tail -n 20 fio.log)"
	detach "$dev"
	sound a.qcow2
}

property() { udevadm info --query=property --property="$2" --value "$1"; }

# For everybody but the disk over it there is nothing on the lower device, and nothing can be done to it.
nothing_on_lower() {
	cmp -n 1048576 "$lower" /dev/zero || fail "data on the lower device"
	dd if="$lower" bs=64k count=16 iflag=direct status=none | cmp -n 1048576 - /dev/zero || fail "data on the lower device"
	expect 1 dd if=/dev/zero of="$lower" bs=4k count=1 oflag=direct
	expect 1 blkdiscard -f "$lower"
	expect 1 blkdiscard -z -f "$lower"
}

# What is in the image is found once: on the upper device.
case_lower_is_invisible() {
	image a.qcow2 512M
	kattach a.qcow2
	printf 'label: gpt\nsize=64M\nsize=300M\n' | sfdisk -q "$dev" || fail "sfdisk"
	udevadm settle
	until_true test -b "${dev}p2"
	mkfs.btrfs -q -L found-once "${dev}p2" >out
	detach "$dev"
	kattach a.qcow2
	until_true test -b "${dev}p2"
	udevadm settle
	[ ! -e "${lower}p1" ] || fail "partitions of the lower device"
	[ "$(readlink -f /dev/disk/by-label/found-once)" = "${dev}p2" ] || fail "by-label: $(readlink -f /dev/disk/by-label/found-once)"
	[ -z "$(property "$lower" ID_PART_TABLE_TYPE)" ] || fail "udev read the lower device"
	[ "$(property "$dev" ID_PART_TABLE_TYPE)" = gpt ] || fail "udev did not read the upper device"
	nothing_on_lower
	sfdisk -q -d "$dev" >out || fail "no partition table"
	expect 1 mkfs.ext4 -q "$lower"
	says "in use"
	detach "$dev"
	image pv.qcow2 128M
	kattach pv.qcow2
	pvcreate -q "$dev" >out 2>err || fail "pvcreate"
	detach "$dev"
	kattach pv.qcow2
	udevadm settle
	expect 0 pvs --noheadings -o pv_name
	silent
	[ "$(tr -d ' ' <out)" = "$dev" ] || fail "LVM sees $(cat out)"
	[ -z "$(property "$lower" ID_FS_TYPE)" ] || fail "udev read the lower device"
	[ "$(property "$dev" ID_FS_TYPE)" = LVM2_member ] || fail "udev did not read the upper device"
	detach "$dev"
	sound pv.qcow2
}

case_refused() {
	truncate -s 64M host.raw
	modprobe loop
	loop=$(losetup -f --show -b 4096 --direct-io=on host.raw) || fail "losetup"
	mkfs.ext4 -q -b 4096 "$loop"
	mkdir host
	mount "$loop" host
	image -o cluster_size=512 host/a.qcow2 1M
	expect 1 ublk-qcow2 attach --engine=kernel host/a.qcow2
	one_error
	says "host/a.qcow2: --engine=kernel: needs direct I/O"
	nothing_left
	umount host
	losetup -d "$loop"
}

# judge STATUS ARG...: the verdict goes to the log.
judge() {
	local want=$1 got=0
	shift
	timeout $((400 * scale)) "$coherence" "$@" >"$work/out" 2>"$work/err" || got=$?
	echo "$SECONDS s: ${*:2}: $(cat "$work/out")"
	[ $got = "$want" ] || fail "coherence $* exited with $got, not $want"
}

# coherent DELAY-US CLUSTER JUDGE-OPTION...
coherent() {
	local hits=300 misses=50
	image -o cluster_size="$2" image.qcow2 "$size"
	kattach --queues=2 --cache-size=64K image.qcow2
	echo "$1" >$delay
	judge 0 "$dev" --cluster="$(numfmt --from=iec "$2")" "${@:3}"
	echo 0 >$delay
	json '.wrong == 0'
	[ "$1" = 0 ] || hits=10
	[ "$events" = 0 ] || misses=$((events * 9)) # an event's allocating writes; the first read is another
	expect 0 ublk-qcow2 stats --json "$dev"
	cat out
	json ".kernel_hits > $hits and .misses > $misses and .slices <= 15"
	dd if="$dev" of=last.raw bs=1M iflag=direct status=none
	detach "$dev"
	expect 0 qemu-img compare -f raw -F qcow2 last.raw image.qcow2
	sound image.qcow2
	rm -f last.raw image.qcow2
}

case_coherence() {
	coherent 0 4k --ios=$((6000 * scale)) --seed=11
	coherent 0 64k --ios=$((3000 * scale)) --seed=12
	coherent 5000 4k --ios=1500 --seed=13
	# Reading a whole device with such hits takes long: a small one.
	size=1M events=2 coherent 500000 4k --ios=0 --events=2 --groups=2 --group-blocks=8 --hot=1 --seed=7
}

# A host file system in memory, for many hits.
mount_memory() { # FOLDER
	local null=/sys/kernel/config/nullb/nullb0
	modprobe null_blk nr_devices=0
	mkdir $null
	echo 256 >$null/size
	echo 1 >$null/memory_backed
	echo 1 >$null/irqmode
	echo 1 >$null/power
	mkfs.ext4 -q /dev/nullb0
	mkdir "$1"
	mount /dev/nullb0 "$1" || fail "mount"
}

# Reads as fast as they go, of what others write, discard, zero, copy and evict meanwhile, and whose worker is
# replaced and killed, once or every minute.
case_coherence_reads() {
	local reads=100000 rounds=1 round pause=3 pid
	[ "$scale" = 1 ] || reads=250000 rounds=20 pause=60 # of each; 10 million take an hour, so there are many verdicts
	mount_memory host
	for kind in snapshot empty; do
		image -o cluster_size=4k host/image.qcow2 "$size"
		if [ $kind = snapshot ]; then
			qemu-io -c "write -q -P 0 0 $size" host/image.qcow2 || fail "qemu-io"
			qemu-img snapshot -c before host/image.qcow2
		fi
		kattach --queues=2 --cache-size=64K host/image.qcow2
		echo "$dev" >device
		(
			while sleep $pause && [ -e device ]; do
				ublk-qcow2 restart "$dev"
				sleep $pause
				[ ! -e device ] || kill -9 "$(member pid)"
				[ $pause != 3 ] || break
			done
		) >churn 2>&1 & pid=$!
		for ((round = 0; round < rounds; round++)); do
			judge 0 "$dev" --cluster=4096 --ios=$((reads / 100)) --reads=$reads --seed=$((21 + round))
			json ".wrong == 0 and .reads > $reads"
		done
		rm device
		wait $pid || fail "$(cat churn)"
		until_true is_state live
		expect 0 ublk-qcow2 stats --json "$dev"
		cat out
		json '.daemon_restarts > 0'
		dd if="$dev" of=last.raw bs=1M iflag=direct status=none
		detach "$dev"
		expect 0 qemu-img compare -f raw -F qcow2 last.raw host/image.qcow2
		sound host/image.qcow2
		rm -f last.raw host/image.qcow2
	done
	umount host
	rmdir /sys/kernel/config/nullb/nullb0
}

case_coherence_without_drain() {
	mkdir -p "$base/bin"
	ln -sf "$build/tools/ublk-qcow2-guarded" "$base/bin/ublk-qcow2"
	PATH=$base/bin:$PATH
	export UBLK_QCOW2_TEST_SKIP_DRAIN=1
	image -o cluster_size=4k image.qcow2 1M
	kattach --queues=2 --cache-size=64K image.qcow2
	echo 1500000 >$delay
	judge 1 "$dev" --cluster=4096 --ios=0 --events=7 --groups=2 --group-blocks=8 --hot=1 --until-wrong --seed=7
	echo 0 >$delay
	json '.wrong > 0'
	head -n 3 "$work/err"
	expect 0 ublk-qcow2 detach "$dev"
	PATH=${PATH#"$base/bin:"}
	unset UBLK_QCOW2_TEST_SKIP_DRAIN
}

modprobe ublk_drv
modprobe ublk_bpf
# The rest of the proof of coherence takes minutes, and large_hits counts I/Os of which others may make some: ./test long.
[ $# -gt 0 ] || [ "${TEST_SCALE:-}" = long ] ||
	set -- features auto_falls_back use nobody_wakes killed_worker both_killed lower_is_invisible coherence_reads
run_cases "$@"
