# bitdelta: a filesystem that keeps fine-tunes as one-bit deltas of their base.
#
#   make              build the programs into build/release/ (needs the packages of `make deps`)
#   make demo         the whole promise in one go: install what is missing, build, import the
#                     shipped model pair, mount it, load it with an unmodified loader, compare
#   make check        install what is missing, then all tests (some minutes on two cores)
#   make bench        ratios taken in one run, written to build/bench.txt
#   make install      DESTDIR= PREFIX=/usr/local SBINDIR=/sbin
#   make deps         install the packages that building needs (Debian, Ubuntu; root or sudo)
#   make unit         unit tests only;  make mount-test  the scripts against a real mount only
#   make fuzz         libFuzzer targets with clang;  FUZZ_SECONDS=60
#   make clean
#
#   D=asan | tsan     a variant with a sanitizer, in build/asan/ or build/tsan/
#   WERROR=1          warnings are errors (as in CI)

CC      ?= gcc
PREFIX  ?= /usr/local
SBINDIR ?= /sbin
D       ?= release
B       := build/$(D)

CFLAGS   ?= -O2 -g
# -ffp-contract=off: the arithmetic of the format must never be fused (delta/FORMAT.md section 4).
ALL_CFLAGS = $(CFLAGS) -std=gnu11 -ffp-contract=off -pthread -Wall -Wextra -Wshadow \
	-Wmissing-prototypes $(if $(WERROR),-Werror) $(SAN)
ALL_CPPFLAGS = $(CPPFLAGS) -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Idelta -Ifs \
	-DBD_TESTS_DIR='"$(CURDIR)/tests"'
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
SAN      := $(SAN_$(D))

# Asked for when a recipe runs, not when the Makefile is read: `make demo` installs them first.
DELTA_CFLAGS = $(shell pkg-config --cflags libcjson libxxhash zlib)
DELTA_LIBS   = $(shell pkg-config --libs libcjson libxxhash zlib) -lm -pthread
FUSE_CFLAGS  = $(shell pkg-config --cflags fuse3)
FUSE_LIBS    = $(shell pkg-config --libs fuse3)

DELTA_SRC := $(wildcard delta/*.c)
FS_SRC    := $(wildcard fs/*.c)
TOOL_SRC  := $(wildcard mount-tools/*.c)
UNIT_SRC  := $(wildcard tests/unit/test_*.c)
FUZZ_SRC  := $(wildcard tests/fuzz/fuzz_*.c)
BENCH_SRC := $(wildcard tests/bench/*.c)

obj = $(patsubst %.c,$(B)/%.o,$(1))
PROGRAMS := $(B)/bitdelta $(B)/mount.bitdelta
UNITS    := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT_SRC))
REPLAYS  := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%-replay,$(FUZZ_SRC))
BENCHES  := $(patsubst tests/bench/%.c,$(B)/bench/%,$(BENCH_SRC))

.PHONY: all demo check bench install deps unit mount-test fuzz clean tests
.SECONDARY:
all: $(PROGRAMS)

$(B)/libbitdelta.a: $(call obj,$(DELTA_SRC))
	rm -f $@ && $(AR) rcs $@ $^
$(B)/libbdfs.a: $(call obj,$(FS_SRC))
	rm -f $@ && $(AR) rcs $@ $^

# bitdelta.c and mount.c hold the two main functions; the other files of mount-tools/ serve both.
$(B)/bitdelta: $(call obj,$(filter-out mount-tools/mount.c,$(TOOL_SRC))) $(B)/libbdfs.a $(B)/libbitdelta.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(FUSE_LIBS) $(DELTA_LIBS)
$(B)/mount.bitdelta: $(call obj,mount-tools/mount.c) $(B)/libbdfs.a $(B)/libbitdelta.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(FUSE_LIBS) $(DELTA_LIBS)

$(B)/fs/%.o: fs/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ALL_CPPFLAGS) $(DELTA_CFLAGS) $(FUSE_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ALL_CPPFLAGS) $(DELTA_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/unit/%: $(B)/tests/unit/%.o $(B)/tests/unit/testdata.o $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(DELTA_LIBS)
$(B)/fuzz/%-replay: $(B)/tests/fuzz/%.o $(B)/tests/fuzz/replay_main.o $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DELTA_LIBS)
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DELTA_LIBS)

tests: $(UNITS) $(REPLAYS) $(BENCHES)

deps:
	tests/setup.sh build
demo:
	tests/setup.sh demo
	+$(MAKE) --no-print-directory all
	tests/demo.sh
check:
	tests/setup.sh test
	+tests/check.sh
unit: tests
	tests/check.sh unit $(B)
mount-test: all
	tests/check.sh mount $(B)
bench: all
	+$(MAKE) --no-print-directory $(BENCHES)
	tests/bench.sh

FUZZ_SECONDS ?= 60
fuzz:
	tests/fuzz.sh $(FUZZ_SECONDS)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR)
	install -m 755 build/$(D)/bitdelta $(DESTDIR)$(PREFIX)/bin/bitdelta
	install -m 755 build/$(D)/mount.bitdelta $(DESTDIR)$(SBINDIR)/mount.bitdelta
	ln -sf mount.bitdelta $(DESTDIR)$(SBINDIR)/mount.fuse.bitdelta
	for m in mount-tools/man/*.[1-8]; do s=$${m##*.}; \
		install -d $(DESTDIR)$(PREFIX)/share/man/man$$s; \
		install -m 644 $$m $(DESTDIR)$(PREFIX)/share/man/man$$s/; done

clean:
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
