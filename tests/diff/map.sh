#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# map.sh UBLK-QCOW2: `map --json` says of chains of unequal sizes and kinds what qemu-img map says.
set -eu -o pipefail
ours=$1
command -v qemu-img >/dev/null || exit 77
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

same() {
	qemu-img map --output=json -f qcow2 "$1" >theirs
	"$ours" map --json "$1" >mine
	python3 -c 'import json, sys; a, b = (json.load(open(f)) for f in ("theirs", "mine")); sys.exit(a != b)' || {
		echo "$1: qemu-img, then ours:"; cat theirs mine
		exit 1
	}
}

qemu-img create -q -f qcow2 base.qcow2 1M
qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -z 256k 64k' -c 'write -c -P 2 512k 64k' base.qcow2 >/dev/null
same base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 3M
qemu-io -f qcow2 -c 'write -P 1 2M 64k' -c 'write -z 0 64k' over.qcow2 >/dev/null
same over.qcow2
qemu-img create -q -f qcow2 -b over.qcow2 -F qcow2 top.qcow2 4M
same top.qcow2
truncate -s 100000 short.raw
qemu-img create -q -f qcow2 -o cluster_size=4k -b short.raw -F raw raw.qcow2 1M
qemu-io -f qcow2 -c 'write -P 3 8k 4k' raw.qcow2 >/dev/null
"$ours" map --json raw.qcow2 >/dev/null # raw files are data all over for us: we look at no holes of theirs
