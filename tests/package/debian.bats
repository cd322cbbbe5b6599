# SPDX-License-Identifier: LGPL-2.1-or-later
# The Debian packages that "make deb" built: what is in them, and that they come and go as they
# should. What needs systemd running is in tests/system/package.bats.
bats_require_minimum_version 1.5.0

load lib

setup() {
	package_setup
}

teardown() {
	package_teardown
}

@test "one version in the Makefile, the changelog and the spec file" {
	local v

	v=$(sed -n 's/^VERSION := //p' "$ROOT/Makefile")
	[ "$(version)" = "$v-1" ]
	grep -qx "Version: *$v" "$ROOT/packaging/rpm/usmd.spec"
	[ "$(dpkg-deb -f "$(deb usmd)" Version)" = "$v-1" ]
	dpkg-deb -x "$(deb usmd)" "$T/x"
	run -0 "$T/x/usr/sbin/usmd" --version
	[ "$output" = "usmd $v" ]
}

@test "lintian finds neither errors nor warnings, and each override says why" {
	run -0 --separate-stderr lintian --fail-on error,warning "$DEB"/*.changes
	[[ ! $output =~ (^|$'\n')[EW]: ]]
	# Blocks of overrides begin with a comment.
	run -0 awk 'FNR == 1 { said = 0 } /^#/ { said = 1; next } !said { print FILENAME ": " $0 } { said = 0 }' \
		"$ROOT"/packaging/debian/*.lintian-overrides
	[ -z "$output" ]
}

@test "what is in the packages" {
	run -0 sh -c "dpkg-deb --fsys-tarfile '$(deb usmd)' | tar -t"
	for f in etc/usmd/usmd.conf etc/usmd/conf.d/ usr/sbin/usmd usr/bin/usmctl \
		usr/lib/x86_64-linux-gnu/libusm-tagger.so \
		usr/lib/x86_64-linux-gnu/usmd/policies/policyOne.so \
		usr/lib/systemd/system/usmd.{service,socket} usr/lib/systemd/catalog/usmd.catalog \
		usr/lib/systemd/system/usmd.service.d/10-modprobe.conf \
		usr/lib/systemd/system-generators/usmd-generator usr/lib/{sysusers,tmpfiles}.d/usmd.conf \
		usr/lib/modprobe.d/usm.conf usr/lib/udev/rules.d/60-usm.rules \
		usr/share/bash-completion/completions/usmctl usr/share/zsh/site-functions/_usmctl \
		usr/share/man/man1/usmctl.1.gz usr/share/man/man5/usmd.conf.5.gz usr/share/man/man8/usmd.8.gz; do
		grep -qxF "./$f" <<< "$output" || die "$f is not in usmd" || return 1
	done
	[[ $output != *include* && $output != *pkgconfig* ]]
	run -0 sh -c "dpkg-deb --fsys-tarfile '$(deb usmd-dev)' | tar -t"
	for f in usr/include/usm/{usm,policy,list}.h usr/lib/x86_64-linux-gnu/pkgconfig/usm-policy.pc; do
		grep -qxF "./$f" <<< "$output" || die "$f is not in usmd-dev" || return 1
	done
}

@test "manual pages have a name line, completions define usmctl" {
	local page

	dpkg-deb -x "$(deb usmd)" "$T/x"
	for page in usmctl.1 usmd.8 usmd.conf.5; do
		run -0 lexgrog "$T/x/usr/share/man/man${page##*.}/$page.gz"
		[[ $output == *": \"${page%.*} - "* ]]
	done
	run -0 bash -c ". '$T/x/usr/share/bash-completion/completions/usmctl'; complete -p usmctl"
	[[ $output == *"-F _usmctl usmctl"* ]]
	[ "$(head -n 1 "$T/x/usr/share/zsh/site-functions/_usmctl")" = "#compdef usmctl" ]
}

@test "daemon and usmctl are position independent, with all symbols bound at start" {
	local f

	dpkg-deb -x "$(deb usmd)" "$T/x"
	for f in usr/sbin/usmd usr/bin/usmctl; do
		run -0 readelf -hdW "$T/x/$f"
		[[ $output == *"DYN (Position-Independent Executable file)"* ]]
		[[ $output == *BIND_NOW* || $output == *"Flags: NOW"* ]]
	done
}

@test "a policy is built with usmd-dev alone" {
	local flags

	dpkg-deb -x "$(deb usmd-dev)" "$T/dev"
	dpkg-deb -x "$(deb usmd)" "$T/x"
	export PKG_CONFIG_LIBDIR=$T/dev/usr/lib/x86_64-linux-gnu/pkgconfig
	[ "$(pkg-config --variable=policydir usm-policy)" = /usr/lib/x86_64-linux-gnu/usmd/policies ]
	[ -z "$(pkg-config --cflags usm-policy | tr -d ' ')" ]
	flags=$(PKG_CONFIG_SYSROOT_DIR=$T/dev pkg-config --cflags --keep-system-cflags usm-policy) ||
		flags=$(PKG_CONFIG_SYSROOT_DIR=$T/dev PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 pkg-config --cflags usm-policy)
	[[ $flags == *"-I$T/dev/usr/include"* ]]
	# shellcheck disable=SC2086
	cc -shared -fPIC -pthread -Wall -Werror $flags -o "$T/mine.so" \
		"$T/dev/usr/share/doc/usmd-dev/examples/policyOne.c"
	printf 'policy %s\nprocess x policyOne\n' "$T/mine.so" > "$T/usmd.conf"
	"$T/x/usr/sbin/usmd" --config "$T/usmd.conf" --check
}

@test "built once more, elsewhere, without git and by somebody else: the same bytes" {
	local f v

	copy_tree "$T/elsewhere"
	chown -R nobody: "$T/elsewhere"
	run -0 setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups \
		env -i PATH="$PATH" HOME=/nonexistent LC_ALL=C.UTF-8 TZ=Asia/Kolkata \
		bash -c "umask 077; timeout 300 make -C '$T/elsewhere' deb"
	for f in "$DEB"/*.deb "$DEB"/*.debian.tar.xz; do
		cmp "$f" "$T/elsewhere/build/deb/${f##*/}"
	done
	# build/deb may be older than what is no part of the packages.
	v=$(version)
	as_owner "$ROOT/packaging/source.sh" "${v%-*}" > "$T/orig.tar.xz"
	cmp "$T/orig.tar.xz" "$T/elsewhere/build/deb/usmd_${v%-*}.orig.tar.xz"
}

