// The C interface of the native operations. ops/reference.py defines what each computes; shapes and pointers are
// described here. An operation returns 0, or -1 where memory ran out.
//
// Tensors are contiguous, in the order of their shape. `kind` says how numbers are stored.
#pragma once
#include <stdint.h>

#if defined(__GNUC__)
#define GF_EXPORT __attribute__((visibility("default")))
#endif

#if defined(__cplusplus)
extern "C" {
#endif

enum gf_kind { GF_F32 = 0, GF_BF16 = 1, GF_F16 = 2, GF_I8 = 3, GF_I4 = 4 };
enum gf_activation { GF_NONE = 0, GF_GELU = 1, GF_GELU_TANH = 2, GF_RELU = 3, GF_SILU = 4 };

// A weight matrix [rows, columns]. i8: `scales` is float32 [rows]. i4: `data` is [rows / 16, columns / 64, 8 words,
// 16 rows, 4 bytes], where byte b of word w holds column 4w + b in its low half and column 4w + b + 32 in its high half,
// as value + 8; `scales` is bfloat16 [rows / 16, columns / group, 16 rows].
struct gf_matrix {
    const void *data;
    const void *scales;
    int64_t rows;
    int64_t columns;
    int32_t kind;
    int32_t group;
};

// One term of an output: x weightᵀ, with x [tokens, columns].
struct gf_term {
    struct gf_matrix weight;
    const void *x;
};

// y = activation(sum of the terms + bias): y [tokens, rows], bias [rows] or null.
struct gf_output {
    void *y;
    const void *bias;
    struct gf_term terms[2];
    int32_t num_terms;
    int32_t activation;
};

// Layer normalisations of one input: y = norm(x) × weight + bias, all [tokens, hidden] or [hidden].
struct gf_norm {
    const void *weight;
    const void *bias;
    void *y;
};

// Keys and values of one layer, [blocks, block_size, kv_heads, dim].
struct gf_cache {
    void *keys;
    void *values;
    int64_t block_size;
    int64_t kv_heads;
    int64_t dim;
};

// New queries of all sequences, one after the other: q and out [tokens, heads, dim]; tables
// [sequences, table_stride]; starts [sequences + 1]; contexts [sequences]; slopes [heads] or null.
struct gf_queries {
    const void *q;
    const int64_t *tables;
    const int64_t *starts;
    const int64_t *contexts;
    const float *slopes;
    void *out;
    int64_t sequences;
    int64_t heads;
    int64_t table_stride;
};

// How a row's token is drawn: temperature 0 takes the most likely one, top_k 0 leaves out none; chance is in [0, 1).
struct gf_draw {
    double temperature;
    double top_p;
    double min_p;
    double chance;
    int64_t top_k;
};

// The instruction set in use; and choosing one by name, for tests: 0, or -1 where the CPU or the build lacks it.
GF_EXPORT const char *gf_instructions(void);
GF_EXPORT int gf_choose(const char *name);
// The names of those this CPU can run, best first, separated by spaces.
GF_EXPORT const char *gf_available(void);

// To how many bits activations are quantised for int8 weights, from now on: 16; 8 where the set in use multiplies bytes, 16
// where it does not; or 0, the faster on this CPU. 0, or -1 where no set of this CPU multiplies bytes. And the bits of the
// set in use.
GF_EXPORT int gf_use_activations(int bits);
GF_EXPORT int gf_activations(void);

// SHA-256 of the sources this was built from.
GF_EXPORT const char *gf_sources(void);
// A line for each structure: its name and size, then each field's name, offset and size.
GF_EXPORT const char *gf_sizes(void);

// The number of threads of every operation, the caller's own included.
GF_EXPORT void gf_use_threads(int threads);
// Pins each thread but the caller's to a CPU, the second to processors[1] and so on, from the next gf_use_threads on;
// none is pinned where there are not as many threads as processors.
GF_EXPORT void gf_use_processors(const int *processors, int count);

GF_EXPORT int gf_linears(const struct gf_output *outputs, int num_outputs, int64_t tokens, int kind);
// sum = x + part (part may be null); sum may be x itself.
GF_EXPORT int gf_add_layer_norms(const void *x, const void *part, void *sum, const struct gf_norm *norms, int num_norms,
                                 int64_t tokens, int64_t hidden, float eps, int kind);
// qkv [tokens, kv_heads, group + 2, dim]; cosines and sines [tokens, dim / 2] or null; slots [tokens]: a
// negative one is not cached; q [tokens, kv_heads × group, dim].
GF_EXPORT int gf_rotary_and_cache(const void *qkv, const float *cosines, const float *sines,
                                  const struct gf_cache *cache, const int64_t *slots, void *q, int64_t tokens,
                                  int64_t group, int kind);
GF_EXPORT int gf_attention(const struct gf_queries *queries, const struct gf_cache *cache, int kind);
// A token of each row of logits [rows, columns]. `forbids`: logits of -inf stand for tokens that may not be drawn. states
// [rows]: 0; 1 where a logit is NaN or infinite (with `forbids`, but -inf); -1 where none may be drawn.
GF_EXPORT int gf_draw_tokens(const float *logits, int64_t rows, int64_t columns, const struct gf_draw *draws,
                             int forbids, int64_t *tokens, int64_t *states);

// One rank's weights of a parallel block without biases. The norms' y are ignored.
struct gf_block {
    struct gf_norm norms[2]; // one serves both attention and MLP
    struct gf_matrix qkv;
    struct gf_matrix up;
    struct gf_matrix dense;
    struct gf_matrix down;
    const float *slopes;
    int32_t num_norms;
    int32_t activation;
    float eps;
};

// The tokens of a step whose logits are wanted, where these are not all: their numbers, ascending, and them as queries.
struct gf_rows {
    const int64_t *rows;
    int64_t count;
    struct gf_queries queries;
};

// All blocks of a step, each by gf_add_layer_norms, gf_linears, gf_rotary_and_cache, gf_attention, gf_linears and, where
// `shared` is not null, gf_sum over the ranks: x becomes the last block's input, y its output, not yet added; of `rows`
// alone, where that is not null, in their order. Queries' q and out are ignored; `memory` has gf_block_bytes per token;
// `progress` is raised by one after each block, for another thread to read. -2 where another rank has left.
GF_EXPORT int64_t gf_block_bytes(const struct gf_block *block, int kind);
GF_EXPORT int gf_run_blocks(const struct gf_block *blocks, const struct gf_cache *caches, int num_blocks, void *x,
                            void *y, const float *cosines, const float *sines, const int64_t *slots,
                            const struct gf_queries *queries, const struct gf_rows *rows, void *memory, int64_t tokens,
                            int kind, void *shared, int64_t *progress);

// The CPU's peaks, to be timed by the caller: every thread multiplies and adds in registers by an instruction, `rounds`
// times, and all threads' operations are returned (0 where the set in use lacks it); or the threads read `bytes` between
// them. Instructions go by name: all of the set in use, separated by spaces, the first in float32; and the one by which
// linears multiply that many tokens of `kind` with weights of `weight_kind`.
GF_EXPORT const char *gf_multiply_instructions(void);
GF_EXPORT const char *gf_instruction_for(int weight_kind, int64_t tokens, int kind);
GF_EXPORT int64_t gf_multiply_add(const char *instruction, int64_t rounds);
GF_EXPORT void gf_read(const void *from, int64_t bytes);

// Memory that all ranks of one machine share: a file of gf_shared_bytes zeros, which each of them joins once. Null where
// the system does not support it. All ranks call the same operations in the same order; one returns -1 when another rank
// has left or died.
GF_EXPORT int64_t gf_shared_bytes(int ranks);
GF_EXPORT void *gf_join(int file, int rank, int ranks);
GF_EXPORT void gf_leave(void *shared);
// All-reduce: x becomes the sum of all ranks' x, added in float32 in the order of the ranks, rounded once.
GF_EXPORT int gf_sum(void *shared, void *x, int64_t count, int kind);
// All-gather: all [ranks, bytes] receives every rank's `mine`.
GF_EXPORT int gf_gather(void *shared, const void *mine, int64_t bytes, void *all);

#if defined(__cplusplus)
}
#endif
