/* What policies use on every machine: columns, settings, chance. */

#include "pointsman.h"

static bool same(const char *a, const char *b)
{
    if (a == b) {
        return true;
    }
    while (*a != 0 && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

bool pm_text_is(pm_text text, const char *word)
{
    size_t i = 0;
    while (i < text.len && word[i] != 0 && word[i] == text.text[i]) {
        i++;
    }
    return i == text.len && word[i] == 0;
}

/* The place of a name in a list that ends with NULL; traps if it is not there. */
static size_t position(const char *const *declared, const char *name)
{
    for (size_t i = 0; declared != NULL && declared[i] != NULL; i++) {
        if (same(declared[i], name)) {
            return i;
        }
    }
    pm_log(PM_ERROR, "a column was asked for that was not declared:");
    pm_log(PM_ERROR, name);
    __builtin_trap();
}

const float *pm_column(const pm_table *table, const char *name)
{
    return table->numbers + position(table->input->numbers, name) * table->rows;
}

const uint64_t *pm_ids(const pm_table *table, const char *name)
{
    return table->ids + position(table->input->ids, name) * table->rows;
}

float pm_value(const pm_table *table, const char *name)
{
    return pm_column(table, name)[0];
}

uint64_t pm_id(const pm_table *table, const char *name)
{
    return pm_ids(table, name)[0];
}

bool pm_header(const pm_hints_view *view, const char *name, pm_text *value)
{
    for (size_t i = 0; i < view->headers_len; i++) {
        if (pm_text_is(view->headers[i].name, name)) {
            *value = view->headers[i].value;
            return true;
        }
    }
    return false;
}

uint64_t pm_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t pm_random_below(uint64_t *state, uint32_t end)
{
    return (uint32_t)(((pm_random(state) >> 32) * end) >> 32);
}

/* ---- Settings: a scan over one JSON object, as the host writes it: valid, keys without escapes. ---- */

static size_t skip_string(pm_text json, size_t at)
{
    for (at++; at < json.len && json.text[at] != '"'; at++) {
        if (json.text[at] == '\\') {
            at++;
        }
    }
    return at + 1;
}

static size_t skip_blank(pm_text json, size_t at)
{
    while (at < json.len && (json.text[at] == ' ' || json.text[at] == ':' || json.text[at] == '\n' || json.text[at] == '\t')) {
        at++;
    }
    return at;
}

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

/* A JSON number at `at`. */
static bool number(pm_text json, size_t at, double *value)
{
    bool minus = at < json.len && json.text[at] == '-';
    at += minus;
    if (at >= json.len || !digit(json.text[at])) {
        return false;
    }
    double sum = 0, unit = 1;
    for (; at < json.len && digit(json.text[at]); at++) {
        sum = sum * 10 + (json.text[at] - '0');
    }
    if (at < json.len && json.text[at] == '.') {
        for (at++; at < json.len && digit(json.text[at]); at++) {
            unit /= 10;
            sum += unit * (json.text[at] - '0');
        }
    }
    if (at < json.len && (json.text[at] == 'e' || json.text[at] == 'E')) {
        at++;
        bool small = at < json.len && json.text[at] == '-';
        at += small || (at < json.len && json.text[at] == '+');
        int exponent = 0;
        for (; at < json.len && digit(json.text[at]) && exponent < 400; at++) {
            exponent = exponent * 10 + (json.text[at] - '0');
        }
        for (; exponent > 0; exponent--) {
            sum = small ? sum / 10 : sum * 10;
        }
    }
    *value = minus ? -sum : sum;
    return true;
}

bool pm_setting(pm_text json, const char *name, double *value)
{
    int depth = 0;
    bool is_key = false;
    for (size_t at = 0; at < json.len;) {
        char c = json.text[at];
        if (c == '"') {
            size_t after = skip_string(json, at);
            pm_text word = {json.text + at + 1, after - at - 2};
            at = after;
            if (depth == 1 && is_key && pm_text_is(word, name)) {
                return number(json, skip_blank(json, at), value);
            }
            is_key = false;
            continue;
        }
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        /* In the outermost object a key follows its brace, or a comma. */
        if (depth == 1 && (c == '{' || c == ',')) {
            is_key = true;
        }
        at++;
    }
    return false;
}