# The package of the last commit, or of this tree where it has none, with a lower version.
previous_package() {
	mkdir "$T/previous"
	if as_owner git -C "$ROOT" cat-file -e HEAD~1:packaging/debian/control 2>/dev/null; then
		as_owner git -C "$ROOT" archive HEAD~1 | tar -x -C "$T/previous"
		note "the previous version is $(as_owner git -C "$ROOT" rev-parse --short HEAD~1)"
	else
		copy_tree "$T/this" && mv "$T/this" "$T/previous/this" && mv "$T"/previous/this/* "$T/previous/"
		note "the previous version is this tree"
	fi
	timeout 300 make -C "$T/previous" deb DEB_VERSION=0.0.9 >"$T/previous.log" 2>&1 ||
		{ tail -n 40 "$T/previous.log"; return 1; }
}

# comes_and_goes RELEASE: one life of the package.
comes_and_goes() {
	local r=$1

	new_root "$r"
	mkdir "$T/$r/upper/debs"
	cp "$T"/previous/build/deb/usmd_*.deb "$T/$r/upper/debs/old.deb"
	cp "$(deb usmd)" "$T/$r/upper/debs/new.deb"
	files_of "$r" > "$T/before"

	run -0 in_root "$r" dpkg -i /debs/old.deb
	[ "$(in_root "$r" usmd --version)" = "usmd 0.0.9" ]
	in_root "$r" getent group usm
	in_root "$r" systemctl is-enabled usmd.socket

	# An administrator's change, and what usmd and usmctl write.
	in_root "$r" sh -ec 'echo "workers 3" >> /etc/usmd/usmd.conf
		mkdir -p -m 700 /var/lib/usmd && echo x > /var/lib/usmd/swap
		echo "process x policyOne" > /etc/usmd/conf.d/50-usmctl.conf
		echo "faultaround 8" > /etc/usmd/conf.d/60-own.conf'
	run -0 in_root "$r" dpkg --force-confold -i /debs/new.deb
	[ "$(in_root "$r" usmd --version)" = "usmd $(version | sed 's/-.*//')" ]
	in_root "$r" grep -qx "workers 3" /etc/usmd/usmd.conf
	in_root "$r" test -s /var/lib/usmd/swap
	in_root "$r" usmd --check
	run -0 in_root "$r" dpkg --verify usmd
	[ -z "$(grep -v ' c /etc/usmd/usmd.conf$' <<< "$output")" ]

	run -0 in_root "$r" dpkg -r usmd
	in_root "$r" test ! -e /usr/sbin/usmd
	in_root "$r" test -s /var/lib/usmd/swap
	in_root "$r" test -s /etc/usmd/conf.d/50-usmctl.conf
	run -0 in_root "$r" dpkg -P usmd
	# Somebody else's file stays, and where it lies.
	in_root "$r" test -s /etc/usmd/conf.d/60-own.conf
	in_root "$r" rm -r /etc/usmd
	files_of "$r" > "$T/after"
	run -0 diff "$T/before" "$T/after"
}

@test "installed, upgraded, removed and purged, nothing is left behind: Debian 12 and 13" {
	previous_package
	comes_and_goes bookworm
	comes_and_goes trixie
}

@test "installed and purged at once, with the policy kit" {
	new_root trixie
	mkdir "$T/trixie/upper/debs"
	cp "$(deb usmd)" "$(deb usmd-dev)" "$T/trixie/upper/debs/"
	files_of trixie > "$T/before"
	run -0 in_root trixie sh -c 'dpkg -i /debs/*.deb'
	run -0 in_root trixie dpkg -P usmd usmd-dev
	files_of trixie > "$T/after"
	run -0 diff "$T/before" "$T/after"
}

@test "Debian 13 builds the source package, with the same files in it" {
	local p

	new_root trixie build-essential debhelper fakeroot libcap-dev libjson-c-dev libsystemd-dev \
		liburing-dev libxxhash-dev pkgconf
	mkdir -m 777 "$T/trixie/upper/src"
	cp "$DEB"/*.dsc "$DEB"/*.tar.xz "$T/trixie/upper/src/"
	# shellcheck disable=SC2016
	IN_ROOT_SEC=300 run -0 in_root trixie setpriv --reuid=65534 --regid=65534 --clear-groups \
		bash -ec 'cd /src; export HOME=/src; dpkg-source -x *.dsc x; cd x; dpkg-buildpackage -b -us -uc'
	for p in usmd usmd-dev; do
		diff <(dpkg-deb --fsys-tarfile "$(deb $p)" | tar -t | sort) \
			<(dpkg-deb --fsys-tarfile "$(deb $p "$T/trixie/upper/src")" | tar -t | sort)
	done
	run -0 in_root trixie sh -c 'dpkg -i /src/usmd_*.deb && usmd --check && usmctl --help'
}
