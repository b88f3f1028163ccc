// ---- sampling ----

// A row's largest logit; maxima [groups_of(count)] those of its groups; whether all are finite, or may also be -inf.
float group_maxima(const float *row, int64_t count, bool forbids, float *maxima, bool &finite) {
    constexpr int VECTORS = GROUP_LANES / WIDTH;
    const Ints sign = broadcast_int(forbids ? -1 : INT32_MAX); // whether -inf is taken for inf
    const Floats infinity = broadcast(__builtin_inff());
    const float lacking = forbids ? -__builtin_inff() : -FLT_MAX; // finite, too
    Floats largest = broadcast(-__builtin_inff());
    Ints wrong = {};
    float copy[GROUP_SPAN];
    for (int64_t i = 0; i < count; i += GROUP_SPAN, maxima += GROUP_LANES) {
        const float *from = row + i;
        if (count - i < GROUP_SPAN) {
            for (int64_t j = 0; j < GROUP_SPAN; j++)
                copy[j] = j < count - i ? from[j] : lacking;
            from = copy;
        }
        UNROLL for (int v = 0; v < VECTORS; v++) {
            Floats most = load<Floats>(from + v * WIDTH);
            wrong |= ~((Floats)((Ints)most & sign) < infinity);
            UNROLL for (int j = GROUP_LANES; j < GROUP_SPAN; j += GROUP_LANES) {
                Floats logits = load<Floats>(from + j + v * WIDTH);
                wrong |= ~((Floats)((Ints)logits & sign) < infinity);
                most = max(most, logits);
            }
            store(maxima + v * WIDTH, most);
            largest = max(largest, most);
        }
    }
    finite = !reduce_sum(wrong);
    return reduce_max(largest);
}

typedef double Doubles __attribute__((vector_size(WIDTH * 4)));
typedef int64_t Longs __attribute__((vector_size(WIDTH * 4)));
typedef float FewFloats __attribute__((vector_size(WIDTH * 2)));
constexpr int DOUBLES = WIDTH / 2;

// e^x for x ≤ 0 within 1 ulp, 0 below -708: e^r by its series on |r| ≤ ln 2 / 2, times a power of two.
INLINE Doubles exponential(Doubles x) {
    const Longs none = x < -708.0;
    x = (Doubles)((Longs)x & ~none);
    const Doubles magic = 0x1.8p52 - Doubles{}; // leaves the whole number in the lowest bits
    Doubles shifted = x * 0x1.71547652b82fep0 + magic;
    Doubles power = shifted - magic;
    Doubles r = x - power * 0x1.62e42fefa0000p-1;
    r = r - power * 0x1.cf79abc9e3b39p-40;
    Doubles y = 1.0 / 6227020800 - Doubles{};
    y = y * r + 1.0 / 479001600;
    y = y * r + 1.0 / 39916800;
    y = y * r + 1.0 / 3628800;
    y = y * r + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = (y * r) * r + r + 1.0;
    return (Doubles)(((Longs)y + ((Longs)shifted << 52)) & ~none);
}

INLINE Doubles weights_at(const float *logits, double top, double temperature) {
    return exponential((__builtin_convertvector(load<FewFloats>(logits), Doubles) - top) / temperature);
}

// The weights e^((logit - top) / temperature) of WEIGHT_BLOCK logits.
void weigh(const float *logits, double top, double temperature, double *weights) {
    for (int i = 0; i < WEIGHT_BLOCK; i += DOUBLES)
        store(weights + i, weights_at(logits + i, top, temperature));
}

// The sum of each whole block's weights, in the same order whatever the width of vectors.
void sum_weights(const float *logits, int64_t blocks, double top, double temperature, double *sums) {
    constexpr int LANES = 8, VECTORS = LANES / DOUBLES;
    for (int64_t block = 0; block < blocks; block++, logits += WEIGHT_BLOCK) {
        Doubles sum[VECTORS] = {};
        for (int i = 0; i < WEIGHT_BLOCK; i += LANES)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[v] += weights_at(logits + i + v * DOUBLES, top, temperature);
        double lanes[LANES];
        memcpy(lanes, sum, sizeof lanes);
        sums[block] = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    }
}
