// The threads of one process, and memory that each keeps between operations.
#pragma once
#include <mutex>
#include <stddef.h>
#include <stdint.h>

namespace gyrfalcon {

// Takes part `index` of `count`; `thread` is below num_threads() and no two at a time have the same.
using Work = void (*)(const void *task, int64_t index, int thread);

int num_threads();

// Does all parts, some on other threads, and returns when all are done. Which thread does which part
// depends on chance: a result must not.
void in_parallel(int64_t count, Work work, const void *task);

template <class Task> void in_parallel(int64_t count, const Task &task) {
    in_parallel(
        count, [](const void *one, int64_t index, int thread) { (*static_cast<const Task *>(one))(index, thread); },
        &task);
}

// Memory aligned to 64 bytes that is kept from call to call, for one use at a time: a thread's own, which
// the caller reserves before it starts a round, and some that all threads share. Throw std::bad_alloc.
enum Purpose { WEIGHTS, SUMS, KEYS, VALUES, PURPOSES };
void reserve(Purpose purpose, size_t bytes_each);
void *scratch(int thread, Purpose purpose);
enum SharedPurpose { INPUTS, SCALES, OFFSETS, TURNED_INPUTS, TURNED_SCALES, SPLITS, SHARED_PURPOSES };
void *shared_scratch(SharedPurpose purpose, int index, size_t bytes);

// Tells the processor that a thread looks again and again for what another one does.
inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Held by the one caller that may use any of this at a time.
std::mutex &caller();

} // namespace gyrfalcon
