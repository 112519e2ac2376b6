// Stacks that can be left and entered again: one for each CUDA thread. Switching costs a few nanoseconds on x86-64;
// elsewhere it goes through the C library.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

#ifdef EMU_UCONTEXT

struct Fiber {
    ucontext_t context;
};

inline void fiber_prepare(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

inline void fiber_switch(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#else

// Where the stack of a fiber that does not run ends: the registers that a call keeps lie there.
struct Fiber {
    void* stack_pointer;
};

extern "C" __attribute__((visibility("hidden"))) void emu_fiber_switch(void** from, void* to);
asm(R"(
    .text
    .hidden emu_fiber_switch
    .globl emu_fiber_switch
    .type emu_fiber_switch, @function
emu_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_fiber_switch, . - emu_fiber_switch
)");

inline void fiber_prepare(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
    // The stack of `entry` looks as if it had been called from nowhere.
    uint64_t* top = (uint64_t*)((uintptr_t)(stack + bytes) & ~(uintptr_t)63);
    *--top = 0;
    *--top = (uint64_t)entry;
    for (int saved = 0; saved < 6; saved++) {
        *--top = 0;
    }
    fiber.stack_pointer = top;
}

inline void fiber_switch(Fiber& from, Fiber& to) { emu_fiber_switch(&from.stack_pointer, to.stack_pointer); }

#endif

// Enough for a kernel with two tiles of accumulators; what grows beyond it meets a page that may not be touched.
constexpr size_t STACK_BYTES = 32 * 1024;

// The stacks of all fibers, in one mapping that takes memory as it is used.
class Stacks {
   public:
    explicit Stacks(size_t count) : guard_((size_t)sysconf(_SC_PAGESIZE)) {
        void* all = mmap(nullptr, count * pitch(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
        if (all == MAP_FAILED) {
            perror("emu: no memory for stacks");
            abort();
        }
        base_ = (char*)all;
        for (size_t i = 0; i < count; i++) {
            mprotect(base_ + i * pitch(), guard_, PROT_NONE);
        }
    }

    // Stacks begin at different places of a page: the hot ends of 1,024 of them would otherwise share a few cache sets.
    void prepare(Fiber& fiber, size_t i, void (*entry)()) {
        size_t shift = i * 5 % 64 * 64;
        fiber_prepare(fiber, start(i), STACK_BYTES + guard_ - shift, entry);
    }

    char* start(size_t i) const { return base_ + i * pitch() + guard_; }
    char* end(size_t i) const { return base_ + (i + 1) * pitch(); }

   private:
    size_t pitch() const { return STACK_BYTES + 2 * guard_; }

    size_t guard_;
    char* base_ = nullptr;
};

}  // namespace emu
