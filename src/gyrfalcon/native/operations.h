// The operations behind the interface, and the lock they run under.
#pragma once
#include "gyrfalcon.h"
#include "threads.h"

#include <new>

namespace gyrfalcon {

// Runs `operation` alone: 0, or -1 where memory ran out.
template <class Operation> int one_at_a_time(const Operation &operation) {
    std::lock_guard<std::mutex> alone(caller());
    try {
        operation();
    } catch (const std::bad_alloc &) {
        return -1;
    }
    return 0;
}

// As in gyrfalcon.h, under one_at_a_time. Throw std::bad_alloc.
void linears(const gf_output *outputs, int num_outputs, int64_t tokens, int kind);
void add_layer_norms(const void *x, const void *part, void *sum, const gf_norm *norms, int num_norms, int64_t tokens,
                     int64_t hidden, float eps, int kind);
void rotary_and_cache(const void *qkv, const float *cosines, const float *sines, const gf_cache &cache,
                      const int64_t *slots, void *q, int64_t tokens, int64_t group, int kind);
void attention(const gf_queries &queries, const gf_cache &cache, int kind);
void draw_tokens(const float *logits, int64_t rows, int64_t columns, const gf_draw *draws, bool forbids,
                 int64_t *tokens, int64_t *states);

} // namespace gyrfalcon
