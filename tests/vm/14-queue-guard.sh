#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The debug build under load: a queue thread that allocates or locks while it serves a mapped request aborts the server. And
# with every 211th allocation of the metadata thread failing: requests wait, none fails. (More than any request or commit
# makes, or it would meet a failure each time it is started again.)
# kernels: stable backports
# sample: backports+server
# timeout: 900
# takes: 60
# group: vm
set -eu -o pipefail
command=$(dirname "$0")/../../build/tools/ublk-qcow2-guarded
dir=$(mktemp -d /root/guard.XXXXXX)
cd "$dir"

qemu-img create -q -f raw base.raw 32M
run() { # CHECK-STATUS...: of our check afterwards
	qemu-img create -q -f qcow2 -b base.raw -F raw -o cluster_size=4k over.qcow2
	dev=$("$command" attach over.qcow2)
	# Writes allocate at first and hit later; reads of untouched clusters are zeroes or come from the backing file.
	fio --output=fio.log --name=mix --filename="$dev" --ioengine=libaio --direct=1 --rw=randrw --bs=8k --iodepth=16 \
		--numjobs=2 --size=8M --offset_increment=16M --number_ios=1500 --verify=crc32c --verify_fatal=1 || { cat fio.log; exit 1; }
	dd if="$dev" of=/dev/null bs=256k iflag=direct status=none
	blkdiscard -o 1M -l 1M "$dev"
	sync "$dev"
	"$command" stats "$dev" --json | tee stats.json
	python3 -c 'import json; s = json.load(open("stats.json")); assert s["hits"] > 500, s'
	"$command" detach "$dev"
	qemu-img check over.qcow2 >check.log || [[ " $* " == *" $? "* ]] || { cat check.log; exit 1; }
	"$command" check over.qcow2 >check.log || [[ " $* " == *" $? "* ]] || { cat check.log; exit 1; }
}

run
export UBLK_QCOW2_TEST_NO_MEMORY=211
run 3 # a cluster that should be freed may leak
unset UBLK_QCOW2_TEST_NO_MEMORY
# Another way of copying than the best that this kernel has: user copy, or where that is the best, classic.
UBLK_QCOW2_TEST_COPY=$([ "$TEST_KERNEL" = stable ] && echo 2 || echo 1)
export UBLK_QCOW2_TEST_COPY
run
