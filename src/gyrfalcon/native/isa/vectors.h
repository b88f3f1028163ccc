// Vectors of GYRFALCON_WIDTH floats by the compiler's vector extensions, which compile to any instruction set,
// and intrinsics where these are faster. Included by one file per instruction set, inside a
// namespace of its own: nothing here may be shared between them.

constexpr int WIDTH = GYRFALCON_WIDTH;
typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));
typedef int8_t Bytes __attribute__((vector_size(WIDTH)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Whether vectors of integers are multiplied and added in one instruction.
#if (GYRFALCON_WIDTH == 16 && defined(__AVX512VNNI__)) || \
    (GYRFALCON_WIDTH == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))))
#define GYRFALCON_VNNI 1
#else
#define GYRFALCON_VNNI 0
#endif

template <class Vector> INLINE Vector load(const void *from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}
template <class Vector> INLINE void store(void *to, Vector vector) { memcpy(to, &vector, sizeof vector); }

// sums + a × b, where there are as many sums as registers leave: GCC writes to a or b, and spills sums in the middle of a
// pass, each of which waits for the one before.
INLINE Floats add_products(Floats sums, Floats a, Floats b) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    asm("vfmadd231ps %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));
    return sums;
#else
    return sums + a * b;
#endif
}

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Floats broadcast(float value) { return value - Floats{}; }
INLINE Ints broadcast_int(int32_t value) { return value - Ints{}; }
INLINE Floats select(Ints where, Floats yes, Floats no) { return (Floats)(((Ints)yes & where) | ((Ints)no & ~where)); }
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
constexpr __mmask16 ALL_LANES = 0xffff; // GCC 12 warns of its own intrinsics that have no mask
#endif

INLINE Floats max(Floats a, Floats b) { // b where one is NaN
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Floats)_mm512_maskz_max_ps(ALL_LANES, (__m512)a, (__m512)b);
#else
    return select(a > b, a, b);
#endif
}

// Lanes moved down by HALF, around.
template <int HALF, int... PLACES> INLINE Floats moved(Floats x, std::integer_sequence<int, PLACES...>) {
    return __builtin_shuffle(x, (Ints){(PLACES + HALF) % WIDTH...});
}
// All lanes made one by `join`: halves, then their halves.
template <int HALF = WIDTH / 2, class Join> INLINE float reduce(Floats x, const Join &join) {
    x = join(x, moved<HALF>(x, std::make_integer_sequence<int, WIDTH>{}));
    if constexpr (HALF > 1)
        return reduce<HALF / 2>(x, join);
    else
        return x[0];
}
INLINE float reduce_sum(Floats x) {
    return reduce(x, [](Floats a, Floats b) { return a + b; });
}
INLINE float reduce_max(Floats x) {
    return reduce(x, [](Floats a, Floats b) { return max(a, b); });
}

INLINE int32_t reduce_max(Ints x) {
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return _mm512_reduce_max_epi32((__m512i)x);
#else
    int32_t best = x[0];
    for (int i = 1; i < WIDTH; i++)
        best = x[i] > best ? x[i] : best;
    return best;
#endif
}
INLINE int32_t reduce_sum(Ints x) {
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t total = 0;
    for (int i = 0; i < WIDTH; i++)
        total += x[i];
    return total;
#endif
}

// ---- 16-bit floats ----

// Compilers do not always pick the widening instructions.
INLINE Words widen(Halves bits) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Words)_mm256_cvtepu16_epi32((__m128i)bits);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Words)_mm512_cvtepu16_epi32((__m256i)bits);
#else
    return __builtin_convertvector(bits, Words);
#endif
}
INLINE Ints widen(Bytes bytes) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Ints)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_cvtepi8_epi32((__m128i)bytes);
#else
    return __builtin_convertvector(bytes, Ints);
#endif
}

INLINE Bytes narrow(Ints values) { // of -128 … 127
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    __m256i pairs = _mm256_packs_epi32((__m256i)values, (__m256i)values); // within each 128-bit half
    __m256i bytes = _mm256_packs_epi16(pairs, pairs);
    __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    return (Bytes)_mm_cvtsi128_si64(both);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Bytes)_mm512_cvtepi32_epi8((__m512i)values);
#else
    return __builtin_convertvector(values, Bytes);
#endif
}

