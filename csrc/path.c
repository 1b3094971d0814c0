/* Path ORAM (Stefanov et al. 2013, figure 1) on the union of the paths of a batch. Metadata is planned first; each
 * block's bytes then move once. Function by function the same as oram/kernels/reference/pathoram.py. */
#include "batch.h"
#include "bytes.h"
#include "oram.h"
#include "pool.h"

static uint32_t buckets(const oram_path *p) { return (1u << p->h) - 1; }
static uint32_t height(const oram_path *p, uint32_t layer) { return layer == 0 ? p->h0 : p->h; }
static uint32_t root_level(const oram_path *p, uint32_t layer) { return layer == 0 ? p->T : p->T + p->h0 + (layer - 1) * p->h; }
static uint32_t prefix(const oram_path *p, uint32_t leaf, uint32_t level) { return leaf >> (p->L - level); }
static size_t meta_at(const oram_path *p) { return (size_t)8 << p->h; }
static size_t blocks_at(const oram_path *p) { return meta_at(p) + (size_t)buckets(p) * p->Z * 8; }

/* Scratch memory of one batch. */
typedef struct {
    const uint8_t **source; /* (entries) where the block's bytes are */
    uint32_t *addr, *leaf;  /* (entries) */
    int32_t *next;          /* (entries) list of a node */
    int32_t *pool;          /* (entries) its pool slot, -1 if it is not in the pool */
    int32_t *page;          /* (entries) page it was read from, -1 if none; only such an entry has priority */
    int32_t *table;         /* (mask + 1) address -> first request */
    int32_t *first;         /* (m) first request to the same address, -1 for dummies */
    uint32_t *sorted;       /* (m) paths in ascending order */
    int32_t *parent;        /* (pages) page above, -1 in layer 0 */
    uint32_t *turn;         /* (pages) which child of its parent it is */
    uint32_t *start;        /* (layers + 1) first page of each layer */
    int32_t *child;         /* (pages << h) */
    int32_t *entry;         /* (m) entry of a first request's block, -1 if it has none */
    int32_t *server, *server_end, *client, *client_end; /* (pages * buckets) lists of a node, by origin */
    int32_t *slot;          /* (pages * buckets * Z) entry placed there, -1 if none */
    uint8_t *plain;         /* (pages, plain) */
    uint8_t *desk;          /* (plain) the page being assembled */
    uint32_t mask;
} scratch;

static size_t layout(const oram_path *p, uint32_t m, uint8_t *base, scratch *s) {
    const size_t pages = (size_t)m * p->layers, nodes = pages * buckets(p), slots = nodes * p->Z;
    const size_t entries = slots + (size_t)p->pool.cap + m;
    const size_t table = table_size(m);
    size_t at = 0;
    s->mask = (uint32_t)(table - 1);
    TAKE(table, int32_t, table);
    TAKE(first, int32_t, m);
    TAKE(sorted, uint32_t, m);
    TAKE(parent, int32_t, pages);
    TAKE(turn, uint32_t, pages);
    TAKE(start, uint32_t, p->layers + 1);
    TAKE(child, int32_t, pages << p->h);
    TAKE(entry, int32_t, m);
    TAKE(server, int32_t, nodes);
    TAKE(server_end, int32_t, nodes);
    TAKE(client, int32_t, nodes);
    TAKE(client_end, int32_t, nodes);
    TAKE(slot, int32_t, slots);
    TAKE(source, const uint8_t *, entries);
    TAKE(addr, uint32_t, entries);
    TAKE(leaf, uint32_t, entries);
    TAKE(next, int32_t, entries);
    TAKE(pool, int32_t, entries);
    TAKE(page, int32_t, entries);
    TAKE(plain, uint8_t, pages * p->plain);
    TAKE(desk, uint8_t, p->plain);
    return at;
}

size_t oram_path_scratch(const oram_path *p, uint32_t m) {
    scratch s;
    return layout(p, m, NULL, &s);
}

