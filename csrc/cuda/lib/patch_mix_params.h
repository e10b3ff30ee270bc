// The arguments of patch_mix as its CUDA kernels see them.
#pragma once

#include "cuda/lib/images.h"
#include "cuda/patch_mix.cuh"

namespace fastmix {

inline PatchMixParams patch_mix_params(const char* op, const RowsLike& rows, const Tensor& partner, const Tensor& mask,
                                       const Tensor& lam) {
  PatchMixParams a{};
  a.src = rows.in.data;
  a.src_stride = rows.in.stride;
  a.dst = rows.out();
  a.shape = image_shape(op, rows.in);
  a.partner = static_cast<const int64_t*>(partner.const_data_ptr());
  a.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  a.lam = static_cast<const float*>(lam.const_data_ptr());
  a.lam_step = lam.dim() == 0 ? 0 : 1;
  a.h = static_cast<int>(mask.size(1));
  a.w = static_cast<int>(mask.size(2));
  return a;
}

}  // namespace fastmix
