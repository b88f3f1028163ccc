// Runs one operation of the native kernels for a test in Python that cannot load them: those built for another
// processor. Standard input: how many numbers and buffers there are, the numbers (int64; the first chooses the
// operation), then each buffer's size and bytes. Standard output: the last buffer's bytes afterwards.
#include "gyrfalcon.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

static std::vector<int64_t> numbers;
static std::vector<std::vector<char>> buffers;

static void read_into(void *to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes)
        exit(3);
}

static int arg(size_t i) { return static_cast<int>(numbers[i]); }
static void *buffer(size_t i) { return buffers[i].empty() ? nullptr : buffers[i].data(); }

// x, weight, scales, y
static int products() {
    gf_matrix weight{buffer(1), buffer(2), numbers[2], numbers[3], arg(4), arg(5)};
    gf_output output{buffer(3), nullptr, {{weight, buffer(0)}, {}}, 1, GF_GELU};
    return gf_linears(&output, 1, numbers[1], arg(6));
}

// x, part, weight, bias, sum, y
static int add_layer_norms() {
    gf_norm norm{buffer(2), buffer(3), buffer(5)};
    return gf_add_layer_norms(buffer(0), buffer(1), buffer(4), &norm, 1, numbers[1], numbers[2], 1e-5f, arg(3));
}

// q, keys, values, tables, starts, contexts, slopes, out
static int attention() {
    gf_cache cache{buffer(1), buffer(2), numbers[1], numbers[2], numbers[3]};
    gf_queries queries{};
    queries.q = buffer(0);
    queries.tables = static_cast<int64_t *>(buffer(3));
    queries.starts = static_cast<int64_t *>(buffer(4));
    queries.contexts = static_cast<int64_t *>(buffer(5));
    queries.slopes = static_cast<float *>(buffer(6));
    queries.out = buffer(7);
    queries.sequences = numbers[4];
    queries.heads = numbers[5];
    queries.table_stride = numbers[6];
    return gf_attention(&queries, &cache, arg(7));
}

int main() {
    int64_t counts[2], size;
    read_into(counts, sizeof counts);
    numbers.resize(static_cast<size_t>(counts[0]));
    read_into(numbers.data(), numbers.size() * sizeof numbers[0]);
    for (int64_t i = 0; i < counts[1]; i++) {
        read_into(&size, sizeof size);
        buffers.emplace_back(static_cast<size_t>(size));
        read_into(buffers.back().data(), buffers.back().size());
    }
    gf_use_threads(2);
    int (*operations[])() = {products, add_layer_norms, attention};
    if (operations[arg(0)]())
        return 4;
    fwrite(buffers.back().data(), 1, buffers.back().size(), stdout);
    return 0;
}