typedef int16_t SomeShorts __attribute__((vector_size(WIDTH * 2)));
INLINE SomeShorts narrow_to_int16(Ints values) { // of -32768 … 32767
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)values, (__m256i)values), 0x08);
    return (SomeShorts)_mm256_castsi256_si128(both);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (SomeShorts)_mm512_cvtepi32_epi16((__m512i)values);
#else
    return __builtin_convertvector(values, SomeShorts);
#endif
}

INLINE Floats from_bf16(Halves bits) { return (Floats)(widen(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
INLINE Halves to_bf16(Floats x) {
    Words bits = (Words)x;
    Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    Words quiet = bits | 0x400000;
    Words where = (Words)(x == x);
    return __builtin_convertvector(((rounded & where) | (quiet & ~where)) >> 16, Halves);
}

#if defined(__F16C__) && GYRFALCON_WIDTH == 8
INLINE Floats from_f16(Halves bits) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
INLINE Halves to_f16(Floats x) { return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
INLINE Floats from_f16(Halves bits) { return (Floats)_mm512_cvtph_ps((__m256i)bits); }
INLINE Halves to_f16(Floats x) { return (Halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE Floats from_f16(Halves bits) {
    Words wide = __builtin_convertvector(bits, Words);
    Words sign = (wide & 0x8000) << 16, rest = (wide & 0x7fff) << 13;
    Words finite = (Words)((Floats)rest * 0x1p112f); // moves the exponent, denormals included
    Words special = rest | 0x7f800000;
    Words where = (Words)((Ints)(wide & 0x7c00) == 0x7c00);
    return (Floats)(sign | (special & where) | (finite & ~where));
}
INLINE uint16_t to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000)
        return static_cast<uint16_t>(sign | 0x7e00);
    if (rest >= 0x477ff000) // rounds to 65536 or more
        return static_cast<uint16_t>(sign | 0x7c00);
    if (rest < 0x38800000) { // below 2⁻¹⁴: adding 1/2 lets the processor round to units of 2⁻²⁴
        float small;
        memcpy(&small, &rest, 4);
        small += 0.5f;
        memcpy(&rest, &small, 4);
        return static_cast<uint16_t>(sign | (rest - 0x3f000000));
    }
    rest += 0xfff + ((rest >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rest - 0x38000000) >> 13));
}
INLINE Halves to_f16(Floats x) {
    Halves out;
    for (int i = 0; i < WIDTH; i++)
        out[i] = to_f16(x[i]);
    return out;
}
#endif

// ---- numbers in memory ----

// How WIDTH numbers of one kind are loaded and stored; `place` counts numbers.
struct F32 {
    static constexpr int size = 4;
    INLINE Floats at(const char *row, int64_t place) { return load<Floats>(row + place * 4); }
    INLINE void put(char *row, int64_t place, Floats x) { store(row + place * 4, x); }
};
struct Bf16 {
    static constexpr int size = 2;
    INLINE Floats at(const char *row, int64_t place) { return from_bf16(load<Halves>(row + place * 2)); }
    INLINE void put(char *row, int64_t place, Floats x) { store(row + place * 2, to_bf16(x)); }
};
struct F16 {
    static constexpr int size = 2;
    INLINE Floats at(const char *row, int64_t place) { return from_f16(load<Halves>(row + place * 2)); }
    INLINE void put(char *row, int64_t place, Floats x) { store(row + place * 2, to_f16(x)); }
};
struct I8 {
    static constexpr int size = 1;
    INLINE Floats at(const char *row, int64_t place) {
        return __builtin_convertvector(widen(load<Bytes>(row + place)), Floats);
    }
};

// The last `count` numbers of a row, padded with zeros: nothing beyond the row is read.
template <class Kind> INLINE Floats load_partial(const char *row, int64_t place, int64_t count) {
    char copy[WIDTH * 4] = {};
    memcpy(copy, row + place * Kind::size, static_cast<size_t>(count * Kind::size));
    return Kind::at(copy, 0);
}
template <class Kind> INLINE void store_partial(char *row, int64_t place, int64_t count, Floats x) {
    char copy[WIDTH * 4];
    Kind::put(copy, 0, x);
    memcpy(row + place * Kind::size, copy, static_cast<size_t>(count * Kind::size));
}

// ---- transposing WIDTH × WIDTH numbers ----

#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
INLINE void transpose(Floats (&v)[WIDTH]) {
    __m256 pairs[8], fours[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]);
    }
    UNROLL for (int half = 0; half < 8; half += 4) // nested: GCC unrolls no loop of uneven steps
        UNROLL for (int i = half; i < half + 2; i++) {
            fours[2 * i - half] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
            fours[2 * i - half + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = (Floats)_mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        v[i + 4] = (Floats)_mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}
#else
// The places have to be constants for compilers to pick a shuffle.
template <int HALF, int... PLACES>
INLINE void swap_halves(Floats &a, Floats &b, std::integer_sequence<int, PLACES...>) {
    Floats upper = __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES - HALF : PLACES)...});
    b = __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES : PLACES + HALF)...});
    a = upper;
}
// Swaps blocks across the diagonal, from HALF × HALF down.
template <int HALF = WIDTH / 2> INLINE void transpose(Floats (&v)[WIDTH]) {
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (!(i & HALF))
            swap_halves<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, WIDTH>{});
    if constexpr (HALF > 1)
        transpose<HALF / 2>(v);
}
#endif

// ---- products of 16-bit integers ----

typedef int16_t Shorts __attribute__((vector_size(WIDTH * 4)));
typedef int8_t ManyBytes __attribute__((vector_size(WIDTH * 2)));

INLINE Shorts widen(ManyBytes bytes) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Shorts)_mm256_cvtepi8_epi16((__m128i)bytes);
#elif defined(__AVX512BW__) && GYRFALCON_WIDTH == 16
    return (Shorts)_mm512_cvtepi8_epi16((__m256i)bytes);
#else
    return __builtin_convertvector(bytes, Shorts);
#endif
}

INLINE Shorts add_wrapping(Shorts a, Shorts b) { // modulo 2¹⁶: those that stand for NaN may be anything
    typedef uint16_t Unsigned __attribute__((vector_size(WIDTH * 4)));
    return (Shorts)((Unsigned)a + (Unsigned)b);
}

// sums + the products of neighbouring pairs.
INLINE Ints add_pair_products(Ints sums, Shorts a, Shorts b) {
#if GYRFALCON_VNNI && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif GYRFALCON_VNNI
    return (Ints)_mm256_dpwssd_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#elif defined(__AVX512BW__) && GYRFALCON_WIDTH == 16
    sums = (Ints)((Words)sums + (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b)); // unsigned: sums may overflow
    asm("" : "+v"(sums)); // or GCC sums products first and spills registers
    return sums;
#elif defined(__AVX2__) && GYRFALCON_WIDTH == 8
    sums = (Ints)((Words)sums + (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b));
    asm("" : "+x"(sums));
    return sums;
#else
    Ints even = ((Ints)((Words)a << 16) >> 16) * ((Ints)((Words)b << 16) >> 16);
    return sums + even + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}

// ---- unsigned × signed bytes ----

// sums + the products of four neighbours.
INLINE Ints add_byte_products(Ints sums, Words a, Words b) {
#if GYRFALCON_VNNI && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif GYRFALCON_VNNI
    return (Ints)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#else
    UNROLL for (int byte = 0; byte < 4; byte++)
        sums += (Ints)(a >> 8 * byte & 255) * ((Ints)(b << (24 - 8 * byte)) >> 24);
    return sums;
#endif
}

// `count` bytes, then zeros.
INLINE Words load_some(const char *from, int64_t count) {
    Words bytes = {};
    memcpy(&bytes, from, static_cast<size_t>(count));
    return bytes;
}

// ---- nibbles × bytes, groups of 4 columns of WIDTH rows at a time ----

typedef uint8_t NibbleGroups __attribute__((vector_size(WIDTH * 4))); // at most 15
typedef int8_t ByteGroups __attribute__((vector_size(WIDTH * 4)));

// Loaded once, though used twice; to the compiler something new.
INLINE Words keep_in_register(Words packed) {
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    asm("" : "+v"(packed));
#elif (defined(__AVX2__) && GYRFALCON_WIDTH == 8) || (defined(__SSE2__) && GYRFALCON_WIDTH == 4)
    asm("" : "+x"(packed));
#elif defined(__aarch64__) && GYRFALCON_WIDTH == 4
    asm("" : "+w"(packed));
#endif
    return packed;
}

