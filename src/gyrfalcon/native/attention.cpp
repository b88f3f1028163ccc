// Attention: its work is divided among the threads, and parts of long contexts are merged.
#include "kernels.h"
#include "operations.h"

#include <algorithm>
#include <math.h>
#include <vector>

namespace gyrfalcon {
namespace {

constexpr int64_t ROWS_A_PART = 64;   // of queries: each a head of a token
constexpr int64_t KEYS_A_SPLIT = 256; // at least, where few sequences have long contexts

// One part of the attention's work: some queries of a sequence, one KV head, some of its keys.
struct Part {
    int64_t sequence;
    int64_t head;
    int64_t token; // of the batch, the first
    int64_t tokens;
    int64_t first; // key
    int64_t last;
    int64_t result; // the first of its rows among all parts'
};

struct Attention {
    const Kernels *kernels;
    const gf_queries *queries;
    const gf_cache *cache;
    int64_t group;
    int64_t stride; // of a row of results
    int kind;
    std::vector<Part> parts;
    float *out; // [rows of all parts, stride]
    float *top; // [rows of all parts]
    float *total;

    int64_t head_bytes() const { return cache->dim * bytes_of(kind); }
};

// Splits are chosen by the shape of the batch alone, not by the number of threads: results depend on neither.
std::vector<Part> parts_of(const gf_queries &queries, const gf_cache &cache, int64_t group, int64_t *rows) {
    std::vector<Part> parts;
    const int64_t tokens_a_part = std::max<int64_t>(1, ROWS_A_PART / group);
    for (int64_t sequence = 0; sequence < queries.sequences; sequence++) {
        const int64_t start = queries.starts[sequence], stop = queries.starts[sequence + 1];
        const int64_t before = queries.contexts[sequence] - (stop - start);
        const bool split = stop - start == 1 && queries.sequences * cache.kv_heads < 8;
        for (int64_t head = 0; head < cache.kv_heads; head++)
            for (int64_t token = start; token < stop; token += tokens_a_part) {
                const int64_t count = std::min(tokens_a_part, stop - token);
                const int64_t last = before + token - start + count;
                const int64_t step = split ? KEYS_A_SPLIT : last;
                for (int64_t first = 0; first < last; first += step) {
                    parts.push_back({sequence, head, token, count, first, std::min(first + step, last), *rows});
                    *rows += count * group;
                }
            }
    }
    return parts;
}

void attend(const Attention &all, const Part &part, int thread) {
    const gf_queries &queries = *all.queries;
    const gf_cache &cache = *all.cache;
    const int64_t rows = part.tokens * all.group;
    const int64_t before = queries.contexts[part.sequence] - queries.starts[part.sequence + 1] + part.token;
    const float scale = 1.0f / sqrtf(static_cast<float>(cache.dim));
    float *floats = static_cast<float *>(scratch(thread, SUMS)), *scores = floats + rows * all.stride;
    float *slopes = scores + all.kernels->nr * KEYS_AT_ONCE;
    const AttentionScratch own{static_cast<float *>(scratch(thread, KEYS)),
                               static_cast<float *>(scratch(thread, VALUES)), scores,
                               static_cast<float *>(scratch(thread, WEIGHTS))};
    auto *limits = reinterpret_cast<int64_t *>(slopes + padded(rows));
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = part.token + row / all.group, head = part.head * all.group + row % all.group;
        float *to = floats + row * all.stride;
        all.kernels->widen(static_cast<const char *>(queries.q) + (token * queries.heads + head) * all.head_bytes(),
                           all.kind, cache.dim, to);
        std::fill(to + cache.dim, to + all.stride, 0.0f);
        limits[row] = std::min(before + row / all.group + 1, part.last);
        if (queries.slopes)
            slopes[row] = queries.slopes[head];
    }
    const int64_t of_head = part.head * all.head_bytes();
    AttentionWork work{floats,
                       static_cast<const char *>(cache.keys) + of_head,
                       static_cast<const char *>(cache.values) + of_head,
                       queries.tables + part.sequence * queries.table_stride,
                       limits,
                       queries.slopes ? slopes : nullptr,
                       rows,
                       part.first,
                       part.last,
                       cache.block_size,
                       cache.kv_heads * all.head_bytes(),
                       cache.dim,
                       all.kind,
                       scale};
    all.kernels->attend(work, own, all.out + part.result * all.stride, all.top + part.result, all.total + part.result);
}

// Parts of the same queries follow each other, their keys in order: merged by their largest score.
void merge(const Attention &all, const Part *first, const Part *end) {
    const gf_queries &queries = *all.queries;
    const int64_t dim = all.cache->dim;
    for (int64_t row = 0; row < first->tokens * all.group; row++) {
        float *out = all.out + (first->result + row) * all.stride;
        float top = all.top[first->result + row], total = all.total[first->result + row];
        for (const Part *part = first + 1; part < end; part++) {
            const float other_top = all.top[part->result + row], larger = std::max(top, other_top);
            const float *other = all.out + (part->result + row) * all.stride;
            const float ours = expf(top - larger), theirs = expf(other_top - larger);
            for (int64_t i = 0; i < dim; i++)
                out[i] = out[i] * ours + other[i] * theirs;
            total = total * ours + all.total[part->result + row] * theirs;
            top = larger;
        }
        const float inverse = 1.0f / total;
        for (int64_t i = 0; i < dim; i++)
            out[i] *= inverse;
        const int64_t token = first->token + row / all.group, head = first->head * all.group + row % all.group;
        all.kernels->narrow(out, dim, all.kind,
                            static_cast<char *>(queries.out) + (token * queries.heads + head) * all.head_bytes());
    }
}

} // namespace

void attention(const gf_queries &queries, const gf_cache &cache, int kind) {
    Attention all{chosen_kernels(), &queries, &cache, queries.heads / cache.kv_heads, padded(cache.dim), kind, {},
                  nullptr,          nullptr,  nullptr};
    int64_t rows = 0;
    all.parts = parts_of(queries, cache, all.group, &rows);
    all.out = static_cast<float *>(shared_scratch(SPLITS, 0, static_cast<size_t>(4 * rows * (all.stride + 2))));
    all.top = all.out + rows * all.stride;
    all.total = all.top + rows;
    const int64_t most = std::max(ROWS_A_PART, all.group);
    reserve(SUMS, static_cast<size_t>(4 * (most * all.stride + all.kernels->nr * KEYS_AT_ONCE + padded(most)) + 8 * most));
    reserve(WEIGHTS, static_cast<size_t>(4 * (most + all.kernels->nr) * cache.dim));
    reserve(KEYS, static_cast<size_t>(4 * KEYS_AT_ONCE * all.stride));
    reserve(VALUES, static_cast<size_t>(4 * KEYS_AT_ONCE * all.stride));
    const auto &parts = all.parts;
    in_parallel(static_cast<int64_t>(parts.size()), [&](int64_t i, int thread) {
        const Part *part = &parts[static_cast<size_t>(i)];
        attend(all, *part, thread);
        if (part->first == 0 && (i + 1 == static_cast<int64_t>(parts.size()) || part[1].first == 0))
            merge(all, part, part + 1); // alone
    });
    for (size_t i = 0, end; i < parts.size(); i = end) {
        for (end = i + 1; end < parts.size() && parts[end].first;)
            end++;
        if (end > i + 1)
            merge(all, &parts[i], &parts[0] + end);
    }
}

} // namespace gyrfalcon

extern "C" int gf_attention(const gf_queries *queries, const gf_cache *cache, int kind) {
    return gyrfalcon::one_at_a_time([&] { gyrfalcon::attention(*queries, *cache, kind); });
}
