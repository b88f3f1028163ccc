// The tile instructions of AMX as their manual defines them, in plain C++ and under the intrinsics' names: for
// tests on processors without AMX. What would be a fault there ends the process here.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace gyrfalcon {
namespace emulated {

constexpr int TILES = 8, ROWS = 16, ROW_BYTES = 64;

struct Tile {
    int rows, row_bytes;
    unsigned char data[ROWS][ROW_BYTES];
};
struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

inline thread_local Tile tiles[TILES];
inline thread_local bool configured = false;

inline void demand(bool condition) {
    if (!condition)
        abort();
}
inline Tile &tile(int number) {
    demand(configured && number >= 0 && number < TILES && tiles[number].rows && tiles[number].row_bytes);
    return tiles[number];
}

inline void configure(const void *from) {
    Configuration wanted;
    memcpy(&wanted, from, sizeof wanted);
    demand(wanted.palette == 1 && wanted.start_row == 0);
    for (uint8_t byte : wanted.reserved)
        demand(byte == 0);
    for (int i = 0; i < 16; i++) {
        const int rows = wanted.rows[i], row_bytes = wanted.row_bytes[i];
        demand(i < TILES ? rows <= ROWS && row_bytes <= ROW_BYTES && !rows == !row_bytes : !rows && !row_bytes);
        if (i < TILES)
            tiles[i] = {rows, row_bytes, {}};
    }
    configured = true;
}
inline void release() { configured = false; }

inline void zero(int number) { memset(tile(number).data, 0, sizeof(Tile::data)); }
inline void load(int number, const void *from, int64_t stride) {
    Tile &to = tile(number);
    zero(number);
    for (int row = 0; row < to.rows; row++)
        memcpy(to.data[row], static_cast<const char *>(from) + row * stride, static_cast<size_t>(to.row_bytes));
}
inline void store(int number, void *to, int64_t stride) {
    const Tile &from = tile(number);
    for (int row = 0; row < from.rows; row++)
        memcpy(static_cast<char *>(to) + row * stride, from.data[row], static_cast<size_t>(from.row_bytes));
}

template <class Number> Number number_of(const Tile &from, int row, int place) {
    Number number;
    memcpy(&number, from.data[row] + place * static_cast<int>(sizeof number), sizeof number);
    return number;
}
template <class Number> void put(Tile &to, int row, int place, Number number) {
    memcpy(to.data[row] + place * static_cast<int>(sizeof number), &number, sizeof number);
}

// a [m, 4 k bytes] and b [k, 4 n bytes] fit each other and to [m, 4 n bytes].
inline void demand_fit(const Tile &to, const Tile &a, const Tile &b) {
    demand(&to != &a && &to != &b && &a != &b);
    demand(to.rows == a.rows && to.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows && to.row_bytes % 4 == 0);
}

inline float without_denormals(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
inline float bf16_of(const Tile &from, int row, int place) {
    const uint32_t bits = static_cast<uint32_t>(number_of<uint16_t>(from, row, place)) << 16;
    float number;
    memcpy(&number, &bits, 4);
    return without_denormals(number);
}

// The even and the odd products are summed by themselves, then together, then onto what the tile holds.
inline void multiply_bf16(int to_number, int a_number, int b_number) {
    Tile &to = tile(to_number);
    const Tile &a = tile(a_number), &b = tile(b_number);
    demand_fit(to, a, b);
    for (int m = 0; m < to.rows; m++)
        for (int n = 0; n < to.row_bytes / 4; n++) {
            float sums[2] = {0, 0};
            for (int k = 0; k < b.rows; k++)
                for (int odd = 0; odd < 2; odd++)
                    sums[odd] = without_denormals(
                        fmaf(bf16_of(a, m, 2 * k + odd), bf16_of(b, k, 2 * n + odd), sums[odd]));
            const float sum = without_denormals(sums[0] + sums[1]);
            put(to, m, n, without_denormals(without_denormals(number_of<float>(to, m, n)) + sum));
        }
}

// Bytes, of which one side may be unsigned; sums wrap around, as those of 32 bits do.
template <class Left, class Right> void multiply_bytes(int to_number, int a_number, int b_number) {
    Tile &to = tile(to_number);
    const Tile &a = tile(a_number), &b = tile(b_number);
    demand_fit(to, a, b);
    for (int m = 0; m < to.rows; m++)
        for (int n = 0; n < to.row_bytes / 4; n++) {
            auto sum = number_of<uint32_t>(to, m, n);
            for (int k = 0; k < a.row_bytes; k++)
                sum += static_cast<uint32_t>(number_of<Left>(a, m, k) * number_of<Right>(b, k / 4, 4 * n + k % 4));
            put(to, m, n, sum);
        }
}
inline void multiply_int8(int to, int a, int b) { multiply_bytes<int8_t, int8_t>(to, a, b); }
inline void multiply_int8_uint8(int to, int a, int b) { multiply_bytes<int8_t, uint8_t>(to, a, b); }
inline void multiply_uint8_int8(int to, int a, int b) { multiply_bytes<uint8_t, int8_t>(to, a, b); }

} // namespace emulated
} // namespace gyrfalcon

#undef _tile_loadd // GCC's are macros
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#define _tile_loadconfig gyrfalcon::emulated::configure
#define _tile_release gyrfalcon::emulated::release
#define _tile_loadd gyrfalcon::emulated::load
#define _tile_stored gyrfalcon::emulated::store
#define _tile_zero gyrfalcon::emulated::zero
#define _tile_dpbf16ps gyrfalcon::emulated::multiply_bf16
#define _tile_dpbssd gyrfalcon::emulated::multiply_int8
#define _tile_dpbsud gyrfalcon::emulated::multiply_int8_uint8
#define _tile_dpbusd gyrfalcon::emulated::multiply_uint8_int8
