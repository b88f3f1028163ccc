// Work that is bound by arithmetic or by memory alone, to measure the CPU's peaks.
#include "kernels.h"
#include "operations.h"

#include <atomic>

extern "C" int64_t gf_multiply_add(int64_t rounds) {
    using namespace gyrfalcon;
    std::atomic<int64_t> operations{0};
    one_at_a_time([&] {
        in_parallel(num_threads(), [&](int64_t, int) { operations += chosen_kernels()->multiply_add(rounds); });
    });
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
