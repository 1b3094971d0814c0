/* Ring ORAM (Ren et al. 2015, algorithms 1 to 4) on the union of the paths of a batch and of the evictions that fall due in it.
 * Function by function the same as oram/kernels/reference/ringoram.py. */
#include "batch.h"
#include "bytes.h"
#include "coins.h"
#include "oram.h"
#include "pool.h"

enum { EVICT = 1, TOUCHED = 2 };

static uint32_t levels(const oram_ring *p) { return p->L + 1 - p->T; }
static uint32_t per_bucket(const oram_ring *p) { return p->Z + p->S; }
static uint64_t first_bucket(const oram_ring *p) { return (uint64_t)1 << p->T; }
static uint64_t all_slots(const oram_ring *p) { return (((uint64_t)2 << p->L) - first_bucket(p)) * per_bucket(p); }
static uint32_t evictions(const oram_ring *p, uint32_t m) { return (m + p->A - 1) / p->A; }
/* A leaf without its last bits, which may be all 32. */
static uint32_t above(uint32_t leaf, uint32_t bits) { return (uint32_t)((uint64_t)leaf >> bits); }
static uint32_t chain_of(const oram_ring *p, uint32_t leaf) { return above(leaf, p->L - p->T); }
static size_t meta_plain(const oram_ring *p) { return 8 * (3 + (size_t)p->W) + 6 * (size_t)p->Z; }

size_t oram_ring_most(const oram_ring *p, uint32_t m) { return ((size_t)m + evictions(p, m)) * levels(p); }

/* Scratch memory of one batch. A node is a bucket of the union, an entry a block that may go into one. */
typedef struct {
    uint32_t *count;        /* (3) nodes, evicted, rewritten */
    int32_t *table, *first; /* as in batch.h */
    uint32_t *leaves;       /* (m + evictions) all leaves, ascending */
    uint32_t *evicted;      /* (evictions) those evicted to, ascending */
    uint32_t *node;         /* (leaves, levels) nodes on the path of each */
    uint32_t *path_at, *evict_at; /* (m), (evictions) index of each in `leaves` */
    uint64_t *number;       /* (nodes) of the bucket */
    int32_t *parent;        /* (nodes) -1 at level T */
    uint32_t *flags;        /* (nodes) */
    uint64_t *spent, *here; /* (nodes, W) slots read, with those of this batch; slots whose block is there */
    uint32_t *rewritten;    /* (nodes) nodes to be written anew */
    int32_t *home;          /* (m) level at which a first request's block is read online, -1 if it is not */
    uint32_t *of_slot;      /* (Z + S) address of the block in each slot of one bucket */
    uint32_t *order;        /* (Z + S) */
    int32_t *held;          /* (m) pool slot of a first request's block, -1 if there is none */
    const uint8_t **found;  /* (m) bytes of a first request's block, as read */
    const uint8_t **source; /* (entries) */
    uint32_t *addr;         /* (entries) */
    int32_t *pool, *next;   /* (entries) pool slot or -1; list of a node */
    int32_t *server, *server_end, *client, *client_end; /* (nodes) lists by origin */
    int32_t *placed;        /* (nodes, Z) entry, -1 if none */
    uint8_t *block;         /* (m, B) blocks read online */
    uint8_t *desk;          /* (B + ORAM_TAG) */
    uint8_t *left;          /* (B + ORAM_TAG) what is left of an XOR */
    uint8_t *row;           /* (meta_plain + ORAM_TAG) */
    uint32_t mask;
} scratch;

