/* Cuckoo ORAM without an index: tables of bins, a round for each table, tombstones. oram/kernels/reference/binnedoram.py is the
 * specification, oram/params/binned.py the work of a rebuild, docs/schemes/cuckoo.md the reasons. */
#include "batch.h"
#include "bytes.h"
#include "coins.h"
#include "hierarchy.h"
#include "oram.h"
#include "walk.h"

#define FEW 64u   /* hash functions at a time */
#define TABLES (ORAM_CUCKOO_LEVELS * PLACES)
#define TOMB ((uint32_t)1 << ORAM_BINNED_BITS)
#define AGE_SHIFT (ORAM_BINNED_BITS + 1)
#define ADDRESS(word) ((word) & ~TOMB)

enum { FIRST = 1, SECOND = 2, OPEN = 4 }; /* what the bits of an entry's kind mean */

/* --- hash functions */

/* Cells of at most FEW addresses in a table: u counted over all bins, v in the bin of u. */
static int cells(const oram_cuckoo *p, table t, uint32_t n, const uint32_t *words, uint32_t *u, uint32_t *v) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    uint8_t text[16 * FEW];
    int len = 0;
    for (uint32_t i = 0; i < n; i++) {
        st32(text + 16 * i, ADDRESS(words[i]));
        st32(text + 16 * i + 4, t.level);
        st64(text + 16 * i + 8, t.epoch);
    }
    if (EVP_EncryptUpdate(p->prf->aes, text, &len, text, (int)(16 * n)) != 1 || len != (int)(16 * n)) return ORAM_CIPHER_FAILED;
    for (uint32_t i = 0; i < n; i++) {
        u[i] = scaled(ld64(text + 16 * i), s->b * s->m);
        v[i] = scaled(ld64(text + 16 * i + 8), s->m);
    }
    return ORAM_OK;
}

int oram_binned_pairs(const oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, int64_t *pairs) {
    uint32_t u[FEW], v[FEW];
    for (uint32_t at = 0; at < n; at += FEW) {
        const uint32_t few = n - at < FEW ? n - at : FEW;
        const int rc = cells(p, (table){level, epoch}, few, addr + at, u, v);
        if (rc != ORAM_OK) return rc;
        for (uint32_t i = 0; i < few; i++) {
            pairs[2 * (size_t)(at + i)] = u[i];
            pairs[2 * (size_t)(at + i) + 1] = v[i];
        }
    }
    return ORAM_OK;
}

/* --- the work of a rebuild */

static uint64_t middle(const oram_cuckoo_level *s) { return s->b == 1 ? 0 : (uint64_t)s->b * s->r; }
static uint64_t second_pass(const walk *w) { return w->s->b * (middle(w->s) + w->s->width); }

static void locate_second(walk *w) {
    const oram_cuckoo_level *s = w->s;
    const uint64_t each = middle(s) + s->width, q = w->pos - w->cut;
    w->number = (uint32_t)(q / each);
    w->kind = q % each < middle(s) ? MIDDLE : OUTPUT;
    w->begin = w->cut + w->number * each + (w->kind == MIDDLE ? 0 : middle(s));
    w->size = w->kind == MIDDLE ? middle(s) : s->width;
}

static uint64_t output_slot(const walk *w) { return (uint64_t)w->number * w->s->width; }

/* --- entries in hand */

static int32_t name(const run *x) { return (int32_t)(x->number * 4 + x->kind); }

/* Another segment is read from here on. */
static void open_hand(oram_binned_build *g, int32_t segment) {
    g->reading = segment;
    g->held = g->settled = 0;
    memset(g->index, 0, ((size_t)g->index_mask + 1) * sizeof *g->index);
}

