/* Between the contract and the functions of a policy: the canonical ABI, written out for wasm32.
 *
 * On wasm32 the ABI's layout of a record is that of a C struct, and a list is its address and its length. The build gives
 * the contract's version, name and version of the plugin, and PM_SLOT_<SLOT> for each slot; it compares the signatures.
 * Invariant: all memory of a call is one arena, which the call's end takes back.
 */

#include "pointsman.h"

#define IN(interface, function) "pointsman:policy/" interface "@" PM_CONTRACT "#" function
#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(interface, function) \
    __attribute__((import_module("pointsman:policy/" interface "@" PM_CONTRACT), import_name(function)))

/* ---- The arena ---- */

extern unsigned char __heap_base;
static uintptr_t arena_floor, arena_top;

static void *take(size_t size, size_t align)
{
    if (arena_top == 0) {
        arena_floor = arena_top = (uintptr_t)&__heap_base;
    }
    uintptr_t start = (arena_top + align - 1) & ~(uintptr_t)(align - 1);
    uintptr_t end = start + size;
    uintptr_t have = (uintptr_t)__builtin_wasm_memory_size(0) << 16;
    if (end < start || (end > have && __builtin_wasm_memory_grow(0, (end - have + 0xffff) >> 16) == (size_t)-1)) {
        __builtin_trap();
    }
    arena_top = end;
    return (void *)start;
}

static void end_of_call(void)
{
    arena_top = arena_floor;
}

/* The host takes memory for what it hands over. */
EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size)
{
    unsigned char *fresh = take(size, align);
    for (size_t i = 0; i < old_size && i < size; i++) {
        fresh[i] = ((unsigned char *)old)[i];
    }
    return fresh;
}

void *pm_alloc(size_t size)
{
    unsigned char *fresh = take(size, 8);
    for (size_t i = 0; i < size; i++) {
        fresh[i] = 0;
    }
    return fresh;
}

/* Compilers call these for copies of structs, with or without a C library. */
void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    }
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        ((unsigned char *)to)[i] = (unsigned char)byte;
    }
    return to;
}

static size_t length(const char *text)
{
    size_t len = 0;
    while (text[len] != 0) {
        len++;
    }
    return len;
}

static pm_text text_of(const char *text)
{
    return (pm_text){text, length(text)};
}

/* ---- Imports ---- */

IMPORT("log", "log") void host_log(uint32_t level, const char *text, size_t len);
IMPORT("metrics", "counter-add") void host_counter_add(const char *name, size_t len, uint64_t value);
IMPORT("metrics", "gauge-set") void host_gauge_set(const char *name, size_t len, double value);

void pm_log(int level, const char *message)
{
    host_log((uint32_t)level, message, length(message));
}

void pm_counter_add(const char *name, uint64_t value)
{
    host_counter_add(name, length(name), value);
}

void pm_gauge_set(const char *name, double value)
{
    host_gauge_set(name, length(name), value);
}

/* ---- describe ---- */

typedef struct {
    const void *items;
    size_t len;
} list;

typedef struct {
    pm_text slot, table;
    list numbers, ids;
} input;

typedef struct {
    pm_text name, version;
    list slots, inputs, wishes;
} description;

static const char *const SLOTS[] = {
#ifdef PM_SLOT_HINTS
    "hints",
#endif
#ifdef PM_SLOT_FILTER
    "filter",
#endif
#ifdef PM_SLOT_SCORE
    "score",
#endif
#ifdef PM_SLOT_PICK
    "pick",
#endif
#ifdef PM_SLOT_SCHEDULE
    "schedule",
#endif
#ifdef PM_SLOT_OBSERVE
    "observe",
#endif
    NULL,
};

static list texts(const char *const *names)
{
    size_t len = 0;
    while (names != NULL && names[len] != NULL) {
        len++;
    }
    pm_text *items = pm_alloc(len * sizeof(pm_text));
    for (size_t i = 0; i < len; i++) {
        items[i] = text_of(names[i]);
    }
    return (list){items, len};
}

