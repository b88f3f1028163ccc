// Sampling: draws a token from each row of logits. No more of a row is sorted than may be drawn.
#include "kernels.h"
#include "operations.h"

#include <algorithm>
#include <functional>
#include <float.h>
#include <math.h>
#include <string.h>

namespace gyrfalcon {
namespace {

constexpr int64_t NON_FINITE = 1, NONE_ALLOWED = -1;
constexpr int64_t FEWEST_GROUPS = 4; // for each of the most likely that are looked for
constexpr int64_t MOST_BUCKETS = 4096, IN_A_BUCKET = 8; // keys
constexpr double LESS = 1 - 1e-9;    // a bound that rounding must not raise

// A logit in the upper half, smaller for a larger one, and its token in the lower.
uint64_t key_of(float logit, int64_t token) {
    logit += 0.0f; // -0 is equal to 0
    uint32_t bits;
    memcpy(&bits, &logit, 4);
    const uint32_t negative = 0 - (bits >> 31); // all bits or none
    return static_cast<uint64_t>(bits ^ (~negative & INT32_MAX)) << 32 | static_cast<uint64_t>(token);
}
float logit_of(uint64_t key) {
    const uint32_t upper = static_cast<uint32_t>(key >> 32), negative = 0 - (upper >> 31);
    const uint32_t bits = upper ^ (~negative & INT32_MAX);
    float logit;
    memcpy(&logit, &bits, 4);
    return logit;
}
int64_t token_of(uint64_t key) { return static_cast<int64_t>(key & UINT32_MAX); }

// Keys from the smallest on, sorted bucket by bucket and no further than needed.
class Ascending {
  public:
    // `other` has memory for as many.
    Ascending(uint64_t *keys, int64_t count, uint64_t *other) : keys_(keys), count_(count) {
        while (buckets_ < MOST_BUCKETS && buckets_ * IN_A_BUCKET < count)
            buckets_ *= 2;
        if (buckets_ > 1)
            fill(other);
        else
            starts_[0] = 0, starts_[1] = static_cast<uint32_t>(count);
    }

    // Sorts on, to have so many in place; they are at().
    void sort_to(int64_t wanted) {
        for (; sorted_ < std::min(wanted, count_); done_++) {
            const int64_t end = starts_[done_ + 1];
            std::sort(keys_ + sorted_, keys_ + end);
            sorted_ = end;
        }
    }
    const uint64_t *at() const { return keys_; }

  private:
    // Distributes the keys over buckets by their logits' distance from the largest.
    void fill(uint64_t *other) {
        const auto [least, most] = std::minmax_element(keys_, keys_ + count_);
        const double top = logit_of(*least), range = top - logit_of(*most);
        const double scale = range > 0 ? static_cast<double>(buckets_ - 1) / range : 0;
        const auto bucket = [&](uint64_t key) { return static_cast<size_t>((top - logit_of(key)) * scale); };
        std::fill(starts_, starts_ + buckets_ + 1, 0);
        for (int64_t i = 0; i < count_; i++)
            starts_[bucket(keys_[i]) + 1]++;
        uint32_t ends[MOST_BUCKETS];
        for (int64_t i = 0; i < buckets_; i++) {
            ends[i] = starts_[i];
            starts_[i + 1] += starts_[i];
        }
        for (int64_t i = 0; i < count_; i++)
            other[ends[bucket(keys_[i])]++] = keys_[i];
        keys_ = other;
    }

    uint64_t *keys_;
    int64_t count_;
    int64_t buckets_ = 1, done_ = 0, sorted_ = 0;
    uint32_t starts_[MOST_BUCKETS + 1];
};

struct Scratch {
    float *maxima;    // [groups]
    float *ordered;   // as many
    double *sums;     // [blocks]
    uint64_t *keys;   // [columns]
    uint64_t *others; // as many
    double *weights;  // as many
};

class Row {
  public:
    Row(const Kernels &kernels, const float *logits, int64_t columns, const gf_draw &draw, const Scratch &scratch)
        : kernels_(kernels), logits_(logits), columns_(columns), draw_(draw), scratch_(scratch) {}

    // 0, or why none is drawn.
    int64_t draw(bool forbids, int64_t &token) {
        bool finite;
        token = 0;
        top_ = kernels_.group_maxima(logits_, columns_, forbids, scratch_.maxima, finite);
        if (!finite)
            return NON_FINITE;
        if (top_ == -INFINITY)
            return NONE_ALLOWED;
        if (draw_.temperature == 0)
            token = most_likely();
        else if (draw_.top_k > 0)
            token = of_the_most_likely(std::min(draw_.top_k, columns_));
        else if (draw_.top_p < 1 || draw_.min_p > 0)
            token = of_the_nucleus(add_weights());
        else
            token = of_all(add_weights());
        return 0;
    }

