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
PKGS    := libmicrohttpd libuv libcjson sentencepiece
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
FUZZ    := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(BUILD)/openmoed

# The kernels of one family are one source compiled for one instruction set.
$(BUILD)/obj/engine/cpu/kernels_avx2.o:   ISA := -mavx2 -mfma -mf16c
$(BUILD)/obj/engine/cpu/kernels_avx512.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
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
	@$(CC) $(SAN) $^ -lcurl $(LDLIBS) -o $@

$(BUILD)/fuzz/%: $(BUILD)/obj/tests/fuzz/%.o $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) -fsanitize=address,undefined,fuzzer $^ $(LDLIBS) -o $@

units: $(UNIT)
benches: $(BENCH)
fuzzers: $(FUZZ)

-include $(OBJS:.o=.d) $(patsubst %,$(BUILD)/obj/%.d,$(basename $(wildcard tests/*/*.c)) server/main)

.PHONY: all units benches fuzzers
.SECONDARY:
