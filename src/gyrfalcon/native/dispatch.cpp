// Picks the instruction set: the best that was built and the CPU supports, or one chosen by name.
#include "kernels.h"

#include <atomic>
#include <string.h>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(GYRFALCON_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gyrfalcon {
namespace {

struct Set {
    const Kernels *(*kernels)(); // null where they were not built
    bool (*runs)();
};

bool runs_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}
bool runs_avx512_core() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}
bool runs_avx512() {
#if defined(GYRFALCON_EMULATED_AMX)
    return runs_avx2();
#elif defined(__x86_64__)
    return runs_avx512_core() && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

// AVX2's registers are saved by the system, and AVX-VNNI has no others.
bool runs_avx_vnni() {
#if defined(GYRFALCON_AVX_VNNI_BY_AVX512)
    return runs_avx512();
#elif defined(__x86_64__)
    constexpr unsigned AVX_VNNI = 1u << 4; // CPUID 7.1, EAX
    unsigned a, b, c, d;
    return runs_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX_VNNI);
#else
    return false;
#endif
}

bool runs_avx512_bf16() {
#if defined(GYRFALCON_AVX512_BF16) && defined(__x86_64__)
    return runs_avx512() && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}
// Whether vdpbf16ps makes more products than a float32 multiply-add: AMD's does, Intel's takes twice the time.
bool bf16_is_faster() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

// On Linux a process has to request AMX's tile registers, for all its threads.
bool runs_amx() {
#if defined(GYRFALCON_EMULATED_AMX)
    return runs_avx2();
#elif defined(GYRFALCON_AMX) && defined(__linux__)
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, ALL = BF16 | TILE | INT8; // CPUID 7, EDX
    constexpr unsigned TILE_STATE = 3u << 17;                                                       // XCR0
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;                                     // arch_prctl
    unsigned a, b, c, d;
    if (!runs_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL)
        return false;
    asm("xgetbv" : "=a"(a), "=d"(d) : "c"(0)); // part of AVX
    return (a & TILE_STATE) == TILE_STATE && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#else
    return false;
#endif
}

#if !defined(GYRFALCON_AVX2)
} // namespace
const Kernels *avx2_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AVX_VNNI)
} // namespace
const Kernels *avx_vnni_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AVX512_CORE)
} // namespace
const Kernels *avx512_core_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AVX512)
} // namespace
const Kernels *avx512_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AVX512_BF16)
} // namespace
const Kernels *avx512_bf16_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AMX)
} // namespace
const Kernels *amx_kernels() { return nullptr; }
namespace {
#endif

// Best first.
const std::vector<const Kernels *> &available() {
    static const std::vector<const Kernels *> all = [] {
        std::vector<const Kernels *> found;
        const Set plain{avx512_kernels, runs_avx512}, bf16{avx512_bf16_kernels, runs_avx512_bf16};
        const bool faster = bf16_is_faster();
        for (const Set &set : {Set{amx_kernels, runs_amx}, faster ? bf16 : plain, faster ? plain : bf16,
                               Set{avx512_core_kernels, runs_avx512_core}, Set{avx_vnni_kernels, runs_avx_vnni},
                               Set{avx2_kernels, runs_avx2}, Set{portable_kernels, [] { return true; }}})
            if (set.runs()) // first: a set's file may use its instructions anywhere
                if (const Kernels *kernels = set.kernels())
                    found.push_back(kernels);
        return found;
    }();
    return all;
}

std::atomic<const Kernels *> chosen{nullptr};

// Bits of activations with int8 weights; 0: 8 where that is faster, which a matrix unit's two products of bytes are not.
std::atomic<int> wanted_bits{0};

bool has_int8_activations() {
    for (const Kernels *kernels : available())
        if (kernels->pack_int8_bytes)
            return true;
    return false;
}

} // namespace

const Kernels *chosen_kernels() {
    const Kernels *kernels = chosen.load(std::memory_order_acquire);
    return kernels ? kernels : available().front();
}

bool int8_activations(const Kernels &kernels) {
    const int bits = wanted_bits.load(std::memory_order_relaxed);
    return kernels.pack_int8_bytes && (bits ? bits == 8 : !available().front()->unit);
}

} // namespace gyrfalcon

extern "C" const char *gf_sources(void) { return GYRFALCON_SOURCES; }

extern "C" const char *gf_instructions(void) { return gyrfalcon::chosen_kernels()->name; }

extern "C" int gf_choose(const char *name) {
    using namespace gyrfalcon;
    for (const Kernels *kernels : available())
        if (!strcmp(kernels->name, name)) {
            chosen.store(kernels, std::memory_order_release);
            return 0;
        }
    return -1;
}

extern "C" int gf_use_activations(int bits) {
    using namespace gyrfalcon;
    if (bits == 8 && !has_int8_activations())
        return -1;
    wanted_bits.store(bits, std::memory_order_relaxed);
    return 0;
}

extern "C" int gf_activations(void) {
    return gyrfalcon::int8_activations(*gyrfalcon::chosen_kernels()) ? 8 : 16;
}

extern "C" const char *gf_available(void) {
    using namespace gyrfalcon;
    static const std::string names = [] {
        std::string all;
        for (const Kernels *kernels : available())
            all += (all.empty() ? "" : " ") + std::string(kernels->name);
        return all;
    }();
    return names.c_str();
}
