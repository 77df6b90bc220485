"""After its first run the engine takes no memory: allocations are counted by a library that stands before malloc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

COUNTER = """
#include <dlfcn.h>
#include <stdlib.h>
#include <atomic>

static std::atomic<long> counted{0};
static const size_t kSmall = 1024;  // handles of arrays and the like; working memory is larger

template <class Function>
static Function* next(const char* name) { return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name)); }

static void count(size_t bytes) { if (bytes >= kSmall) ++counted; }

extern "C" {
long allocations() { return counted; }
void* malloc(size_t n) { static auto* f = next<void*(size_t)>("malloc"); count(n); return f(n); }
void* realloc(void* p, size_t n) { static auto* f = next<void*(void*, size_t)>("realloc"); count(n); return f(p, n); }
void* aligned_alloc(size_t a, size_t n) {
  static auto* f = next<void*(size_t, size_t)>("aligned_alloc");
  count(n);
  return f(a, n);
}
int posix_memalign(void** p, size_t a, size_t n) {
  static auto* f = next<int(void**, size_t, size_t)>("posix_memalign");
  count(n);
  return f(p, a, n);
}
}
"""

RUN = """
import ctypes, sys
import numpy as np
import pyvimtrt

allocations = ctypes.CDLL(sys.argv[1]).allocations
allocations.restype = ctypes.c_long
engine = pyvimtrt.load_engine(sys.argv[2], threads=2)
pixels = np.zeros((8, engine.config.channels, engine.config.img, engine.config.img), np.int8)
logits = np.empty((8, engine.config.classes), np.float32)
program = engine._program
counts = []
for batch in (8, 8, 1, 3, 8):  # the largest first: it makes the room
    x, y = pixels[:batch], logits[:batch]
    before = allocations()
    program.run(batch, [x], [y])
    counts.append(allocations() - before)
print(*counts)
"""


def test_runs_after_the_first_allocate_nothing(tmp_path: Path, tiny_engine_file: Path) -> None:
    source, library = tmp_path / "counter.cpp", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([shutil.which("g++") or "g++", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(library), str(tiny_engine_file)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = map(int, result.stdout.split())
    assert first > 0, "the counter must see the first run's memory"
    assert others == [0, 0, 0, 0]