uint32_t oram_path_plan(const oram_path *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                        uint32_t *path, uint64_t *slots, uint8_t *base) {
    const uint32_t leaf_mask = (uint32_t)(((uint64_t)1 << p->L) - 1);
    uint32_t pages = 0;
    uint64_t offset = 0;
    scratch s;
    layout(p, m, base, &s);

    first_requests(m, ops, addrs, draws, p->position, leaf_mask, path, s.first, s.table, s.mask);
    memcpy(s.sorted, path, m * sizeof *path);
    const uint32_t unique = sort_unique(s.sorted, m);

    for (uint32_t j = 0; j < p->layers; j++) {
        const uint32_t level = root_level(p, j), above = j == 0 ? 0 : height(p, j - 1);
        uint32_t parent = j == 0 ? 0 : s.start[j - 1];
        s.start[j] = pages;
        for (uint32_t r = 0; r < unique; r++) {
            const uint64_t slot = offset + prefix(p, s.sorted[r], level);
            if (pages > s.start[j] && slots[pages - 1] == slot) continue;
            if (j > 0) { /* both layers ascend, so the parent is found going forward */
                const uint64_t up = offset - ((uint64_t)1 << root_level(p, j - 1)) + ((slot - offset) >> above);
                while (slots[parent] != up) parent++;
            }
            s.parent[pages] = j == 0 ? -1 : (int32_t)parent;
            s.turn[pages] = (uint32_t)((slot - offset) & (((uint64_t)1 << above) - 1));
            slots[pages++] = slot;
        }
        offset += (uint64_t)1 << level;
    }
    s.start[p->layers] = pages;
    return pages;
}

static void empty_page(const oram_path *p, uint8_t *plain) {
    memset(plain, 0, p->plain);
    for (uint32_t i = 0; i < buckets(p) * p->Z; i++) st32(plain + meta_at(p) + (size_t)i * 8, ORAM_EMPTY);
}

/* Opens one page under `ref`. A generation without context is reported as such. */
static int open_page(const oram_path *p, const oram_keys *keys, uint64_t slot, uint64_t ref, const uint8_t *sealed, int present, uint8_t *plain) {
    const int rc = ref == 0 ? ORAM_OK : open_ref(keys, slot, ref, sealed, present, p->plain, plain);
    if (ref == 0 || rc == ORAM_TAMPERED) empty_page(p, plain);
    return rc;
}

int oram_path_open(const oram_path *p, const oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *refs,
                   const uint8_t *sealed, const uint8_t *present, uint8_t *plain) {
    int bad = ORAM_OK;
    for (uint32_t i = 0; i < n; i++) {
        int rc = open_page(p, keys, slots[i], refs[i], sealed + (size_t)i * ((size_t)p->plain + ORAM_TAG), present[i], plain + (size_t)i * p->plain);
        if (rc > 0) return rc;
        bad |= rc;
    }
    return bad == ORAM_OK ? ORAM_OK : ORAM_TAMPERED;
}

/* The deepest bucket of the union that is legal for `leaf`, from a page on its path downwards, as a node number. */
static uint32_t deepest(const oram_path *p, const scratch *s, uint32_t leaf, uint32_t page, uint32_t layer) {
    uint32_t level = root_level(p, layer), h = height(p, layer);
    while (layer + 1 < p->layers) {
        const uint32_t turn = prefix(p, leaf, level + h) & ((1u << h) - 1);
        const int32_t below = s->child[((size_t)page << p->h) + turn];
        if (below < 0) break;
        page = (uint32_t)below;
        layer++;
        level += h;
        h = p->h;
    }
    return page * buckets(p) + (1u << (h - 1)) - 1 + (prefix(p, leaf, level + h - 1) & ((1u << (h - 1)) - 1));
}

/* Index of the layer-0 page above `leaf`, -1 if its subtree is not in the union. */
static int32_t top_page(const oram_path *p, const scratch *s, const uint64_t *slots, uint32_t leaf) {
    const uint64_t want = prefix(p, leaf, p->T);
    uint32_t low = 0, high = s->start[1];
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (slots[middle] < want)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->start[1] && slots[low] == want ? (int32_t)low : -1;
}

