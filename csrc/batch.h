/* What every tree does with a batch of requests: which are the first to their address, leaves in order, lists of what may go
 * into a bucket, and the scratch memory for all of that. */
#ifndef ORAM_BATCH_H
#define ORAM_BATCH_H
#include <stddef.h>
#include <string.h>

#include "oram.h"

#define REF(generation, counter) (((uint64_t)(generation) << ORAM_COUNTER_BITS) | (counter))
#define REF_GENERATION(ref) ((uint32_t)((ref) >> ORAM_COUNTER_BITS))
#define REF_COUNTER(ref) ((ref) & (((uint64_t)1 << ORAM_COUNTER_BITS) - 1))

/* The next part of the scratch memory `s`, laid out from `base` on: `at` counts its bytes, 8-byte aligned. Without a base it only counts. */
#define TAKE(field, type, count)                                  \
    do {                                                          \
        s->field = base == NULL ? NULL : (void *)(base + at);     \
        at += (((size_t)(count) * sizeof(type)) + 7) & ~(size_t)7; \
    } while (0)

/* Appends entry k to a list that ends at *end. next: of each entry, -1 at the end. */
static inline void append(int32_t *next, int32_t *list, int32_t *end, int32_t k) {
    next[k] = -1;
    if (*list < 0)
        *list = k;
    else
        next[*end] = k;
    *end = k;
}

/* Appends a whole list, which may be empty. */
static inline void append_list(int32_t *next, int32_t *list, int32_t *end, int32_t other, int32_t other_end) {
    if (other < 0) return;
    if (*list < 0)
        *list = other;
    else
        next[*end] = other;
    *end = other_end;
}

/* Cells of a table for m addresses: a power of two, at most half of it in use. */
static inline size_t table_size(uint32_t m) {
    size_t size = 2;
    while (size < 2 * (size_t)m) size *= 2;
    return size;
}

/* Position in the table of `addr`, or of the free cell where it belongs. table: (mask + 1) request, -1 where free. */
static inline uint32_t table_cell(const int32_t *table, uint32_t mask, const uint32_t *addrs, uint32_t addr) {
    uint32_t i = (uint32_t)(((uint64_t)(addr * 2654435761u) * ((uint64_t)mask + 1)) >> 32); /* the high bits: they depend on all of addr */
    while (table[i] >= 0 && addrs[table[i]] != addr) i = (i + 1) & mask;
    return i;
}

/* The first request to an address reads its position, all others a leaf of their own. path: (m). first: (m) first request to the
 * same address, -1 for dummies. Fills the table. */
static inline void first_requests(uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws, const uint32_t *position,
                                  uint32_t leaf_mask, uint32_t *path, int32_t *first, int32_t *table, uint32_t mask) {
    memset(table, 0xff, ((size_t)mask + 1) * sizeof *table);
    for (uint32_t r = 0; r < m; r++) {
        path[r] = draws[r] & leaf_mask; /* of a dummy or a duplicate: fresh and uniform */
        first[r] = -1;
        if (ops[r] == ORAM_DUMMY) continue;
        const uint32_t c = table_cell(table, mask, addrs, addrs[r]);
        if (table[c] < 0) {
            table[c] = (int32_t)r;
            path[r] = position[addrs[r]] & leaf_mask; /* no other bits are there, but a slot is computed from it before anything is checked */
        }
        first[r] = table[c];
    }
}

/* Shell sort, then without repetitions; returns how many are left. Short, in place, no allocation (libc's qsort may). */
static inline uint32_t sort_unique(uint32_t *a, uint32_t n) {
    static const uint32_t gaps[] = {3735498, 1660221, 737876, 327945, 145753, 64779, 28791, 12796, 5687, 2528, 1123, 499, 222, 98, 43, 19, 8, 3, 1};
    uint32_t unique = 0;
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (uint32_t i = gaps[g]; i < n; i++) {
            uint32_t x = a[i], j = i;
            for (; j >= gaps[g] && a[j - gaps[g]] > x; j -= gaps[g]) a[j] = a[j - gaps[g]];
            a[j] = x;
        }
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || a[i] != a[unique - 1]) a[unique++] = a[i];
    return unique;
}

/* Index of the first element of a sorted array that is not below x; n if there is none. */
static inline uint32_t lower_bound(const uint32_t *a, uint32_t n, uint32_t x) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (a[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Opens n bytes sealed under `ref`: zeros under reference 0. A positive result is the generation whose context is missing. */
static inline int open_ref(const oram_keys *keys, uint64_t slot, uint64_t ref, const uint8_t *sealed, int present, size_t n, uint8_t *plain) {
    const uint32_t generation = REF_GENERATION(ref);
    if (ref == 0) {
        memset(plain, 0, n);
        return ORAM_OK;
    }
    const int known = generation != 0 && generation <= INT32_MAX; /* no other was ever sealed under */
    if (known && (generation >= keys->count || keys->contexts[generation] == NULL)) return (int)generation;
    if (known && present && keys->cipher->open(keys->contexts[generation], REF_COUNTER(ref), slot, sealed, n, plain) == ORAM_OK) return ORAM_OK;
    memset(plain, 0, n);
    return ORAM_TAMPERED;
}
#endif