// Sums of eight groups: 32-bit sums of four products where there is an instruction for them, else 16-bit sums of two.
#if GYRFALCON_VNNI
typedef Ints GroupSums;
INLINE GroupSums add_group_products(GroupSums sums, NibbleGroups a, ByteGroups b) {
    return add_byte_products(sums, (Words)a, (Words)b);
}
INLINE Ints widen_group_sums(GroupSums sums) { return sums; }
#else
typedef Shorts GroupSums;
INLINE GroupSums add_group_products(GroupSums sums, NibbleGroups a, ByteGroups b) {
#if defined(__AVX512BW__) && GYRFALCON_WIDTH == 16
    sums += (Shorts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
    asm("" : "+v"(sums)); // as add_pair_products does
    return sums;
#elif defined(__AVX2__) && GYRFALCON_WIDTH == 8
    sums += (Shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    asm("" : "+x"(sums));
    return sums;
#else
    return sums + ((Shorts)a & 255) * (((Shorts)b << 8) >> 8) + ((Shorts)a >> 8) * ((Shorts)b >> 8);
#endif
}
INLINE Ints widen_group_sums(GroupSums sums) {
#if defined(__AVX512BW__) && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_madd_epi16((__m512i)sums, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
#else
    return ((Ints)((Words)sums << 16) >> 16) + ((Ints)sums >> 16);
#endif
}
#endif

// ---- functions ----

INLINE Floats round_to_nearest(Floats x) { // to whole numbers, ties to even; |x| < 2²²
    const Floats magic = broadcast(12582912.0f);
    return (x + magic) - magic;
}

// e^r by a minimax polynomial, |r| ≤ ln 2 / 2, for x = r + power × ln 2.
INLINE Floats exponential_of_rest(Floats x, Floats power) {
    Floats r = x - power * 0.693145752f;
    r = r - power * 1.42860677e-6f;
    Floats y = broadcast(0.0013836852f);
    y = y * r + 0.0083748158f;
    y = y * r + 0.0416682251f;
    y = y * r + 0.166664198f;
    y = y * r + 0.49999991f;
    y = y * r + 1.0f;
    return y * r + 1.0f;
}

// e^x within a relative 2e-7, 0 below -87, at most e^88.
INLINE Floats exponential(Floats x) {
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(-87.0f), _CMP_NLT_UQ); // NaN, too
    const auto clipped = (Floats)_mm512_maskz_min_ps(ALL_LANES, (__m512)broadcast(88.0f), (__m512)x);
    const Floats scaled = clipped * 1.44269504f;
    const auto power = (Floats)_mm512_maskz_roundscale_ps(ALL_LANES, (__m512)scaled, _MM_FROUND_TO_NEAREST_INT);
    return (Floats)_mm512_maskz_scalef_ps(counts, (__m512)exponential_of_rest(clipped, power), (__m512)power);
#else
    Floats clipped = select(x > 88.0f, broadcast(88.0f), select(x < -87.0f, broadcast(-87.0f), x));
    Floats power = round_to_nearest(clipped * 1.44269504f);
    Ints exponent = (__builtin_convertvector(power, Ints) + 127) << 23;
    return select(x < -87.0f, Floats{}, exponential_of_rest(clipped, power) * (Floats)exponent);
#endif
}

// 1 - e^(-a q(a)) for a = |x|, with a minimax polynomial q on [0, 4]; error 6e-8 in float32.
INLINE Floats error_function(Floats x) {
    Floats a = (Floats)((Ints)x & 0x7fffffff);
    a = select(a > 4.0f, broadcast(4.0f), a);
    Floats q = broadcast(3.144018410239369e-05f);
    q = q * a - 0.00030880238045938313f;
    q = q * a + 0.0010324022732675076f;
    q = q * a + 0.0005369323189370334f;
    q = q * a - 0.019583959132432938f;
    q = q * a + 0.10291961580514908f;
    q = q * a + 0.636597752571106f;
    q = q * a + 1.128380298614502f;
    Floats positive = 1.0f - exponential(-a * q);
    return (Floats)((Ints)positive | ((Ints)x & INT32_MIN));
}

INLINE Floats activate(Floats x, int activation) {
    switch (activation) {
    case GF_GELU:
        return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GF_GELU_TANH: { // tanh(u) = 1 - 2 / (1 + e^2u)
        Floats u = 0.79788456f * (x + 0.044715f * x * x * x);
        return x * (1.0f - 1.0f / (1.0f + exponential(2.0f * u)));
    }
    case GF_RELU:
        return select(x < 0.0f, Floats{}, x); // NaN stays NaN
    case GF_SILU:
        return x / (1.0f + exponential(-x));
    default:
        return x;
    }
}
