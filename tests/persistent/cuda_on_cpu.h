// What persistent.h needs of CUDA, on a CPU: a thread for each of a block's, all blocks
// at once. Slow; the order of threads and their waiting are as free as on a GPU.

#pragma once

#include <barrier>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#define __device__

struct alignas(16) float4 {
  float x, y, z, w;
};

struct Warp {
  std::barrier<> barrier{32};
  float lanes[32];
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / 32) {}

  std::barrier<> barrier;
  std::vector<Warp> warps;
};

struct Index {
  int x;
};

inline thread_local Index threadIdx, blockIdx;
inline thread_local Block* block;

inline void __syncthreads() { block->barrier.arrive_and_wait(); }

inline float __shfl_sync(unsigned, float value, int lane) {
  Warp& warp = block->warps[threadIdx.x / 32];
  warp.lanes[threadIdx.x % 32] = value;
  warp.barrier.arrive_and_wait();
  const float result = warp.lanes[lane];
  warp.barrier.arrive_and_wait();
  return result;
}

inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  return __shfl_sync(mask, value, threadIdx.x % 32 ^ lanes);
}

inline float __expf(float x) { return std::exp(x); }

inline float __fdividef(float x, float y) { return x / y; }

// Shared memory begins as NaN: what is read before it is written is seen.
template <typename Run>
void run_block(int index, int threads, int shared_floats, const Run& run) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float4> shared(shared_floats / 4, float4{nan, nan, nan, nan});
  Block shares(threads);
  std::vector<std::thread> all;
  for (int thread = 0; thread < threads; ++thread) {
    all.emplace_back([&, thread] {
      threadIdx = {thread};
      blockIdx = {index};
      block = &shares;
      run(&shared[0].x);
    });
  }
  for (std::thread& thread : all) thread.join();
}

template <typename Run>
void run_blocks(int64_t blocks, int threads, int shared_floats, const Run& run) {
  std::vector<std::thread> all;
  for (int index = 0; index < blocks; ++index) {
    all.emplace_back([&, index] { run_block(index, threads, shared_floats, run); });
  }
  for (std::thread& each : all) each.join();
}
