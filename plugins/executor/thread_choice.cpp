#include "plugins/executor/thread_choice.h"

#include <algorithm>

namespace vimtrt {
namespace {

// Longer runs gain from more threads beside a busy process too: their threads take turns with it (threads.h).
constexpr double kShortSeconds = 2e-3;

constexpr int kTrials = 4;       // runs in a row that take the other choice
constexpr int kLeastGap = 64;    // runs between trials
constexpr double kCost = 0.01;   // share of all time that trials may cost
constexpr double kWeight = 0.2;  // of the newest run
constexpr size_t kMaxBatches = 64;

double smoothed(double before, double now) { return before == 0 ? now : before + kWeight * (now - before); }

}  // namespace

int ThreadChoice::choose(int64_t batch, int threads) {
  if (threads == 1) return 1;
  const auto found = batches_.find(batch);
  if (found == batches_.end()) return threads;
  Batch& b = found->second;
  const bool is_trial = b.trials_left > 0;
  return b.prefers_alone != is_trial ? 1 : threads;
}

void ThreadChoice::record(int64_t batch, int threads, double seconds) {
  if (batches_.size() >= kMaxBatches && batches_.find(batch) == batches_.end()) batches_.clear();
  Batch& b = batches_[batch];
  double& mean = threads == 1 ? b.alone : b.all;
  // A run that lost its processor for long says little of the choice.
  mean = smoothed(mean, mean == 0 ? seconds : std::min(seconds, 4 * mean));
  if (b.trials_left > 0) {
    if (--b.trials_left > 0) return;  // both are compared when the trial is over
  } else if (b.until_trial > 0) {
    --b.until_trial;
  } else if (std::max(b.all, b.alone) < kShortSeconds) {
    b.trials_left = kTrials;
    b.until_trial = kLeastGap;
    if (b.all > 0 && b.alone > 0) {
      const double slowdown = std::max(b.all, b.alone) / std::min(b.all, b.alone) - 1;
      b.until_trial = std::max(kLeastGap, static_cast<int>(std::min(kTrials * slowdown / kCost, 1e6)));
    }
    return;
  }
  b.prefers_alone = b.all > 0 && b.alone > 0 && b.alone < b.all;
}

}  // namespace vimtrt
