# posttrain.c
#
#   make            all seven programs; `make sft` builds one, ./sft runs it
#   make test       every test, offline, without a GPU and without Python
#   make help       the rest

CC      ?= cc
CFLAGS  ?= -O3 -g
STD      = -std=gnu11
# The tests compile CUDA as C++, with the C++ compiler that belongs to CC.
ifeq ($(origin CXX),default)
  CXX_GCC = $(if $(findstring gcc,$(CC)),$(subst gcc,g++,$(CC)),c++)
  CXX     = $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),$(CXX_GCC))
endif
STDXX    = -std=gnu++17 -Wno-unknown-pragmas
WARN     = -Wall -Wextra
# Contraction is off, so that gcc and clang round alike; the kernels ask for a fused multiply-add
# where they want it. No -Ofast and no -ffast-math: NaN must stay visible.
FP       = -ffp-contract=off
# Only the kernels are compiled for an instruction set, once for each (common/model/simd.h). The
# rest runs on any CPU, chooses one of them, and can report that AVX2 is missing.
AVX2     = -mavx2 -mfma
AVX512   = $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
flags_avx2       = $(AVX2)
flags_avx512     = $(AVX512)
flags_avx512bf16 = $(AVX512) -mavx512bf16
WAYS     = avx2 avx512 avx512bf16
SANITIZE =
LIBS     = jansson libpcre2-8

STAGES   = sft reward ppo constitutional full_ft lora adapter
PROGRAMS = $(patsubst %.c,%,$(wildcard $(STAGES:=.c)))
CHECKS_CU = $(basename $(notdir $(wildcard test/emu/check_*.cu)))
CHECKS   = $(basename $(notdir $(wildcard test/check/check_*.c))) $(CHECKS_CU)
FUZZERS  = $(basename $(notdir $(wildcard test/fuzz/fuzz_*.c)))