/* Reads the union top-down, each page under the reference in its parent. */
static int open_union(const oram_path *p, const oram_keys *keys, const scratch *s, uint32_t pages, const uint64_t *slots,
                      const uint8_t *sealed, const uint8_t *present, int in_place) {
    const size_t pitch = (size_t)p->plain + ORAM_TAG;
    int bad = 0;
    memset(s->child, 0xff, ((size_t)pages << p->h) * sizeof *s->child);
    for (uint32_t j = 0, i = 0; j < p->layers; j++)
        for (; i < s->start[j + 1]; i++) {
            const size_t at = in_place ? slots[i] : i;
            uint64_t ref;
            if (in_place && i + 4 < pages) {
                const uint8_t *soon = sealed + slots[i + 4] * pitch;
                __builtin_prefetch(soon);
                __builtin_prefetch(soon + 64);
                __builtin_prefetch(soon + 128);
                __builtin_prefetch(soon + 192);
            }
            if (j == 0) {
                ref = p->refs[slots[i]];
            } else {
                const uint32_t up = (uint32_t)s->parent[i];
                s->child[((size_t)up << p->h) + s->turn[i]] = (int32_t)i;
                ref = ld64(s->plain + (size_t)up * p->plain + (size_t)s->turn[i] * 8);
            }
            int rc = open_page(p, keys, slots[i], ref, sealed + at * pitch, present[at], s->plain + (size_t)i * p->plain);
            if (rc > 0) return rc;
            if (rc < 0) bad = 1; /* go on: the pattern must not say where */
        }
    return bad ? ORAM_TAMPERED : ORAM_OK;
}

