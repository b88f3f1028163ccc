// Layer norms, and rotary positions with the writes to the KV cache.
#include "kernels.h"
#include "operations.h"

#include <algorithm>
#include <string.h>

namespace gyrfalcon {
namespace {

constexpr int64_t TOKENS_A_PART = 8;

template <class Each> void for_tokens(int64_t tokens, const Each &each) {
    in_parallel((tokens + TOKENS_A_PART - 1) / TOKENS_A_PART, [&](int64_t part, int thread) {
        const int64_t end = std::min(tokens, (part + 1) * TOKENS_A_PART);
        for (int64_t token = part * TOKENS_A_PART; token < end; token++)
            each(token, thread);
    });
}

} // namespace

void add_layer_norms(const void *x, const void *part, void *sum, const gf_norm *norms, int num_norms, int64_t tokens,
                     int64_t hidden, float eps, int kind) {
    const Kernels &kernels = *chosen_kernels();
    const int64_t row_bytes = hidden * bytes_of(kind);
    reserve(SUMS, static_cast<size_t>(4 * padded(hidden)));
    for_tokens(tokens, [&](int64_t token, int thread) {
        const char *added = part ? static_cast<const char *>(part) + token * row_bytes : nullptr;
        kernels.add_layer_norms(static_cast<const char *>(x) + token * row_bytes, added,
                                static_cast<char *>(sum) + token * row_bytes, norms, num_norms, token, hidden, eps,
                                kind, static_cast<float *>(scratch(thread, SUMS)));
    });
}

void rotary_and_cache(const void *qkv, const float *cosines, const float *sines, const gf_cache &cache,
                      const int64_t *slots, void *q, int64_t tokens, int64_t group, int kind) {
    const Kernels &kernels = *chosen_kernels();
    const int64_t head_bytes = cache.dim * bytes_of(kind), token_bytes = cache.kv_heads * head_bytes;
    for_tokens(tokens, [&](int64_t token, int) {
        const char *from = static_cast<const char *>(qkv) + token * (group + 2) * token_bytes;
        char *queries = static_cast<char *>(q) + token * group * token_bytes;
        const float *cosine = cosines ? cosines + token * (cache.dim / 2) : nullptr;
        const float *sine = sines ? sines + token * (cache.dim / 2) : nullptr;
        for (int64_t head = 0; head < cache.kv_heads; head++) {
            for (int64_t i = 0; i < group; i++, from += head_bytes, queries += head_bytes)
                kernels.rotate(from, cosine, sine, cache.dim, kind, queries);
            if (slots[token] >= 0) {
                const int64_t to = slots[token] * token_bytes + head * head_bytes;
                kernels.rotate(from, cosine, sine, cache.dim, kind, static_cast<char *>(cache.keys) + to);
                memcpy(static_cast<char *>(cache.values) + to, from + head_bytes, static_cast<size_t>(head_bytes));
            }
            from += 2 * head_bytes;
        }
    });
}

} // namespace gyrfalcon

extern "C" int gf_add_layer_norms(const void *x, const void *part, void *sum, const gf_norm *norms, int num_norms,
                                  int64_t tokens, int64_t hidden, float eps, int kind) {
    return gyrfalcon::one_at_a_time(
        [&] { gyrfalcon::add_layer_norms(x, part, sum, norms, num_norms, tokens, hidden, eps, kind); });
}

extern "C" int gf_rotary_and_cache(const void *qkv, const float *cosines, const float *sines, const gf_cache *cache,
                                   const int64_t *slots, void *q, int64_t tokens, int64_t group, int kind) {
    return gyrfalcon::one_at_a_time(
        [&] { gyrfalcon::rotary_and_cache(qkv, cosines, sines, *cache, slots, q, tokens, group, kind); });
}
