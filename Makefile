# SPDX-License-Identifier: Apache-2.0
# bitdelta: a filesystem that keeps fine-tunes as one-bit deltas of their base.
#
#   make              build the programs into build/release/ (needs the packages of `make deps`)
#   make demo         the whole promise in one go: install what is missing, build, import the
#                     shipped model pair, mount it, load it with an unmodified loader, compare
#   make check        install what is missing, then all tests (some 20 minutes on two idle cores)
#   make bench        ratios taken in one run, written to build/bench.txt
#   make install      DESTDIR= PREFIX=/usr/local SBINDIR=/sbin LIBDIR=$(PREFIX)/lib
#   make uninstall    the same variables
#   make deb          Debian packages in build/deb/
#   make deps         install the packages that building needs (Debian, Ubuntu; root or sudo)
#   make unit         unit tests only;  make mount-test  the scripts against a real mount only
#   make gpu-test     tests on a machine with an NVIDIA GPU
#   make fuzz         libFuzzer targets with clang;  FUZZ_SECONDS=60
#   make clean
#   make help         this text
#
#   D=asan | tsan     a variant with a sanitizer, in build/asan/ or build/tsan/
#   WERROR=1          warnings are errors (as in CI)
#   V=1               show the command lines of the build, and every step of the tests
#   PATIENCE=N        tests wait N times as long as they say (default: 2 and more, by the load)
#   NVCC=             leave the CUDA part out (it is built where nvcc is on the PATH);
#                     NVCC_ARCH=-arch=native  for this machine's GPU only, which compiles faster

CC      ?= gcc
PREFIX  ?= /usr/local
SBINDIR ?= /sbin
LIBDIR  ?= $(PREFIX)/lib
NVCC    ?= $(shell command -v nvcc)
D       ?= release
B       := build/$(D)

CFLAGS   ?= -O2 -g
# -ffp-contract=off: the arithmetic of the format must never be fused (delta/FORMAT.md section 4).
ALL_CFLAGS = $(CFLAGS) -std=gnu11 -ffp-contract=off -pthread -Wall -Wextra -Wshadow \
	-Wmissing-prototypes $(if $(WERROR),-Werror) $(SAN)
ALL_CPPFLAGS = $(CPPFLAGS) -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Idelta -Igpu -Ifs \
	-DBD_TESTS_DIR='"$(CURDIR)/tests"'
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
SAN      := $(SAN_$(D))

# Asked for when a recipe runs, not when the Makefile is read: `make demo` installs them first.
DELTA_CFLAGS = $(shell pkg-config --cflags libcjson libxxhash zlib)
DELTA_LIBS   = $(shell pkg-config --libs libcjson libxxhash zlib) -lm -pthread
GPU_CFLAGS   = $(shell pkg-config --cflags libpcre2-8 libutf8proc)
GPU_LIBS     = $(shell pkg-config --libs libpcre2-8 libutf8proc) -ldl -lm
FUSE_CFLAGS  = $(shell pkg-config --cflags fuse3)
FUSE_LIBS    = $(shell pkg-config --libs fuse3)