/* One more entry, unless a newer one of its address is there. */
static int meet(const oram_cuckoo *p, oram_binned_build *g, uint32_t word, uint32_t age, const uint8_t *block) {
    const uint32_t addr = ADDRESS(word);
    if (addr >= p->N) return ORAM_BROKEN;
    uint32_t i = (addr * 2654435761u) & g->index_mask;
    i ^= (addr * 2654435761u) >> 16 & g->index_mask; /* the high bits: they depend on all of addr */
    while (g->index[i] != 0 && ADDRESS(g->hand_word[g->index[i] - 1]) != addr) i = (i + 1) & g->index_mask;
    uint32_t at = g->index[i];
    if (at != 0 && age > g->hand_age[at - 1]) return ORAM_OK;
    if (at == 0) {
        if (g->held == g->hands) return ORAM_STASH_FULL;
        g->index[i] = at = ++g->held;
    }
    g->hand_word[at - 1] = word;
    g->hand_age[at - 1] = (uint8_t)age;
    memcpy(g->hand + (size_t)(at - 1) * p->B, block, p->B);
    return ORAM_OK;
}

/* The cells of all that is in hand. */
static int settle(const oram_cuckoo *p, oram_binned_build *g, table t) {
    while (g->settled < g->held) {
        const uint32_t few = g->held - g->settled < FEW ? g->held - g->settled : FEW;
        const int rc = cells(p, t, few, g->hand_word + g->settled, g->u + g->settled, g->v + g->settled);
        if (rc != ORAM_OK) return rc;
        g->settled += few;
    }
    return ORAM_OK;
}

/* A slot read: the newest copy of each address stays in hand. */
static int take(const oram_cuckoo *p, oram_binned_build *g, const run *x, uint32_t word, const uint8_t *block) {
    if (word == ORAM_EMPTY) return ORAM_OK;
    const uint32_t age = word >> AGE_SHIFT;
    if (x->kind == INPUT ? age != 0 : age > p->L) return ORAM_BROKEN;
    return meet(p, g, word & (2 * TOMB - 1), 1 + (x->kind == INPUT ? x->level : age), block);
}

/* --- what a rebuild writes */

/* A fixed number of places for each bin; then all that was left over so far. */
static int emitted(const oram_cuckoo *p, oram_binned_build *g, table t) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    memset(g->content, 0, g->contents * sizeof *g->content);
    memset(g->fill, 0, s->b * sizeof *g->fill);
    for (uint32_t e = 0; e < g->held; e++) {
        const uint32_t k = g->u[e] / s->m;
        if (g->fill[k] < s->r) {
            g->content[(size_t)k * s->r + g->fill[k]++] = e + 1;
            continue;
        }
        if (g->lefts == ORAM_BINNED_LEFT) return ORAM_STASH_FULL;
        g->left_word[g->lefts] = g->hand_word[e];
        g->left_age[g->lefts] = g->hand_age[e];
        memcpy(g->left + (size_t)g->lefts++ * p->B, g->hand + (size_t)e * p->B, p->B);
    }
    for (uint32_t i = 0; i < g->lefts; i++) g->content[(size_t)s->b * s->r + i] = 1 + g->hands + i;
    return ORAM_OK;
}

/* Puts an entry into a cell, then as many others as have only one cell left, along the path that begins there. */
static int put(oram_binned_build *g, uint32_t n, uint32_t all, uint32_t e, uint32_t w) {
    for (;;) {
        if (e >= n || !(g->kind[e] & OPEN)) return ORAM_BROKEN;
        const uint32_t other = g->both[e] ^ w;
        if (other >= all) return ORAM_BROKEN;
        g->kind[e] = w & 1 ? SECOND : FIRST;
        g->full[w]--;
        g->full[other]--;
        g->root[w] ^= e;
        g->root[other] ^= e;
        if (g->full[other] != 1) return ORAM_OK;
        w = other;
        e = g->root[w];
    }
}

