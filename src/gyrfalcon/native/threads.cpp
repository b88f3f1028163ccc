#include "threads.h"
#include "gyrfalcon.h"

#include <atomic>
#include <new>
#include <stdlib.h>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gyrfalcon {
namespace {

constexpr size_t HUGE_PAGE = 2 << 20; // bytes
constexpr int SPINS = 4000;       // before a thread sleeps, some tens of microseconds
constexpr uint32_t OPEN = 1 << 8; // the round takes more threads; below it is how many are in it
constexpr uint32_t ROUND = 1 << 9;

struct Buffer {
    void *memory = nullptr;
    size_t size = 0;

    void *grow(size_t bytes) {
        if (bytes > size) {
            free(memory);
            const size_t page = bytes < HUGE_PAGE / 2 ? 4096 : HUGE_PAGE;
            size = (bytes + bytes / 4 + page - 1) / page * page;
            memory = aligned_alloc(page, size);
            if (!memory) {
                size = 0;
                throw std::bad_alloc();
            }
#if defined(__linux__)
            if (page == HUGE_PAGE)
                madvise(memory, size, MADV_HUGEPAGE); // refused: small pages do
#endif
        }
        return memory;
    }
};

// A round is one call of in_parallel. Threads join an open round, take parts until none is left, and
// leave; the caller closes the round when all parts are taken and waits for those still in it. A thread that
// the system has preempted is not waited for: it finds the round closed.
class Pool {
  public:
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void resize(int threads) {
        std::lock_guard<std::mutex> alone(caller_);
        stop();
        buffers_.resize(static_cast<size_t>(threads));
        stopping_ = false;
        for (int i = 1; i < threads; i++) {
            workers_.emplace_back([this, i] { serve(i); });
            if (static_cast<size_t>(threads) == processors_.size())
                keep_on(workers_.back(), processors_[static_cast<size_t>(i)]);
        }
    }

    void use_processors(const int *processors, int count) {
        std::lock_guard<std::mutex> alone(caller_);
        processors_.assign(processors, processors + count);
    }

    void run(int64_t count, Work work, const void *task) {
        if (count <= 1 || workers_.empty()) {
            for (int64_t i = 0; i < count; i++)
                work(task, i, 0);
            return;
        }
        work_ = work;
        task_ = task;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        uint32_t round = (state_.load(std::memory_order_relaxed) & ~(ROUND - 1)) + ROUND;
        state_.store(round | OPEN, std::memory_order_seq_cst);
        if (sleeping_.load(std::memory_order_seq_cst))
            wake();
        take_parts(0);
        state_.fetch_and(~OPEN, std::memory_order_acq_rel);
        while (state_.load(std::memory_order_acquire) & (OPEN - 1))
            pause();
    }

    void reserve(Purpose purpose, size_t bytes) {
        for (auto &own : buffers_)
            own.of[purpose].grow(bytes);
    }
    void *own(int thread, Purpose purpose) { return buffers_[static_cast<size_t>(thread)].of[purpose].memory; }
    Buffer &shared(SharedPurpose purpose, size_t index) {
        auto &all = shared_[purpose];
        if (index >= all.size())
            all.resize(index + 1);
        return all[index];
    }

    // A forked child has none of the threads.
    void forget_threads() {
        for (auto &worker : workers_)
            worker.detach();
        workers_.clear();
        state_.store(0);
        sleeping_.store(0);
    }

    std::mutex caller_; // one caller at a time

  private:
    void take_parts(int thread) {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
            work_(task_, i, thread);
    }

    void serve(int thread) {
        uint32_t done = 0; // the last round that this thread was in
        while (!stopping_.load(std::memory_order_relaxed)) {
            uint32_t state = wait_for_round(done);
            if (!(state & OPEN) || !state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel))
                continue;
            done = state & ~(ROUND - 1);
            take_parts(thread);
            state_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    // Returns the state when it may show an open round other than `done`.
    uint32_t wait_for_round(uint32_t done) {
        uint32_t state = 0;
        for (int i = 0; i < SPINS; i++) {
            state = state_.load(std::memory_order_acquire);
            if ((state & OPEN) && (state & ~(ROUND - 1)) != done)
                return state;
            pause();
        }
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        state = state_.load(std::memory_order_seq_cst);
        bool found = (state & OPEN) && (state & ~(ROUND - 1)) != done;
        if (!found && !stopping_.load())
            sleep(state);
        sleeping_.fetch_sub(1, std::memory_order_seq_cst);
        return found ? state : 0;
    }

    void stop() {
        stopping_ = true;
        state_.fetch_add(ROUND);
        while (sleeping_.load()) {
            wake();
            std::this_thread::yield();
        }
        for (auto &worker : workers_)
            worker.join();
        workers_.clear();
    }

#if defined(__linux__)
    static void keep_on(std::thread &worker, int processor) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(processor, &only);
        pthread_setaffinity_np(worker.native_handle(), sizeof only, &only); // refused: it runs where it may
    }
    void sleep(uint32_t expected) { syscall(SYS_futex, &state_, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &state_, FUTEX_WAKE_PRIVATE, 1 << 20, nullptr, nullptr, 0); }
#else
    static void keep_on(std::thread &, int) {}
    void sleep(uint32_t) { std::this_thread::yield(); }
    void wake() {}
#endif

    struct alignas(64) Own {
        Buffer of[PURPOSES];
    };

    alignas(64) std::atomic<uint32_t> state_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    std::atomic<bool> stopping_{false};
    Work work_ = nullptr;
    const void *task_ = nullptr;
    int64_t count_ = 0;
    std::vector<std::thread> workers_;
    std::vector<int> processors_;
    std::vector<Own> buffers_{1};
    std::vector<Buffer> shared_[SHARED_PURPOSES];
};

Pool &pool() {
    static Pool *one = [] {
        auto *made = new Pool; // never destroyed: its threads may still run when the process ends
#if defined(__linux__)
        pthread_atfork(nullptr, nullptr, [] { pool().forget_threads(); });
#endif
        return made;
    }();
    return *one;
}

} // namespace

int num_threads() { return pool().size(); }
void in_parallel(int64_t count, Work work, const void *task) { pool().run(count, work, task); }
void reserve(Purpose purpose, size_t bytes_each) { pool().reserve(purpose, bytes_each); }
void *scratch(int thread, Purpose purpose) { return pool().own(thread, purpose); }
void *shared_scratch(SharedPurpose purpose, int index, size_t bytes) {
    return pool().shared(purpose, static_cast<size_t>(index)).grow(bytes);
}

std::mutex &caller() { return pool().caller_; }

} // namespace gyrfalcon

extern "C" void gf_use_processors(const int *processors, int count) {
    gyrfalcon::pool().use_processors(processors, count);
}

extern "C" void gf_use_threads(int threads) { gyrfalcon::pool().resize(threads < 1 ? 1 : threads); }
