"""A GPU that computes nothing, under which MindSpore's GPU backend compiles and runs graphs on a machine without one.

    python -m tests.gpu_stand_in FOLDER     makes it; prints the environment that runs a Python on it

What the backend imports from CUDA's libraries and from its own kernels becomes functions that return success. Device
memory is host memory, and copies are real; results are what lay there. It shows which operators have a GPU kernel for
the types they are given, because MindSpore refuses the graph otherwise, and that the host's side runs. It needs gcc and
nm.
"""

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MINDSPORE = Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])
PLUGINS = MINDSPORE / "lib" / "plugin"
BACKEND = PLUGINS / "libmindspore_gpu.so.11.6"
KERNELS = "libcuda_ops.so.11"  # MindSpore's own
RUNTIME, DRIVER = "libcudart.so.11.0", "libcuda.so.1"

# the beginning of cudaDeviceProp, as CUDA 11 lays it out
RUNTIME_CODE = """
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
struct card {
  char name[256], ids[24]; unsigned mask; size_t memory, shared; int registers, warp; size_t pitch;
  int threads, block[3], grid[3], clock; size_t constant; int major, minor; size_t align[2];
  int overlap, processors;
};
static void *take(size_t n) { return mmap(0, n, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
int cudaMalloc(void **p, size_t n) { *p = take(n); return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned f) { *p = take(n); return 0; }
int cudaMemcpy(void *d, const void *s, size_t n, int k) { memcpy(d, s, n); return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int k, void *t) { memcpy(d, s, n); return 0; }
int cudaMemset(void *d, int v, size_t n) { memset(d, v, n); return 0; }
int cudaMemsetAsync(void *d, int v, size_t n, void *t) { memset(d, v, n); return 0; }
int cudaMemGetInfo(size_t *free, size_t *all) { *free = 15ull << 30; *all = 16ull << 30; return 0; }
int cudaGetDeviceCount(int *n) { *n = CARDS; return CARDS ? 0 : 100; }
int cudaEventElapsedTime(float *t, void *a, void *b) { *t = 1; return 0; }
int cudaGetDeviceProperties(struct card *p, int n) {
  memset(p, 0, 512);
  strcpy(p->name, "stand-in");
  p->memory = 16ull << 30; p->shared = 49152; p->registers = 65536; p->warp = 32; p->threads = 1024;
  p->block[0] = p->block[1] = 1024; p->block[2] = 64; p->grid[0] = 2147483647; p->grid[1] = p->grid[2] = 65535;
  p->major = CAPABILITY; p->processors = 132;
  return 0;
}
"""
# of ops.range: the only kernels that the host asks for a result
RANGE = """
int {name}(const {t} *from, const {t} *to, const {t} *by, {out}long *size, int *error, long most, void *stream) {{
  long n = 0;
  for (double x = *from; *by > 0 ? x < *to : x > *to; x += *by) {{ {write} n++; }}
  *size = n; *error = 0; return 0;
}}"""
NUMBERS = {"i": "int", "l": "long", "f": "float", "d": "double"}


def make(folder: Path, capability: int = 9, cards: int = 1) -> dict[str, str]:
    """Makes the libraries of a machine with that many cards; the environment of a Python that runs on them."""
    libraries, programs = folder / "lib64", folder / "bin"
    libraries.mkdir(parents=True)
    programs.mkdir()
    wanted: dict[str, set[str]] = defaultdict(set)  # names by library
    own = {line.split()[-1] for line in _names(PLUGINS / "gpu" / KERNELS, "--defined-only")}
    for line in _names(BACKEND, "--undefined-only"):
        name, _, library = line.split()[-1].replace("@@", "@").partition("@")
        if name in own:
            wanted[KERNELS].add(name)
        elif re.match("lib(cu|nvrtc)", library):
            wanted[library].add(name)
        elif re.match("cu[A-Z]", name) and not library:
            wanted[DRIVER].add(name)
    for library, names in wanted.items():
        versioned = library not in (KERNELS, DRIVER)
        code = _quiet(names)
        if library == RUNTIME:
            made = set(re.findall(r"\bint (cuda\w+)\(", RUNTIME_CODE))
            code = RUNTIME_CODE.replace("CARDS", str(cards)).replace("CAPABILITY", str(capability)) + _quiet(
                names - made
            )
        _compile(libraries / library, code, versioned)
    (programs / "nvcc").write_text('#!/bin/sh\necho "Cuda compilation tools, release 11.6, V11.6.55"\n')
    (programs / "nvcc").chmod(0o755)
    # the kernels are preloaded: the backend would find the real ones beside itself
    preloaded = str(libraries / KERNELS)
    return {"CUDA_HOME": str(folder), "LD_LIBRARY_PATH": str(libraries), "LD_PRELOAD": preloaded}


def _names(library: Path, which: str) -> list[str]:
    command = ["nm", "-D", which, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _quiet(names: set[str]) -> str:
    """Functions that return success; what makes something hands out a pointer, what asks for a size gets one."""
    lines = []
    for name in sorted(names):
        counts = re.match(r"_Z\d+(CudaValidateInputAndInferShape|CalRange)I([ilfd])E", name)
        if counts:
            kind = NUMBERS[counts[2]]
            fills = counts[1] == "CalRange"
            out, write = (f"{kind} *out, ", "out[n] = x;") if fills else ("", "")
            lines.append(RANGE.format(name=name, t=kind, out=out, write=write))
        elif re.search("ErrorString|ErrorName", name):
            lines.append(f'const char *{name}(void) {{ return "stand-in"; }}')
        elif name in ("cudnnGetReductionWorkspaceSize", "cudnnGetReductionIndicesSize"):
            lines.append(f"int {name}(void *a, void *b, void *c, void *d, unsigned long *n) {{ *n = 64; return 0; }}")
        elif name in ("cudnnDropoutGetStatesSize", "cudnnGetTensorSizeInBytes", "cudnnGetFilterSizeInBytes"):
            lines.append(f"int {name}(void *a, unsigned long *n) {{ *n = 64; return 0; }}")
        elif "Create" in name:
            lines.append(f"int {name}(void **made) {{ if (made) *made = (void *)64; return 0; }}")
        else:
            lines.append(f"long {name}(void) {{ return 0; }}")
    return "\n".join(lines)


def _compile(path: Path, code: str, versioned: bool) -> None:
    source, versions = path.with_suffix(".c"), path.with_suffix(".map")
    source.write_text(code)
    versions.write_text(f"{path.name} {{ global: *; }};" if versioned else "{ global: *; };")
    options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}", f"-Wl,--version-script={versions}"]
    subprocess.run(["gcc", *options, str(source), "-o", str(path)], check=True)


if __name__ == "__main__":
    print("export", *(f"{key}={value}" for key, value in make(Path(sys.argv[1]).resolve()).items()))
