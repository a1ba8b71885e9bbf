// What the library exports, called through ctypes (kernels/cpu/native.py): each op by compute type.
#include "attention.h"
#include "attention_backward.h"
#include "batch_norm.h"
#include "convolution.h"
#include "convolution_backward.h"
#include "feed_forward.h"
#include "feed_forward_backward.h"
#include "input_embed.h"
#include "masked_loss.h"
#include "mix_pool.h"
#include "weight_gradient.h"

#define EXPORT_AS(symbol, ...) \
  extern "C" __attribute__((visibility("default"))) constexpr auto* const symbol = &astroco::__VA_ARGS__;
#ifdef __AVX512BF16__
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>) EXPORT_AS(name##_bf16, name<astroco::bf16>)
#else
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>)
#endif

EXPORT_AS(dropout_scale, dropout_scale)
EXPORT(pack_weight)
EXPORT(weight_gradient)
EXPORT(attention)
EXPORT(attention_backward)
EXPORT(convolution)
EXPORT(convolution_depthwise)
EXPORT(convolution_out)
EXPORT(convolution_backward_out)
EXPORT(convolution_backward_in)
EXPORT_AS(batch_norm_merge, batch_norm_merge)
EXPORT(feed_forward)
EXPORT(feed_forward_backward)
EXPORT(input_embed)
EXPORT(input_embed_backward)
EXPORT_AS(mix, mix)
EXPORT_AS(mix_backward, mix_backward)
EXPORT_AS(squared_error, squared_error)
EXPORT_AS(squared_error_backward, squared_error_backward)