int oram_path_access(oram_path *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs,
                     const uint32_t *draws, uint32_t pages, const uint64_t *slots, uint8_t *sealed, uint8_t *present,
                     int in_place, const uint8_t *data, uint8_t *out, uint32_t *placed, uint8_t *where,
                     uint32_t *pool, uint8_t *after, uint8_t *base) {
    const uint32_t leaf_mask = (uint32_t)(((uint64_t)1 << p->L) - 1), nb = buckets(p), Z = p->Z;
    const size_t B = p->B, pitch = (size_t)p->plain + ORAM_TAG;
    int32_t entries = 0, stay = -1, stay_end = -1, needed = 0;
    scratch s;
    layout(p, m, base, &s);

    if (keys->counter + pages > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    int rc = open_union(p, keys, &s, pages, slots, sealed, present, in_place);
    if (rc != ORAM_OK) return rc;

    /* ReadBucket: every block of the union, and the client's blocks below its layer-0 pages. */
    for (uint32_t r = 0; r < m; r++) s.entry[r] = -1;
    for (uint32_t j = 0, i = 0; j < p->layers; j++)
        for (; i < s.start[j + 1]; i++) {
            const uint8_t *meta = s.plain + (size_t)i * p->plain + meta_at(p), *blocks = s.plain + (size_t)i * p->plain + blocks_at(p);
            for (uint32_t z = 0; z < nb * Z; z++) {
                const uint32_t addr = ld32(meta + (size_t)z * 8);
                if (addr == ORAM_EMPTY) continue;
                const int32_t k = entries++, r = s.table[table_cell(s.table, s.mask, addrs, addr)];
                s.addr[k] = addr;
                s.leaf[k] = ld32(meta + (size_t)z * 8 + 4) & leaf_mask;
                s.source[k] = blocks + z * B;
                s.pool[k] = -1;
                s.page[k] = (int32_t)((i << 6) | j); /* layers fit in 6 bits */
                if (r >= 0) {
                    s.entry[r] = k;
                    s.page[k] = -1;
                }
            }
        }
    for (uint32_t i = 0; i < s.start[1]; i++)
        for (int32_t q = p->pool.head[slots[i]]; q >= 0; q = p->pool.next[q]) {
            const int32_t k = entries++, r = s.table[table_cell(s.table, s.mask, addrs, p->pool.addr[q])];
            s.addr[k] = p->pool.addr[q];
            s.leaf[k] = p->pool.leaf[q];
            s.source[k] = p->pool.data + (size_t)q * B;
            s.pool[k] = q;
            s.page[k] = -1;
            if (r >= 0) s.entry[r] = k;
        }

    /* How many blocks may have to join the pool, at most: checked before anything changes. */
    for (uint32_t r = 0; r < m; r++) {
        if (s.first[r] != (int32_t)r) continue;
        if (p->position[addrs[r]] > leaf_mask) return ORAM_BROKEN; /* no leaf */
        needed++;
    }
    if (p->pool.cap - p->pool.used < needed) return ORAM_POOL_FULL;
    for (uint32_t i = 0; i < s.start[1]; i++) p->pool.head[slots[i]] = -1;

    /* Serve the requests in order; the first one to an address remaps it. */
    for (uint32_t r = 0; r < m; r++) {
        const int32_t f = s.first[r];
        if (f < 0) {
            memset(out + r * B, 0, B);
            continue;
        }
        int32_t k = s.entry[f];
        if (k >= 0)
            memcpy(out + r * B, s.source[k], B);
        else
            memset(out + r * B, 0, B);
        if (f == (int32_t)r) {
            p->position[addrs[r]] = draws[r] & leaf_mask;
            if (k >= 0) s.leaf[k] = draws[r] & leaf_mask;
        }
        if (ops[r] == ORAM_WRITE) {
            if (k < 0) {
                k = s.entry[f] = entries++;
                s.addr[k] = addrs[r];
                s.leaf[k] = p->position[addrs[r]];
                s.pool[k] = -1;
                s.page[k] = -1;
            }
            s.source[k] = data + r * B;
        } else if (ops[r] == ORAM_REMOVE && k >= 0) {
            s.addr[k] = ORAM_EMPTY;
            s.entry[f] = -1;
        }
    }

    /* Evict, bottom-up: a node takes up to Z of its blocks, those that came from the server first, and hands the rest up. */
    memset(s.server, 0xff, (size_t)pages * nb * sizeof *s.server);
    memset(s.client, 0xff, (size_t)pages * nb * sizeof *s.client);
    memset(s.slot, 0xff, (size_t)pages * nb * Z * sizeof *s.slot);
    for (int32_t k = 0; k < entries; k++) {
        if (s.addr[k] == ORAM_EMPTY) continue;
        if (s.page[k] >= 0) {
            const uint32_t node = deepest(p, &s, s.leaf[k], (uint32_t)s.page[k] >> 6, (uint32_t)s.page[k] & 63);
            append(s.next, &s.server[node], &s.server_end[node], k);
            continue;
        }
        const int32_t top = top_page(p, &s, slots, s.leaf[k]);
        if (top < 0) {
            append(s.next, &stay, &stay_end, k);
        } else {
            const uint32_t node = deepest(p, &s, s.leaf[k], (uint32_t)top, 0);
            append(s.next, &s.client[node], &s.client_end[node], k);
        }
    }
    for (uint32_t j = p->layers, i = pages; j-- > 0;)
        while (i > s.start[j]) {
            i--;
            for (uint32_t b = (1u << height(p, j)) - 1; b-- > 0;) {
                const uint32_t node = i * nb + b;
                int32_t mine = s.server[node], theirs = s.client[node];
                for (uint32_t z = 0; z < Z && (mine >= 0 || theirs >= 0); z++) {
                    int32_t *from = mine >= 0 ? &mine : &theirs;
                    s.slot[(size_t)node * Z + z] = *from;
                    *from = s.next[*from];
                }
                if (b == 0 && j == 0) {
                    append_list(s.next, &stay, &stay_end, mine, s.server_end[node]);
                    append_list(s.next, &stay, &stay_end, theirs, s.client_end[node]);
                    continue;
                }
                uint32_t up = i * nb + (b - 1) / 2;
                if (b == 0) up = (uint32_t)s.parent[i] * nb + (1u << (height(p, j - 1) - 1)) - 1 + (s.turn[i] >> 1);
                append_list(s.next, &s.server[up], &s.server_end[up], mine, s.server_end[node]);
                append_list(s.next, &s.client[up], &s.client_end[up], theirs, s.client_end[node]);
            }
        }

    /* WriteBucket: each page is assembled in one small place that stays in the cache, and sealed from there. */
    const uint64_t counter = keys->counter;
    keys->counter += pages; /* before the first seal: whatever happens then, no nonce is used twice */
    for (uint32_t i = 0; i < pages; i++) {
        const size_t at = in_place ? slots[i] : i;
        uint8_t *page = s.desk, *meta = page + meta_at(p), *blocks = page + blocks_at(p);
        memcpy(page, s.plain + (size_t)i * p->plain, meta_at(p));
        for (uint32_t c = 0; c < 1u << p->h; c++) {
            const int32_t below = s.child[((size_t)i << p->h) + c];
            if (below >= 0) st64(page + (size_t)c * 8, REF(keys->current, counter + (uint32_t)below));
        }
        for (uint32_t z = 0; z < nb * Z; z++) {
            const int32_t k = s.slot[(size_t)i * nb * Z + z];
            const uint32_t addr = k < 0 ? ORAM_EMPTY : s.addr[k];
            st32(meta + (size_t)z * 8, addr);
            st32(meta + (size_t)z * 8 + 4, k < 0 ? 0 : s.leaf[k]);
            if (k < 0)
                memset(blocks + z * B, 0, B);
            else
                memcpy(blocks + z * B, s.source[k], B);
            if (placed != NULL) placed[(size_t)i * nb * Z + z] = addr;
        }
        rc = keys->cipher->seal(keys->contexts[keys->current], counter + i, slots[i], page, p->plain, sealed + at * pitch);
        if (rc != ORAM_OK) return rc;
        present[at] = 1;
    }
    for (uint32_t i = 0; i < s.start[1]; i++) p->refs[slots[i]] = REF(keys->current, counter + i);

    /* Pool: those that left (placed or removed) free their slots first, then the rest is chained again. */
    for (int32_t k = stay; k >= 0; k = s.next[k]) s.page[k] = -2;
    for (uint32_t r = 0; placed != NULL && r < m; r++) {
        const int32_t k = s.first[r] == (int32_t)r ? s.entry[r] : -1;
        where[r] = s.first[r] != (int32_t)r ? ORAM_AT_REPEAT : k < 0 ? ORAM_AT_NONE : s.page[k] == -2 ? ORAM_AT_POOL : ORAM_AT_SERVER;
        if (k < 0)
            memset(after + r * B, 0, B);
        else
            memcpy(after + r * B, s.source[k], B);
    }
    for (int32_t k = 0; k < entries; k++) {
        const int32_t q = s.pool[k];
        if (q < 0 || s.page[k] == -2) continue;
        pool_give(&p->pool, q);
    }
    for (int32_t k = stay; k >= 0; k = s.next[k]) {
        int32_t q = s.pool[k];
        if (q < 0) {
            q = pool_take(&p->pool, s.addr[k]);
            if (q < 0) return ORAM_BROKEN; /* `needed` slots were free: only a page that this code never sealed can do it */
            s.pool[k] = q;
        }
        p->pool.leaf[q] = s.leaf[k];
        if (s.source[k] != p->pool.data + (size_t)q * B) memcpy(p->pool.data + (size_t)q * B, s.source[k], B);
        pool_link(&p->pool, q, prefix(p, s.leaf[k], p->T));
    }
    for (uint32_t r = 0; placed != NULL && r < m; r++)
        pool[r] = where[r] == ORAM_AT_POOL ? (uint32_t)s.pool[s.entry[r]] : ORAM_EMPTY;
    return ORAM_OK;
}

int oram_path_in_place(oram_path *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs,
                       const uint32_t *draws, uint32_t *path, uint64_t *slots, uint8_t *region, uint8_t *present,
                       const uint8_t *data, uint8_t *out, uint8_t *base) {
    const uint32_t pages = oram_path_plan(p, m, ops, addrs, draws, path, slots, base);
    return oram_path_access(p, keys, m, ops, addrs, draws, pages, slots, region, present, 1, data, out, NULL, NULL, NULL, NULL, base);
}

int oram_path_build(const oram_path *p, oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *children,
                    const int64_t *source, const uint32_t *addr, const uint32_t *leaf, const uint8_t *blocks, uint8_t *sealed) {
    const uint32_t per_page = buckets(p) * p->Z;
    const size_t B = p->B;
    const uint64_t counter = keys->counter;
    if (keys->counter + n > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    keys->counter += n;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *page = sealed + (size_t)i * ((size_t)p->plain + ORAM_TAG), *to = page + blocks_at(p);
        for (uint32_t c = 0; c < 1u << p->h; c++) st64(page + (size_t)c * 8, children[((size_t)i << p->h) + c]);
        for (uint32_t z = 0; z < per_page; z++) {
            const int64_t k = source[(size_t)i * per_page + z];
            st32(page + meta_at(p) + (size_t)z * 8, k < 0 ? ORAM_EMPTY : addr[k]);
            st32(page + meta_at(p) + (size_t)z * 8 + 4, k < 0 ? 0 : leaf[k]);
            if (k < 0)
                memset(to + z * B, 0, B);
            else
                memcpy(to + z * B, blocks + (size_t)k * B, B);
        }
        int rc = keys->cipher->seal(keys->contexts[keys->current], counter + i, slots[i], page, p->plain, page);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}
