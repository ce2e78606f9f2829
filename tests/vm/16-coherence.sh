#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Coherence of several queues: every byte they read while others discard, zero, copy away and reallocate is judged
# (coherence.c). The smallest mapping table, so that its slots are evicted all the time. The debug build (engine kernel: the
# module) makes hits slow; there the same test must find wrong reads when the drain is skipped.
# kernels: stable backports
# sample: backports+server
# timeout: 9000
# takes: 260
# group: vm long
# vm: --cpus=4
# shellcheck source-path=SCRIPTDIR
set -eu -o pipefail
. "$(dirname "$0")/cli.bash"

build=$(readlink -f "$(dirname "$0")/../../build")
coherence=$build/tests/vm/coherence
scale=1
size=48M # 24 slices of 4 KiB clusters; the table holds 15
events=(--ios=1500 --seed=7)
slow=()
[ "${TEST_SCALE:-}" != long ] || scale=70
delay=/sys/module/ublk_bpf/parameters/test_delay_us
slow_queue=1:500000 # each hit of queue 0 sleeps 0.5 s
very_slow_queue=1:1500000
slow_hits=15:20000:40 # on all four every 40th, 20 ms

# debug_build DELAY [SKIP-DRAIN]: from here on ublk-qcow2 is the debug build; product: the product again. The module knows
# no queues and no every 40th: all hits sleep 5 ms, or those that begin together with the event's slow one.
debug_build() {
	mkdir -p "$base/bin"
	ln -sf "$build/tools/ublk-qcow2-guarded" "$base/bin/ublk-qcow2"
	PATH=$base/bin:$PATH
	export UBLK_QCOW2_TEST_HIT_DELAY=$1 UBLK_QCOW2_TEST_SKIP_DRAIN=${2:-0}
	slow=()
	if [ "$engine" = server ]; then return; fi
	case $1 in
	"$slow_hits") echo 5000 >$delay ;;
	*) slow=("--slow-file=$delay" "--slow-us=${1#*:}") ;;
	esac
}
product() {
	PATH=${PATH#"$base/bin:"}
	unset UBLK_QCOW2_TEST_HIT_DELAY UBLK_QCOW2_TEST_SKIP_DRAIN
	slow=()
	[ "$engine" = server ] || echo 0 >$delay
}

# judge STATUS ARG...: the verdict goes to the log.
judge() {
	local want=$1 got=0
	shift
	timeout $((200 * scale)) "$coherence" "$@" >"$work/out" 2>"$work/err" || got=$?
	echo "$SECONDS s: ${*:2}: $(cat "$work/out")"
	[ $got = "$want" ] || fail "coherence $* exited with $got, not $want"
}

# make_image KIND CLUSTER
make_image() {
	case $1 in
	empty) image -o cluster_size="$2" image.qcow2 $size ;;
	snapshot | overlay)
		truncate -s $size base.raw
		judge 0 base.raw --fill
		if [ "$1" = overlay ]; then
			image -b base.raw -F raw -o cluster_size="$2" image.qcow2
		else
			qemu-img convert -f raw -O qcow2 -o cluster_size="$2" base.raw image.qcow2
			qemu-img snapshot -c before image.qcow2
		fi
		;;
	esac
}

# What the guest last saw is in the image, what must not change has not, and the image is clean.
check_image() {
	expect 0 qemu-img compare -f raw -F qcow2 last.raw image.qcow2
	clean image.qcow2
	expect 0 ublk-qcow2 check image.qcow2
	case $1 in
	overlay) judge 0 base.raw --filled ;;
	snapshot)
		qemu-img convert -l before -O raw image.qcow2 before.raw
		judge 0 before.raw --filled
		;;
	esac
}

# coherent KIND CLUSTER JUDGE-OPTION...
coherent() {
	local kind=$1 cluster=$2
	shift 2
	make_image "$kind" "$cluster"
	attach --queues=4 --cache-size=64K image.qcow2
	judge 0 "$dev" --cluster="$(numfmt --from=iec "$cluster")" "${slow[@]}" "$@"
	json '.queues == 4 and .wrong == 0'
	expect 0 ublk-qcow2 stats --json "$dev"
	cat "$work/out"
	json '.hits > 300 and .misses > 200 and .discards > 0 and .slices <= 15'
	[ "$engine" = server ] || json '.kernel_hits > .hits / 2'
	[ ! -v UBLK_QCOW2_TEST_HIT_DELAY ] || json '.drains > 0'
	taskset -c "$(cut -d, -f1 "$(lower_sys)/mq/1/cpu_list")" dd if="$dev" of=last.raw bs=1M iflag=direct status=none
	detach "$dev"
	check_image "$kind"
	rm -f ./*.raw ./*.qcow2
}

# The judge itself: a plain device is right, one block moved or stale is found.
case_judge() {
	truncate -s $size base.raw
	judge 0 base.raw --fill
	judge 0 base.raw --filled
	modprobe loop
	loop=$(losetup -f --show --direct-io=on base.raw)
	judge 0 "$loop" --cluster=4096 --threads=6 --ios=1000 --events=1
	losetup -d "$loop"
	judge 1 base.raw --filled
	truncate -s 0 base.raw && truncate -s $size base.raw
	judge 0 base.raw --fill
	dd if=base.raw of=base.raw bs=4k count=1 skip=3 seek=4 conv=notrunc status=none
	judge 1 base.raw --filled
	says "of another block"
}

case_product() {
	grep -q UBLK_QCOW2_TEST "$build/tools/ublk-qcow2-guarded" || fail "no switches in the debug build"
	! grep -q UBLK_QCOW2_TEST "$build/tools/ublk-qcow2" || fail "test switches in the product"
	coherent empty 4k --ios=$((14000 * scale)) --seed=1
	coherent snapshot 4k --ios=$((6000 * scale)) --seed=2
	coherent overlay 4k --ios=$((6000 * scale)) --seed=3 --backed
	coherent empty 64k --ios=$((4000 * scale)) --seed=4
}

case_slow_hits() {
	debug_build $slow_hits
	coherent snapshot 4k --ios=3000 --seed=5
	coherent overlay 4k --ios=3000 --seed=6 --backed
	product
}

case_slow_queue() {
	debug_build $slow_queue
	coherent empty 4k --events=6 "${events[@]}"
	coherent empty 64k --events=6 --events-first "${events[@]}"
	product
}

# The same without the drain, with patience: an event finds something only if all of it happens during the slow hit.
# What the image is worth then nobody knows.
without_drain() { # CLUSTER JUDGE-OPTION...
	make_image empty "$1"
	attach --queues=4 --cache-size=64K image.qcow2
	judge 1 "$dev" --cluster="$(numfmt --from=iec "$1")" --events=20 --until-wrong "${slow[@]}" "${@:2}" "${events[@]}"
	json '.wrong > 0'
	head -n 3 "$work/err"
	expect 0 ublk-qcow2 stats --json "$dev"
	json '.drains == 0 and .hits > 100'
	expect 0 ublk-qcow2 detach "$dev"
	rm image.qcow2
}

case_slow_queue_without_drain() {
	debug_build $very_slow_queue 1
	without_drain 4k
	without_drain 64k --events-first
	product
}

[ "$engine" = server ] || modprobe ublk_bpf
run_cases "$@"
