/* Metadata alone: which block is in which bucket, and nothing else. oram/kernels/reference/simulation.py is the same in Python, number for number. */
#include <string.h>

#include "batch.h"
#include "oram.h"

/* --- Random numbers: splitmix64 makes the state, xoshiro256** the numbers. */

static uint64_t turned(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }

void oram_seed(uint64_t *random, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        uint64_t x = seed += 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        random[i] = x ^ (x >> 31);
    }
}

static uint64_t draw(uint64_t *s) {
    const uint64_t found = turned(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = turned(s[3], 45);
    return found;
}

/* Below n, from the upper half of a number: off from uniform by n / 2^32 at most. */
static uint32_t below(uint64_t *random, uint32_t n) { return (uint32_t)(((draw(random) >> 32) * n) >> 32); }

/* --- Trees */

static uint32_t leaf_of(uint64_t block) { return (uint32_t)block; }
static uint32_t addr_of(uint64_t block) { return (uint32_t)(block >> 32); }
static uint64_t block_of(uint32_t addr, uint32_t leaf) { return ((uint64_t)addr << 32) | leaf; }
static size_t bucket(const oram_forest *p, uint32_t leaf, uint32_t level) { return ((size_t)1 << level) - 1 + (leaf >> (p->L - level)); }

/* Level of the deepest bucket that two leaves have in common. */
static uint32_t common(const oram_forest *p, uint32_t a, uint32_t b) {
    return a == b ? p->L : p->L - (32 - (uint32_t)__builtin_clz(a ^ b));
}

void oram_simulate_start(oram_forest *p) {
    const size_t entries = (((size_t)2 << p->L) - 1) * p->Z;
    for (size_t i = 0; i < entries; i++) p->tree[i] = ORAM_SPACE;
    for (uint32_t i = 0; i < p->N; i++) p->position[i] = below(p->random, (uint32_t)1 << p->L);
}

/* The address of the next access and the new leaf of its block. */
static void ask(oram_forest *p, uint64_t i, const uint32_t *addrs, const uint32_t *leaves, uint32_t *addr, uint32_t *leaf) {
    if (addrs != NULL)
        *addr = addrs[i];
    else
        *addr = p->pattern == ORAM_UNIFORM ? below(p->random, p->N) : (uint32_t)(p->clock % p->N);
    *leaf = leaves != NULL ? leaves[i] : below(p->random, (uint32_t)1 << p->L);
}

static void count(uint64_t *counts, uint32_t bins, uint32_t held) { counts[held < bins ? held : bins - 1]++; }

/* Takes a block out of the stash, if it is there; the others keep their order. */
static void unstash(oram_forest *p, uint32_t addr) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p->held; i++)
        if (addr_of(p->stash[i]) != addr) p->stash[kept++] = p->stash[i];
    p->held = kept;
}

/* Empties the path of a leaf and the stash, but for one address, and places all as deep as they may go; what came from the tree goes first, as in the
 * kernels (docs/schemes/path.md#records-of-constant-size). */
static void evict(oram_forest *p, uint32_t leaf, uint32_t but) {
    const uint32_t levels = p->L + 1, Z = p->Z;
    int32_t *next = p->next + 4 * (size_t)levels; /* of each in hand, -1 at the end of its list */
    int32_t *mine = p->next, *mine_end = mine + levels, *client = mine_end + levels, *client_end = client + levels;
    int32_t held = 0;
    memset(mine, 0xff, 4 * (size_t)levels * sizeof *mine);
    for (uint32_t level = 0; level < levels; level++) __builtin_prefetch(p->tree + bucket(p, leaf, level) * Z, 1);
    for (uint32_t level = 0; level < levels; level++) {
        uint64_t *entry = p->tree + bucket(p, leaf, level) * Z;
        for (uint32_t z = 0; z < Z && entry[z] != ORAM_SPACE; z++) {
            const uint64_t block = entry[z];
            entry[z] = ORAM_SPACE;
            if (addr_of(block) == but) continue;
            const uint32_t at = common(p, leaf_of(block), leaf);
            p->hand[held] = block;
            append(next, &mine[at], &mine_end[at], held++);
        }
    }
    for (uint32_t i = p->held; i-- > 0;) { /* newest first */
        const uint32_t at = common(p, leaf_of(p->stash[i]), leaf);
        p->hand[held] = p->stash[i];
        append(next, &client[at], &client_end[at], held++);
    }
    for (uint32_t level = levels; level-- > 0;) {
        uint64_t *entry = p->tree + bucket(p, leaf, level) * Z;
        uint32_t z = 0;
        int32_t k;
        for (k = mine[level]; k >= 0 && z < Z; k = next[k]) entry[z++] = p->hand[k];
        if (level > 0) append_list(next, &mine[level - 1], &mine_end[level - 1], k, mine_end[level]);
        for (k = client[level]; k >= 0 && z < Z; k = next[k]) entry[z++] = p->hand[k];
        if (level > 0)
            append_list(next, &client[level - 1], &client_end[level - 1], k, client_end[level]);
        else
            for (p->held = 0; k >= 0; k = next[k]) p->stash[p->held++] = p->hand[k]; /* none is left over of what came from the tree */
    }
}

