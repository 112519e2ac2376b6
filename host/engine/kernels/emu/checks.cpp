// Checks of the emulation and of the stand-in driver: what is right passes with every seed, and each planted mistake
// shows with at least one of a few. Prints what failed; exits with the number of failures.
//
//   $CXX -O2 -std=c++17 -o checks checks.cpp && ./checks
#define EMU
#define KERNELS_SM90A

#include "../prelude.cuh"

#include <functional>

namespace checks {

int failures = 0;

void expect(bool holds, const char* what) {
    if (!holds) {
        printf("failed: %s\n", what);
        failures++;
    }
}

constexpr u32 SEEDS = 16;

// Runs a trial, which says whether its result is right, with several seeds.
void always_right(const char* what, const std::function<bool()>& trial) {
    for (u32 seed = 1; seed <= SEEDS; seed++) {
        emu::seed(seed);
        if (!trial()) {
            printf("failed with seed %u: %s\n", seed, what);
            failures++;
            return;
        }
    }
}

void sometimes_wrong(const char* what, const std::function<bool()>& trial) {
    for (u32 seed = 1; seed <= SEEDS; seed++) {
        emu::seed(seed);
        if (!trial()) {
            return;
        }
    }
    printf("not caught: %s\n", what);
    failures++;
}

// A kernel without a mistake, and with each of some: `trial(mistake)`, 0 for none.
void mistakes(const std::vector<const char*>& names, const std::function<bool(int mistake)>& trial) {
    always_right(names[0], [&] { return trial(0); });
    for (int mistake = 1; mistake < (int)names.size(); mistake++) {
        sometimes_wrong(names[mistake], [&] { return trial(mistake); });
    }
}

}  // namespace checks

#include "checks_kernels.h"
#include "checks_hopper.h"
#include "checks_driver.h"

int main() {
    checks::check_barriers();
    checks::check_shared_memory();
    checks::check_warps();
    checks::check_copies();
    checks::check_products();
    checks::check_memory();
    checks::check_mbarriers();
    checks::check_copy_engine();
    checks::check_warpgroups();
    checks::check_streams();
    checks::check_graphs();
    checks::check_driver_memory();
    checks::check_images();
    checks::check_faults();
    printf("%d failures\n", checks::failures);
    return checks::failures;
}
