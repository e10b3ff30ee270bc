"""csrc/cuda/lib/launch.h under nvcc, against a CUDA runtime that refuses what a device would refuse."""

import json
import re
import shutil
import subprocess

import pytest
from helpers import ROOT, cuda_budget

HEADER = (ROOT / "csrc" / "cuda" / "lib" / "launch.h").read_text()
UNASKED = 48 * 1024

# Kernels with 0, 640 and 20480 bytes of static shared memory, launched with the dynamic bytes of the command line.
KERNELS = """
#include <cstdio>
#include <cstdlib>
#include "cuda/lib/launch.h"

extern "C" int times_asked();

template <int kStatic>
FASTMIX_KERNEL void kernel(int* out) {
  FASTMIX_DYNAMIC_SHARED(int, dynamic);
  __shared__ int own[kStatic / 4 + 1];
  own[threadIdx.x % (kStatic / 4 + 1)] = dynamic[threadIdx.x];
  __syncthreads();
  *out = own[0];
}

int main(int count, char** bytes) {
  for (int i = 1; i < count; ++i) {
    const size_t dynamic = std::strtoul(bytes[i], nullptr, 10);
    fastmix::launch(kernel<0>, {1, 32, dynamic}, nullptr, static_cast<int*>(nullptr));
    fastmix::launch(kernel<640>, {1, 32, dynamic}, nullptr, static_cast<int*>(nullptr));
    fastmix::launch(kernel<20480>, {1, 32, dynamic}, nullptr, static_cast<int*>(nullptr));
    std::printf("asked %d\\n", times_asked());
  }
}
"""

# What launch.h and nvcc's own code call of the runtime: a launch beyond what a block may have is refused.
RUNTIME = """
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <map>

struct Known { int fixed, most; };
static std::map<const void*, Known>& kernels() { static std::map<const void*, Known> known; return known; }
static dim3 grid, block;
static size_t shared_bytes;
static int asked = 0;

extern "C" {
int times_asked() { return asked; }
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* f, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  const int bytes = std::strstr(name, "Li640E") ? 640 : std::strstr(name, "Li20480E") ? 20480 : 0;
  kernels()[f] = {bytes, 48 * 1024 - bytes};
}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, CUstream_st*) {
  grid = g; block = b; shared_bytes = s;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void*) {
  *g = grid; *b = block; *s = shared_bytes;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t s, cudaStream_t) {
  const bool fits = static_cast<int>(s) <= kernels().at(f).most;
  std::printf("%d+%zu %s\\n", kernels().at(f).fixed, s, fits ? "launched" : "refused");
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t stream) {
  return cudaLaunchKernel(f, g, b, a, s, stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  ++asked;
  a->sharedSizeBytes = static_cast<size_t>(kernels().at(f).fixed);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute, int value) {
  kernels().at(f).most = value;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaSuccess; }
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_blocks_opt_in_by_static_and_dynamic_bytes(tmp_path):
    (tmp_path / "launch.cu").write_text(KERNELS)
    (tmp_path / "runtime.cpp").write_text(RUNTIME)
    program = tmp_path / "launch"
    done = subprocess.run(["nvcc", "-std=c++17", "-O1", "-arch=sm_90", "-cudart", "none", f"-I{ROOT / 'csrc'}",
                           "launch.cu", "runtime.cpp", "-o", str(program)], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # float32 rows of J = 12129 are 48516 bytes: with 640 of the kernel's own more than 48 KB.
    sizes = (1024, 16384, 28672, 28676, 48512, 48516, UNASKED, UNASKED + 4, 200_000)
    lines = subprocess.run([str(program), *map(str, sizes)], capture_output=True, text=True, check=True).stdout
    assert "refused" not in lines
    assert lines.count("launched") == 3 * len(sizes)
    asked = [int(n) for n in re.findall(r"asked (\d+)", lines)]
    assert asked[:2] == [0, 0]  # small launches do not ask the runtime
    assert len(sizes) == len(asked)


def test_static_shared_memory_stays_below_what_the_launch_supposes():
    most = int(re.search(r"kMostStaticShared = (\d+) \* 1024", HEADER)[1]) * 1024
    assert re.search(r"kUnaskedShared = 48 \* 1024", HEADER)
    budget = json.loads(cuda_budget.BUDGET.read_text())
    for architecture in ("sm_80", "sm_90", "sm_100"):
        static = {kernel: cuda_budget.static_shared(architecture, n) for kernel, n in budget[architecture].items()}
        assert min(static.values()) == 0
        assert {kernel: n for kernel, n in static.items() if n > most} == {}
