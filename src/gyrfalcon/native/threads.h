// The process's thread pool, and scratch memory that outlives an operation.
#pragma once
#include <mutex>
#include <stddef.h>
#include <stdint.h>

namespace gyrfalcon {

// Takes part `index` of `count`; `thread` is below num_threads() and no two at a time have the same.
using Work = void (*)(const void *task, int64_t index, int thread);

int num_threads();

// Runs all parts, some on other threads, and returns when all are done. Scheduling is dynamic: results must not
// depend on it.
void in_parallel(int64_t count, Work work, const void *task);

template <class Task> void in_parallel(int64_t count, const Task &task) {
    in_parallel(
        count, [](const void *one, int64_t index, int thread) { (*static_cast<const Task *>(one))(index, thread); },
        &task);
}

// Scratch memory, 64-byte aligned and reused from call to call: one for each thread, which the caller reserves
// before it starts a round, and one that all threads share. Throw std::bad_alloc.
enum Purpose { WEIGHTS, SUMS, KEYS, VALUES, PURPOSES };
void reserve(Purpose purpose, size_t bytes_each);
void *scratch(int thread, Purpose purpose);
enum SharedPurpose { INPUTS, SCALES, OFFSETS, TILES, TILE_SCALES, SPLITS, SHARED_PURPOSES };
void *shared_scratch(SharedPurpose purpose, int index, size_t bytes);

// A hint to the CPU that this thread spins.
inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Locked by the one caller that may use the pool and its memory at a time.
std::mutex &caller();

} // namespace gyrfalcon
