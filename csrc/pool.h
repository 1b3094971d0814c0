/* The client's blocks: content of the cached levels and stash together, chained by subtree of level T. */
#ifndef ORAM_POOL_H
#define ORAM_POOL_H
#include "oram.h"

/* Takes a free slot; -1 where there is none. */
static inline int32_t pool_take(oram_pool *pool, uint32_t addr) {
    const int32_t q = pool->free;
    if (q < 0) return -1;
    pool->free = pool->next[q];
    pool->used++;
    pool->addr[q] = addr;
    return q;
}

/* Gives back a slot that is in no chain. */
static inline void pool_give(oram_pool *pool, int32_t q) {
    pool->addr[q] = ORAM_EMPTY;
    pool->next[q] = pool->free;
    pool->free = q;
    pool->used--;
}

/* Enters a slot at the head of a chain. */
static inline void pool_link(oram_pool *pool, int32_t q, uint32_t chain) {
    pool->next[q] = pool->head[chain];
    pool->head[chain] = q;
}

/* Takes the slot of an address out of a chain; -1 where it is not in it. */
static inline int32_t pool_unlink(oram_pool *pool, uint32_t addr, uint32_t chain) {
    for (int32_t *at = &pool->head[chain]; *at >= 0; at = &pool->next[*at])
        if (pool->addr[*at] == addr) {
            const int32_t q = *at;
            *at = pool->next[q];
            return q;
        }
    return -1;
}
#endif
