# SPDX-License-Identifier: LGPL-2.1-or-later
#
# make             build everything below build/; that tree runs without being installed
# make install     DESTDIR=, PREFIX=/usr/local, LIBDIR=, SYSCONFDIR=
# make deb         Debian packages in build/deb; DEB_VERSION=X gives them that version
# make rpm         RPM packages in build/rpm
# make deps        list the Debian packages that are needed, install what is missing (root);
#                  FOR="build package" for those of some sections of tests/deps
# make demo        see it work on real programs (root; about two minutes)
# make check       unit tests and the quick native tests (root; below three minutes)
# make test        everything (root)
# make fuzz        what reads untrusted bytes, for FUZZ_SECONDS=60 each (root; part of make test)
# make soak        the torture program for SOAK_SECONDS=3600 (root)
# make soak-kills  the engine dies N=1000 times at random moments, SEED=1 (root; ten minutes)
# make test-teeth  usmd with one seeded defect after the other: do the tests find it? (root; about
#                  15 minutes; TEETH=NAME for one)
# make test-tsan   unit tests and some native ones with ThreadSanitizer (root; about 10 minutes)
# make test-valgrind  unit tests (about two minutes)
# make coverage    which lines of usmd/ the tests run (root; about 15 minutes)
# make test-package  the packages (root; about two minutes)
# make test-system  usmd as a service, with systemd as process 1, in Debian 12 and 13 (root)
# make test-vm     the tests on Debian 12's own kernel, in qemu (root; about four minutes)
# make bench       measure against the kernel (root)
# SANITIZE=1       ASan and UBSan, below build/sanitize
# SANITIZE=thread  TSan, below build/thread
# VARIANT=NAME     below build/NAME, with CPPFLAGS=-D... (tests have builds of their own)
# V=1              show the commands

VERSION := 0.1.0

PREFIX     ?= /usr/local
MULTIARCH  := $(shell $(CC) -print-multiarch 2>/dev/null)
BINDIR     ?= $(PREFIX)/bin
SBINDIR    ?= $(PREFIX)/sbin
# The dynamic linker's $LIB names this folder, so the tagger is found for the right ABI.
LIBDIR     ?= $(PREFIX)/lib$(addprefix /,$(MULTIARCH))
INCLUDEDIR ?= $(PREFIX)/include
MANDIR     ?= $(PREFIX)/share/man
DATADIR    ?= $(PREFIX)/share
SYSCONFDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
SYSTEMDDIR ?= $(PREFIX)/lib/systemd
POLICYDIR  := $(LIBDIR)/usmd/policies

TSAN  := $(filter thread,$(SANITIZE))
BUILD := build$(if $(SANITIZE),/$(or $(TSAN),sanitize))$(if $(VARIANT),/$(VARIANT))
PKGS  := libsystemd json-c libcap liburing libxxhash
Q     := $(if $(V),,@)

# Run as root in somebody's checkout (sudo make ...), the build is still done as its owner, so
# that no file of root's is left behind.
ifeq ($(shell id -u),0)
OWNER := $(shell stat -c '%u' .)
ifneq ($(OWNER),0)
AS_OWNER := setpriv --reuid=$(OWNER) --regid=$(shell stat -c '%g' .) --clear-groups --
endif
endif

CFLAGS ?= -O2 -g
# TSan knows no fences; those of usmd stand beside atomics that it knows.
SANITIZERS := -fno-omit-frame-pointer $(if $(TSAN),-fsanitize=thread -Wno-tsan,\
	-fsanitize=address,undefined -fno-sanitize-recover=undefined)
BASE_FLAGS := -std=gnu11 -Wall -Wextra -pthread -I. -Iusmd -Iusmd/lib -Iusmd/include \
	-D_GNU_SOURCE -DUSM_VERSION='"$(VERSION)"' -DUSM_PREFIX='"$(PREFIX)"' \
	-DUSM_LIBDIR='"$(LIBDIR)"' -DUSM_SYSCONFDIR='"$(SYSCONFDIR)"' \
	-DUSM_POLICY_DIR='"$(POLICYDIR)"'
