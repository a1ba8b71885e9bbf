// What the library exports, called through ctypes (kernels/cpu/native.py): each op by compute type.
#include "feed_forward.h"
#include "feed_forward_backward.h"
#include "weight_gradient.h"

using namespace astroco;

#define EXPORT_AS(symbol, ...) extern "C" constexpr auto* const symbol = &__VA_ARGS__;
#ifdef __AVX512BF16__
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>) EXPORT_AS(name##_bf16, name<bf16>)
#else
#define EXPORT(name) EXPORT_AS(name##_f32, name<float>)
#endif

EXPORT(pack_weight)
EXPORT(weight_gradient)
EXPORT(feed_forward)
EXPORT(feed_forward_backward)
