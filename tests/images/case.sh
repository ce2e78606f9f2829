#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# case.sh READ-IMAGE UBLK-QCOW2 CASE: a kept image reads as recorded and as qemu-img reads it, `check` finds what is
# recorded and what qemu-img finds, `map` says what qemu-img says; and the recorded commands still make such an image.
# Nothing changes the image.
set -eu -o pipefail
reader=$1 ours=$2 here=$(dirname "$(readlink -f "$0")") name=$3
command -v qemu-img >/dev/null || exit 77
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "$name: $*" >&2; exit 1; }
said() { sed -n "s/^$1: //p" "$here/$name/case"; }
sum() { sha256sum | cut -d' ' -f1; }

# converted DIR [OPTION...]: what qemu-img reads
converted() {
	qemu-img convert -O raw "${@:2}" "$1/image.qcow2" "$scratch/raw" && sum <"$scratch/raw"
}

# exits WANTED CMD...
exits() {
	local status=0
	"${@:2}" >"$scratch/out" 2>&1 || status=$?
	[ $status = "$1" ] || { cat "$scratch/out" >&2; fail "\`${*:2}\` exited with $status, not $1"; }
}

reads_as_recorded() {
	[ "$(converted "$1")" = "$(said sha256)" ] || fail "$1: qemu-img reads something else than recorded"
	"$reader" "$1/image.qcow2" >"$scratch/mine" || fail "$1: cannot be read"
	cmp "$scratch/raw" "$scratch/mine" || fail "$1: read otherwise than by qemu-img"
	said 'snapshot' | while read -r snapshot recorded; do
		[ "$(converted "$1" -l "snapshot.name=$snapshot")" = "$recorded" ] || fail "$1: snapshot $snapshot is not as recorded"
	done
}

checks_as_recorded() {
	exits "$(said check)" qemu-img check "$1/image.qcow2"
	exits "$(said check)" "$ours" check "$1/image.qcow2"
}

# QEMU looks for holes in files as well, in raw ones and in clusters with data: only images whose files have none can be compared.
maps_as_qemu() {
	[ ! -e "$1/base.raw" ] || return 0
	qemu-img map --output=json "$1/image.qcow2" >"$scratch/theirs"
	"$ours" map --json "$1/image.qcow2" >"$scratch/mine"
	python3 -c 'import json, sys; a, b = (json.load(open(f)) for f in sys.argv[1:]); sys.exit(a != b)' \
		"$scratch/theirs" "$scratch/mine" || fail "$1: map: $(diff "$scratch/theirs" "$scratch/mine")"
}

mkdir "$scratch/again"
cp -r --sparse=never "$here/$name" "$scratch/kept"
"$here/remake" "$name" "$scratch/again"
maps_as_qemu "$scratch/kept"
for dir in "$scratch/kept" "$scratch/again"; do
	before=$(cat "$dir"/* | sum)
	reads_as_recorded "$dir"
	checks_as_recorded "$dir"
	[ "$(cat "$dir"/* | sum)" = "$before" ] || fail "$dir: something changed a file"
done
