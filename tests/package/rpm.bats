# SPDX-License-Identifier: LGPL-2.1-or-later
# The RPM packages, as far as Debian's rpmbuild can tell.
bats_require_minimum_version 1.5.0

load lib

setup() {
	package_setup
}

teardown() {
	package_teardown
}

@test "the spec file builds, and the packages have what the Debian ones have" {
	local p

	copy_tree "$T/tree"
	run -0 timeout 300 make -C "$T/tree" rpm
	for p in usmd:usmd usmd-devel:usmd-dev; do
		# Each has its own folder of documentation; libraries lie where their ABI's do.
		rpm -qlp "$T"/tree/build/rpm/RPMS/x86_64/"${p%:*}"-0*.rpm |
			grep -v -e /usr/share/doc -e /usr/share/licenses -e /.build-id |
			sed 's,^/usr/lib64/,/usr/lib/x86_64-linux-gnu/,' | sort > "$T/rpm"
		dpkg-deb -x "$(deb "${p#*:}")" "$T/deb"
		find "$T/deb" ! -type d -printf '/%P\n' | grep -v -e /usr/share/doc -e /usr/share/lintian |
			sed 's,\.gz$,,' | sort > "$T/files"
		[ -s "$T/files" ]
		# rpm's list has folders of usmd's own as well.
		run -0 comm -13 "$T/rpm" "$T/files"
		[ -z "$output" ]
		run -0 bash -c "comm -23 '$T/rpm' '$T/files' | while read -r f; do
			[ -d '$T/deb'\"\$f\" ] || echo \"\$f\"; done"
		[ -z "$output" ]
		rm -rf "$T/deb"
	done
}
