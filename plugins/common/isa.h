// Which instruction sets this build has kernels for and this machine can run.
#pragma once

#include <string>
#include <vector>

namespace vimtrt {

enum class Isa { kGeneric, kNeon, kAvx2, kAvxVnni, kAvx512, kAmx };

// Best first; never empty. amx means avx512 and AMX int8 tiles, which the operating system is asked for; avx512 means
// f, bw, vl, dq and vnni; avxvnni means avx2 and AVX-VNNI; avx2 means avx2 and fma; neon means 64-bit ARM with the dot
// products of ARMv8.2.
std::vector<Isa> available_isas();

// The avx512 kernels look tables up with byte permutes where the machine has them; they do not need them.
bool has_avx512_vbmi();

// "amx", "avx512", "avxvnni", "avx2", "neon", "generic".
const char* isa_name(Isa isa);

// Throws std::invalid_argument for a name that is unknown or that this machine cannot run.
Isa isa_from_name(const std::string& name);

}  // namespace vimtrt
