// Work spread over the threads of a pool, which is XLA's own.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace flax_lstm {

// Returns when `ended` has reached `count`. Spins at first: what is waited for takes
// microseconds, unless its thread was preempted.
inline void wait_for(const std::atomic<int64_t>& ended, int64_t count) {
  constexpr int kPatience = 10000;
  for (int tries = 0; ended.load(std::memory_order_acquire) < count;) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (tries < kPatience) {
      ++tries;
    } else {
      std::this_thread::yield();
    }
  }
}

// Calls work(phase, item) for every item of every phase, on up to `threads` threads,
// and begins a phase only when the one before it has ended.
//
// A thread begins each phase with the same items, whose data is in its cache, and then
// takes items that no thread has begun. So no thread waits for one that has not started:
// if all others are busy, the caller does all the work itself.
//
// Throws std::bad_alloc, when all threads have ended, if a call of work did.
template <typename Pool, typename Work>
void in_phases(Pool& pool, int64_t threads, int64_t phases, int64_t items,
               const Work& work) {
  threads = std::min(threads, items);
  if (threads <= 1) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int64_t item = 0; item < items; ++item) work(phase, item);
    }
    return;
  }
  // A cache line each: they are written by several threads.
  struct alignas(64) Item {
    std::atomic<int64_t> phase{0};  // The next one, which no thread has begun.
  };
  struct Progress {
    explicit Progress(int64_t items) : items(items) {}
    std::vector<Item> items;
    alignas(64) std::atomic<int64_t> ended{0};
    std::atomic<bool> lacks_memory{false};
  };
  // A late thread finds nothing left but still looks, so this outlives the call.
  auto progress = std::make_shared<Progress>(items);
  const auto take_all = [progress, phases, items, &work](int64_t first) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      // Before it takes any: one that is held up meanwhile leaves them to the others.
      wait_for(progress->ended, phase * items);
      for (int64_t n = 0; n < items; ++n) {
        const int64_t item = first + n < items ? first + n : first + n - items;
        std::atomic<int64_t>& next = progress->items[item].phase;
        int64_t expected = phase;
        if (next.load(std::memory_order_relaxed) != phase ||
            !next.compare_exchange_strong(expected, phase + 1)) {
          continue;
        }
        try {
          work(phase, item);
        } catch (const std::bad_alloc&) {
          progress->lacks_memory = true;
        }
        progress->ended.fetch_add(1, std::memory_order_release);
      }
    }
  };
  for (int64_t other = 1; other < threads; ++other) {
    const int64_t first = other * items / threads;
    try {
      pool.Schedule([take_all, first] { take_all(first); });
    } catch (const std::bad_alloc&) {
      break;  // Go on with fewer threads: those that have begun use this call's data.
    }
  }
  take_all(0);
  wait_for(progress->ended, phases * items);
  if (progress->lacks_memory) throw std::bad_alloc();
}

// The part of `count` that belongs to share `item` of `items`: [begin, end).
struct Share {
  int64_t begin, end;
};

inline Share share_of(int64_t count, int64_t item, int64_t items) {
  return {item * count / items, (item + 1) * count / items};
}

}  // namespace flax_lstm