PKG_CFLAGS  = $(shell pkg-config --cflags $(PKGS))
PKG_LIBS    = $(shell pkg-config --libs $(PKGS))
ALL_CFLAGS  = $(BASE_FLAGS) $(CFLAGS) $(if $(SANITIZE),$(SANITIZERS)) $(CPPFLAGS)
DEPFLAGS    = -MMD -MP
# None of CFLAGS but where sources are said to lie: it is no ordinary code (docs/tagger.md).
TAGGER_FLAGS := -std=gnu11 -Wall -Wextra -I. -Iusmd/lib -D_GNU_SOURCE -DUSM_VERSION='"$(VERSION)"' \
	-O2 -g -fPIC -fno-stack-protector -fvisibility=hidden \
	$(filter -ffile-prefix-map=% -fdebug-prefix-map=%,$(CFLAGS))

DAEMON_SRCS := $(wildcard usmd/*.c)
LIB_SRCS    := $(wildcard usmd/lib/*.c)
CTL_SRCS    := $(wildcard usmctl/*.c)
TAGGER_SRCS := $(wildcard usmd/tagger/*.c)
POLICY_SRCS := $(wildcard usmd/policies/*.c)
UNIT_SRCS   := $(wildcard tests/unit/test-*.c)
PROG_SRCS   := $(wildcard tests/lib/*.c tests/native/progs/*.c tests/bench/*.c)

objects   = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
UNIT      := build$(if $(TSAN),/thread)/unit
UNIT_FLAGS := -O1 -g $(SANITIZERS)
unit_objs = $(patsubst %.c,$(UNIT)/obj/%.o,$(1))
# What a unit test is linked with: the whole daemon, or what its "links:" line says.
unit_srcs = $(or $(wildcard $(shell sed -n 's,^/\* links: \(.*\) \*/$$,\1,p' $(1))),\
	$(filter-out usmd/main.c,$(DAEMON_SRCS)) $(LIB_SRCS))

BINARIES := $(if $(DAEMON_SRCS),$(BUILD)/usmd) $(if $(CTL_SRCS),$(BUILD)/usmctl) \
	$(if $(TAGGER_SRCS),$(BUILD)/libusm-tagger.so) \
	$(patsubst usmd/policies/%.c,$(BUILD)/policies/%.so,$(POLICY_SRCS))
# libFuzzer is clang's; without it there is nothing to build, and the tests say so.
FUZZ_CC      := $(shell command -v clang)
FUZZ         := build/fuzz
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 3600
fuzz_objs     = $(patsubst %.c,$(FUZZ)/obj/%.o,$(1))
FUZZERS      := $(if $(FUZZ_CC),$(patsubst tests/fuzz/%.c,$(FUZZ)/%,$(wildcard tests/fuzz/fuzz-*.c)))
UNITS := $(patsubst tests/unit/%.c,$(UNIT)/%,$(UNIT_SRCS))
PROGS := $(foreach s,$(PROG_SRCS),build/tests/$(basename $(notdir $(s)))) build/tests/usmd-other-arena

.PHONY: all install uninstall deb rpm deps demo check test test-teeth test-tsan test-valgrind \
	coverage test-package test-system test-vm fuzz soak soak-kills bench unit progs fuzzers clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:

all: $(BINARIES)
unit: $(UNITS)
progs: $(PROGS)
fuzzers: $(FUZZERS)

# Objects depend on this file, which changes only when the flags do.
$(BUILD)/flags: FORCE
	@$(AS_OWNER) mkdir -p $(@D)
	@echo '$(subst ','\'',$(CC) $(ALL_CFLAGS))' | cmp -s - $@ || \
		echo '$(subst ','\'',$(CC) $(ALL_CFLAGS))' | $(AS_OWNER) tee $@ >/dev/null

$(BUILD)/obj/usmd/tagger/%.o: usmd/tagger/%.c $(BUILD)/flags
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  CC      $<"
	$Q$(AS_OWNER) $(CC) $(TAGGER_FLAGS) $(if $(filter agent% freestanding,$*),-fno-builtin) $(DEPFLAGS) -c -o $@ $<

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  CC      $<"
	$Q$(AS_OWNER) $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) $(DEPFLAGS) -c -o $@ $<