EXPORT(IN("describe", "describe"))
description *describe(void)
{
    size_t len = 0;
    while (pm_inputs[len].slot != NULL) {
        len++;
    }
    input *inputs = pm_alloc(len * sizeof(input));
    for (size_t i = 0; i < len; i++) {
        const pm_input *it = &pm_inputs[i];
        inputs[i] = (input){text_of(it->slot), text_of(it->table), texts(it->numbers), texts(it->ids)};
    }
    description *it = pm_alloc(sizeof(description));
    *it = (description){text_of(PM_NAME), text_of(PM_VERSION), texts(SLOTS), {inputs, len}, {NULL, 0}};
    return it;
}

EXPORT("cabi_post_" IN("describe", "describe"))
void describe_done(description *it)
{
    (void)it;
    end_of_call();
}

typedef struct {
    uint8_t is_error;
    pm_text error;
} configured;

EXPORT(IN("describe", "configure"))
configured *configure(const char *json, size_t len)
{
    static configured result;
    const char *why = "the settings are refused";
    result.is_error = !pm_configure((pm_text){json, len}, &why);
    result.error = text_of(why);
    /* What the policy took here is its own from now on. */
    arena_floor = arena_top;
    return &result;
}

/* ---- Tables ---- */

static const pm_input NOTHING = {NULL, NULL, NULL, NULL};

static bool equal(const char *a, const char *b)
{
    return pm_text_is(text_of(a), b);
}

static const pm_input *declared(const char *slot, const char *table)
{
    for (const pm_input *it = pm_inputs; it->slot != NULL; it++) {
        if (equal(it->slot, slot) && equal(it->table, table)) {
            return it;
        }
    }
    return &NOTHING;
}

static size_t count(const char *const *names)
{
    size_t len = 0;
    while (names != NULL && names[len] != NULL) {
        len++;
    }
    return len;
}

/* Splits a table off the front of the flat lists. */
static pm_table split(const pm_input *input, uint32_t rows, const float **numbers, const uint64_t **ids)
{
    pm_table table = {input, rows, *numbers, *ids};
    *numbers += count(input->numbers) * rows;
    *ids += count(input->ids) * rows;
    return table;
}

__attribute__((unused))
static pm_route_view route_view(const char *slot, pm_frame frame, uint32_t rows, const float *numbers, const uint64_t *ids)
{
    pm_route_view view = {.frame = frame};
    view.request = split(declared(slot, "request"), 1, &numbers, &ids);
    view.candidates = split(declared(slot, "candidate"), rows, &numbers, &ids);
    return view;
}

/* ---- Slots: a new one of the contract gets a section like these ---- */

typedef struct {
    uint8_t some;
    list it;
} option_list;

typedef struct {
    uint8_t some;
    uint32_t it;
} option_u32;

#define DONE(interface, function, result)              \
    EXPORT("cabi_post_" IN(interface, #function))      \
    void function##_done(result *it)                   \
    {                                                  \
        (void)it;                                      \
        end_of_call();                                 \
    }

#define ROUTE_CALL uint64_t now_ms, uint64_t seed, uint32_t rows, const float *numbers, size_t numbers_len, \
    const uint64_t *ids, size_t ids_len
#define UNUSED_LENGTHS (void)numbers_len, (void)ids_len

#ifdef PM_SLOT_FILTER
EXPORT(IN("filter", "filter"))
option_list *filter(ROUTE_CALL)
{
    static option_list answer;
    UNUSED_LENGTHS;
    pm_route_view view = route_view("filter", (pm_frame){now_ms, seed}, rows, numbers, ids);
    bool *keep = pm_alloc(rows * sizeof(bool));
    answer = (option_list){pm_filter(&view, keep), {keep, rows}};
    return &answer;
}
DONE("filter", filter, option_list)
#endif

#ifdef PM_SLOT_SCORE
EXPORT(IN("score", "score"))
option_list *score(ROUTE_CALL)
{
    static option_list answer;
    UNUSED_LENGTHS;
    pm_route_view view = route_view("score", (pm_frame){now_ms, seed}, rows, numbers, ids);
    float *scores = pm_alloc(rows * sizeof(float));
    answer = (option_list){pm_score(&view, scores), {scores, rows}};
    return &answer;
}
DONE("score", score, option_list)
#endif

#ifdef PM_SLOT_PICK
EXPORT(IN("pick", "pick"))
option_u32 *pick(ROUTE_CALL, const float *scores, size_t scores_len)
{
    static option_u32 answer;
    UNUSED_LENGTHS, (void)scores_len;
    pm_route_view view = route_view("pick", (pm_frame){now_ms, seed}, rows, numbers, ids);
    answer.some = pm_pick(&view, scores, &answer.it);
    return &answer;
}
DONE("pick", pick, option_u32)
#endif

#ifdef PM_SLOT_SCHEDULE
EXPORT(IN("schedule", "order"))
option_list *order(uint64_t now_ms, uint64_t seed, uint32_t waiting, uint32_t running, const float *numbers,
                   size_t numbers_len, const uint64_t *ids, size_t ids_len)
{
    static option_list answer;
    UNUSED_LENGTHS;
    const pm_input *sequence = declared("schedule", "sequence");
    pm_schedule_view view = {.frame = {now_ms, seed}};
    view.budget = split(declared("schedule", "budget"), 1, &numbers, &ids);
    view.waiting = split(sequence, waiting, &numbers, &ids);
    view.running = split(sequence, running, &numbers, &ids);
    uint32_t *rows = pm_alloc(waiting * sizeof(uint32_t));
    answer = (option_list){pm_order(&view, rows), {rows, waiting}};
    return &answer;
}
DONE("schedule", order, option_list)
#endif

#ifdef PM_SLOT_OBSERVE
EXPORT(IN("observe", "observe"))
void observe(ROUTE_CALL)
{
    UNUSED_LENGTHS;
    pm_observe_view view = {.frame = {now_ms, seed}};
    view.outcomes = split(declared("observe", "outcome"), rows, &numbers, &ids);
    pm_observe(&view);
    end_of_call();
}
#endif

#ifdef PM_SLOT_HINTS
/* Options of the contract's record, in its order. */
typedef struct { uint8_t some; pm_text it; } option_text;
typedef struct { uint8_t some; float it; } option_f32;
typedef struct { uint8_t some; uint8_t it; } option_bool;

typedef struct {
    option_text session, parent, class_;
    option_f32 priority;
    option_u32 strict_tier, deadline_ms, expected_output_tokens;
    option_bool speculative_prefill, session_final;
    list attributes;
} hint_set;

typedef struct {
    pm_frame frame;
    pm_text protocol;
    const pm_pair *headers;
    size_t headers_len;
    const pm_pair *extensions;
    size_t extensions_len;
    uint32_t prompt_tokens;
    option_u32 output_tokens_max;
    hint_set so_far;
} interpret_call;

typedef struct {
    uint8_t some;
    hint_set it;
} option_hint_set;

#define HINT_FIELDS(each)                                                                                       \
    each(session) each(parent) each(class_) each(priority) each(strict_tier) each(deadline_ms)                  \
    each(expected_output_tokens) each(speculative_prefill) each(session_final)

EXPORT(IN("hints", "interpret"))
option_hint_set *interpret(const interpret_call *call)
{
    static option_hint_set answer;
    const hint_set *so_far = &call->so_far;
    pm_hints_view view = {
        .frame = call->frame, .protocol = call->protocol,
        .headers = call->headers, .headers_len = call->headers_len,
        .extensions = call->extensions, .extensions_len = call->extensions_len,
        .prompt_tokens = call->prompt_tokens,
        .has_output_tokens_max = call->output_tokens_max.some, .output_tokens_max = call->output_tokens_max.it,
    };
    pm_hints hints = {0};
#define has_class_ has_class
#define READ(field) hints.has_##field = so_far->field.some; if (so_far->field.some) { hints.field = so_far->field.it; }
#define WRITE(field) answer.it.field.some = hints.has_##field; answer.it.field.it = hints.field;
    HINT_FIELDS(READ)
    answer.some = pm_interpret(&view, &hints);
    HINT_FIELDS(WRITE)
    /* Open attributes of others pass through untouched. */
    answer.it.attributes = so_far->attributes;
    return &answer;
}
DONE("hints", interpret, option_hint_set)
#endif
