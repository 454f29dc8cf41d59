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
LDLIBS   = -lmicrohttpd -lgnutls -luv -lcjson -lsentencepiece -ldl -lm -lstdc++ -pthread

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

FOLDERS := config kvcache engine engine/cpu engine/grammar scheduler server
SRCS    := $(filter-out server/main.c,$(wildcard $(addsuffix /*.c,$(FOLDERS)))) $(wildcard $(addsuffix /*.cc,$(FOLDERS)))
OBJS    := $(patsubst %,$(BUILD)/obj/%.o,$(basename $(SRCS))) $(BUILD)/obj/embedded.o
UNIT    := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
BENCH   := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))
LOAD    := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/load/*.c))
FUZZ    := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))

# The daemon, and where there is nvcc its CUDA backend (a variant's tests run that on the emulated device).
all: $(BUILD)/openmoed $(if $(VARIANT),,$(if $(NVCC),cuda))

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

# ---- files that the daemon carries (server/embedded.h): the page for people, and its libraries; what
# the interface is
EMBEDDED := server/openapi.json $(filter-out %.sh,$(wildcard server/web/*)) $(BUILD)/embedded/libraries.js $(BUILD)/embedded/licenses.txt

.DELETE_ON_ERROR:
$(BUILD)/embedded/libraries.js $(BUILD)/embedded/licenses.txt &: server/web/libraries.sh
	@mkdir -p $(@D)
	@$< $(@D)

$(BUILD)/embedded/embedded.c: server/embed.sh $(EMBEDDED) Makefile
	@mkdir -p $(@D)
	@server/embed.sh $@ $(EMBEDDED)

$(BUILD)/obj/embedded.o: $(BUILD)/embedded/embedded.c
	@mkdir -p $(@D)
	@echo "  cc  $<"
	@$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

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

# ---- the CUDA backend ---------------------------------------------------------------------------------
#
# A shared object beside the daemon, opened at run time: cudart is linked into it, so that it needs
# nothing but the driver. Machine code for sm_80 and sm_90, PTX for what comes later. `make check-emu`
# compiles the same files with g++ for the emulated device of tests/gpu/emu.

NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -Iengine/cuda -D_GNU_SOURCE \
             -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
             -gencode arch=compute_90,code=compute_90 -Werror all-warnings \
             -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra
CU_SRCS   := $(wildcard engine/cuda/*.cu)
PIC_OBJS  := $(patsubst %,$(BUILD)/pic/%.o,config/error config/utf8)
GPU_CHECK := $(patsubst tests/gpu/%.c,$(BUILD)/gpu/%,$(wildcard tests/gpu/check_*.c))
EMU_FLAGS := -std=c++17 -D_GNU_SOURCE -Itests/gpu/emu -I. -Wall -Wextra -Werror -Wshadow=local -Wno-unknown-pragmas -pthread \
             -fPIC -fvisibility=hidden -fno-strict-aliasing
EMU_OBJS  := $(patsubst %.cu,$(BUILD)/cuda-emu/%.o,$(CU_SRCS)) \
             $(patsubst %.cc,$(BUILD)/cuda-emu/%.o,$(wildcard tests/gpu/emu/*.cc))

$(BUILD)/pic/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc  $< (pic)"
	@$(CC) $(ALL_CFLAGS) -fPIC -fvisibility=hidden -MMD -MP -c $< -o $@

$(BUILD)/obj/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "  nvcc $<"
	@$(NVCC) $(NVCCFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libopenmoed-cuda.so: $(CU_SRCS:%=$(BUILD)/obj/%.o) $(PIC_OBJS)
	@echo "  ld  $@"
	@$(NVCC) -shared -cudart static $^ -o $@

$(BUILD)/cuda-emu/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  c++ $< (emulated)"
	@$(CXX) $(EMU_FLAGS) $(CFLAGS) $(SAN) -MMD -MP -x c++ -c $< -o $@

$(BUILD)/cuda-emu/%.o: %.cc
	@mkdir -p $(@D)
	@echo "  c++ $<"
	@$(CXX) $(EMU_FLAGS) $(CFLAGS) $(SAN) -MMD -MP -c $< -o $@

# The emulation itself stays outside TSan, which then looks for races among the threads of kernels.
ifeq ($(VARIANT),tsan)
$(BUILD)/cuda-emu/tests/gpu/emu/%.o: SAN := -DEMU_RACES
endif

$(BUILD)/cuda-emu/libopenmoed-cuda.so: $(EMU_OBJS) $(PIC_OBJS)
	@echo "  ld  $@"
	@$(CXX) -shared $(SAN) $^ -ldl -pthread -o $@

$(BUILD)/gpu/check_%: $(BUILD)/obj/tests/gpu/check_%.o $(BUILD)/libopenmoed.a
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(CC) $(SAN) $^ -lcmocka $(LDLIBS) -o $@

cuda: $(BUILD)/libopenmoed-cuda.so

# The functions of <device.cuh> against their definitions, emulated and, where there is nvcc, compiled for
# every target with warnings as errors ($(BUILD)/gpu/test_device* run on a GPU); and the emulation itself.
DEVICE_TESTS := test_device test_device_numbers
EMU_TESTS    := $(addprefix $(BUILD)/cuda-emu/,$(DEVICE_TESTS) test_emu test_emu_runtime)
$(EMU_TESTS): $(BUILD)/cuda-emu/%: $(BUILD)/cuda-emu/tests/gpu/%.o \
                                   $(filter $(BUILD)/cuda-emu/tests/gpu/emu/%,$(EMU_OBJS))
	@echo "  ld  $@"
	@$(CXX) $(SAN) $^ -pthread -o $@

$(addprefix $(BUILD)/gpu/,$(DEVICE_TESTS)): $(BUILD)/gpu/%: $(BUILD)/obj/tests/gpu/%.cu.o
	@mkdir -p $(@D)
	@echo "  ld  $@"
	@$(NVCC) -cudart static $^ -o $@

check-device: $(EMU_TESTS) $(if $(VARIANT),,$(if $(NVCC),$(addprefix $(BUILD)/gpu/,$(DEVICE_TESTS))))
	@set -e; for t in $(EMU_TESTS); do $$t 2>$$t.log || { cat $$t.log; exit 1; }; done

# The backend and the engine over it, on the emulated device.
EMU_UNIT := $(addprefix $(BUILD)/unit/,test_golden test_engine test_sched_invariants)
check-emu: $(BUILD)/cuda-emu/libopenmoed-cuda.so $(GPU_CHECK) $(EMU_UNIT) $(BUILD)/gpu/dialogues.jsonl check-device
	@tests/gpu/run-checks.sh $(BUILD) $< emulated $(JOBS)

# Held-out dialogues for the demo model.
$(BUILD)/gpu/dialogues.jsonl: $(wildcard tests/reference/dialogue*.py)
	@mkdir -p $(@D)
	python3 tests/reference/dialogues.py --held-out --n 40 --seed 2026 > $@

# On a GPU: all checks, then the benchmarks, one table at the end. gpu-kit makes the folder to carry to a
# machine that has a GPU but not our Debian packages; there, tests/gpu/check-gpu.sh does the same. A dry run
# does it all at small sizes on the emulated device.
KIT_PARTS := $(BUILD)/openmoed $(GPU_CHECK) $(EMU_UNIT) $(BUILD)/gpu/dialogues.jsonl \
             $(addprefix $(BUILD)/bench/,bench_gpu bench_chats) $(BUILD)/load/chatload
gpu-kit: $(KIT_PARTS) cuda $(addprefix $(BUILD)/gpu/,$(DEVICE_TESTS))
	@tests/gpu/make-kit.sh $(BUILD) $(BUILD)/gpu-kit cuda

check-gpu: gpu-kit
	@tests/gpu/check-gpu.sh --kit $(BUILD)/gpu-kit

check-gpu-dry: $(KIT_PARTS) $(BUILD)/cuda-emu/libopenmoed-cuda.so $(EMU_TESTS)
	@tests/gpu/make-kit.sh $(BUILD) $(BUILD)/gpu-kit-emulated emulated
	@tests/gpu/check-gpu.sh --dry --kit $(BUILD)/gpu-kit-emulated

units: $(UNIT)
benches: $(BENCH)
fuzzers: $(FUZZ)

# The daemon without looking for CUDA.
cpu: $(BUILD)/openmoed

# ---- run, test --------------------------------------------------------------------------------------

run:
	@deploy/packages.sh build
	@$(MAKE) --no-print-directory -j$(JOBS) all
	build/openmoed --model deploy/demo-model $(ARGS)

# Every suite: unit, golden, integration and the page in a browser; the unit suites again under ASan+UBSan and TSan; each
# fuzz target for FUZZ_SECONDS; and part of the integration tests against the ASan daemon. The CUDA
# backend has its own: check-emu, on an emulated device.
# `make VARIANT=asan check-integration` runs them all (likewise tsan); that takes several times as long.
test:
	@deploy/packages.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) cpu units
	@$(MAKE) --no-print-directory check-units
	@$(MAKE) --no-print-directory asan tsan fuzz
	@$(MAKE) --no-print-directory check-integration check-web
	@$(MAKE) --no-print-directory VARIANT=asan check-integration TESTS="$(SANITIZED)"

# What of the integration tests also runs against the ASan daemon: those that send it the oddest things.
SANITIZED := $(addprefix tests/integration/test_,http.py errors.py completions.py metrics.py web.py)
TESTS     := tests/integration

JOBS         := $(shell nproc)
FUZZ_SECONDS := 10

check-units: units
	@tests/run-units.sh $(BUILD)

asan tsan:
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=$@ cpu units
	@tests/run-units.sh build/$@

fuzz:
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=fuzz fuzzers
	@tests/run-fuzz.sh build/fuzz/fuzz $(FUZZ_SECONDS)

check-integration: cpu build/venv/done
	TEST_BINARY=$(CURDIR)/$(BUILD)/openmoed build/venv/bin/python -m pytest -q -p no:cacheprovider $(TESTS)

# The page for people, in headless Chromium; leaves screenshots in build/web.
check-web: cpu build/venv/done
	TEST_BINARY=$(CURDIR)/$(BUILD)/openmoed build/venv/bin/python -m pytest -q -p no:cacheprovider tests/web

build/venv/done: tests/integration/requirements.txt tests/integration/requirements-litellm.txt
	python3 -m venv build/venv
	build/venv/bin/pip install -q --disable-pip-version-check -r $<
	build/venv/bin/pip install -q --disable-pip-version-check --no-deps -r $(word 2,$^)
	@touch $@

# ---- measure, look after ------------------------------------------------------------------------------

bench:
	@deploy/packages.sh build bench
	@$(MAKE) --no-print-directory -j$(JOBS) benches
	build/bench/bench_gemm 2
	build/bench/bench_engine --threads 2 --csv build/bench_engine.csv
	build/bench/bench_sched 2000
	build/bench/bench_kvcache

C_FILES := $(wildcard $(addsuffix /*.[ch],$(FOLDERS) tests/unit tests/bench tests/fuzz tests/load) engine/cpu/*.inc \
             engine/cuda/*.[ch]* tests/gpu/*.[ch]* tests/gpu/emu/*.[ch]*)

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
	$(if $(NVCC),install -m 755 build/libopenmoed-cuda.so $(DESTDIR)$(PREFIX)/bin/libopenmoed-cuda.so)
	install -d $(DESTDIR)$(PREFIX)/share/openmoed/demo-model
	install -m 644 deploy/demo-model/*.* $(DESTDIR)$(PREFIX)/share/openmoed/demo-model

clean:
	rm -rf build

-include $(OBJS:.o=.d) $(patsubst %,$(BUILD)/obj/%.d,$(basename $(wildcard tests/*/*.c)) server/main) \
         $(CU_SRCS:%=$(BUILD)/obj/%.d) $(EMU_OBJS:.o=.d) $(PIC_OBJS:.o=.d) \
         $(EMU_TESTS:$(BUILD)/cuda-emu/%=$(BUILD)/cuda-emu/tests/gpu/%.d) $(DEVICE_TESTS:%=$(BUILD)/obj/tests/gpu/%.cu.d)

.PHONY: all units benches fuzzers cpu cuda check-device check-emu gpu-kit check-gpu check-gpu-dry run test check-units asan tsan fuzz check-integration check-web bench lint format check install clean
.SECONDARY:
