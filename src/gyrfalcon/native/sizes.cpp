// How this library lays out the structures of its interface, for callers that declare them again.
#include "gyrfalcon.h"

#include <initializer_list>
#include <stddef.h>
#include <string>

namespace {

struct Field {
    const char *name;
    size_t offset;
    size_t size;
};

std::string line(const char *name, size_t size, std::initializer_list<Field> fields) {
    std::string text = std::string(name) + " " + std::to_string(size);
    for (const Field &field : fields)
        text += std::string(" ") + field.name + " " + std::to_string(field.offset) + " " + std::to_string(field.size);
    return text + "\n";
}

std::string all_lines() {
#define FIELD(type, field) Field{#field, offsetof(type, field), sizeof(static_cast<type *>(nullptr)->field)}
#define OF(field) FIELD(gf_matrix, field)
    std::string text =
        line("gf_matrix", sizeof(gf_matrix), {OF(data), OF(scales), OF(rows), OF(columns), OF(kind), OF(group)});
#undef OF
#define OF(field) FIELD(gf_term, field)
    text += line("gf_term", sizeof(gf_term), {OF(weight), OF(x)});
#undef OF
#define OF(field) FIELD(gf_output, field)
    text += line("gf_output", sizeof(gf_output), {OF(y), OF(bias), OF(terms), OF(num_terms), OF(activation)});
#undef OF
#define OF(field) FIELD(gf_norm, field)
    text += line("gf_norm", sizeof(gf_norm), {OF(weight), OF(bias), OF(y)});
#undef OF
#define OF(field) FIELD(gf_cache, field)
    text += line("gf_cache", sizeof(gf_cache), {OF(keys), OF(values), OF(block_size), OF(kv_heads), OF(dim)});
#undef OF
#define OF(field) FIELD(gf_queries, field)
    text += line(
        "gf_queries", sizeof(gf_queries),
        {OF(q), OF(tables), OF(starts), OF(contexts), OF(slopes), OF(out), OF(sequences), OF(heads), OF(table_stride)});
#undef OF
#define OF(field) FIELD(gf_rows, field)
    text += line("gf_rows", sizeof(gf_rows), {OF(rows), OF(count), OF(queries)});
#undef OF
#define OF(field) FIELD(gf_block, field)
    text += line("gf_block", sizeof(gf_block),
                 {OF(norms), OF(qkv), OF(up), OF(dense), OF(down), OF(slopes), OF(num_norms), OF(activation), OF(eps)});
#undef OF
#define OF(field) FIELD(gf_draw, field)
    text += line("gf_draw", sizeof(gf_draw), {OF(temperature), OF(top_p), OF(min_p), OF(chance), OF(top_k)});
    return text;
}

} // namespace

extern "C" const char *gf_sizes(void) {
    static const std::string text = all_lines();
    return text.c_str();
}
