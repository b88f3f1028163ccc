// Vectors of GYRFALCON_WIDTH floats by the compiler's vector extensions, which every instruction set it is
// told of serves; and what it does not know by itself. Included by one file per instruction set, inside a
// namespace of its own: nothing here may be shared between them.

constexpr int WIDTH = GYRFALCON_WIDTH;
typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));
typedef int8_t Bytes __attribute__((vector_size(WIDTH)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

template <class Vector> INLINE Vector loaded(const void *from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}
template <class Vector> INLINE void stored(void *to, Vector vector) { memcpy(to, &vector, sizeof vector); }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Floats same(float value) { return value - Floats{}; }
INLINE Ints same_int(int32_t value) { return value - Ints{}; }
INLINE Floats chosen(Ints where, Floats yes, Floats no) { return (Floats)(((Ints)yes & where) | ((Ints)no & ~where)); }
INLINE Floats larger(Floats a, Floats b) { return chosen(a > b, a, b); }

INLINE float sum(Floats x) {
    float each[WIDTH];
    stored(each, x);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            each[i] += each[i + half];
    return each[0];
}
INLINE float largest(Floats x) {
    float each[WIDTH];
    stored(each, x);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            each[i] = each[i] > each[i + half] ? each[i] : each[i + half];
    return each[0];
}

// ---- 16-bit floats ----

// Compilers know the instructions that widen, but not always that they are the best way.
INLINE Words widened(Halves bits) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Words)_mm256_cvtepu16_epi32((__m128i)bits);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Words)_mm512_cvtepu16_epi32((__m256i)bits);
#else
    return __builtin_convertvector(bits, Words);
#endif
}
INLINE Ints widened(Bytes bytes) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Ints)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_cvtepi8_epi32((__m128i)bytes);
#else
    return __builtin_convertvector(bytes, Ints);
#endif
}

INLINE Bytes narrowed(Ints values) { // of -128 … 127
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    __m256i pairs = _mm256_packs_epi32((__m256i)values, (__m256i)values); // in each half by itself
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
INLINE SomeShorts narrowed_to_shorts(Ints values) { // of -32768 … 32767
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)values, (__m256i)values), 0x08);
    return (SomeShorts)_mm256_castsi256_si128(both);
#elif defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    return (SomeShorts)_mm512_cvtepi32_epi16((__m512i)values);
#else
    return __builtin_convertvector(values, SomeShorts);
#endif
}

INLINE Floats from_bf16(Halves bits) { return (Floats)(widened(bits) << 16); }

// Round to nearest, ties to even; what is no number stays none.
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

// How one kind of number is read, WIDTH at a time; `place` counts numbers.
struct F32 {
    static constexpr int size = 4;
    INLINE Floats at(const char *row, int64_t place) { return loaded<Floats>(row + place * 4); }
    INLINE void put(char *row, int64_t place, Floats x) { stored(row + place * 4, x); }
};
struct Bf16 {
    static constexpr int size = 2;
    INLINE Floats at(const char *row, int64_t place) { return from_bf16(loaded<Halves>(row + place * 2)); }
    INLINE void put(char *row, int64_t place, Floats x) { stored(row + place * 2, to_bf16(x)); }
};
struct F16 {
    static constexpr int size = 2;
    INLINE Floats at(const char *row, int64_t place) { return from_f16(loaded<Halves>(row + place * 2)); }
    INLINE void put(char *row, int64_t place, Floats x) { stored(row + place * 2, to_f16(x)); }
};
struct I8 {
    static constexpr int size = 1;
    INLINE Floats at(const char *row, int64_t place) {
        return __builtin_convertvector(widened(loaded<Bytes>(row + place)), Floats);
    }
};

// The last `count` numbers of a row, zeros after them: nothing beyond the row is read.
template <class Kind> INLINE Floats last(const char *row, int64_t place, int64_t count) {
    char copy[WIDTH * 4] = {};
    memcpy(copy, row + place * Kind::size, static_cast<size_t>(count * Kind::size));
    return Kind::at(copy, 0);
}
template <class Kind> INLINE void put_last(char *row, int64_t place, int64_t count, Floats x) {
    char copy[WIDTH * 4];
    Kind::put(copy, 0, x);
    memcpy(row + place * Kind::size, copy, static_cast<size_t>(count * Kind::size));
}

// ---- a square of numbers, turned ----

#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
INLINE void transpose(Floats (&v)[WIDTH]) {
    __m256 pairs[8], fours[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]);
    }
    UNROLL for (int half = 0; half < 8; half += 4) // nested, for GCC unrolls no loop whose steps differ
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
// Compilers know which shuffle it is only where the places are constants.
template <int HALF, int... PLACES>
INLINE void swap_halves(Floats &a, Floats &b, std::integer_sequence<int, PLACES...>) {
    Floats upper = __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES - HALF : PLACES)...});
    b = __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES : PLACES + HALF)...});
    a = upper;
}
// Swaps ever smaller blocks across the diagonal, from HALF rows on.
template <int HALF = WIDTH / 2> INLINE void transpose(Floats (&v)[WIDTH]) {
    UNROLL for (int i = 0; i < WIDTH; i++) if (!(i & HALF))
        swap_halves<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, WIDTH>{});
    if constexpr (HALF > 1)
        transpose<HALF / 2>(v);
}
#endif

