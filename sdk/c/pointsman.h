/* Write Pointsman policies in C: name the columns you want, and define the function of each slot.
 *
 * `pointsman plugin build` compiles a policy without a C library, for wasm32; the same file compiles natively for tests.
 * Invariant: a policy sees nothing but its settings, its own state and the view.
 */
#ifndef POINTSMAN_H
#define POINTSMAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- What a policy declares ---- */

/* Columns of one table in one slot. Lists end with NULL; a list that is NULL has no columns. */
typedef struct {
    const char *slot;  /* "score" */
    const char *table; /* "candidate" */
    const char *const *numbers;
    const char *const *ids;
} pm_input;

/* Defined by the policy; ends with an entry whose slot is NULL. A policy without columns has that entry alone. */
extern const pm_input pm_inputs[];

/* ---- What a policy is shown ---- */

/* The clock and the randomness of one decision. */
typedef struct {
    uint64_t now_ms;
    uint64_t seed;
} pm_frame;

/* A text; not ended by a zero byte. */
typedef struct {
    const char *text;
    size_t len;
} pm_text;

/* Rows times declared columns, each column one contiguous run. */
typedef struct {
    const pm_input *input;
    uint32_t rows;
    const float *numbers;
    const uint64_t *ids;
} pm_table;

/* One request, and the workers that could serve it. */
typedef struct {
    pm_frame frame;
    pm_table request;
    pm_table candidates;
} pm_route_view;

/* A worker's sequences before a step. */
typedef struct {
    pm_frame frame;
    pm_table budget;
    pm_table waiting;
    pm_table running;
} pm_schedule_view;

/* What became of requests: a batch, which may be empty. */
typedef struct {
    pm_frame frame;
    pm_table outcomes;
} pm_observe_view;

enum { PM_FIRST_TOKEN = 0, PM_FINISHED = 1, PM_FAILED = 2 };

typedef struct {
    pm_text name;
    pm_text value;
} pm_pair;

/* What a caller said about a request, raw. Header names are in lower case; an extension is JSON text. */
typedef struct {
    pm_frame frame;
    pm_text protocol;
    const pm_pair *headers;
    size_t headers_len;
    const pm_pair *extensions;
    size_t extensions_len;
    uint32_t prompt_tokens;
    bool has_output_tokens_max;
    uint32_t output_tokens_max;
} pm_hints_view;

/* What a caller wishes: a field counts if its `has_` is set. Texts must outlive the call: see `pm_alloc`. */
typedef struct {
    bool has_session, has_parent, has_class, has_priority, has_strict_tier, has_deadline_ms;
    bool has_expected_output_tokens, has_speculative_prefill, has_session_final;
    bool speculative_prefill, session_final;
    pm_text session, parent, class_;
    float priority;
    uint32_t strict_tier, deadline_ms, expected_output_tokens;
} pm_hints;

/* A declared column, a cell a row. Look it up once, before the loop over rows. A name that is not declared traps. */
const float *pm_column(const pm_table *table, const char *name);
const uint64_t *pm_ids(const pm_table *table, const char *name);
/* A declared cell of a table that has one row. */
float pm_value(const pm_table *table, const char *name);
uint64_t pm_id(const pm_table *table, const char *name);

/* A header that is there; false if it is not. */
bool pm_header(const pm_hints_view *view, const char *name, pm_text *value);

/* ---- What a policy defines: `pm_configure`, and the functions of its slots. False abstains. ---- */

/* The operator's settings, a JSON object. False refuses the plugin, and `*why` tells the operator. */
bool pm_configure(pm_text json, const char **why);

/* `keep` and `scores` have a cell a candidate, `order` one a waiting sequence; all are zero at first. */
bool pm_filter(const pm_route_view *view, bool *keep);
bool pm_score(const pm_route_view *view, float *scores);
bool pm_pick(const pm_route_view *view, const float *scores, uint32_t *row);
bool pm_order(const pm_schedule_view *view, uint32_t *order);
void pm_observe(const pm_observe_view *view);
/* `hints` holds what was said so far: complete or overrule it. */
bool pm_interpret(const pm_hints_view *view, pm_hints *hints);

/* ---- What a policy may use ---- */

/* A number among the settings: true and `*value` if it is set to one. Nested objects are not looked into. */
bool pm_setting(pm_text json, const char *name, double *value);

/* Scratch memory, zeroed; gone after the call, except what `pm_configure` took. Traps when the limit is reached. */
void *pm_alloc(size_t size);

/* Chance that can be replayed: `uint64_t state = view->frame.seed;`. Source: splitmix64. */
uint64_t pm_random(uint64_t *state);
/* A number below `end`, which must not be 0. */
uint32_t pm_random_below(uint64_t *state, uint32_t end);

enum { PM_DEBUG = 0, PM_INFO = 1, PM_WARN = 2, PM_ERROR = 3 };

/* A log line; ended by a zero byte. The host cuts long ones and drops those that come too fast. */
void pm_log(int level, const char *message);
/* Counters and gauges; names are lower case with underscores. */
void pm_counter_add(const char *name, uint64_t value);
void pm_gauge_set(const char *name, double value);

bool pm_text_is(pm_text text, const char *word);

#endif
