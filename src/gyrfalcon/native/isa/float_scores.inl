// ---- attention's scores from queries and keys as float32 ----

void pack_keys(const char *const *keys, int kind, int64_t count, int64_t dim, float *to) {
    switch (kind) {
    case GF_F32:
        return pack_keys_as<F32>(keys, count, dim, to);
    case GF_BF16:
        return pack_keys_as<Bf16>(keys, count, dim, to);
    default:
        return pack_keys_as<F16>(keys, count, dim, to);
    }
}

struct FloatScores {
    INLINE void pack_queries(const AttentionWork &work, const AttentionScratch &own) {
        for (int64_t row = 0; row < work.rows; row++)
            for (int64_t i = 0; i < work.dim; i++)
                own.queries[(row / NR * work.dim + i) * NR + row % NR] = work.queries[row * padded(work.dim) + i];
    }
    INLINE void score(const AttentionWork &work, const char *const *places, int64_t count, const AttentionScratch &own) {
        if (work.rows < PACKED_QUERIES)
            return score_few(work, places, count, own);
        pack_keys(places, work.kind, count, work.dim, own.keys);
        for (int64_t row = 0; row < work.rows; row += NR)
            for (int64_t key = 0; key < count; key += MR)
                micro_kernel(own.keys + key * work.dim, own.queries + row * work.dim, min(NR, work.rows - row), work.dim,
                             own.scores + row * KEYS_AT_ONCE + key, KEYS_AT_ONCE, false);
    }
    INLINE void score_few(const AttentionWork &work, const char *const *places, int64_t count,
                          const AttentionScratch &own) {
        const int64_t stride = padded(work.dim);
        for (int64_t i = 0; i < count; i++) {
            memset(own.keys + i * stride + work.dim, 0, static_cast<size_t>(4 * (stride - work.dim)));
            widen(places[i], work.kind, work.dim, own.keys + i * stride);
        }
        const Rows keys{reinterpret_cast<const char *>(own.keys), nullptr, stride * 4, count, stride, GF_F32, 0};
        Tokens queries;
        queries.floats = work.queries;
        queries.stride = stride;
        queries.count = work.rows;
        linear(keys, queries, own.scores, KEYS_AT_ONCE, false, false);
    }
};

void attend(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total) {
    attend_by<FloatScores>(work, own, out, top, total);
}
