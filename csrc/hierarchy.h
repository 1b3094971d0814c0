/* What the hierarchies of cuckoo tables have in common: the schedule, which oram/params/cuckoo.py explains, and sealed slots. */
#ifndef ORAM_HIERARCHY_H
#define ORAM_HIERARCHY_H
#include <openssl/evp.h>

#include "batch.h"
#include "bytes.h"
#include "oram.h"

#define PLACES ((uint32_t)ORAM_CUCKOO_PLACES)

typedef struct {
    uint32_t level;
    uint64_t epoch;
} table;

static inline uint64_t below64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline size_t row_size(const oram_cuckoo *p) { return 4 + (size_t)p->B; }
static inline size_t slot_size(const oram_cuckoo *p) { return 12 + (size_t)p->B + ORAM_TAG; }

struct oram_prf {
    EVP_CIPHER_CTX *aes;
};

/* x * n >> 64, in halves: C has no 128-bit integer */
static inline uint32_t scaled(uint64_t x, uint32_t n) { return (uint32_t)(((x >> 32) * n + (((x & 0xffffffffu) * n) >> 32)) >> 32); }

/* --- the schedule */

static inline uint32_t target(const oram_cuckoo *p, uint64_t flush) {
    const uint32_t zeros = flush == 0 ? p->L : (uint32_t)__builtin_ctzll(flush);
    return zeros < p->L ? zeros : p->L;
}

static inline size_t page(const oram_cuckoo *p, uint64_t flush) { return target(p, flush + 1); }

static inline uint64_t done(const oram_cuckoo *p, table t) { return t.epoch * p->c + p->levels[t.level].duration; }

/* Which of its level's places a table has. */
static inline uint32_t copy(const oram_cuckoo *p, table t) {
    return t.level < p->L ? target(p, t.epoch + ((uint64_t)1 << t.level)) : (uint32_t)(t.epoch >> p->L & 1);
}

static inline int32_t place_of(const oram_cuckoo *p, table t) { return (int32_t)(t.level * PLACES + copy(p, t)); }
static inline uint64_t first_slot(const oram_cuckoo *p, table t) { return p->levels[t.level].place[copy(p, t)]; }

/* The bottom that is probed. */
static inline int bottom(const oram_cuckoo *p, uint64_t clock, table *found) {
    uint64_t epoch = clock / p->c >> p->L << p->L;
    *found = (table){p->L, epoch};
    if (epoch != 0 && done(p, *found) > clock) found->epoch = epoch -= (uint64_t)1 << p->L;
    return epoch != 0 || p->clock[1] != 0;
}

/* Where what was asked for in this flush is now; 0: in a top buffer. */
static inline int home_of(const oram_cuckoo *p, uint64_t flush, uint64_t clock, table *found) {
    if (done(p, (table){p->L, ((flush >> p->L) + 1) << p->L}) <= clock) return bottom(p, clock, found);
    for (uint32_t level = p->L; level-- > 0;) {
        *found = (table){level, ((flush >> level) + 1) << level};
        if (!(flush >> level & 1) && done(p, *found) <= clock) return 1;
    }
    return 0;
}

/* The tables that an access probes, the newest first. */
static inline uint32_t alive(const oram_cuckoo *p, uint64_t clock, table *found) {
    table oldest, here;
    uint32_t n = 0;
    const int is = bottom(p, clock, &oldest);
    const uint64_t start = is ? oldest.epoch : 0;
    for (uint64_t flush = clock / p->c; flush > start;) { /* of what was asked for in the flush before */
        if (!home_of(p, flush - 1, clock, &here)) {
            flush--;
            continue;
        }
        if (n == ORAM_CUCKOO_LEVELS * PLACES - 1 || here.epoch < (uint64_t)1 << here.level) break; /* it never is */
        found[n++] = here;
        flush = here.epoch - ((uint64_t)1 << here.level);
    }
    if (is) found[n++] = oldest;
    return n;
}

/* The tables that an access does some work for. */
static inline uint32_t running(const oram_cuckoo *p, uint64_t clock, table *found) {
    const uint64_t now = clock / p->c;
    uint32_t n = 0;
    for (uint32_t level = 0; level <= p->L; level++) {
        const uint64_t a = now >> level;
        const table t = {level, (level == p->L ? a : a - (a > 0 && !(a & 1))) << level};
        if (t.epoch > 0 && clock < done(p, t)) found[n++] = t;
    }
    return n;
}

/* --- what did not fit */

/* Keeps an entry that a table left over. */
static inline int keep(oram_cuckoo *p, table t, uint32_t word, const uint8_t *block) {
    for (uint32_t i = 0; i < p->stash; i++) {
        if (p->stash_of[i] >= 0) continue;
        p->stash_of[i] = place_of(p, t);
        p->stash_addr[i] = word;
        memcpy(p->stash_data + (size_t)i * p->B, block, p->B);
        return ORAM_OK;
    }
    return ORAM_STASH_FULL;
}

static inline void drop(oram_cuckoo *p, table t) {
    for (uint32_t i = 0; i < p->stash; i++)
        if (p->stash_of[i] == place_of(p, t)) p->stash_of[i] = -1;
}

/* --- cuckoo graphs: cells are vertices, entries edges */

static inline uint32_t root_of(uint32_t *root, uint32_t v) {
    while (root[v] != v) {
        root[v] = root[root[v]];
        v = root[v];
    }
    return v;
}

/* --- slots of a batch */

/* Where a slot is, or would be, in the hash table of those that are written. */
static inline uint32_t known_cell(const int32_t *known, uint32_t mask, const uint64_t *written, uint64_t slot) {
    uint32_t i = (uint32_t)((slot * 0x9e3779b97f4a7c15u) >> 32) & mask;
    while (known[i] >= 0 && written[known[i]] != slot) i = (i + 1) & mask;
    return i;
}

/* Opens a slot that names its reference itself: a hint, which may be anything. */
static inline int open_slot(const oram_cuckoo *p, const oram_keys *keys, uint64_t slot, uint64_t epoch, const uint8_t *sealed, int present, uint8_t *row) {
    const uint64_t ref = ld64(sealed);
    const int never = REF_GENERATION(ref) == 0 || REF_GENERATION(ref) > keys->current;
    if (!never) return open_ref(keys, epoch * p->slots + slot, ref, sealed + 8, present, row_size(p), row);
    memset(row, 0, row_size(p));
    return ORAM_TAMPERED;
}

static inline int seal_slot(const oram_cuckoo *p, const oram_keys *keys, uint64_t counter, uint64_t slot, uint64_t epoch, const uint8_t *row, uint8_t *sealed) {
    st64(sealed, REF(keys->current, counter));
    return keys->cipher->seal(keys->contexts[keys->current], counter, epoch * p->slots + slot, row, row_size(p), sealed + 8);
}
#endif