/* Places the first n entries of `list`, whose cells are known, in a bin, whose first cell is `low`. */
static int place(oram_binned_build *g, const oram_cuckoo_level *s, uint32_t n, uint32_t low) {
    const uint32_t all = 2 * s->m;
#define U(e) (2 * (g->u[g->list[e]] - low))
#define V(e) (2 * g->v[g->list[e]] + 1)
    for (uint32_t w = 0; w < all; w++) g->root[w] = w;
    memset(g->full, 0, all);
    for (uint32_t e = 0; e < n; e++) { /* the first entries, in order, that leave no component with more entries than cells are placed */
        if (g->u[g->list[e]] - low >= s->m || g->v[g->list[e]] >= s->m) return ORAM_BROKEN;
        const uint32_t a = root_of(g->root, U(e)), b = root_of(g->root, V(e));
        g->both[e] = U(e) ^ V(e);
        g->kind[e] = 0;
        if (g->full[a] && (a == b || g->full[b])) continue; /* to the stash */
        g->full[b] = a == b || g->full[a] || g->full[b];
        g->root[a] = b;
        g->kind[e] = OPEN;
    }
    memset(g->root, 0, all * sizeof *g->root);
    memset(g->full, 0, all);
    for (uint32_t e = 0; e < n; e++) {
        if (!(g->kind[e] & OPEN)) continue;
        if (g->full[U(e)] == UINT8_MAX || g->full[V(e)] == UINT8_MAX) return ORAM_BROKEN;
        g->full[U(e)]++;
        g->full[V(e)]++;
        g->root[U(e)] ^= e;
        g->root[V(e)] ^= e;
    }
    int rc = ORAM_OK;
    uint64_t w = 0;
    for (uint32_t k = 0; k < all && rc == ORAM_OK; k++) { /* trees, from their leaves, in an order that favours neither low nor high cells to stay empty */
        if (g->full[w] == 1) rc = put(g, n, all, g->root[w], (uint32_t)w);
        w = (w + s->stride) % all;
    }
    for (uint32_t e = 0; e < n && rc == ORAM_OK; e++) /* cycles */
        if (g->kind[e] & OPEN) rc = put(g, n, all, e, U(e));
    return rc;
#undef U
#undef V
}

static int64_t cell_of(const oram_binned_build *g, uint32_t e, uint32_t low) {
    const uint32_t at = g->list[e];
    return g->kind[e] & FIRST ? 2 * (int64_t)(g->u[at] - low) : g->kind[e] & SECOND ? 2 * (int64_t)g->v[at] + 1 : -1;
}

