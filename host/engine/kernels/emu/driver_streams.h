// Work of streams: queued by calls, and run in an order that is drawn wherever streams, events and graphs leave it
// open. Some work runs early and some as late as a wait allows, so that both kinds of a missing wait show.
#pragma once

#include <chrono>
#include <deque>
#include <functional>

#include "driver_memory.h"

namespace standin {

using Work = std::function<void()>;

// Work with what comes before it, by number.
struct Node {
    Work work;
    std::vector<size_t> after;
};

struct Graph {
    std::vector<Node> nodes;
};

// A capture that streams take part in, each with the nodes that its next one comes after.
struct Capture {
    Graph graph;
    Stream* origin;
    pthread_t thread;
    int mode;
    bool invalid = false;
};

// A launch of a graph that is under way.
struct GraphRun {
    std::shared_ptr<const Graph> graph;
    std::vector<bool> done;
    size_t left;
};

// What a stream does next.
struct Item {
    Work work;
    std::function<bool()> ready;  // none: at once
    std::shared_ptr<GraphRun> run;
    bool marks_event = false;     // runs in a broken context as well
    // Other streams, and how much of their work comes before.
    std::vector<std::pair<std::shared_ptr<Stream>, u64>> after;
};

struct Stream {
    Context* context;
    bool blocking;  // waits for the default stream, and that for it
    int priority = 0;
    std::deque<Item> queue;
    u64 pushed = 0, finished = 0;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tail;
};

struct Event {
    bool timed;
    u64 recorded = 0, reached = 0;
    std::chrono::steady_clock::time_point time;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tail;
};

inline std::shared_ptr<Stream> default_stream(Context& context) {
    if (context.queues.empty()) {
        auto stream = std::make_shared<Stream>();
        stream->context = &context;
        stream->blocking = true;
        context.queues.push_back(stream);
    }
    return context.queues[0];
}

// Null, 1 and 2 are names of the default stream.
inline std::shared_ptr<Stream> find_stream(Context& context, void* handle) {
    return (uintptr_t)handle <= 2 ? default_stream(context) : context.streams.find(handle);
}

// Runs one node that can run.
inline void run_node(GraphRun& run) {
    const auto& nodes = run.graph->nodes;
    std::vector<size_t> ready;
    for (size_t i = 0; i < nodes.size(); i++) {
        bool waits = run.done[i];
        for (size_t before : nodes[i].after) {
            waits |= !run.done[before];
        }
        if (!waits) {
            ready.push_back(i);
        }
    }
    size_t chosen = ready[emu::draw_below((u32)ready.size())];
    nodes[chosen].work();
    run.done[chosen] = true;
    run.left--;
}

// Does one thing of a stream; false when it has to wait for others.
inline bool advance(Stream& stream) {
    Item& item = stream.queue.front();
    if (!stream.context->broken) {
        for (const auto& [other, pushed] : item.after) {
            if (other->finished < pushed) {
                return false;
            }
        }
        if (item.ready && !item.ready()) {
            return false;
        }
        if (item.run && item.run->left) {
            run_node(*item.run);
            if (item.run->left) {
                return true;
            }
        }
    }
    if (item.work && (!stream.context->broken || item.marks_event)) {
        item.work();
    }
    stream.queue.pop_front();
    stream.finished++;
    return true;
}

// Does one thing of any stream of any device; false when there is nothing to do.
inline bool step() {
    std::vector<Stream*> candidates;
    for (const Context& context : contexts) {
        for (const auto& stream : context.queues) {
            if (!stream->queue.empty()) {
                candidates.push_back(stream.get());
            }
        }
    }
    bool any = !candidates.empty();
    while (!candidates.empty()) {
        size_t which = emu::draw_below((u32)candidates.size());
        if (advance(*candidates[which])) {
            return true;
        }
        candidates.erase(candidates.begin() + which);
    }
    if (any) {
        fprintf(stderr, "stand-in: streams wait for each other\n");
        abort();
    }
    return false;
}

inline void drain(const Stream& stream) {
    while (!stream.queue.empty()) {
        step();
    }
}

inline void drain_all(Context& context) {
    for (const auto& stream : context.queues) {
        drain(*stream);
    }
}

// Streams that were destroyed stay until their work is done.
inline void forget_streams(Context& context) {
    auto& queues = context.queues;
    for (size_t i = queues.size(); i-- > 1;) {
        if (queues[i]->queue.empty() && !context.streams.find(queues[i].get())) {
            queues.erase(queues.begin() + i);
        }
    }
}

// Whether a call that waits or allocates would spoil a capture of this thread, or of any thread in the global mode.
inline bool capture_forbids(const Context& context) {
    bool forbids = false;
    for (const auto& stream : context.queues) {
        const auto& capture = stream->capture;
        bool concerns = capture && (capture->mode == 0 || (capture->mode == 1 && capture->thread == pthread_self()));
        if (concerns) {
            capture->invalid = true;
            forbids = true;
        }
    }
    return forbids;
}

inline void queue_item(const std::shared_ptr<Stream>& stream, Item item) {
    Context& context = *stream->context;
    auto base = default_stream(context);
    for (const auto& other : context.queues) {
        bool waits = stream == base ? other->blocking && other != base : stream->blocking && other == base;
        if (waits && !other->queue.empty()) {
            item.after.push_back({other, other->pushed});
        }
    }
    stream->queue.push_back(std::move(item));
    stream->pushed++;
    if (emu::draw_below(4) == 0) {
        step();
    }
}

// Queues work, or adds it to the graph that the stream captures.
inline Result submit(const std::shared_ptr<Stream>& stream, Work work) {
    if (!stream->capture) {
        Item item;
        item.work = std::move(work);
        queue_item(stream, std::move(item));
        return SUCCESS;
    }
    Capture& capture = *stream->capture;
    if (capture.invalid) {
        return CAPTURE_INVALIDATED;
    }
    capture.graph.nodes.push_back({std::move(work), stream->tail});
    stream->tail = {capture.graph.nodes.size() - 1};
    return SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------------------

inline Result record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream) {
    event->capture = stream->capture;
    event->tail = stream->tail;
    if (stream->capture) {
        return stream->capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
    }
    u64 number = ++event->recorded;
    Item item;
    item.marks_event = true;
    item.work = [event, number] {
        // An earlier record may run later, in another stream.
        event->reached = event->reached > number ? event->reached : number;
        event->time = std::chrono::steady_clock::now();
    };
    queue_item(stream, std::move(item));
    return SUCCESS;
}

// Another stream of a capture: it joins, or its next node comes after the event's as well.
inline Result wait_in_capture(const std::shared_ptr<Stream>& stream, const Event& event) {
    if (!event.capture) {
        // An event from outside, in a stream that captures.
        stream->capture->invalid = true;
        return CAPTURE_ISOLATION;
    }
    if (event.capture->origin == nullptr) {
        return CAPTURED_EVENT;
    }
    if (stream->capture && stream->capture != event.capture) {
        return CAPTURE_MERGE;
    }
    stream->capture = event.capture;
    for (size_t node : event.tail) {
        stream->tail.push_back(node);
    }
    return SUCCESS;
}

inline Result wait_for(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event) {
    if (stream->capture || event->capture) {
        return wait_in_capture(stream, *event);
    }
    u64 number = event->recorded;
    if (event->reached >= number) {
        return SUCCESS;
    }
    Item item;
    item.ready = [event, number] { return event->reached >= number; };
    queue_item(stream, std::move(item));
    return SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------
// Capture and launch of graphs
// ---------------------------------------------------------------------------------------------------------------

inline Result begin_capture(const std::shared_ptr<Stream>& stream, int mode) {
    if (stream->capture || stream == default_stream(*stream->context)) {
        return CAPTURE_UNSUPPORTED;
    }
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream.get();
    stream->capture->thread = pthread_self();
    stream->capture->mode = mode;
    stream->tail.clear();
    return SUCCESS;
}

// Whether all that another stream captured comes before the end of the origin's.
inline bool joined(const Capture& capture, const Stream& origin, const Stream& other) {
    std::vector<bool> before(capture.graph.nodes.size());
    for (size_t node : origin.tail) {
        before[node] = true;
    }
    for (size_t node = before.size(); node-- > 0;) {
        for (size_t earlier : capture.graph.nodes[node].after) {
            before[earlier] = before[earlier] || before[node];
        }
    }
    for (size_t node : other.tail) {
        if (!before[node]) {
            return false;
        }
    }
    return true;
}

inline Result end_capture(const std::shared_ptr<Stream>& stream, Graph** graph) {
    auto capture = stream->capture;
    *graph = nullptr;
    if (!capture) {
        return INVALID_VALUE;
    }
    if (capture->origin != stream.get()) {
        return CAPTURE_UNMATCHED;
    }
    if (capture->mode != 2 && capture->thread != pthread_self()) {
        return CAPTURE_WRONG_THREAD;
    }
    Result result = capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
    for (const auto& other : stream->context->queues) {
        if (other->capture == capture && other != stream) {
            if (result == SUCCESS && !joined(*capture, *stream, *other)) {
                result = CAPTURE_UNJOINED;
            }
            other->capture = nullptr;
            other->tail.clear();
        }
    }
    stream->capture = nullptr;
    stream->tail.clear();
    capture->origin = nullptr;
    if (result == SUCCESS) {
        *graph = stream->context->graphs.add(std::make_shared<Graph>(capture->graph));
    }
    return result;
}

inline Result launch_graph(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Graph>& graph) {
    if (stream->capture) {
        return NOT_SUPPORTED;
    }
    Item item;
    item.run = std::make_shared<GraphRun>(
        GraphRun{graph, std::vector<bool>(graph->nodes.size()), graph->nodes.size()});
    queue_item(stream, std::move(item));
    return SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------
// Copies
// ---------------------------------------------------------------------------------------------------------------

// A range that is gone, or never was.
inline Result illegal(Context& context, const char* call, u64 at, size_t bytes) {
    char text[160];
    snprintf(text, sizeof text, "%s of %zu bytes at 0x%llx, which no device reaches", call, bytes, at);
    break_context(context, ILLEGAL_ADDRESS, text);
    return ILLEGAL_ADDRESS;
}

// Copies between ranges that are there when the copy runs.
inline Work copy_work(Context& context, const char* call, u64 to, u64 from, size_t bytes) {
    return [&context, call, to, from, bytes] {
        if (!is_reachable(from, bytes)) {
            illegal(context, call, from, bytes);
        } else if (!is_reachable(to, bytes)) {
            illegal(context, call, to, bytes);
        } else {
            memmove((void*)to, (const void*)from, bytes);
        }
    };
}

// From page-locked memory the copy reads what is there when it runs; from other memory what is there now.
inline Result copy_in(const std::shared_ptr<Stream>& stream, const char* call, u64 to, const void* host, size_t bytes) {
    Context& context = *stream->context;
    if (!is_reachable(to, bytes)) {
        return illegal(context, call, to, bytes);
    }
    if (is_pinned(context, host, bytes)) {
        return submit(stream, copy_work(context, call, to, (u64)host, bytes));
    }
    if (overlaps_pinned(context, host, bytes)) {
        return INVALID_VALUE;
    }
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    auto staged = std::make_shared<std::vector<u8>>((const u8*)host, (const u8*)host + bytes);
    return submit(stream, [&context, call, to, staged] {
        if (is_reachable(to, staged->size())) {
            memcpy((void*)to, staged->data(), staged->size());
        } else {
            illegal(context, call, to, staged->size());
        }
    });
}

// To page-locked memory the copy lands when it runs; for other memory the call waits.
inline Result copy_out(const std::shared_ptr<Stream>& stream, const char* call, void* host, u64 from, size_t bytes) {
    Context& context = *stream->context;
    if (!is_reachable(from, bytes)) {
        return illegal(context, call, from, bytes);
    }
    if (is_pinned(context, host, bytes)) {
        return submit(stream, copy_work(context, call, (u64)host, from, bytes));
    }
    if (overlaps_pinned(context, host, bytes)) {
        return INVALID_VALUE;
    }
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    submit(stream, [&context, call, host, from, bytes] {
        if (is_reachable(from, bytes)) {
            memcpy(host, (const void*)from, bytes);
        } else {
            illegal(context, call, from, bytes);
        }
    });
    drain(*stream);
    return context.broken;
}

inline Result copy_within(const std::shared_ptr<Stream>& stream, const char* call, u64 to, u64 from, size_t bytes) {
    Context& context = *stream->context;
    if (!is_reachable(from, bytes)) {
        return illegal(context, call, from, bytes);
    }
    if (!is_reachable(to, bytes)) {
        return illegal(context, call, to, bytes);
    }
    return submit(stream, copy_work(context, call, to, from, bytes));
}

// `count` times a value of `width` bytes.
inline Result fill(const std::shared_ptr<Stream>& stream, const char* call, u64 to, u32 value, size_t width,
                   size_t count) {
    Context& context = *stream->context;
    if (to % width) {
        return INVALID_VALUE;
    }
    if (!is_reachable(to, width * count)) {
        return illegal(context, call, to, width * count);
    }
    return submit(stream, [&context, call, to, value, width, count] {
        if (!is_reachable(to, width * count)) {
            illegal(context, call, to, width * count);
            return;
        }
        for (size_t i = 0; i < count; i++) {
            memcpy((u8*)to + i * width, &value, width);
        }
    });
}

}  // namespace standin
