// What the library exports (kernels/cpu/native.py calls it): each op by compute type. A pointer to a function is
// exported, so that a template's instance need not be written out again.
#include "attention.h"
#include "attention_backward.h"
#include "batch_norm.h"
#include "convolution.h"
#include "convolution_backward.h"
#include "feed_forward.h"
#include "feed_forward_backward.h"
#include "input_embed.h"
#include "mix_pool.h"
#include "plan.h"
#include "weight_gradient.h"

// A library for other machines asks for no newer C library than PyTorch does (2.28). glibc 2.29 gave these functions a
// new version, which sets errno otherwise and computes the same.
#ifdef ASTROCO_PREBUILT
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver pow, pow@GLIBC_2.2.5");
#endif

#define EXPORT_AS(symbol, ...) \
  extern "C" __attribute__((visibility("default"))) constexpr auto* const symbol = &astroco::__VA_ARGS__;
#ifdef __AVX512BF16__
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>) EXPORT_AS(name##_bf16, name<astroco::bf16>)
#else
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>)
#endif

EXPORT(pack)
#ifdef __AVX512VNNI__
EXPORT_AS(pack_i8, pack<int8_t>)
EXPORT_AS(attention_i8, attention<int8_t>)
EXPORT_AS(convolution_i8, convolution<int8_t>)
EXPORT_AS(feed_forward_i8, feed_forward<int8_t>)
#endif
EXPORT(weight_gradient)
EXPORT(attention)
EXPORT(attention_backward)
EXPORT(convolution)
EXPORT(convolution_depthwise)
EXPORT(convolution_out)
EXPORT(convolution_backward_out)
EXPORT(convolution_backward_in)
EXPORT(feed_forward)
EXPORT(feed_forward_backward)
EXPORT(input_embed)
EXPORT(input_embed_backward)
EXPORT_AS(batch_norm_merge, batch_norm_merge)
EXPORT_AS(mix, mix)
EXPORT_AS(mix_add, mix_add)
EXPORT_AS(mix_backward, mix_backward)
EXPORT_AS(dropout_mask, dropout_mask)
EXPORT_AS(run_plan, run_plan)
EXPORT_AS(checksum, checksum)
