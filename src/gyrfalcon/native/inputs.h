// Tokens made ready for products.
#pragma once
#include "kernels.h"

namespace gyrfalcon {

constexpr int64_t FEW_TOKENS = 32; // up to so many the weights stream by, instead of the tokens

// All tokens of a term, the input number `place` of a call: its memory is its own until the next call.
Tokens ready(const Kernels &kernels, const gf_term &term, int place, int64_t tokens, int kind);

// `count` of them from `first` on, which begins a panel and a group of turned ones.
Tokens some(const Tokens &all, int64_t first, int64_t count, int64_t columns);

} // namespace gyrfalcon
