// Counters of finished blocks, by which the last block of a launch knows that it is: 0 before and after every launch.
#pragma once

#include <cstdint>

#include "cuda/lib/launch.h"

#ifndef FASTMIX_SIMT
#include <map>
#include <mutex>
#include <utility>
#endif

namespace fastmix {

// A counter for the next launch on a stream of the current device, or null: then another launch has to do what the last
// block would. Launches of one stream follow each other, so they share one; a launch that is captured has one for
// itself, since its graph may be replayed beside anything. The counters of a device are allocated and cleared once,
// which waits for the stream, and never freed.
#ifdef FASTMIX_SIMT
inline unsigned* finished_blocks(Stream) {
  static unsigned counter = 0;
  return &counter;
}
#else
inline unsigned* finished_blocks(Stream stream) {
  struct Counters {
    unsigned* first = nullptr;
    int streams = 0, captures = 0;
    std::map<Stream, int> of_stream;
  };
  constexpr int kStreams = 1 << 10, kCaptures = 1 << 16;
  static std::mutex mutex;
  static std::map<int, Counters> devices;
  int device = 0;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (cudaGetDevice(&device) != cudaSuccess || cudaStreamIsCapturing(stream, &capture) != cudaSuccess) return nullptr;
  const bool captured = capture != cudaStreamCaptureStatusNone;
  const std::lock_guard<std::mutex> lock(mutex);
  Counters& counters = devices[device];
  if (counters.first == nullptr) {
    if (captured) return nullptr;  // no memory can be cleared before the graph runs
    // Another thread may be capturing; this is no part of it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    const size_t bytes = (kStreams + kCaptures) * sizeof(unsigned);
    void* memory = nullptr;
    const bool ready = cudaMalloc(&memory, bytes) == cudaSuccess &&
                       cudaMemsetAsync(memory, 0, bytes, stream) == cudaSuccess &&
                       cudaStreamSynchronize(stream) == cudaSuccess;
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (!ready) {
      (void)cudaGetLastError();  // out of memory is no error of the operator: it goes on without
      return nullptr;
    }
    counters.first = static_cast<unsigned*>(memory);
  }
  if (captured) {
    return counters.captures < kCaptures ? counters.first + kStreams + counters.captures++ : nullptr;
  }
  const auto found = counters.of_stream.find(stream);
  if (found != counters.of_stream.end()) return counters.first + found->second;
  if (counters.streams == kStreams) return nullptr;
  counters.of_stream.emplace(stream, counters.streams);
  return counters.first + counters.streams++;
}
#endif

}  // namespace fastmix