static size_t layout(const oram_ring *p, uint32_t m, uint8_t *base, scratch *s) {
    const size_t nodes = oram_ring_most(p, m), e = evictions(p, m), entries = nodes * p->Z + (size_t)p->pool.cap;
    const size_t table = table_size(m);
    size_t at = 0;
    s->mask = (uint32_t)(table - 1);
    TAKE(count, uint32_t, 3);
    TAKE(table, int32_t, table);
    TAKE(first, int32_t, m);
    TAKE(leaves, uint32_t, m + e);
    TAKE(evicted, uint32_t, e);
    TAKE(node, uint32_t, nodes);
    TAKE(path_at, uint32_t, m);
    TAKE(evict_at, uint32_t, e);
    TAKE(number, uint64_t, nodes);
    TAKE(parent, int32_t, nodes);
    TAKE(flags, uint32_t, nodes);
    TAKE(spent, uint64_t, nodes * p->W);
    TAKE(here, uint64_t, nodes * p->W);
    TAKE(rewritten, uint32_t, nodes);
    TAKE(home, int32_t, m);
    TAKE(of_slot, uint32_t, per_bucket(p));
    TAKE(order, uint32_t, per_bucket(p));
    TAKE(held, int32_t, m);
    TAKE(server, int32_t, nodes);
    TAKE(server_end, int32_t, nodes);
    TAKE(client, int32_t, nodes);
    TAKE(client_end, int32_t, nodes);
    TAKE(placed, int32_t, nodes * p->Z);
    TAKE(found, const uint8_t *, m);
    TAKE(source, const uint8_t *, entries);
    TAKE(addr, uint32_t, entries);
    TAKE(pool, int32_t, entries);
    TAKE(next, int32_t, entries);
    TAKE(desk, uint8_t, (size_t)p->B + ORAM_TAG);
    TAKE(left, uint8_t, (size_t)p->B + ORAM_TAG);
    TAKE(row, uint8_t, meta_plain(p) + ORAM_TAG);
    TAKE(block, uint8_t, (size_t)m * p->B);
    return at;
}

size_t oram_ring_scratch(const oram_ring *p, uint32_t m) {
    scratch s;
    return layout(p, m, NULL, &s);
}

static size_t row_of(const oram_ring *p, const scratch *s, uint32_t node) { return p->windowed ? node : (size_t)s->number[node]; }
static uint32_t on_path(const oram_ring *p, const scratch *s, uint32_t leaf_index, uint32_t j) { return s->node[(size_t)leaf_index * levels(p) + j]; }

/* --- sets of slots */

static int has(const uint64_t *set, uint32_t slot) { return (int)(set[slot >> 6] >> (slot & 63) & 1); }
static void add(uint64_t *set, uint32_t slot) { set[slot >> 6] |= (uint64_t)1 << (slot & 63); }
static uint32_t size(const uint64_t *set, uint32_t words) {
    uint32_t n = 0;
    for (uint32_t w = 0; w < words; w++) n += (uint32_t)__builtin_popcountll(set[w]);
    return n;
}

/* A random slot that is in neither set (they are disjoint). */
static int dummy(const oram_ring *p, const uint64_t *spent, const uint64_t *taken, uint32_t *slot) {
    const uint32_t n = per_bucket(p), used = size(spent, p->W) + size(taken, p->W);
    uint32_t k;
    if (used >= n) return ORAM_BROKEN; /* the parameters leave a dummy wherever one is needed */
    const int rc = coins_below(p->coins, n - used, &k);
    if (rc != ORAM_OK) return rc;
    for (uint32_t w = 0; w < p->W; w++) {
        uint64_t free = ~(spent[w] | taken[w]);
        if (w == p->W - 1 && n % 64 != 0) free &= ((uint64_t)1 << (n % 64)) - 1;
        const uint32_t here = (uint32_t)__builtin_popcountll(free);
        if (k >= here) {
            k -= here;
            continue;
        }
        for (; k > 0; k--) free &= free - 1;
        *slot = w * 64 + (uint32_t)__builtin_ctzll(free);
        return ORAM_OK;
    }
    return ORAM_BROKEN;
}

/* --- which buckets */

static uint32_t reversed(uint64_t G, uint32_t L) {
    uint32_t leaf = 0;
    for (uint32_t i = 0; i < L; i++) leaf |= (uint32_t)(G >> i & 1) << (L - 1 - i);
    return leaf;
}

