// What ThreadChoice makes of runs whose times are given: thread_choice THREADS ALL ALONE RUNS [ALL ALONE RUNS]..., in
// seconds. Prints for each three the number of its last half of runs that took one thread.
#include "plugins/executor/thread_choice.h"

#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
  vimtrt::ThreadChoice choice;
  const int threads = std::atoi(arguments[1]);
  for (int i = 2; i + 2 < count; i += 3) {
    const double all = std::atof(arguments[i]), alone = std::atof(arguments[i + 1]);
    const int runs = std::atoi(arguments[i + 2]);
    int one = 0;
    for (int run = 0; run < runs; ++run) {
      const int taken = choice.choose(1, threads);
      choice.record(1, taken, taken == 1 ? alone : all);
      if (run >= runs / 2 && taken == 1) ++one;
    }
    std::printf("%d\n", one);
  }
}
