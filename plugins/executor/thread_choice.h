// How many threads a run of a program takes: all it may, or the caller's alone.
//
// With a processor for each thread, all are the quicker choice. Where another process wants a processor, a run of less
// than a time slice can be quicker alone: what its threads gain by sharing the work is less than what it costs to wait
// for each other. Which it is only the clock can say, so now and then a few runs take the other choice.
#pragma once

#include <cstdint>
#include <map>

namespace vimtrt {

class ThreadChoice {
 public:
  // The number for the next run of a batch. `threads`: all it may take.
  int choose(int64_t batch, int threads);
  // What the run took.
  void record(int64_t batch, int threads, double seconds);
  // The number of threads has changed.
  void forget() { batches_.clear(); }

 private:
  struct Batch {
    double all = 0, alone = 0;  // smoothed seconds, 0: not known
    bool prefers_alone = false;
    int until_trial = 0;  // runs
    int trials_left = 0;
  };
  std::map<int64_t, Batch> batches_;
};

}  // namespace vimtrt
