// Which instruction set is used: the best that the build has and the processor runs, or one chosen by name.
#include "kernels.h"

#include <atomic>
#include <string.h>
#include <string>

namespace gyrfalcon {
namespace {

struct Set {
    const Kernels *kernels;
    bool runs;
};

bool runs_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}
bool runs_avx512() {
#if defined(GYRFALCON_EVERY_WIDTH)
    return runs_avx2();
#elif defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

#if !defined(GYRFALCON_AVX2)
} // namespace
const Kernels *avx2_kernels() { return nullptr; }
namespace {
#endif
#if !defined(GYRFALCON_AVX512)
} // namespace
const Kernels *avx512_kernels() { return nullptr; }
namespace {
#endif

// Best first.
const Set *sets() {
    static const Set all[] = {
        {avx512_kernels(), runs_avx512()}, {avx2_kernels(), runs_avx2()}, {portable_kernels(), true}, {nullptr, false}};
    return all;
}

const Kernels *best() {
    const Set *set = sets();
    while (!set->runs || !set->kernels)
        set++;
    return set->kernels;
}

std::atomic<const Kernels *> chosen{nullptr};

} // namespace

const Kernels *chosen_kernels() {
    const Kernels *kernels = chosen.load(std::memory_order_acquire);
    return kernels ? kernels : best();
}

} // namespace gyrfalcon

extern "C" const char *gf_sources(void) { return GYRFALCON_SOURCES; }

extern "C" const char *gf_instructions(void) { return gyrfalcon::chosen_kernels()->name; }

extern "C" int gf_choose(const char *name) {
    using namespace gyrfalcon;
    for (int i = 0; i < 3; i++)
        if (sets()[i].runs && sets()[i].kernels && !strcmp(sets()[i].kernels->name, name)) {
            chosen.store(sets()[i].kernels, std::memory_order_release);
            return 0;
        }
    return -1;
}

extern "C" const char *gf_available(void) {
    using namespace gyrfalcon;
    static const std::string names = [] {
        std::string all;
        for (int i = 0; i < 3; i++)
            if (sets()[i].runs && sets()[i].kernels)
                all += (all.empty() ? "" : " ") + std::string(sets()[i].kernels->name);
        return all;
    }();
    return names.c_str();
}
