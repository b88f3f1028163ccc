// The kernels of one instruction set, on the vectors of vectors.h. Included once by the file of each set, in a
// namespace of its own.
#include "linear.inl"
#include "widen.inl"
#include "widen_int4.inl"
#include "packed_words.inl"
#include "packed_tokens.inl"
#include "packed_float.inl"
#include "packed_int8.inl"
#include "packed_int4.inl"
#include "quantise.inl"
#include "epilogue.inl"
#include "layer_norm.inl"
#include "rotary.inl"
#include "attention.inl"
#include "float_attention.inl"
#include "sampling.inl"
#include "limits.inl"
#include "read_streams.inl"

const Kernels kernels = {NAME,
                         MR,
                         NR,
                         NR_INT16,
                         NR_INT8,
                         linear,
                         widen_int4,
                         pack_rows,
                         micro_kernel,
                         pack_int8_rows,
                         micro_kernel_int16,
                         pack_int4_rows,
                         micro_kernel_int4,
                         widen,
                         deinterleave,
                         narrow,
                         pack_tokens,
                         quantise_int8,
                         quantise_int16,
                         winograd_offset,
                         epilogue,
                         add_layer_norms,
                         rotate,
                         attend,
                         group_maxima,
                         weigh,
                         sum_weights,
                         read_streams,
                         {{MULTIPLY_FLOATS, multiply_floats},
                          {MULTIPLY_INT16, multiply_int16},
                          {MULTIPLY_INT8, multiply_int8}}};