DELTA_SRC := $(wildcard delta/*.c delta/codec/*.c)
FS_SRC    := $(wildcard fs/*.c)
GPU_SRC   := $(wildcard gpu/*.c)
CUDA_SRC  := $(wildcard gpu/*.cu)
TOOL_SRC  := $(wildcard mount-tools/*.c)
UNIT_SRC  := $(wildcard tests/unit/test_*.c)
FUZZ_SRC  := $(wildcard tests/fuzz/fuzz_*.c)
BENCH_SRC := $(wildcard tests/bench/*.c)
READ_SRC  := $(wildcard tests/mount/*.c)
DEVICE_SRC := $(wildcard tests/gpu/*.c)
ENGINE_SRC := $(wildcard tests/engine/*.c)

# $(call quiet,WHAT,FILE) begins a recipe whose command line is not shown: "  CC      delta/json.c".
SILENT := $(findstring s,$(filter-out --%,$(firstword -$(MAKEFLAGS))))
quiet = $(if $(V),,@$(if $(SILENT),,printf '  %-7s %s\n' '$(1)' '$(2)';) )

obj = $(patsubst %.c,$(B)/%.o,$(1))
SONAME   := libbitdelta.so.0
PROGRAMS := $(B)/bitdelta $(B)/mount.bitdelta
UNITS    := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT_SRC))
REPLAYS  := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%-replay,$(FUZZ_SRC))
BENCHES  := $(patsubst tests/bench/%.c,$(B)/bench/%,$(BENCH_SRC))
READERS  := $(patsubst tests/mount/%.c,$(B)/mount/%,$(READ_SRC))
DEVICES  := $(patsubst tests/gpu/%.c,$(B)/device/%,$(DEVICE_SRC))
ENGINES  := $(patsubst tests/engine/%.c,$(B)/engine/%,$(ENGINE_SRC))
CUDA     := $(if $(SAN)$(if $(NVCC),,none),,$(B)/bitdelta-cuda.so)

.PHONY: all demo check bench install uninstall deb deps unit mount-test gpu-test fuzz clean help tests
.SECONDARY:
# A sanitizer's runtime belongs to a program, not to a library.
all: $(PROGRAMS) $(if $(SAN),,$(B)/$(SONAME)) $(CUDA)

$(B)/libbitdelta.a: $(call obj,$(DELTA_SRC))
	$(call quiet,AR,$@)rm -f $@ && $(AR) rcs $@ $^
$(B)/libbdfs.a: $(call obj,$(FS_SRC))
	$(call quiet,AR,$@)rm -f $@ && $(AR) rcs $@ $^
$(B)/libbdgpu.a: $(call obj,$(GPU_SRC))
	$(call quiet,AR,$@)rm -f $@ && $(AR) rcs $@ $^

# The shared library has what the public interface needs, and shows nothing else. Its objects are
# those of the archive.
$(B)/delta/%.o: ALL_CFLAGS += -fPIC -fvisibility=hidden
LIB_MAP := mount-tools/libbitdelta/libbitdelta.map
$(B)/$(SONAME): $(B)/delta/bitdelta.o $(B)/libbitdelta.a $(LIB_MAP)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=$(LIB_MAP) \
		-Wl,--as-needed -Wl,-z,defs -o $@ $(filter %.o %.a,$^) $(DELTA_LIBS)

# The CUDA backend is a library that bitdelta opens when it is asked for: no program is linked with
# CUDA. It needs no symbol of the program, and shows its entry point only.
# --fmad=false: the same reason as -ffp-contract=off; kernels that may fuse say so (fmaf).
NVCC_ARCH  ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
	-gencode arch=compute_90,code=compute_90
NVCCFLAGS  ?= -O3
CUDA_LIBS   = $(wildcard $(abspath $(dir $(NVCC))../lib64))
CUDA_FLAGS  = $(NVCCFLAGS) $(NVCC_ARCH) -std=c++17 --fmad=false -Idelta -Igpu -cudart static \
	-Xcompiler -fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-Wall,-Wextra \
	$(if $(WERROR),-Werror all-warnings -Xcompiler -Werror)
$(B)/gpu/%.cu.o: gpu/%.cu
	@mkdir -p $(@D)
	$(call quiet,NVCC,$<)$(NVCC) $(CUDA_FLAGS) -MD -MP -MF $(@:.o=.d) -c -o $@ $<
$(B)/bitdelta-cuda.so: $(patsubst %.cu,$(B)/%.cu.o,$(CUDA_SRC)) $(B)/delta/error.o $(B)/delta/utf8.o \
		$(B)/delta/dtype.o gpu/cuda.map
	$(call quiet,NVLINK,$@)$(NVCC) $(NVCC_ARCH) -shared -cudart static -Xlinker -z,defs,--version-script=gpu/cuda.map \
		$(CUDA_LIBS:%=-Xlinker -rpath,%) -o $@ $(filter %.o,$^) -lcublasLt

# bitdelta.c and mount.c hold the two main functions; the other files of mount-tools/ serve both.
$(B)/bitdelta: $(call obj,$(filter-out mount-tools/mount.c,$(TOOL_SRC))) $(B)/libbdfs.a \
		$(B)/libbdgpu.a $(B)/libbitdelta.a
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(FUSE_LIBS) $(DELTA_LIBS) $(GPU_LIBS)
$(B)/mount.bitdelta: $(call obj,mount-tools/mount.c) $(B)/libbdfs.a $(B)/libbitdelta.a
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(FUSE_LIBS) $(DELTA_LIBS)

$(B)/fs/%.o: fs/%.c
	@mkdir -p $(@D)
	$(call quiet,CC,$<)$(CC) $(ALL_CFLAGS) $(ALL_CPPFLAGS) $(DELTA_CFLAGS) $(FUSE_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(call quiet,CC,$<)$(CC) $(ALL_CFLAGS) $(ALL_CPPFLAGS) $(DELTA_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/unit/%: $(B)/tests/unit/%.o $(B)/tests/unit/testdata.o $(B)/libbdgpu.a $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka \
		$(DELTA_LIBS) $(GPU_LIBS)
$(B)/unit/test_mountstats: $(B)/mount-tools/mountstats.o
$(B)/unit/test_sandbox: $(B)/fs/sandbox.o $(B)/fs/sources.o $(B)/fs/log.o
$(B)/unit/test_models: $(patsubst %,$(B)/fs/%.o,models scan sources tree stats log)
$(B)/fuzz/%-replay: $(B)/tests/fuzz/%.o $(B)/tests/fuzz/replay_main.o $(B)/libbdgpu.a $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DELTA_LIBS) $(GPU_LIBS)
# What the exact coder is compared with, where it is installed (libzstd-dev).
$(B)/tests/bench/bench_exact.o: CPPFLAGS += $(shell pkg-config --exists libzstd && echo -DHAVE_ZSTD)
$(B)/bench/bench_exact: DELTA_LIBS += $(shell pkg-config --silence-errors --libs libzstd)
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DELTA_LIBS)

# Programs that need a GPU: tests/gpu.sh runs them, also where only what they need is installed.
$(B)/device/%: $(B)/tests/gpu/%.o $(B)/libbdgpu.a $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -Wl,--as-needed -o $@ $^ $(DELTA_LIBS) $(GPU_LIBS)
# The engine by itself, to be held against other implementations.
$(B)/engine/%: $(B)/tests/engine/%.o $(B)/libbdgpu.a $(B)/libbitdelta.a
	@mkdir -p $(@D)
	$(call quiet,LD,$@)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DELTA_LIBS) $(GPU_LIBS)

$(B)/gpu/%.o: DELTA_CFLAGS += $(GPU_CFLAGS)
$(B)/gpu/general.o: $(wildcard gpu/general/*.txt)
$(B)/mount-tools/doctor.o: DELTA_CFLAGS += $(FUSE_CFLAGS)
$(B)/tests/bench/reference_server.o: DELTA_CFLAGS += $(FUSE_CFLAGS)
$(B)/bench/reference_server: DELTA_LIBS += $(FUSE_LIBS)

# They test from outside: never with a sanitizer, which would make them slow.
$(B)/mount/%: tests/mount/%.c tests/mount/dice.h
	@mkdir -p $(@D)
	$(call quiet,CC,$<)$(CC) $(filter-out $(SAN),$(ALL_CFLAGS)) $(ALL_CPPFLAGS) $(FUSE_CFLAGS) -o $@ $< $(FUSE_LIBS)

tests: $(UNITS) $(REPLAYS) $(BENCHES) $(READERS) $(DEVICES) $(ENGINES)

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
mount-test: all $(READERS)
	tests/check.sh mount $(B)
gpu-test:
	tests/gpu.sh build/gpu.log
bench: all
	+$(MAKE) --no-print-directory $(BENCHES)
	tests/bench.sh

FUZZ_SECONDS ?= 60
fuzz:
	tests/fuzz.sh $(FUZZ_SECONDS)

VERSION   = $(shell sed -nE 's/^\#define BD_VERSION "(.*)"/\1/p' delta/delta.h)
LIBRARY   = libbitdelta.so.$(VERSION)
SHARE     = $(DESTDIR)$(PREFIX)/share
UNITS_DIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
FILL_IN   = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@SBINDIR@|$(SBINDIR)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' \
	-e 's|@VERSION@|$(VERSION)|g'

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR) $(DESTDIR)$(PREFIX)/include \
		$(DESTDIR)$(LIBDIR)/pkgconfig $(UNITS_DIR) $(SHARE)/bash-completion/completions \
		$(SHARE)/doc/bitdelta/examples
	install -m 755 $(B)/bitdelta $(DESTDIR)$(PREFIX)/bin/bitdelta
	install -m 755 $(B)/mount.bitdelta $(DESTDIR)$(SBINDIR)/mount.bitdelta
	ln -sf mount.bitdelta $(DESTDIR)$(SBINDIR)/mount.fuse.bitdelta
	install -m 644 delta/bitdelta.h $(DESTDIR)$(PREFIX)/include/bitdelta.h
	install -m 644 $(B)/libbitdelta.a $(DESTDIR)$(LIBDIR)/libbitdelta.a
	install -m 644 $(B)/$(SONAME) $(DESTDIR)$(LIBDIR)/$(LIBRARY)
	ln -sf $(LIBRARY) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libbitdelta.so
ifneq ($(CUDA),)
	install -d $(DESTDIR)$(PREFIX)/lib/bitdelta
	install -m 755 $(CUDA) $(DESTDIR)$(PREFIX)/lib/bitdelta/bitdelta-cuda.so
endif
	$(FILL_IN) mount-tools/libbitdelta/libbitdelta.pc.in \
		>$(DESTDIR)$(LIBDIR)/pkgconfig/libbitdelta.pc
	$(FILL_IN) mount-tools/systemd/bitdelta@.service.in >$(UNITS_DIR)/bitdelta@.service
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/libbitdelta.pc $(UNITS_DIR)/bitdelta@.service
	install -m 644 mount-tools/completion/bitdelta $(SHARE)/bash-completion/completions/
	for n in mount.bitdelta mount.fuse.bitdelta; do \
		ln -sf bitdelta $(SHARE)/bash-completion/completions/$$n; done
	for m in mount-tools/man/*.[1-8]; do s=$${m##*.}; \
		install -d $(SHARE)/man/man$$s; install -m 644 $$m $(SHARE)/man/man$$s/; done
	ln -sf mount.bitdelta.8 $(SHARE)/man/man8/mount.fuse.bitdelta.8
	install -m 644 README.md LICENSE NOTICE delta/FORMAT.md $(SHARE)/doc/bitdelta/
	install -m 644 mount-tools/systemd/examples/* mount-tools/libbitdelta/example.c \
		$(SHARE)/doc/bitdelta/examples/
	[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || ldconfig

# What is removed is what would be installed.
uninstall:
	rm -rf $(B)/uninstall
	+$(MAKE) --no-print-directory install DESTDIR=$(abspath $(B)/uninstall) >/dev/null
	cd $(B)/uninstall && find . ! -type d | while read -r f; do \
		rm -f "$(abspath $(DESTDIR))/$$f"; done
	for d in $(SHARE)/doc/bitdelta/examples $(SHARE)/doc/bitdelta \
		$(DESTDIR)$(PREFIX)/lib/bitdelta; do \
		[ ! -d $$d ] || rmdir --ignore-fail-on-non-empty $$d; done
	rm -rf $(B)/uninstall
	[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || ldconfig

deb:
	tests/setup.sh deb
	mount-tools/debian/build.sh build/deb

clean:
	rm -rf build
help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

-include $(shell find $(B) -type f -name '*.d' 2>/dev/null)
