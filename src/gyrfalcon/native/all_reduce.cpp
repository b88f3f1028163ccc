// All-reduce and all-gather of the ranks of one machine, in memory that all have mapped: a line of counters for each
// rank, then two slots for each.
//
// In a round every rank writes its slot, marks its arrival, waits for the others', and reads their slots. Rounds
// alternate between the two slots: a rank that arrives has finished reading the round before, so once all have arrived, that
// round's slots are free.
#include "kernels.h"
#include "threads.h"

#if defined(__linux__)
#include <algorithm>
#include <atomic>
#include <errno.h>
#include <linux/futex.h>
#include <new>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace gyrfalcon {
namespace {

// Before a rank sleeps, some tens of microseconds. It does not yield its core in between: on a busy machine others would
// keep it for milliseconds, while a sleeper is scheduled at once when it is woken.
constexpr int SPINS = 2000;
constexpr long LOOK_NANOSECONDS = 50'000'000; // how often a sleeper checks that the rank it waits for is alive
constexpr int64_t SLOT_BYTES = 1 << 20;
constexpr int64_t SHARED_WORK_BYTES = 32 << 10; // from here on three or more ranks reduce-scatter, then gather
constexpr int64_t BLOCK = 1024;                 // numbers that are summed at once

// One rank's state, on two cache lines: CPUs prefetch them in pairs.
struct alignas(128) Line {
    std::atomic<uint32_t> arrived; // how many times, modulo 2³²
    std::atomic<uint32_t> sleepers;
    std::atomic<uint32_t> left;
    std::atomic<pid_t> process;
};

int open_process(pid_t process) { return static_cast<int>(syscall(SYS_pidfd_open, process, 0)); }

void sleep_while(std::atomic<uint32_t> &word, uint32_t value) {
    const timespec longest{0, LOOK_NANOSECONDS};
    syscall(SYS_futex, &word, FUTEX_WAIT, value, &longest, nullptr, 0);
}

void wake(std::atomic<uint32_t> &word) { syscall(SYS_futex, &word, FUTEX_WAKE, 1 << 20, nullptr, nullptr, 0); }

bool a_core_for_each(int ranks) {
    cpu_set_t cores;
    return !sched_getaffinity(0, sizeof cores, &cores) && CPU_COUNT(&cores) >= ranks;
}

// One rank's end. What returns bool returns false when another rank has left or died before it arrived.
class Shared {
  public:
    static int64_t bytes(int ranks) { return ranks * (static_cast<int64_t>(sizeof(Line)) + 2 * SLOT_BYTES); }

    Shared(void *memory, int rank, int ranks)
        : lines_(static_cast<Line *>(memory)), slots_(reinterpret_cast<char *>(lines_ + ranks)), rank_(rank),
          ranks_(ranks), spins_(a_core_for_each(ranks) ? SPINS : 0), processes_(static_cast<size_t>(ranks), -1) {
        lines_[rank_].process = getpid();
    }

    ~Shared() {
        Line &own = lines_[rank_];
        if (own.process == getpid()) { // else this is a copy of the rank, forked
            own.left = 1;
            wake(own.arrived);
        }
        for (int file : processes_)
            if (file >= 0)
                close(file);
        munmap(lines_, static_cast<size_t>(bytes(ranks_)));
    }

    bool sum(char *x, int64_t count, int kind) {
        const int64_t width = bytes_of(kind), most = SLOT_BYTES / width;
        for (int64_t first = 0; first < count; first += most)
            if (!sum_chunk(x + first * width, std::min(most, count - first), kind))
                return false;
        return true;
    }

    bool gather(const char *mine, int64_t bytes, char *all) {
        for (int64_t first = 0; first < bytes; first += SLOT_BYTES) {
            const int64_t chunk = std::min(SLOT_BYTES, bytes - first);
            if (!exchange(mine + first, chunk))
                return false;
            for (int rank = 0; rank < ranks_; rank++)
                memcpy(all + rank * bytes + first, slot(rank), static_cast<size_t>(chunk));
        }
        return true;
    }

  private:
    bool sum_chunk(char *x, int64_t count, int kind) {
        const int64_t width = bytes_of(kind);
        if (!exchange(x, count * width))
            return false;
        if (ranks_ == 2 || count * width < SHARED_WORK_BYTES) {
            add_slots(0, count, kind, x);
            return true;
        }
        const int64_t own = start_of(rank_, count);
        add_slots(own, start_of(rank_ + 1, count), kind, slot(rank_) + own * width);
        if (!meet())
            return false;
        for (int rank = 0; rank < ranks_; rank++) {
            const int64_t first = start_of(rank, count) * width, last = start_of(rank + 1, count) * width;
            memcpy(x + first, slot(rank) + first, static_cast<size_t>(last - first));
        }
        return true;
    }

