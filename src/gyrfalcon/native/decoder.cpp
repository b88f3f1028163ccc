// All blocks of a step in one call. With several ranks, each block ends with an all-reduce (all_reduce.cpp).
#include "kernels.h"
#include "operations.h"

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
    const gf_queries *queries;
    char *memory;
    int64_t tokens;
    int kind;
};

// `part` is the previous block's output, not yet added to x, or null.
void run_block(const gf_block &block, const gf_cache &cache, const void *part, const Step &step) {
    const int64_t tokens = step.tokens;
    const int kind = step.kind;
    const Activations each(block, kind);
    gf_norm norms[2] = {block.norms[0], block.norms[1]};
    char *qkv = step.memory;
    for (int i = 0; i < block.num_norms; i++, qkv += tokens * each.normed)
        norms[i].y = qkv;
    char *up = qkv + tokens * each.qkv, *q = up + tokens * each.up, *heads = q + tokens * each.heads;

    add_layer_norms(step.x, part, step.x, norms, block.num_norms, tokens, block.qkv.columns, block.eps, kind);
    const void *mlp_input = norms[block.num_norms - 1].y;
    const gf_output made[] = {{qkv, nullptr, {{block.qkv, norms[0].y}, {}}, 1, GF_NONE},
                              {up, nullptr, {{block.up, mlp_input}, {}}, 1, block.activation}};
    linears(made, 2, tokens, kind);
    const int64_t group = block.qkv.rows / (cache.kv_heads * cache.dim) - 2;
    rotary_and_cache(qkv, step.cosines, step.sines, cache, step.slots, q, tokens, group, kind);
    gf_queries queries = *step.queries;
    queries.q = q;
    queries.out = heads;
    queries.slopes = block.slopes;
    queries.heads = group * cache.kv_heads;
    attention(queries, cache, kind);
    const gf_output total = {step.y, nullptr, {{block.dense, heads}, {block.down, up}}, 2, GF_NONE};
    linears(&total, 1, tokens, kind);
}

} // namespace
} // namespace gyrfalcon

extern "C" int64_t gf_block_bytes(const gf_block *block, int kind) {
    return gyrfalcon::Activations(*block, kind).bytes(*block);
}

extern "C" int gf_run_blocks(const gf_block *blocks, const gf_cache *caches, int num_blocks, void *x, void *y,
                             const float *cosines, const float *sines, const int64_t *slots, const gf_queries *queries,
                             void *memory, int64_t tokens, int kind, void *shared, int64_t *progress) {
    const gyrfalcon::Step step{x, y, cosines, sines, slots, queries, static_cast<char *>(memory), tokens, kind};
    int status = 0;
    for (int i = 0; i < num_blocks && !status; i++) {
        status = gyrfalcon::one_at_a_time([&] { gyrfalcon::run_block(blocks[i], caches[i], i ? y : nullptr, step); });
        if (!status && shared && gf_sum(shared, y, tokens * blocks[i].qkv.columns, kind))
            status = -2;
        if (!status)
            __atomic_store_n(progress, *progress + 1, __ATOMIC_RELAXED); // another thread reads it
    }
    return status;
}
