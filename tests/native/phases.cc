// Phases that read what the one before has written, on threads that come when they will.

#include "phases.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Numbers = std::vector<int64_t>;

// A thread for every call, which runs before the next is asked for.
struct Pool {
  std::vector<std::thread> threads;

  template <typename Call>
  void Schedule(Call&& call) {
    std::atomic<bool> runs{false};
    threads.emplace_back([&runs, call = std::forward<Call>(call)] {
      runs = true;
      call();
    });
    while (!runs) std::this_thread::yield();
  }
  ~Pool() {
    for (std::thread& thread : threads) thread.join();
  }
};

int64_t next_of(const Numbers& all, int64_t item) {
  int64_t sum = item;
  for (const int64_t number : all) sum += number;
  return sum % 1009;
}

Numbers after_phases(int64_t threads, int64_t phases, int64_t items) {
  Numbers numbers[2] = {Numbers(items), Numbers(items)};
  Pool pool;
  flax_lstm::in_phases(pool, threads, phases, items, [&](int64_t phase, int64_t item) {
    numbers[(phase + 1) % 2][item] = next_of(numbers[phase % 2], item);
  });
  return numbers[phases % 2];
}

}  // namespace

int main() {
  constexpr int64_t kPhases = 30;
  for (int round = 0; round < 20; ++round) {
    for (int64_t items = 0; items < 8; ++items) {
      const Numbers expected = after_phases(1, kPhases, items);
      for (int64_t threads = 2; threads < 5; ++threads) {
        if (after_phases(threads, kPhases, items) == expected) continue;
        std::printf("%d threads, %d items\n", int(threads), int(items));
        return 1;
      }
    }
  }
  return 0;
}
