// A kernel that touches memory which is not there fails as a launch on a GPU does, instead of ending the process.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "block.h"

namespace emu {

struct Trap {
    bool installed;
    pthread_t thread;       // that runs the launch
    struct sigaction before;
    void* address;          // what was touched
    char* stack_end;        // of a stack for the lane that fails: its own may be what overflowed
};

inline Trap trap;

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

[[noreturn]] inline void trap_landing() {
    block.bad_address = true;
    fault("a kernel touched %p, which is neither its memory nor its stack", trap.address);
}

inline void trap_handler(int, siginfo_t* info, void* state) {
    if (!current || !pthread_equal(pthread_self(), trap.thread)) {
        // Not ours: the instruction runs again and meets the handler that was there before.
        sigaction(SIGSEGV, &trap.before, nullptr);
        trap.installed = false;
        return;
    }
    // The handler returns to the landing as if the lane had called it.
    trap.address = info->si_addr;
    auto& registers = ((ucontext_t*)state)->uc_mcontext;
    uintptr_t stack = (uintptr_t)trap.stack_end & ~(uintptr_t)63;
#ifdef __x86_64__
    registers.gregs[REG_RSP] = (greg_t)(stack - 8);
    registers.gregs[REG_RIP] = (greg_t)trap_landing;
#else
    registers.sp = stack;
    registers.pc = (uintptr_t)trap_landing;
#endif
}

// `handler_stack` is for threads that have no stack of their own for signals.
inline void install_trap(char* stack_end, char* handler_stack) {
    trap.thread = pthread_self();
    trap.stack_end = stack_end;
    stack_t for_signals;
    sigaltstack(nullptr, &for_signals);
    if (for_signals.ss_flags & SS_DISABLE) {
        for_signals = {handler_stack, 0, STACK_BYTES};
        sigaltstack(&for_signals, nullptr);
    }
    if (!trap.installed) {
        struct sigaction action = {};
        action.sa_sigaction = trap_handler;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &trap.before);
        trap.installed = true;
    }
}

#else

inline void install_trap(char*, char*) {}

#endif

}  // namespace emu