# Policies resolve the policy kit's functions from the daemon itself, hence -rdynamic.
$(BUILD)/usmd: $(call objects,$(DAEMON_SRCS) $(LIB_SRCS))
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(PKG_LIBS) -ldl -lm

# One that does not know the arena of the others (tests/system/restart.bats).
build/tests/usmd-other-arena: usmd/arena.c $(call objects,$(DAEMON_SRCS) $(LIB_SRCS))
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) $(LDFLAGS) -DUSM_ARENA_VERSION=999u -rdynamic -o $@ \
		$< $(filter-out $< %/usmd/arena.o,$^) $(PKG_LIBS) -ldl -lm

$(BUILD)/usmctl: $(call objects,$(CTL_SRCS) $(LIB_SRCS))
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(BUILD)/libusm-tagger.so: $(call objects,$(TAGGER_SRCS))
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(CC) $(TAGGER_FLAGS) $(LDFLAGS) -shared -Wl,-z,relro,-z,now -o $@ $^ -ldl -pthread

# A policy sees the public headers alone, as one written elsewhere would.
$(BUILD)/policies/%.so: usmd/policies/%.c $(BUILD)/flags
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  POLICY  $@"
	$Q$(AS_OWNER) $(CC) -std=gnu11 -Wall -Wextra $(CFLAGS) $(if $(SANITIZE),$(SANITIZERS)) \
		-Iusmd/include -fPIC -shared -pthread $(DEPFLAGS) $(LDFLAGS) -o $@ $<

$(UNIT)/obj/%.o: %.c Makefile
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  CC      $< (unit)"
	$Q$(AS_OWNER) $(CC) $(BASE_FLAGS) $(UNIT_FLAGS) -DUSM_TESTING $(PKG_CFLAGS) $(DEPFLAGS) \
		-c -o $@ $<

$(UNIT)/test-%: $(UNIT)/obj/tests/unit/test-%.o $(UNIT)/obj/tests/unit/filter.o \
		$$(call unit_objs,$$(call unit_srcs,tests/unit/test-$$*.c))
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(CC) $(BASE_FLAGS) $(UNIT_FLAGS) -rdynamic -o $@ $^ $(PKG_LIBS) -lcmocka -ldl -lm

$(FUZZ)/obj/%.o: %.c Makefile
	@$(AS_OWNER) mkdir -p $(@D)
	@echo "  CC      $< (fuzz)"
	$Q$(AS_OWNER) $(FUZZ_CC) $(BASE_FLAGS) -O1 -g -fsanitize=fuzzer-no-link $(SANITIZERS) -DUSM_TESTING \
		$(PKG_CFLAGS) $(DEPFLAGS) -c -o $@ $<

$(FUZZ)/fuzz-%: $(FUZZ)/obj/tests/fuzz/fuzz-%.o \
		$$(call fuzz_objs,$$(call unit_srcs,tests/fuzz/fuzz-$$*.c))
	@echo "  LINK    $@"
	$Q$(AS_OWNER) $(FUZZ_CC) -fsanitize=fuzzer $(SANITIZERS) -pthread -o $@ $^ $(PKG_LIBS)

define prog_rule
build/tests/$(basename $(notdir $(1))): $(1)
	@$$(AS_OWNER) mkdir -p $$(@D)
	@echo "  CC      $$@"
	$$Q$$(AS_OWNER) $$(CC) -std=gnu11 -Wall -Wextra -D_GNU_SOURCE -O2 -g -pthread $$(DEPFLAGS) \
		-Itests/lib -o $$@ $$< $$(PROG_LIBS)
endef
build/tests/torture: PROG_LIBS := -luring
$(foreach s,$(PROG_SRCS),$(eval $(call prog_rule,$(s))))

deb:
	@$(AS_OWNER) packaging/deb.sh build/deb
	@$(AS_OWNER) touch build/deb/built

# What the tests install: built again only when something has changed.
build/deb/built: $(shell find usmd usmctl units conf.d docs packaging Makefile -type f)
	@echo "  DEB     build/deb"
	$Q$(MAKE) --no-print-directory deb >build/deb.log 2>&1 || { tail -n 40 build/deb.log; exit 1; }
	@chown --reference=. build/deb.log

