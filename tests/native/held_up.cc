// A thread that is held up while it waits for a phase's end holds up no other.

#include "phases.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <thread>
#include <utility>

namespace {

std::atomic<bool> is_held{false};
std::atomic<bool> is_released{false};

// The operating system's scheduler in a test: it runs on the thread that it holds up.
void hold_up(int) {
  is_held = true;
  while (!is_released) {
  }
}

// One other thread.
struct Pool {
  std::thread thread;

  template <typename Call>
  void Schedule(Call&& call) {
    thread = std::thread(std::forward<Call>(call));
  }
  ~Pool() {
    is_released = true;
    thread.join();
  }
};

}  // namespace

int main() {
  std::signal(SIGUSR1, hold_up);
  std::atomic<int64_t> ended_first{0};
  Pool pool;
  const std::thread::id caller = std::this_thread::get_id();
  flax_lstm::in_phases(pool, 2, 3, 2, [&](int64_t phase, int64_t) {
    if (phase > 0) return;
    if (std::this_thread::get_id() != caller) {
      ++ended_first;
      return;
    }
    // The other thread has ended its item, and by then waits for this one's end.
    while (ended_first == 0) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    pthread_kill(pool.thread.native_handle(), SIGUSR1);
    while (!is_held) std::this_thread::yield();
  });
  return 0;  // Which a caller that waits for the other thread never reaches.
}