/* A bin: its cells, and its stash. What the chunks left over and the full top buffer join here; at the bottom, empty addresses go. */
static int bin(oram_cuckoo *p, oram_binned_build *g, table t, uint32_t number) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    const uint32_t low = number * s->m, *rows = p->page_addr + page(p, t.epoch - 1) * p->c;
    const uint8_t *data = p->page_data + page(p, t.epoch - 1) * p->c * p->B;
    int rc = ORAM_OK;
    for (uint32_t i = 0; i < g->lefts + p->c; i += FEW) {
        uint32_t word[FEW], u[FEW], v[FEW], n = 0, at[FEW];
        for (uint32_t j = i; j < i + FEW && j < g->lefts + p->c; j++) {
            word[n] = j < g->lefts ? g->left_word[j] : rows[j - g->lefts];
            at[n] = j;
            if (word[n] != ORAM_EMPTY) n++;
        }
        if (n == 0) continue;
        if ((rc = cells(p, t, n, word, u, v)) != ORAM_OK) return rc;
        for (uint32_t j = 0; j < n && rc == ORAM_OK; j++) {
            if (u[j] / s->m != number) continue;
            const uint32_t row = at[j] - g->lefts;
            rc = at[j] < g->lefts ? meet(p, g, word[j], g->left_age[at[j]], g->left + (size_t)at[j] * p->B) : meet(p, g, word[j], 0, data + (size_t)row * p->B);
        }
        if (rc != ORAM_OK) return rc;
    }
    if ((rc = settle(p, g, t)) != ORAM_OK) return rc;
    uint32_t n = 0, rest = 0;
    for (uint32_t e = 0; e < g->held; e++)
        if (t.level < p->L || !(g->hand_word[e] & TOMB)) g->list[n++] = e;
    if ((rc = place(g, s, n, low)) != ORAM_OK) return rc;
    memset(g->content, 0, g->contents * sizeof *g->content);
    for (uint32_t e = 0; e < n; e++) {
        const int64_t cell = cell_of(g, e, low);
        const uint32_t at = g->list[e];
        if (cell >= 0) {
            g->content[cell] = at + 1;
            continue;
        }
        if (rest == ORAM_CUCKOO_STASH) return ORAM_STASH_FULL;
        g->content[2 * (size_t)s->m + rest++] = at + 1;
        if ((rc = keep(p, t, g->hand_word[at], g->hand + (size_t)at * p->B)) != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

/* Another segment is written from here on. */
static int compose(oram_cuckoo *p, oram_binned_build *g, table t, const run *x) {
    if (g->reading < 0) open_hand(g, INPUT); /* nothing was read: there are no inputs */
    const int rc = settle(p, g, t);
    if (rc != ORAM_OK) return rc;
    g->writing = name(x);
    return x->kind == EMIT ? emitted(p, g, t) : bin(p, g, t, x->number);
}

/* The content of a slot to be written, in clear. */
static void give(const oram_cuckoo *p, const oram_binned_build *g, const run *x, uint64_t at, uint8_t *row) {
    const uint32_t what = at < g->contents ? g->content[at] : 0;
    if (what == 0) {
        st32(row, ORAM_EMPTY);
        memset(row + 4, 0, p->B);
        return;
    }
    const uint32_t i = what > g->hands ? what - 1 - g->hands : what - 1;
    const uint32_t word = what > g->hands ? g->left_word[i] : g->hand_word[i], age = what > g->hands ? g->left_age[i] : g->hand_age[i];
    st32(row, x->kind == EMIT ? word | (age - 1) << AGE_SHIFT : word);
    memcpy(row + 4, (what > g->hands ? g->left : g->hand) + (size_t)i * p->B, p->B);
}

static int begin(const oram_cuckoo *p, table t) {
    oram_binned_build *g = &p->bins[t.level];
    g->epoch = t.epoch;
    g->active = 1;
    g->reading = g->writing = -1;
    g->held = g->settled = g->lefts = 0;
    return ORAM_OK;
}

/* --- a batch: what it reads */

int oram_binned_count(const oram_cuckoo *p, uint32_t m, uint32_t *tables, uint64_t *reads, uint64_t *writes) {
    table found[TABLES];
    *tables = 1;
    *reads = *writes = 0;
    for (uint32_t r = 0; r < m; r++) {
        const uint64_t clock = *p->clock + r;
        const uint32_t n = alive(p, clock, found), builds = running(p, clock, found);
        if (n > *tables) *tables = n;
        for (uint32_t i = 0; i < builds; i++) {
            walk w;
            run x;
            work(&w, p, found[i]);
            share(&w, clock - found[i].epoch * p->c);
            while (next_run(&w, &x)) *(x.kind == INPUT || x.kind == MIDDLE ? reads : writes) += x.count;
        }
    }
    return ORAM_OK;
}

int oram_binned_begin(const oram_cuckoo *p, uint32_t m, const uint8_t *seed, oram_binned_batch *q) {
    q->m = m;
    q->at = q->count = q->distinct = q->fetches = 0;
    memset(q->known, 0xff, ((size_t)q->known_mask + 1) * sizeof *q->known);
    return coins_start(p->coins, seed);
}

/* A slot is read, unless the batch has written it before. Where it comes from. */
static int read_slot(oram_binned_batch *q, uint64_t slot, uint64_t epoch, int32_t *from) {
    const int32_t at = q->known[known_cell(q->known, q->known_mask, q->written, slot)];
    if (at >= 0) {
        *from = -1 - at;
        return ORAM_OK;
    }
    if (q->fetches == q->fetch_room) return ORAM_BROKEN;
    *from = (int32_t)q->fetches;
    q->slot[q->fetches] = slot;
    q->epoch[q->fetches++] = epoch;
    return ORAM_OK;
}

static int write_slot(oram_binned_batch *q, uint64_t slot, uint64_t epoch) {
    const uint32_t i = known_cell(q->known, q->known_mask, q->written, slot);
    if (q->writes == q->write_room || (q->known[i] < 0 && q->distinct == q->write_room)) return ORAM_BROKEN;
    if (q->known[i] < 0) q->known[i] = (int32_t)q->distinct++;
    q->written[q->known[i]] = slot;
    q->sealed_as[q->known[i]] = epoch;
    q->to[q->writes++] = (uint32_t)q->known[i];
    return ORAM_OK;
}

/* The newest row of an address in the top buffers: 1 + its flush, 0 where there is none. A full one is kept while its rebuild is under way. */
static uint64_t newest_row(const oram_cuckoo *p, uint32_t addr, uint64_t clock, size_t *at) {
    table builds[TABLES];
    const uint32_t n = running(p, clock, builds);
    uint64_t flush = clock / p->c;
    for (;;) {
        const size_t begins = page(p, flush) * p->c;
        const uint32_t *rows = p->page_addr + begins;
        for (uint32_t row = flush == clock / p->c ? (uint32_t)(clock % p->c) : p->c; row-- > 0;)
            if (ADDRESS(rows[row]) == addr) {
                *at = begins + row;
                return flush + 1;
            }
        uint64_t older = 0; /* 1 + the next one */
        for (uint32_t i = 0; i < n; i++)
            if (builds[i].epoch <= flush && builds[i].epoch > older) older = builds[i].epoch;
        if (older == 0) return 0;
        flush = older - 1;
    }
}

/* All that the rebuilds read and write during the piece. */
static int plan_rebuilds(const oram_cuckoo *p, oram_binned_batch *q) {
    table builds[TABLES];
    for (uint32_t r = 0; r < q->count; r++) {
        const uint64_t clock = q->clock + r;
        const uint32_t n = running(p, clock, builds);
        for (int writing = 0; writing < 2; writing++) /* no access reads what it writes */
            for (uint32_t i = 0; i < n; i++) {
                walk w;
                run x;
                work(&w, p, builds[i]);
                share(&w, clock - builds[i].epoch * p->c);
                while (next_run(&w, &x)) {
                    if ((x.kind != INPUT && x.kind != MIDDLE) != writing) continue;
                    for (uint64_t k = 0; k < x.count; k++) {
                        if (!writing && q->reads == q->read_room) return ORAM_BROKEN;
                        int32_t from = -1;
                        const int rc = writing ? write_slot(q, x.slot + k, x.epoch) : read_slot(q, x.slot + k, x.epoch, &from);
                        if (rc != ORAM_OK) return rc;
                        if (!writing) q->read_from[q->reads++] = from < 0 ? from : from - (int32_t)q->probed;
                    }
                }
            }
    }
    return ORAM_OK;
}

/* The next accesses, as many as probe the same tables. */
static int cut(const oram_cuckoo *p, const uint8_t *ops, const uint32_t *addrs, oram_binned_batch *q) {
    table now[TABLES], then[TABLES];
    const uint64_t clock = *p->clock;
    const uint32_t n = alive(p, clock, now);
    uint32_t count = 1;
    if (n > q->table_room) return ORAM_BROKEN;
    for (; q->at + count < q->m; count++) {
        int same = alive(p, clock + count, then) == n;
        for (uint32_t i = 0; same && i < n; i++) same = now[i].level == then[i].level && now[i].epoch == then[i].epoch;
        if (!same) break;
    }
    for (uint32_t i = 0; i < n; i++) {
        q->level[i] = now[i].level;
        q->epoch_of[i] = now[i].epoch;
    }
    for (uint32_t r = 0; r < count; r++) {
        const uint32_t addr = addrs[q->at + r];
        for (uint32_t i = 0; i < n; i++) { /* drawn for a real probe too */
            const oram_cuckoo_level *s = &p->levels[now[i].level];
            int rc = coins_below(p->coins, s->b * s->m, &q->u[(size_t)r * q->table_room + i]);
            if (rc == ORAM_OK) rc = coins_below(p->coins, s->m, &q->v[(size_t)r * q->table_room + i]);
            if (rc != ORAM_OK) return rc;
        }
        q->found[r] = 0;
        q->kept[r] = 0;
        q->seeks[r] = ops[q->at + r] != ORAM_DUMMY;
        if (!q->seeks[r]) continue;
        if (addr >= p->N) return ORAM_BROKEN;
        for (uint32_t i = 0; i < r; i++)
            if (q->seeks[i] == 1 && addrs[q->at + i] == addr) q->seeks[r] = 2;
        size_t at;
        if (q->seeks[r] == 1) q->kept[r] = newest_row(p, addr, clock, &at);
    }
    q->clock = clock;
    q->count = count;
    q->tables = n;
    q->round = 0;
    return ORAM_OK;
}

/* Whether a request probes the round's table for its address: it was not found yet, also not in a top buffer that is newer. */
static int real(const oram_binned_batch *q, uint32_t r) { return q->seeks[r] == 1 && !q->found[r] && q->kept[r] <= q->epoch_of[q->round]; }

int oram_binned_ask(const oram_cuckoo *p, const uint8_t *ops, const uint32_t *addrs, oram_binned_batch *q) {
    int rc;
    if (q->count == 0) {
        if (q->at == q->m) return ORAM_OK;
        if ((rc = cut(p, ops, addrs, q)) != ORAM_OK) return rc;
    }
    if (q->clock != *p->clock) return ORAM_BROKEN;
    q->fetches = 0;
    for (uint32_t r = 0; r < q->count && q->round < q->tables; r++) {
        const table t = {q->level[q->round], q->epoch_of[q->round]};
        const oram_cuckoo_level *s = &p->levels[t.level];
        uint32_t u = q->u[(size_t)r * q->table_room + q->round], v = q->v[(size_t)r * q->table_room + q->round];
        if (real(q, r) && (rc = cells(p, t, 1, &addrs[q->at + r], &u, &v)) != ORAM_OK) return rc;
        const uint64_t begins = first_slot(p, t) + (uint64_t)(u / s->m) * s->width;
        q->probe[2 * (size_t)r] = begins + 2 * (uint64_t)(u % s->m);
        q->probe[2 * (size_t)r + 1] = begins + 2 * (uint64_t)v + 1;
        for (uint32_t i = 0; i < 2; i++)
            if ((rc = read_slot(q, q->probe[2 * (size_t)r + i], t.epoch, &q->from[2 * (size_t)r + i])) != ORAM_OK) return rc;
    }
    q->probed = q->fetches;
    if (q->round > 0) return ORAM_OK;
    q->reads = q->writes = 0;
    return plan_rebuilds(p, q);
}

/* --- a batch: what it finds */

static int serve(oram_cuckoo *p, oram_binned_batch *q, uint32_t r, uint8_t op, uint32_t addr, const uint8_t *data, uint8_t *out, uint8_t *where,
                 uint8_t *after) {
    const size_t B = p->B;
    const uint64_t clock = *p->clock;
    const uint8_t *block = NULL;
    size_t at = 0;
    if (q->found[r]) {
        if (!(q->found_word[r] & TOMB)) block = q->found_data + r * B;
    } else if (q->seeks[r] == 2 || q->kept[r] != 0) {
        if (newest_row(p, addr, clock, &at) == 0) return ORAM_BROKEN;
        if (!(p->page_addr[at] & TOMB)) block = p->page_data + at * B;
    }
    if (block == NULL)
        memset(out, 0, B);
    else
        memcpy(out, block, B);
    if (op == ORAM_READ && block != NULL) block = out;
    if (op == ORAM_WRITE) block = data;
    if (op == ORAM_REMOVE) block = NULL;

    /* Every access of an address leaves an entry of it, also where there is no block: its pairs were seen now. */
    const size_t row = page(p, clock / p->c) * p->c + clock % p->c;
    p->page_addr[row] = op == ORAM_DUMMY ? ORAM_EMPTY : block == NULL ? addr | TOMB : addr;
    if (block == NULL) {
        memset(p->page_data + row * B, 0, B);
        memset(after, 0, B);
    } else {
        memcpy(p->page_data + row * B, block, B);
        memcpy(after, block, B);
    }
    *where = op == ORAM_DUMMY ? ORAM_AT_REPEAT : block == NULL ? ORAM_AT_NONE : ORAM_AT_POOL;
    return ORAM_OK;
}

/* Where a row in clear is: in what was read, or in what the batch has written. */
static uint8_t *row_of(const oram_cuckoo *p, const oram_binned_batch *q, uint8_t *read, int32_t from) {
    return from < 0 ? q->content + (size_t)(-1 - from) * slot_size(p) + 8 : read + (size_t)from * row_size(p);
}

/* One request after the other: serve it, append to the top buffer, work at the rebuilds. */
static int piece(oram_cuckoo *p, oram_binned_batch *q, const uint8_t *ops, const uint32_t *addrs, const uint8_t *data, uint8_t *out, uint8_t *where,
                 uint8_t *after) {
    const size_t B = p->B, pitch = slot_size(p);
    uint32_t read = 0, write = 0;
    int rc;
    for (uint32_t r = 0; r < q->count; r++) {
        const uint64_t clock = *p->clock;
        const uint32_t i0 = q->at + r;
        table builds[TABLES];
        if ((rc = serve(p, q, r, ops[i0], addrs[i0], data + i0 * B, out + i0 * B, where + i0, after + i0 * B)) != ORAM_OK) return rc;
        const uint32_t n = running(p, clock, builds);
        for (uint32_t i = 0; i < n; i++) {
            oram_binned_build *g = &p->bins[builds[i].level];
            const uint64_t k = clock - builds[i].epoch * p->c;
            if (!g->active || g->epoch != builds[i].epoch) {
                if (k > 0) return ORAM_BROKEN;
                begin(p, builds[i]);
            }
            walk w;
            run x;
            work(&w, p, builds[i]);
            share(&w, k);
            while (next_run(&w, &x)) {
                if (x.kind == INPUT || x.kind == MIDDLE) {
                    if (x.count > q->reads - read) return ORAM_BROKEN;
                    if (g->reading != name(&x)) open_hand(g, name(&x));
                    for (uint64_t j = 0; j < x.count; j++, read++) {
                        const uint8_t *found = row_of(p, q, q->input, q->read_from[read]);
                        if ((rc = take(p, g, &x, ld32(found), found + 4)) != ORAM_OK) return rc;
                    }
                    if ((rc = settle(p, g, builds[i])) != ORAM_OK) return rc;
                } else {
                    if (x.count > q->writes - write) return ORAM_BROKEN;
                    if (g->writing != name(&x) && (rc = compose(p, g, builds[i], &x)) != ORAM_OK) return rc;
                    for (uint64_t j = 0; j < x.count; j++, write++) give(p, g, &x, x.at + j, q->content + (size_t)q->to[write] * pitch + 8);
                }
            }
        }
        *p->clock = clock + 1;
        for (uint32_t i = 0; i < n; i++) {
            if (done(p, builds[i]) != clock + 1) continue;
            walk w;
            work(&w, p, builds[i]);
            for (uint32_t j = 0; j < w.count; j++) drop(p, (table){w.inputs[j].level, w.inputs[j].epoch});
            p->bins[builds[i].level].active = 0;
        }
    }
    q->at += q->count;
    q->count = 0;
    return ORAM_OK;
}

int oram_binned_tell(oram_cuckoo *p, const oram_keys *keys, oram_binned_batch *q, const uint8_t *ops, const uint32_t *addrs, const uint8_t *sealed,
                     const uint8_t *present, const uint8_t *data, uint8_t *out, uint8_t *where, uint8_t *after) {
    const size_t pitch = slot_size(p), rows = row_size(p);
    int rc, bad = ORAM_OK;
    if (q->count == 0 || q->clock != *p->clock) return ORAM_BROKEN; /* another plan */
    for (uint32_t i = 0; i < q->fetches; i++) {
        uint8_t *row = i < q->probed ? q->desk + i * rows : q->input + (i - q->probed) * rows;
        rc = open_slot(p, keys, q->slot[i], q->epoch[i], sealed + i * pitch, present[i], row);
        if (rc > 0) return rc;
        bad |= rc;
    }
    if (bad != ORAM_OK) return ORAM_TAMPERED;
    for (uint32_t r = 0; r < q->count && q->round < q->tables; r++) {
        if (!real(q, r)) continue;
        const uint32_t addr = addrs[q->at + r];
        const table t = {q->level[q->round], q->epoch_of[q->round]};
        const uint8_t *block = NULL;
        uint32_t word = 0;
        for (uint32_t i = 0; i < 2; i++) {
            const uint8_t *row = row_of(p, q, q->desk, q->from[2 * (size_t)r + i]);
            if (ADDRESS(ld32(row)) != addr) continue;
            word = ld32(row);
            block = row + 4;
        }
        for (uint32_t i = 0; block == NULL && i < p->stash; i++) {
            if (p->stash_of[i] != place_of(p, t) || ADDRESS(p->stash_addr[i]) != addr) continue;
            word = p->stash_addr[i];
            block = p->stash_data + (size_t)i * p->B;
        }
        if (block == NULL) continue;
        q->found[r] = 1;
        q->found_word[r] = word;
        memcpy(q->found_data + (size_t)r * p->B, block, p->B);
    }
    q->round++;
    return q->round < q->tables ? ORAM_OK : piece(p, q, ops, addrs, data, out, where, after);
}

int oram_binned_finish(const oram_cuckoo *p, oram_keys *keys, const oram_binned_batch *q) {
    const uint64_t counter = keys->counter;
    if (counter + q->distinct > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    keys->counter += q->distinct; /* before the first seal */
    for (uint32_t i = 0; i < q->distinct; i++) {
        uint8_t *row = q->content + (size_t)i * slot_size(p);
        const int rc = seal_slot(p, keys, counter + i, q->written[i], q->sealed_as[i], row + 8, row);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

/* --- after an opening */

int oram_binned_resume(oram_cuckoo *p, uint32_t level, uint64_t epoch) { return begin(p, (table){level, epoch}); }

int oram_binned_left(oram_cuckoo *p, uint32_t level, uint32_t n, const uint32_t *words, const uint8_t *blocks) {
    oram_binned_build *g = &p->bins[level];
    for (uint32_t i = 0; i < n; i++) {
        if (words[i] == ORAM_EMPTY) continue;
        const uint32_t age = words[i] >> AGE_SHIFT;
        if (g->lefts == ORAM_BINNED_LEFT || age > p->L) return ORAM_BROKEN;
        g->left_word[g->lefts] = words[i] & (2 * TOMB - 1);
        g->left_age[g->lefts] = (uint8_t)(age + 1);
        memcpy(g->left + (size_t)g->lefts++ * p->B, blocks + (size_t)i * p->B, p->B);
    }
    return ORAM_OK;
}

int oram_binned_again(oram_cuckoo *p, uint32_t level, uint64_t low, uint64_t high, const uint32_t *words, const uint8_t *blocks) {
    oram_binned_build *g = &p->bins[level];
    const table t = {level, g->epoch};
    walk w;
    run x;
    if (!g->active) return ORAM_BROKEN;
    work(&w, p, t);
    w.pos = low;
    w.high = below64(high, w.end);
    for (size_t i = 0; next_run(&w, &x);) {
        if (x.kind != INPUT && x.kind != MIDDLE) return ORAM_BROKEN;
        if (g->reading != name(&x)) open_hand(g, name(&x));
        for (uint64_t k = 0; k < x.count; k++, i++) {
            const int rc = take(p, g, &x, words[i], blocks + i * p->B);
            if (rc != ORAM_OK) return rc;
        }
    }
    return settle(p, g, t);
}

/* --- bulk */

int oram_binned_place(oram_cuckoo *p, uint32_t level, uint32_t n, const int64_t *pairs, int64_t *cell) {
    oram_binned_build *g = &p->bins[level];
    const oram_cuckoo_level *s = &p->levels[level];
    if (n > g->hands) return ORAM_STASH_FULL;
    g->active = 0;
    for (uint32_t e = 0; e < n; e++) {
        if (pairs[2 * (size_t)e] < 0 || pairs[2 * (size_t)e] >= s->m || pairs[2 * (size_t)e + 1] < 0 || pairs[2 * (size_t)e + 1] >= s->m) return ORAM_BROKEN;
        g->u[e] = (uint32_t)pairs[2 * (size_t)e];
        g->v[e] = (uint32_t)pairs[2 * (size_t)e + 1];
        g->list[e] = e;
    }
    const int rc = place(g, s, n, 0);
    for (uint32_t e = 0; e < n && rc == ORAM_OK; e++) cell[e] = cell_of(g, e, 0);
    return rc;
}