  private:
    int64_t most_likely() const {
        for (int64_t group = 0;; group += GROUP_LANES) {
            const float *maxima = scratch_.maxima + group;
            if (std::find(maxima, maxima + GROUP_LANES, top_) == maxima + GROUP_LANES)
                continue;
            const int64_t first = group / GROUP_LANES * GROUP_SPAN;
            return std::find(logits_ + first, logits_ + columns_, top_) - logits_;
        }
    }

    int64_t blocks() const { return (columns_ + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK; }

    // A block's logits; -inf for those that the last one lacks.
    const float *block_at(int64_t block, float (&copy)[WEIGHT_BLOCK]) const {
        const int64_t left = columns_ - block * WEIGHT_BLOCK;
        const float *from = logits_ + block * WEIGHT_BLOCK;
        if (left >= WEIGHT_BLOCK)
            return from;
        for (int64_t i = 0; i < WEIGHT_BLOCK; i++)
            copy[i] = i < left ? from[i] : -INFINITY;
        return copy;
    }

    // Sums up the weights of all tokens, of which the most likely one's is 1.
    double add_weights() const {
        const int64_t whole = columns_ / WEIGHT_BLOCK;
        kernels_.sum_weights(logits_, whole, top_, draw_.temperature, scratch_.sums);
        float copy[WEIGHT_BLOCK];
        if (whole < blocks())
            kernels_.sum_weights(block_at(whole, copy), 1, top_, draw_.temperature, scratch_.sums + whole);
        double mass = 0;
        for (int64_t block = 0; block < blocks(); block++)
            mass += scratch_.sums[block];
        return mass;
    }

    // In the order of their ids.
    int64_t of_all(double mass) const {
        const double target = draw_.chance * mass;
        double before = 0, sum = 0;
        int64_t block = 0, found = 0; // the last that adds something, if rounding keeps the sum below the target
        for (int64_t i = 0; i < blocks() && sum <= target; i++) {
            const double with = sum + scratch_.sums[i];
            if (with > sum)
                block = i, before = sum;
            sum = with;
        }
        float copy[WEIGHT_BLOCK];
        double weights[WEIGHT_BLOCK];
        kernels_.weigh(block_at(block, copy), top_, draw_.temperature, weights);
        for (int64_t i = 0; i < WEIGHT_BLOCK && before <= target; i++) {
            const double with = before + weights[i];
            if (with > before)
                found = i;
            before = with;
        }
        return block * WEIGHT_BLOCK + found;
    }

    int64_t of_the_nucleus(double mass) const {
        // All that are less likely than this one make up less than what top_p leaves out.
        const double left_out = (1 - draw_.top_p) * mass / static_cast<double>(columns_);
        const double bound = top_ + draw_.temperature * log(std::max(left_out, draw_.min_p) * LESS);
        const int64_t count = collect(static_cast<float>(std::max(bound - fabs(bound) * 1e-6, -double(FLT_MAX))));
        return drawn(count, count, mass);
    }

    int64_t of_the_most_likely(int64_t most) const {
        const int64_t groups = groups_of(columns_);
        float bound = -FLT_MAX;
        if (most <= groups) { // so many are no smaller than the `most`th of the groups' maxima
            std::copy(scratch_.maxima, scratch_.maxima + groups, scratch_.ordered);
            std::nth_element(scratch_.ordered, scratch_.ordered + most - 1, scratch_.ordered + groups,
                             std::greater<float>());
            bound = std::max(bound, scratch_.ordered[most - 1]);
        }
        int64_t count;
        if (most * FEWEST_GROUPS > groups) {
            count = collect(bound);
        } else {
            count = collect_from_groups(bound, groups);
            if (count > most)
                std::nth_element(scratch_.keys, scratch_.keys + most, scratch_.keys + count);
            count = std::min(count, most);
        }
        return drawn(count, most, -1);
    }

    // Keys of all logits from `bound` on: how many.
    int64_t collect(float bound) const {
        int64_t count = 0;
        for (int64_t first = 0; first < columns_; first += GROUP_SPAN) {
            const float *maxima = scratch_.maxima + first / GROUP_SPAN * GROUP_LANES;
            bool any = false;
            for (int64_t group = 0; group < GROUP_LANES; group++)
                any |= maxima[group] >= bound;
            const int64_t end = any ? std::min(first + GROUP_SPAN, columns_) : first;
            for (int64_t token = first; token < end; token++) {
                scratch_.keys[count] = key_of(logits_[token], token);
                count += logits_[token] >= bound;
            }
        }
        return count;
    }
    int64_t collect_from_groups(float bound, int64_t groups) const { // in any order
        int64_t count = 0;
        for (int64_t group = 0; group < groups; group++) {
            if (scratch_.maxima[group] < bound)
                continue;
            const int64_t first = group / GROUP_LANES * GROUP_SPAN;
            const int64_t end = std::min(first + GROUP_SPAN, columns_);
            for (int64_t token = first + group % GROUP_LANES; token < end; token += GROUP_LANES)
                if (logits_[token] >= bound)
                    scratch_.keys[count++] = key_of(logits_[token], token);
        }
        return count;
    }

    // Draws from the `most` smallest keys what top_p and min_p leave of them; `mass`: of more than these, or -1.
    int64_t drawn(int64_t count, int64_t most, double mass) const {
        Ascending keys(scratch_.keys, count, scratch_.others);
        most = std::min(most, count);
        double *weights = scratch_.weights, sum = 0;
        const double wanted = mass < 0 ? INFINITY : draw_.top_p * mass;
        int64_t weighed = 0;
        while (weighed < most && sum < wanted) {
            const int64_t part = std::min(most - weighed, WEIGHT_BLOCK);
            keys.sort_to(weighed + part);
            sum = weigh(keys.at(), part, weighed, sum);
            weighed += part;
        }
        const double enough = draw_.top_p * (mass < 0 ? sum : mass);
        int64_t kept = 0;
        double total = 0;
        for (; kept < weighed && weights[kept] >= draw_.min_p; kept++) {
            const double with = total + weights[kept];
            if (with - weights[kept] >= enough)
                break;
            weights[kept] = total = with; // from now on the sums
        }
        const double *found = std::upper_bound(weights, weights + kept, draw_.chance * total);
        return token_of(keys.at()[std::max<int64_t>(std::min(found - weights, kept - 1), 0)]);
    }
    // The weights of `count` keys from `first` on, and the sum with them.
    double weigh(const uint64_t *keys, int64_t count, int64_t first, double sum) const {
        float logits[WEIGHT_BLOCK];
        double weights[WEIGHT_BLOCK];
        for (int64_t i = 0; i < WEIGHT_BLOCK; i++)
            logits[i] = i < count ? logit_of(keys[first + i]) : -INFINITY;
        kernels_.weigh(logits, top_, draw_.temperature, weights);
        for (int64_t i = 0; i < count; i++)
            sum += scratch_.weights[first + i] = weights[i];
        return sum;
    }

    const Kernels &kernels_;
    const float *logits_;
    int64_t columns_;
    const gf_draw &draw_;
    const Scratch &scratch_;
    float top_ = 0;
};

// Rounded up to whole cache lines.
size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

} // namespace

void draw_tokens(const float *logits, int64_t rows, int64_t columns, const gf_draw *draws, bool forbids,
                 int64_t *tokens, int64_t *states) {
    const Kernels &kernels = *chosen_kernels();
    const size_t groups = static_cast<size_t>(groups_of(columns)), count = static_cast<size_t>(columns);
    const size_t sums = lines((count + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK * sizeof(double));
    reserve(SUMS, 2 * lines(groups * sizeof(float)) + sums);
    reserve(KEYS, 3 * count * sizeof(uint64_t));
    in_parallel(rows, [&](int64_t row, int thread) {
        char *memory = static_cast<char *>(scratch(thread, SUMS));
        uint64_t *keys = static_cast<uint64_t *>(scratch(thread, KEYS));
        const Scratch own{reinterpret_cast<float *>(memory),
                          reinterpret_cast<float *>(memory + lines(groups * sizeof(float))),
                          reinterpret_cast<double *>(memory + 2 * lines(groups * sizeof(float))), keys, keys + count,
                          reinterpret_cast<double *>(keys + 2 * count)};
        states[row] = Row(kernels, logits + row * columns, columns, draws[row], own).draw(forbids, tokens[row]);
    });
}

} // namespace gyrfalcon

extern "C" int gf_draw_tokens(const float *logits, int64_t rows, int64_t columns, const struct gf_draw *draws,
                              int forbids, int64_t *tokens, int64_t *states) {
    return gyrfalcon::one_at_a_time(
        [&] { gyrfalcon::draw_tokens(logits, rows, columns, draws, forbids, tokens, states); });
}
