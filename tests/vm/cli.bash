# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# cli.bash - what the tests of the command share: a scratch folder on ext4 (real direct I/O), expectations, and the
# certainty that nothing is left behind. Sourced; the test has its cases as functions case_*, run_cases runs them all.
set -u
base=$(mktemp -d /root/cli.XXXXXX)
work=$base # a folder for each case
export UBLK_QCOW2_ENGINE=${UBLK_QCOW2_ENGINE:-server} # of a device whose attach names none
# shellcheck disable=SC2034 # the tests use it
engine=$UBLK_QCOW2_ENGINE

fail() {
	echo "FAILED in ${FUNCNAME[2]:-?}, line ${BASH_LINENO[1]:-?}: $*"
	echo "--- output:"; cat "$work/out"; echo "--- errors:"; cat "$work/err"
	echo "--- devices:"; ls -l /dev/ublk* /run/ublk-qcow2; dmesg | tail -n 5
	echo "--- requests that the driver has:"
	mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug || true
	grep . /sys/kernel/debug/block/ublkb*/hctx*/busy || true # some of the tests have set -e
	echo "--- device processes, and the kernel's that wait for a device:"
	local task
	for task in $(pgrep -x ublk-qcow2 | sed 's,.*,/proc/&/task/*,') $(grep -l ublk_ /proc/[0-9]*/stack | sed 's,/stack$,,'); do
		echo "$(cat "$task/comm"): $(tr '\n' ' ' <"$task/stack")"
	done
	exit 1
} 2>&1

# expect STATUS CMD...: runs it, keeps its output in out and err.
expect() {
	local want=$1 got=0
	shift
	timeout 60 "$@" >"$work/out" 2>"$work/err" || got=$?
	[ $got = "$want" ] || fail "\`$*\` exited with $got, not $want"
}

# Fixed text in what the last command said on standard error, on standard output.
says() { grep -q -F -e "$1" "$work/err" || fail "no \"$1\" in the errors"; }
prints() { grep -q -F -e "$1" "$work/out" || fail "no \"$1\" in the output"; }
silent() { [ ! -s "$work/err" ] || fail "unexpected errors"; }
# One line, in the form `ublk-qcow2: ...`, nothing on standard output.
one_error() {
	[ ! -s "$work/out" ] || fail "output besides an error"
	[ "$(wc -l <"$work/err")" = 1 ] || fail "not one line of errors"
	grep -q '^ublk-qcow2: ' "$work/err" || fail "an error in another form"
}

# json FILTER: jq's opinion of the last output.
json() { jq -e "$1" <"$work/out" >/dev/null || fail "JSON: not true: $1"; }

# attach ARG...: sets $dev; the device must be usable at once.
attach() {
	expect 0 ublk-qcow2 attach "$@"
	silent
	dev=$(cat "$work/out")
	[[ $dev =~ ^/dev/ublkb(pf)?[0-9]+$ ]] || fail "attach printed \"$dev\""
	[ -b "$dev" ] || fail "$dev is no block device"
	[[ " $* " == *" --engine="* ]] || is_of_engine "$UBLK_QCOW2_ENGINE"
}

is_of_engine() {
	case $1:$dev in
	kernel:/dev/ublkbpf* | server:/dev/ublkb[0-9]*) ;;
	*) fail "$dev is not of engine $1" ;;
	esac
}

# As attach, of an image whose clusters are less than its host's blocks: the page cache is used, which engine kernel cannot.
attach_buffered() {
	if [ "$UBLK_QCOW2_ENGINE" = kernel ]; then
		expect 1 ublk-qcow2 attach "$@"
		one_error
		says "--engine=kernel: needs direct I/O"
	fi
	attach --engine=server "$@"
}

# sysfs of the ublk device, which has the queues: with engine kernel it is the one below $dev; and the run directory.
lower_sys() { echo "/sys/block/ublkb${dev##*[!0-9]}"; }
rundir() { echo "/run/ublk-qcow2/${dev##*[!0-9]}"; }

detach() {
	expect 0 ublk-qcow2 detach "$@"
	silent
	[ ! -s "$work/out" ] || fail "detach printed something"
}

image() { qemu-img create -q -f qcow2 "$@" >/dev/null || fail "qemu-img create $*"; }
sum() { sha256sum <"$1"; }
clean() { qemu-img check -q "$1" >"$work/out" 2>"$work/err" || fail "$1: qemu-img check"; }

# patch FILE OFFSET BYTES: BYTES as printf takes them.
patch() {
	# shellcheck disable=SC2059
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none || fail "patch $1"
}

# The header extension that records the backing format becomes one that nobody knows.
forget_backing_format() {
	local at
	at=$(LC_ALL=C grep -obUaP '\xe2\x79\x2a\xca' "$1" | head -n 1 | cut -d: -f1)
	[ -n "$at" ] || fail "$1 records no backing format"
	patch "$1" "$at" '\x11\x22\x33\x44'
}

# ---- data ----

put() { # OFFSET-KIB BYTE: 4 KiB, not flushed
	head -c 4096 /dev/zero | tr '\0' "$2" | dd of="$dev" bs=4k seek=$(($1 / 4)) oflag=direct conv=notrunc status=none ||
		fail "write to $dev"
}
has() { # OFFSET-KIB BYTE
	[ "$(timeout 60 dd if="$dev" bs=4k skip=$(($1 / 4)) count=1 iflag=direct status=none | tr -d "$2" | wc -c)" = 0 ] ||
		fail "$dev at $1 KiB: not $2"
}

# IMAGE: no errors and no leaks by both checkers.
sound() {
	clean "$1"
	expect 0 ublk-qcow2 check "$1"
	prints "No errors were found on the image."
}

stat_of() { ublk-qcow2 stats --json "$dev" | jq ".$1"; }

# Devices, run directories and processes there are.
everything() { ls -d /dev/ublkb* /dev/ublkc* /sys/class/ublk-char/* /run/ublk-qcow2/* /sys/fs/bpf/ublk-qcow2/* 2>/dev/null; pgrep -x ublk-qcow2; }

nothing_left() {
	local left
	left=$(everything) || true
	[ -z "$left" ] || fail "left behind: $left"
}

# ---- processes ----

# What `list` says of $dev.
member() { ublk-qcow2 list --json | jq -r ".[] | select(.device == \"$dev\") | .$1"; }

# until_true CMD...: true within 30 s
until_true() {
	for _ in {1..300}; do "$@" && return; sleep 0.1; done
	fail "still not: $*"
}
is_state() { [ "$(member state)" = "$1" ]; }
is_dead() { [ ! -d "/proc/$1" ]; }

# Worker and supervisor of $dev, at the same time.
kill_both() {
	local pid supervisor
	pid=$(member pid) supervisor=$(member supervisor_pid)
	kill -STOP "$supervisor" # so that it cannot start another worker in between
	kill -9 "$pid" "$supervisor"
	until_true is_dead "$pid"
	until_true is_dead "$supervisor"
}

run_cases() {
	local name start
	for name in $(declare -F | sed -n 's/^declare -f case_//p'); do
		if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
		work=$base/$name
		mkdir "$work" && cd "$work" && : >out && : >err || exit 1
		start=$SECONDS
		"case_$name"
		nothing_left
		echo "ok $name ($((SECONDS - start)) s)"
	done
	cd / && rm -rf "$base"
}