uint64_t oram_simulate_path(oram_forest *p, uint64_t accesses, const uint32_t *addrs, const uint32_t *leaves, uint64_t *counts, uint32_t bins,
                            uint32_t *sizes) {
    for (uint64_t i = 0; i < accesses; i++) {
        uint32_t addr, leaf;
        if (p->held >= p->room) return i;
        ask(p, i, addrs, leaves, &addr, &leaf);
        const uint32_t read = p->position[addr];
        p->position[addr] = leaf;
        unstash(p, addr);
        p->stash[p->held++] = block_of(addr, leaf);
        evict(p, read, addr);
        p->clock++;
        count(counts, bins, p->held);
        if (sizes != NULL) sizes[i] = p->held;
    }
    return accesses;
}

/* ReadPath: the block leaves its bucket or the stash, and every bucket of the path was read once more. */
static void read_path(oram_forest *p, uint32_t leaf, uint32_t addr) {
    const uint32_t Z = p->Z;
    int found = 0;
    for (uint32_t level = 0; level <= p->L; level++) {
        const size_t b = bucket(p, leaf, level);
        uint64_t *entry = p->tree + b * Z;
        p->reads[b]++;
        for (uint32_t z = 0; !found && z < Z && entry[z] != ORAM_SPACE; z++) {
            if (addr_of(entry[z]) != addr) continue;
            found = 1;
            for (; z + 1 < Z; z++) entry[z] = entry[z + 1];
            entry[Z - 1] = ORAM_SPACE;
        }
    }
    if (!found) unstash(p, addr);
}

/* The leaf of an eviction by its number: its bits in reverse. */
static uint32_t due(const oram_forest *p, uint64_t number) {
    uint32_t leaf = 0;
    for (uint32_t i = 0; i < p->L; i++) leaf |= (uint32_t)(number >> i & 1) << (p->L - 1 - i);
    return leaf;
}

uint64_t oram_simulate_ring(oram_forest *p, uint64_t accesses, const uint32_t *addrs, const uint32_t *leaves, uint64_t *before, uint64_t *after,
                            uint32_t bins, uint64_t *early, uint32_t *sizes) {
    for (uint64_t i = 0; i < accesses; i++) {
        uint32_t addr, leaf;
        if (p->held >= p->room) return i;
        ask(p, i, addrs, leaves, &addr, &leaf);
        const uint32_t read = p->position[addr];
        p->position[addr] = leaf;
        read_path(p, read, addr);
        p->stash[p->held++] = block_of(addr, leaf);
        if (++p->clock % p->A == 0) {
            const uint32_t target = due(p, p->clock / p->A - 1);
            count(before, bins, p->held);
            evict(p, target, ORAM_EMPTY);
            count(after, bins, p->held);
            for (uint32_t level = 0; level <= p->L; level++) p->reads[bucket(p, target, level)] = 0;
        }
        for (uint32_t level = 0; level <= p->L; level++) {
            uint16_t *reads = &p->reads[bucket(p, read, level)];
            if (*reads < p->S) continue;
            *reads = 0;
            early[level]++;
        }
        if (sizes != NULL) sizes[i] = p->held;
    }
    return accesses;
}

/* --- Cuckoo hashing */

static uint32_t root_of(uint32_t *parent, uint32_t cell) {
    while (parent[cell] != cell) cell = parent[cell] = parent[parent[cell]];
    return cell;
}

void oram_simulate_cuckoo(uint64_t *random, uint32_t n, uint32_t m, uint64_t builds, uint64_t *counts, uint32_t bins, uint32_t *parent, uint8_t *full) {
    for (uint64_t build = 0; build < builds; build++) {
        uint32_t left = 0;
        for (uint32_t cell = 0; cell < 2 * m; cell++) parent[cell] = cell;
        memset(full, 0, 2 * (size_t)m);
        for (uint32_t key = 0; key < n; key++) {
            const uint64_t x = draw(random);
            const uint32_t one = (uint32_t)(((x >> 32) * m) >> 32), two = m + (uint32_t)(((x & 0xffffffffu) * m) >> 32);
            const uint32_t a = root_of(parent, one), b = root_of(parent, two);
            if (full[a] && full[b]) { /* as many keys as cells on either side */
                left++;
                continue;
            }
            full[b] = a == b || full[a] || full[b];
            parent[a] = b;
        }
        count(counts, bins, left);
    }
}