rpm:
	@$(AS_OWNER) packaging/rpm.sh build/rpm

deps:
	@tests/lib/deps.sh $(or $(FOR),build demo package test analysis)

demo:
	@tests/lib/deps.sh build demo
	@$(MAKE) --no-print-directory all build/tests/sampler
	@tests/demo.sh

check: all unit progs
	@tests/lib/run.sh quick

test:
	@tests/lib/deps.sh build demo package test
	@$(MAKE) --no-print-directory all unit progs fuzzers
	@$(MAKE) --no-print-directory VARIANT=kill-points CPPFLAGS=-DUSM_KILL_POINTS all
	@$(MAKE) --no-print-directory SANITIZE=thread unit
	@$(MAKE) --no-print-directory build/deb/built
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tests/lib/run.sh all

fuzz: fuzzers
	@tests/fuzz/run.sh $(FUZZ_SECONDS)
	@chown -R --reference=. build

soak: all progs
	@tests/soak.sh $(SOAK_SECONDS)
	@chown -R --reference=. build

test-tsan: progs
	@tests/lib/deps.sh build test
	@$(MAKE) --no-print-directory SANITIZE=thread all unit
	@tests/lib/run.sh thread

test-valgrind:
	@tests/lib/deps.sh build test analysis
	@$(MAKE) --no-print-directory UNIT=build/valgrind UNIT_FLAGS='-O1 -g' unit
	@tests/lib/run.sh valgrind

# -O0: a line is what stands in the source.
COVERAGE := -O0 -g --coverage -fprofile-update=atomic
coverage: progs
	@tests/lib/deps.sh build test analysis
	@$(MAKE) --no-print-directory VARIANT=coverage CFLAGS='$(COVERAGE)' CPPFLAGS=-DUSM_COVERAGE all
	@$(MAKE) --no-print-directory UNIT=build/coverage/unit UNIT_FLAGS='$(COVERAGE)' unit
	@find build/coverage -name '*.gcda' -delete
	@tests/lib/run.sh coverage; status=$$?; \
		gcovr --root . --filter usmd/ --object-directory build/coverage --sort-uncovered \
		--txt build/results/coverage.txt --csv build/results/coverage.csv build/coverage; \
		cat build/results/coverage.txt; exit $$status

test-teeth: all unit progs
	@tests/teeth/run.sh $(TEETH)

test-package:
	@tests/lib/deps.sh build package test
	@$(MAKE) --no-print-directory build/deb/built
	@tests/lib/run.sh package

test-system:
	@tests/lib/deps.sh build package test
	@$(MAKE) --no-print-directory progs build/deb/built
	@tests/system/run.sh

test-vm:
	@tests/lib/deps.sh build test
	@$(MAKE) --no-print-directory all progs
	@tests/vm/run.sh
	@chown -R --reference=. build

soak-kills: all progs
	@tests/soak-kills.sh $(or $(N),1000) $(or $(SEED),1)

bench: all progs
	@tests/bench/bench.py --json build/bench.json
	@chown --reference=. build/bench.json