    int64_t start_of(int rank, int64_t count) const { return count * rank / ranks_; }

    // The sums of numbers first … last - 1 of all slots: in float32, in the order of the ranks, rounded once.
    void add_slots(int64_t first, int64_t last, int kind, char *to) const {
        const Kernels &kernels = *chosen_kernels();
        const int64_t width = bytes_of(kind);
        float sums[BLOCK], summands[BLOCK];
        for (int64_t block = first; block < last; block += BLOCK) {
            const int64_t count = std::min(BLOCK, last - block);
            kernels.widen(slot(0) + block * width, kind, count, sums);
            for (int rank = 1; rank < ranks_; rank++) {
                kernels.widen(slot(rank) + block * width, kind, count, summands);
                for (int64_t i = 0; i < count; i++)
                    sums[i] += summands[i];
            }
            kernels.narrow(sums, count, kind, to + (block - first) * width);
        }
    }

    // Starts a round: afterwards the slots hold every rank's data.
    bool exchange(const char *mine, int64_t bytes) {
        round_++;
        memcpy(slot(rank_), mine, static_cast<size_t>(bytes));
        return meet();
    }

    char *slot(int rank) const { return slots_ + (2 * rank + round_ % 2) * SLOT_BYTES; }

    bool meet() {
        Line &own = lines_[rank_];
        own.arrived.store(++meetings_);
        if (own.sleepers.load())
            wake(own.arrived);
        for (int rank = 0; rank < ranks_; rank++)
            if (rank != rank_ && !wait_for(rank))
                return false;
        return true;
    }

    bool wait_for(int rank) {
        Line &line = lines_[rank];
        for (int i = 0; i < spins_ && !has_arrived(line.arrived.load(std::memory_order_acquire)); i++)
            pause();
        if (has_arrived(line.arrived.load()))
            return true;
        line.sleepers++;
        bool lives = true;
        uint32_t seen;
        while (!has_arrived(seen = line.arrived.load()) && lives) {
            sleep_while(line.arrived, seen);
            lives = line.arrived.load() != seen || is_alive(rank);
        }
        line.sleepers--;
        return has_arrived(line.arrived.load()); // it may have arrived before it died
    }

    bool has_arrived(uint32_t times) const { return static_cast<int32_t>(times - meetings_) >= 0; }

    bool is_alive(int rank) {
        const Line &line = lines_[rank];
        int &file = processes_[static_cast<size_t>(rank)];
        if (file < 0)
            file = open_process(line.process);
        if (line.left || (file < 0 && errno == ESRCH))
            return false;
        pollfd end{file, POLLIN, 0}; // readable when the process has ended
        return file < 0 || poll(&end, 1, 0) == 0;
    }

    Line *const lines_;
    char *const slots_;
    const int rank_;
    const int ranks_;
    const int spins_;
    std::vector<int> processes_; // files that stand for the others' processes, opened when they are late
    uint32_t meetings_ = 0;
    uint32_t round_ = 0;
};

void *join(int file, int rank, int ranks) {
    const int self = open_process(getpid());
    if (self < 0)
        return nullptr; // the kernel is older than what is_alive() needs, Linux 5.3
    close(self);
    const auto bytes = static_cast<size_t>(Shared::bytes(ranks));
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory == MAP_FAILED ? nullptr : new Shared(memory, rank, ranks);
}

} // namespace
} // namespace gyrfalcon

using gyrfalcon::Shared;

extern "C" int64_t gf_shared_bytes(int ranks) { return Shared::bytes(ranks); }
extern "C" void *gf_join(int file, int rank, int ranks) { return gyrfalcon::join(file, rank, ranks); }
extern "C" void gf_leave(void *shared) { delete static_cast<Shared *>(shared); }
extern "C" int gf_sum(void *shared, void *x, int64_t count, int kind) {
    return static_cast<Shared *>(shared)->sum(static_cast<char *>(x), count, kind) ? 0 : -1;
}
extern "C" int gf_gather(void *shared, const void *mine, int64_t bytes, void *all) {
    return static_cast<Shared *>(shared)->gather(static_cast<const char *>(mine), bytes, static_cast<char *>(all)) ? 0
                                                                                                                   : -1;
}

#else // where none can be joined, nothing else is called
extern "C" int64_t gf_shared_bytes(int) { return 0; }
extern "C" void *gf_join(int, int, int) { return nullptr; }
extern "C" void gf_leave(void *) {}
extern "C" int gf_sum(void *, void *, int64_t, int) { return -1; }
extern "C" int gf_gather(void *, const void *, int64_t, void *) { return -1; }
#endif