uint32_t oram_ring_buckets(const oram_ring *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                           uint32_t *path, uint64_t *number, uint8_t *base) {
    const uint32_t leaf_mask = (uint32_t)(((uint64_t)1 << p->L) - 1);
    const uint64_t begun = *p->clock;
    uint32_t nodes = 0, due = 0;
    scratch s;
    layout(p, m, base, &s);

    first_requests(m, ops, addrs, draws, p->position, leaf_mask, path, s.first, s.table, s.mask);
    for (uint64_t G = begun / p->A; G < (begun + m) / p->A; G++) s.evicted[due++] = reversed(G, p->L);
    due = sort_unique(s.evicted, due);
    memcpy(s.leaves, path, m * sizeof *path);
    memcpy(s.leaves + m, s.evicted, due * sizeof *path);
    const uint32_t leaves = sort_unique(s.leaves, m + due);

    for (uint32_t j = 0; j < levels(p); j++) {
        const uint32_t level = p->T + j;
        for (uint32_t i = 0; i < leaves; i++) {
            const uint64_t bucket = ((uint64_t)1 << level) + above(s.leaves[i], p->L - level) - first_bucket(p);
            if (i == 0 || bucket != s.number[nodes - 1]) {
                s.number[nodes] = number[nodes] = bucket;
                s.parent[nodes] = j == 0 ? -1 : (int32_t)on_path(p, &s, i, j - 1);
                s.flags[nodes++] = 0;
            }
            s.node[(size_t)i * levels(p) + j] = nodes - 1;
        }
    }
    for (uint32_t i = 0; i < due; i++) {
        s.evict_at[i] = lower_bound(s.leaves, leaves, s.evicted[i]);
        for (uint32_t j = 0; j < levels(p); j++) s.flags[on_path(p, &s, s.evict_at[i], j)] |= EVICT;
    }
    for (uint32_t r = 0; r < m; r++) {
        s.path_at[r] = lower_bound(s.leaves, leaves, path[r]);
        for (uint32_t j = 0; j < levels(p); j++) s.flags[on_path(p, &s, s.path_at[r], j)] |= TOUCHED;
    }
    s.count[0] = nodes;
    s.count[1] = due;
    return nodes;
}

/* --- metadata at the server */

int oram_ring_load(oram_ring *p, const oram_keys *keys, uint32_t m, const uint8_t *sealed, const uint8_t *present, int in_place, uint8_t *base) {
    const size_t len = meta_plain(p);
    int bad = ORAM_OK;
    scratch s;
    layout(p, m, base, &s);
    for (uint32_t u = 0; u < s.count[0]; u++) {
        const uint64_t bucket = s.number[u];
        const size_t at = in_place ? (size_t)bucket : u;
        const uint64_t ref = s.parent[u] < 0 ? p->roots[bucket] : p->children[(size_t)s.parent[u] * 2 + ((bucket + first_bucket(p)) & 1)];
        const int rc = open_ref(keys, all_slots(p) + bucket, ref, sealed + at * (len + ORAM_TAG), present[at], len, s.row);
        if (rc > 0) return rc;
        bad |= rc;
        const uint8_t *row = s.row;
        for (uint32_t c = 0; c < 2; c++, row += 8) p->children[(size_t)u * 2 + c] = ld64(row);
        p->refs[u] = ld64(row);
        row += 8;
        for (uint32_t w = 0; w < p->W; w++, row += 8) p->spent[(size_t)u * p->W + w] = ld64(row);
        for (uint32_t z = 0; z < p->Z; z++, row += 4) p->addr[(size_t)u * p->Z + z] = ld32(row);
        for (uint32_t z = 0; z < p->Z; z++, row += 2) p->slot[(size_t)u * p->Z + z] = (uint16_t)(row[0] | row[1] << 8);
    }
    return bad == ORAM_OK ? ORAM_OK : ORAM_TAMPERED;
}

