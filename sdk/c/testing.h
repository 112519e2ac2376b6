/* For tests of policies, compiled natively: views with named columns, and what the policy said. */
#ifndef POINTSMAN_TESTING_H
#define POINTSMAN_TESTING_H

#include "pointsman.h"
#include <stdio.h>
#include <stdlib.h>

/* Tables with the columns that the policy declares; a cell that nobody set is 0. */
pm_route_view pm_test_route(const char *slot, uint32_t rows);
pm_schedule_view pm_test_schedule(uint32_t waiting, uint32_t running);
pm_observe_view pm_test_observe(uint32_t rows);

/* Sets a declared column: a value a row. */
void pm_test_numbers(pm_table *table, const char *name, const float *values);
void pm_test_ids(pm_table *table, const char *name, const uint64_t *values);

/* Draws every cell of a table: numbers of magnitudes that a host shows, few ids. */
void pm_test_draw(pm_table *table, uint64_t *random);

/* Gives the policy its settings, and returns whether it took them. */
bool pm_test_configure(const char *json);

/* The last log line, counter and gauge. */
typedef struct {
    char log[1024];
    char counter[64];
    uint64_t counter_value;
    char gauge[64];
    double gauge_value;
} pm_test_said;
extern pm_test_said pm_said;

#define PM_CHECK(condition)                                                              \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);      \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

#endif
