// ---- attention by products of float32 ----

void pack_float_keys(const AttentionWork &work, const KeyBlock &block, float *to) {
    switch (work.kind) {
    case GF_F32:
        return pack_keys_as<F32>(work.keys, block, work.dim, to);
    case GF_BF16:
        return pack_keys_as<Bf16>(work.keys, block, work.dim, to);
    default:
        return pack_keys_as<F16>(work.keys, block, work.dim, to);
    }
}

struct FloatProducts {
    INLINE void pack_queries(const AttentionWork &work, const AttentionScratch &own) {
        for (int64_t row = 0; row < work.rows; row++)
            for (int64_t i = 0; i < work.dim; i++)
                own.queries[(row / NR * work.dim + i) * NR + row % NR] = work.queries[row * padded(work.dim) + i];
    }
    INLINE void pack_keys(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        if (work.rows < PACKED_QUERIES)
            widen_rows(work, work.keys, block, own.keys);
        else
            pack_float_keys(work, block, own.keys);
    }
    INLINE void pack_values(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        widen_rows(work, work.values, block, own.values);
    }
    INLINE void widen_rows(const AttentionWork &work, const char *from, const KeyBlock &block, float *to) {
        const int64_t stride = padded(work.dim);
        for (int64_t i = 0; i < block.count; i++, to += stride) {
            memset(to + work.dim, 0, static_cast<size_t>(4 * (stride - work.dim)));
            widen(from + block.places[i], work.kind, work.dim, to);
        }
    }
    INLINE void score(const AttentionWork &work, const KeyBlock &block, int64_t row, int64_t rows,
                      const AttentionScratch &own) {
        if (work.rows < PACKED_QUERIES)
            return score_few(work, block, own);
        for (int64_t key = 0; key < block.count; key += MR)
            micro_kernel(own.keys + key * work.dim, own.queries + row * work.dim, rows, work.dim, own.scores + key,
                         KEYS_AT_ONCE, false);
    }
    INLINE void score_few(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        const int64_t stride = padded(work.dim);
        const Rows keys{reinterpret_cast<const char *>(own.keys), nullptr, stride * 4, block.count, stride, GF_F32, 0};
        Tokens queries;
        queries.floats = work.queries;
        queries.stride = stride;
        queries.count = work.rows;
        linear(keys, queries, own.scores, KEYS_AT_ONCE, false, false);
    }
    INLINE Floats put_weights(const Floats (&each)[KEYS_AT_ONCE / WIDTH], float *to) {
        Floats sum = {};
        UNROLL for (int i = 0; i < KEYS_AT_ONCE / WIDTH; i++) {
            store(to + i * WIDTH, each[i]);
            sum += each[i];
        }
        return sum;
    }
    INLINE int64_t steps(int64_t keys) { return keys; }
    INLINE float weight(const float *from) { return *from; }
    INLINE Floats add(Floats sums, float weight, Floats value) { return sums + weight * value; }
};

void attend(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total) {
    attend_by<FloatProducts>(work, own, out, top, total);
}
