#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# run.sh [--fit | NAME...]: do the tests find it when usmd is wrong?  Each tests/teeth/NAME.patch seeds one
# defect into a copy of the tree; each test that it names must fail then, as a test and not because
# something was not built, and pass without it.  Prints a table; status 1 if a test did not bite.
# --fit: only whether each patch still fits the tree.
#
# Above the first "---" line a patch has
#   Defect: what is wrong
#   Test: unit/PROGRAM NAME, or native/FILE the test's whole title
#   Says: what the failed test must have said, as an extended regular expression; without it, in
#         which line of a unit test an assertion failed
set -uo pipefail

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
TEETH=$ROOT/build/teeth
TREE=$TEETH/tree
# A defect may show as a hang; without one a test may be slow on a busy machine.
UNIT_SECONDS=120
NATIVE_SECONDS=90
GREEN_SECONDS=600

# fits PATCH TREE
fits() {
	if [ -z "$(header "$1" Defect)" ] || [ -z "$(header "$1" Test)" ] ||
		! patch -s -p1 -F0 --dry-run -d "$2" < "$1"; then
		echo "teeth: ${1##*/} does not fit the tree any more: seed the defect anew" >&2
		return 1
	fi
}

# header PATCH KEY
header() {
	sed -n "/^---/q; s/^$2: //p" "$1"
}

if [ "${1:-}" = --fit ]; then
	status=0
	for p in "$ROOT"/tests/teeth/*.patch; do
		fits "$p" "$ROOT" || status=1
	done
	exit $status
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "teeth: the native tests need root: sudo make test-teeth" >&2
	exit 1
fi
# The tests' own folders are in here, and whoever was started in them is known by that.
USM_TEST_DIR=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-teeth.XXXXXX")
chmod 755 "$USM_TEST_DIR"
export USM_TEST_DIR
trap 'end_leftovers; rm -rf "$USM_TEST_DIR"; chown -R --reference="$ROOT" "$TEETH"' EXIT

# A usmd with a defect may not end, nor its programs; a test waits for what holds its output.
end_leftovers() {
	local p

	for p in /proc/[0-9]*; do
		[[ $(readlink "$p/exe") != "$USM_TEST_DIR"/* ]] || kill -KILL "${p#/proc/}" 2>/dev/null
	done
}

# With what is built already, so that only what a defect touches is compiled.
copy_tree() {
	rm -rf "$TEETH"
	mkdir -p "$TREE"
	tar -C "$ROOT" --exclude=./.git --exclude=./build/teeth --exclude=./build/vm \
		--exclude=./build/results -cf - . | tar -C "$TREE" -xf -
}

# tests_of PATCH: "TEST<tab>SAYS", a line each.
tests_of() {
	awk '/^---/ { exit }
		/^Test: / { if (test) print test "\t" says; test = substr($0, 7); says = "" }
		/^Says: / { says = substr($0, 7) }
		END { if (test) print test "\t" says }' "$1"
}

build() {
	local goals=(all progs)

	[[ $1 != unit/* ]] || goals=("build/${1%% *}")
	make -s -j"$(nproc)" -C "$TREE" V=1 "${goals[@]}" > "$TEETH/build.log" 2>&1 || return 1
	[[ $1 != native/kill-points* ]] || make -s -j"$(nproc)" -C "$TREE" V=1 VARIANT=kill-points \
		CPPFLAGS=-DUSM_KILL_POINTS all >> "$TEETH/build.log" 2>&1
}

# run_test TEST NATIVE_SECONDS: its output is in $TEETH/out.  0: it passed, 1: it failed, 2: there is
# none.
run_test() {
	local file=${1%% *} name=${1#* }

	if [[ $file == unit/* ]]; then
		USM_TEST_FILTER=$name CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 5 $UNIT_SECONDS \
			"$TREE/build/$file" </dev/null > "$TEETH/out" 2>&1
		# cmocka takes a test that is not there for one that passed.
		grep -qE "^ok [0-9]+ - $name\$" "$TEETH/out" && return 0
		grep -qE "^not ok [0-9]+ - $name\$" "$TEETH/out" && return 1
		return 2
	fi
	BATS_TEST_TIMEOUT=$2 timeout -k 5 $(($2 + 60)) bats --tap \
		-f "^$(sed 's/[][(){}.*+?^$|\\]/\\&/g' <<< "$name")\$" \
		"$TREE/tests/$file.bats" </dev/null > "$TEETH/out" 2>&1
	[ $? -ne 124 ] || echo "not ok 1 $name # timeout, and it did not end" >> "$TEETH/out"
	end_leftovers
	grep -qE '^ok 1 ' "$TEETH/out" && ! grep -qE '^ok 1 .*# skip' "$TEETH/out" && return 0
	grep -qE '^not ok 1 ' "$TEETH/out" && return 1
	return 2
}

# try PATCH NAME: with the defect in the tree.
try() {
	local test says status bite said

	while IFS=$'\t' read -r test says; do
		said=""
		if ! build "$test"; then
			bite="not built"
			cat "$TEETH/build.log"
		else
			run_test "$test" $NATIVE_SECONDS
			status=$?
			cp "$TEETH/out" "$TEETH/$2-${test//[^a-z0-9]/-}.log"
			said=$(grep -E -m 1 -- "${says:-^# tests/unit/}" "$TEETH/out" | cut -c 1-100)
			case $status in
			0) bite="green" ;;
			1) bite="red" ;;
			*) bite="broken" ;;
			esac
			[ $status -ne 1 ] || [ -n "$said" ] || bite="red, but not so"
		fi
		[ "$bite" = red ] || missing=$((missing + 1))
		printf '%-26s %-16s %-74s %s\n' "$2" "$bite" "$test" "${said#\# }" | tee -a "$TEETH/table"
	done < <(tests_of "$1")
}

patches=("${@/%/.patch}")
patches=("${patches[@]/#/$TREE/tests/teeth/}")
missing=0
copy_tree
[ $# -gt 0 ] || patches=("$TREE"/tests/teeth/*.patch)

mapfile -t tests < <(for p in "${patches[@]}"; do tests_of "$p"; done | cut -f 1 | sort -u)
echo "# ${#tests[@]} tests without a defect"
for test in "${tests[@]}"; do
	# Twice, as some limits are those of a machine that does nothing else.
	if ! build "$test" || { ! run_test "$test" $GREEN_SECONDS &&
		! run_test "$test" $GREEN_SECONDS; }; then
		echo "teeth: $test does not pass as it is:" >&2
		cat "$TEETH/build.log" "$TEETH/out" >&2
		exit 1
	fi
done

echo "# ${#patches[@]} defects"
for p in "${patches[@]}"; do
	name=$(basename "$p" .patch)
	fits "$p" "$TREE" && patch -s -p1 -F0 -d "$TREE" < "$p" || exit 1
	try "$p" "$name"
	patch -s -R -p1 -F0 -d "$TREE" < "$p" || exit 1
done
echo "$(wc -l < "$TEETH/table") tests of ${#patches[@]} defects, $missing of them did not bite"
[ $missing -eq 0 ]
