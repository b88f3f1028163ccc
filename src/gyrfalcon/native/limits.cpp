// Work that is bound by arithmetic or by memory alone, to measure the CPU's peaks.
#include "inputs.h"
#include "operations.h"

#include <atomic>
#include <string>
#include <string.h>

extern "C" const char *gf_multiply_instructions(void) {
    static thread_local std::string names;
    names.clear();
    for (const gyrfalcon::Instruction &each : gyrfalcon::chosen_kernels()->instructions)
        if (each.name)
            names += (names.empty() ? "" : " ") + std::string(each.name);
    return names.c_str();
}

extern "C" const char *gf_instruction_for(int weight_kind, int64_t tokens, int kind) {
    const gyrfalcon::Kernels &kernels = *gyrfalcon::chosen_kernels();
    return kernels.instructions[gyrfalcon::arithmetic_of(kernels, weight_kind, tokens, kind)].name;
}

extern "C" int64_t gf_multiply_add(const char *instruction, int64_t rounds) {
    using namespace gyrfalcon;
    std::atomic<int64_t> operations{0};
    for (const Instruction &each : chosen_kernels()->instructions)
        if (each.name && !strcmp(each.name, instruction))
            one_at_a_time([&] { in_parallel(num_threads(), [&](int64_t, int) { operations += each.run(rounds); }); });
    return operations;
}

extern "C" void gf_read(const void *from, int64_t bytes) {
    using namespace gyrfalcon;
    constexpr int64_t PART = 4 << 20; // a thread's, of which each stream reads an eighth
    one_at_a_time([&] {
        in_parallel(bytes / PART, [&](int64_t part, int) {
            chosen_kernels()->read_streams(static_cast<const char *>(from) + part * PART, PART);
        });
    });
}
