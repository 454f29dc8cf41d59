# SPDX-License-Identifier: Apache-2.0
#
# openmoed. `make run` and `make test` do everything on a fresh Debian 12 machine; everything built
# lands in build/. A variant (asan, tsan) is the same tree of objects under build/VARIANT.

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := all

VARIANT ?=
BUILD   := build$(if $(VARIANT),/$(VARIANT))
CC      := gcc
CXX     := g++
WARN    := -Wall -Wextra -Werror -Wshadow -Wconversion
CFLAGS  ?= -O3 -g
ALL_CFLAGS   = -std=c11 -D_GNU_SOURCE -I. $(WARN) -Wstrict-prototypes -fno-math-errno -pthread $(CFLAGS) $(SAN) $(ISA)
ALL_CXXFLAGS = -std=c++17 -D_GNU_SOURCE -I. -Wall -Wextra -Werror -Wshadow -pthread $(CFLAGS) $(SAN)
LDLIBS   = -lmicrohttpd -luv -lcjson -lsentencepiece -ldl -lm -lstdc++ -pthread

ifeq ($(VARIANT),asan)
SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
CFLAGS := -O1 -g
endif
ifeq ($(VARIANT),tsan)
SAN := -fsanitize=thread
CFLAGS := -O1 -g
endif
ifeq ($(VARIANT),fuzz)
CC := clang
CXX := clang++
SAN := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all
CFLAGS := -O1 -g
endif

FOLDERS := config kvcache engine engine/cpu scheduler server
SRCS    := $(filter-out server/main.c,$(wildcard $(addsuffix /*.c,$(FOLDERS)))) $(wildcard $(addsuffix /*.cc,$(FOLDERS)))
OBJS    := $(patsubst %,$(BUILD)/obj/%.o,$(basename $(SRCS)))
UNIT    := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
BENCH   := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))
LOAD    := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/load/*.c))
FUZZ    := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(BUILD)/openmoed

# The kernels of one family are one source compiled for one instruction set.
$(BUILD)/obj/engine/cpu/kernels_avx2.o:   ISA := -mavx2 -mfma -mf16c
$(BUILD)/obj/engine/cpu/kernels_avx512.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
$(BUILD)/obj/tests/unit/test_amx.o:           ISA := -Wno-psabi
$(BUILD)/obj/engine/cpu/kernels_amx.o:    ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mamx-tile -mamx-bf16 -mprefer-vector-width=512

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc  $<"
	@$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/obj/%.o: %.cc
	@mkdir -p $(@D)
	@echo "  c++ $<"
	@$(CXX) $(ALL_CXXFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libopenmoed.a: $(OBJS)
	@rm -f $@
	@echo "  ar  $@"
	@ar rcs $@ $^

$(BUILD)/openmoed: $(BUILD)/obj/server/main.o $(BUILD)/libopenmoed.a
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ $(LDLIBS) -o $@

$(BUILD)/unit/%: $(BUILD)/obj/tests/unit/%.o $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ -lcmocka $(LDLIBS) -o $@

$(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ $(BENCH_LIBS) $(LDLIBS) -o $@

$(BUILD)/bench/bench_gemm: BENCH_LIBS := -lopenblas -ldnnl

$(BUILD)/load/chatload: $(LOAD) $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ -lcurl -lcjson -lm -o $@

# Tests of the load generator's pure parts: all of it but main.
$(BUILD)/unit/test_chatload: $(BUILD)/obj/tests/unit/test_chatload.o $(filter-out %/chatload.o,$(LOAD)) $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ -lcmocka -lcurl -lcjson -lm -o $@

$(BUILD)/fuzz/%: $(BUILD)/obj/tests/fuzz/%.o $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CXX) -fsanitize=address,undefined,fuzzer $^ $(LDLIBS) -o $@

units: $(UNIT)
benches: $(BENCH)
fuzzers: $(FUZZ)

# The daemon without looking for CUDA. There is one backend so far, so it is what `all` builds.
cpu: $(BUILD)/openmoed

# ---- run, test --------------------------------------------------------------------------------------

run:
	@deploy/packages.sh build
	@$(MAKE) --no-print-directory -j$(JOBS) all
	build/openmoed --model deploy/demo-model $(ARGS)

# Every suite: unit, golden and integration; the unit suites again under ASan+UBSan and TSan; each
# fuzz target for FUZZ_SECONDS; and part of the integration tests against the ASan daemon.
# `make VARIANT=asan check-integration` runs them all (likewise tsan); that takes several times as long.
test:
	@deploy/packages.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) all units
	@$(MAKE) --no-print-directory check-units
	@$(MAKE) --no-print-directory asan tsan fuzz
	@$(MAKE) --no-print-directory check-integration
	@$(MAKE) --no-print-directory VARIANT=asan check-integration TESTS="$(SANITIZED)"

# What of the integration tests also runs against the ASan daemon: those that send it the oddest things.
SANITIZED := $(addprefix tests/integration/test_,http.py errors.py completions.py metrics.py)
TESTS     := tests/integration

JOBS         := $(shell nproc)
FUZZ_SECONDS := 10

check-units: units
	@tests/run-units.sh $(BUILD)

asan tsan:
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=$@ all units
	@tests/run-units.sh build/$@

fuzz:
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=fuzz fuzzers
	@tests/run-fuzz.sh build/fuzz/fuzz $(FUZZ_SECONDS)

check-integration: all build/venv/done
	TEST_BINARY=$(CURDIR)/$(BUILD)/openmoed build/venv/bin/python -m pytest -q -p no:cacheprovider $(TESTS)

build/venv/done: tests/integration/requirements.txt
	python3 -m venv build/venv
	build/venv/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

# ---- measure, look after ------------------------------------------------------------------------------

bench:
	@deploy/packages.sh build bench
	@$(MAKE) --no-print-directory -j$(JOBS) benches
	build/bench/bench_gemm 2
	build/bench/bench_engine --threads 2 --csv build/bench_engine.csv
	build/bench/bench_sched 2000
	build/bench/bench_kvcache

C_FILES := $(wildcard $(addsuffix /*.[ch],$(FOLDERS) tests/unit tests/bench tests/fuzz tests/load) engine/cpu/*.inc)

lint:
	@deploy/packages.sh build lint
	clang-format --dry-run -Werror $(C_FILES)
	cppcheck -q --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 -I. $(filter %.c,$(SRCS)) server/main.c
	clang-tidy --quiet --warnings-as-errors='*' $(filter %.c,$(SRCS)) server/main.c -- -std=c11 -D_GNU_SOURCE -I. -mavx512f -mamx-tile -mamx-bf16

format:
	clang-format -i $(C_FILES)

check: test lint

PREFIX := /usr/local
install: all
	install -D -m 755 build/openmoed $(DESTDIR)$(PREFIX)/bin/openmoed
	install -d $(DESTDIR)$(PREFIX)/share/openmoed/demo-model
	install -m 644 deploy/demo-model/*.* $(DESTDIR)$(PREFIX)/share/openmoed/demo-model

clean:
	rm -rf build

-include $(OBJS:.o=.d) $(patsubst %,$(BUILD)/obj/%.d,$(basename $(wildcard tests/*/*.c)) server/main)

.PHONY: all units benches fuzzers cpu run test check-units asan tsan fuzz check-integration bench lint format check install clean
.SECONDARY:
