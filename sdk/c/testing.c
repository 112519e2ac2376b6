/* The native side of policies, for their tests: memory, views, and a host that remembers. */

#include "testing.h"
#include <string.h>

pm_test_said pm_said;

void pm_log(int level, const char *message)
{
    (void)level;
    snprintf(pm_said.log, sizeof pm_said.log, "%s", message);
}

void pm_counter_add(const char *name, uint64_t value)
{
    snprintf(pm_said.counter, sizeof pm_said.counter, "%s", name);
    pm_said.counter_value = value;
}

void pm_gauge_set(const char *name, double value)
{
    snprintf(pm_said.gauge, sizeof pm_said.gauge, "%s", name);
    pm_said.gauge_value = value;
}

/* A test ends soon, and its memory with it. */
void *pm_alloc(size_t size)
{
    void *fresh = calloc(size + 1, 1);
    PM_CHECK(fresh != NULL);
    return fresh;
}

static size_t count(const char *const *names)
{
    size_t len = 0;
    while (names != NULL && names[len] != NULL) {
        len++;
    }
    return len;
}

static pm_table table(const char *slot, const char *name, uint32_t rows)
{
    static const pm_input nothing = {NULL, NULL, NULL, NULL};
    const pm_input *input = pm_inputs;
    while (input->slot != NULL && (strcmp(input->slot, slot) != 0 || strcmp(input->table, name) != 0)) {
        input++;
    }
    input = input->slot == NULL ? &nothing : input;
    float *numbers = pm_alloc(count(input->numbers) * rows * sizeof(float));
    uint64_t *ids = pm_alloc(count(input->ids) * rows * sizeof(uint64_t));
    return (pm_table){input, rows, numbers, ids};
}

static const pm_frame FRAME = {1700000000000u, 1};

pm_route_view pm_test_route(const char *slot, uint32_t rows)
{
    return (pm_route_view){FRAME, table(slot, "request", 1), table(slot, "candidate", rows)};
}

pm_schedule_view pm_test_schedule(uint32_t waiting, uint32_t running)
{
    return (pm_schedule_view){FRAME, table("schedule", "budget", 1), table("schedule", "sequence", waiting),
                              table("schedule", "sequence", running)};
}

pm_observe_view pm_test_observe(uint32_t rows)
{
    return (pm_observe_view){FRAME, table("observe", "outcome", rows)};
}

void pm_test_numbers(pm_table *table, const char *name, const float *values)
{
    memcpy((float *)pm_column(table, name), values, table->rows * sizeof(float));
}

void pm_test_ids(pm_table *table, const char *name, const uint64_t *values)
{
    memcpy((uint64_t *)pm_ids(table, name), values, table->rows * sizeof(uint64_t));
}

void pm_test_draw(pm_table *table, uint64_t *random)
{
    static const uint32_t ends[] = {2, 8, 1000, 40000};
    float *numbers = (float *)table->numbers;
    for (size_t column = 0; column < count(table->input->numbers); column++) {
        uint32_t end = ends[pm_random_below(random, 4)];
        for (uint32_t row = 0; row < table->rows; row++) {
            numbers[column * table->rows + row] = (float)pm_random_below(random, end) / (end == 2 ? 2.0f : 1.0f);
        }
    }
    uint64_t *ids = (uint64_t *)table->ids;
    for (size_t cell = 0; cell < count(table->input->ids) * table->rows; cell++) {
        ids[cell] = pm_random_below(random, 6);
    }
}

bool pm_test_configure(const char *json)
{
    const char *why = "";
    return pm_configure((pm_text){json, strlen(json)}, &why);
}