# Each compiler and each sanitizer has its own directory of objects.
FLAVOUR ?= $(notdir $(firstword $(CC)))
B       := .build/$(FLAVOUR)
# The folders of common/ and of test/. An object is named after its source file; names are unique.
ROOMS    = common common/model common/text common/files common/run common/rl
BENCHES  = test test/check test/fuzz test/bench test/page
# The kernels of the CPU. On a device with its own memory kernels.cu replaces all of these objects.
KERNELS  = product row layers attention head nf4
COMMON  := $(notdir $(wildcard $(ROOMS:=/*.c)))
HOST_O   = $(filter-out device.o ranks_mpi.o $(KERNELS:=.o),$(COMMON:.c=.o))
CPU_O    = device.o $(foreach way,$(WAYS),$(KERNELS:=.$(way).o))

# Models that are fetched on request into models/NAME, and their repositories on Hugging Face's hub
MODELS                 = gpt2 distilgpt2 gpt2-medium dialogpt
repository_gpt2        = openai-community/gpt2
repository_distilgpt2  = distilbert/distilgpt2
repository_gpt2-medium = openai-community/gpt2-medium
repository_dialogpt    = microsoft/DialoGPT-medium

# Check what building needs. The targets in NEEDS_NOTHING do without.
NEEDS_NOTHING = help clean plots format format-check tidy cuda_table cuda_check $(MODELS)
ifneq ($(filter-out $(NEEDS_NOTHING),$(or $(MAKECMDGOALS),all)),)
  ifeq ($(shell command -v pkg-config),)
    $(error ✗ pkg-config not found: apt-get install pkg-config)
  endif
  $(foreach lib,$(LIBS),$(if $(shell pkg-config --exists $(lib) && echo yes),,\
    $(error ✗ $(lib) not found: apt-get install libjansson-dev libpcre2-dev)))
  ifeq ($(shell echo 'int main(void){return 0;}' | \
          $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo yes),)
    OPENMP = $(if $(findstring clang,$(CC)),libomp-dev,gcc libgomp1)
    $(error ✗ $(CC) cannot link OpenMP: apt-get install $(OPENMP))
  endif
endif

# --chat has line editing and a history where one of these libraries is installed. libedit has a BSD
# licence, readline the GPL. LINE_EDITOR=none builds without.
LINE_EDITOR ?= $(firstword $(foreach lib,libedit readline,\
    $(if $(shell pkg-config --exists $(lib) 2>/dev/null && echo yes),$(lib))))
line_libedit  = '-DLINE_EDITOR=<editline/readline.h>' '-DLINE_HISTORY=<editline/readline.h>'
line_readline = '-DLINE_EDITOR=<readline/readline.h>' '-DLINE_HISTORY=<readline/history.h>'
AS_NEEDED = -Wl,--as-needed
LINE_LIBS := $(if $(line_$(LINE_EDITOR)),$(AS_NEEDED) \
    $(shell pkg-config --libs $(LINE_EDITOR) 2>/dev/null))

COMPILE_FLAGS = $(STD) $(WARN) $(CFLAGS) $(FP) $(SANITIZE) -fopenmp -Icommon -MMD -MP
COMPILE  = $(CC) $(COMPILE_FLAGS)
# Compiling the kernels with sanitizers takes minutes. A target that runs only some ways names them.
SANITIZED_WAYS = $(WAYS)
# $(call compile_way,WAY)
compile_way = $(filter-out $(SANITIZE),$(COMPILE)) $(if $(filter $(1),$(SANITIZED_WAYS)),$(SANITIZE))
CU_FLAGS = $(STDXX) $(WARN) $(CFLAGS) $(FP) $(AVX2) $(SANITIZE) -Icommon -MMD -MP
COMPILE_CU = $(CXX) $(CU_FLAGS)
LDLIBS  := $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lm $(LINE_LIBS)
INCLUDE := $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
%/line.o: INCLUDE += $(line_$(LINE_EDITOR))

all: $(PROGRAMS)

define rule_of_room
$(B)/%.o: $(1)/%.c | $(B)
	$$(COMPILE) $$(INCLUDE) -c $$< -o $$@
endef
$(foreach room,$(ROOMS),$(eval $(call rule_of_room,$(room))))

define rule_of_way
$(B)/%.$(1).o: common/model/%.c | $(B)
	$$(call compile_way,$(1)) $$(INCLUDE) $$(flags_$(1)) -DWAY=$(1) -c $$< -o $$@
endef
$(foreach way,$(WAYS),$(eval $(call rule_of_way,$(way))))

$(B)/%.o: %.c | $(B)
	$(COMPILE) $(INCLUDE) -c $< -o $@

# A test may include the source file it tests, so it is compiled with AVX2; the archive provides the
# other files.
define rule_of_test_room
$(B)/%.o: $(1)/%.c | $(B)
	$$(COMPILE) $$(INCLUDE) $$(AVX2) -c $$< -o $$@
endef
$(foreach room,$(BENCHES),$(eval $(call rule_of_test_room,$(room))))

$(B)/%.o: test/emu/%.cu | $(B) cxx
	$(COMPILE_CU) $(INCLUDE) -x c++ -c $< -o $@

$(B)/common.a: $(addprefix $(B)/,$(HOST_O) $(CPU_O))
	rm -f $@ && ar rcs $@ $^

$(addprefix $(B)/,$(STAGES)): $(B)/%: $(B)/%.o $(B)/common.a
	$(COMPILE) $^ -o $@ $(LDLIBS)

$(addprefix $(B)/,$(filter-out $(CHECKS_CU),$(CHECKS))): $(B)/%: $(B)/%.o $(B)/common.a
	$(COMPILE) $^ -o $@ $(LDLIBS) $(shell pkg-config --libs check)

$(addprefix $(B)/,$(CHECKS_CU)): $(B)/%: $(B)/%.o
	$(COMPILE_CU) $^ -o $@ $(shell pkg-config --libs check)

$(B)/bench $(B)/world $(B)/page: $(B)/%: $(B)/%.o $(B)/common.a
	$(COMPILE) $^ -o $@ $(LDLIBS)

# --- several processes: ranks_mpi.c instead of ranks.c --------------------------------------------

# The compiler of Open MPI or MPICH, which is CC with MPI's directories. `mpirun -n 2 ./sft_mpi` is
# sft in two processes (common/ranks.h). Nothing else needs MPI.
MPICC  ?= $(shell command -v mpicc)
MPI_CC  = OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC)
MPI_CXX = OMPI_CXX="$(CXX)" MPICH_CXX="$(CXX)" $(subst mpicc,mpicxx,$(MPICC))
# X_nccl, with emulated or with real GPUs, is X_mpi with NCCL (common/model/exchange.h).
NCCL_PROGRAMS = $(STAGES:=_nccl)
# What starts the processes in the tests: with MPICC=mpicc.mpich mpirun.mpich. Objects of another MPI
# need another FLAVOUR.
MPIRUN ?= $(subst mpicc,mpirun,$(MPICC))
export MPIRUN
MPI     = $(STAGES:=_mpi)
$(B)/ranks_mpi.o: common/ranks_mpi.c | $(B) mpicc
	$(MPI_CC) $(COMPILE_FLAGS) $(INCLUDE) -c $< -o $@
$(addprefix $(B)/,$(MPI)): $(B)/%_mpi: $(B)/%.o $(B)/ranks_mpi.o $(B)/common.a
	$(MPI_CC) $(COMPILE_FLAGS) $^ -o $@ $(LDLIBS)
$(MPI): %: $(B)/% FORCE
	@cmp -s $< $@ || cp $< $@
mpicc:
	@test -n "$(MPICC)" || \
	    { echo "✗ mpicc not found: apt-get install libopenmpi-dev openmpi-bin"; exit 1; }

# --- devices with their own memory: kernels.cu instead of the CPU's kernels ------------------

# The tests of kernels and model, which run on a device as well
MODEL_CHECKS  = check_gpt2 check_training check_shards check_generate check_memory
DEVICE_CHECKS = check_kernels $(MODEL_CHECKS)

# One directory per kind: cuda and cuda_fp32 for a GPU, emu and emu_bf16 for tests on the CPU
# (test/emu/cuda_emu.h). $(call device,directory,flags of C,libraries,those of NCCL). The C++ compiler
# links, because a sanitizer may have its own runtime for C++.
LINK_CU = $(CXX) $(CFLAGS) $(SANITIZE) -fopenmp
define device
$(foreach room,$(ROOMS),$(call device_room,$(1),$(2),$(room)))
$(B)/$(1)/%.o: %.c | $(B)/$(1)
	$$(COMPILE) $$(INCLUDE) $(2) -c $$< -o $$@
$(foreach room,test/check test/bench,$(call device_test,$(1),$(2),$(room)))
$(B)/$(1)/common.a: $(addprefix $(B)/$(1)/,$(HOST_O) kernels.o)
	rm -f $$@ && ar rcs $$@ $$^
$(addprefix $(B)/$(1)/,$(STAGES) bench): %: %.o $(B)/$(1)/common.a
	$$(LINK_CU) $$^ -o $$@ $$(LDLIBS) $(3)
$(addprefix $(B)/$(1)/,$(MPI)): %_mpi: %.o $(B)/ranks_mpi.o $(B)/$(1)/common.a
	$$(MPI_CXX) $$(CFLAGS) $$(SANITIZE) -fopenmp $$^ -o $$@ $$(LDLIBS) $(3)
$(addprefix $(B)/$(1)/,$(NCCL_PROGRAMS)): %_nccl: %.o $(B)/ranks_mpi.o \
        $(B)/$(1)/exchange_nccl.o $(B)/$(1)/common.a
	$$(MPI_CXX) $$(CFLAGS) $$(SANITIZE) -fopenmp $$^ -o $$@ $$(LDLIBS) $(3) $(4)
$(addprefix $(B)/$(1)/,$(DEVICE_CHECKS)): %: %.o $(B)/$(1)/common.a
	$$(LINK_CU) $$^ -o $$@ $$(LDLIBS) $$(shell pkg-config --libs check) $(3)
$(B)/$(1):
	mkdir -p $$@
endef
define device_room
$(B)/$(1)/%.o: $(3)/%.c | $(B)/$(1)
	$$(COMPILE) $$(INCLUDE) $(2) -c $$< -o $$@

endef
define device_test
$(B)/$(1)/%.o: $(3)/%.c | $(B)/$(1)
	$$(COMPILE) $$(INCLUDE) $$(AVX2) $(2) -DON_DEVICE -c $$< -o $$@

endef

EMU = emu emu_bf16
$(eval $(call device,emu,,))
$(eval $(call device,emu_bf16,-DREAL_BF16,))
$(B)/emu/kernels.o $(B)/emu_bf16/kernels.o: $(B)/%/kernels.o: common/model/kernels.cu | $(B)/% cxx
	$(COMPILE_CU) $(if $(filter emu_bf16,$*),-DREAL_BF16) -include test/emu/cuda_emu.h \
	    -x c++ -c $< -o $@

$(B)/emu/exchange_nccl.o $(B)/emu_bf16/exchange_nccl.o: $(B)/%/exchange_nccl.o: \
        common/model/exchange_nccl.cu | $(B)/% cxx mpicc
	$(MPI_CXX) $(CU_FLAGS) -include test/emu/nccl_emu.h -x c++ -c $< -o $@

# make ppo_cuda PRECISION=fp32 stores and multiplies floats instead of bf16.
PRECISION ?= bf16
NVCC      ?= $(shell command -v nvcc)
CUDA       = $(if $(filter fp32,$(PRECISION)),cuda_fp32,cuda)
CUDA_LIB   = $(patsubst %/bin/nvcc,%/lib64,$(realpath $(NVCC)))
CUDA_LIBS  = -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -lcublasLt -lcudart
$(eval $(call device,cuda,-DREAL_BF16,$$(CUDA_LIBS),$$(NCCL_LIBS)))
$(eval $(call device,cuda_fp32,,$$(CUDA_LIBS),$$(NCCL_LIBS)))
# NCCL is used where nccl.h is: in NCCL_HOME, beside CUDA's headers, or where compilers look. Then
# NCCL_H is its path. NCCL_HOME=none does without.
NCCL_H     = $(firstword $(wildcard $(addsuffix /nccl.h,$(if $(NCCL_HOME),$(NCCL_HOME)/include,\
    $(CUDA_LIB:/lib64=/include) /usr/include /usr/include/$(shell $(CC) -dumpmachine) \
    /usr/local/include))))
NCCL_ROOT  = $(NCCL_H:/include/nccl.h=)
NCCL_LIBS  = $(foreach d,lib lib64,-L$(NCCL_ROOT)/$(d) -Wl,-rpath,$(NCCL_ROOT)/$(d)) -l:libnccl.so.2
# Machine code for the GPUs that this nvcc knows (Ampere, Hopper, Blackwell), and PTX for all
# others, which the driver compiles. Hopper's is of 90a, which has the products of warp groups.
comma := ,
KNOWN_GPUS = $(filter $(addprefix compute_,80 90 100 120),$(shell $(NVCC) --list-gpu-arch))
ARCHITECTURES = -gencode arch=compute_80$(comma)code=compute_80 \
    $(foreach a,$(KNOWN_GPUS:%90=%90a),-gencode arch=$(a)$(comma)code=$(subst compute,sm,$(a)))
$(addprefix $(B)/,cuda/kernels.o cuda_fp32/kernels.o): $(B)/%/kernels.o: common/model/kernels.cu \
        | $(B)/% nvcc
	$(NVCC) -std=c++17 -O3 -lineinfo --threads 0 $(ARCHITECTURES) --Werror all-warnings \
	    -Icommon $(if $(filter cuda,$*),-DREAL_BF16) -MMD -MP -c $< -o $@
$(addprefix $(B)/,cuda/exchange_nccl.o cuda_fp32/exchange_nccl.o): $(B)/%/exchange_nccl.o: \
        common/model/exchange_nccl.cu | $(B)/% nvcc
	$(NVCC) -std=c++17 -O3 $(ARCHITECTURES) --Werror all-warnings -I$(dir $(NCCL_H)) \
	    -Icommon $(if $(filter cuda,$*),-DREAL_BF16) -MMD -MP -c $< -o $@
nvcc:
	@test -n "$(NVCC)" || \
	    { echo "✗ nvcc not found: _cuda targets need the CUDA toolkit 12 or newer"; exit 1; }

# ./ppo_cuda is ppo on a GPU, and ./ppo_cuda_mpi in several processes, each on a GPU of its own.
$(addsuffix _cuda_mpi,$(STAGES)): BY = $(if $(NCCL_H),nccl,mpi)
$(addsuffix _cuda_mpi,$(STAGES)): %_cuda_mpi: nvcc mpicc FORCE
	@echo "$(if $(NCCL_H),GPUs exchange by NCCL: $(NCCL_H),$(\
	    )GPUs exchange through host memory: there is no nccl.h in NCCL_HOME or beside CUDA)"
	+@$(MAKE) --no-print-directory $(B)/$(CUDA)/$*_$(BY)
	@cmp -s $(B)/$(CUDA)/$*_$(BY) $@ || cp $(B)/$(CUDA)/$*_$(BY) $@
$(addsuffix _cuda,$(STAGES)): %_cuda: nvcc FORCE
	+@$(MAKE) --no-print-directory $(B)/$(CUDA)/$*
	@cmp -s $(B)/$(CUDA)/$* $@ || cp $(B)/$(CUDA)/$* $@

$(B):
	mkdir -p $@

cxx:
	@echo '#include <map>' | $(CXX) -x c++ -fsyntax-only - 2>/dev/null || \
	    { echo "✗ $(CXX) not found, or without its library: apt-get install g++"; exit 1; }

# ./sft is a copy of the version that was built last.
$(PROGRAMS): %: $(B)/% FORCE
	@cmp -s $< $@ || cp $< $@

# --- tests --------------------------------------------------------------------------------------

.PHONY: all avx2_only format format-check tidy cxx nvcc mpicc test test_emu test_cuda planted \
        planted_ranks cuda_table cuda_check \
        torture network asan ubsan asan_ubsan asan_mpi ubsan_mpi tsan tsan_cuda fuzz fuzz_flags \
        bench bench_cuda bench_compare \
        tiny tiny-out tiny-check demo demo_bf16 plots page help clean $(MODELS) FORCE
FORCE:

# `make test` runs the emulated GPU in one order of threads for each kind of numbers; test_emu runs
# all orders. CHECKS=... on the command line leaves the emulated GPU out.
EMULATED_TESTS = emu-check_kernels-forward emu_bf16-check_kernels-reverse \
                 $(MODEL_CHECKS:%=emu-%-reverse) $(MODEL_CHECKS:%=emu_bf16-%-forward) \
                 emu-curve emu-bench emu-dies $(if $(MPICC),emu-ranks)
EMULATED ?= $(if $(filter command,$(origin CHECKS)),,$(EMULATED_TESTS))
test: $(addprefix run-,$(CHECKS)) $(EMULATED) avx2_only cuda_check
	@echo "✓ all $(words $(CHECKS) $(EMULATED)) test programs passed ($(FLAVOUR))"

# The kernels for AVX2, and what is not a kernel, must hold no instruction of AVX-512: no register
# zmm, none of the registers 16 to 31, and no mask.
avx2_only: $(B)/common.a FORCE
	@for o in $(addprefix $(B)/,device.o $(KERNELS:=.avx2.o)); do \
	    ! objdump -d $$o | grep -m1 -E '%zmm|%[xy]mm(1[6-9]|2[0-9]|3[01])|%k[0-7]' || \
	        { echo "✗ $$o holds instructions of AVX-512"; exit 1; }; done

# The GPU kernels, emulated. One order of threads can hide a bug that another shows
# (test/emu/cuda_emu.h).
ORDERS   = forward reverse random:1 random:2 random:3
test_emu: emu-curve emu-bench
	+for order in $(ORDERS); do \
	    $(MAKE) $(foreach check,$(DEVICE_CHECKS),emu-$(check)-$$order emu_bf16-$(check)-$$order) \
	        || exit 1; done
run_emulated = CUDA_EMU_ORDER=$(lastword $(subst -, ,$@)) BUILD=$(B) $<
# $(call emulated,kind,test)
define emulated
$(1)-$(2)-%: $(B)/$(1)/$(2) FORCE
	$$(run_emulated)

endef
$(foreach kind,$(EMU),$(foreach check,$(DEVICE_CHECKS),$(eval $(call emulated,$(kind),$(check)))))
# The losses of three steps must agree with those of the CPU to 1e-4.
emu-curve: $(B)/sft $(B)/emu/sft FORCE
	sh test/emu/curve.sh $(B)/sft $(B)/emu/sft $(B)/emu 3
# bench on both, and the table of both: two rows that both have, two that only the GPU has.
emu-bench: $(B)/bench $(B)/emu_bf16/bench FORCE
	for b in $(B) $(B)/emu_bf16; do \
	    $$b/bench --size tiny --quick --only layernorm >$$b/bench-tiny.txt || exit 1; done
	awk -f test/bench/bench_compare.awk $(B)/bench-tiny.txt $(B)/emu_bf16/bench-tiny.txt | \
	    tee $(B)/compare-tiny.txt
	test `grep -c '^layernorm.*[0-9]$$' $(B)/compare-tiny.txt` = 2
	test `grep -c '^layernorm.* -$$' $(B)/compare-tiny.txt` = 2

# A test that ends its process does not end the suite, and says why.
emu-dies: $(B)/emu/check_kernels FORCE
	sh test/emu/dies.sh $(B)/emu

# What the compiled kernels take of a GPU: registers, shared memory, warps, instructions; and the
# least time of a training step (test/emu/cuda_table.sh). cuda_check fails when a kernel takes
# more local memory or loses warps. Without nvcc it has nothing to do.
cuda_table:
	@NVCC="$(or $(NVCC),nvcc)" sh test/emu/cuda_table.sh all
cuda_check: .build/cuda_check
.build/cuda_check: test/emu/cuda_table.sh test/emu/cuda_limits.txt common/model/kernels.cu \
        common/model/kernels.h common/model/nf4.h common/util.h
	@mkdir -p .build && NVCC="$(or $(NVCC),nvcc)" sh test/emu/cuda_table.sh check $@

# Several processes, each on a GPU: equal bytes, in float and in bf16, through host memory and by
# NCCL.
emu-ranks: $(foreach kind,$(EMU),$(addprefix $(B)/$(kind)/full_ft_,mpi nccl)) FORCE
	for kind in $(EMU); do sh test/emu/ranks.sh $(B)/$$kind || exit 1; done

# Plants bugs in kernels.cu, one at a time, and fails if the tests miss one; then in what several
# GPUs exchange.
planted: $(B)/emu/check_kernels $(B)/emu_bf16/check_kernels planted_ranks FORCE
	CXX="$(CXX)" sh test/emu/planted.sh $(B)
planted_ranks: $(addprefix $(B)/emu/full_ft_,mpi nccl) FORCE
	COMPILE='$(COMPILE)' CXX='$(CXX)' CU_FLAGS='$(CU_FLAGS)' MPI_CXX='$(MPI_CXX)' \
	    LDLIBS='$(LDLIBS)' sh test/emu/planted_ranks.sh $(B)/emu

# The kernel and model tests on a GPU
test_cuda: nvcc
	+@$(MAKE) --no-print-directory $(B)/sft \
	    $(foreach kind,cuda cuda_fp32,$(addprefix $(B)/$(kind)/,$(DEVICE_CHECKS) sft))
	for check in $(foreach kind,cuda cuda_fp32,$(DEVICE_CHECKS:%=$(kind)/%)); do \
	    $(B)/$$check || exit 1; done
	sh test/emu/curve.sh $(B)/sft $(B)/cuda_fp32/sft $(B)/cuda_fp32 50

# OMP_DYNAMIC=false: as many threads as a test asks for, also on a busy machine
run-%: $(B)/% $(addprefix $(B)/,$(PROGRAMS)) FORCE
	BUILD=$(B) OMP_DYNAMIC=false $<

# Kills the programs, fills their disk, takes their memory, and runs valgrind. `make test` has a
# short form of this (test/check/check_torture.c). TORTURE_KILLS is the number of random moments for
# each program, drawn from TORTURE_SEED. `make torture-disk` runs one part; -j2 runs two at a time.
TORTURE = kill operations over signals descriptors limits two disk older read-only memory valgrind
torture: $(addprefix torture-,$(TORTURE))
	@echo "✓ nothing was lost ($(FLAVOUR))"
torture-%: $(B)/check_torture $(B)/faults.so $(addprefix $(B)/,$(PROGRAMS)) FORCE
	BUILD=$(B) $< whole $*
run-check_torture run-check_bundle: $(B)/faults.so
run-check_ranks: $(if $(MPICC),$(addprefix $(B)/,$(MPI)))
run-check_page: $(B)/page
$(B)/faults.so: test/check/faults.c | $(B)
	$(CC) $(STD) $(WARN) -O2 -g -shared -fPIC $< -o $@ -ldl

# Several machines on this one (test/network.sh). Needs root, iproute2 and Open MPI.
network: $(B)/sft $(B)/sft_mpi
	sh test/network.sh $(B)

# The sanitizers run the same tests but those that only run the programs of other tests once more:
# for each instruction set, in several processes, with the flags of recipes, on a terminal, and
# killed at many moments. To run these as well: make asan MANY_RUNS=. CK_TIMEOUT_MULTIPLIER extends
# the time limits of slow tests.
MANY_RUNS = check_ways check_ranks check_recipes check_screen check_torture
SANITIZED = test CHECKS="$(filter-out $(MANY_RUNS),$(CHECKS))" EMULATED="$(EMULATED_TESTS)"
asan:
	$(MAKE) $(SANITIZED) FLAVOUR=$(FLAVOUR)-asan CFLAGS="-O1 -g -fno-omit-frame-pointer" \
	    SANITIZE="-fsanitize=address"
ubsan:
	$(MAKE) $(SANITIZED) FLAVOUR=$(FLAVOUR)-ubsan CFLAGS="-O1 -g" \
	    SANITIZE="-fsanitize=undefined -fno-sanitize-recover=all"
# Both sanitizers at once, in a third of the time of the two above: the same tests, with the kernels
# of AVX2, whose text the other ways share; of the emulated GPU the kernels with small shapes, and the
# other tests where they are quick. `make asan` has what is left out here: check_promises, which takes
# eight minutes, tests with the tag SLOW (test/check/program.h), and leaks, because LeakSanitizer of
# clang 14 crashes now and then. CI runs this.
BOTH  = CC=clang FLAVOUR=clang-asan-ubsan CFLAGS="-O1 -g -Werror" SANITIZED_WAYS=avx2 \
        SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"
NO_LEAKS = ASAN_OPTIONS=detect_leaks=0
QUICK = emu-check_shards-reverse emu_bf16-check_memory-forward emu-dies
asan_ubsan:
	$(NO_LEAKS) POSTTRAIN_CPU=avx2 CK_EXCLUDE_TAGS=slow $(MAKE) test \
	    CHECKS="$(filter-out $(MANY_RUNS) check_promises,$(CHECKS))" \
	    EMULATED="$(QUICK)" $(BOTH)
	$(NO_LEAKS) CK_INCLUDE_TAGS=small $(MAKE) test CHECKS= \
	    EMULATED=emu_bf16-check_kernels-forward $(BOTH)
# Several processes under these sanitizers, with the kernels of AVX2
asan_mpi ubsan_mpi: %_mpi:
	POSTTRAIN_CPU=avx2 $(MAKE) $* SANITIZED_WAYS=avx2 MANY_RUNS= \
	    CHECKS="check_ranks check_overlap" EMULATED_TESTS=emu-ranks
# ThreadSanitizer must see the barriers of OpenMP. clang's OpenMP reports them through its tool
# Archer; gcc's does not. The CUDA kernels use no OpenMP, and they run without TSAN_OPTIONS below,
# which would hide their accesses through memset() and memcpy().
TSAN = CK_TIMEOUT_MULTIPLIER=4 POSTTRAIN_CPU=avx2 $(MAKE) test CC=clang FLAVOUR=clang-tsan \
       CFLAGS="-O1 -g" SANITIZE="-fsanitize=thread" SANITIZED_WAYS=avx2
tsan: tsan_cuda
	+ARCHER_OPTIONS="verbose=0" TSAN_OPTIONS="ignore_noninstrumented_modules=1" \
	    $(TSAN) CHECKS="$(DEVICE_CHECKS) check_overlap"
	+$(TSAN) CHECKS= EMULATED="emu-check_kernels-forward emu_bf16-check_kernels-forward"
# ThreadSanitizer on the emulated GPU: the emulator's own tests, and each kernel on small shapes.
# The large shapes, in tsan above, take half an hour.
tsan_cuda:
	+$(TSAN) CHECKS="check_cuda_emu"
	+CK_INCLUDE_TAGS=small $(TSAN) CHECKS= EMULATED=emu_bf16-check_kernels-forward

# libFuzzer on every reader of files, FUZZ_SECONDS each.
FUZZ_SECONDS ?= 20
fuzz:
	$(MAKE) CC=clang FLAVOUR=clang-fuzz CFLAGS="-O1 -g" $(addprefix fuzz-,$(FUZZERS)) \
	    SANITIZE="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all" \
	    SANITIZED_WAYS=
fuzz-%: $(B)/%.o $(B)/common.a
	$(COMPILE) -fsanitize=fuzzer $^ -o $(B)/$* $(LDLIBS)
	mkdir -p $(B)/corpus/$*
	$(B)/$* -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
	    -print_final_stats=1 -artifact_prefix=$(B)/$*- $(B)/corpus/$*

# Every flag of every program at extreme values, and pairs of them, under both sanitizers
# (test/fuzz/flags.sh). FLAGS_SECONDS=0 runs all of them.
FLAGS_SECONDS ?= 0
fuzz_flags:
	$(MAKE) $(BOTH) $(addprefix .build/clang-asan-ubsan/,$(PROGRAMS))
	sh test/fuzz/flags.sh .build/clang-asan-ubsan $(FLAGS_SECONDS)

# --- benchmarks ---------------------------------------------------------------------------------

# One row per kernel, with its share of the machine's peak; then whole steps and decoding.
# BENCH="--only step" selects rows.
# Then the products again with --bf16, and with AVX2.
bench: $(B)/bench $(addprefix $(B)/,$(PROGRAMS)) $(if $(MPICC),$(B)/full_ft_mpi)
	$(B)/bench $(BENCH)
	$(B)/bench --bf16 $(BENCH)
	$(B)/bench --cpu avx2 $(BENCH)

# The same rows on a GPU; and CPU and GPU in one table
bench_cuda: nvcc
	+@$(MAKE) --no-print-directory $(addprefix $(B)/$(CUDA)/,bench $(PROGRAMS))
	$(B)/$(CUDA)/bench $(BENCH)
bench_compare: nvcc $(B)/bench $(addprefix $(B)/,$(PROGRAMS))
	+@$(MAKE) --no-print-directory $(addprefix $(B)/$(CUDA)/,bench $(PROGRAMS))
	$(B)/bench $(BENCH) >$(B)/bench.txt
	$(B)/$(CUDA)/bench $(BENCH) >$(B)/$(CUDA)/bench.txt
	awk -f test/bench/bench_compare.awk $(B)/bench.txt $(B)/$(CUDA)/bench.txt

# --- the built-in world and model ---------------------------------------------------------------

# test/world.c writes the world. full_ft pre-trains the tiny model on it, sft trains the chat model
# from that, and reward the reward model of ppo.c's example (test/tiny/README.md). All results are
# written to $(B)/tiny. It takes five minutes on two cores.
T := $(B)/tiny
tiny-out: $(B)/world $(B)/full_ft $(B)/sft $(B)/reward
	rm -rf $(T) && mkdir -p $(T) && $(B)/world $(T)/world
	$(B)/full_ft --init d3-c128-h4-t256 --model test/tiny --data $(T)/world/pretrain.jsonl \
	    --eval $(T)/world/pretrain-eval.jsonl --output $(T)/out \
	    --per_device_train_batch_size 5 --gradient_accumulation_steps 1 --max_steps 2400 \
	    --learning_rate 3e-3 --warmup_steps 60 --lr_scheduler_type cosine --weight_decay 0.1 \
	    --adam_beta2 0.99 --no_gradient_checkpointing --max_length 256 --logging_steps 400 \
	    --eval_steps 800 --save_steps 0 --seed 1
	$(B)/sft --model $(T)/out --data $(T)/world/mixed.jsonl --eval $(T)/world/mixed-eval.jsonl \
	    --output $(T)/out/chat --per_device_train_batch_size 16 \
	    --gradient_accumulation_steps 1 --max_steps 1400 --learning_rate 7e-4 \
	    --warmup_steps 20 --lr_scheduler_type cosine --adam_beta2 0.99 --logging_steps 200 \
	    --eval_steps 400 --save_steps 0 --seed 1
	$(B)/reward --model $(T)/out/chat --data $(T)/world/preferences.jsonl \
	    --eval $(T)/world/preferences-eval.jsonl --output $(T)/out/reward \
	    --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --max_steps 40 \
	    --learning_rate 3e-4 --warmup_steps 20 --lr_scheduler_type cosine --adam_beta2 0.99 \
	    --save_steps 0 --normalize --seed 1

TINY      = . chat reward
TINY_DATA = sft sft-eval sft-korean-eval summaries summaries-eval domain domain-eval \
            domain-old-eval preferences preferences-eval preferences-unseen-eval prompts \
            prompts-eval multiple-choice critiques-eval revisions-eval revisions-control-eval

tiny: tiny-out
	for m in $(TINY); do \
	    mkdir -p test/tiny/$$m && cp $(T)/out/$$m/model.safetensors test/tiny/$$m/; done
	for m in chat reward; do for f in config.json vocab.json merges.txt template.txt; do \
	    cp $(T)/out/$$m/$$f test/tiny/$$m/; done; done
	for f in $(TINY_DATA); do cp $(T)/world/$$f.jsonl test/tiny/; done
	cd test/tiny && sha256sum $(patsubst %,%/model.safetensors,$(TINY))

# Runs every program on the built-in world, and prints one table of what each learned. The same
# claims must hold with --bf16.
demo demo_bf16: $(addprefix $(B)/,$(PROGRAMS))
	$(if $(filter demo_bf16,$@),SEEDS=1) sh test/demo.sh $(B) $(if $(filter demo_bf16,$@),--bf16)

# A slow test: the compiler that made the committed models makes them again, bit for bit.
tiny-check: tiny-out
	for m in $(TINY); do \
	    cmp $(T)/out/$$m/model.safetensors test/tiny/$$m/model.safetensors || exit 1; done

# Draws the log of a run: RUN=out, or several names separated by spaces (test/plots.sh).
plots:
	@sh test/plots.sh $(RUN)

# Writes RUN/page.html, the curves and the text of a run for a browser. Several runs:
# RUN="out1 out2"
page: $(B)/page
	@$(B)/page test/page $(RUN)

# --- published models ---------------------------------------------------------------------------

$(MODELS):
	@sh test/fetch_model.sh $@ $(repository_$@)

# --- formatting ---------------------------------------------------------------------------------

# Formats C and CUDA by .clang-format. Other versions of clang-format give another layout.
CLANG_FORMAT ?= clang-format-14
C_FILES = $(wildcard *.c common/*.[ch] common/*/*.[ch] common/*/*.cu \
                     test/*.[ch] test/*/*.[ch] test/*/*.cu)
format format-check:
	@command -v $(CLANG_FORMAT) >/dev/null || \
	    { echo "✗ $(CLANG_FORMAT) not found: apt-get install $(CLANG_FORMAT)"; exit 1; }
	@$(CLANG_FORMAT) $(if $(filter format,$@),-i,--dry-run -Werror) $(C_FILES)

# clang-tidy: no product of two sizes in int that then becomes an index, an offset or a number of
# bytes. The kernels are read as their widest version.
CLANG_TIDY ?= clang-tidy-14
TIDY_CHECKS = -*,bugprone-implicit-widening-of-multiplication-result,$(\
    )bugprone-misplaced-widening-cast
tidy:
	@command -v $(CLANG_TIDY) >/dev/null || \
	    { echo "✗ $(CLANG_TIDY) not found: apt-get install $(CLANG_TIDY)"; exit 1; }
	@ls $(STAGES:=.c) $(filter-out %_mpi.c,$(wildcard $(ROOMS:=/*.c))) | xargs -P $$(nproc) -I FILE \
	    $(CLANG_TIDY) -quiet --checks="$(TIDY_CHECKS)" --warnings-as-errors="*" \
	    --header-filter=common FILE -- $(STD) -fopenmp -Icommon $(INCLUDE) \
	    $(flags_avx512bf16) -DWAY=avx512bf16 2>/dev/null
	@echo "✓ no product of two sizes in int"

# --- the rest -----------------------------------------------------------------------------------

help:
	@echo "make            build all programs: $(PROGRAMS)"
	@echo "make sft        build one program; ./sft runs an example, ./sft --help lists flags"
	@echo "make test       run all tests; CC=clang or CFLAGS='-O3 -Werror' selects another build"
	@echo "make asan       run the tests under AddressSanitizer; also ubsan, tsan (clang)"
	@echo "make asan_ubsan run them under both at once, with less of the emulated GPU (clang)"
	@echo "make asan_mpi   run several processes under AddressSanitizer; also ubsan_mpi"
	@echo "make test_emu   test the GPU kernels without a GPU; test_cuda tests them on a GPU"
	@echo "make planted    plant bugs in the GPU kernels, and check that the tests see each"
	@echo "make cuda_table print what compiled GPU kernels take, and the least time of a step (nvcc)"
	@echo "make torture    kill programs, fill their disk, take their memory (an hour; -j2)"
	@echo "make network    run sft on several machines, as network namespaces (root, iproute2)"
	@echo "make fuzz       fuzz every file reader for FUZZ_SECONDS=$(FUZZ_SECONDS) each (clang)"
	@echo "make ppo_cuda   build a program for an NVIDIA GPU, in bf16; PRECISION=fp32 for float"
	@echo "make sft_mpi    build a program for several processes: mpirun -n 2 ./sft_mpi --model ..."
	@echo "make sft_cuda_mpi    the same, each on a GPU; with NCCL, if it is installed"
	@echo "make bench      measure the speed; bench_cuda on a GPU, bench_compare on both"
	@echo "make demo       run every program on the built-in world, and print what each learned;"
	@echo "                demo_bf16 does so with --bf16"
	@echo "make plots      draw the log of a run (gnuplot): RUN=out, or RUN=\"out1 out2\""
	@echo "make page       show curves and tokens of a run in a browser: RUN=out/ppo, or several"
	@echo "make gpt2       fetch gpt2 into models/gpt2; also distilgpt2, gpt2-medium, dialogpt"
	@echo "make tiny       train the built-in models again (five minutes)"
	@echo "make format     format all C and CUDA files; format-check only checks them"
	@echo "make tidy       find products of sizes that may not fit their type (clang-tidy)"
	@echo "make clean      remove everything that was built"

clean:
	rm -rf .build $(STAGES) $(addsuffix _cuda,$(STAGES)) $(addsuffix _cuda_mpi,$(STAGES)) $(MPI)

.SECONDARY:
-include $(wildcard $(B)/*.d $(B)/*/*.d)
