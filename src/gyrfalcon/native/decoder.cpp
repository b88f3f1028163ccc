// All blocks of a step in one call. With several ranks, each block ends with an all-reduce (all_reduce.cpp).
#include "kernels.h"
#include "operations.h"

#include <string.h>

namespace gyrfalcon {
namespace {

// Bytes of a block's activations per token, in the order in which they are laid out.
struct Activations {
    int64_t normed; // [tokens, hidden] of each norm
    int64_t qkv;
    int64_t up;
    int64_t heads; // twice: queries, and attention's output

    Activations(const gf_block &block, int kind)
        : normed(block.qkv.columns * bytes_of(kind)), qkv(block.qkv.rows * bytes_of(kind)),
          up(block.up.rows * bytes_of(kind)), heads(block.dense.columns * bytes_of(kind)) {}
    int64_t bytes(const gf_block &block) const { return block.num_norms * normed + qkv + up + 2 * heads; }
};

// What is the same for all blocks of a step.
struct Step {
    void *x;
    void *y;
    const float *cosines;
    const float *sines;
    const int64_t *slots;
    const gf_queries *queries; // of all tokens
    const gf_rows *rows;       // null: all
    char *memory;
    int64_t tokens;
    int kind;
};

// Moves the wanted rows of a matrix to its first rows.
void keep_rows(void *matrix, int64_t row_bytes, const gf_rows &wanted) {
    char *first = static_cast<char *>(matrix);
    for (int64_t i = 0; i < wanted.count; i++)
        memmove(first + i * row_bytes, first + wanted.rows[i] * row_bytes, row_bytes);
}

// `part` is the previous block's output, not yet added to x, or null. The last block goes on with the step's rows alone
// once keys and values of all tokens are cached: nobody reads more of the others. Returns how many tokens y has.
int64_t run_block(const gf_block &block, const gf_cache &cache, const void *part, const Step &step, bool is_last) {
    const int64_t tokens = step.tokens;
    const int kind = step.kind;
    const gf_rows *wanted = is_last ? step.rows : nullptr;
    const Activations each(block, kind);
    gf_norm norms[2] = {block.norms[0], block.norms[1]};
    char *qkv = step.memory;
    for (int i = 0; i < block.num_norms; i++, qkv += tokens * each.normed)
        norms[i].y = qkv;
    char *up = qkv + tokens * each.qkv, *q = up + tokens * each.up, *heads = q + tokens * each.heads;

    add_layer_norms(step.x, part, step.x, norms, block.num_norms, tokens, block.qkv.columns, block.eps, kind);
    void *mlp_input = norms[block.num_norms - 1].y;
    const gf_output made[] = {{qkv, nullptr, {{block.qkv, norms[0].y}, {}}, 1, GF_NONE},
                              {up, nullptr, {{block.up, mlp_input}, {}}, 1, block.activation}};
    linears(made, wanted ? 1 : 2, tokens, kind);
    const int64_t group = block.qkv.rows / (cache.kv_heads * cache.dim) - 2;
    rotary_and_cache(qkv, step.cosines, step.sines, cache, step.slots, q, tokens, group, kind);
    if (wanted) {
        keep_rows(step.x, each.normed, *wanted);
        keep_rows(mlp_input, each.normed, *wanted);
        keep_rows(q, each.heads, *wanted);
        linears(made + 1, 1, wanted->count, kind);
    }
    const int64_t rows = wanted ? wanted->count : tokens;
    gf_queries queries = wanted ? wanted->queries : *step.queries;
    queries.q = q;
    queries.out = heads;
    queries.slopes = block.slopes;
    queries.heads = group * cache.kv_heads;
    attention(queries, cache, kind);
    const gf_output total = {step.y, nullptr, {{block.dense, heads}, {block.down, up}}, 2, GF_NONE};
    linears(&total, 1, rows, kind);
    return rows;
}

} // namespace
} // namespace gyrfalcon

extern "C" int64_t gf_block_bytes(const gf_block *block, int kind) {
    return gyrfalcon::Activations(*block, kind).bytes(*block);
}

extern "C" int gf_run_blocks(const gf_block *blocks, const gf_cache *caches, int num_blocks, void *x, void *y,
                             const float *cosines, const float *sines, const int64_t *slots, const gf_queries *queries,
                             const gf_rows *rows, void *memory, int64_t tokens, int kind, void *shared,
                             int64_t *progress) {
    const gyrfalcon::Step step{x, y, cosines, sines, slots, queries, rows, static_cast<char *>(memory), tokens, kind};
    int status = 0;
    for (int i = 0; i < num_blocks && !status; i++) {
        int64_t summed = 0;
        status = gyrfalcon::one_at_a_time([&] {
            summed = gyrfalcon::run_block(blocks[i], caches[i], i ? y : nullptr, step, i + 1 == num_blocks);
        });
        if (!status && shared && gf_sum(shared, y, summed * blocks[i].qkv.columns, kind))
            status = -2;
        if (!status)
            __atomic_store_n(progress, *progress + 1, __ATOMIC_RELAXED); // another thread reads it
    }
    return status;
}