// ---- products of 16-bit integers ----

typedef int16_t Shorts __attribute__((vector_size(WIDTH * 4)));
typedef int8_t ManyBytes __attribute__((vector_size(WIDTH * 2)));

INLINE Shorts widened(ManyBytes bytes) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Shorts)_mm256_cvtepi8_epi16((__m128i)bytes);
#elif defined(__AVX512BW__) && GYRFALCON_WIDTH == 16
    return (Shorts)_mm512_cvtepi8_epi16((__m256i)bytes);
#else
    return __builtin_convertvector(bytes, Shorts);
#endif
}

INLINE Shorts added(Shorts a, Shorts b) { // modulo 2¹⁶, for numbers that stand for none may be of any size
    typedef uint16_t Unsigned __attribute__((vector_size(WIDTH * 4)));
    return (Shorts)((Unsigned)a + (Unsigned)b);
}

// sums + the products of neighbours, two and two together.
INLINE Ints with_products(Ints sums, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__) && GYRFALCON_WIDTH == 16
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && GYRFALCON_WIDTH == 8
    sums = (Ints)((Words)sums + (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b)); // what comes on the way may not fit
    asm("" : "+x"(sums)); // or GCC adds products up first, and has no registers for them
    return sums;
#else
    Ints even = ((Ints)((Words)a << 16) >> 16) * ((Ints)((Words)b << 16) >> 16);
    return sums + even + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}

// ---- products of nibbles with bytes, four columns of each of WIDTH rows at a time ----

typedef uint8_t NibbleQuads __attribute__((vector_size(WIDTH * 4))); // at most 15
typedef int8_t ByteQuads __attribute__((vector_size(WIDTH * 4)));

// Read from memory once, though it is wanted twice.
INLINE Words once(Words packed) {
#if defined(__AVX512F__) && GYRFALCON_WIDTH == 16
    asm("" : "+v"(packed));
#elif defined(__AVX2__) && GYRFALCON_WIDTH == 8
    asm("" : "+x"(packed));
#endif
    return packed;
}

// Sums of eight quads: where processors add four products up in 32 bits, such sums, else pairs of them that fit 16.
#if defined(__AVX512VNNI__) && GYRFALCON_WIDTH == 16
typedef Ints QuadSums;
INLINE QuadSums with_quads(QuadSums sums, NibbleQuads a, ByteQuads b) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}
INLINE Ints of_quads(QuadSums sums) { return sums; }
#else
typedef Shorts QuadSums;
INLINE QuadSums with_quads(QuadSums sums, NibbleQuads a, ByteQuads b) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    sums += (Shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    asm("" : "+x"(sums)); // as with_products does
    return sums;
#else
    return sums + ((Shorts)a & 255) * (((Shorts)b << 8) >> 8) + ((Shorts)a >> 8) * ((Shorts)b >> 8);
#endif
}
INLINE Ints of_quads(QuadSums sums) {
#if defined(__AVX2__) && GYRFALCON_WIDTH == 8
    return (Ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
#else
    return ((Ints)((Words)sums << 16) >> 16) + ((Ints)sums >> 16);
#endif
}
#endif

// ---- functions ----

INLINE Floats rounded(Floats x) { // to whole numbers, ties to even; |x| < 2²²
    const Floats magic = same(12582912.0f);
    return (x + magic) - magic;
}

// e^x within 2e-7 of itself, 0 below -87: e^r by a polynomial, fitted for the least largest error on
// |r| ≤ ln 2 / 2, times a power of two.
INLINE Floats exponential(Floats x) {
    Floats clipped = chosen(x > 88.0f, same(88.0f), chosen(x < -87.0f, same(-87.0f), x));
    Floats power = rounded(clipped * 1.44269504f);
    Floats r = clipped - power * 0.693145752f;
    r = r - power * 1.42860677e-6f;
    Floats y = same(0.0013836852f);
    y = y * r + 0.0083748158f;
    y = y * r + 0.0416682251f;
    y = y * r + 0.166664198f;
    y = y * r + 0.49999991f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    Ints exponent = (__builtin_convertvector(power, Ints) + 127) << 23;
    return chosen(x < -87.0f, Floats{}, y * (Floats)exponent);
}

// 1 - e^(-a q(a)) for a = |x|, with the polynomial q fitted on [0, 4] for the least largest error of the
// result: 6e-8 in float32.
INLINE Floats error_function(Floats x) {
    Floats a = (Floats)((Ints)x & 0x7fffffff);
    a = chosen(a > 4.0f, same(4.0f), a);
    Floats q = same(3.144018410239369e-05f);
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

INLINE Floats activated(Floats x, int activation) {
    switch (activation) {
    case GF_GELU:
        return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GF_GELU_TANH: { // tanh(u) = 1 - 2 / (1 + e^2u)
        Floats u = 0.79788456f * (x + 0.044715f * x * x * x);
        return x * (1.0f - 1.0f / (1.0f + exponential(2.0f * u)));
    }
    case GF_RELU:
        return chosen(x < 0.0f, Floats{}, x); // what is no number stays none
    case GF_SILU:
        return x / (1.0f + exponential(-x));
    default:
        return x;
    }
}
