// The emulated tile instructions as C functions, for test_emulated_amx.py.
#include "emulated_amx.h"

extern "C" {
void configure(const void *from) { _tile_loadconfig(from); }
void release() { _tile_release(); }
void zero(int tile) { _tile_zero(tile); }
void load(int tile, const void *from, int64_t stride) { _tile_loadd(tile, from, stride); }
void store(int tile, void *to, int64_t stride) { _tile_stored(tile, to, stride); }
void multiply_bf16(int to, int a, int b) { _tile_dpbf16ps(to, a, b); }
void multiply_int8(int to, int a, int b) { _tile_dpbssd(to, a, b); }
void multiply_int8_uint8(int to, int a, int b) { _tile_dpbsud(to, a, b); }
void multiply_uint8_int8(int to, int a, int b) { _tile_dpbusd(to, a, b); }
}
