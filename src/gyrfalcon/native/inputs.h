// Packs a linear's input, its tokens, in the form its kernel reads.
#pragma once
#include "kernels.h"

namespace gyrfalcon {

// Up to so many, weights are streamed and tokens stay in cache; with more it is the other way round.
constexpr int64_t FEW_TOKENS = 32;

// All tokens of a term, the input number `place` of a call, whose memory is its own until the next call.
Tokens prepack(const Kernels &kernels, const gf_term &term, int place, int64_t tokens, int kind);

// What multiplies tokens of a kind with weights of a kind.
Arithmetic arithmetic_of(const Kernels &kernels, int weight_kind, int64_t tokens, int kind);

// `count` of them from `first` on, where a tile and a group of tokens begin.
Tokens slice(const Tokens &all, int64_t first, int64_t count, int64_t columns);

} // namespace gyrfalcon