D := $(DESTDIR)
UNIT_FILES := usmd.service usmd.socket usmd.service.d/10-modprobe.conf
install: all
	install -d $(D)$(SBINDIR) $(D)$(BINDIR) $(D)$(LIBDIR)/pkgconfig $(D)$(POLICYDIR) \
		$(D)$(INCLUDEDIR)/usm $(D)$(SYSCONFDIR)/usmd/conf.d
	install $(BUILD)/usmd $(D)$(SBINDIR)/usmd
	install $(BUILD)/usmctl $(D)$(BINDIR)/usmctl
	install -m 644 $(BUILD)/libusm-tagger.so $(D)$(LIBDIR)/libusm-tagger.so
	install -m 644 $(BUILD)/policies/*.so $(D)$(POLICYDIR)/
	install -m 644 usmd/include/usm/*.h $(D)$(INCLUDEDIR)/usm/
	sed -e 's,@INCLUDEDIR@,$(INCLUDEDIR),' -e 's,@POLICYDIR@,$(POLICYDIR),' \
		-e 's,@VERSION@,$(VERSION),' packaging/usm-policy.pc.in > $(D)$(LIBDIR)/pkgconfig/usm-policy.pc
	@# An administrator's configuration is never overwritten.
	@for f in conf.d/*.conf; do [ -e "$$f" ] || continue; \
		case $$f in conf.d/usmd.conf) t=$(D)$(SYSCONFDIR)/usmd/usmd.conf ;; \
			*) t=$(D)$(SYSCONFDIR)/usmd/$$f ;; esac; \
		[ -e "$$t" ] || install -v -m 644 "$$f" "$$t"; done
	@for s in 1 3 5 8; do for f in docs/man/*.$$s; do [ -e "$$f" ] || continue; \
		install -v -D -m 644 "$$f" "$(D)$(MANDIR)/man$$s/$${f##*/}"; done; done
	@[ ! -e usmctl/completion/usmctl.bash ] || install -v -D -m 644 usmctl/completion/usmctl.bash \
		$(D)$(DATADIR)/bash-completion/completions/usmctl
	@[ ! -e usmctl/completion/_usmctl ] || install -v -D -m 644 usmctl/completion/_usmctl \
		$(D)$(DATADIR)/zsh/site-functions/_usmctl
	@for f in $(UNIT_FILES); do install -v -D -m 644 "units/$$f" "$(D)$(SYSTEMDDIR)/system/$$f"; \
		sed -i 's,/usr/sbin/,$(SBINDIR)/,; s,/usr/bin/,$(BINDIR)/,' "$(D)$(SYSTEMDDIR)/system/$$f"; done
	install -v -D units/usmd-generator $(D)$(SYSTEMDDIR)/system-generators/usmd-generator
	install -v -D -m 644 units/usmd.catalog $(D)$(SYSTEMDDIR)/catalog/usmd.catalog
	install -v -D -m 644 units/sysusers.d/usmd.conf $(D)$(PREFIX)/lib/sysusers.d/usmd.conf
	install -v -D -m 644 units/tmpfiles.d/usmd.conf $(D)$(PREFIX)/lib/tmpfiles.d/usmd.conf
	install -v -D -m 644 units/modprobe.d/usm.conf $(D)$(PREFIX)/lib/modprobe.d/usm.conf
	install -v -D -m 644 units/udev/60-usm.rules $(D)$(PREFIX)/lib/udev/rules.d/60-usm.rules
	@[ -n "$(D)" ] || echo "Now: systemd-sysusers && systemd-tmpfiles --create $(PREFIX)/lib/tmpfiles.d/usmd.conf && \
	journalctl --update-catalog && systemctl daemon-reload"

uninstall:
	rm -f $(D)$(SBINDIR)/usmd $(D)$(BINDIR)/usmctl $(D)$(LIBDIR)/libusm-tagger.so
	rm -rf $(D)$(LIBDIR)/usmd $(D)$(INCLUDEDIR)/usm $(D)$(LIBDIR)/pkgconfig/usm-policy.pc
	rm -f $(patsubst docs/man/%,$(D)$(MANDIR)/man*/%,$(wildcard docs/man/*)) \
		$(addprefix $(D)$(SYSTEMDDIR)/system/,$(UNIT_FILES)) \
		$(D)$(SYSTEMDDIR)/system-generators/usmd-generator \
		$(D)$(SYSTEMDDIR)/catalog/usmd.catalog $(D)$(PREFIX)/lib/sysusers.d/usmd.conf \
		$(D)$(PREFIX)/lib/tmpfiles.d/usmd.conf $(D)$(PREFIX)/lib/modprobe.d/usm.conf \
		$(D)$(PREFIX)/lib/udev/rules.d/60-usm.rules \
		$(D)$(DATADIR)/bash-completion/completions/usmctl \
		$(D)$(DATADIR)/zsh/site-functions/_usmctl
	-rmdir $(D)$(SYSTEMDDIR)/system/usmd.service.d
	@echo "Left alone: $(D)$(SYSCONFDIR)/usmd"

clean:
	rm -rf build

-include $(shell find build -path build/teeth -prune -o -type f -name '*.d' -print 2>/dev/null)