int oram_ring_store(oram_ring *p, oram_keys *keys, uint32_t m, uint8_t *sealed, uint8_t *present, int in_place, uint8_t *base) {
    const size_t len = meta_plain(p);
    const uint64_t counter = keys->counter;
    scratch s;
    layout(p, m, base, &s);
    const uint32_t nodes = s.count[0];
    if (counter + nodes > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    keys->counter += nodes; /* before the first seal */
    for (uint32_t u = 0; u < nodes; u++) {
        const uint64_t bucket = s.number[u], ref = REF(keys->current, counter + u);
        if (s.parent[u] < 0)
            p->roots[bucket] = ref;
        else
            p->children[(size_t)s.parent[u] * 2 + ((bucket + first_bucket(p)) & 1)] = ref;
    }
    for (uint32_t u = 0; u < nodes; u++) {
        const uint64_t bucket = s.number[u];
        const size_t at = in_place ? (size_t)bucket : u;
        uint8_t *row = s.row;
        for (uint32_t c = 0; c < 2; c++, row += 8) st64(row, p->children[(size_t)u * 2 + c]);
        st64(row, p->refs[u]);
        row += 8;
        for (uint32_t w = 0; w < p->W; w++, row += 8) st64(row, p->spent[(size_t)u * p->W + w]);
        for (uint32_t z = 0; z < p->Z; z++, row += 4) st32(row, p->addr[(size_t)u * p->Z + z]);
        for (uint32_t z = 0; z < p->Z; z++, row += 2) {
            row[0] = (uint8_t)(p->slot[(size_t)u * p->Z + z] & 0xff);
            row[1] = (uint8_t)(p->slot[(size_t)u * p->Z + z] >> 8);
        }
        const int rc = keys->cipher->seal(keys->contexts[keys->current], counter + u, all_slots(p) + bucket, s.row, len, sealed + at * (len + ORAM_TAG));
        if (rc != ORAM_OK) return rc;
        if (present != NULL) present[at] = 1;
    }
    return ORAM_OK;
}

/* --- which slots */

int64_t oram_ring_plan(const oram_ring *p, uint32_t m, const uint32_t *addrs, const uint8_t *seed, int64_t *online,
                       uint64_t *rewritten, uint64_t *fetched, uint8_t *base) {
    const uint32_t n = per_bucket(p), W = p->W;
    uint32_t count = 0;
    scratch s;
    layout(p, m, base, &s);
    int rc = coins_start(p->coins, seed);
    if (rc != ORAM_OK) return rc;

    for (uint32_t u = 0; u < s.count[0]; u++) {
        const size_t row = row_of(p, &s, u);
        uint64_t *spent = s.spent + (size_t)u * W, *here = s.here + (size_t)u * W;
        memcpy(spent, p->spent + row * W, W * sizeof *spent);
        memset(here, 0, W * sizeof *here);
        if (p->refs[row] == 0) continue;
        for (uint32_t z = 0; z < p->Z; z++) {
            const uint32_t slot = p->slot[row * p->Z + z];
            if (p->addr[row * p->Z + z] != ORAM_EMPTY && slot < n && !has(spent, slot)) add(here, slot);
        }
    }

    /* ReadPath: the block where it is, a random dummy at every other level. */
    for (uint32_t r = 0; r < m; r++) {
        s.home[r] = -1;
        for (uint32_t j = 0; j < levels(p); j++) {
            const uint32_t u = on_path(p, &s, s.path_at[r], j);
            const size_t row = row_of(p, &s, u);
            uint64_t *spent = s.spent + (size_t)u * W, *here = s.here + (size_t)u * W;
            int64_t *to = online + (size_t)r * levels(p) + j;
            uint32_t slot = n;
            *to = -1;
            if (size(spent, W) >= p->S) continue; /* no dummy may be left; it is fetched whole */
            if (s.first[r] == (int32_t)r && p->refs[row] != 0)
                for (uint32_t z = 0; z < p->Z; z++) {
                    const uint32_t at = p->slot[row * p->Z + z];
                    if (p->addr[row * p->Z + z] != addrs[r] || at >= n || !has(here, at)) continue;
                    slot = at;
                    s.home[r] = (int32_t)j;
                    here[slot >> 6] &= ~((uint64_t)1 << (slot & 63));
                    break;
                }
            if (slot == n && (rc = dummy(p, spent, here, &slot)) != ORAM_OK) return rc;
            add(spent, slot);
            *to = (int64_t)(s.number[u] * n + slot);
        }
    }

    /* EvictPath and EarlyReshuffle: Z slots, the blocks still there and random dummies. */
    for (uint32_t u = 0; u < s.count[0]; u++) {
        uint64_t *spent = s.spent + (size_t)u * W;
        if (!(s.flags[u] & EVICT) && !((s.flags[u] & TOUCHED) && size(spent, W) >= p->S)) continue;
        uint64_t taken[(ORAM_MAX_BUCKET + 63) / 64];
        memcpy(taken, s.here + (size_t)u * W, W * sizeof *taken);
        for (uint32_t k = size(taken, W); k < p->Z; k++) {
            uint32_t slot;
            if ((rc = dummy(p, spent, taken, &slot)) != ORAM_OK) return rc;
            add(taken, slot);
        }
        uint64_t *to = fetched + (size_t)count * p->Z;
        for (uint32_t w = 0; w < W; w++)
            for (uint64_t rest = taken[w]; rest != 0; rest &= rest - 1) *to++ = s.number[u] * n + w * 64 + (uint32_t)__builtin_ctzll(rest);
        s.rewritten[count] = u;
        rewritten[count++] = s.number[u];
    }
    s.count[2] = count;
    return count;
}

/* --- the access */

static uint64_t ref_of(const oram_ring *p, size_t row, uint32_t slot) { return p->refs[row] == 0 ? 0 : p->refs[row] + slot; }

/* What is left of the XOR of a request's online slots once its dummies are cancelled must open as the block, or be nothing at all. */
static int unfold(const oram_ring *p, const oram_keys *keys, const scratch *s, uint32_t r, const int64_t *online, const uint8_t *folded, uint8_t *block) {
    const uint32_t n = per_bucket(p);
    const size_t pitch = (size_t)p->B + ORAM_TAG;
    uint64_t real = 0, ref = 0;
    int is_real = 0;
    memcpy(s->left, folded, pitch);
    for (uint32_t j = 0; j < levels(p); j++) {
        if (online[j] < 0) continue;
        const uint64_t of_slot = ref_of(p, row_of(p, s, on_path(p, s, s->path_at[r], j)), (uint32_t)((uint64_t)online[j] % n));
        if (s->home[r] == (int32_t)j) {
            real = (uint64_t)online[j];
            ref = of_slot;
            is_real = 1;
            continue;
        }
        if (of_slot == 0) continue;
        const uint32_t generation = REF_GENERATION(of_slot);
        if (generation == 0 || generation > INT32_MAX) return ORAM_TAMPERED;
        if (generation >= keys->count || keys->contexts[generation] == NULL) return (int)generation;
        memset(s->desk, 0, p->B);
        const int rc = keys->cipher->seal(keys->contexts[generation], REF_COUNTER(of_slot), (uint64_t)online[j], s->desk, p->B, s->desk);
        if (rc != ORAM_OK) return rc;
        for (size_t i = 0; i < pitch; i++) s->left[i] ^= s->desk[i];
    }
    if (is_real) return open_ref(keys, real, ref, s->left, 1, p->B, block);
    uint8_t any = 0;
    for (size_t i = 0; i < pitch; i++) any |= s->left[i];
    return any == 0 ? ORAM_OK : ORAM_TAMPERED;
}

/* Begin to bring a slot of a region nearer; the processor goes on by itself. */
static void fetch_ahead(const uint8_t *sealed, size_t len) {
    for (size_t i = 0; i < len && i < 1024; i += 64) __builtin_prefetch(sealed + i);
}

/* Every slot read must open, real or dummy: or whether a change is noticed would say which it was. */
static int open_all(const oram_ring *p, const oram_keys *keys, scratch *s, uint32_t m, const int64_t *online, const uint64_t *fetched,
                    const uint8_t *sealed, const uint8_t *present, int in_place, const uint8_t *folded, uint8_t *plain) {
    const uint32_t n = per_bucket(p);
    const size_t pitch = (size_t)p->B + ORAM_TAG, B = p->B;
    size_t next = 0;
    int bad = ORAM_OK;
    for (uint32_t r = 0; r < m; r++) {
        uint8_t *block = s->block + r * B;
        const int64_t *mine = online + (size_t)r * levels(p);
        s->found[r] = s->home[r] < 0 ? NULL : block;
        if (folded != NULL) {
            const int rc = unfold(p, keys, s, r, mine, folded + r * pitch, block);
            if (rc > 0 || rc == ORAM_CIPHER_FAILED) return rc;
            bad |= rc;
            continue;
        }
        for (uint32_t j = 0; j < levels(p); j++) {
            if (mine[j] < 0) continue;
            const uint32_t u = on_path(p, s, s->path_at[r], j);
            const size_t at = in_place ? (size_t)mine[j] : next++;
            if (in_place && j + 1 < levels(p) && mine[j + 1] >= 0) fetch_ahead(sealed + (size_t)mine[j + 1] * pitch, pitch);
            const int rc = open_ref(keys, (uint64_t)mine[j], ref_of(p, row_of(p, s, u), (uint32_t)((uint64_t)mine[j] % n)), sealed + at * pitch, present[at],
                                    B, s->home[r] == (int32_t)j ? block : s->desk);
            if (rc > 0) return rc;
            bad |= rc;
        }
    }
    for (size_t i = 0; i < (size_t)s->count[2] * p->Z; i++) {
        const uint32_t u = s->rewritten[i / p->Z], slot = (uint32_t)(fetched[i] % n);
        const size_t at = in_place ? (size_t)fetched[i] : next++;
        if (in_place && i + 1 < (size_t)s->count[2] * p->Z) fetch_ahead(sealed + (size_t)fetched[i + 1] * pitch, pitch);
        uint8_t *to = has(s->here + (size_t)u * p->W, slot) ? plain + i * B : s->desk; /* dummies stay in the cache */
        const int rc = open_ref(keys, fetched[i], ref_of(p, row_of(p, s, u), slot), sealed + at * pitch, present[at], B, to);
        if (rc > 0) return rc;
        bad |= rc;
    }
    return bad == ORAM_OK ? ORAM_OK : ORAM_TAMPERED;
}

/* The deepest bucket evicted to on the path of a leaf: on one of the two nearest paths; -1 if there is none. */
static int32_t deepest(const oram_ring *p, const scratch *s, uint32_t leaf) {
    const uint32_t at = lower_bound(s->evicted, s->count[1], leaf);
    uint32_t near = at == s->count[1] ? at - 1 : at;
    if (at > 0 && at < s->count[1]) {
        const uint32_t a = s->evicted[at - 1] ^ leaf, b = s->evicted[at] ^ leaf;
        if ((a == 0 ? 0 : 32 - (uint32_t)__builtin_clz(a)) <= (b == 0 ? 0 : 32 - (uint32_t)__builtin_clz(b))) near = at - 1;
    }
    const uint32_t differ = s->evicted[near] ^ leaf, bits = differ == 0 ? 0 : 32 - (uint32_t)__builtin_clz(differ);
    return bits > p->L - p->T ? -1 : (int32_t)on_path(p, s, s->evict_at[near], p->L - p->T - bits);
}

int oram_ring_access(oram_ring *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                     const uint32_t *path, const int64_t *online, uint32_t count, const uint64_t *fetched, uint8_t *sealed,
                     uint8_t *present, int in_place, const uint8_t *folded, const uint8_t *data, uint8_t *out, uint8_t *plain,
                     uint8_t *written, uint8_t *meta, uint8_t *meta_present, uint32_t *new_addr, uint16_t *new_slot, uint8_t *where,
                     uint32_t *pool, uint8_t *after, uint8_t *base) {
    const uint32_t n = per_bucket(p), Z = p->Z, W = p->W, leaf_mask = (uint32_t)(((uint64_t)1 << p->L) - 1);
    const size_t B = p->B, pitch = B + ORAM_TAG;
    uint32_t needed = 0;
    int32_t entries = 0, stay = -1, stay_end = -1;
    scratch s;
    layout(p, m, base, &s);
    if (count != s.count[2]) return ORAM_BROKEN;

    if (keys->counter + (uint64_t)count * n + s.count[0] > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    int rc = open_all(p, keys, &s, m, online, fetched, sealed, present, in_place, folded, plain);
    if (rc != ORAM_OK) return rc;
    for (uint32_t r = 0; r < m; r++) {
        if (s.first[r] != (int32_t)r) continue;
        if (p->position[addrs[r]] != path[r]) return ORAM_BROKEN; /* no leaf, or another plan */
        needed++;
    }
    if ((uint32_t)(p->pool.cap - p->pool.used) < needed) return ORAM_POOL_FULL;

    /* What was fetched: blocks asked for, and entries of the buckets they were in. */
    memset(s.server, 0xff, s.count[0] * sizeof *s.server);
    memset(s.client, 0xff, s.count[0] * sizeof *s.client);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t u = s.rewritten[i];
        const size_t row = row_of(p, &s, u);
        const uint64_t *here = s.here + (size_t)u * W;
        memset(s.of_slot, 0xff, n * sizeof *s.of_slot);
        for (uint32_t z = 0; z < Z && p->refs[row] != 0; z++) {
            const uint32_t slot = p->slot[row * Z + z];
            if (p->addr[row * Z + z] != ORAM_EMPTY && slot < n && has(here, slot)) s.of_slot[slot] = p->addr[row * Z + z];
        }
        for (uint32_t k = 0; k < Z; k++) {
            const uint32_t addr = s.of_slot[fetched[(size_t)i * Z + k] % n];
            const uint8_t *block = plain + ((size_t)i * Z + k) * B;
            if (addr == ORAM_EMPTY) continue;
            if (addr >= p->N) return ORAM_BROKEN; /* nothing was changed, but only a row that this code never made can do it */
            const int32_t r = s.table[table_cell(s.table, s.mask, addrs, addr)];
            if (r >= 0) {
                s.found[r] = block;
                continue;
            }
            s.addr[entries] = addr;
            s.pool[entries] = -1;
            s.source[entries] = block;
            const int32_t to = s.flags[u] & EVICT ? deepest(p, &s, p->position[addr]) : (int32_t)u;
            if (to < 0) return ORAM_BROKEN; /* likewise: a block off its path */
            append(s.next, &s.server[to], &s.server_end[to], entries++);
        }
    }
    for (uint32_t u = 0; u < s.count[0]; u++) memcpy(p->spent + row_of(p, &s, u) * W, s.spent + (size_t)u * W, W * sizeof *s.spent);

    /* Serve the requests in order; the first one to an address remaps it, and brings its block into the pool. */
    for (uint32_t r = 0; r < m; r++) {
        const int32_t f = s.first[r];
        memset(out + r * B, 0, B);
        if (f < 0) continue;
        if (f == (int32_t)r) {
            int32_t q = pool_unlink(&p->pool, addrs[r], chain_of(p, path[r]));
            if (q < 0 && s.found[r] != NULL) {
                q = pool_take(&p->pool, addrs[r]);
                if (q < 0) return ORAM_BROKEN;
                memcpy(p->pool.data + (size_t)q * B, s.found[r], B);
            }
            s.held[r] = q;
            p->position[addrs[r]] = draws[r] & leaf_mask;
        }
        int32_t *held = &s.held[f];
        if (*held >= 0) memcpy(out + r * B, p->pool.data + (size_t)*held * B, B);
        if (ops[r] == ORAM_WRITE) {
            if (*held < 0) *held = pool_take(&p->pool, addrs[r]);
            if (*held < 0) return ORAM_BROKEN;
            memcpy(p->pool.data + (size_t)*held * B, data + r * B, B);
        } else if (ops[r] == ORAM_REMOVE && *held >= 0) {
            pool_give(&p->pool, *held);
            *held = -1;
        }
    }
    for (uint32_t r = 0; r < m; r++)
        if (s.first[r] == (int32_t)r && s.held[r] >= 0) {
            const uint32_t leaf = p->position[addrs[r]];
            p->pool.leaf[s.held[r]] = leaf;
            pool_link(&p->pool, s.held[r], chain_of(p, leaf));
        }

    /* EvictPath, bottom-up: a bucket takes up to Z of its blocks, those that came from the server first, and hands the rest up.
     * EarlyReshuffle: a bucket takes what was in it. */
    for (uint32_t i = 0; i < s.count[1]; i++) {
        const uint32_t chain = chain_of(p, s.evicted[i]);
        if (i > 0 && chain == chain_of(p, s.evicted[i - 1])) continue;
        for (int32_t q = p->pool.head[chain]; q >= 0; q = p->pool.next[q]) {
            s.addr[entries] = p->pool.addr[q];
            s.pool[entries] = q;
            s.source[entries] = p->pool.data + (size_t)q * B;
            const int32_t to = deepest(p, &s, p->pool.leaf[q]);
            if (to < 0) return ORAM_BROKEN;
            append(s.next, &s.client[to], &s.client_end[to], entries++);
        }
        p->pool.head[chain] = -1;
    }
    memset(s.placed, 0xff, (size_t)count * Z * sizeof *s.placed);
    for (uint32_t i = count; i-- > 0;) {
        const uint32_t u = s.rewritten[i];
        int32_t mine = s.server[u], theirs = s.client[u];
        for (uint32_t z = 0; z < Z && (mine >= 0 || theirs >= 0); z++) {
            int32_t *from = mine >= 0 ? &mine : &theirs;
            s.placed[(size_t)i * Z + z] = *from;
            *from = s.next[*from];
        }
        if (s.parent[u] < 0 || !(s.flags[u] & EVICT)) {
            if (mine >= 0) return ORAM_BROKEN; /* blocks from the server always find room */
            append_list(s.next, &stay, &stay_end, theirs, s.client_end[u]);
            continue;
        }
        const uint32_t up = (uint32_t)s.parent[u];
        append_list(s.next, &s.server[up], &s.server_end[up], mine, s.server_end[u]);
        append_list(s.next, &s.client[up], &s.client_end[up], theirs, s.client_end[u]);
    }
    for (int32_t k = stay; k >= 0; k = s.next[k]) pool_link(&p->pool, s.pool[k], chain_of(p, p->pool.leaf[s.pool[k]]));

    /* WriteBucket: blocks at random slots, zeros in the others, all sealed anew. */
    const uint64_t counter = keys->counter;
    keys->counter += (uint64_t)count * n; /* before the first seal: whatever happens then, no nonce is used twice */
    memset(s.desk, 0, B);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t u = s.rewritten[i];
        const size_t row = row_of(p, &s, u);
        for (uint32_t k = 0; k < n; k++) s.order[k] = k;
        memset(s.of_slot, 0xff, n * sizeof *s.of_slot);
        for (uint32_t z = 0; z < Z; z++) {
            const int32_t k = s.placed[(size_t)i * Z + z];
            p->addr[row * Z + z] = k < 0 ? ORAM_EMPTY : s.addr[k];
            p->slot[row * Z + z] = 0;
            if (k < 0) continue;
            uint32_t other;
            if ((rc = coins_below(p->coins, n - z, &other)) != ORAM_OK) return rc;
            const uint32_t slot = s.order[z + other];
            s.order[z + other] = s.order[z];
            s.order[z] = slot;
            s.of_slot[slot] = (uint32_t)k;
            p->slot[row * Z + z] = (uint16_t)slot;
        }
        for (uint32_t slot = 0; slot < n; slot++) {
            const uint64_t number = s.number[u] * n + slot;
            const size_t at = in_place ? (size_t)number : (size_t)i * n + slot;
            uint8_t *to = (in_place ? sealed : written) + at * pitch;
            const uint8_t *from = s.of_slot[slot] == ORAM_EMPTY ? s.desk : s.source[s.of_slot[slot]];
            rc = keys->cipher->seal(keys->contexts[keys->current], counter + (uint64_t)i * n + slot, number, from, B, to);
            if (rc != ORAM_OK) return rc;
            if (in_place) present[at] = 1;
        }
        p->refs[row] = REF(keys->current, counter + (uint64_t)i * n);
        memset(p->spent + row * W, 0, W * sizeof *p->spent);
        for (uint32_t z = 0; z < Z; z++) {
            const int32_t k = s.placed[(size_t)i * Z + z];
            if (k >= 0 && s.pool[k] >= 0) pool_give(&p->pool, s.pool[k]);
            if (new_addr != NULL) {
                new_addr[(size_t)i * Z + z] = p->addr[row * Z + z];
                new_slot[(size_t)i * Z + z] = p->slot[row * Z + z];
            }
        }
    }
    *p->clock += m;

    for (uint32_t r = 0; where != NULL && r < m; r++) {
        const int32_t q = s.first[r] == (int32_t)r ? s.held[r] : -1;
        const int inside = q >= 0 && p->pool.addr[q] == addrs[r];
        where[r] = s.first[r] != (int32_t)r ? ORAM_AT_REPEAT : q < 0 ? ORAM_AT_NONE : inside ? ORAM_AT_POOL : ORAM_AT_SERVER;
        pool[r] = inside ? (uint32_t)q : ORAM_EMPTY;
        if (q < 0)
            memset(after + r * B, 0, B);
        else
            memcpy(after + r * B, p->pool.data + (size_t)q * B, B); /* also where it was given back: nobody has taken it since */
    }
    return meta == NULL ? ORAM_OK : oram_ring_store(p, keys, m, meta, meta_present, 1, base);
}

int oram_ring_in_place(oram_ring *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                       const uint8_t *seed, uint32_t *path, uint64_t *number, int64_t *online, uint64_t *rewritten, uint64_t *fetched,
                       uint8_t *sealed, uint8_t *present, uint8_t *meta, uint8_t *meta_present, const uint8_t *data, uint8_t *out,
                       uint8_t *plain, uint32_t room, uint32_t *count, uint8_t *base) {
    oram_ring_buckets(p, m, ops, addrs, draws, path, number, base);
    if (meta != NULL) {
        const int rc = oram_ring_load(p, keys, m, meta, meta_present, 1, base);
        if (rc != ORAM_OK) return rc;
    }
    const int64_t planned = oram_ring_plan(p, m, addrs, seed, online, rewritten, fetched, base);
    if (planned < 0) return (int)planned;
    *count = (uint32_t)planned;
    if (*count > room) return ORAM_NO_ROOM;
    return oram_ring_access(p, keys, m, ops, addrs, draws, path, online, *count, fetched, sealed, present, 1, NULL, data, out, plain,
                            NULL, meta, meta_present, NULL, NULL, NULL, NULL, NULL, base);
}
