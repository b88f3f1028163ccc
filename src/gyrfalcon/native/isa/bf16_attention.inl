// ---- attention by products of bf16, two neighbouring numbers a word ----
//
// Queries and keys are bf16 as they are. Weights are rounded to it, and it is the rounded ones that are summed: an output stays
// a mean of values. A word of the values is two keys'.

struct Bf16Products {
    INLINE void pack_queries(const AttentionWork &work, const AttentionScratch &own) {
        auto *to = reinterpret_cast<char *>(own.queries);
        for (int64_t row = 0; row < work.rows; row++)
            for (int64_t i = 0; i < work.dim; i += WIDTH) {
                const Halves some = to_bf16(load<Floats>(work.queries + row * padded(work.dim) + i)); // they were bf16
                if (work.rows < PACKED_QUERIES) {
                    store(to + 2 * (row * padded(work.dim) + i), some);
                    continue;
                }
                char each[sizeof some], *place = to + 2 * (row / NR * work.dim + i) * NR + 4 * (row % NR);
                store(each, some);
                for (int64_t j = 0; j < min(WIDTH, work.dim - i); j += 2)
                    memcpy(place + 2 * j * NR, each + 2 * j, 4);
            }
    }
    INLINE void pack_keys(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        if (work.rows >= PACKED_QUERIES)
            pack_keys_as<F32>(work.keys, block, work.dim / 2, own.keys); // words, whatever they are
    }
    INLINE void pack_values(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        const int64_t stride = padded(work.dim);
        float *to = own.values;
        for (int64_t key = 0; key < block.count; key += 2, to += stride)
            for (int64_t place = 0; place < stride; place += 2 * WIDTH) {
                const int64_t count = min(2 * WIDTH, work.dim - place);
                const Words first = numbers(work.values + block.places[key] + 2 * place, count);
                Words second = {};
                if (key + 1 < block.count)
                    second = numbers(work.values + block.places[key + 1] + 2 * place, count);
                store(to + place, neighbours<0>(first, second));
                if (place + WIDTH < stride)
                    store(to + place + WIDTH, neighbours<WIDTH>(first, second));
            }
    }
    INLINE void score(const AttentionWork &work, const KeyBlock &block, int64_t row, int64_t rows,
                      const AttentionScratch &own) {
        if (work.rows < PACKED_QUERIES)
            return score_few(work, block, own);
        const auto *keys = reinterpret_cast<const uint16_t *>(own.keys);
        const auto *queries = reinterpret_cast<const uint16_t *>(own.queries) + row * work.dim;
        Ahead nothing{};
        for (int64_t key = 0; key < block.count; key += MR)
            micro_kernel_bf16(keys + key * work.dim, queries, rows, work.dim, own.scores + key, KEYS_AT_ONCE, false,
                              nothing);
    }
    // Of each query with keys as they lie in the cache: lanes are numbers of a head.
    INLINE void score_few(const AttentionWork &work, const KeyBlock &block, const AttentionScratch &own) {
        for (int64_t row = 0; row < work.rows; row++) {
            const char *query = reinterpret_cast<const char *>(own.queries) + 2 * row * padded(work.dim);
            for (int64_t key = 0; key < block.count; key += WIDTH) {
                Floats sums[WIDTH] = {};
                int64_t place = 0;
                for (; place + 2 * WIDTH <= work.dim; place += 2 * WIDTH)
                    add_keys(work, block, key, place, 2 * WIDTH, query, sums);
                if (place < work.dim)
                    add_keys(work, block, key, place, work.dim - place, query, sums);
                store(own.scores + row * KEYS_AT_ONCE + key, reduce_sums(sums));
            }
        }
    }
    INLINE Floats put_weights(const Floats (&each)[KEYS_AT_ONCE / WIDTH], float *to) {
        const Words ones = (Words)broadcast_int(0x3f803f80);
        Floats sum = {};
        UNROLL for (int i = 0; i < KEYS_AT_ONCE / WIDTH; i += 2) {
            const auto both = (Words)_mm512_cvtne2ps_pbh((__m512)each[i + 1], (__m512)each[i]);
            store(to + i / 2 * WIDTH, both);
            sum = add_bf16_products(sum, both, ones);
        }
        return sum;
    }
    INLINE int64_t steps(int64_t keys) { return (keys + 1) / 2; }
    INLINE Words weight(const float *from) { return (Words)broadcast_int(load<int32_t>(from)); }
    INLINE Floats add(Floats sums, Words weights, Floats values) {
        return add_bf16_products(sums, weights, (Words)values);
    }

  private:
    // At most 2 × WIDTH of them.
    INLINE Words numbers(const char *from, int64_t count) {
        return count == 2 * WIDTH ? load<Words>(from) : load_some(from, 2 * count);
    }
    // Adds products of `count` numbers of WIDTH keys, the block's last for those that are missing.
    INLINE void add_keys(const AttentionWork &work, const KeyBlock &block, int64_t key, int64_t place, int64_t count,
                         const char *query, Floats (&sums)[WIDTH]) {
        const Words multiplied = numbers(query + 2 * place, count);
        UNROLL for (int i = 0; i < WIDTH; i++) {
            const char *from = work.keys + block.places[min(key + i, block.count - 1)];
            sums[i] = add_bf16_products(sums[i], numbers(from + 2 * place, count), multiplied);
        }
    }
    // WIDTH numbers of two rows from FIRST on, each beside the other row's.
    template <int FIRST> INLINE Words neighbours(Words first, Words second) {
        return neighbours_at<FIRST>(first, second, std::make_integer_sequence<int, 2 * WIDTH>{});
    }
    template <int FIRST, int... PLACES>
    INLINE Words neighbours_at(Words first, Words second, std::integer_sequence<int, PLACES...>) {
        return (Words)__builtin_shuffle((Shorts)first, (Shorts)second,
                                        (Shorts){(PLACES % 2 * 2 * WIDTH + FIRST + PLACES / 2)...});
    }
};

void attend_with_bf16(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total) {
    if (work.kind == GF_BF16 && work.dim % 2 == 0)
        attend_by<Bf16Products>(work, own, out, top, total);
    else
        avx512_kernels()->attend(work, own, out, top, total);
}
